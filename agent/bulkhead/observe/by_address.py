"""What still rests on addresses: conversations whose other end is known by nothing else.

This is the list that a migration to identity on the wire burns down. Left out is what could never prove an identity:
ICMP, other transports, and whatever is sent to many. Addresses of the internet stay apart: policy means them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Address, ip_address
from typing import Any, Final

from bulkhead.abi import Identity
from bulkhead.observe.flows import FlowRecord
from bulkhead.observe.neighbours import Neighbours
from bulkhead.policy.nodes import Node, Unknown

WINDOW_S: Final = 3600.0
"""How far back the list looks unless told otherwise."""

_CLASS_BIT: Final = 1 << 31
_SAYS_WHO: Final = ("tcp", "udp")
_PASSED: Final = ("allow", "would-deny")
_BROADCAST: Final = IPv4Address("255.255.255.255")


class Kind(StrEnum):
    """Why an address is all that is known of the other end, and so what would change that."""

    LEGACY = "no agent"
    """A registered node without an agent: start one there."""
    SILENT = "says nothing"
    """A node that should say who is talking and does not. It passes because this end is in observe mode."""
    BY_ADDRESS = "by address"
    """A node whose record has `unknown: address`: take that out once its agent runs."""
    NO_WORKLOAD = "no workload"
    """A node that proves who it is, and a process there that no workload selects: give it one."""
    UNREGISTERED = "not registered"
    """An address that is nobody's on the internet and in no node's record: write a record for it."""
    INTERNET = "internet"
    """An address of the internet. It is meant to be one."""


@dataclass(frozen=True, slots=True)
class Path:
    """Who talks with an address, and by what."""

    kind: Kind
    peer: str
    """The other end's node, or its address where it is none."""
    name: str
    """What policy calls the address: externals, `world`, `legacy`."""
    local: str
    """Who talks with it on this host."""
    direction: str
    """`egress`: this host opened the conversation, `ingress`: the other end did."""
    protocol: str
    port: int
    address: str
    """As last seen. Of what comes in from one class of addresses only the last one is known."""
    count: int
    """Conversations seen, which are samples."""
    last_seen: float
    """Unix seconds."""


def rests_on_address(identity: int) -> bool:
    """Whether another end of this identity is known by its address, or not at all."""
    return bool(identity & _CLASS_BIT) or identity in (Identity.WORLD, Identity.LEGACY, Identity.UNKNOWN)


def paths(records: Iterable[FlowRecord], nodes: Neighbours, since: float = 0.0) -> list[Path]:
    """What passed and rests on an address, the busiest first."""
    found: dict[tuple[object, ...], Path] = {}
    for one in _paths(records, nodes, since):
        key = (one.kind, one.peer, one.name, one.local, one.direction, one.protocol, one.port)
        known = found.get(key)
        if known is not None:
            latest = max(known, one, key=lambda path: path.last_seen)
            one = replace(latest, count=known.count + one.count)
        found[key] = one
    return sorted(found.values(), key=lambda path: (-path.count, path.peer, path.local, path.port))


def _paths(records: Iterable[FlowRecord], nodes: Neighbours, since: float) -> Iterator[Path]:
    for record in records:
        if record.verdict not in _PASSED or record.protocol not in _SAYS_WHO or record.last_seen < since:
            continue
        kind = _kind(record, nodes) if rests_on_address(record.remote_identity) else None
        if kind is not None:
            names = (record.destination, record.source)
            name, local = names if record.direction == "egress" else names[::-1]
            yield Path(
                kind, record.node or record.remote_address, name, local, record.direction, record.protocol, record.port,
                record.remote_address, record.count, record.last_seen,
            )  # fmt: skip


def _kind(record: FlowRecord, nodes: Neighbours) -> Kind | None:
    address = ip_address(record.remote_address)
    if address.is_multicast or address == _BROADCAST:
        return None
    if record.remote_identity == Identity.UNKNOWN:
        return Kind.SILENT if record.node and record.reason.startswith("wire-") else None
    node = nodes.named(record.node) if record.node else nodes.at(address)
    if node is not None or record.remote_identity == Identity.LEGACY:
        return _of_node(node)
    return Kind.INTERNET if address.is_global else Kind.UNREGISTERED


def _of_node(node: Node | None) -> Kind:
    if node is None or node.key is None:
        return Kind.LEGACY
    return Kind.BY_ADDRESS if node.unknown is Unknown.ADDRESS else Kind.NO_WORKLOAD


def summary(found: Iterable[Path]) -> dict[str, int]:
    """How many paths there are of each kind."""
    counts = dict.fromkeys(map(str, Kind), 0)
    for one in found:
        counts[one.kind] += 1
    return counts


def path_to_json(path: Path) -> dict[str, Any]:
    """A path as the control socket and `-o json` show it."""
    return asdict(path) | {"kind": str(path.kind)}
