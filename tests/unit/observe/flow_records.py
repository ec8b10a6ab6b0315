"""Flow records written in a few words, and the answer of an agent that holds them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bulkhead.abi import Identity
from bulkhead.observe.flows import FlowRecord, record_from_json, record_to_json
from unit.cli import fake_agent

HOST = "web-1"
NOW = 1_782_900_000.0
NOBODY_LOST = {"event-ring": 0, "event-rate": 0}
_NUMBERS = {"host": int(Identity.HOST), "world": int(Identity.WORLD), "unknown": 0, "ambiguous": 2}


def service(name: str) -> tuple[str, str]:
    """Control group and executable of a service."""
    return f"/system.slice/{name}.service", f"/usr/sbin/{name}"


def flow(source: str, destination: str, port: int, **more: Any) -> FlowRecord:
    """What one end saw of another, would-deny unless told otherwise.

    An end is a workload (`shop/web`), an address, `host`, `unknown`, or a program without a workload: `@nginx` is the
    service nginx, `@/cgroup|/exe` any other.
    """
    names, facts, addresses = [], [], []
    for end in (source, destination):
        outside = not end.startswith("@") and "/" not in end and end not in _NUMBERS
        names.append("world" if outside else "host" if end.startswith("@") else end)
        addresses.append(end if outside else "127.0.0.1")
        facts.append(_facts(end))
    incoming = names[0] == "world"
    here, there = (facts[1], facts[0]) if incoming else facts
    values = {
        "verdict": "would-deny",
        "direction": "ingress" if incoming else "egress",
        "process_end": "destination" if incoming else "source",
        "source": names[0], "destination": names[1],
        "source_identity": _NUMBERS.get(names[0], 1000), "destination_identity": _NUMBERS.get(names[1], 1001),
        "source_address": addresses[0], "destination_address": addresses[1],
        "port": port, "count": 20, "first_seen": NOW - 40 * 3600, "last_seen": NOW - 60,
        "cgroup": here[0], "exe": here[1], "unit": here[0].rpartition("/")[2],
        "peer_cgroup": there[0], "peer_exe": there[1], "peer_pid": 77 if there[0] else 0,
    }  # fmt: skip
    return record_from_json(fake_agent.record(NOW) | values | more)


def _facts(end: str) -> tuple[str, str]:
    if not end.startswith("@"):
        return "", ""
    cgroup, bar, exe = end[1:].partition("|")
    return (cgroup, exe) if bar else service(end[1:])


def answer(records: Iterable[FlowRecord], **changed: Any) -> dict[str, Any]:
    """As `bulkhead flows -o json` gives it, from a log of two days."""
    log = {"host": HOST, "at": NOW, "since": NOW - 2 * 86400, "absent_s": 0.0, "filter": "none"}
    found = {"records": [record_to_json(one) for one in records], "lost": NOBODY_LOST, "totals": {"allow": 1000}}
    return found | {"log": log | changed}
