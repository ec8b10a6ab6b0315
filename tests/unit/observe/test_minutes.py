"""Counts by minute: what is kept, for how long, and what is said of the rest."""

from __future__ import annotations

import json

import pytest

from bulkhead.errors import UsageError
from bulkhead.observe.flows import FlowLog
from bulkhead.observe.minutes import MINUTES_KEPT, Cell, Minutes, Path, cells_from_json
from unit.observe.build import OFFSET, context, event

PATH = Path("egress", "shop/web", "shop/db", "", "tcp", 5432)
T0 = 60.0 * 1_000_000


def test_judgements_add_up_by_minute_path_verdict_and_generation() -> None:
    minutes = Minutes(T0)
    for at, verdict, generation in (
        (0, "allow", 7),
        (59, "allow", 7),
        (59, "deny", 7),
        (60, "allow", 7),
        (1, "allow", 8),
    ):
        minutes.add(T0 + at, PATH, verdict, generation)
    assert list(minutes) == [
        Cell(1_000_000, PATH, "allow", 7, 2),
        Cell(1_000_000, PATH, "deny", 7, 1),
        Cell(1_000_000, PATH, "allow", 8, 1),
        Cell(1_000_001, PATH, "allow", 7, 1),
    ]  # fmt: skip


def test_what_is_older_than_is_kept_is_gone_and_that_is_said() -> None:
    minutes = Minutes(T0)
    minutes.add(T0, PATH, "allow", 7)
    minutes.add(T0 + MINUTES_KEPT * 60, PATH, "allow", 7)
    assert [one.minute for one in minutes] == [1_000_000 + MINUTES_KEPT]
    assert minutes.since == T0 + 60


def test_cells_are_bounded_and_the_oldest_minute_goes_first() -> None:
    minutes = Minutes(T0, limit=3)
    for port in range(3):
        minutes.add(T0, PATH._replace(port=port), "allow", 7)
    minutes.add(T0 + 60, PATH, "allow", 7)
    assert [one.minute for one in minutes] == [1_000_001]
    assert minutes.since == T0 + 60


def test_one_minute_alone_cannot_exceed_the_bound() -> None:
    minutes = Minutes(T0, limit=3)
    for port in range(10):
        minutes.add(T0, PATH._replace(port=port), "allow", 7)
    assert len(list(minutes)) <= 3
    assert minutes.since > T0


def test_counts_survive_a_restart_of_the_log() -> None:
    log = FlowLog()
    log.minutes = Minutes(OFFSET)
    log.record(event(), context())
    (cell,) = log.minutes
    assert (cell.path, cell.verdict, cell.generation, cell.total) == (PATH, "deny", 7, 1)
    later = FlowLog()
    later.minutes = Minutes(OFFSET + 1000)
    later.load(log.dump())
    assert list(later.minutes) == [cell]
    assert later.minutes.since == OFFSET


@pytest.mark.parametrize(
    "value",
    [None, {}, {"since": 1.0}, {"since": True, "cells": []}, {"since": 1.0, "cells": [[1]]},
     {"since": 1.0, "cells": [[1, "egress", "a", "b", "", "tcp", "5432", "allow", 7, 1]]}],
)  # fmt: skip
def test_what_is_none_of_it_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match="not counts by minute"):
        cells_from_json(value)


def test_what_is_told_is_read_again() -> None:
    minutes = Minutes(T0)
    minutes.add(T0, PATH, "allow", 7)
    assert cells_from_json(json.loads(json.dumps(minutes.to_json()))) == (T0, list(minutes))
