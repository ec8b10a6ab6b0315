"""What every Kubernetes object has around its specification, and the shapes that all of them share."""

from __future__ import annotations

import re
from typing import NamedTuple

from bulkhead.policy.dialects.texts import read_plain
from bulkhead.policy.fields import Keys, expect_items, read_mapping, read_written
from bulkhead.policy.findings import Findings
from bulkhead.policy.scalars import DECIMAL
from bulkhead.policy.yaml_nodes import Mapping, Node, Scalar

DEFAULT_NAMESPACE = "default"
"""Of namespaced objects that name none."""

NAME_MAX = 253

_LABEL = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NAMESPACE = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")

CLUSTER_WRITES = (
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generation",
    "labels",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
)
"""Metadata that `kubectl get -o yaml` prints and that says nothing about traffic. Not looked into."""

METADATA = Keys("`metadata`", ("name",), ("namespace", *CLUSTER_WRITES))


class Object(NamedTuple):
    """An object's name and specification. `namespace` is empty for objects of the whole cluster."""

    name: Scalar
    namespace: str
    spec: Node


def read_object(node: Mapping, kind: str, findings: Findings, *, namespaced: bool) -> Object | None:
    """The object's parts. `status` belongs to the cluster, like most metadata, and is passed over."""
    keys = Keys(f"`kind: {kind}`", ("metadata", "spec"), ("apiVersion", "kind", "status"))
    fields = read_mapping(node, keys, findings) or {}
    about = read_mapping(fields["metadata"], METADATA, findings) if "metadata" in fields else None
    if about is None or "name" not in about:
        return None
    name = _read_name(about["name"], findings)
    namespace = DEFAULT_NAMESPACE if namespaced else ""
    if "namespace" in about and namespaced:
        namespace = _read_namespace(about["namespace"], findings)
    elif "namespace" in about:
        findings.add("BH1216", about["namespace"], kind=kind)
    if name is None or "spec" not in fields:
        return None
    return Object(name, namespace, fields["spec"])


def _read_name(node: Node, findings: Findings) -> Scalar | None:
    text = read_plain(node, "`name`", findings)
    if text and (len(text.text) > NAME_MAX or not _NAME.fullmatch(text.text)):
        findings.add("BH1202", text, what="a name", text=text.text)
        return None
    return text


def _read_namespace(node: Node, findings: Findings) -> str:
    text = read_plain(node, "`namespace`", findings)
    if text and not _NAMESPACE.fullmatch(text.text):
        findings.add("BH1202", text, what="the name of a namespace", text=text.text)
    return text.text if text else ""


def read_one_of(node: Node, what: str, choice: tuple[str, ...], findings: Findings) -> tuple[Scalar, Node] | None:
    """Key and value of a mapping that takes exactly one of a few keys."""
    fields = read_mapping(node, Keys(what, (), choice), findings)
    if fields is None or not isinstance(node, Mapping):
        return None
    known = [(key, value) for key, value in node.entries if key.text in fields]
    if len(known) == 1:
        return known[0]
    written = ", ".join(f"`{key}`" for key in choice)
    if known:
        findings.add("BH1203", known[1][0], what=what, choice=written, found=len(known))
    elif not node.entries:
        findings.add("BH1203", node, what=what, choice=written, found="none")
    return None


def read_items(node: Node, what: str, most: int, findings: Findings) -> tuple[Node, ...]:
    """The items of a list that must have one at least and `most` at most."""
    items = expect_items(node, what, findings, empty=False) or ()
    if len(items) > most:
        findings.add("BH1204", items[most], what=what, count=len(items), limit=most)
        return ()
    return items


def read_number(node: Node, what: str, low: int, high: int, findings: Findings) -> int | None:
    """A whole number within bounds, written without quotes as the API wants it."""
    text = read_written(node, what, findings)
    if text is None:
        return None
    decimal = DECIMAL.fullmatch(text.text) is not None and len(text.text) <= len(str(high))
    if decimal and text.plain and low <= int(text.text) <= high:
        return int(text.text)
    hint = "write it without quotes" if decimal and not text.plain else ""
    findings.add("BH1205", text, hint=hint, what=what, low=low, high=high, text=text.text)
    return None
