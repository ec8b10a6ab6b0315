"""Selectors of workloads: processes of hosts, or pods of a cluster, and nothing of both."""

from __future__ import annotations

import re
from collections.abc import Collection

from bulkhead.policy.fields import Keys, expect_items, expect_mapping, read_mapping, read_text, read_written
from bulkhead.policy.findings import Findings
from bulkhead.policy.glob import can_end_in, has_wildcard
from bulkhead.policy.model import Match, Scope
from bulkhead.policy.scalars import DECIMAL
from bulkhead.policy.yaml_nodes import Node, Scalar, Sequence

UID_MAX = 4294967294
UNIT_SUFFIXES = (".service", ".scope", ".socket", ".mount", ".swap")

_USER = re.compile(r"[A-Za-z_][-A-Za-z0-9_.]{0,254}\$?")
_HOST = re.compile(r"[A-Za-z0-9._*?-]{1,253}")
_POD_PATTERNS = {
    "namespace": re.compile(r"[-a-z0-9*?]{1,63}"),
    "serviceAccount": re.compile(r"[-a-z0-9.*?]{1,253}"),
}
_POD_LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_POD_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")

OF_PODS = ("namespace", "serviceAccount", "labels")
MATCH = Keys("`match`", (), ("host", "unit", "cgroup", "exe", "user", "group", "all", *OF_PODS))


def read_match(node: Node, scope: Scope | None, findings: Findings) -> Match | None:
    """The selector of a workload in a policy of that scope. With a namespace of its own, the scope gives it to all."""
    mapping = expect_mapping(node, "`match`", findings, empty=False)
    if mapping is None:
        return None
    before = findings.count
    fields = read_mapping(mapping, MATCH, findings) or {}
    keys = {key.text: key for key, _ in mapping.entries if key.text in fields}
    pods, others = ([key for key in keys.values() if (key.text in OF_PODS) is of_pods] for of_pods in (True, False))
    if pods and others:
        first, second = sorted((pods[0], others[0]), key=lambda key: (key.line, key.column))
        findings.add(
            "BH0210", second, hint="a workload is processes of hosts, or pods", key=second.text, other=first.text
        )
    elif others and scope is not None:
        namespace = scope.namespace or '"*"'
        hint = f"write `namespace: {namespace}`" if others[0].text == "all" else ""
        findings.add("BH0508", others[0], hint=hint, key=others[0].text)
    match = _read_pods(fields, pods[0], scope, findings) if pods else _read_processes(fields, findings)
    return match if findings.count == before else None


def _read_processes(fields: dict[str, Node], findings: Findings) -> Match:
    """A selector of processes. One of `host` alone selects everything there, as `all: true` does."""
    patterns = {key: _patterns(key, value, findings) for key, value in fields.items() if key not in ("all", *OF_PODS)}
    everything = "all" in fields and _read_all(fields["all"], patterns.keys(), findings)
    written = {key: value for key, value in patterns.items() if value}
    return Match(
        host=written.get("host", ()),
        cgroup=written.get("cgroup", ()),
        unit=written.get("unit", ()),
        exe=written.get("exe", ()),
        user=written.get("user", ()),
        group=written.get("group", ()),
        everything=everything or written.keys() == {"host"},
    )


def _read_pods(fields: dict[str, Node], first: Scalar, scope: Scope | None, findings: Findings) -> Match:
    """A selector of pods, of which `first` is a key."""
    namespace = _patterns("namespace", fields["namespace"], findings) if "namespace" in fields else None
    accounts = _patterns("serviceAccount", fields["serviceAccount"], findings) if "serviceAccount" in fields else None
    labels = read_pod_labels(fields["labels"], findings) if "labels" in fields else None
    own = (scope.namespace,) if scope and scope.namespace else ()
    if "namespace" not in fields and not own:
        hint = 'such as `namespace: shop`; `"*"` is every one'
        findings.add("BH0507", first, hint=hint)
    for text in namespace or ():
        if own and text not in own:
            findings.add("BH0506", fields["namespace"], hint="leave it out", text=text, namespace=own[0])
    return Match(
        namespace=own or namespace or (),
        service_account=accounts or (),
        labels=labels or (),
        cluster=scope.cluster if scope else "",
    )


def read_pod_labels(node: Node, findings: Findings) -> tuple[tuple[str, str], ...] | None:
    """Labels as Kubernetes has them, sorted by key; not empty."""
    mapping = expect_mapping(node, "`labels`", findings, empty=False)
    if mapping is None:
        return None
    pairs = []
    for key, value in mapping.entries:
        name = read_text(key, "a label", findings)
        if name is not None and not _POD_LABEL_KEY.fullmatch(name.text):
            findings.add("BH0311", name, text=name.text)
        text = _read_pod_label_value(value, findings)
        if name is not None and text is not None:
            pairs.append((name.text, text))
    return tuple(sorted(pairs))


def _read_pod_label_value(node: Node, findings: Findings) -> str | None:
    if isinstance(node, Scalar) and not node.plain and not node.text:
        return ""
    text = read_text(node, "a label", findings)
    if text is None:
        return None
    if not _POD_LABEL_VALUE.fullmatch(text.text):
        findings.add("BH0311", text, text=text.text)
        return None
    return text.text


def _read_all(node: Node, others: Collection[str], findings: Findings) -> bool:
    text = read_written(node, "`all`", findings)
    if text is None:
        return False
    if not (text.plain and text.text == "true"):
        findings.add("BH0312", text, hint="write `all: true` or leave it out", problem="its only value is `true`")
        return False
    if set(others) - {"host"}:
        findings.add("BH0312", text, hint="leave it out", problem="the other keys would say nothing")
        return False
    return True


def _patterns(key: str, node: Node, findings: Findings) -> tuple[str, ...] | None:
    """A text or a list of texts."""
    items = expect_items(node, f"`{key}`", findings, empty=False) if isinstance(node, Sequence) else (node,)
    if items is None:
        return None
    texts = [read_text(item, f"`{key}`", findings, number=key in ("user", "group")) for item in items]
    checked = [text.text for text in texts if text and _check_pattern(key, text, findings)]
    return tuple(dict.fromkeys(checked)) if len(checked) == len(items) else None


def _check_pattern(key: str, text: Scalar, findings: Findings) -> bool:
    if key in ("user", "group"):
        return _check_account(key, text, findings)
    if key in ("cgroup", "exe"):
        return _check_path(key, text, findings)
    if key in _POD_PATTERNS:
        return _check_pod_pattern(key, text, findings)
    return _check_host(text, findings) if key == "host" else _check_unit(text, findings)


def _check_account(key: str, text: Scalar, findings: Findings) -> bool:
    sound = int(text.text) <= UID_MAX if DECIMAL.fullmatch(text.text) else _USER.fullmatch(text.text) is not None
    if not sound:
        findings.add("BH0310", text, text=text.text, what=key)
    return sound


def _check_path(key: str, text: Scalar, findings: Findings) -> bool:
    path = text.text
    problem, hint = "", ""
    if not path.startswith("/"):
        problem, hint = "it is not absolute", f"write `/{path}`" if key == "cgroup" else ""
    elif key == "exe" and has_wildcard(path):
        problem, hint = "`exe` takes no globs", "list the executables"
    elif "**" in path:
        problem, hint = "`*` stays within a component", "a control group covers its whole subtree"
    elif path != "/" and path.endswith("/"):
        problem, hint = "it ends in `/`", f"write `{path.rstrip('/') or '/'}`"
    elif key == "exe" and path == "/":
        problem = "it is a directory"
    elif path != "/" and any(part in ("", ".", "..") for part in path.split("/")[1:]):
        problem = "it is not in its shortest form"
    if problem:
        findings.add("BH0309", text, hint=hint, text=path, problem=problem)
    return not problem


def _check_pod_pattern(key: str, text: Scalar, findings: Findings) -> bool:
    if not _POD_PATTERNS[key].fullmatch(text.text):
        what = "service account" if key == "serviceAccount" else key
        findings.add("BH0308", text, text=text.text, problem=f"no {what} has such a name")
        return False
    return True


def _check_host(text: Scalar, findings: Findings) -> bool:
    if not _HOST.fullmatch(text.text):
        findings.add("BH0308", text, text=text.text, problem="no host has such a name")
        return False
    return True


def _check_unit(text: Scalar, findings: Findings) -> bool:
    if "/" in text.text:
        findings.add("BH0308", text, hint="a path is a `cgroup`", text=text.text, problem="units have no `/`")
        return False
    if not any(can_end_in(text.text, suffix) for suffix in UNIT_SUFFIXES):
        hint = "" if text.text.endswith(".slice") else f"write `{text.text}.service`"
        problem = "units end in `.service`, `.scope`, `.socket`, `.mount` or `.swap`"
        findings.add("BH0308", text, hint=hint, text=text.text, problem=problem)
        return False
    return True
