"""One answer, three ways: the oracle, the compiled tables, and the real programs on a real packet.

Every repository is compiled as of a time before all its exceptions end, so that the kernel finds lapsed entries too and
has to refuse them by its own clock.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bulkhead.abi import CgroupEntry, Direction, DropReason, Identity, Mode, SockState, Verdict
from bulkhead.dataplane import bundle as bundles
from bulkhead.dataplane import reference
from bulkhead.dataplane.addresses import Address
from bulkhead.dataplane.compile import Compiled, class_of, compile_commit, lookup
from bulkhead.dataplane.reference import Identified, Remote, Standing
from bulkhead.kernel import generation
from bulkhead.kernel.judge import SOURCE_PORT, TCP, UDP, Entry, Judge, Ruling, opening
from bulkhead.kernel.maps import GenerationTables, Table
from bulkhead.policy import model
from bulkhead.policy.model import PolicySet
from property import strategies
from property.strategies import NOW, Case, Opening
from property.test_identity_agrees import as_facts

EXAMPLES = 5000 if os.environ.get("HYPOTHESIS_PROFILE") == "deep" else 90
STRETCH = 1000
"""Deadlines near NOW are moved this much further from it, so that no run is too slow for one."""
LONG_AGO = timedelta(days=3650)

ENTITIES = {
    Standing.HOST: Identity.HOST,
    Standing.AMBIGUOUS: Identity.AMBIGUOUS,
    Standing.LEGACY: Identity.LEGACY,
}
HERE = {version: strategies.ip_network(text)[0] for version, text in ((4, "192.0.2.1/32"), (6, "2001:db8::1/128"))}
LOOPBACK = {version: strategies.ip_network(text)[0] for version, text in ((4, "127.0.0.1/32"), (6, "::1/128"))}

calm = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="HYPOTHESIS_PROFILE" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)

judged: Counter[tuple[Verdict, DropReason]] = Counter()
"""What packets came to, so that a suite that asks nothing cannot pass."""


@dataclass(frozen=True, slots=True)
class Expected:
    """One end's judgement, with the reason when it refuses and the rule when it allows."""

    verdict: Verdict
    reason: DropReason
    rule_id: int


class World:
    """A repository in force in the kernel, each possible end with a control group of its own."""

    def __init__(self, judge: Judge, case: Case) -> None:
        self.judge = judge
        self.now = datetime.now(UTC)
        self.policy_set = _stretched(case.policy_set, self.now)
        self.host = case.host
        self.compiled = compile_commit(self.policy_set, case.host, self.now - LONG_AGO)
        self.cgroups: dict[Identified, int] = {}
        ends = [end for asked in case.openings for end in (asked.local, asked.remote) if isinstance(end, Identified)]
        judge.switch(self._tables(list(dict.fromkeys(ends))))

    def _tables(self, ends: Sequence[Identified]) -> GenerationTables:
        bundle = bundles.read(bundles.pack(self.compiled))
        slots: dict[str, int] = {info.name: slot for slot, info in enumerate(bundle.rules(), 1)}
        entries: dict[bytes, bytes] = {}
        for number, end in enumerate(ends, 1):
            self.cgroups[end] = number
            if end.standing is not Standing.UNKNOWN:
                entry = CgroupEntry(identity=self.number_of(end), mode=self.mode_of(end))
                entries[number.to_bytes(8, "little")] = bytes(entry)
        return GenerationTables(
            generation.policy_table(bundle, slots),
            Table(bundle.keys4, bundle.identities4, len(bundle.identities4) // 4),
            Table(bundle.keys6, bundle.identities6, len(bundle.identities6) // 4),
            Table.of(entries),
            Table(),
            Table(),
            generation.control_flags(bundle, observe_only=False),
        )

    def number_of(self, end: Remote) -> int:
        if not isinstance(end, Identified):
            return class_of(self.compiled, end)
        if end.standing is Standing.WORKLOAD:
            return reference.identity_number(self.policy_set.trust_domain, end.workloads[0])
        return int(ENTITIES.get(end.standing, Identity.UNKNOWN))

    def mode_of(self, end: Identified) -> Mode:
        enforced = reference.mode_of(self.policy_set, self.host, end) is model.Mode.ENFORCE
        return Mode.ENFORCE if enforced else Mode.OBSERVE

    @property
    def any_mode(self) -> Mode:
        """Of what is refused for nobody's sake."""
        return self.mode_of(Identified(Standing.UNKNOWN))

    def state(self, end: Identified) -> SockState:
        state = self.judge.sender(None)
        state.cgroup_id = self.cgroups[end]
        return state

    # What oracle and tables expect

    def expected(self, local: Identified, direction: Direction, remote: Remote, protocol: int, port: int) -> Expected:
        """The judgement of one end, on which the oracle and the compiled tables must agree first."""
        meant = reference.judge(self.policy_set, self.host, local, direction, remote, protocol, port, self.now)
        verdict = reference.verdict(self.policy_set, self.host, local, direction, remote, protocol, port, self.now)
        entry = lookup(self.compiled, self.number_of(local), direction, self.number_of(remote), protocol, port)
        alive = entry is not None and (entry.deadline is None or entry.deadline > self.now.timestamp())
        assert alive == meant.allowed, (entry, meant)
        if meant.allowed:
            assert entry is not None and entry.rule_id in meant.rules
            return Expected(verdict, DropReason.NONE, entry.rule_id)
        return Expected(verdict, _reason(local, remote, entry is not None), 0)


def _reason(local: Identified, remote: Remote, has_lapsed: bool) -> DropReason:
    if local.standing is Standing.UNKNOWN:
        return DropReason.UNATTESTED
    if local.standing is Standing.AMBIGUOUS:
        return DropReason.AMBIGUOUS
    return DropReason.EXPIRED if has_lapsed else DropReason.POLICY


def _stretched(policy_set: PolicySet, now: datetime) -> PolicySet:
    def moved(expires: datetime | None) -> datetime | None:
        return None if expires is None else now + (expires - NOW) * STRETCH - timedelta(seconds=1)

    return replace(policy_set, rules=tuple(replace(rule, expires=moved(rule.expires)) for rule in policy_set.rules))


# Asking the kernel


def check(world: World, asked: Opening) -> None:
    """Put one opening to the kernel, by the packet that stands for it if there is one."""
    if isinstance(asked.remote, Identified):
        if asked.protocol in (TCP, UDP) and asked.remote.standing is not Standing.LEGACY:
            _check_local(world, asked, asked.remote)
        else:
            _check_without_packet(world, asked)
    elif asked.direction is Direction.EGRESS:
        _check_leaving(world, asked, asked.remote)
    elif asked.protocol in (TCP, UDP):
        _check_arriving(world, asked, asked.remote)
    else:
        _check_without_packet(world, asked)


def _check_local(world: World, asked: Opening, remote: Identified) -> None:
    """Both ends judge; of two refusals the first that drops stands, else the first."""
    ends = (asked.local, remote)
    origin, target = ends if asked.direction is Direction.EGRESS else ends[::-1]
    egress = world.expected(origin, Direction.EGRESS, target, asked.protocol, asked.port)
    ingress = world.expected(target, Direction.INGRESS, origin, asked.protocol, asked.port)
    judgements = [(egress, Direction.EGRESS), (ingress, Direction.INGRESS)]
    expected, direction = min(judgements, key=lambda judgement: _STRICTNESS.index(judgement[0].verdict))
    version = 4 if asked.port % 2 else 6
    frame = opening(LOOPBACK[version], LOOPBACK[version], asked.protocol, asked.port)
    with world.judge.receiving(asked.protocol, asked.port, world.state(target)):
        ruling = world.judge.send(frame, world.state(origin), Entry.EGRESS_LOOPBACK)
    _agree(ruling, expected, direction)


FOREIGN_ICMP = {4: 58, 6: 1}
"""The ICMP of the other address family, which no packet can carry meaningfully."""

_STRICTNESS = (Verdict.DENY, Verdict.WOULD_DENY, Verdict.ALLOW)


def _check_leaving(world: World, asked: Opening, address: Address) -> None:
    expected = world.expected(asked.local, asked.direction, address, asked.protocol, asked.port)
    if asked.protocol == FOREIGN_ICMP[address.version]:
        verdict = Verdict.DENY if world.any_mode is Mode.ENFORCE else Verdict.WOULD_DENY
        expected = Expected(verdict, DropReason.MALFORMED, 0)
    frame = opening(HERE[address.version], address, asked.protocol, asked.port)
    ruling = world.judge.send(frame, world.state(asked.local))
    answers = asked.protocol == UDP and expected.verdict is not Verdict.ALLOW
    if answers and world.expected(asked.local, Direction.INGRESS, address, UDP, SOURCE_PORT).verdict is Verdict.ALLOW:
        # A datagram from a port that the address may open is taken for an answer.
        expected = Expected(Verdict.NONE, DropReason.NONE, 0)
    _agree(ruling, expected, asked.direction)


def _check_arriving(world: World, asked: Opening, address: Address) -> None:
    expected = world.expected(asked.local, asked.direction, address, asked.protocol, asked.port)
    if is_martian(address):
        verdict = Verdict.DENY if world.any_mode is Mode.ENFORCE else Verdict.WOULD_DENY
        expected = Expected(verdict, DropReason.MARTIAN, 0)
    frame = opening(address, HERE[address.version], asked.protocol, asked.port)
    with world.judge.receiving(asked.protocol, asked.port, world.state(asked.local)):
        ruling = world.judge.receive(frame)
    _agree(ruling, expected, asked.direction)


def _check_without_packet(world: World, asked: Opening) -> None:
    """What no packet offline can stand for: a receiver that cannot be looked up. Always as if enforced."""
    expected = world.expected(asked.local, asked.direction, asked.remote, asked.protocol, asked.port)
    ends = world.number_of(asked.local), asked.direction, world.number_of(asked.remote)
    ruling = world.judge.ask(*ends, asked.protocol, asked.port)
    verdict = Verdict.ALLOW if expected.verdict is Verdict.ALLOW else Verdict.DENY
    assert (ruling.verdict, ruling.reason, ruling.rule_id) == (verdict, expected.reason, expected.rule_id)


def _agree(ruling: Ruling, expected: Expected, direction: Direction) -> None:
    assert (ruling.verdict, ruling.reason, ruling.rule_id) == (expected.verdict, expected.reason, expected.rule_id)
    assert ruling.passes is (expected.verdict is not Verdict.DENY)
    assert ruling.direction is (None if expected.verdict is Verdict.NONE else direction)
    judged[ruling.verdict, ruling.reason] += 1


def is_martian(address: Address) -> bool:
    """An address that no packet can come from, off a wire."""
    if address.version == 4:
        return address.is_loopback or address.is_multicast or int(address) in (0, 2**32 - 1)
    return address.is_loopback or address.is_multicast


@calm
@given(strategies.cases())
def test_oracle_tables_and_kernel_give_every_opening_the_same_verdict_for_the_same_reason(
    judge: Judge, case: Case
) -> None:
    world = World(judge, case)
    for asked in case.openings:
        check(world, asked)


def test_thousands_of_packets_were_judged_and_came_to_everything_they_can() -> None:
    assert judged.total() >= EXAMPLES * 22
    refusals = (DropReason.POLICY, DropReason.EXPIRED, DropReason.UNATTESTED, DropReason.AMBIGUOUS)
    for refusal in (Verdict.DENY, Verdict.WOULD_DENY):
        assert all(judged[refusal, reason] for reason in refusals)
    assert judged[Verdict.ALLOW, DropReason.NONE] > judged.total() // 10


# Who is it?


@settings(calm, max_examples=EXAMPLES // 3)
@given(strategies.crowds(), st.sampled_from(("198.51.100.7", "2001:db8:9::1")))
def test_the_kernel_derives_the_identity_that_the_oracle_gives_an_endpoint(
    judge: Judge, case: Case, address: str
) -> None:
    compiled = compile_commit(case.policy_set, case.host, NOW)
    facts = [as_facts(case.host, endpoint) for endpoint in case.endpoints]
    judge.enforce(bundles.read(bundles.pack(compiled)), facts)
    outside = strategies.ip_network(address)[0]
    for endpoint, told in zip(case.endpoints, facts, strict=True):
        meant = reference.identify(case.policy_set, case.host, endpoint)
        ruling = judge.egress_remote(told if endpoint.attested else None, outside, TCP, 80)
        assert ruling.local == _identity(compiled, meant), (endpoint, meant)
        assert (ruling.verdict is Verdict.DENY) == _is_enforced(case, meant), (endpoint, meant)


def _identity(compiled: Compiled, end: Identified) -> int:
    if end.standing is Standing.WORKLOAD:
        return reference.identity_number(compiled.trust_domain, end.workloads[0])
    return int(ENTITIES.get(end.standing, Identity.UNKNOWN))


def _is_enforced(case: Case, end: Identified) -> bool:
    return reference.mode_of(case.policy_set, case.host, end) is model.Mode.ENFORCE
