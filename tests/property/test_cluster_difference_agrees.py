"""What a commit is said to change in a cluster against what its policies mean before and after, case by case."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from hypothesis import Phase, find, given, settings

from bulkhead.dataplane import points
from bulkhead.dataplane.cluster import resolve_cluster
from bulkhead.dataplane.cluster_difference import REFUSING, ClusterReach, End, cluster_difference
from bulkhead.dataplane.cluster_inventory import ListedNode, ListedPod
from bulkhead.dataplane.cluster_reference import Question, reaches
from bulkhead.dataplane.difference import Kind
from bulkhead.dataplane.matrix import in_family, parse_ports
from bulkhead.dataplane.parties import FAMILIES, Standing
from bulkhead.policy.model import PolicySet
from property.clusters import NOW, Case, changes

PROBES = parse_ports("80,8080,53/udp,3868/sctp,icmp/echo,proto/47")
SHARE = 100
"""One question in so many, at least, has an answer that changes, each way. What is drawn, and so the share, moves with
the constants that hypothesis finds in whatever modules a run has loaded."""

answers: Counter[str] = Counter()
"""What became of questions, so that a suite in which nothing changes cannot pass."""


def disagreements(before: Case, after: Case, said_of: PolicySet | None = None) -> list[str]:
    """Every question whose answers differ in another way than `cluster_difference` says of `said_of`."""
    sides = (before.policy_set, said_of or after.policy_set)
    found = cluster_difference(*(resolve_cluster(side, before.cluster, NOW) for side in sides))
    wrong = []
    for question in _questions(before):
        meant = _change(*(reaches(case.world, question) for case in (before, after)))
        answers[meant] += 1
        told = {one.kind.value for one in found if _tells(one, question)} - {Kind.RETIMED.value} or {""}
        if told != {meant}:
            wrong.append(f"{question}: {told} for {meant}")
    return wrong


def _change(before: bool, after: bool) -> str:
    if before is after:
        return ""
    return Kind.GAINED.value if after else Kind.LOST.value


def _questions(case: Case) -> Iterator[Question]:
    inside = [*case.cluster.pods, *(node for node in case.cluster.nodes if node.name)]
    pairs = [(one, other) for one in inside for other in inside]
    pairs += [pair for one in inside for far in case.addresses.values() for pair in ((one, far), (far, one))]
    for source, destination in pairs:
        for family in FAMILIES:
            if all(family in _families(case, end) for end in (source, destination)):
                for spec in PROBES:
                    if in_family(spec, family):
                        yield Question(source, destination, spec.protocol, spec.first, family)


def _families(case: Case, end) -> frozenset[int]:
    if isinstance(end, ListedPod) and end.host_network:
        return case.end(f"node:{end.node}").families
    return end.families if isinstance(end, ListedPod | ListedNode) else frozenset({end.version})


def _tells(one: ClusterReach, asked: Question) -> bool:
    """Whether a change is said of a question. Of a pod and itself, and its own node, nothing is."""
    point = points.point(asked.protocol, asked.port)
    return (
        one.family in (0, asked.family)
        and any(span.first <= point <= span.last for span in one.ports)
        and any(_holds(end, asked.source) for end in one.sources)
        and any(_holds(end, asked.destination) for end in one.destinations)
        and not _always_meet(asked.source, asked.destination)
        and not _always_meet(asked.destination, asked.source)
    )


def _holds(end: End, of) -> bool:
    if isinstance(of, ListedPod) and not of.host_network:
        return end.standing is Standing.POD and of.qualified in end.members
    if isinstance(of, ListedPod | ListedNode):
        return end.standing is Standing.NODE and (of.node if isinstance(of, ListedPod) else of.name) in end.members
    return any(of in network for network in end.networks)


def _always_meet(one, other) -> bool:
    if one == other:
        return True
    if not isinstance(one, ListedPod) or one.host_network or not one.node:
        return False
    node = other.node if isinstance(other, ListedPod) and other.host_network else getattr(other, "name", None)
    return one.node == node and (isinstance(other, ListedNode) or getattr(other, "host_network", False))


@settings(max_examples=settings.default.max_examples // 3)
@given(changes())
def test_what_is_said_to_change_is_what_changes(change: tuple[Case, Case]) -> None:
    assert disagreements(*change) == []


@settings(max_examples=settings.default.max_examples // 3)
@given(changes())
def test_every_change_has_its_reasons(change: tuple[Case, Case]) -> None:
    before, after = change
    for one in cluster_difference(*(resolve_cluster(case.policy_set, before.cluster, NOW) for case in change)):
        refusing = [rule for rule in one.rules if rule.kind in REFUSING]
        side = before if one.kind is Kind.LOST else after
        known = {rule.loc for policy in side.policy_set.cluster_policies for rule in policy.rules()}
        known |= {rule.loc for rule in side.policy_set.rules}
        allowing = [rule for rule in one.rules if rule not in refusing]
        assert allowing
        assert all(rule.kind == "default" or rule.loc in known for rule in allowing)
        is_nobodys = one.kind is Kind.GAINED and any(rule.kind == "default" for rule in allowing)
        assert bool(refusing) is (is_nobodys or one.kind is Kind.LOST)


def test_questions_whose_answers_change_were_asked() -> None:
    assert answers[Kind.GAINED] > answers.total() // SHARE
    assert answers[Kind.LOST] > answers.total() // SHARE
    assert answers.total() > 10_000


def _no_natives(policy_set: PolicySet) -> PolicySet:
    return replace(policy_set, rules=())


def _one_policy_less(policy_set: PolicySet) -> PolicySet:
    return replace(policy_set, cluster_policies=policy_set.cluster_policies[1:])


@pytest.mark.parametrize("mistake", [_no_natives, _one_policy_less])
def test_a_difference_of_other_policies_is_noticed(mistake: Callable[[PolicySet], PolicySet]) -> None:
    quickly = settings(max_examples=500, phases=[Phase.generate], database=None)
    before, after = find(
        changes(), lambda pair: bool(disagreements(*pair, mistake(pair[1].policy_set))), settings=quickly
    )
    assert disagreements(before, after, mistake(after.policy_set))
