"""What enforcing a workload would refuse: exact counts of its own end, and when it was heard of last."""

from __future__ import annotations

import time
from pathlib import Path

from bulkhead.abi import Direction, DropReason, Verdict
from bulkhead.daemon.counters import Edge
from bulkhead.daemon.readiness import readiness
from bulkhead.observe.flows import FlowLog
from unit.observe.build import OFFSET, context, event, identity

WEB, DB = identity("web"), identity("db")


def test_counts_are_those_of_the_end_that_judged(tmp_path: Path) -> None:
    pin = tmp_path / "edges"
    pin.touch()
    edges = [
        Edge(WEB, DB, Direction.EGRESS, "would-deny", "policy", 40),
        Edge(WEB, DB, Direction.EGRESS, "would-deny", "expired", 2),
        Edge(WEB, 3, Direction.INGRESS, "would-deny", "policy", 1),
        Edge(DB, WEB, Direction.INGRESS, "deny", "policy", 7),
    ]
    found = readiness(edges, FlowLog(), {}, pin)
    assert (found[WEB].would_deny, found[WEB].would_deny_edges, found[WEB].deny) == (43, 2, 0)
    assert (found[DB].would_deny, found[DB].deny) == (0, 7)
    assert found[WEB].counted_since == pin.stat().st_mtime
    assert found[WEB].complete


def test_the_log_says_since_when_nothing_would_have_been_refused(tmp_path: Path) -> None:
    log = FlowLog()
    log.since = OFFSET - 1000
    log.record(event(verdict=Verdict.WOULD_DENY), context())
    log.record(event(verdict=Verdict.ALLOW, reason=DropReason.NONE, destination_port=1), context())
    log.record(event(verdict=Verdict.ALLOW, reason=DropReason.NONE, destination_port=1), context())
    found = readiness([], log, {"event-ring": 1}, tmp_path / "none")
    web, db, now = found[WEB], found[DB], time.time()
    assert (web.allow_seen, web.last_would_deny) == (2, OFFSET + 900)
    assert abs(web.quiet_s - (now - OFFSET - 900)) < 5
    assert (db.last_would_deny, abs(db.quiet_s - (now - log.since)) < 5, db.complete) == (None, True, False)
    assert db.counted_since == 0.0
