"""Before and after a change: shares with honest bounds, and what may be said of them."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from bulkhead.observe.failures import Comparison, Finding, Question, Report, Span, Tally, compare, statements, wilson
from bulkhead.observe.minutes import Cell, Path

OUT = Path("egress", "shop/web", "shop/db", "", "tcp", 5432)
IN = OUT._replace(direction="ingress")
MINUTE = 1_000_000
AT = MINUTE * 60.0 + 30


def cell(minute: int, verdict: str, total: int, path: Path = OUT, generation: int = 7) -> Cell:
    return Cell(MINUTE + minute, path, verdict, generation, total)


def compared(cells: Iterable[Cell], generation: int | None = None, window_s: float = 900.0) -> Report:
    known = Span(AT - 7200, AT + 600)
    return compare(cells, Question(AT, generation, window_s, known, lambda _: True))


@pytest.mark.parametrize(
    ("failed", "total", "lower", "upper"),
    [(0, 0, 0.0, 1.0), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (1, 1000, 0.0002, 0.0056)],
)
def test_bounds_are_those_of_wilson(failed: int, total: int, lower: float, upper: float) -> None:
    found = wilson(failed, total)
    assert (round(found.lower, 4), round(found.upper, 4)) == (lower, upper)


@pytest.mark.parametrize("total", range(1, 60))
def test_bounds_hold_what_was_seen(total: int) -> None:
    for failed in range(total + 1):
        lower, upper = wilson(failed, total)
        assert 0 <= lower <= failed / total <= upper <= 1


@pytest.mark.parametrize(
    ("before", "after", "finding"),
    [
        (Tally(100), Tally(90, 0, 10), Finding.WORSE),
        (Tally(90, 0, 10), Tally(100), Finding.BETTER),
        (Tally(4, 4), Tally(4, 0, 6), Finding.UNCLEAR),
        (Tally(9), Tally(), Finding.SILENT),
        (Tally(), Tally(9), Finding.NEW),
        (Tally(), Tally(), Finding.NOTHING),
    ],
)
def test_a_finding_needs_bounds_that_do_not_meet(before: Tally, after: Tally, finding: Finding) -> None:
    assert Comparison(before, after).finding is finding


def test_what_both_ends_judge_is_one_conversation() -> None:
    cells = [cell(-1, "allow", 5), cell(-1, "allow", 5, IN), cell(1, "allow", 5), cell(1, "allow", 3, IN),
             cell(1, "deny", 2, IN), cell(2, "would-deny", 1), cell(2, "allow", 1, IN)]  # fmt: skip
    report = compared(cells)
    assert report.total == Comparison(Tally(5), Tally(3, 1, 2))


def test_what_one_end_refuses_always_has_not_passed() -> None:
    report = compared([cell(1, "allow", 4), cell(1, "deny", 12, IN)])
    assert report.total.after == Tally(0, 0, 12)


def test_the_minute_of_the_change_is_told_apart_by_generation_or_left_out() -> None:
    cells = [cell(0, "allow", 5), cell(0, "deny", 4, generation=8), cell(1, "deny", 1, generation=8)]
    assert compared(cells, generation=8).total == Comparison(Tally(5), Tally(0, 0, 5))
    assert compared(cells).total == Comparison(Tally(), Tally(0, 0, 1))


def test_a_window_ends_where_it_was_asked_to_and_says_what_is_known_of_it() -> None:
    report = compared([cell(-5, "allow", 1), cell(-6, "allow", 1), cell(5, "deny", 1), cell(6, "deny", 1)], 8, 300.0)
    assert (report.total.before.total, report.total.after.total) == (1, 1)
    assert (report.before_s, report.after_s) == (330.0, 330.0)
    assert compared([], None, 900.0).after_s == AT + 600 - (MINUTE + 1) * 60


def test_the_statement_names_paths_that_a_good_total_would_hide() -> None:
    other = OUT._replace(port=80)
    cells = [cell(-1, "allow", 1000), cell(1, "allow", 1000), cell(-1, "allow", 20, other), cell(1, "deny", 20, other)]
    cells += [cell(-1, "deny", 60), cell(-1, "allow", 3, OUT._replace(port=81))]
    report = compared(cells)
    assert next(iter(report.edges)).port == 80
    first, second = statements(report)
    assert first.startswith("the change made 1 of 3 paths worse; over all, ")
    assert second == "1 of 3 paths were not tried since: their users may have given up"
