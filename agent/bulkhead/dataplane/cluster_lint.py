"""What a careful reviewer would ask about Kubernetes policies, without a cluster: allowed, most likely not meant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from bulkhead.abi import Direction
from bulkhead.dataplane.exposure import MANAGEMENT, is_public, trusted_networks
from bulkhead.errors import Diagnostic
from bulkhead.policy.check import finding
from bulkhead.policy.cluster import (
    Action,
    ClusterPeer,
    ClusterPolicy,
    ClusterRule,
    LabelSelector,
    NetworkPeer,
    NodePeer,
    Operator,
    PodPeer,
    Requirement,
    Tier,
)
from bulkhead.policy.model import PolicySet
from bulkhead.policy.ports import PORT_MAX, PROTOCOLS

_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}


def cluster_lint(policy_set: PolicySet) -> Iterator[Diagnostic]:
    """Findings about the policies of dialects, policy by policy."""
    for policy in policy_set.cluster_policies:
        yield from _silent(policy_set, policy)
        yield from _impossible(policy_set, policy)
        for direction, rules in ((Direction.INGRESS, policy.ingress), (Direction.EGRESS, policy.egress)):
            for rule in rules or ():
                if rule.action is Action.ACCEPT:
                    yield from _too_wide(policy_set, policy, direction, rule)


# --- what does nothing


def _silent(policy_set: PolicySet, policy: ClusterPolicy) -> Iterator[Diagnostic]:
    for loc in policy.unheard:
        hint = "name the direction in `policyTypes`, or remove the rule"
        yield finding(policy_set, "BH1021", loc, hint=hint, policy=policy.qualified)


def _impossible(policy_set: PolicySet, policy: ClusterPolicy) -> Iterator[Diagnostic]:
    """Selectors that ask of one label what no label can be."""
    for selector in _selectors(policy.subject):
        for key in _contradictions(selector):
            yield finding(policy_set, "BH1022", policy.loc, policy=policy.qualified, key=key)
    for rule in policy.rules():
        keys = (key for peer in rule.peers or () for one in _selectors(peer) for key in _contradictions(one))
        for key in dict.fromkeys(keys):
            yield finding(policy_set, "BH1023", rule.loc, rule=_name(policy, rule), key=key)


def _selectors(peer: ClusterPeer) -> list[LabelSelector]:
    if isinstance(peer, NetworkPeer):
        return []
    if isinstance(peer, NodePeer):
        return [peer.nodes]
    return [peer.pods] if peer.namespaces is None else [peer.namespaces, peer.pods]


def _contradictions(selector: LabelSelector) -> Iterator[str]:
    """Labels of which no value, and not their absence either, satisfies every requirement."""
    asked: dict[str, list[Requirement]] = defaultdict(list)
    for one in selector.requirements:
        asked[one.key].append(one)
    for key, requirements in asked.items():
        listed = [set(one.values) for one in requirements if one.operator is Operator.IN]
        # Beyond the values that are named, one stands for all others.
        others = "".join(value for one in requirements for value in one.values) + "-"
        possible = set[str].intersection(*listed) if listed else {others}
        held = [{key: value} for value in possible] + [{}]
        if not any(all(one.holds(labels) for one in requirements) for labels in held):
            yield key


# --- what is too wide


def _too_wide(
    policy_set: PolicySet, policy: ClusterPolicy, direction: Direction, rule: ClusterRule
) -> Iterator[Diagnostic]:
    name = _name(policy, rule)
    for peer in rule.peers or ():
        for network in trusted_networks((peer.network,), peer.excluded) if isinstance(peer, NetworkPeer) else ():
            hint = "select the pods, or name the few addresses that are meant"
            yield finding(policy_set, "BH1002", rule.loc, hint=hint, rule=name, network=network)
    if policy.tier is Tier.ADMIN and rule.ports is None and _is_everyone(rule.peers):
        hint = "name the ports, or write `Pass`, which leaves it to the namespaces"
        yield finding(policy_set, "BH1024", rule.loc, hint=hint, rule=name)
    elif _is_world(rule.peers):
        if any(_opens_every(rule, protocol) for protocol in _PROTOCOL_NAMES):
            yield finding(policy_set, "BH1011", rule.loc, hint="name the ports", rule=name)
        elif direction is Direction.INGRESS:
            yield from _management(policy_set, rule, name)


def _management(policy_set: PolicySet, rule: ClusterRule, name: str) -> Iterator[Diagnostic]:
    for (protocol, port), service in MANAGEMENT.items():
        if _opens(rule, protocol, port, port):
            text = f"{port}/{_PROTOCOL_NAMES[protocol]}"
            hint = "name the addresses that administrators come from"
            yield finding(policy_set, "BH1012", rule.loc, hint=hint, rule=name, port=text, service=service)
            return


def _is_world(peers: Iterable[ClusterPeer] | None) -> bool:
    """Whether they are everybody outside, too."""
    return peers is None or any(isinstance(peer, NetworkPeer) and is_public(peer.network) for peer in peers)


def _is_everyone(peers: Iterable[ClusterPeer] | None) -> bool:
    """Whether they are all pods, or everybody."""
    everything = LabelSelector()
    return _is_world(peers) or any(
        isinstance(peer, PodPeer) and peer.namespaces == everything and peer.pods == everything for peer in peers or ()
    )


def _opens_every(rule: ClusterRule, protocol: int) -> bool:
    return _opens(rule, protocol, 1, PORT_MAX)


def _opens(rule: ClusterRule, protocol: int, first: int, last: int) -> bool:
    """Whether one of the ports spans all of these; what a name stands for is not known."""
    return rule.ports is None or any(
        port.protocol == protocol and not port.name and port.first <= first and last <= port.last for port in rule.ports
    )


def _name(policy: ClusterPolicy, rule: ClusterRule) -> str:
    return f"{policy.qualified}/{rule.name}"
