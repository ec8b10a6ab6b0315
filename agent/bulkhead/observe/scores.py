"""How well a suggested rule is founded, with the reason: what was seen once may have been an accident."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from bulkhead.observe.evidence import age_text
from bulkhead.observe.timers import Timer
from bulkhead.observe.traffic import HOST_NAME, Edge, Program, Seen
from bulkhead.policy.ports import TCP, UDP

DAY_S: Final = 86400.0
OFTEN: Final = 10
"""Seen so many times, a conversation is a habit."""
BRIEF_S: Final = 60.0
LONG_S: Final = 3600.0
_EPHEMERAL_MIN: Final = 32768
_TRANSIENT: Final = re.compile(r"/(?:session-[^/]*\.scope|run-[^/]*\.(?:scope|service)|user@[^/]*\.service)(?:/|$)")


class Level(StrEnum):
    """How much a reviewer may rely on a rule."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "LOW"


@dataclass(frozen=True, slots=True)
class Score:
    """A level with its reasons, a few words each; none when nothing speaks against it."""

    level: Level
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Period:
    """What time the records tell of."""

    covered_s: float
    complete: bool
    """Nothing in it is known to be missing."""


def score(edge: Edge, seen: Seen, period: Period, timers: Iterable[Timer]) -> Score:
    """The score of one edge. `timers` are those that start the units at its ends."""
    low = tuple(_doubts(edge, seen, period, timers))
    if low:
        return Score(Level.LOW, low)
    medium = tuple(_reserves(seen, period))
    return Score(Level.MEDIUM if medium else Level.HIGH, medium)


def _doubts(edge: Edge, seen: Seen, period: Period, timers: Iterable[Timer]) -> Iterator[str]:
    if seen.count <= 1:
        yield "seen once"
    elif seen.last - seen.first < BRIEF_S:
        yield "seen within one minute only"
    for timer in timers:
        if timer.period_s is None or period.covered_s < 2 * timer.period_s:
            yield f"`{timer.name}` runs {timer.often}, and {age_text(period.covered_s)} were recorded"
    if edge.protocol in (TCP, UDP) and edge.port >= _EPHEMERAL_MIN:
        yield "the port is of the range that clients are given, and may be another next time"
    if seen.last_address_only:
        yield "of callers from outside the last address is recorded, there may be others"
    if HOST_NAME in edge.ends:
        yield "`host` is every program that no workload selects"
    for end in edge.ends:
        if isinstance(end, Program) and _TRANSIENT.search(end.cgroup):
            yield "the control group is of one login or one run, and will have another name next time"


def _reserves(seen: Seen, period: Period) -> Iterator[str]:
    if period.covered_s < DAY_S:
        yield "recorded for less than a day"
    if seen.count < OFTEN:
        yield "seen seldom"
    if seen.last - seen.first < LONG_S:
        yield "seen within one hour only"
    if not period.complete:
        yield "the records are incomplete"
