"""`policy.networking.k8s.io/v1alpha2` and `v1beta1`: ClusterNetworkPolicy, which names its tier itself."""

from __future__ import annotations

from bulkhead.policy.cluster import Action, ClusterPolicy, ClusterPort
from bulkhead.policy.dialects.clusterwide import Grammar, read_admin_port, read_cluster_policy
from bulkhead.policy.dialects.objects import read_one_of
from bulkhead.policy.dialects.ports import PROTOCOLS, named_port, read_port_name, read_port_number, read_range
from bulkhead.policy.fields import Keys, read_mapping
from bulkhead.policy.findings import Findings
from bulkhead.policy.yaml_nodes import Mapping, Node

PROTOCOL_KEYS = {name.lower(): number for name, number in PROTOCOLS.items()}


def read_cluster_network_policy(node: Mapping, findings: Findings) -> ClusterPolicy | None:
    """The policy that the object says; None, with findings, when it is none."""
    return read_cluster_policy(node, GRAMMAR, findings)


def _read_protocol_match(node: Node, findings: Findings) -> ClusterPort | None:
    """An item of `protocols`: one protocol with its destination port, or the name of a port of any protocol."""
    one = read_one_of(node, "a protocol", (*PROTOCOL_KEYS, "destinationNamedPort"), findings)
    if one is None:
        return None
    key, value = one
    if key.text == "destinationNamedPort":
        name = read_port_name(value, "`destinationNamedPort`", findings)
        return named_port(None, name) if name else None
    fields = read_mapping(value, Keys(f"`{key.text}`", ("destinationPort",)), findings)
    if fields is None or "destinationPort" not in fields:
        return None
    return _read_destination(fields["destinationPort"], PROTOCOL_KEYS[key.text], findings)


def _read_destination(node: Node, protocol: int, findings: Findings) -> ClusterPort | None:
    one = read_one_of(node, "`destinationPort`", ("number", "range"), findings)
    if one is None:
        return None
    key, value = one
    if key.text == "range":
        return read_range(value, "`range`", findings, protocol=protocol)
    number = read_port_number(value, "`number`", findings)
    return ClusterPort(protocol, number, number) if number else None


GRAMMAR = Grammar(
    kind="ClusterNetworkPolicy",
    tier=None,
    has_priority=True,
    actions={action.value: action for action in Action},
    ports={"protocols": _read_protocol_match, "ports": read_admin_port},
    pods=Keys("`pods`", ("podSelector",), ("namespaceSelector",)),
    rules_max=25,
    items_max=25,
)
