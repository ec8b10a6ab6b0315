"""What the policies of a whole cluster have in common: a subject, and rules in order with an action each.

The three dialects differ in words and limits, which a Grammar holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bulkhead.policy.cluster import (
    Action,
    ClusterPeer,
    ClusterPolicy,
    ClusterPort,
    ClusterRule,
    LabelSelector,
    NetworkPeer,
    NodePeer,
    PodPeer,
    Tier,
)
from bulkhead.policy.dialects.objects import Object, read_items, read_number, read_object, read_one_of
from bulkhead.policy.dialects.peers import peers_text, read_cidr
from bulkhead.policy.dialects.ports import (
    named_port,
    ports_text,
    read_port_name,
    read_port_number,
    read_protocol,
    read_range,
)
from bulkhead.policy.dialects.rules import UNNUMBERED
from bulkhead.policy.dialects.selectors import EVERYTHING, read_selector
from bulkhead.policy.dialects.texts import read_plain
from bulkhead.policy.fields import Keys, expect_items, read_mapping, read_word
from bulkhead.policy.findings import Findings
from bulkhead.policy.yaml_nodes import Mapping as MappingNode
from bulkhead.policy.yaml_nodes import Node, Scalar

PRIORITY_MAX = 1000
NETWORKS_MAX = 25
RULE_NAME_MAX = 100

PEERS = {
    "ingress": ("namespaces", "pods"),
    "egress": ("namespaces", "pods", "nodes", "networks", "domainNames"),
}
SELECTORS = ("namespaceSelector", "podSelector")

ReadPort = Callable[[Node, Findings], ClusterPort | None]


@dataclass(frozen=True, slots=True)
class Grammar:
    """The words and limits of one dialect."""

    kind: str
    tier: Tier | None
    """None: `spec.tier` says it."""
    has_priority: bool
    actions: Mapping[str, Action]
    ports: Mapping[str, ReadPort]
    """Keys under which a rule lists ports, of which it takes one, each with the reader of an item."""
    pods: Keys
    rules_max: int
    """Rules of one direction."""
    items_max: int
    """Peers, and ports, of one rule."""
    only_name: str = ""
    """The one name that an object of the kind may have; empty: any."""

    @property
    def spec(self) -> Keys:
        tier = () if self.tier is not None else ("tier",)
        priority = ("priority",) if self.has_priority else ()
        return Keys("`spec`", (*tier, *priority, "subject"), ("ingress", "egress"))

    def rule(self, direction: str) -> Keys:
        """The keys of a rule."""
        return Keys(f"an {direction} rule", ("action", _end(direction)), ("name", *self.ports))


TIERS = {"Admin": Tier.ADMIN, "Baseline": Tier.BASELINE}


def _end(direction: str) -> str:
    return "from" if direction == "ingress" else "to"


def read_cluster_policy(node: MappingNode, grammar: Grammar, findings: Findings) -> ClusterPolicy | None:
    """The policy that the object says; None, with findings, when it is none."""
    found = read_object(node, grammar.kind, findings, namespaced=False)
    fields = read_mapping(found.spec, grammar.spec, findings) if found else None
    if found is None or fields is None:
        return None
    if grammar.only_name and found.name.text != grammar.only_name:
        hint = f"write `{grammar.only_name}`"
        findings.add("BH1212", found.name, hint=hint, kind=grammar.kind, name=grammar.only_name, text=found.name.text)
    return _read_spec(found, fields, grammar, findings)


def _read_spec(found: Object, fields: dict[str, Node], grammar: Grammar, findings: Findings) -> ClusterPolicy | None:
    tier, priority = grammar.tier, 0 if not grammar.has_priority else None
    if "tier" in fields:
        tier = read_word(fields["tier"], "`tier`", TIERS, findings)
    if "priority" in fields:
        priority = read_number(fields["priority"], "`priority`", 0, PRIORITY_MAX, findings)
    subject = _read_subject(fields["subject"], grammar, findings) if "subject" in fields else None
    ingress = _read_rules(fields.get("ingress"), "ingress", grammar, findings)
    egress = _read_rules(fields.get("egress"), "egress", grammar, findings)
    if tier is None or priority is None or subject is None:
        return None
    return ClusterPolicy(
        kind=grammar.kind,
        name=found.name.text,
        namespace="",
        tier=tier,
        priority=priority,
        subject=subject,
        ingress=ingress,
        egress=egress,
        loc=findings.loc(found.name),
    )


def _read_subject(node: Node, grammar: Grammar, findings: Findings) -> PodPeer | None:
    one = read_one_of(node, "`subject`", ("namespaces", "pods"), findings)
    return _read_pods(*one, grammar, findings) if one else None


def _read_pods(key: Scalar, node: Node, grammar: Grammar, findings: Findings) -> PodPeer | None:
    """All pods of namespaces, or pods in namespaces."""
    if key.text == "namespaces":
        namespaces = read_selector(node, "`namespaces`", findings)
        return PodPeer(namespaces, EVERYTHING) if namespaces else None
    fields = read_mapping(node, grammar.pods, findings)
    if fields is None:
        return None
    selectors: dict[str, LabelSelector | None] = dict.fromkeys(SELECTORS, EVERYTHING)
    selectors |= {name: read_selector(value, f"`{name}`", findings) for name, value in fields.items()}
    within, pods = (selectors[name] for name in SELECTORS)
    return PodPeer(within, pods) if within and pods else None


# --- rules


def _read_rules(
    node: Node | None, direction: str, grammar: Grammar, findings: Findings
) -> tuple[ClusterRule, ...] | None:
    """None without rules, absent or empty: the policy then says nothing about that direction."""
    items = expect_items(node, f"`{direction}`", findings) if node else None
    if not items:
        return None
    if len(items) > grammar.rules_max:
        spot = items[grammar.rules_max]
        findings.add("BH1204", spot, what=f"`{direction}`", count=len(items), limit=grammar.rules_max)
        return None
    rules = [_read_rule(item, direction, number, grammar, findings) for number, item in enumerate(items, start=1)]
    return tuple(rule for rule in rules if rule)


def _read_rule(node: Node, direction: str, number: int, grammar: Grammar, findings: Findings) -> ClusterRule | None:
    fields = read_mapping(node, grammar.rule(direction), findings)
    if fields is None:
        return None
    name = _read_rule_name(fields["name"], findings) if "name" in fields else f"{direction}-{number}"
    action = read_word(fields["action"], "`action`", dict(grammar.actions), findings) if "action" in fields else None
    peers = _read_peers(fields, direction, grammar, findings)
    ports = _read_ports(fields, peers, grammar, findings)
    if name is None or action is None:
        return None
    return ClusterRule(
        rule_id=UNNUMBERED,
        name=name,
        action=action,
        peers=peers,
        ports=ports,
        loc=findings.loc(node),
        peers_text=peers_text(peers),
        ports_text=ports_text(ports),
    )


def _read_rule_name(node: Node, findings: Findings) -> str | None:
    text = read_plain(node, "`name`", findings)
    if text and len(text.text) > RULE_NAME_MAX:
        findings.add("BH1213", text, count=len(text.text), limit=RULE_NAME_MAX)
        return None
    return text.text if text else None


# --- peers


def _read_peers(
    fields: dict[str, Node], direction: str, grammar: Grammar, findings: Findings
) -> tuple[ClusterPeer, ...]:
    end = _end(direction)
    items = read_items(fields[end], f"`{end}`", grammar.items_max, findings) if end in fields else ()
    return tuple(peer for item in items for peer in _read_peer(item, direction, grammar, findings))


def _read_peer(node: Node, direction: str, grammar: Grammar, findings: Findings) -> tuple[ClusterPeer, ...]:
    one = read_one_of(node, "a peer", PEERS[direction], findings)
    if one is None:
        return ()
    key, value = one
    if key.text == "domainNames":
        findings.add("BH1214", key, hint="list their prefixes under `networks`", key=key.text)
        return ()
    if key.text == "networks":
        networks = [read_cidr(item, findings) for item in read_items(value, "`networks`", NETWORKS_MAX, findings)]
        return tuple(NetworkPeer(network) for network in dict.fromkeys(networks) if network)
    if key.text == "nodes":
        nodes = read_selector(value, "`nodes`", findings)
        return (NodePeer(nodes),) if nodes else ()
    pods = _read_pods(key, value, grammar, findings)
    return (pods,) if pods else ()


# --- ports


def _read_ports(
    fields: dict[str, Node], peers: tuple[ClusterPeer, ...], grammar: Grammar, findings: Findings
) -> tuple[ClusterPort, ...] | None:
    """None for every port of every protocol."""
    written = [key for key in grammar.ports if key in fields]
    if not written:
        return None
    if len(written) > 1:
        choice = ", ".join(f"`{key}`" for key in grammar.ports)
        findings.add("BH1203", fields[written[1]], what="a rule", choice=choice, found=len(written))
        return ()
    key = written[0]
    ports = []
    for item in read_items(fields[key], f"`{key}`", grammar.items_max, findings):
        port = grammar.ports[key](item, findings)
        if port and port.name and not all(isinstance(peer, PodPeer) for peer in peers):
            findings.add("BH1215", item, name=port.name)
        ports.extend([port] if port else [])
    return tuple(ports)


def read_admin_port(node: Node, findings: Findings) -> ClusterPort | None:
    """An item of `ports`: a number or range of one protocol, or a name."""
    one = read_one_of(node, "a port", ("portNumber", "portRange", "namedPort"), findings)
    if one is None:
        return None
    key, value = one
    if key.text == "namedPort":
        name = read_port_name(value, "`namedPort`", findings)
        return named_port(None, name) if name else None
    if key.text == "portRange":
        return read_range(value, "`portRange`", findings)
    fields = read_mapping(value, Keys("`portNumber`", ("port",), ("protocol",)), findings)
    if fields is None or "port" not in fields:
        return None
    protocol = read_protocol(fields, findings)
    number = read_port_number(fields["port"], "`port`", findings)
    return ClusterPort(protocol, number, number) if protocol and number else None
