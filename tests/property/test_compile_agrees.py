"""What the kernel is told against what the policy means: the compiler and the oracle give one answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import Phase, find, given, settings

from bulkhead.abi import Direction, Identity
from bulkhead.dataplane import reference
from bulkhead.dataplane.bundle import pack, unpack
from bulkhead.dataplane.compile import Compiled, class_of, compile_commit, lookup
from bulkhead.dataplane.entries import LANE_MASK, MTLS, REQUESTS
from bulkhead.dataplane.reference import Answer, Identified, Remote, Standing
from bulkhead.policy.model import Entity, Mode, Peer, PolicySet, PortSpec
from bulkhead.policy.nodes import Node
from property import strategies
from property.strategies import NOW, Case, Opening

Compiler = Callable[[PolicySet, str | None, datetime], Compiled]

ENTITIES = {
    Standing.HOST: Identity.HOST,
    Standing.LEGACY: Identity.LEGACY,
    Standing.AMBIGUOUS: Identity.AMBIGUOUS,
    Standing.UNKNOWN: Identity.UNKNOWN,
}


def number_of(policy_set: PolicySet, compiled: Compiled, end: Remote) -> int:
    """The identity by which the kernel knows one end."""
    if isinstance(end, str):
        return class_of_name(policy_set, compiled, end)
    if not isinstance(end, Identified):
        return class_of(compiled, end)
    if end.standing is Standing.WORKLOAD:
        return reference.identity_number(policy_set.trust_domain, end.workloads[0])
    return ENTITIES[end.standing]


def class_of_name(policy_set: PolicySet, compiled: Compiled, name: str) -> int:
    """The class that an address learned under a DNS name belongs to."""
    peers = ((e.qualified, Peer(externals=(e.qualified,))) for e in policy_set.externals)
    members = {qualified for qualified, peer in peers if reference.is_member(policy_set, peer, name)}
    return next(number for number, names in compiled.classes.items() if set(names) == members)


def disagreement(policy_set: PolicySet, compiled: Compiled, opening: Opening) -> str:
    """What the kernel's entry says differently from the oracle; empty when it does not.

    The rule it shows must be one that allows, and the one that lasts as long as the entry.
    """
    meant = asked(policy_set, opening)
    local = number_of(policy_set, compiled, opening.local)
    remote = number_of(policy_set, compiled, opening.remote)
    entry = lookup(compiled, local, opening.direction, remote, opening.protocol, opening.port)
    if entry is None:
        return f"no entry, but {meant}" if meant.allowed else ""
    deadline = datetime.fromtimestamp(entry.deadline, UTC) if entry.deadline is not None else None
    ends = {rule.rule_id: rule.expires for rule in policy_set.rules}
    if entry.rule_id in meant.rules and deadline == meant.expires == ends[entry.rule_id]:
        return ""
    return f"{entry} with the deadline {deadline}, but {meant}"


def asked(policy_set: PolicySet, opening: Opening) -> Answer:
    return reference.judge(
        policy_set,
        opening.host,
        opening.local,
        opening.direction,
        opening.remote,
        opening.protocol,
        opening.port,
        NOW,
    )


def disagreements(case: Case, compiler: Compiler = compile_commit) -> list[tuple[Opening, str]]:
    """Every opening of a case on which the compiled policy and the oracle differ, with how."""
    compiled = compiler(case.policy_set, case.host, NOW)
    found = ((opening, disagreement(case.policy_set, compiled, opening)) for opening in case.openings)
    return [(opening, how) for opening, how in found if how]


def test_deny_when_there_is_no_policy() -> None:
    empty = PolicySet("", "example.org", Mode.ENFORCE)
    compiled = compile_commit(empty, "web-1", NOW)
    stranger = class_of(compiled, strategies.STRAY_ADDRESSES[0])
    for direction in Direction:
        for remote in (Identity.HOST, Identity.WORLD, Identity.UNKNOWN, Identity.LEGACY, Identity.PEER, stranger):
            assert lookup(compiled, Identity.HOST, direction, remote, strategies.TCP, 443) is None


@given(strategies.cases())
def test_compiled_entries_say_what_the_policy_means(case: Case) -> None:
    assert disagreements(case) == []


@given(strategies.cases())
def test_tables_know_what_is_allowed_to_whoever_bears_a_dns_name(case: Case) -> None:
    names = strategies.dns_names(case.policy_set)
    named = [replace(opening, remote=names[at % len(names)]) for at, opening in enumerate(case.openings)]
    assert disagreements(replace(case, openings=tuple(named))) == []


@settings(max_examples=settings().max_examples // 5)
@given(strategies.cases())
def test_tables_for_all_hosts_at_once_say_the_same(case: Case) -> None:
    assert disagreements(case, lambda policy_set, _host, now: compile_commit(policy_set, None, now)) == []


NODE = Node("elsewhere", 7, (), bytes(range(32)))


def opening_disagreement(policy_set: PolicySet, compiled: Compiled, opening: Opening) -> str:
    """What the kernel says differently from the oracle of a first packet to a node; empty when it does not."""
    address = next(iter(strategies.STRAY_ADDRESSES))
    port = opening.protocol, opening.port
    meant = reference.may_leave(policy_set, opening.host, opening.local, NODE, address, port, NOW)
    local = number_of(policy_set, compiled, opening.local)
    asked_of = replace(compiled, entries=compiled.entries | compiled.openings)
    remotes = Identity.PEER, class_of(compiled, address)
    found = [entry for each in remotes if (entry := lookup(asked_of, local, Direction.EGRESS, each, *port))]
    return "" if bool(found) == meant else f"{found}, but {meant}"


@given(strategies.cases())
def test_a_first_packet_to_a_node_leaves_exactly_where_some_answer_would_be_allowed(case: Case) -> None:
    compiled = compile_commit(case.policy_set, case.host, NOW)
    asked_about = [opening for opening in case.openings if opening.local.standing is not Standing.LEGACY]
    assert [how for each in asked_about if (how := opening_disagreement(case.policy_set, compiled, each))] == []


@given(strategies.cases())
def test_an_opening_lasts_as_long_as_the_longest_lived_rule_to_any_workload(case: Case) -> None:
    compiled = compile_commit(case.policy_set, case.host, NOW)
    everyone = [Identified(Standing.WORKLOAD, (each.qualified,)) for each in case.policy_set.workloads]
    asked_of = replace(compiled, entries=compiled.openings)
    for opening in case.openings:
        local = number_of(case.policy_set, compiled, opening.local)
        entry = lookup(asked_of, local, Direction.EGRESS, Identity.PEER, opening.protocol, opening.port)
        outgoing = [replace(opening, direction=Direction.EGRESS, remote=each) for each in everyone]
        answers = [answer for each in outgoing if (answer := asked(case.policy_set, each)).allowed]
        ends = {answer.expires and answer.expires.timestamp() for answer in answers}
        longest = None if None in ends else max(ends, key=float, default=0.0)
        assert (entry.deadline if entry else 0.0) == longest
        if entry:
            assert any(entry.rule_id in answer.rules for answer in answers)


# What conversations have to bring with them


def demand_disagreement(policy_set: PolicySet, compiled: Compiled, opening: Opening) -> str:
    """What the flags of an entry say differently from the oracle; empty when they do not."""
    end = number_of(policy_set, compiled, opening.local), number_of(policy_set, compiled, opening.remote)
    entry = lookup(compiled, end[0], opening.direction, end[1], opening.protocol, opening.port)
    where = opening.host, opening.local, opening.direction, opening.remote, opening.protocol, opening.port
    meant = reference.demanded(policy_set, *where, NOW)
    flags = entry.flags if entry else 0
    found = reference.Demand(bool(flags & MTLS), bool(flags & REQUESTS))
    return "" if found == meant else f"{entry}, but {meant}"


def lane_disagreement(policy_set: PolicySet, compiled: Compiled, opening: Opening) -> str:
    """What an opening to a node is told differently from the oracle: its demands, its lane, who may answer there."""
    local = number_of(policy_set, compiled, opening.local)
    opened = replace(compiled, entries=compiled.openings)
    entry = lookup(opened, local, Direction.EGRESS, Identity.PEER, opening.protocol, opening.port)
    answers = reference.answerers(policy_set, opening.host, opening.local, opening.protocol, opening.port, NOW)
    meant = reference.Demand(any(one.mtls for one in answers.values()), any(one.requests for one in answers.values()))
    flags = entry.flags if entry else 0
    found = reference.Demand(bool(flags & MTLS), bool(flags & REQUESTS))
    lanes = {lane.number: lane for lane in compiled.mesh.lanes}
    lane = lanes.get(flags & LANE_MASK)
    wanted = tuple(sorted(reference.identity_number(policy_set.trust_domain, name) for name in answers))
    same = (lane.source, lane.peers) == (local, wanted) if lane else meant == reference.Demand()
    return "" if found == meant and same and bool(lane) == (flags != 0) else f"{entry} in {lane}, but {answers}"


def demand_disagreements(case: Case, compiler: Compiler = compile_commit) -> list[str]:
    compiled = compiler(case.policy_set, case.host, NOW)
    asked_about = [opening for opening in case.openings if opening.local.standing is not Standing.LEGACY]
    ways = (demand_disagreement, lane_disagreement)
    return [how for each in asked_about for way in ways if (how := way(case.policy_set, compiled, each))]


@settings(max_examples=settings().max_examples * 2 // 5)
@given(strategies.cases(demanding=True))
def test_entries_demand_what_the_policy_demands_and_name_the_lane_of_those_who_may_answer(case: Case) -> None:
    assert demand_disagreements(case) == []


@settings(max_examples=settings().max_examples // 10)
@given(strategies.cases(demanding=True))
def test_what_rules_demand_changes_nothing_of_what_they_allow(case: Case) -> None:
    compiled = compile_commit(case.policy_set, case.host, NOW)
    assert disagreements(case) == []
    assert unpack(pack(compiled)).mesh == compiled.mesh


@settings(max_examples=settings().max_examples // 10)
@given(strategies.cases(demanding=True))
def test_whoever_may_be_steered_to_a_local_workload_may_call_it(case: Case) -> None:
    compiled = compile_commit(case.policy_set, case.host, NOW)
    calls = {(call.destination, call.source): call.ports for call in compiled.mesh.calls}
    numbers = {w.identity: w.qualified for w in compiled.workloads}
    for opening in case.openings:
        remote = opening.remote
        if opening.direction is Direction.EGRESS or not isinstance(remote, Identified):
            continue
        meant = reference.demanded(case.policy_set, opening.host, opening.local, opening.direction, remote,
                                   opening.protocol, opening.port, NOW)  # fmt: skip
        ends = number_of(case.policy_set, compiled, opening.local), number_of(case.policy_set, compiled, remote)
        allowed = asked(case.policy_set, opening).allowed and opening.protocol == strategies.TCP
        through = any(first <= opening.port <= last for first, last in calls.get(ends, ()))
        assert not (meant.mtls or meant.requests) or through
        assert not through or allowed or opening.protocol != strategies.TCP
        assert not through or ends[1] in numbers


# A property that cannot fail proves nothing: each of these compilers is wrong in one small way.


def _widened_port(policy_set: PolicySet) -> PolicySet:
    def widened(ports: tuple[PortSpec, ...]) -> tuple[PortSpec, ...]:
        return tuple(replace(spec, last=min(spec.last + 1, 65535)) for spec in ports)

    return replace(policy_set, rules=tuple(replace(rule, ports=widened(rule.ports)) for rule in policy_set.rules))


def _forgotten_holes(policy_set: PolicySet) -> PolicySet:
    return replace(policy_set, externals=tuple(replace(e, excluded=()) for e in policy_set.externals))


def _forgotten_deadline(policy_set: PolicySet) -> PolicySet:
    return replace(policy_set, rules=tuple(replace(rule, expires=None) for rule in policy_set.rules))


def _host_among_any(policy_set: PolicySet) -> PolicySet:
    def widened(peer: Peer) -> Peer:
        return replace(peer, entities=(*peer.entities, Entity.HOST)) if Entity.ANY in peer.entities else peer

    rules = tuple(replace(r, source=widened(r.source), destination=widened(r.destination)) for r in policy_set.rules)
    return replace(policy_set, rules=rules)


def _swapped_ends(policy_set: PolicySet) -> PolicySet:
    rules = tuple(replace(r, source=r.destination, destination=r.source) for r in policy_set.rules)
    return replace(policy_set, rules=rules)


def _other_family(policy_set: PolicySet) -> PolicySet:
    def widened(peer: Peer) -> Peer:
        return replace(peer, entities=(*peer.entities, Entity.WORLD)) if peer.externals else peer

    return replace(policy_set, rules=tuple(replace(r, source=widened(r.source)) for r in policy_set.rules))


def _legacy_in_the_world(policy_set: PolicySet) -> PolicySet:
    def widened(peer: Peer) -> Peer:
        return replace(peer, entities=(*peer.entities, Entity.LEGACY)) if Entity.WORLD in peer.entities else peer

    rules = tuple(replace(r, source=widened(r.source), destination=widened(r.destination)) for r in policy_set.rules)
    return replace(policy_set, rules=rules)


@pytest.mark.parametrize(
    "mistake",
    [
        _widened_port,
        _forgotten_holes,
        _forgotten_deadline,
        _host_among_any,
        _swapped_ends,
        _other_family,
        _legacy_in_the_world,
    ],
)
def test_oracle_notices_a_widened_rule(mistake: Callable[[PolicySet], PolicySet]) -> None:
    def wrong(policy_set: PolicySet, host: str | None, now: datetime) -> Compiled:
        return compile_commit(mistake(policy_set), host, now)

    quickly = settings(max_examples=1000, phases=[Phase.generate], database=None)
    found = find(strategies.cases(), lambda case: bool(disagreements(case, wrong)), settings=quickly)
    assert disagreements(found, wrong)


def _plaintext_everywhere(policy_set: PolicySet) -> PolicySet:
    return replace(policy_set, rules=tuple(replace(rule, mtls=False) for rule in policy_set.rules))


def _requests_unseen(policy_set: PolicySet) -> PolicySet:
    return replace(policy_set, rules=tuple(replace(rule, l7=None) for rule in policy_set.rules))


def _everything_demanded(policy_set: PolicySet) -> PolicySet:
    return replace(policy_set, rules=tuple(replace(rule, mtls=True) for rule in policy_set.rules))


@pytest.mark.parametrize("mistake", [_plaintext_everywhere, _requests_unseen, _everything_demanded])
def test_oracle_notices_a_demand_that_is_forgotten_or_made_up(mistake: Callable[[PolicySet], PolicySet]) -> None:
    def wrong(policy_set: PolicySet, host: str | None, now: datetime) -> Compiled:
        return compile_commit(mistake(policy_set), host, now)

    quickly = settings(max_examples=1000, phases=[Phase.generate], database=None)
    found = find(
        strategies.cases(demanding=True), lambda case: bool(demand_disagreements(case, wrong)), settings=quickly
    )
    assert demand_disagreements(found, wrong)
