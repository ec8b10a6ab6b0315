"""The matrix of a cluster against what Kubernetes policies mean: every cell, by direct evaluation over pods."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import Phase, find, given, settings

from bulkhead.dataplane.cluster import resolve_cluster
from bulkhead.dataplane.cluster_matrix import cluster_matrix
from bulkhead.dataplane.cluster_reference import Question, reaches
from bulkhead.dataplane.matrix import parse_ports
from bulkhead.policy.cluster import Action, ClusterPolicy, ClusterRule, NetworkPeer, NodePeer, PodPeer, Tier
from bulkhead.policy.model import PolicySet
from property.clusters import NOW, PORTS, Case, cases

verdicts: Counter[str] = Counter()
"""What cells came to, so that a suite that asks nothing cannot pass."""


def disagreements(case: Case, policy_set: PolicySet | None = None) -> list[str]:
    """Every cell on which the matrix of a policy and the oracle for the case differ."""
    resolved = resolve_cluster(policy_set or case.policy_set, case.cluster, NOW)
    found = []
    for row in cluster_matrix(resolved, parse_ports(PORTS), case.addresses).rows:
        source, destination = case.end(row.source), case.end(row.destination)
        for answer, (protocol, port) in zip(row.answers, _asked(row.answers), strict=True):
            meant = reaches(case.world, Question(source, destination, protocol, port, answer.family))
            verdicts[answer.verdict] += 1
            if meant is not (answer.rule is not None):
                found.append(f"{row.source} -> {row.destination} {answer}")
    return found


_BY_CELL = {
    ("echo", "icmp", 4): (1, 8 << 8),
    ("echo", "icmp", 6): (58, 128 << 8),
    ("47", "proto/47"): (47, 0),
}


def _asked(answers):
    """Protocol and port of each answer, read back from the cell's own words."""
    transports = {"tcp": 6, "udp": 17, "sctp": 132}
    for answer in answers:
        if answer.protocol in transports:
            yield transports[answer.protocol], answer.port
        else:
            known = _BY_CELL.get((answer.port, answer.protocol, answer.family))
            yield known or _BY_CELL[answer.port, answer.protocol]


@given(cases())
def test_every_cell_is_what_the_policies_mean(case: Case) -> None:
    assert disagreements(case) == []


def test_cells_of_both_kinds_were_compared() -> None:
    assert verdicts["deny"] > verdicts.total() // 10
    assert verdicts["allow"] > verdicts.total() // 10
    assert verdicts.total() > 10_000


# A property that cannot fail proves nothing: each of these commits is read wrongly in one small way.


def _rules_changed(policy_set: PolicySet, change: Callable[[ClusterRule], ClusterRule]) -> PolicySet:
    def changed(policy: ClusterPolicy) -> ClusterPolicy:
        ingress, egress = (
            None if rules is None else tuple(map(change, rules)) for rules in (policy.ingress, policy.egress)
        )
        return replace(policy, ingress=ingress, egress=egress)

    return replace(policy_set, cluster_policies=tuple(map(changed, policy_set.cluster_policies)))


def _forgotten_excepts(policy_set: PolicySet) -> PolicySet:
    def peer(one):
        return replace(one, excluded=()) if isinstance(one, NetworkPeer) else one

    return _rules_changed(
        policy_set, lambda rule: rule if rule.peers is None else replace(rule, peers=tuple(map(peer, rule.peers)))
    )


def _pass_that_accepts(policy_set: PolicySet) -> PolicySet:
    return _rules_changed(
        policy_set, lambda rule: replace(rule, action=Action.ACCEPT) if rule.action is Action.PASS else rule
    )


def _forgotten_names(policy_set: PolicySet) -> PolicySet:
    def widened(rule: ClusterRule) -> ClusterRule:
        return replace(rule, ports=None) if any(port.name for port in rule.ports or ()) else rule

    return _rules_changed(policy_set, widened)


def _empty_direction_is_silent(policy_set: PolicySet) -> PolicySet:
    policies = (replace(one, ingress=one.ingress or None) for one in policy_set.cluster_policies)
    return replace(policy_set, cluster_policies=tuple(policies))


def _reversed_priorities(policy_set: PolicySet) -> PolicySet:
    policies = (replace(one, priority=-one.priority) for one in policy_set.cluster_policies)
    return replace(policy_set, cluster_policies=tuple(policies))


def _own_namespace_forgotten(policy_set: PolicySet) -> PolicySet:
    policies = (
        replace(one, namespace="bank") if one.tier is Tier.NAMESPACE else one for one in policy_set.cluster_policies
    )
    return replace(policy_set, cluster_policies=tuple(policies))


def _nodes_forgotten(policy_set: PolicySet) -> PolicySet:
    def without(rule: ClusterRule) -> ClusterRule:
        return (
            rule
            if rule.peers is None
            else replace(rule, peers=tuple(peer for peer in rule.peers if not isinstance(peer, NodePeer)))
        )

    return _rules_changed(policy_set, without)


def _pods_forgotten(policy_set: PolicySet) -> PolicySet:
    def without(rule: ClusterRule) -> ClusterRule:
        return (
            rule
            if rule.peers is None
            else replace(rule, peers=tuple(peer for peer in rule.peers if not isinstance(peer, PodPeer)))
        )

    return _rules_changed(policy_set, without)


@pytest.mark.parametrize(
    "mistake",
    [
        _forgotten_excepts,
        _pass_that_accepts,
        _forgotten_names,
        _empty_direction_is_silent,
        _reversed_priorities,
        _own_namespace_forgotten,
        _nodes_forgotten,
        _pods_forgotten,
        lambda policy_set: replace(policy_set, rules=()),
        lambda policy_set: replace(policy_set, workloads=()),
    ],
)
def test_the_oracle_notices_a_misread_policy(mistake: Callable[[PolicySet], PolicySet]) -> None:
    quickly = settings(max_examples=500, phases=[Phase.generate], database=None)
    found = find(cases(), lambda case: bool(disagreements(case, mistake(case.policy_set))), settings=quickly)
    assert disagreements(found, mistake(found.policy_set))
