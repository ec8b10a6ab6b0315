"""Tests and invariants held against compiled entries: what the kernel will do, not what the rules say.

`check_tests` and `check_nevers` judge the rules, and know which of them to blame. Here the same is asked of the tables
that were made of them, exactly, on ports as intervals; and, question by question, of another engine, such as the
kernel's own programs. All of them must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import NamedTuple

from bulkhead.abi import Direction
from bulkhead.dataplane.addresses import Address
from bulkhead.dataplane.compile import Compiled, WorkloadInfo, class_of, identity_name, lookup
from bulkhead.dataplane.inventory import Listed
from bulkhead.dataplane.matrix import Engine, identity_of
from bulkhead.dataplane.ports import PORT_BITS
from bulkhead.dataplane.resolve import HOST, Resolved, Side
from bulkhead.errors import Diagnostic, Loc
from bulkhead.identity.selectors import Endpoint
from bulkhead.policy.codes import message
from bulkhead.policy.model import PortSpec
from bulkhead.policy.ports import PORT_MAX, PROTOCOLS, parse_port

QUESTIONS_MAX = 200_000
"""Questions put to another engine. Where there are more, pairs are asked evenly spread over all."""

_ENDPOINTS_MAX = 64
_ADDRESSES_MAX = 256
"""For as many members a whole packet is made up; the others are asked about by their identities."""

Spans = tuple[tuple[int, int], ...]
"""Ports, as ranges in order and apart from one another."""


class Trial(NamedTuple):
    """An expectation, or an invariant: every member reaches every other on every port, or none on any."""

    loc: Loc
    wanted: bool
    """True: all reach. False: none does."""
    source: Side
    destination: Side
    ports: tuple[PortSpec, ...]
    is_test: bool
    """A test of a peer without members fails; an invariant holds."""


class Question(NamedTuple):
    """Whether one end lets one packet through."""

    local: int
    direction: int
    remote: int
    protocol: int
    port: int


class Asked(NamedTuple):
    """What came of asking another engine."""

    questions: int
    left_out: bool
    """Whether there were more pairs than could be asked."""
    disputes: dict[Loc, tuple[Diagnostic, ...]]


def trials(resolved: Resolved, tables: Tables) -> list[Trial]:
    """Everything that a commit says must hold, in the order it is written."""
    side = resolved.directory.side
    found = [
        Trial(never.loc, False, side(never.source), side(never.destination), never.ports or tables.every_port, False)
        for never in resolved.policy_set.nevers
    ]
    for test in resolved.policy_set.tests:
        source = side(test.source)
        expected = [*((True, each) for each in test.accept), *((False, each) for each in test.deny if not each.method)]
        found.extend(Trial(e.loc, wanted, source, side(e.destination), (e.port,), True) for wanted, e in expected)
    return found


class Tables:
    """Compiled entries by who talks to whom."""

    def __init__(self, compiled: Compiled) -> None:
        self.compiled = compiled
        opened: dict[tuple[int, int], dict[int, dict[int, list[tuple[int, int]]]]] = {}
        for key in compiled.entries:
            remotes = opened.setdefault((key.local_identity, key.direction), {})
            spans = remotes.setdefault(key.remote_identity, {}).setdefault(key.protocol, [])
            spans.append((key.port, key.port | (1 << PORT_BITS - key.port_bits) - 1))
        self._opened: dict[tuple[int, int], dict[int, dict[int, Spans]]] = {
            end: {
                remote: {protocol: _merged(spans) for protocol, spans in protocols.items()}
                for remote, protocols in remotes.items()
            }
            for end, remotes in opened.items()
        }
        self._managed = {HOST, *(workload.identity for workload in compiled.workloads)}
        known = parse_port("any")
        others = {key.protocol for key in compiled.entries} - {spec.protocol for spec in known}
        self.every_port = (*known, *(spec for number in sorted(others) for spec in parse_port(f"proto/{number}")))
        """What an invariant without ports is about."""

    def ends(self, source: int, destination: int) -> tuple[tuple[int, int, int], ...]:
        """Who judges a conversation: local identity, direction and remote identity of each managed end."""
        outgoing = ((source, int(Direction.EGRESS), destination),) if source in self._managed else ()
        incoming = ((destination, int(Direction.INGRESS), source),) if destination in self._managed else ()
        return outgoing + incoming

    def opened(self, local: int, direction: int, remote: int, protocol: int) -> Spans:
        """The ports that one end lets through."""
        return self._opened.get((local, direction), {}).get(remote, {}).get(protocol, ())

    def reached(self, source: int, destination: int, protocol: int) -> Spans:
        """The ports that every managed end lets through."""
        ends = [self.opened(*end, protocol) for end in self.ends(source, destination)]
        return ends[0] if all(end == ends[0] for end in ends[1:]) else _common(*ends)

    def holds(self, trial: Trial) -> bool:
        """Whether a trial holds."""
        if not trial.source.members or not trial.destination.members:
            return not trial.is_test
        pairs = self._pairs(trial)
        if trial.wanted:
            return all(
                any(first <= spec.first and spec.last <= last for first, last in self.reached(*pair, spec.protocol))
                for pair in pairs
                for spec in trial.ports
            )
        return not any(
            first <= spec.last and spec.first <= last
            for pair in pairs
            for spec in trial.ports
            for first, last in self.reached(*pair, spec.protocol)
        )

    def _pairs(self, trial: Trial) -> Iterator[tuple[int, int]]:
        """Pairs that matter: where nothing may be reached, those that have any entry."""
        for source in trial.source.members:
            destinations: Iterable[int] = trial.destination.members
            if not trial.wanted and source in self._managed:
                # Not `&`: that walks the members, of which there are more than entries.
                opened = self._opened.get((source, int(Direction.EGRESS)), {})
                destinations = [remote for remote in opened if remote in trial.destination.members]
            for destination in destinations:
                yield source, destination


def _merged(spans: Iterable[tuple[int, int]]) -> Spans:
    found: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return tuple(found)


def _common(one: Spans, other: Spans) -> Spans:
    found = ((max(a[0], b[0]), min(a[1], b[1])) for a in one for b in other)
    return _merged(span for span in found if span[0] <= span[1])


# Rules and tables


def broken_promises(listed: Sequence[Trial], tables: Tables) -> frozenset[Loc]:
    """Where something is written that does not hold by the tables."""
    return frozenset(trial.loc for trial in listed if not tables.holds(trial))


def dispute(loc: Loc, one: str, one_says: str, other: str, other_says: str, subject: str) -> Diagnostic:
    """A finding (BH0911) that two ways of judging do not come to the same."""
    text = message("BH0911", subject=subject, one=one, one_says=one_says, other=other, other_says=other_says)
    return Diagnostic("BH0911", text, loc, hint="this is a fault of Bulkhead, not of the policy; please report it")


# Another engine


def ask(listed: Sequence[Trial], tables: Tables, engine: Engine, limit: int = QUESTIONS_MAX) -> Asked:
    """Put to another engine, for every pair of members, each port at which an answer could change."""
    pairs = sum(len(trial.source.members) * len(trial.destination.members) * len(trial.ports) for trial in listed)
    # Two ends, and at least four ports for each.
    stride = max(1, -(-pairs * 8 // limit))
    answered: dict[Question, bool] = {}
    disputes: dict[Loc, list[Diagnostic]] = {}
    numbers = count()
    for trial in listed:
        for question in _questions(trial, tables, numbers, stride):
            agreed = answered.get(question)
            if agreed is None:
                agreed = answered[question] = _agree(tables.compiled, question, engine)
            if not agreed:
                disputes.setdefault(trial.loc, []).append(_dispute_over(tables.compiled, trial.loc, question, engine))
    shown = {loc: tuple(dict.fromkeys(found)) for loc, found in disputes.items()}
    return Asked(len(answered), stride > 1, shown)


def _questions(trial: Trial, tables: Tables, numbers: Iterator[int], stride: int) -> Iterator[Question]:
    for source in sorted(trial.source.members):
        for destination in sorted(trial.destination.members):
            for spec in trial.ports:
                if next(numbers) % stride == 0:
                    for end in tables.ends(source, destination):
                        for port in _edges(spec, tables.opened(*end, spec.protocol)):
                            yield Question(*end, spec.protocol, port)


def _edges(spec: PortSpec, opened: Spans) -> list[int]:
    """Both ends of a range and the ports just beyond them, and wherever within it something begins or ends."""
    lowest = 1 if spec.protocol in PROTOCOLS.values() else 0
    inside = (edge for first, last in opened for edge in (first - 1, first, last, last + 1))
    edges = {edge for edge in inside if spec.first <= edge <= spec.last}
    edges |= {spec.first - 1, max(spec.first, lowest), spec.last, spec.last + 1}
    return sorted(edge for edge in edges if lowest <= edge <= PORT_MAX)


def _agree(compiled: Compiled, question: Question, engine: Engine) -> bool:
    return _deciding(compiled, question, lookup) == _deciding(compiled, question, engine)


def _deciding(compiled: Compiled, question: Question, engine: Engine) -> str:
    entry = engine(compiled, *question)
    return "refused" if entry is None else f"allowed by `{compiled.rules[entry.rule_id].name}`"


def _dispute_over(compiled: Compiled, loc: Loc, question: Question, engine: Engine) -> Diagnostic:
    local, remote = (identity_name(compiled, end) or str(end) for end in (question.local, question.remote))
    way = "to" if question.direction == Direction.EGRESS else "from"
    subject = f"{local} {way} {remote}, protocol {question.protocol}, port {question.port}"
    says = [_deciding(compiled, question, each) for each in (lookup, engine)]
    return dispute(loc, "the model", says[0], "the kernel", says[1], subject)


# Who to ask about


def stand_ins(compiled: Compiled, wanted: Iterable[int]) -> tuple[tuple[Listed, ...], dict[str, Address]]:
    """An endpoint for each workload among `wanted`, and an address for each address class and family.

    Only those that come out as what they stand for: what has none is asked about by its identity alone.
    """
    identities = frozenset(wanted)
    workloads = [workload for workload in compiled.workloads if workload.identity in identities]
    endpoints = [(workload, _endpoint(workload)) for workload in workloads[:_ENDPOINTS_MAX]]
    listed = tuple(
        Listed(workload.qualified, endpoint)
        for workload, endpoint in endpoints
        if identity_of(compiled, endpoint) == workload.identity
    )
    return listed, {str(address): address for address in _addresses(compiled, identities)}


def _endpoint(workload: WorkloadInfo) -> Endpoint:
    match = workload.match
    host, unit, cgroup, exe, user, group = (
        _plain(patterns) for patterns in (match.host, match.unit, match.cgroup, match.exe, match.user, match.group)
    )
    uid, gid = (int(name) if name.isdecimal() else None for name in (user, group))
    path = cgroup or (f"/system.slice/{unit}" if unit else "/stand-in")
    return Endpoint(host or "stand-in", path, exe or None, uid, (user,) if user else (), gid, (group,) if group else ())


def _plain(patterns: Sequence[str]) -> str:
    """What the first pattern matches; empty when there is none."""
    return patterns[0].replace("*", "1").replace("?", "1") if patterns else ""


def _addresses(compiled: Compiled, identities: frozenset[int]) -> list[Address]:
    found: dict[tuple[int, int], Address] = {}
    for prefixes in (compiled.classes4, compiled.classes6):
        for network, number in prefixes.items():
            if number in identities and (number, network.version) not in found and len(found) < _ADDRESSES_MAX:
                ends = (network.network_address, network.broadcast_address)
                own = next((address for address in ends if class_of(compiled, address) == number), None)
                if own is not None:
                    found[number, network.version] = own
    return list(found.values())


def who_is_who(
    compiled: Compiled, addresses: Iterable[Address], identify: Callable[[Address], int]
) -> dict[Loc, tuple[Diagnostic, ...]]:
    """Addresses that another engine takes for somebody else."""
    disputes: dict[Loc, tuple[Diagnostic, ...]] = {}
    for address in addresses:
        mine, other = (
            identity_name(compiled, one) or str(one) for one in (class_of(compiled, address), identify(address))
        )
        if mine != other:
            loc = Loc("bulkhead.yaml", 1)
            found = dispute(loc, "the model", mine, "the kernel", other, f"who {address} is")
            disputes[loc] = (*disputes.get(loc, ()), found)
    return disputes
