"""`bulkhead report`: what a change did, in counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from bulkhead.cli.options import View, view_options
from bulkhead.cli.output import note, show, show_json
from bulkhead.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from bulkhead.observe.failures import Comparison, Report, Tally
    from bulkhead.observe.minutes import Path


@click.group()
def report() -> None:
    """Reports on what was recorded."""


@report.command("before-after")
@click.option(
    "--at", "moment", metavar="TIME|COMMIT", required=True, help="When, such as 2027-01-31T18:00:00Z; or what."
)
@click.option("--window", metavar="PERIOD", default="15m", help="How long before and after; 2 h are kept.")
@click.option("--from", "sources", metavar="NAME", multiple=True, help="Only from this workload or address.")
@click.option("--to", "destinations", metavar="NAME", multiple=True, help="Only to this workload or address.")
@view_options()
def before_after(view: View, moment: str, window: str, sources: Sequence[str], destinations: Sequence[str]) -> ExitCode:
    """Hold the failure rate of paths before a change against that after it, with 95 % bounds.

    Counts are of judgements: a refused packet that is sent again counts again. Exits with 1 when a path fails more
    often since the change, else with 4 when the records are incomplete.
    """
    from bulkhead.control import client
    from bulkhead.observe.failures import Finding, Question, Span, compare, statements
    from bulkhead.observe.filters import parse_age
    from bulkhead.observe.minutes import cells_from_json

    window_s = parse_age(window)
    answer = client.call(view.socket, "minutes")
    since, cells = cells_from_json(answer["minutes"])
    change = _change(moment, answer["switches"])
    wanted = _Wanted(tuple(sources), tuple(destinations))
    asked = Question(change.at, change.generation, window_s, Span(since, answer["at"]), wanted)
    found = compare(cells, asked)
    said, gaps = list(statements(found)), _gaps(found, answer)
    if view.as_json:
        show_json("BeforeAfter", _json(found, change, said, gaps))
    else:
        show(view, _table(found))
        for line in said:
            click.echo(line)
        for gap in gaps:
            note(f"incomplete: {gap}")
    if any(one.finding is Finding.WORSE for one in (found.total, *found.edges.values())):
        return ExitCode.NO
    return ExitCode.INCOMPLETE if gaps else ExitCode.OK


class Change(NamedTuple):
    """When something changed, and as what."""

    at: float
    generation: int | None
    commit: str


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Paths by the names and addresses of their ends; none given: all."""

    sources: tuple[str, ...]
    destinations: tuple[str, ...]

    def __call__(self, path: Path) -> bool:
        from bulkhead.observe.filters import is_one_of

        outgoing = path.direction == "egress"
        return is_one_of(self.sources, path.source, "" if outgoing else path.address) and is_one_of(
            self.destinations, path.destination, path.address if outgoing else ""
        )


def _change(moment: str, switches: Sequence[dict[str, Any]]) -> Change:
    """A time, or the moment when a commit came into force. Raises UsageError for what is neither."""
    from datetime import datetime

    if len(moment) >= 4 and not set(moment.lower()) - set("0123456789abcdef"):
        for one in reversed(switches):
            if one["commit"].startswith(moment.lower()) and one["why"] in ("commit", "try"):
                return Change(one["at"], one["generation"], one["commit"])
        raise UsageError(f"no commit `{moment}` came into force here, as far as the agent has recorded")
    try:
        at = datetime.fromisoformat(moment)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise UsageError(f"`{moment}` is neither a commit nor a time with its zone, such as 2027-01-31T18:00:00Z")
    return Change(at.timestamp(), None, "")


def _gaps(found: Report, answer: Any) -> list[str]:
    from bulkhead.observe.evidence import age_text
    from bulkhead.observe.explain import completeness

    gaps = []
    for side, covered_s in (("before", found.before_s), ("after", found.after_s)):
        if covered_s < found.window_s:
            gaps.append(f"{age_text(covered_s)} of the {age_text(found.window_s)} {side} the change are recorded")
    if answer["absent_s"] >= 1:
        gaps.append(f"no agent kept records for {age_text(answer['absent_s'])} of the log's time")
    complete, text = completeness(answer["lost"])
    if not complete:
        gaps.append(text.removeprefix("incomplete: ").partition(";")[0])
    return gaps


def _table(found: Report) -> Table:
    from bulkhead.cli.output import cell
    from bulkhead.cli.render import table
    from bulkhead.observe.explain import port_text
    from bulkhead.observe.failures import Finding
    from bulkhead.observe.names import short

    made = table("FROM", "TO", "BEFORE", "FAILED", "AFTER", "FAILED", "FINDING")
    for edge, one in found.edges.items():
        target = f"{short(edge.destination)} {edge.address}".strip() if edge.address else short(edge.destination)
        port = port_text(edge.protocol, edge.port)
        worse = "red" if one.finding is Finding.WORSE else ""
        made.add_row(cell(short(edge.source)), cell(f"{target}:{port}"), *_cells(one), cell(one.finding, worse))
    made.add_row(cell("all"), cell(""), *_cells(found.total), cell(found.total.finding))
    return made


def _cells(one: Comparison) -> tuple[Any, ...]:
    from bulkhead.cli.output import cell

    return tuple(cell(text) for tally in (one.before, one.after) for text in (_count_text(tally), _share_text(tally)))


def _count_text(tally: Tally) -> str:
    return f"{tally.refused} of {tally.total}" if tally.total else "-"


def _share_text(tally: Tally) -> str:
    if not tally.total:
        return "-"
    lower, upper = tally.bounds
    return f"{lower:.1%} … {upper:.1%}"


def _json(found: Report, change: Change, said: Sequence[str], gaps: Sequence[str]) -> dict[str, Any]:
    edges = [edge._asdict() | _compared(one) for edge, one in found.edges.items()]
    return {
        "at": found.at,
        "commit": change.commit or None,
        "generation": change.generation,
        "window_s": found.window_s,
        "covered_s": {"before": found.before_s, "after": found.after_s},
        "edges": edges,
        "total": _compared(found.total),
        "statements": list(said),
        "incomplete": list(gaps),
    }


def _compared(one: Comparison) -> dict[str, Any]:
    return {"before": _tally(one.before), "after": _tally(one.after), "finding": str(one.finding)}


def _tally(one: Tally) -> dict[str, Any]:
    lower, upper = one.bounds
    return {
        "allowed": one.allowed,
        "would_deny": one.would_deny,
        "refused": one.refused,
        "failed_share": one.share,
        "failed_share_bounds": [lower, upper],
    }
