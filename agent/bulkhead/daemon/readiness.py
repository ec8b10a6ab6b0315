"""What enforcing a workload would refuse: the verdicts of its end, as counted by the kernel and as last heard of."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bulkhead.daemon.counters import Edge
from bulkhead.observe.explain import EVENT_LOSSES
from bulkhead.observe.flows import FlowLog, FlowRecord


@dataclass(slots=True)
class Readiness:
    """Of one workload. Times are Unix seconds."""

    counted_since: float
    quiet_s: float
    """Seconds without a would-deny up to now, as far as the flow log reaches."""
    complete: bool
    """No event was lost: every would-deny was heard of."""
    deny: int = 0
    """Refusals at its end since `counted_since`, exactly."""
    would_deny: int = 0
    would_deny_edges: int = 0
    """Who is at the other end of those, each direction for itself."""
    allow_seen: int = 0
    """Events of allows at its end in the flow log, which are samples: at least so many."""
    last_would_deny: float | None = None
    """None: none in the flow log."""


def readiness(edges: Iterable[Edge], flows: FlowLog, lost: Mapping[str, int], pin: Path) -> dict[int, Readiness]:
    """By identity of the end that judged; whoever judged nothing is made when asked for.

    `pin` is that of the counters, which is as old as they are.
    """
    now, since = time.time(), _made(pin)
    complete = not any(lost.get(source) for source in EVENT_LOSSES)
    quiet_s = max(0.0, now - flows.since)
    found: dict[int, Readiness] = defaultdict(lambda: Readiness(since, quiet_s, complete))
    peers = set()
    for edge in edges:
        if edge.verdict == "deny":
            found[edge.local].deny += edge.total
        else:
            found[edge.local].would_deny += edge.total
            peers.add((edge.local, edge.remote, edge.direction))
    for local, _, _ in peers:
        found[local].would_deny_edges += 1
    for record in flows.records():
        _add(
            found[record.source_identity if record.direction == "egress" else record.destination_identity], record, now
        )
    return found


def _add(one: Readiness, record: FlowRecord, now: float) -> None:
    if record.verdict == "allow":
        one.allow_seen += record.count
    elif record.verdict == "would-deny":
        one.last_would_deny = max(one.last_would_deny or 0.0, record.last_seen)
        one.quiet_s = min(one.quiet_s, max(0.0, now - record.last_seen))


def _made(pin: Path) -> float:
    try:
        return pin.stat().st_mtime
    except OSError:
        return 0.0
