"""`networking.k8s.io/v1` NetworkPolicy: what pods of one namespace let in and may reach.

Absent and empty differ: no `from` (or an empty one) is everybody, no `podSelector` of the policy is every pod, and a
direction without rules is closed once the policy is about that direction.
"""

from __future__ import annotations

from bulkhead.policy.cluster import (
    Action,
    ClusterPeer,
    ClusterPolicy,
    ClusterPort,
    ClusterRule,
    NetworkPeer,
    PodPeer,
    Tier,
)
from bulkhead.policy.dialects.objects import read_object
from bulkhead.policy.dialects.peers import peers_text, read_cidr
from bulkhead.policy.dialects.ports import (
    named_port,
    ports_text,
    read_port_name,
    read_port_number,
    read_protocol,
)
from bulkhead.policy.dialects.rules import UNNUMBERED
from bulkhead.policy.dialects.selectors import EVERYTHING, read_selector
from bulkhead.policy.fields import Keys, expect_items, read_mapping, read_word
from bulkhead.policy.findings import Findings
from bulkhead.policy.model import Network
from bulkhead.policy.scalars import meaning
from bulkhead.policy.yaml_nodes import Mapping, Node, Scalar

KIND = "NetworkPolicy"
SPEC = Keys("`spec`", (), ("podSelector", "policyTypes", "ingress", "egress"))
RULES = {
    "ingress": Keys("an ingress rule", (), ("from", "ports")),
    "egress": Keys("an egress rule", (), ("to", "ports")),
}
PEER = Keys("a peer", (), ("podSelector", "namespaceSelector", "ipBlock"))
IP_BLOCK = Keys("`ipBlock`", ("cidr",), ("except",))
PORT = Keys("a port", (), ("protocol", "port", "endPort"))
DIRECTIONS = {"Ingress": "ingress", "Egress": "egress"}

MAY_BE_NOTHING = frozenset({"podSelector", "ingress", "egress"})
"""Keys of the specification that authors leave without a value: absent and empty are the same, and open nothing."""


def read_network_policy(node: Mapping, findings: Findings) -> ClusterPolicy | None:
    """The policy that the object says; None, with findings, when it is none."""
    found = read_object(node, KIND, findings, namespaced=True)
    fields = read_mapping(found.spec, SPEC, findings) if found else None
    if found is None or fields is None:
        return None
    fields = {key: value for key, value in fields.items() if key not in MAY_BE_NOTHING or not _is_nothing(value)}
    pods = EVERYTHING
    if "podSelector" in fields:
        pods = read_selector(fields["podSelector"], "`podSelector`", findings) or EVERYTHING
    rules = {direction: _read_rules(fields.get(direction), direction, findings) for direction in RULES}
    about = _read_types(fields.get("policyTypes"), findings) or {"ingress", *(["egress"] if rules["egress"] else [])}
    return ClusterPolicy(
        kind=KIND,
        name=found.name.text,
        namespace=found.namespace,
        tier=Tier.NAMESPACE,
        priority=0,
        subject=PodPeer(None, pods),
        ingress=rules["ingress"] if "ingress" in about else None,
        egress=rules["egress"] if "egress" in about else None,
        loc=findings.loc(found.name),
        unheard=tuple(rule.loc for direction in RULES if direction not in about for rule in rules[direction]),
    )


def _is_nothing(node: Node) -> bool:
    return isinstance(node, Scalar) and node.plain and meaning(node.text) == "nothing"


def _read_types(node: Node | None, findings: Findings) -> set[str]:
    """The directions that are written; none when that is left to the rules."""
    items = expect_items(node, "`policyTypes`", findings) if node else None
    if items and len(items) > len(DIRECTIONS):
        findings.add("BH1204", items[-1], what="`policyTypes`", count=len(items), limit=len(DIRECTIONS))
    words = [read_word(item, "`policyTypes`", DIRECTIONS, findings) for item in items or ()]
    return {word for word in words if word}


def _read_rules(node: Node | None, direction: str, findings: Findings) -> tuple[ClusterRule, ...]:
    items = expect_items(node, f"`{direction}`", findings) if node else None
    rules = [_read_rule(item, direction, number, findings) for number, item in enumerate(items or (), start=1)]
    return tuple(rule for rule in rules if rule)


def _read_rule(node: Node, direction: str, number: int, findings: Findings) -> ClusterRule | None:
    fields = read_mapping(node, RULES[direction], findings)
    if fields is None:
        return None
    end = "from" if direction == "ingress" else "to"
    peers = _read_peers(fields.get(end), f"`{end}`", findings)
    ports = _read_ports(fields.get("ports"), findings)
    return ClusterRule(
        rule_id=UNNUMBERED,
        name=f"{direction}-{number}",
        action=Action.ACCEPT,
        peers=peers,
        ports=ports,
        loc=findings.loc(node),
        peers_text=peers_text(peers),
        ports_text=ports_text(ports),
    )


def _read_peers(node: Node | None, what: str, findings: Findings) -> tuple[ClusterPeer, ...] | None:
    """None for everybody."""
    items = expect_items(node, what, findings) if node else None
    return tuple(peer for item in items if (peer := _read_peer(item, findings))) if items else None


def _read_peer(node: Node, findings: Findings) -> ClusterPeer | None:
    fields = read_mapping(node, PEER, findings)
    if fields is None or not isinstance(node, Mapping):
        return None
    if not fields:
        if not node.entries:
            choice = "`podSelector`, `namespaceSelector`, `ipBlock`"
            findings.add("BH1203", node, what="a peer", choice=choice, found="none")
        return None
    if "ipBlock" in fields:
        others = [key for key, _ in node.entries if key.text in ("podSelector", "namespaceSelector")]
        if others:
            findings.add("BH1203", others[0], what="a peer", choice="`ipBlock`, selectors", found="both")
        return _read_block(fields["ipBlock"], findings)
    return _read_pods(fields, findings)


def _read_pods(fields: dict[str, Node], findings: Findings) -> PodPeer | None:
    """Without a namespace selector, pods of the policy's namespace; without a pod selector, all pods there."""
    selectors = {key: read_selector(value, f"`{key}`", findings) for key, value in fields.items()}
    if None in selectors.values():
        return None
    return PodPeer(selectors.get("namespaceSelector"), selectors.get("podSelector") or EVERYTHING)


def _read_block(node: Node, findings: Findings) -> NetworkPeer | None:
    fields = read_mapping(node, IP_BLOCK, findings)
    if fields is None or "cidr" not in fields:
        return None
    network = read_cidr(fields["cidr"], findings)
    items = expect_items(fields["except"], "`except`", findings) if "except" in fields else None
    excluded = [_read_except(item, network, findings) for item in items or ()]
    return NetworkPeer(network, tuple(dict.fromkeys(each for each in excluded if each))) if network else None


def _read_except(node: Node, network: Network | None, findings: Findings) -> Network | None:
    """A prefix strictly within the block, as the API asks for."""
    excluded = read_cidr(node, findings)
    if excluded is None or network is None:
        return None
    if not _within(excluded, network):
        findings.add("BH1210", node, text=excluded, network=network)
        return None
    return excluded


def _within(inner: Network, outer: Network) -> bool:
    if inner.version != outer.version or inner.prefixlen <= outer.prefixlen:
        return False
    return int(outer.network_address) <= int(inner.network_address) <= int(outer.broadcast_address)


def _read_ports(node: Node | None, findings: Findings) -> tuple[ClusterPort, ...] | None:
    """None for every port of every protocol."""
    items = expect_items(node, "`ports`", findings) if node else None
    return tuple(port for item in items if (port := _read_port(item, findings))) if items else None


def _read_port(node: Node, findings: Findings) -> ClusterPort | None:
    fields = read_mapping(node, PORT, findings)
    protocol = read_protocol(fields, findings) if fields is not None else None
    if fields is None or protocol is None:
        return None
    port, end = fields.get("port"), fields.get("endPort")
    numeric = isinstance(port, Scalar) and port.plain and port.text.isdecimal()
    if end is not None and not numeric:
        findings.add("BH1211", end)
        return None
    if port is None:
        return ClusterPort(protocol)
    if not numeric:
        name = read_port_name(port, "`port`", findings)
        return named_port(protocol, name) if name else None
    return _read_numbers(protocol, port, end, findings)


def _read_numbers(protocol: int, port: Node, end: Node | None, findings: Findings) -> ClusterPort | None:
    first = read_port_number(port, "`port`", findings)
    last = read_port_number(end, "`endPort`", findings) if end is not None else first
    if first is None or last is None:
        return None
    if end is not None and last < first:
        findings.add("BH1209", end, what="`endPort`", last=last, comparison="less than", first=first)
        return None
    return ClusterPort(protocol, first, last)
