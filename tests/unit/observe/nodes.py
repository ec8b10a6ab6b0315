"""Three other nodes: one that speaks, one that may be silent, one without an agent; and events that name them."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from bulkhead.abi import EventHook
from bulkhead.observe.flows import Context, FlowLog, FlowRecord
from bulkhead.observe.neighbours import Neighbours
from bulkhead.policy.nodes import Node, Roster, Unknown
from unit.observe.build import COMMIT, OFFSET, event, identity, namer, nginx

DB, SILENT, PRINTER, OWN = 70, 71, 72, 73
REMOTE_COMMIT = bytes.fromhex(COMMIT[:16])


def _node(name: str, number: int, *addresses: str, **more: Any) -> Node:
    return Node(name, number, tuple(map(ip_network, addresses)), **({"key": bytes([number]) * 32} | more))


NODES = Roster(
    (
        _node("other-1", DB, "10.0.0.2/32", "2001:db8::2/128"),
        _node("silent", SILENT, "10.4.0.0/24", unknown=Unknown.ADDRESS),
        _node("printer", PRINTER, "10.4.0.9/32", key=None),
        _node("web-1", OWN, "10.0.0.1/32"),
    )
)


def neighbours(speaks: bool = True) -> Neighbours:
    return Neighbours(NODES, "web-1", speaks)


def context() -> Context:
    return Context(namer(), nginx, OFFSET, nodes=neighbours())


def told(**changed: Any) -> bytes:
    """`db` on other-1, generation 41 there, refused `web`."""
    values = {"hook": EventHook.PEER, "node": DB, "generation": 41, "commit": tuple(REMOTE_COMMIT)} | changed
    return event(remote_identity=values.pop("remote_identity", identity("db")), **values)


def records(*raw: bytes) -> list[FlowRecord]:
    log, around = FlowLog(), context()
    for one in raw:
        log.record(one, around)
    return log.records()
