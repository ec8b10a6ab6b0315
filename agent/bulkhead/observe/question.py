"""Who may talk to whom? The question, and the names in it as identities of one commit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, Final

from bulkhead.abi import Identity
from bulkhead.dataplane.addresses import Address
from bulkhead.dataplane.compile import WorkloadInfo
from bulkhead.errors import UsageError
from bulkhead.identity.selectors import can_be_on
from bulkhead.observe.flows import FlowRecord, address_text
from bulkhead.observe.names import short
from bulkhead.observe.tables import Tables, parse_address
from bulkhead.policy.codes import presentable
from bulkhead.policy.model import PortSpec
from bulkhead.policy.ports import PortError, parse_port

_NO_PORT: Final = ("icmp", "proto")


@dataclass(frozen=True, slots=True)
class Question:
    """Does `source` reach `destination`?

    Both are names of workloads (`web`, `shop/web`, a SPIFFE ID), of externals, `host`, `world`, addresses, or other
    names that the asker knows. `protocol` is `tcp`, `udp`, `icmp/echo` and its like, or `proto/N`; only the first two
    have a `port`, which is 0 for the others.
    """

    source: str
    destination: str
    port: int
    protocol: str = "tcp"

    @property
    def port_text(self) -> str:
        """As policy writes it: `443`, `53/udp`, `icmp/echo`."""
        if self.protocol.startswith(_NO_PORT):
            return self.protocol
        return str(self.port) if self.protocol == "tcp" else f"{self.port}/{self.protocol}"

    def specs(self) -> tuple[PortSpec, ...]:
        """The port, for each IP protocol it can mean. Raises UsageError when it is none, or more than one."""
        try:
            specs = parse_port(self.port_text)
        except PortError as error:
            raise UsageError(f"`{presentable(self.port_text)}` is not a port: {error}") from error
        if self.port_text == "icmp":
            raise UsageError("`icmp` is more than one port: name a type, such as `icmp/echo`")
        return specs


def parse_question(source: str, target: str) -> Question:
    """The question in `SRC` and `DST:PORT`; IPv6 addresses are in brackets there. Raises UsageError for none."""
    destination, colon, port = target.rpartition(":")
    bracketed = destination.startswith("[") and destination.endswith("]")
    if not colon or not destination or not port or (":" in destination and not _is_plain(destination, bracketed)):
        raise UsageError(
            f"`{presentable(target)}` is not a destination with a port, such as `db:5432` or `[::1]:53/udp`"
        )
    destination = destination[1:-1] if bracketed else destination
    number, _, protocol = port.partition("/")
    if number in _NO_PORT:
        question = Question(source, destination, 0, port)
    elif number.isascii() and number.isdecimal() and len(number) <= 6:
        question = Question(source, destination, int(number), protocol or "tcp")
    else:
        raise UsageError(f"`{presentable(port)}` is not one port, such as `443`, `53/udp` or `icmp/echo`")
    question.specs()
    return question


def _is_plain(destination: str, bracketed: bool) -> bool:
    """Colons are part of some names: addresses in brackets, `host:unit`, SPIFFE IDs."""
    return bracketed or parse_address(destination) is None


def question_from_json(args: Mapping[str, Any]) -> Question:
    """The question in the arguments of a request. Raises UsageError for none."""
    texts = [args.get(key) for key in ("source", "destination", "protocol")]
    port = args.get("port")
    source, destination, protocol = texts
    if not (isinstance(source, str) and isinstance(destination, str) and isinstance(protocol, str)):
        raise UsageError("a question has the texts `source`, `destination` and `protocol`")
    if type(port) is not int:
        raise UsageError("a question has a number as `port`")
    question = Question(source, destination, port, protocol)
    question.specs()
    return question


def question_to_json(question: Question) -> dict[str, Any]:
    """A question as arguments of a request."""
    return {
        "source": question.source,
        "destination": question.destination,
        "port": question.port,
        "protocol": question.protocol,
    }


class Kind(StrEnum):
    """What one side of a question is."""

    WORKLOAD = "workload"
    HOST = "host"
    OUTSIDE = "outside"
    """Addresses outside this machine: an external, the world, one address."""
    NOBODY = "nobody"
    """Without a proven identity."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One side of a question, as identities."""

    name: str
    kind: Kind
    identities: tuple[int, ...]
    """More than one for an external whose addresses fall into several classes."""
    workload: WorkloadInfo | None = None
    address: Address | None = None

    @property
    def short(self) -> str:
        return short(self.name)


class Directory:
    """Finds subjects by name. `aliases` are further names, such as units or inventory entries, with identities."""

    def __init__(self, tables: Tables, aliases: Mapping[str, int] | None = None) -> None:
        self._tables = tables
        self._aliases = aliases or {}
        self._workloads = {str(workload.qualified): workload for workload in tables.workloads()}
        self._classes = tables.classes()

    def subject(self, text: str) -> Subject:
        """Who is meant. Raises UsageError for nobody, or for more than one."""
        found = self._built_in(text) or self._address(text) or self._named(text)
        if found is None:
            found = self._alias(text)
        if found is None:
            raise UsageError(f"unknown workload, external or address `{presentable(text)}`{self._hint(text)}")
        return found

    def _built_in(self, text: str) -> Subject | None:
        if text == "any":
            raise UsageError("`any` is many: name one workload")
        if text == "host":
            return Subject("host", Kind.HOST, (int(Identity.HOST),))
        if text == "world":
            return Subject("world", Kind.OUTSIDE, tuple(self._classes))
        if text == "legacy":
            return Subject(text, Kind.OUTSIDE, (int(Identity.LEGACY),))
        if text in ("unknown", "ambiguous"):
            return Subject(text, Kind.NOBODY, (int(Identity[text.upper()]),))
        return None

    def _address(self, text: str) -> Subject | None:
        address = parse_address(text)
        if address is None:
            return None
        if address.is_loopback or address.is_unspecified:
            raise UsageError(f"`{address}` is this machine: name the workload that listens there, or `host`")
        return Subject(str(address), Kind.OUTSIDE, (self._tables.class_of(address),), address=address)

    def _named(self, text: str) -> Subject | None:
        spiffe = text.startswith("spiffe://")
        workloads = [
            workload
            for name, workload in self._workloads.items()
            if (workload.spiffe_id == text if spiffe else _is_called(text, name))
        ]
        externals = {str(name) for members in self._classes.values() for name in members if _is_called(text, str(name))}
        names = sorted({*(str(workload.qualified) for workload in workloads), *externals})
        if len(names) > 1:
            raise UsageError(f"`{presentable(text)}` is more than one: {', '.join(f'`{name}`' for name in names)}")
        if workloads:
            return self.workload(workloads[0])
        return self._external(names[0]) if names else None

    def workload(self, workload: WorkloadInfo) -> Subject:
        """A workload as a subject."""
        return Subject(str(workload.qualified), Kind.WORKLOAD, (workload.identity,), workload)

    def _external(self, name: str) -> Subject:
        identities = (identity for identity, members in self._classes.items() if name in map(str, members))
        return Subject(name, Kind.OUTSIDE, tuple(identities))

    def _alias(self, text: str) -> Subject | None:
        identity = self._aliases.get(text)
        if identity is None:
            return None
        workload = self._tables.workload(identity)
        if workload is not None:
            return self.workload(workload)
        if identity == Identity.HOST:
            return Subject("host", Kind.HOST, (identity,))
        name = "ambiguous" if identity == Identity.AMBIGUOUS else "unknown"
        return Subject(name, Kind.NOBODY, (identity,))

    def _hint(self, text: str) -> str:
        names: list[str] = [*self._workloads, *self._aliases, "host", "world", "legacy"]
        names += sorted({str(name) for members in self._classes.values() for name in members})
        close = get_close_matches(text[:128], [*names, *map(short, names)], n=1)
        return f": did you mean `{close[0]}`?" if close else ""


def _is_called(text: str, name: str) -> bool:
    return text == name or ("/" not in text and text == short(name))


def recorded(source: Subject, destination: Subject, specs: Iterable[PortSpec]) -> Callable[[FlowRecord], bool]:
    """Whether a record is of the conversation that is asked about."""
    bounds = [(spec.first, spec.last) for spec in specs]
    protocols = {_protocol(spec) for spec in specs}

    def wanted(record: FlowRecord) -> bool:
        source_node, destination_node = ("", record.node) if record.direction == "egress" else (record.node, "")
        return (
            record.protocol in protocols
            and any(first <= record.port <= last for first, last in bounds)
            and _is_end(source, record.source_identity, record.source_address, source_node)
            and (
                _is_end(destination, record.destination_identity, record.destination_address, destination_node)
                or _may_be_meant(destination, record)
            )
        )

    return wanted


def _protocol(spec: PortSpec) -> str:
    return {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp"}.get(spec.protocol, f"proto/{spec.protocol}")


def _is_end(subject: Subject, identity: int, address: str, node: str) -> bool:
    if subject.address is not None:
        return address == _as_recorded(subject.address)
    # `host` is this machine, not the one that told of its refusal.
    return identity in subject.identities and not (subject.kind is Kind.HOST and node)


def _may_be_meant(destination: Subject, record: FlowRecord) -> bool:
    """What nobody has answered was meant for any workload that the node may host."""
    match = destination.workload.match if destination.workload is not None else None
    return record.is_unanswered and match is not None and not match.of_pods and can_be_on(match, record.node)


def _as_recorded(address: Address) -> str:
    packed = address.packed
    return address_text(bytes(10) + b"\xff\xff" + packed if address.version == 4 else packed)
