"""Who reaches whom, worked out from a commit alone, as if every mode were enforce."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from bulkhead.abi import Direction, Identity
from bulkhead.dataplane.addresses import Address
from bulkhead.dataplane.compile import Compiled, PolicyEntry, class_of, lookup
from bulkhead.dataplane.inventory import Listed
from bulkhead.dataplane.resolve import HOST, WORLD
from bulkhead.errors import UsageError
from bulkhead.identity.selectors import Ambiguous, Endpoint, Host, classify
from bulkhead.policy.model import PortSpec
from bulkhead.policy.ports import ICMP, ICMPV6, SCTP, TCP, TRANSPORTS, UDP, PortError, parse_port

Engine = Callable[[Compiled, int, int, int, int, int], PolicyEntry | None]
"""Answers for one end: compiled commit, local identity, direction, remote identity, protocol, port."""

Cell = dict[str, object]

_FAMILY_OF = {ICMP: 4, ICMPV6: 6}
_PROTOCOL_NAMES = {ICMP: "icmp", TCP: "tcp", UDP: "udp", ICMPV6: "icmp"}
_BY_NUMBER = "proto/"
"""How the spelling of a whole protocol begins."""


@dataclass(frozen=True, slots=True)
class _End:
    """A row or column."""

    name: str
    identity: int
    host: str | None
    """None: an address outside all hosts."""
    addresses: tuple[Address, ...]
    families: frozenset[int]


def matrix(
    compiled: Compiled,
    inventory: Sequence[Listed],
    ports: str | Iterable[PortSpec],
    addresses: Mapping[str, Address] | None = None,
    engine: Engine = lookup,
) -> dict[str, object]:
    """The verdict for every ordered pair of endpoints, to themselves included, and between endpoints and addresses.

    `compiled` must be for every host at once. `ports` is such as `80/tcp,53/udp,icmp/echo`, one port each. A cell names
    the rule that decides at the destination, for a conversation to an address that at the source; None when refused.
    Raises UsageError for ports that a single packet cannot have, and for tables of one host.
    """
    if compiled.host is not None:
        raise UsageError(f"a matrix needs the tables of all hosts, not those of `{compiled.host}` alone")
    wanted = parse_ports(ports) if isinstance(ports, str) else tuple(ports)
    endpoints = [_endpoint(compiled, listed) for listed in inventory]
    outside = [_address(compiled, name, address) for name, address in (addresses or {}).items()]
    cells = [
        _cell(compiled, engine, source, destination, port, family)
        for source, destination in _pairs(endpoints, outside)
        for port in wanted
        for family in sorted(source.families & destination.families)
        if in_family(port, family)
    ]
    return {"endpoints": [end.name for end in endpoints], "cells": cells}


def parse_ports(text: str) -> tuple[PortSpec, ...]:
    """Ports in a comma separated list. Raises UsageError for what is no port, or more than one."""
    return tuple(spec for item in text.split(",") for spec in _parse_port(item.strip()))


def _parse_port(text: str) -> tuple[PortSpec, ...]:
    try:
        specs = parse_port(text, with_sctp=True)
    except PortError as error:
        raise UsageError(f"`{text}` is not a port: {error}") from error
    if any(spec.first != spec.last and not _is_one_kind(spec) for spec in specs):
        raise UsageError(f"`{text}` is more than one port")
    return specs


def _is_one_kind(spec: PortSpec) -> bool:
    """One ICMP type, or a protocol that has no ports."""
    if spec.protocol in _FAMILY_OF:
        return spec.first >> 8 == spec.last >> 8
    return spec.text.startswith(_BY_NUMBER)


def _pairs(endpoints: Sequence[_End], outside: Sequence[_End]) -> Iterator[tuple[_End, _End]]:
    for source in endpoints:
        yield from ((source, destination) for destination in (*endpoints, *outside))
    for source in outside:
        yield from ((source, destination) for destination in endpoints)


def _endpoint(compiled: Compiled, listed: Listed) -> _End:
    identity = identity_of(compiled, listed.endpoint)
    return _End(listed.name, identity, listed.endpoint.host, listed.addresses, listed.families)


def _address(compiled: Compiled, name: str, address: Address) -> _End:
    identity = class_of(compiled, address)
    return _End(f"address:{name}", identity, None, (address,), frozenset({address.version}))


def identity_of(compiled: Compiled, endpoint: Endpoint) -> int:
    """The identity that an endpoint has in a commit."""
    outcome = classify((workload.as_workload() for workload in compiled.workloads), endpoint)
    if isinstance(outcome, Host):
        return HOST
    if isinstance(outcome, Ambiguous):
        return int(Identity.AMBIGUOUS)
    return next(w.identity for w in compiled.workloads if w.qualified == outcome.workload.qualified)


def _cell(compiled: Compiled, engine: Engine, source: _End, destination: _End, port: PortSpec, family: int) -> Cell:
    deciding = _judge(compiled, engine, source, destination, port, family)
    rule = None if deciding is None else compiled.rules[deciding.rule_id].name
    return {
        "from": source.name,
        "to": destination.name,
        "port": port_name(port),
        "protocol": protocol_name(port),
        "family": family,
        "verdict": "deny" if deciding is None else "allow",
        "rule": rule,
    }


def _judge(
    compiled: Compiled, engine: Engine, source: _End, destination: _End, port: PortSpec, family: int
) -> PolicyEntry | None:
    """The entry that decides when every managed end allows it; None when one refuses."""
    deciding: PolicyEntry | None = None
    for local, direction, remote in (
        (source, Direction.EGRESS, destination),
        (destination, Direction.INGRESS, source),
    ):
        if local.host is None:
            continue
        seen = _as_seen(compiled, local, remote, family)
        deciding = engine(compiled, local.identity, direction, seen, port.protocol, port.first)
        if deciding is None:
            return None
    return deciding


def _as_seen(compiled: Compiled, viewer: _End, other: _End, family: int) -> int:
    """`host` is this machine: what no workload selects on another one is but an address from here."""
    if other.identity != HOST or other.host == viewer.host:
        return other.identity
    known = next((address for address in other.addresses if address.version == family), None)
    return WORLD if known is None else class_of(compiled, known)


def in_family(port: PortSpec, family: int) -> bool:
    """Whether a protocol occurs in an address family: ICMP is another one in each."""
    return _FAMILY_OF.get(port.protocol, family) == family


def port_name(port: PortSpec) -> int | str:
    """The port of a cell: a number, or what is behind the slash."""
    has_ports = port.protocol in TRANSPORTS.values() and not port.text.startswith(_BY_NUMBER)
    return port.first if has_ports else port.text.partition("/")[2]


def protocol_name(port: PortSpec) -> str:
    """The protocol of a cell."""
    if port.protocol == SCTP and not port.text.startswith(_BY_NUMBER):
        return "sctp"
    return _PROTOCOL_NAMES.get(port.protocol, f"{_BY_NUMBER}{port.protocol}")
