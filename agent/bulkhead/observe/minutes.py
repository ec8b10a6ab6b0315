"""Judgements by path and minute, for as long as a change is likely to be asked about.

Bounded twice: by time, and by cells (a path, a verdict, a minute). Whatever is given up moves `since`, so that nobody
takes what was forgotten for what did not happen.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from bulkhead.errors import UsageError

MINUTES_KEPT: Final = 120
CELLS_MAX: Final = 20_000
MINUTE_S: Final = 60


class Path(NamedTuple):
    """What one end on this machine judged about another."""

    direction: str
    """Which end judged: `egress` the source, `ingress` the destination."""
    source: str
    """Names, as in a flow record."""
    destination: str
    address: str
    """Of an end outside that this side has chosen; empty where it does not tell paths apart."""
    protocol: str
    port: int


class Cell(NamedTuple):
    """What happened on a path in a minute."""

    minute: int
    """Unix time in minutes."""
    path: Path
    verdict: str
    generation: int
    """Of the policy that judged."""
    total: int
    """Judgements."""


class _Kind(NamedTuple):
    """What is counted apart within a minute."""

    path: Path
    verdict: str
    generation: int


class Minutes:
    """Counts of the last MINUTES_KEPT minutes."""

    def __init__(self, since: float, limit: int = CELLS_MAX) -> None:
        self.since = since
        """Unix seconds from when on every event that was heard is counted here."""
        self._limit = limit
        self._counts: OrderedDict[int, Counter[_Kind]] = OrderedDict()
        self._cells = 0

    def add(self, at: float, path: Path, verdict: str, generation: int) -> None:
        """Counts a judgement at a time (Unix seconds); what is too old to be kept is passed over."""
        minute = int(at // MINUTE_S)
        found = self._counts.get(minute)
        if found is None:
            if at < self.since - MINUTE_S:
                return
            found = self._open(minute)
        key = _Kind(path, verdict, generation)
        self._cells += key not in found
        found[key] += 1
        while self._cells > self._limit:
            self._forget()

    def _open(self, minute: int) -> Counter[_Kind]:
        found = self._counts[minute] = Counter()
        if minute < max(self._counts):
            self._counts = OrderedDict(sorted(self._counts.items()))
        while self._counts and next(iter(self._counts)) <= minute - MINUTES_KEPT:
            self._forget()
        return found

    def _forget(self) -> None:
        minute, found = self._counts.popitem(last=False)
        self._cells -= len(found)
        self.since = max(self.since, (minute + 1.0) * MINUTE_S)

    def __iter__(self) -> Iterator[Cell]:
        """Everything, the oldest minute first."""
        for minute, found in self._counts.items():
            for kind, count in found.items():
                yield Cell(minute, *kind, count)

    def to_json(self) -> dict[str, Any]:
        """For the control socket, and to be kept over a restart."""
        return {"since": self.since, "cells": [_row(one) for one in self]}

    def load(self, value: object) -> None:
        """Takes in what `to_json` gave before a restart. Raises UsageError for anything else."""
        since, cells = cells_from_json(value)
        for one in cells:
            if one.minute > (self.since // MINUTE_S) - MINUTES_KEPT:
                self._keep(one)
        self.since = min(self.since, max(since, self.since - MINUTES_KEPT * MINUTE_S))

    def _keep(self, one: Cell) -> None:
        found = self._counts.get(one.minute)
        if found is None:
            found = self._open(one.minute)
        if self._cells < self._limit:
            kind = _Kind(one.path, one.verdict, one.generation)
            self._cells += kind not in found
            found[kind] += one.total


def cells_from_json(value: object) -> tuple[float, list[Cell]]:
    """Since when, and the cells, of what `to_json` gave. Raises UsageError for anything else."""
    if not isinstance(value, dict) or type(value.get("since")) not in (int, float):
        raise UsageError("not counts by minute: they say no `since`")
    listed = value.get("cells")
    if not isinstance(listed, list):
        raise UsageError("not counts by minute: there are no `cells`")
    return float(value["since"]), [_cell(row) for row in listed]


_TYPES: Final = (int, str, str, str, str, str, int, str, int, int)


def _cell(row: object) -> Cell:
    if not isinstance(row, list) or [type(one) for one in row] != list(_TYPES):
        raise UsageError("not counts by minute: a cell has another shape")
    minute, *path, verdict, generation, total = row
    return Cell(minute, Path(*path), verdict, generation, total)


def _row(one: Cell) -> list[Any]:
    return [one.minute, *one.path, one.verdict, one.generation, one.total]
