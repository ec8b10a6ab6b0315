"""The oracle for Kubernetes policies: what they mean for one conversation, the shortest way from their specification.

It exists to disagree with `cluster`. It shares nothing with it but the policies and the pods: it walks every rule for
every question and looks at pods, labels and addresses as they are; there are no parties, no identities, and no sets of
ports. Slow on purpose; nothing but tests runs it.

Whoever changes the meaning changes this file from the specification, or from docs/kubernetes.md, never from `cluster`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address

from bulkhead.abi import Direction
from bulkhead.dataplane.cluster_inventory import Cluster, ListedNode, ListedPod
from bulkhead.policy.cluster import (
    Action,
    ClusterPeer,
    ClusterPolicy,
    ClusterPort,
    ClusterRule,
    NetworkPeer,
    NodePeer,
    PodPeer,
    Tier,
)
from bulkhead.policy.model import Entity, External, Peer, PolicySet, QualifiedName

Address = IPv4Address | IPv6Address
End = ListedPod | ListedNode | Address
"""An end of a conversation; an address is one outside the cluster."""


@dataclass(frozen=True, slots=True)
class Question:
    """May `source` open a conversation with `destination`?"""

    source: End
    destination: End
    protocol: int
    port: int
    """Of the destination; for ICMP `type << 8 | code`."""
    family: int


@dataclass(frozen=True, slots=True)
class World:
    """Everything that an answer depends on."""

    policy_set: PolicySet
    cluster: Cluster
    workloads: Mapping[str, QualifiedName | None]
    """The native workload of each pod that has one, by `NAMESPACE/POD`; None for one that is ambiguous."""
    now: datetime


def reaches(world: World, asked: Question) -> bool:
    """Whether the conversation is allowed, as if every mode were enforce."""
    source, destination = asked.source, asked.destination
    if _are_one(source, destination) or _share_a_node(source, destination):
        return True
    leaves = not _is_pod(source) or end_allows(world, asked, Direction.EGRESS)
    return leaves and (not _is_pod(destination) or end_allows(world, asked, Direction.INGRESS))


def _is_pod(end: End) -> bool:
    """Whether policies govern it. A pod on its node's network is the node to them."""
    return isinstance(end, ListedPod) and not end.host_network


def _are_one(source: End, destination: End) -> bool:
    return (
        isinstance(source, ListedPod)
        and isinstance(destination, ListedPod)
        and source.qualified == destination.qualified
    )


def _share_a_node(source: End, destination: End) -> bool:
    """A pod and the node it runs on, in either order."""
    for one, other in ((source, destination), (destination, source)):
        if isinstance(one, ListedPod) and _is_pod(one) and not _is_pod(other) and one.node:
            if isinstance(other, ListedNode) and other.name == one.node:
                return True
            if isinstance(other, ListedPod) and other.node == one.node:
                return True
    return False


def end_allows(world: World, asked: Question, direction: Direction) -> bool:
    """Whether the pod at one end allows the conversation: tiers in order, until one decides."""
    local = asked.source if direction is Direction.EGRESS else asked.destination
    assert isinstance(local, ListedPod)
    admin = _first_decision(world, asked, direction, local, Tier.ADMIN)
    if admin in (Action.ACCEPT, Action.DENY):
        return admin is Action.ACCEPT
    if _is_isolated(world, local, direction):
        return _is_let_through(world, asked, direction, local)
    return _first_decision(world, asked, direction, local, Tier.BASELINE) is not Action.DENY


def _first_decision(world: World, asked: Question, direction: Direction, local: ListedPod, tier: Tier) -> Action | None:
    """The action of the first rule that matches: lower priorities first, then as the repository has them."""
    policies = [policy for policy in world.policy_set.cluster_policies if policy.tier is tier]
    for policy in sorted(policies, key=lambda policy: policy.priority):
        if _selects(world, policy.subject, policy, local):
            for rule in _rules(policy, direction) or ():
                if _matches(world, asked, direction, policy, rule):
                    return rule.action
    return None


def _is_isolated(world: World, local: ListedPod, direction: Direction) -> bool:
    selected = any(
        policy.tier is Tier.NAMESPACE
        and _rules(policy, direction) is not None
        and _selects(world, policy.subject, policy, local)
        for policy in world.policy_set.cluster_policies
    )
    return selected or local.qualified in world.workloads


def _is_let_through(world: World, asked: Question, direction: Direction, local: ListedPod) -> bool:
    for policy in world.policy_set.cluster_policies:
        if policy.tier is not Tier.NAMESPACE or not _selects(world, policy.subject, policy, local):
            continue
        if any(_matches(world, asked, direction, policy, rule) for rule in _rules(policy, direction) or ()):
            return True
    return _natively(world, asked, direction, local)


def _rules(policy: ClusterPolicy, direction: Direction) -> tuple[ClusterRule, ...] | None:
    return policy.egress if direction is Direction.EGRESS else policy.ingress


# Rules of dialects


def _matches(world: World, asked: Question, direction: Direction, policy: ClusterPolicy, rule: ClusterRule) -> bool:
    remote = asked.destination if direction is Direction.EGRESS else asked.source
    peers = rule.peers is None or any(_is_peer(world, asked.family, peer, policy, remote) for peer in rule.peers)
    return peers and (rule.ports is None or any(_has_port(asked, port) for port in rule.ports))


def _is_peer(world: World, family: int, peer: ClusterPeer, policy: ClusterPolicy, remote: End) -> bool:
    if isinstance(peer, NetworkPeer):
        return _is_within(peer, remote, world.cluster, family)
    if isinstance(peer, NodePeer):
        node = _node_of(remote, world.cluster)
        return node is not None and peer.nodes.matches(node.labels)
    return isinstance(remote, ListedPod) and _selects(world, peer, policy, remote)


def _selects(world: World, peer: PodPeer, policy: ClusterPolicy, pod: ListedPod) -> bool:
    if pod.host_network or not peer.pods.matches(pod.labels):
        return False
    if peer.namespaces is None:
        return pod.namespace == policy.namespace
    return peer.namespaces.matches(world.cluster.namespaces[pod.namespace])


def _node_of(end: End, cluster: Cluster) -> ListedNode | None:
    if isinstance(end, ListedNode):
        return end
    if isinstance(end, ListedPod) and end.host_network:
        return next(node for node in cluster.nodes if node.name == end.node)
    return None


def _address_of(end: End, cluster: Cluster, family: int) -> Address | None:
    if isinstance(end, IPv4Address | IPv6Address):
        return end
    holder = _node_of(end, cluster) or end
    return next((address for address in holder.addresses if address.version == family), None)


def _is_within(peer: NetworkPeer, end: End, cluster: Cluster, family: int) -> bool:
    if peer.network.version != family:
        return False
    address = _address_of(end, cluster, family)
    if address is None:
        # Wherever it is, it is somewhere.
        return peer.network.prefixlen == 0 and not peer.excluded
    return address in peer.network and not any(address in network for network in peer.excluded)


def _has_port(asked: Question, port: ClusterPort) -> bool:
    if port.protocol not in (None, asked.protocol):
        return False
    if not port.name:
        return port.protocol is not None and port.first <= asked.port <= port.last
    receiver = asked.destination
    return (
        isinstance(receiver, ListedPod)
        and not receiver.host_network
        and any((one.name, one.protocol, one.port) == (port.name, asked.protocol, asked.port) for one in receiver.ports)
    )


# Native rules


def _natively(world: World, asked: Question, direction: Direction, local: ListedPod) -> bool:
    """Whether a native rule allows it."""
    remote = asked.destination if direction is Direction.EGRESS else asked.source
    for rule in world.policy_set.rules:
        ours, theirs = (
            (rule.source, rule.destination) if direction is Direction.EGRESS else (rule.destination, rule.source)
        )
        if (
            (rule.expires is None or rule.expires > world.now)
            and any(spec.protocol == asked.protocol and spec.first <= asked.port <= spec.last for spec in rule.ports)
            and _names_workload(world, ours, local)
            and _names(world, theirs, remote, asked.family)
        ):
            return True
    return False


def _names_workload(world: World, peer: Peer, end: End) -> bool:
    workload = world.workloads.get(end.qualified) if isinstance(end, ListedPod) else None
    return workload is not None and (workload in peer.workloads or Entity.ANY in peer.entities)


def _names(world: World, peer: Peer, end: End, family: int) -> bool:
    """Whether a native peer means an end. One without a workload is known by its address alone."""
    if isinstance(end, ListedPod) and end.qualified in world.workloads:
        return _names_workload(world, peer, end)
    if Entity.WORLD in peer.entities:
        return True
    return any(
        _is_within(NetworkPeer(network, external.excluded), end, world.cluster, family)
        for external in _named(world.policy_set, peer.externals)
        for network in external.cidr
    )


def _named(policy_set: PolicySet, names: Iterable[QualifiedName]) -> list[External]:
    return [external for external in policy_set.externals if external.qualified in names]
