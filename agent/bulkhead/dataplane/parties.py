"""Who is told apart in a cluster: pods, nodes and addresses, gathered into parties that no policy distinguishes.

Two pods are one party when every selector, network and named port of the commit, and its workloads, treat them alike.
A party has one identity, so that tables hold a pair of parties once, however many pods each has. Networks are lists of
addresses of one family, hence a pod with addresses of both may be one party to IPv4 and another to IPv6.

Rejected: an identity for each pod, which makes tables grow with the square of the cluster rather than of its policies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network

from bulkhead.dataplane.addresses import WORLD_MEMBERS, Address, AddressClasses, address_classes
from bulkhead.dataplane.cluster_inventory import Cluster, ListedNode, ListedPod, NamedPort
from bulkhead.errors import Loc
from bulkhead.identity.registry import Members, assign_classes, assign_parties
from bulkhead.identity.selectors import Ambiguous, Identified, Pod, classify_pod
from bulkhead.policy.cluster import ClusterPeer, ClusterPolicy, LabelSelector, NetworkPeer, NodePeer, PodPeer
from bulkhead.policy.model import External, PolicySet, QualifiedName

FAMILIES = (4, 6)

PeerKey = tuple[str, ClusterPeer]
"""A peer with the namespace that it is relative to; empty when it is to none."""


class Standing(StrEnum):
    """What the members of a party are."""

    POD = "pod"
    """Judged at both directions."""
    NODE = "node"
    """A machine, with the pods that use its network. Met by pods, and not judged itself."""
    ADDRESS = "address"
    """Outside the cluster."""


@dataclass(frozen=True, slots=True, eq=False)
class Party:
    """Ends of conversations that no policy of the commit tells apart."""

    identity: int
    standing: Standing
    name: str
    """To people: one of its members, or the networks around an address."""
    peers: int
    """Bit N set: it is a member of peer N of the commit."""
    externals: Members
    """Networks around its address, written as externals or in a dialect."""
    workload: QualifiedName | None
    is_ambiguous: bool
    ports: frozenset[NamedPort]
    """Those whose names policies mention."""


@dataclass(frozen=True, slots=True, eq=False)
class Parties:
    """The parties of a cluster in the eyes of one commit."""

    all: tuple[Party, ...]
    pods: Mapping[tuple[str, int], Party]
    """By `NAMESPACE/POD` and address family; a pod that uses its node's network is not among them."""
    nodes: Mapping[tuple[str, int], Party]
    networks: Mapping[int, AddressClasses]
    """By address family."""
    classes: Mapping[Members, Party]
    """Of addresses outside the cluster, by the networks around them."""
    peers: Mapping[PeerKey, int]
    """The bit of each peer in `Party.peers`."""

    def of_family(self, family: int) -> tuple[Party, ...]:
        """The parties that can meet in one address family."""
        inside = [
            party for members in (self.pods, self.nodes) for (_, version), party in members.items() if version == family
        ]
        around = {WORLD_MEMBERS, *self.networks[family].prefixes.values()}
        return tuple(dict.fromkeys((*inside, *(self.classes[members] for members in around))))

    def address(self, address: Address) -> Party:
        """The party of an address outside the cluster."""
        return self.classes[members_around(self.networks, address)]


def members_around(networks: Mapping[int, AddressClasses], address: Address) -> Members:
    """The networks that contain an address, by name."""
    prefixes = networks[address.version].prefixes
    network = IPv4Network if address.version == 4 else IPv6Network
    bits = sorted({prefix.prefixlen for prefix in prefixes}, reverse=True)
    around = (network((int(address), length), strict=False) for length in bits)
    return next((prefixes[prefix] for prefix in around if prefix in prefixes), WORLD_MEMBERS)


def network_name(peer: NetworkPeer) -> QualifiedName:
    """What the addresses of a peer are called, among externals; no external of a policy can have such a name."""
    excluded = " except " + ", ".join(map(str, peer.excluded)) if peer.excluded else ""
    return QualifiedName(f"kubernetes/{peer.network}{excluded}")


def find_parties(policy_set: PolicySet, cluster: Cluster) -> Parties:
    """The parties of a cluster. Raises PolicyError when identities collide (BH0602)."""
    return _Finder(policy_set, cluster).parties()


def peer_key(policy: ClusterPolicy, peer: ClusterPeer) -> PeerKey:
    """A peer as a policy means it."""
    relative = isinstance(peer, PodPeer) and peer.namespaces is None
    return policy.namespace if relative else "", peer


def _peer_keys(policies: Iterable[ClusterPolicy]) -> Iterator[PeerKey]:
    for policy in policies:
        yield peer_key(policy, policy.subject)
        for rule in (*(policy.ingress or ()), *(policy.egress or ())):
            yield from (peer_key(policy, peer) for peer in rule.peers or ())


@dataclass(frozen=True, slots=True)
class _Facts:
    """Everything by which the ends of a party are alike: equal facts are one party."""

    standing: Standing
    peers: int
    externals: Members
    workload: QualifiedName | None = None
    is_ambiguous: bool = False
    ports: frozenset[NamedPort] = frozenset()


class _Finder:
    """Works out the facts of every end, then gives each set of facts a number."""

    def __init__(self, policy_set: PolicySet, cluster: Cluster) -> None:
        self._policy_set = policy_set
        self._cluster = cluster
        self._workloads = [workload for workload in policy_set.workloads if workload.match.of_pods]
        self._peers = {key: number for number, key in enumerate(dict.fromkeys(_peer_keys(policy_set.cluster_policies)))}
        outside = _externals(policy_set, self._peers)
        self._locs = {external.qualified: external.loc for external in outside}
        self._everywhere = {family: _everywhere(outside, family) for family in FAMILIES}
        self._networks = {family: address_classes(outside, family) for family in FAMILIES}
        rules = [
            rule for policy in policy_set.cluster_policies for rule in (*(policy.ingress or ()), *(policy.egress or ()))
        ]
        self._port_names = {port.name for rule in rules for port in rule.ports or () if port.name}

    def parties(self) -> Parties:
        sets = {members for family in self._networks.values() for members in family.prefixes.values()}
        numbers = assign_classes(sets | {WORLD_MEMBERS}, self._locs)
        pods = {(pod.qualified, family): facts for pod, family, facts in self._pod_facts()}
        nodes = {(node.name, family): facts for node, family, facts in self._node_facts()}
        names = {facts: name for (name, _), facts in reversed([*pods.items()])}
        names |= {facts: f"node:{name}" for (name, _), facts in reversed([*nodes.items()])}
        described = {facts: self._described(facts) for facts in names}
        identities = assign_parties(described.values(), self._place)
        found = {
            facts: Party(identities[text], facts.standing, names[facts], facts.peers, facts.externals, facts.workload,
                         facts.is_ambiguous, facts.ports)
            for facts, text in described.items()
        }  # fmt: skip
        outside = {members: self._address(members, number) for members, number in numbers.items()}
        return Parties(
            (*found.values(), *outside.values()),
            {key: found[facts] for key, facts in pods.items()},
            {key: found[facts] for key, facts in nodes.items()},
            self._networks,
            outside,
            self._peers,
        )

    @property
    def _place(self) -> Loc:
        return place(self._policy_set)

    def _pod_facts(self) -> Iterator[tuple[ListedPod, int, _Facts]]:
        selected = self._selected()
        for pod in self._cluster.pods:
            if pod.host_network:
                continue
            facts = Pod(pod.name, pod.namespace, pod.service_account, pod.labels)
            outcome = classify_pod(self._workloads, facts)
            workload = outcome.workload.qualified if isinstance(outcome, Identified) else None
            ports = frozenset(port for port in pod.ports if port.name in self._port_names)
            for family in sorted(pod.families):
                around = self._around(pod.addresses, family)
                peers = selected[pod.qualified] | self._peer_bits(around)
                is_ambiguous = isinstance(outcome, Ambiguous)
                yield pod, family, _Facts(Standing.POD, peers, around, workload, is_ambiguous, ports)

    def _node_facts(self) -> Iterator[tuple[ListedNode, int, _Facts]]:
        wanted = [(number, peer) for (_, peer), number in self._peers.items() if isinstance(peer, NodePeer)]
        for node in self._cluster.nodes:
            bits = sum(1 << number for number, peer in wanted if peer.nodes.matches(node.labels))
            for family in sorted(node.families):
                around = self._around(node.addresses, family)
                yield node, family, _Facts(Standing.NODE, bits | self._peer_bits(around), around)

    def _address(self, members: Members, number: int) -> Party:
        name = " + ".join(sorted(members)) or "world"
        bits = self._peer_bits(members)
        return Party(number, Standing.ADDRESS, name, bits, members, None, False, frozenset())

    def _selected(self) -> dict[str, int]:
        """By pod, the bits of the peers that select it by labels."""
        found = {pod.qualified: 0 for pod in self._cluster.pods}
        members: dict[str, list[ListedPod]] = {}
        for pod in self._cluster.pods:
            members.setdefault(pod.namespace, []).append(pod)
        for (relative, peer), number in self._peers.items():
            if isinstance(peer, PodPeer):
                for namespace in _namespaces(peer, relative, self._cluster.namespaces):
                    for pod in members.get(namespace, ()):
                        if peer.pods.matches(pod.labels):
                            found[pod.qualified] |= 1 << number
        return found

    def _around(self, addresses: Sequence[Address], family: int) -> Members:
        address = next((address for address in addresses if address.version == family), None)
        return self._everywhere[family] if address is None else members_around(self._networks, address)

    def _peer_bits(self, around: Members) -> int:
        """The peers that are networks around an address."""
        return sum(1 << self._network_bits[name] for name in around if name in self._network_bits)

    @cached_property
    def _network_bits(self) -> dict[QualifiedName, int]:
        return {network_name(peer): n for (_, peer), n in self._peers.items() if isinstance(peer, NetworkPeer)}

    def _described(self, facts: _Facts) -> str:
        """Facts in words that say the same in every commit, which identities are hashes of."""
        selectors = sorted(text for number, text in self._peer_texts.items() if facts.peers >> number & 1)
        ports = sorted(f"{port.name}={port.port}/{port.protocol}" for port in facts.ports)
        workload = "ambiguous" if facts.is_ambiguous else facts.workload or "no workload"
        return "\n".join((facts.standing, workload, *sorted(facts.externals), *selectors, *ports))

    @cached_property
    def _peer_texts(self) -> dict[int, str]:
        return {number: _peer_text(*key) for key, number in self._peers.items()}


def place(policy_set: PolicySet) -> Loc:
    """Where things are said to be that no line of a commit says: its first document of a dialect."""
    for policy in policy_set.cluster_policies:
        return policy.loc
    return Loc("bulkhead.yaml", 1, commit=policy_set.commit[:7])


def _externals(policy_set: PolicySet, peers: Iterable[PeerKey]) -> list[External]:
    """The networks of a commit: its externals, and what dialects write as a network, each once."""
    where = place(policy_set)
    written = {
        name: External(name.partition("/")[0], name.partition("/")[2], (peer.network,), peer.excluded, where)
        for _, peer in peers
        if isinstance(peer, NetworkPeer)
        for name in (network_name(peer),)
    }
    return [*policy_set.externals, *written.values()]


def _everywhere(externals: Iterable[External], family: int) -> Members:
    """Networks that contain every address of a family, those that nobody knows included."""
    return frozenset(
        external.qualified
        for external in externals
        if any(network.version == family and not network.prefixlen for network in external.cidr)
        and not any(network.version == family for network in external.excluded)
    )


def _namespaces(peer: PodPeer, relative: str, namespaces: Mapping[str, Mapping[str, str]]) -> Iterable[str]:
    if peer.namespaces is None:
        return (relative,)
    return [name for name, labels in namespaces.items() if peer.namespaces.matches(labels)]


def _peer_text(relative: str, peer: ClusterPeer) -> str:
    if isinstance(peer, NetworkPeer):
        return network_name(peer)
    if isinstance(peer, NodePeer):
        return f"nodes {_selector_text(peer.nodes)}"
    namespaces = f"namespace {relative}" if peer.namespaces is None else f"namespaces {_selector_text(peer.namespaces)}"
    return f"{namespaces} pods {_selector_text(peer.pods)}"


def _selector_text(selector: LabelSelector) -> str:
    terms = sorted(f"{one.key} {one.operator} ({', '.join(sorted(one.values))})" for one in selector.requirements)
    return " and ".join(terms) or "all"
