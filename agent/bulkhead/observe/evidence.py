"""What an agent recorded, and what is open on its host, as evidence on a change that is not enforced yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from bulkhead.abi import Direction, DropReason, name_of
from bulkhead.dataplane.addresses import Address
from bulkhead.dataplane.recorded import Facts, Flow, Party, Talk
from bulkhead.errors import UsageError
from bulkhead.observe.explain import completeness
from bulkhead.observe.flows import FlowRecord, record_from_json
from bulkhead.observe.tables import parse_address
from bulkhead.policy.ports import ICMP, ICMPV6, TCP, UDP

_NOBODY: Final = frozenset({"unknown", "ambiguous", "withheld", "world"})
_OF_POLICY: Final = frozenset(
    name_of(DropReason, one) for one in (DropReason.NONE, DropReason.POLICY, DropReason.EXPIRED, DropReason.AMBIGUOUS)
)
"""Other refusals stay, whatever policy says."""
_CLASS_BIT: Final = 1 << 31
_WORLD: Final = 3
_PROTOCOLS: Final = {"tcp": TCP, "udp": UDP}
_AGES: Final = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of what happened the evidence tells."""

    host: str
    asked_s: float
    """The period that was asked about; 0: none was, only what is open now."""
    covered_s: float
    """The part of it that the log covers."""
    gaps: tuple[str, ...]
    """What is missing, each in a few words; none: nothing is."""
    notes: tuple[str, ...] = ()
    """What to know of the rest."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Flows to judge, and how complete they are."""

    flows: tuple[Flow, ...]
    coverage: Coverage


def age_text(seconds: float) -> str:
    """How long something took, or is ago, in its largest unit."""
    unit, name = next(((unit, name) for unit, name in _AGES if seconds >= unit), _AGES[-1])
    return f"{seconds / unit:.0f} {name}"


def recorded(answer: object, period_s: float, before: str) -> Evidence:
    """The flow log that an agent gave (`bulkhead flows -o json`) for the last `period_s` seconds up to then.

    `before` is the commit before the change: verdicts recorded under it can be compared. Raises UsageError for anything
    else than such an answer.
    """
    data = _mapping(answer)
    log = _mapping(_field(data, "log", dict))
    at, host = _number(log, "at"), _field(log, "host", str)
    since = at - period_s
    records = [record_from_json(one) for one in _list(data, "records")]
    flows = tuple(flow for one in records if one.last_seen >= since for flow in _flows(one, host, before))
    began = _number(log, "since")
    gaps = tuple(_gaps(data, log, period_s, at - began))
    last_only = sum(
        flow.count > 1 and flow.source.address is not None and flow.direction is Direction.INGRESS for flow in flows
    )
    notes = (f"of {last_only} edges from outside the last address only is recorded",) if last_only else ()
    return Evidence(flows, Coverage(host, period_s, min(period_s, max(0.0, at - began)), gaps, notes))


def _gaps(data: Mapping[str, Any], log: Mapping[str, Any], period_s: float, kept_s: float) -> Iterator[str]:
    if kept_s < period_s:
        yield f"the log reaches back {age_text(kept_s)}, not {age_text(period_s)}"
    absent_s = _number(log, "absent_s")
    if absent_s >= 1:
        yield f"no agent kept it for {age_text(absent_s)} of its time"
    complete, text = completeness(_field(data, "lost", dict))
    if not complete:
        yield text.removeprefix("incomplete: ").partition(";")[0]
    chosen = _field(log, "filter", str)
    if chosen != "none":
        yield f"only what matches {chosen} was exported"


def _flows(record: FlowRecord, host: str, before: str) -> Iterator[Flow]:
    """A record as a flow; none when policy had no part in its verdict, or it cannot be judged by it."""
    if record.reason not in _OF_POLICY:
        return
    source, destination = (_party(record, end, host) for end in ("source", "destination"))
    protocol = _protocol(record)
    if protocol is None or (source.address is not None and destination.address is not None):
        return
    yield Flow(
        source,
        destination,
        protocol,
        record.port,
        Direction.EGRESS if record.direction == name_of(Direction, Direction.EGRESS) else Direction.INGRESS,
        record.count,
        record.last_seen,
        record.verdict == "allow" if before and record.commit == before else None,
    )


def _party(record: FlowRecord, end: str, host: str) -> Party:
    name, identity = getattr(record, end), getattr(record, f"{end}_identity")
    if identity & _CLASS_BIT or identity == _WORLD:
        return Party(name, address=_address(getattr(record, f"{end}_address")))
    facts = None
    if record.process_end == end and record.cgroup:
        facts = Facts(host, record.cgroup, record.exe or None, record.uid)
    elif record.process_end != end and record.peer_cgroup:
        facts = Facts(host, record.peer_cgroup, record.peer_exe or None, None)
    return Party("" if name in _NOBODY else name, facts)


def _protocol(record: FlowRecord) -> int | None:
    if record.protocol == "icmp":
        address = parse_address(record.destination_address)
        return None if address is None else ICMP if address.version == 4 else ICMPV6
    number = record.protocol.removeprefix("proto/")
    return _PROTOCOLS.get(record.protocol, int(number) if number.isdecimal() else None)


def open_now(answer: object) -> Evidence:
    """The conversations that an agent says are open. Raises UsageError for anything else than its answer."""
    data = _mapping(answer)
    host = _field(data, "host", str)
    flows = tuple(_open_flow(_mapping(one), host) for one in _list(data, "conversations"))
    gaps = []
    if not _field(data, "complete", bool):
        gaps.append("the kernel's list of sockets changed while it was read")
    for name, what in (("omitted", "more conversations are open"), ("unattested", "sockets have no known origin")):
        if count := _field(data, name, int):
            gaps.append(f"{count} {what}")
    return Evidence(flows, Coverage(host, 0.0, 0.0, tuple(gaps)))


def _open_flow(row: Mapping[str, Any], host: str) -> Flow:
    source, destination = (_mapping(_field(row, end, dict)) for end in ("source", "destination"))
    here, there = (source, destination) if source.get("process") is not None else (destination, source)
    process = _mapping(_field(here, "process", dict))
    talk = Talk(f"{_field(process, 'comm', str)}[{_field(process, 'pid', int)}]", _endpoint(there))
    direction = Direction.EGRESS if here is source else Direction.INGRESS
    parties = (_open_party(source, host), _open_party(destination, host))
    return Flow(*parties, TCP, _field(destination, "port", int), direction, talk=talk)


def _open_party(end: Mapping[str, Any], host: str) -> Party:
    if end.get("process") is None:
        return Party("", address=_address(_field(end, "address", str)))
    process = _mapping(end["process"])
    name, cgroup, exe = (_field(process, key, str) for key in ("name", "cgroup", "exe"))
    facts = Facts(host, cgroup, exe or None, _field(process, "uid", int), _field(process, "gid", int))
    return Party("" if name in _NOBODY else name, facts if cgroup else None)


def _endpoint(end: Mapping[str, Any]) -> str:
    address, port = _field(end, "address", str), _field(end, "port", int)
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _address(text: str) -> Address:
    address = parse_address(text)
    if address is None:
        raise UsageError("not a flow log: an address of it is none")
    return address


def _mapping(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UsageError("not a flow log: it has another shape")
    return value


def _list(data: Mapping[str, Any], name: str) -> list[Any]:
    return _field(data, name, list)


def _field(data: Mapping[str, Any], name: str, kind: type[T]) -> T:
    value = data.get(name)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UsageError(f"not a flow log: it has no `{name}`, or one of another type")
    return value


def _number(data: Mapping[str, Any], name: str) -> float:
    value = data.get(name)
    return float(value) if type(value) is int else _field(data, name, float)
