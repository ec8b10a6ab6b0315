"""Recorded verdicts as edges between those whom a policy names, or could name.

An end is who it is under the policy that is asked about, which need not be the one that was in force: a workload, an
address outside, a program that no workload selects yet, or the host where nothing finer is known.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import product
from typing import Final, NamedTuple

from bulkhead.abi import Direction, DropReason, Identity, name_of
from bulkhead.dataplane.addresses import Address
from bulkhead.dataplane.compile import Compiled, class_of, compile_resolved, lookup
from bulkhead.dataplane.resolve import HOST, resolve
from bulkhead.identity.selectors import OTHER, Host, Identified, Narrower, unit_of
from bulkhead.observe.filters import REFUSALS
from bulkhead.observe.flows import FlowRecord
from bulkhead.observe.tables import parse_address
from bulkhead.policy.model import Entity, PolicySet
from bulkhead.policy.ports import ICMP, ICMP_TYPES, ICMPV6, TCP, UDP

HOST_NAME: Final = str(Entity.HOST)

_OF_POLICY: Final = frozenset(
    name_of(DropReason, one) for one in (DropReason.NONE, DropReason.POLICY, DropReason.EXPIRED)
)
"""Other refusals stay, whatever policy says."""
_CLASS_BIT: Final = 1 << 31
_NUMBERS: Final = {"tcp": TCP, "udp": UDP}
_SERVICE: Final = ".service"


class Place(NamedTuple):
    """Where a recorded process ran, and what."""

    cgroup: str
    exe: str


class Program(NamedTuple):
    """A program that no workload selects, as a selector would name it: by its unit, or by control group and file."""

    unit: str
    cgroup: str
    exe: str

    def __str__(self) -> str:
        return self.unit or f"{self.exe} in {self.cgroup}"

    def selects(self, where: Place) -> bool:
        """Whether a workload made for it would select what runs there."""
        if self.unit:
            return unit_of(where.cgroup) == self.unit
        return where.exe == self.exe and f"{where.cgroup}/".startswith(f"{self.cgroup}/")


End = str | Address | Program
"""A qualified name or `host`, an address outside, a program without a workload."""


class Edge(NamedTuple):
    """Who talked to whom."""

    source: End
    destination: End
    protocol: int
    port: int
    """Of the destination; for ICMP `type << 8 | code`."""

    def __str__(self) -> str:
        return f"{self.source} -> {self.destination} {port_text(self.protocol, self.port) or f'proto/{self.protocol}'}"

    @property
    def ends(self) -> tuple[End, End]:
        return self.source, self.destination


@dataclass(slots=True)
class Seen:
    """What is known of an edge. Times are Unix seconds."""

    counts: Counter[str] = field(default_factory=Counter)
    """Events by the end that judged, which are samples."""
    first: float = float("inf")
    last: float = 0.0
    processes: set[tuple[str, int]] = field(default_factory=set)
    """Executables and process ids; of a record the last one is known."""
    units: set[str] = field(default_factory=set)
    last_address_only: bool = False
    """More than one event came from outside, of which a record keeps the last address."""

    @property
    def count(self) -> int:
        """Both ends may have recorded the same conversation."""
        return max(self.counts.values(), default=0)

    def add(self, record: FlowRecord) -> None:
        self.counts[record.direction] += record.count
        self.first, self.last = min(self.first, record.first_seen), max(self.last, record.last_seen)
        if record.pid:
            self.processes.add((record.exe or record.comm, record.pid))
        if record.unit:
            self.units.add(record.unit)

    def join(self, other: Seen) -> None:
        """The same edge, found under another name."""
        self.counts += other.counts
        self.first, self.last = min(self.first, other.first), max(self.last, other.last)
        self.processes |= other.processes
        self.units |= other.units
        self.last_address_only |= other.last_address_only


@dataclass(frozen=True, slots=True)
class Traffic:
    """What passed and no rule of the policy allows, and what of the records is not in it."""

    edges: dict[Edge, Seen]
    left_out: tuple[str, ...]
    """What was recorded and is not among the edges, each with why."""
    records: int
    """Records looked at."""


def port_text(protocol: int, port: int) -> str:
    """A port as policy writes it, exactly as wide; empty when the language has no such word."""
    if protocol in (TCP, UDP):
        return (str(port) if protocol == TCP else f"{port}/udp") if port else ""
    if protocol in (ICMP, ICMPV6):
        which = 0 if protocol == ICMP else 1
        return next((f"icmp/{name}" for name, types in ICMP_TYPES.items() if types[which] == port >> 8), "")
    return f"proto/{protocol}"


def uncovered(records: Iterable[FlowRecord], policy_set: PolicySet, host: str, now: datetime) -> Traffic:
    """What was recorded on `host` and is not allowed by the policy."""
    listed = list(records)
    commit = _Commit(policy_set, host, now)
    found, left_out = _gather(listed, commit)
    covered = {edge for edge in found if commit.allows(edge)}
    staying = _staying({end for edge in covered for end in edge.ends if isinstance(end, Program)}, commit.places)
    edges: dict[Edge, Seen] = defaultdict(Seen)
    for edge, seen in found.items():
        if edge not in covered:
            source, destination = (_settled(end, staying) for end in edge.ends)
            edges[edge._replace(source=source, destination=destination)].join(seen)
    return Traffic(dict(edges), tuple(left_out), len(listed))


def _staying(first: set[Program], places: Mapping[Place, End]) -> set[Program]:
    """The programs that stay the host.

    One that a rule about the host lets through would lose that by a name of its own. And none may take along, by its
    control group, what was recorded as somebody else.
    """
    staying = set(first)
    programs = {end for end in places.values() if isinstance(end, Program)}
    while True:
        others = [place for place, end in places.items() if not isinstance(end, Program) or end in staying]
        more = {one for one in programs - staying if any(map(one.selects, others))}
        if not more:
            return staying
        staying |= more


def _settled(end: End, staying: set[Program]) -> End:
    return HOST_NAME if end in staying else end


def _gather(records: Iterable[FlowRecord], commit: _Commit) -> tuple[dict[Edge, Seen], list[str]]:
    found: dict[Edge, Seen] = defaultdict(Seen)
    refused: set[Edge] = set()
    left_out: Counter[str] = Counter()
    for record in records:
        problem, edge = _edge(record, commit)
        if edge is None:
            left_out[problem] += 1
        elif record.verdict == "deny":
            refused.add(edge)
        else:
            seen = found[edge]
            seen.add(record)
            seen.last_address_only |= not isinstance(edge.source, str | Program) and record.count > 1
    texts = [f"{why} ({count} records)" for why, count in sorted(left_out.items()) if why]
    for edge in sorted(refused & found.keys(), key=str):
        del found[edge]
        texts.append(f"{edge}: an end that is enforced refuses it")
    return found, texts


def _edge(record: FlowRecord, commit: _Commit) -> tuple[str, Edge | None]:
    """The edge of a record, or why it has none; an empty reason for what is of no interest."""
    if record.reason not in _OF_POLICY:
        return (f"refused for another reason than policy: {record.reason}" if record.verdict in REFUSALS else ""), None
    protocol = _protocol(record)
    if protocol is None or not port_text(protocol, record.port):
        return f"no rule can say exactly {record.protocol} {record.port}", None
    ends = []
    for side in ("source", "destination"):
        problem, end = commit.end(record, side)
        if end is None:
            return problem, None
        ends.append(end)
    # All codes of an ICMP type are one word of the language.
    port = record.port & 0xFF00 if protocol in (ICMP, ICMPV6) else record.port if protocol in (TCP, UDP) else 0
    return "", Edge(ends[0], ends[1], protocol, port)


def _protocol(record: FlowRecord) -> int | None:
    if record.protocol == "icmp":
        address = parse_address(record.destination_address)
        return None if address is None else ICMP if address.version == 4 else ICMPV6
    number = record.protocol.removeprefix("proto/")
    return _NUMBERS.get(record.protocol, int(number) if number.isdecimal() else None)


class _Commit:
    """A policy, ready to be asked who somebody is and what is allowed."""

    def __init__(self, policy_set: PolicySet, host: str, now: datetime) -> None:
        self._compiled: Compiled = compile_resolved(resolve(policy_set, host, now))
        self._identities = {str(one.qualified): one.identity for one in self._compiled.workloads}
        workloads = (one.as_workload() for one in self._compiled.workloads)
        numbers: dict[str, int] = {}
        # Names of users are not known here: each stands for a number that no account has.
        stand_in = lambda name: numbers.setdefault(name, -1 - len(numbers))  # noqa: E731
        self.places: dict[Place, End] = {}
        """Who was found where, so far."""
        self._narrower = Narrower(workloads, host, stand_in, stand_in)

    def allows(self, edge: Edge) -> bool:
        """What both ends on this machine say."""
        here, there = self._identity(edge.source), self._identity(edge.destination)
        return all(
            lookup(self._compiled, local, direction, remote, edge.protocol, edge.port) is not None
            for end, local, direction, remote in (
                (edge.source, here, Direction.EGRESS, there),
                (edge.destination, there, Direction.INGRESS, here),
            )
            if isinstance(end, str | Program)
        )

    def _identity(self, end: End) -> int:
        if isinstance(end, Program) or end == HOST_NAME:
            return HOST
        return self._identities[end] if isinstance(end, str) else class_of(self._compiled, end)

    def end(self, record: FlowRecord, side: str) -> tuple[str, End | None]:
        """Who an end of a record is, or why that cannot be said."""
        name, identity = getattr(record, side), getattr(record, f"{side}_identity")
        if identity & _CLASS_BIT or identity == Identity.WORLD:
            address = parse_address(getattr(record, f"{side}_address"))
            return "its address is none", address
        ours = record.process_end == side
        place = Place(record.cgroup, record.exe) if ours else Place(record.peer_cgroup, record.peer_exe)
        if name == HOST_NAME or name in self._identities:
            found = self._program(*place, record.uid if ours else None) if name == HOST_NAME else name
            if place.cgroup:
                self.places[place] = found
            return "", found
        if "/" in name:
            return f"the policy has no workload `{name}`", None
        return f"one end is {name}, which no rule can name", None

    def _program(self, cgroup: str, exe: str, uid: int | None) -> End:
        outcomes = list(self._outcomes(cgroup, exe, uid)) if cgroup else []
        names = {str(one.workload.qualified) if isinstance(one, Identified) else "" for one in outcomes}
        if len(names) == 1 and names != {""}:
            return names.pop()
        if not outcomes or not all(isinstance(one, Host) for one in outcomes):
            return HOST_NAME
        unit = unit_of(cgroup) or ""
        if unit.endswith(_SERVICE) and not unit.startswith("user@") and _is_literal(unit):
            return Program(unit, "", "")
        if cgroup != "/" and exe.startswith("/") and _is_literal(cgroup) and exe.isprintable():
            return Program("", cgroup, exe)
        return HOST_NAME

    def _outcomes(self, cgroup: str, exe: str, uid: int | None) -> Iterator[object]:
        view = self._narrower.view(cgroup)
        uids = [OTHER if uid is None else uid, *(one for one in view.uids if uid is None or one < 0)]
        for each_uid, each_gid in product(uids, (OTHER, *view.gids)):
            yield view.decide(exe or OTHER, each_uid, each_gid)


def _is_literal(text: str) -> bool:
    return text.isprintable() and not set(text) & {"*", "?"}
