"""`policy.networking.k8s.io/v1alpha1`: AdminNetworkPolicy, and the one BaselineAdminNetworkPolicy of a cluster."""

from __future__ import annotations

from bulkhead.policy.cluster import Action, ClusterPolicy, Tier
from bulkhead.policy.dialects.clusterwide import SELECTORS, Grammar, read_admin_port, read_cluster_policy
from bulkhead.policy.fields import Keys
from bulkhead.policy.findings import Findings
from bulkhead.policy.yaml_nodes import Mapping

ADMIN = Grammar(
    kind="AdminNetworkPolicy",
    tier=Tier.ADMIN,
    has_priority=True,
    actions={"Allow": Action.ACCEPT, "Deny": Action.DENY, "Pass": Action.PASS},
    ports={"ports": read_admin_port},
    pods=Keys("`pods`", SELECTORS),
    rules_max=100,
    items_max=100,
)
BASELINE = Grammar(
    kind="BaselineAdminNetworkPolicy",
    tier=Tier.BASELINE,
    has_priority=False,
    actions={"Allow": Action.ACCEPT, "Deny": Action.DENY},
    ports={"ports": read_admin_port},
    pods=Keys("`pods`", SELECTORS),
    rules_max=100,
    items_max=100,
    only_name="default",
)


def read_admin_network_policy(node: Mapping, findings: Findings) -> ClusterPolicy | None:
    """The policy that the object says; None, with findings, when it is none."""
    return read_cluster_policy(node, ADMIN, findings)


def read_baseline_admin_network_policy(node: Mapping, findings: Findings) -> ClusterPolicy | None:
    """The policy that the object says; None, with findings, when it is none."""
    return read_cluster_policy(node, BASELINE, findings)
