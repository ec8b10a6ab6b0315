"""Label selectors, written alike in every dialect: empty selects everything, absence is the reader's to interpret."""

from __future__ import annotations

import re

from bulkhead.policy.cluster import LabelSelector, Operator, Requirement
from bulkhead.policy.dialects.texts import read_plain
from bulkhead.policy.fields import Keys, expect_items, expect_mapping, read_mapping, read_word
from bulkhead.policy.findings import Findings
from bulkhead.policy.yaml_nodes import Node, Scalar

REQUIREMENT = Keys("a requirement", ("key", "operator"), ("values",))
OPERATORS = {operator.value: operator for operator in Operator}
VALUED = frozenset({Operator.IN, Operator.NOT_IN})
"""Operators that hold a label against values; the others take none."""

PREFIX_MAX = 253
VALUES_SHOWN = 3

_WORD = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_PREFIX = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*")

EVERYTHING = LabelSelector()


def read_selector(node: Node, what: str, findings: Findings) -> LabelSelector | None:
    """A label selector."""
    before = findings.count
    fields = read_mapping(node, Keys(what, (), ("matchLabels", "matchExpressions")), findings)
    if fields is None:
        return None
    requirements: list[Requirement | None] = []
    if "matchLabels" in fields:
        requirements += _read_labels(fields["matchLabels"], findings)
    if "matchExpressions" in fields:
        items = expect_items(fields["matchExpressions"], "`matchExpressions`", findings) or ()
        requirements += [_read_requirement(item, findings) for item in items]
    sound = tuple(each for each in requirements if each)
    return LabelSelector(sound) if findings.count == before and len(sound) == len(requirements) else None


def _read_labels(node: Node, findings: Findings) -> list[Requirement | None]:
    mapping = expect_mapping(node, "`matchLabels`", findings)
    requirements: list[Requirement | None] = []
    for key, value in mapping.entries if mapping else ():
        label, text = _read_key(key, findings), _read_value(value, findings)
        requirements.append(None if label is None or text is None else Requirement(label, Operator.IN, (text,)))
    return requirements


def _read_requirement(node: Node, findings: Findings) -> Requirement | None:
    fields = read_mapping(node, REQUIREMENT, findings)
    if fields is None or not {"key", "operator"} <= fields.keys():
        return None
    key = _read_key(fields["key"], findings)
    operator = read_word(fields["operator"], "`operator`", OPERATORS, findings)
    values = _read_values(fields.get("values"), findings)
    if key is None or operator is None or values is None:
        return None
    if bool(values) is not (operator in VALUED):
        problem = "needs at least one value" if operator in VALUED else "takes no values"
        findings.add("BH1207", fields.get("values", fields["operator"]), operator=operator, problem=problem)
        return None
    return Requirement(key, operator, values)


def _read_values(node: Node | None, findings: Findings) -> tuple[str, ...] | None:
    if node is None:
        return ()
    items = expect_items(node, "`values`", findings)
    if items is None:
        return None
    values = [_read_value(item, findings) for item in items]
    sound = tuple(dict.fromkeys(value for value in values if value is not None))
    return None if None in values else sound


def _read_key(node: Node, findings: Findings) -> str | None:
    text = read_plain(node, "a label", findings)
    if text is None:
        return None
    prefix, slash, name = text.text.rpartition("/")
    prefixed = not slash or (len(prefix) <= PREFIX_MAX and _PREFIX.fullmatch(prefix))
    if not prefixed or not _WORD.fullmatch(name):
        findings.add("BH1206", text, what="key", text=text.text)
        return None
    return text.text


def _read_value(node: Node, findings: Findings) -> str | None:
    """The value of a label, which may be empty where that is written out."""
    if isinstance(node, Scalar) and not node.plain and not node.text:
        return ""
    text = read_plain(node, "the value of a label", findings)
    if text and not _WORD.fullmatch(text.text):
        findings.add("BH1206", text, what="value", text=text.text)
        return None
    return text.text if text else None


def selector_text(selector: LabelSelector, most: int = VALUES_SHOWN) -> str:
    """A selector in a few words, as `kubectl --selector` writes it; empty when it selects everything.

    `most` are the values of one requirement that are written out.
    """
    return ",".join(_requirement_text(each, most) for each in selector.requirements)


def _requirement_text(requirement: Requirement, most: int) -> str:
    key = requirement.key
    if requirement.operator is Operator.EXISTS:
        return key
    if requirement.operator is Operator.DOES_NOT_EXIST:
        return f"!{key}"
    shown = ", ".join(requirement.values[:most])
    rest = len(requirement.values) - most
    more = f", {rest} more" if rest > 0 else ""
    if len(requirement.values) == 1:
        return f"{key}={shown}" if requirement.operator is Operator.IN else f"{key}!={shown}"
    return f"{key} {'in' if requirement.operator is Operator.IN else 'notin'} ({shown}{more})"
