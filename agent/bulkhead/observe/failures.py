"""How often a path failed before a change, and after it: shares with the bounds that so few or so many events allow."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from bulkhead.observe.minutes import MINUTE_S, Cell, Path

Z95: Final = 1.959963984540054
"""Of the normal distribution, for bounds that hold in 95 of 100 cases."""


class Bounds(NamedTuple):
    """Between which two shares the true one lies, by Wilson's score interval."""

    lower: float
    upper: float


def wilson(failed: int, total: int, z: float = Z95) -> Bounds:
    """The bounds of a share of which `failed` of `total` were seen; everything is possible when nothing was."""
    if total == 0:
        return Bounds(0.0, 1.0)
    share, squared = failed / total, z * z
    middle = (share + squared / (2 * total)) / (1 + squared / total)
    spread = z / (1 + squared / total) * math.sqrt(share * (1 - share) / total + squared / (4 * total * total))
    # Rounding must not leave out what was seen.
    return Bounds(min(max(0.0, middle - spread), share), max(min(1.0, middle + spread), share))


@dataclass(frozen=True, slots=True)
class Tally:
    """What was judged on one side of the change."""

    allowed: int = 0
    would_deny: int = 0
    """Passed, and would not in enforce mode."""
    refused: int = 0

    @property
    def total(self) -> int:
        return self.allowed + self.would_deny + self.refused

    @property
    def share(self) -> float | None:
        """The failed share; None when nothing was judged."""
        return self.refused / self.total if self.total else None

    @property
    def bounds(self) -> Bounds:
        """95 % bounds of the failed share."""
        return wilson(self.refused, self.total)


class Finding(StrEnum):
    """What the change did, as far as the counts tell."""

    WORSE = "worse"
    BETTER = "better"
    UNCLEAR = "no difference that the counts show"
    SILENT = "silent since"
    """Used before, and not once after: whoever used it may have given up, or not been started."""
    NEW = "new since"
    NOTHING = "nothing recorded"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Before and after."""

    before: Tally
    after: Tally

    @property
    def finding(self) -> Finding:
        before, after = self.before, self.after
        if not before.total or not after.total:
            return Finding.SILENT if before.total else Finding.NEW if after.total else Finding.NOTHING
        if after.bounds.lower > before.bounds.upper:
            return Finding.WORSE
        return Finding.BETTER if after.bounds.upper < before.bounds.lower else Finding.UNCLEAR


class Edge(NamedTuple):
    """Who talked to whom, whichever end judged."""

    source: str
    destination: str
    address: str
    """Of an end outside that this machine has chosen; empty otherwise."""
    protocol: str
    port: int


@dataclass(frozen=True, slots=True)
class Report:
    """A change and the paths around it. Times are Unix seconds."""

    at: float
    window_s: float
    before_s: float
    """Seconds of each window that the records cover."""
    after_s: float
    total: Comparison
    edges: dict[Edge, Comparison]
    """The worst first."""


class Span(NamedTuple):
    """From a time, up to another, in Unix seconds."""

    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Question:
    """Which change, and what around it. Times are Unix seconds."""

    at: float
    generation: int | None
    """The first of the change; None: it is known by its time alone."""
    window_s: float
    known: Span
    """What the records cover."""
    wanted: Callable[[Path], bool]


_Counts = dict[Edge, dict[bool, dict[str, Counter[str]]]]
"""Judgements by edge, by whether they came after the change, by the end that judged, by verdict."""


def compare(cells: Iterable[Cell], asked: Question) -> Report:
    """Counts up to `window_s` before and after a change.

    The minute of the change holds both: it is told apart by generation, and left out where none is known.
    """
    change = int(asked.at // MINUTE_S)
    window = max(1, math.ceil(asked.window_s / MINUTE_S))
    counts: _Counts = defaultdict(lambda: defaultdict(lambda: defaultdict(Counter)))
    for cell in cells:
        if abs(cell.minute - change) > window or not asked.wanted(cell.path):
            continue
        if cell.minute == change and asked.generation is None:
            continue
        later = cell.generation >= asked.generation if cell.minute == change and asked.generation else False
        path = cell.path
        edge = Edge(path.source, path.destination, path.address, path.protocol, path.port)
        counts[edge][later or cell.minute > change][path.direction][cell.verdict] += cell.total
    compared = {edge: Comparison(_tally(found[False]), _tally(found[True])) for edge, found in counts.items()}
    ends = (asked.at, asked.at) if asked.generation else (change * MINUTE_S, (change + 1) * MINUTE_S)
    return Report(
        at=asked.at,
        window_s=float(window * MINUTE_S),
        before_s=_covered(Span((change - window) * MINUTE_S, ends[0]), asked.known),
        after_s=_covered(Span(ends[1], (change + 1 + window) * MINUTE_S), asked.known),
        total=Comparison(_sum(one.before for one in compared.values()), _sum(one.after for one in compared.values())),
        edges=dict(sorted(compared.items(), key=_order)),
    )


def _covered(window: Span, known: Span) -> float:
    return max(0.0, min(window.end, known.end) - max(window.start, known.start))


def _tally(ends: dict[str, Counter[str]]) -> Tally:
    """What became of conversations that each end here judges: passed is what every one of them let through."""
    passed = min((found["allow"] + found["would-deny"] for found in ends.values()), default=0)
    would = min(passed, max((found["would-deny"] for found in ends.values()), default=0))
    return Tally(passed - would, would, sum(found["deny"] for found in ends.values()))


def _sum(tallies: Iterable[Tally]) -> Tally:
    total = Tally()
    for one in tallies:
        total = Tally(total.allowed + one.allowed, total.would_deny + one.would_deny, total.refused + one.refused)
    return total


_RANK: Final = list(Finding)


def _order(item: tuple[Edge, Comparison]) -> tuple[int, int, Edge]:
    edge, found = item
    return _RANK.index(found.finding), -found.before.total - found.after.total, edge


def statements(report: Report) -> Iterator[str]:
    """What the change did, in plain words."""
    finding = report.total.finding
    words = {
        Finding.WORSE: "the change made it worse",
        Finding.BETTER: "it fails less since the change",
        Finding.UNCLEAR: "the counts show no difference",
        Finding.SILENT: "nothing was tried since the change, so nothing can be said of it",
        Finding.NEW: "nothing was tried before the change, so there is nothing to compare with",
        Finding.NOTHING: "nothing was recorded around the change",
    }
    worse = sum(one.finding is Finding.WORSE for one in report.edges.values())
    text = words[finding]
    if worse and finding is not Finding.WORSE:
        text = f"the change made {worse} of {len(report.edges)} paths worse; over all, {text}"
    yield text
    silent = sum(one.finding is Finding.SILENT for one in report.edges.values())
    if silent and finding is not Finding.SILENT:
        yield f"{silent} of {len(report.edges)} paths were not tried since: their users may have given up"
