"""What AuthorizationPolicy and PeerAuthentication have in common: the object around, and whom it selects."""

from __future__ import annotations

from typing import Final

from bulkhead.policy.fields import Keys, expect_mapping, read_mapping, read_word
from bulkhead.policy.findings import Findings
from bulkhead.policy.values import read_labels
from bulkhead.policy.yaml_nodes import Mapping, Node

Labels = tuple[tuple[str, str], ...]

SELECTOR = Keys("`selector`", (), ("matchLabels",))
DRY_RUN: Final = "istio.io/dry-run"


def read_selected(fields: dict[str, Node], findings: Findings) -> Labels:
    """The labels of the workloads that a specification selects; empty for all of them."""
    selector = read_mapping(fields["selector"], SELECTOR, findings) if "selector" in fields else None
    if not selector or "matchLabels" not in selector:
        return ()
    labels = expect_mapping(selector["matchLabels"], "`matchLabels`", findings)
    return read_labels(labels, "`matchLabels`", findings) or () if labels and labels.entries else ()


def reads_dry_run(document: Mapping, findings: Findings) -> bool:
    """Whether the annotations ask for a policy that changes no verdict."""
    node = _value(_value(_value(document, "metadata"), "annotations"), DRY_RUN)
    if node is None:
        return False
    return read_word(node, f"`{DRY_RUN}`", {"true": True, "false": False}, findings) or False


def _value(node: Node | None, key: str) -> Node | None:
    entries = node.entries if isinstance(node, Mapping) else ()
    return next((value for name, value in entries if name.text == key), None)


def key_of(node: Node, key: str) -> Node:
    """Where a key stands in a mapping that has it."""
    entries = node.entries if isinstance(node, Mapping) else ()
    return next((name for name, _ in entries if name.text == key), node)
