"""Which dialect a document is written in, and the lists that `kubectl get -o yaml` prints."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from bulkhead.policy.cluster import ClusterPolicy
from bulkhead.policy.dialects.adminnetworkpolicy import read_admin_network_policy, read_baseline_admin_network_policy
from bulkhead.policy.dialects.clusternetworkpolicy import read_cluster_network_policy
from bulkhead.policy.dialects.istio_authorization import read_authorization_policy
from bulkhead.policy.dialects.istio_peer import read_peer_authentication
from bulkhead.policy.dialects.networkpolicy import read_network_policy
from bulkhead.policy.fields import Keys, did_you_mean, expect_items, expect_mapping, read_mapping, read_text
from bulkhead.policy.findings import Findings
from bulkhead.policy.istio import IstioPolicy
from bulkhead.policy.yaml_nodes import Mapping, Node, Scalar

ForeignPolicy = ClusterPolicy | IstioPolicy
Reader = Callable[[Mapping, Findings], ForeignPolicy | None]

READERS: dict[tuple[str, str], Reader] = {
    ("networking.k8s.io/v1", "NetworkPolicy"): read_network_policy,
    ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy"): read_admin_network_policy,
    ("policy.networking.k8s.io/v1alpha1", "BaselineAdminNetworkPolicy"): read_baseline_admin_network_policy,
    ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"): read_cluster_network_policy,
    ("policy.networking.k8s.io/v1beta1", "ClusterNetworkPolicy"): read_cluster_network_policy,
    ("security.istio.io/v1beta1", "AuthorizationPolicy"): read_authorization_policy,
    ("security.istio.io/v1", "AuthorizationPolicy"): read_authorization_policy,
    ("security.istio.io/v1beta1", "PeerAuthentication"): read_peer_authentication,
    ("security.istio.io/v1", "PeerAuthentication"): read_peer_authentication,
}
"""What can be read, by `apiVersion` and `kind`."""

LIST_VERSION = "v1"
GROUPS = frozenset(version.partition("/")[0] for version, _ in READERS)
LIST = Keys("a list", ("items",), ("apiVersion", "kind", "metadata"))
LIST_METADATA = Keys("`metadata`", (), ("resourceVersion", "selfLink"))

VERSIONS_HINT = ", ".join(f"`{version}`" for version in dict.fromkeys(version for version, _ in READERS))
"""The versions, for a hint at a document of another."""


class Head(NamedTuple):
    """What a document says it is."""

    version: Scalar
    kind: Scalar


def head_of(node: Node) -> Head | None:
    """What a document is that has to be read here, be it only to say what is wrong with it; None for others."""
    if not isinstance(node, Mapping):
        return None
    head = {key.text: value for key, value in node.entries if key.text in ("apiVersion", "kind")}
    version, kind = head.get("apiVersion"), head.get("kind")
    if not isinstance(version, Scalar) or not isinstance(kind, Scalar):
        return None
    known = version.text == LIST_VERSION or version.text.partition("/")[0] in GROUPS
    return Head(version, kind) if known else None


def read_documents(node: Node, head: Head, findings: Findings) -> tuple[ForeignPolicy, ...]:
    """The policies of one document: one, or those of a list."""
    if not isinstance(node, Mapping):
        return ()
    version, kind = head
    reader = READERS.get((version.text, kind.text))
    if reader is not None:
        policy = reader(node, findings)
        return (policy,) if policy else ()
    if (version.text, kind.text) == (LIST_VERSION, "List"):
        return _read_list(node, None, findings)
    listed = (version.text, kind.text.removesuffix("List"))
    if kind.text.endswith("List") and listed in READERS:
        return _read_list(node, listed, findings)
    _report_kind(version, kind, findings)
    return ()


def _read_list(node: Mapping, listed: tuple[str, str] | None, findings: Findings) -> tuple[ForeignPolicy, ...]:
    """The items; those of a typed list may leave out what they are."""
    fields = read_mapping(node, LIST, findings) or {}
    if "metadata" in fields:
        read_mapping(fields["metadata"], LIST_METADATA, findings)
    items = expect_items(fields["items"], "`items`", findings) or () if "items" in fields else ()
    policies = [_read_item(item, listed, findings) for item in items]
    return tuple(policy for policy in policies if policy)


def _read_item(node: Node, listed: tuple[str, str] | None, findings: Findings) -> ForeignPolicy | None:
    item = expect_mapping(node, "an item", findings)
    if item is None:
        return None
    head = {key.text: value for key, value in item.entries if key.text in ("apiVersion", "kind")}
    if listed and not head:
        return READERS[listed](item, findings)
    for key in ("apiVersion", "kind"):
        if key not in head:
            findings.add("BH0206", item, what="an item", key=key)
    texts = [read_text(head[key], f"`{key}`", findings) for key in ("apiVersion", "kind") if key in head]
    if len(texts) < 2 or texts[0] is None or texts[1] is None:
        return None
    reader = READERS.get((texts[0].text, texts[1].text))
    if reader is None or (listed and listed != (texts[0].text, texts[1].text)):
        _report_kind(texts[0], texts[1], findings)
        return None
    return reader(item, findings)


def _report_kind(version: Scalar, kind: Scalar, findings: Findings) -> None:
    """At the version, where the kind exists in another; else at the kind."""
    versions = [known for known, name in READERS if name == kind.text]
    if versions:
        hint = f"write `{versions[-1]}`" if version.text not in versions else ""
        findings.add("BH1201", version, hint=hint, kind=kind.text, version=version.text)
        return
    kinds = dict.fromkeys(name for _, name in READERS)
    hint = did_you_mean(kind.text, kinds, findings) or "one of " + ", ".join(f"`{name}`" for name in kinds)
    findings.add("BH1201", kind, hint=hint, kind=kind.text, version=version.text)
