"""Text as Kubernetes' own tools write and read it."""

from __future__ import annotations

from bulkhead.policy.fields import read_text, read_written
from bulkhead.policy.findings import Findings
from bulkhead.policy.yaml_nodes import Node, Scalar

_LETTERS = frozenset("yYnN")
"""Booleans to YAML 1.1 alone. Kubernetes reads them as text, and common writers leave them unquoted."""


def read_plain(node: Node, what: str, findings: Findings) -> Scalar | None:
    """A scalar that is text to Kubernetes."""
    if isinstance(node, Scalar) and node.text in _LETTERS:
        return read_written(node, what, findings)
    return read_text(node, what, findings)
