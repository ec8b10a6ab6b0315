"""Recorded verdicts, gathered by conversation: who, to whom, by which rule, how often, since when.

Events are samples: the kernel counts exactly and tells of each verdict at most so often. A record's `count` is the
number of events seen, and every answer built on records goes with the number of events that were lost.

What tells records apart is chosen so that nobody far away can fill the log: the address of a remote end counts only
where this side has chosen it, in what leaves. A scan from outside is one record for each port.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import Any, Final, NamedTuple

from bulkhead.abi import Direction, DropReason, EventFlag, EventHook, Identity, Verdict, VerdictEvent, name_of
from bulkhead.errors import UsageError
from bulkhead.observe.minutes import Minutes, Path
from bulkhead.observe.names import Namer
from bulkhead.observe.neighbours import Neighbours
from bulkhead.observe.subscriptions import Subscriptions

RECORDS_MAX: Final = 20_000
EVENT: Final = Struct("<QQQQ10I16s16s4s6BH16sI8s16s8x")
"""`struct verdict_event`, with both ports as four bytes, since they alone are big endian."""

_DUMP_VERSION: Final = 1
_CLASS_BIT: Final = 1 << 31
_EPHEMERAL_MIN: Final = 32768
_TCP: Final = 6
_MAPPED: Final = bytes(10) + b"\xff\xff"
_PROTOCOLS: Final = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp"}


@dataclass(frozen=True, slots=True)
class Process:
    """What is known of a process beyond its number. Empty fields could not be told."""

    exe: str = ""
    unit: str = ""
    cgroup: str = ""


class Sighting(NamedTuple):
    """What an event says of the local process."""

    pid: int
    cgroup_id: int
    exe_inode: int
    exe_device: int
    exe_generation: int


@dataclass(frozen=True, slots=True)
class Context:
    """What a record is told beyond its event."""

    namer: Namer
    process: Callable[[Sighting], Process | None]
    """Asked once for a new record, and again for another pid while the answer was None."""
    clock_offset_s: float
    """Unix seconds at which CLOCK_BOOTTIME was 0."""
    peer: Callable[[int], Process | None] = lambda _: None
    """Who the other end is, by pid, when it is on this machine. Asked as `process` is. For reports only."""
    nodes: Neighbours = field(default_factory=Neighbours)
    """The nodes that another end may be on."""


@dataclass(frozen=True, slots=True)
class FlowRecord:
    """One conversation as it was judged by one end, at one moment. Times are Unix seconds."""

    verdict: str
    reason: str
    direction: str
    """Which end judged: `egress` the source, `ingress` the destination. What another node told is `egress` all the
    same: it was the source's host that heard of it, and counts it among what leaves."""
    source: str
    """Name of the identity that opened the conversation."""
    destination: str
    source_identity: int
    destination_identity: int
    source_spiffe_id: str
    destination_spiffe_id: str
    protocol: str
    port: int
    """Of the destination; for ICMP `type << 8 | code`."""
    count: int
    """Events seen, which are samples."""
    first_seen: float
    last_seen: float
    source_address: str
    """Addresses and source port as last seen."""
    source_port: int
    destination_address: str
    process_end: str
    """Which end `pid`, `comm`, `exe`, `uid`, `unit` and `cgroup` tell of: `source` or `destination`. The end that
    judged, but where the kernel judges both at once (loopback, a refused call) the one that sent."""
    pid: int
    """0: no process."""
    comm: str
    exe: str
    uid: int
    unit: str
    cgroup: str
    peer_pid: int
    """Of the other end when it is on this machine, else 0."""
    rule_id: int
    rule: str
    """Name of the rule that decided; empty: none matched."""
    rule_place: str
    """`file:line@commit` of it."""
    generation: int
    commit: str
    """Of the end that judged, as `generation`; of what another node told, its first 16 digits, which are a hint."""
    hook: str
    """`tc` for a packet, `call` when connect() or sendmsg() was refused, `peer` when another node said so."""
    cut: bool
    """An open conversation was cut off."""
    peer_exe: str = ""
    """Of `peer_pid`, as far as it could be told."""
    peer_cgroup: str = ""
    node: str = ""
    """Name of the registered node that the other end is on, or its number; empty: it is on none, or on this one."""
    told_by: str = ""
    """The node that refused it and said so, authenticated; empty: this host judged."""

    @property
    def local(self) -> str:
        """Name of the end on this host that judged, or that was refused elsewhere."""
        return self.source if self.direction == "egress" else self.destination

    @property
    def remote_identity(self) -> int:
        """Of the end that is not `local`."""
        return self.destination_identity if self.direction == "egress" else self.source_identity

    @property
    def is_unanswered(self) -> bool:
        """Whether it was kept from leaving for a node, so that nobody there has said who was meant."""
        by_address = self.remote_identity & _CLASS_BIT or self.remote_identity in (Identity.WORLD, Identity.PEER)
        refused = self.direction == "egress" and self.verdict == "deny" and not self.cut
        return bool(refused and self.node and not self.told_by and by_address)

    @property
    def remote_address(self) -> str:
        """Address of the end that is not `local`."""
        return self.destination_address if self.direction == "egress" else self.source_address


def record_to_json(record: FlowRecord) -> dict[str, Any]:
    """A record as the control socket and `-o json` show it."""
    return asdict(record)


def record_from_json(value: object) -> FlowRecord:
    """The record that `record_to_json` gave. Raises UsageError for anything else."""
    if not isinstance(value, dict) or not set(value) <= set(_FIELD_TYPES) or not set(value) >= _REQUIRED:
        raise UsageError("not a flow record: its fields are others")
    for name, kind in _FIELD_TYPES.items():
        if name in value and not isinstance(value[name], (int, float) if kind is float else kind):
            raise UsageError(f"not a flow record: `{name}` has another type")
    return FlowRecord(**value)


_FIELD_TYPES: Final = {
    one.name: {"str": str, "int": int, "float": float, "bool": bool}[str(one.type)] for one in fields(FlowRecord)
}
_REQUIRED: Final = {one.name for one in fields(FlowRecord) if one.default is MISSING}
"""Others are not in what earlier versions saved."""


class _Key(NamedTuple):
    """What makes a record one of its own."""

    verdict: int
    reason: int
    direction: int
    local: int
    remote: int
    protocol: int
    port: int
    remote_address: bytes
    """Empty where it does not tell records apart."""
    cgroup_id: int
    exe_inode: int
    exe_device: int
    node: int
    """0 where it does not tell records apart."""
    is_told: bool


class _Entry:
    """A record in the making. Texts wait until somebody asks: most events only add one to a count."""

    __slots__ = (
        "commit", "context", "count", "event", "first_ns", "last_ns", "names", "node", "path", "peer", "peer_pid",
        "pid", "process", "rule",
    )  # fmt: skip

    def __init__(self, key: _Key, event: tuple[Any, ...], context: Context) -> None:
        self.count = 0
        self.first_ns = self.last_ns = event[0]
        self.process: Process | None = None
        self.pid = -1
        self.peer: Process | None = None
        self.peer_pid = 0
        self.event = event
        self.node = 0
        self.context = context
        self.name(key, context.namer)

    def name(self, key: _Key, namer: Namer) -> None:
        """Looks the numbers up while their generation is still known; another node's is none of ours."""
        local, remote, rule_id, generation = self.event[6:10]
        generation = 0 if key.is_told else generation
        identities = (local, remote)
        found = namer.rule(rule_id, generation) if rule_id else None
        self.rule = (str(found.name), found.loc.short) if found else ("", "")
        told_commit = self.event[_COMMIT]
        self.commit = (told_commit.hex() if any(told_commit) else "") if key.is_told else namer.commit(generation)
        self.names = tuple(
            (identity, namer.identity(identity, generation), namer.spiffe_id(identity, generation))
            for identity in identities
        )
        ends = [name for _, name, _ in self.names]
        source, destination = ends if key.direction == Direction.EGRESS else reversed(ends)
        address = address_text(key.remote_address) if key.remote_address else ""
        way = name_of(Direction, key.direction)
        self.path = Path(way, source, destination, address, protocol_name(key.protocol), key.port)


class FlowLog:
    """The latest conversations, at most `limit`; the one that was quiet longest goes first."""

    def __init__(self, limit: int = RECORDS_MAX) -> None:
        self._limit = limit
        self.since = time.time()
        """Unix seconds from when on nothing was given up for lack of room."""
        self.absent_s = 0.0
        """Seconds since the log was begun in which no agent kept it."""
        self.minutes = Minutes(self.since)
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._loaded: OrderedDict[tuple[object, ...], FlowRecord] = OrderedDict()
        self.evicted = 0
        """Records given up for newer ones."""
        self.malformed = 0
        """Events of another size than this agent knows."""
        self.subscriptions: Subscriptions[FlowRecord] = Subscriptions()

    def __len__(self) -> int:
        return len(self._entries) + len(self._loaded)

    def record(self, raw: bytes, context: Context) -> FlowRecord | None:
        """Takes in one event as the kernel wrote it; returns the record when it is a new one.

        Cheap: no text is made for what is known, unless somebody follows.
        """
        if len(raw) != EVENT.size:
            self.malformed += 1
            return None
        event = EVENT.unpack(raw)
        node = _node(event, context.nodes)
        key = _key(event, node)
        entry = self._entries.get(key)
        is_new = entry is None
        if entry is None:
            entry = self._entries[key] = _Entry(key, event, context)
            self._evict()
        else:
            self._entries.move_to_end(key)
        _add(key, entry, event, context)
        entry.node = node
        at = event[_TIME] / 1e9 + context.clock_offset_s
        generation = context.namer.generation if key.is_told else event[_GENERATION]
        self.minutes.add(at, entry.path, _VERDICTS.get(key.verdict, ""), generation)
        if self.subscriptions:
            self.subscriptions.publish(_snapshot(key, entry))
        return _snapshot(key, entry) if is_new else None

    def known(self, raw: bytes, context: Context) -> FlowRecord | None:
        """The record that an event has been added to."""
        event = EVENT.unpack(raw)
        key = _key(event, _node(event, context.nodes))
        return _snapshot(key, self._entries[key]) if key in self._entries else None

    def records(
        self, wanted: Callable[[FlowRecord], bool] | None = None, remote: Callable[[int], bool] | None = None
    ) -> list[FlowRecord]:
        """Records, the latest first. `remote` is asked first, about the identity of the other end: that costs less."""
        kept = {key: one for key, one in self._loaded.items() if remote is None or remote(one.remote_identity)}
        chosen_entries = ((key, entry) for key, entry in self._entries.items() if remote is None or remote(key.remote))
        found = [_joined(_snapshot(key, entry), kept) for key, entry in chosen_entries]
        found += kept.values()
        chosen = found if wanted is None else [record for record in found if wanted(record)]
        return sorted(chosen, key=lambda record: record.last_seen, reverse=True)

    def dump(self) -> str:
        """Everything, to be kept over a restart."""
        records = [record_to_json(one) for one in self.records()]
        kept = {"since": self.since, "until": time.time(), "absent_s": self.absent_s}
        return json.dumps({"version": _DUMP_VERSION, **kept, "minutes": self.minutes.to_json(), "records": records})

    def load(self, text: str) -> int:
        """Takes in what `dump` gave; returns how many records. Raises UsageError for anything else, taking nothing."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError("the saved flow log is not JSON") from error
        if not isinstance(value, dict) or value.get("version") != _DUMP_VERSION:
            raise UsageError("the saved flow log is of another version")
        listed = value.get("records")
        if not isinstance(listed, list):
            raise UsageError("the saved flow log has no records")
        records = [record_from_json(one) for one in listed]
        if "minutes" in value:
            self.minutes.load(value["minutes"])
        self._resume(value)
        for record in records[: self._limit]:
            self._loaded[_loaded_key(record)] = record
        self._evict()
        return len(records)

    def _resume(self, dump: dict[str, Any]) -> None:
        """The log goes on where another agent left it; older ones do not say since when they kept it."""
        times = [dump.get(name) for name in ("since", "until", "absent_s")]
        if all(type(one) in (int, float) for one in times):
            since, until, absent_s = (float(one) for one in times if one is not None)
            self.absent_s += absent_s + max(0.0, self.since - until)
            self.since = min(self.since, since)

    def _evict(self) -> None:
        while len(self._entries) + len(self._loaded) > self._limit:
            # What an earlier agent saw is older than anything this one did; loaded records are the latest first.
            if self._loaded:
                _, record = self._loaded.popitem(last=True)
                self.since = max(self.since, record.last_seen)
            else:
                _, entry = self._entries.popitem(last=False)
                self.since = max(self.since, entry.last_ns / 1e9 + entry.context.clock_offset_s)
            self.evicted += 1


def _joined(record: FlowRecord, kept: dict[tuple[object, ...], FlowRecord]) -> FlowRecord:
    """A record with what was loaded of the same conversation, which is taken out of `kept`."""
    earlier = kept.pop(_loaded_key(record), None)
    if earlier is None:
        return record
    return replace(record, count=record.count + earlier.count, first_seen=earlier.first_seen)


def _loaded_key(record: FlowRecord) -> tuple[object, ...]:
    return (record.verdict, record.reason, record.direction, record.source, record.destination, record.protocol,
            record.port, record.remote_address, record.exe, record.cgroup, record.rule_id, record.commit,
            record.node, record.told_by)  # fmt: skip


# Indexes into an unpacked event, in the order of `struct verdict_event`.
_TIME, _COOKIE, _CGROUP, _INODE, _DEVICE, _EXE_GENERATION, _LOCAL, _REMOTE, _RULE, _GENERATION = range(10)
_TGID, _UID, _PEER, _SOURCE, _DESTINATION, _PORTS, _DIRECTION, _PROTOCOL, _VERDICT, _REASON, _HOOK, _FLAGS = range(
    11, 23
)
_COMM, _NODE, _COMMIT = 24, 25, 26


def _node(event: tuple[Any, ...], nodes: Neighbours) -> int:
    """The node at the other end, told by the kernel, or by the address of one that is known by nothing else."""
    number, remote = int(event[_NODE]), event[_REMOTE]
    if number or not nodes or not (remote & _CLASS_BIT or remote in _BY_ADDRESS):
        return number
    is_source = (event[_DIRECTION] == Direction.INGRESS) != _is_answer(event)
    found = nodes.at(_address(event[_SOURCE] if is_source else event[_DESTINATION]))
    return found.number if found is not None else 0


def _key(event: tuple[Any, ...], node: int) -> _Key:
    direction, remote = event[_DIRECTION], event[_REMOTE]
    answer = _is_answer(event)
    ports = event[_PORTS]
    told_apart = direction == Direction.EGRESS and (remote & _CLASS_BIT or remote in _OUTSIDE)
    return _Key(
        event[_VERDICT],
        event[_REASON],
        direction,
        event[_LOCAL],
        remote,
        event[_PROTOCOL],
        int.from_bytes(ports[:2] if answer else ports[2:], "big"),
        event[_DESTINATION] if told_apart else b"",
        event[_CGROUP],
        event[_INODE],
        event[_DEVICE],
        # A node that is only claimed by the source of a packet could be any of them, in turn.
        0 if direction == Direction.INGRESS and event[_REASON] in _UNPROVEN else node,
        event[_HOOK] == EventHook.PEER,
    )


_VERDICTS: Final = {int(verdict): name_of(Verdict, verdict) for verdict in Verdict}
_OUTSIDE: Final = (int(Identity.UNKNOWN), int(Identity.WORLD), int(Identity.PEER), int(Identity.LEGACY))
_BY_ADDRESS: Final = (int(Identity.WORLD), int(Identity.LEGACY))
_UNPROVEN: Final = frozenset(int(reason) for reason in DropReason if reason.name.startswith("WIRE_"))


def _is_answer(event: tuple[Any, ...]) -> bool:
    """Whether the packet went from the destination of its conversation to the source.

    A cut conversation is noticed by what leaves: at the end that was called, that is an answer. On loopback both ends
    judge the caller's packets, too, which the ports tell apart.
    """
    if not event[_FLAGS] & EventFlag.CUT or event[_DIRECTION] != Direction.INGRESS or event[_PROTOCOL] != _TCP:
        return False
    ports = event[_PORTS]
    source, destination = int.from_bytes(ports[:2], "big"), int.from_bytes(ports[2:], "big")
    return not source >= _EPHEMERAL_MIN > destination


def _process_end(event: tuple[Any, ...]) -> str:
    if event[_HOOK] == EventHook.CALL:
        return "source"
    if event[_FLAGS] & EventFlag.LOOPBACK:
        return "destination" if _is_answer(event) else "source"
    return "source" if event[_DIRECTION] == Direction.EGRESS else "destination"


def _add(key: _Key, entry: _Entry, event: tuple[Any, ...], context: Context) -> None:
    entry.count += 1
    entry.last_ns = max(entry.last_ns, event[_TIME])
    entry.context = context
    changed = any(event[at] != entry.event[at] for at in (_GENERATION, _RULE, _COMMIT))
    entry.event = event
    if changed:
        entry.name(key, context.namer)
    pid = event[_TGID]
    if entry.process is None and pid != entry.pid:
        sighting = Sighting(pid, event[_CGROUP], event[_INODE], event[_DEVICE], event[_EXE_GENERATION])
        entry.process = context.process(sighting) if pid else None
    entry.pid = pid
    peer_pid = event[_PEER]
    if entry.peer is None and peer_pid and peer_pid != entry.peer_pid:
        entry.peer = context.peer(peer_pid)
        entry.peer_pid = peer_pid


def _snapshot(key: _Key, entry: _Entry) -> FlowRecord:
    event = entry.event
    process, peer = entry.process or Process(), entry.peer or Process()
    offset = entry.context.clock_offset_s
    local, remote = entry.names
    source, destination = (local, remote) if key.direction == Direction.EGRESS else (remote, local)
    answer = _is_answer(event)
    ends = (event[_DESTINATION], event[_SOURCE]) if answer else (event[_SOURCE], event[_DESTINATION])
    ports = event[_PORTS]
    return FlowRecord(
        verdict=name_of(Verdict, key.verdict),
        reason=name_of(DropReason, key.reason),
        direction=name_of(Direction, key.direction),
        source=source[1],
        destination=destination[1],
        source_identity=source[0],
        destination_identity=destination[0],
        source_spiffe_id=source[2],
        destination_spiffe_id=destination[2],
        protocol=protocol_name(key.protocol),
        port=key.port,
        count=entry.count,
        first_seen=entry.first_ns / 1e9 + offset,
        last_seen=entry.last_ns / 1e9 + offset,
        source_address=address_text(ends[0]),
        source_port=int.from_bytes(ports[2:] if answer else ports[:2], "big"),
        destination_address=address_text(ends[1]),
        process_end=_process_end(event),
        pid=event[_TGID],
        comm=event[_COMM].split(b"\0", 1)[0].decode("utf-8", "replace"),
        exe=process.exe,
        uid=event[_UID],
        unit=process.unit,
        cgroup=process.cgroup,
        peer_pid=event[_PEER],
        rule_id=event[_RULE],
        rule=entry.rule[0],
        rule_place=entry.rule[1],
        generation=event[_GENERATION],
        commit=entry.commit,
        hook=name_of(EventHook, event[_HOOK]),
        cut=bool(event[_FLAGS] & EventFlag.CUT),
        peer_exe=peer.exe,
        peer_cgroup=peer.cgroup,
        node=(node := entry.context.nodes.name(entry.node)),
        told_by=node if key.is_told else "",
    )


def protocol_name(number: int) -> str:
    """`tcp`, `udp`, `icmp` for ICMP and ICMPv6, else `proto/N`."""
    return _PROTOCOLS.get(number, f"proto/{number}")


def address_text(packed: bytes) -> str:
    """An address of an event; IPv4 ones come as ::ffff:a.b.c.d."""
    return ".".join(map(str, packed[12:])) if packed.startswith(_MAPPED) else str(IPv6Address(packed))


def _address(packed: bytes) -> IPv4Address | IPv6Address:
    return IPv4Address(packed[12:]) if packed.startswith(_MAPPED) else IPv6Address(packed)


assert EVENT.size == len(bytes(VerdictEvent()))
