"""`spiffe` of a workload: the path of the SPIFFE ID that its SVIDs have, by the SPIFFE standard."""

from __future__ import annotations

import re
from typing import Final

from bulkhead.policy.fields import read_text
from bulkhead.policy.findings import Findings
from bulkhead.policy.yaml_nodes import Node

HOST: Final = "{host}"
"""Segment that stands for the name of the node that the workload runs on."""
TEMPLATE: Final = re.compile(r"(/([a-zA-Z0-9._-]+|\{host\}))+")
PATH_MAX: Final = 1024
"""Characters; a SPIFFE ID has at most 2048 bytes, and a node's name may have 253."""


def read_spiffe(node: Node, findings: Findings) -> str | None:
    """A path."""
    text = read_text(node, "`spiffe`", findings)
    if text is None:
        return None
    problem = _problem(text.text)
    if problem:
        findings.add("BH0345", text, hint="such as `/host/{host}/unit/nginx`", text=text.text, problem=problem)
        return None
    return text.text


def _problem(path: str) -> str:
    segments = path.split("/")[1:]
    if path.startswith("spiffe:"):
        return "the trust domain goes without saying"
    if not path.startswith("/") or "" in segments:
        return "it is made of segments, each behind a `/`"
    if "." in segments or ".." in segments:
        return "`.` and `..` are no segments"
    if len(path) > PATH_MAX or segments.count(HOST) > 1:
        return f"it has more than {PATH_MAX} characters, or {HOST} twice"
    if not TEMPLATE.fullmatch(path):
        return f"a segment is {HOST}, or letters, digits, `.`, `-` and `_`"
    return ""
