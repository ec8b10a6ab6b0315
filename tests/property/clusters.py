"""Small clusters in which everything can matter, and policies of every kind about them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from random import Random

from hypothesis import strategies as st

from bulkhead.dataplane.addresses import Address
from bulkhead.dataplane.cluster_inventory import Cluster, ListedPod, parse_cluster
from bulkhead.dataplane.cluster_reference import End, World
from bulkhead.errors import Loc
from bulkhead.policy.cluster import (
    Action,
    ClusterPeer,
    ClusterPolicy,
    ClusterPort,
    ClusterRule,
    LabelSelector,
    NetworkPeer,
    NodePeer,
    Operator,
    PodPeer,
    Requirement,
    Tier,
)
from bulkhead.policy.model import (
    Entity,
    External,
    Match,
    Mode,
    Peer,
    PolicySet,
    QualifiedName,
    Rule,
    RuleId,
    Workload,
)
from bulkhead.policy.ports import parse_port

NOW = datetime(2026, 7, 1, tzinfo=UTC)
PORTS = "80,8080,8443,53/udp,8080/udp,3868/sctp,icmp/echo,proto/47"

KINDS = {
    Tier.ADMIN: ("ClusterNetworkPolicy", "AdminNetworkPolicy"),
    Tier.NAMESPACE: ("NetworkPolicy",),
    Tier.BASELINE: ("ClusterNetworkPolicy", "BaselineAdminNetworkPolicy"),
}
APPS = ("web", "api", "db")
NAMESPACES = ("shop", "bank", "bare")
"""The last has no Namespace object."""
NODES = ("n1", "n2")
NETWORKS = (
    ("0.0.0.0/0", ()),
    ("0.0.0.0/0", ("10.0.0.0/29",)),
    ("10.0.0.0/29", ("10.0.0.2/31",)),
    ("10.0.0.0/30", ()),
    ("10.0.0.3/32", ()),
    ("192.168.0.0/31", ()),
    ("203.0.113.0/24", ("203.0.113.7/32",)),
    ("::/0", ()),
    ("fd00::/125", ("fd00::2/127",)),
    ("2001:db8::/32", ()),
)
OUTSIDE = ("203.0.113.6", "203.0.113.7", "10.0.0.3", "2001:db8::7", "198.51.100.1")
WORKLOADS = ("front", "back")


@dataclass(frozen=True, slots=True)
class Case:
    """Policies, a cluster, and addresses outside it."""

    world: World
    addresses: dict[str, Address]

    @property
    def policy_set(self) -> PolicySet:
        return self.world.policy_set

    @property
    def cluster(self) -> Cluster:
        return self.world.cluster

    def end(self, name: str) -> End:
        """The end behind a name of the matrix."""
        kind, _, rest = name.partition(":")
        if kind == "address":
            return self.addresses[rest]
        if kind == "node":
            return next(node for node in self.cluster.nodes if node.name == rest)
        return next(pod for pod in self.cluster.pods if pod.qualified == name)


def cases() -> st.SearchStrategy[Case]:
    """Cases of all kinds."""
    return st.randoms(use_true_random=False).map(lambda rng: _Maker(rng).case())


def changes() -> st.SearchStrategy[tuple[Case, Case]]:
    """One cluster before and after a change of its policies, some of which stay."""
    return st.randoms(use_true_random=False).map(lambda rng: _Maker(rng).change())


class _Maker:
    """Draws everything from one source of chance."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._rule_ids = iter(range(1, 1000))

    def case(self) -> Case:
        cluster = parse_cluster(json.dumps({"kind": "List", "items": [*self._objects()]}).encode(), "cluster.json")
        policies = [self._policy(number) for number in range(self._rng.randint(0, 6))]
        addresses = {text: ip_address(text) for text in self._rng.sample(OUTSIDE, 2)}
        return self._case(cluster, policies, addresses)

    def change(self) -> tuple[Case, Case]:
        before = self.case()
        kept = [policy for policy in before.policy_set.cluster_policies if self._chance(0.7)]
        added = [self._policy(number) for number in range(6, 6 + self._rng.randint(0, 2))]
        after = self._case(before.cluster, [*kept, *added], before.addresses)
        return (before, after) if self._chance(0.5) else (after, before)

    def _case(self, cluster: Cluster, policies: list[ClusterPolicy], addresses: dict[str, Address]) -> Case:
        has_natives = self._chance(0.4)
        policy_set = PolicySet(
            "3f2c1ab",
            "example.org",
            Mode.OBSERVE,
            workloads=tuple(_workload(name) for name in WORKLOADS) if has_natives else (),
            externals=tuple(_external(*network) for network in NETWORKS) if has_natives else (),
            rules=tuple(self._native_rule() for _ in range(self._rng.randint(0, 4))) if has_natives else (),
            cluster_policies=tuple(policies),
        )
        known = {
            pod.qualified: workload for pod in cluster.pods if has_natives and (workload := _workload_of(pod)) != ""
        }
        workloads = {name: QualifiedName(workload) if workload else None for name, workload in known.items()}
        return Case(World(policy_set, cluster, workloads, NOW), addresses)

    def _chance(self, probability: float) -> bool:
        return self._rng.random() < probability

    # The cluster

    def _objects(self) -> Iterator[dict[str, object]]:
        for name in NAMESPACES[:2]:
            yield {"kind": "Namespace", "metadata": {"name": name, "labels": {"team": self._rng.choice("ab")}}}
        for number, name in enumerate(NODES):
            listed = [f"192.168.0.{number}", f"fd01::{number}"][: self._rng.choice((0, 1, 2))]
            addresses = [{"type": "InternalIP", "address": address} for address in listed]
            labels = {"zone": self._rng.choice("ab")}
            yield {"kind": "Node", "metadata": {"name": name, "labels": labels}, "status": {"addresses": addresses}}
        for number in range(self._rng.randint(2, 6)):
            yield self._pod(number)

    def _pod(self, number: int) -> dict[str, object]:
        rng = self._rng
        labels = {"app": rng.choice(APPS)} | ({"tier": rng.choice("xy")} if self._chance(0.5) else {})
        ports = [
            {"name": name, "containerPort": rng.choice((80, 8080)), "protocol": protocol}
            for name, protocol in (("http", "TCP"), ("http", "UDP"), ("dns", "UDP"))
            if self._chance(0.5)
        ]
        addresses = rng.choice(([], [f"10.0.0.{number}"], [f"fd00::{number}"], [f"10.0.0.{number}", f"fd00::{number}"]))
        return {
            "kind": "Pod",
            "metadata": {"name": f"p{number}", "namespace": rng.choice(NAMESPACES), "labels": labels},
            "spec": {
                "nodeName": rng.choice((*NODES, "n3")),
                "hostNetwork": self._chance(0.15),
                "containers": [{"name": "c", "ports": ports}],
            },
            "status": {"phase": "Running", "podIPs": [{"ip": address} for address in addresses]},
        }

    # Policies of dialects

    def _policy(self, number: int) -> ClusterPolicy:
        tier = self._rng.choice((*Tier, Tier.NAMESPACE))
        namespace = self._rng.choice(NAMESPACES) if tier is Tier.NAMESPACE else ""
        subject = PodPeer(None if namespace else self._namespaces(), self._pods())
        directions = [self._rules(tier, number) if self._chance(0.6) else None for _ in range(2)]
        kind = self._rng.choice(KINDS[tier])
        priority = 0 if namespace else self._rng.randint(0, 3)
        loc = Loc("k8s.yaml", number + 1)
        return ClusterPolicy(kind, f"p{number}", namespace, tier, priority, subject, directions[0], directions[1], loc)

    def _rules(self, tier: Tier, policy: int) -> tuple[ClusterRule, ...]:
        return tuple(self._rule(tier, policy, number) for number in range(self._rng.randint(0, 3)))

    def _rule(self, tier: Tier, policy: int, number: int) -> ClusterRule:
        action = Action.ACCEPT if tier is Tier.NAMESPACE else self._rng.choice([*Action])
        anybody = tier is Tier.NAMESPACE and self._chance(0.2)
        peers = None if anybody else tuple(self._peer(tier) for _ in range(self._rng.randint(1, 2)))
        ports = None if self._chance(0.4) else tuple(self._port() for _ in range(self._rng.randint(1, 2)))
        loc = Loc("k8s.yaml", policy * 100 + number + 1)
        return ClusterRule(RuleId(next(self._rule_ids)), f"r{number}", action, peers, ports, loc)

    def _peer(self, tier: Tier) -> ClusterPeer:
        draw = self._rng.random()
        if draw < 0.25:
            network, excluded = self._rng.choice(NETWORKS)
            return NetworkPeer(ip_network(network), tuple(map(ip_network, excluded)))
        if draw < 0.4 and tier is not Tier.NAMESPACE:
            return NodePeer(self._selector("zone", "ab"))
        relative = tier is Tier.NAMESPACE and self._chance(0.4)
        return PodPeer(None if relative else self._namespaces(), self._pods())

    def _namespaces(self) -> LabelSelector:
        if self._chance(0.3):
            return self._selector("kubernetes.io/metadata.name", NAMESPACES)
        return self._selector("team", "ab")

    def _pods(self) -> LabelSelector:
        return self._selector("app", APPS) if self._chance(0.6) else self._selector("tier", "xy")

    def _selector(self, key: str, values: tuple[str, ...] | str) -> LabelSelector:
        if self._chance(0.3):
            return LabelSelector()
        operator = self._rng.choice([*Operator])
        wants = operator in (Operator.IN, Operator.NOT_IN)
        chosen = tuple(self._rng.sample([*values], self._rng.randint(1, 2))) if wants else ()
        return LabelSelector((Requirement(key, operator, chosen),))

    def _port(self) -> ClusterPort:
        protocol = self._rng.choice((6, 17, 132))
        draw = self._rng.random()
        if draw < 0.3:
            return ClusterPort(self._rng.choice((6, 17, None)), 0, 0, self._rng.choice(("http", "dns")))
        if draw < 0.45:
            return ClusterPort(protocol)
        first = self._rng.choice((53, 80, 3868, 8080))
        return ClusterPort(protocol, first, self._rng.choice((first, first, 8443)) if first < 8443 else first)

    # Native rules

    def _native_rule(self) -> Rule:
        number = next(self._rule_ids)
        ends = [self._native_peer(), self._native_peer()]
        ports = tuple(
            spec for text in self._rng.sample(("80", "8000-9000", "53/udp", "any"), 2) for spec in parse_port(text)
        )
        expires = NOW + timedelta(hours=self._rng.choice((-1, 1))) if self._chance(0.3) else None
        return Rule(RuleId(number), "native", f"r{number}", ends[0], ends[1], ports, Loc("a.yaml", number), expires)

    def _native_peer(self) -> Peer:
        draw = self._rng.random()
        if draw < 0.6:
            return Peer(workloads=(QualifiedName(f"native/{self._rng.choice(WORKLOADS)}"),))
        if draw < 0.7:
            return Peer(entities=(Entity.ANY,))
        if draw < 0.8:
            return Peer(entities=(Entity.WORLD,))
        return Peer(externals=(_external(*self._rng.choice(NETWORKS)).qualified,))


def _workload(name: str) -> Workload:
    match = {
        "front": Match(namespace=("shop",), labels=(("app", "web"),)),
        "back": Match(namespace=("*",), labels=(("app", "db"),)),
    }[name]
    return Workload("native", name, match, Mode.ENFORCE, Loc("a.yaml", 1))


def _workload_of(pod: ListedPod) -> str:
    """The native workload of a pod; empty: none."""
    if pod.host_network:
        return ""
    if pod.namespace == "shop" and pod.labels.get("app") == "web":
        return "native/front"
    return "native/back" if pod.labels.get("app") == "db" else ""


def _external(network: str, excluded: tuple[str, ...]) -> External:
    name = "net-" + "".join(one if one.isalnum() else "-" for one in "-".join((network, *excluded)))
    return External("native", name, (ip_network(network),), tuple(map(ip_network, excluded)), Loc("a.yaml", 1))
