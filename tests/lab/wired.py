"""A fleet whose hosts say on the wire who is talking, and what its kernels counted meanwhile."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from bulkhead.abi import WireCount, name_of
from bulkhead.daemon.counters import Counters
from bulkhead.kernel.maps import KernelMaps
from lab.fleet import Fleet
from lab.host import Host
from lab.policies import policy, repository

HOSTS = ("web", "app", "db")
WORKLOADS = {
    "web": "{match: {cgroup: /web, host: web}, mode: enforce}",
    "app": "{match: {cgroup: /app}, mode: enforce}",
    "db": '{match: {cgroup: /db, host: "d*"}, mode: enforce}',
    "ops": "{match: {cgroup: /ops}, mode: enforce}",
}
"""`web` is on web only, `db` on db only, the others anywhere."""
RULES = ("web -> app 8080", "app -> db 5432", "ops -> db 5432, 22", "ops -> app 22", "web -> db 9000")


def shop(*rules: str, more: str = "") -> str:
    """The fleet's policy: these rules, or the usual ones."""
    return policy(*(rules or RULES), workloads=WORKLOADS, externals={"mallory": "{cidr: [10.78.4.0/24]}"}, more=more)


def described(**changed: object) -> Fleet:
    """Three hosts with agents, one without, and their router."""
    files = {"bulkhead.yaml": repository(), "t.yaml": shop()}
    hosts: dict[str, object] = {name: {} for name in HOSTS} | {"mallory": {"agent": False}}
    given = {"hosts": hosts, "wire": True, "settings": {"metrics_port": 0}, "policy": files}
    return Fleet.described(given | changed)


@dataclass
class Counted:
    """What happened on one host: exactly this, and nothing else that its kernel counts."""

    refusals: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """(reason, direction, verdict)."""
    wire: Counter[str] = field(default_factory=Counter)
    """As enum wire_count."""


@contextmanager
def counting(host: Host) -> Iterator[Counted]:
    """What a host's kernel counts inside the block."""
    found = Counted()
    with KernelMaps(host.pins) as maps:
        before = _counts(maps)
        yield found
        after = _counts(maps)
    found.refusals.update(after[0] - before[0])
    found.wire.update(after[1] - before[1])


def _counts(maps: KernelMaps) -> tuple[Counter[tuple[str, str, str]], Counter[str]]:
    refusals = Counter({(r.reason, r.direction, r.verdict): r.total for r in Counters(maps).refusals()})
    counted = maps.fixed("wire_counts")
    wire: Counter[str] = Counter()
    for kind in WireCount:
        if kind is not WireCount.MAX:
            raw = counted.lookup(int(kind).to_bytes(4, "little"))
            wire[name_of(WireCount, kind)] = counted.sum_words(raw or bytes(8))[0]
    return refusals, wire


def until(holds: Callable[[], bool], what: str, timeout_s: float = 10.0) -> None:
    """Ask again and again: what is waited for is in another process, which tells nobody."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
