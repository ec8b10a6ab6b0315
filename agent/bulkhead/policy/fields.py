"""Readers of single values: each takes a node, gives the value or records a finding and gives None.

A Broken node has been reported already and gives None in silence.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NamedTuple, TypeVar

from bulkhead.policy.codes import presentable
from bulkhead.policy.findings import Findings
from bulkhead.policy.scalars import DECIMAL, meaning
from bulkhead.policy.yaml_nodes import Broken, Mapping, Node, Scalar, Sequence, Spot

T = TypeVar("T")


class Keys(NamedTuple):
    """The keys of one kind of mapping."""

    what: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def known(self) -> tuple[str, ...]:
        return self.required + self.optional


def read_mapping(node: Node, keys: Keys, findings: Findings) -> dict[str, Node] | None:
    """The values of a mapping by key; unknown and missing keys are recorded, and the values that are there given."""
    mapping = expect_mapping(node, keys.what, findings)
    if mapping is None:
        return None
    known = keys.known()
    fields: dict[str, Node] = {}
    for key, value in mapping.entries:
        if key.text in known:
            fields[key.text] = value
        else:
            _report_unknown(key, keys, findings)
    for required in keys.required:
        if required not in fields:
            findings.add("BH0206", _opening(mapping), what=keys.what, key=required)
    return fields


def _opening(node: Mapping) -> Spot:
    """Where something is missing from a mapping: its first key, so that the caret stays short."""
    first = node.entries[0][0] if node.entries else node
    return Spot(first.line, first.column, first.width)


def _report_unknown(key: Scalar, keys: Keys, findings: Findings) -> None:
    findings.add("BH0205", key, hint=did_you_mean(key.text, keys.known(), findings), key=key.text, what=keys.what)


def did_you_mean(text: str, known: Iterable[str], findings: Findings) -> str:
    """A hint with the nearest known word, or an empty one."""
    close = [] if findings.full else difflib.get_close_matches(text[:64], known, n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else ""


def expect_mapping(node: Node, what: str, findings: Findings, *, empty: bool = True) -> Mapping | None:
    """The node, if it is a mapping; with `empty` false, one that has entries."""
    if not isinstance(node, Mapping):
        _report_type(node, what, "a mapping", findings)
        return None
    if not node.entries and not empty:
        findings.add("BH0209", node, what=what)
        return None
    return node


def expect_items(node: Node, what: str, findings: Findings, *, empty: bool = True) -> tuple[Node, ...] | None:
    """The items of a list; with `empty` false, of one that has any."""
    if not isinstance(node, Sequence):
        hint = f"write `[{presentable(node.text)}]`" if isinstance(node, Scalar) and node.text else ""
        _report_type(node, what, "a list", findings, hint)
        return None
    if not node.items and not empty:
        findings.add("BH0209", node, what=what)
        return None
    return node.items


def read_text(node: Node, what: str, findings: Findings, *, number: bool = False) -> Scalar | None:
    """A scalar that is text to every YAML reader; with `number`, also an unquoted decimal number."""
    if not isinstance(node, Scalar):
        _report_type(node, what, "text", findings)
        return None
    if node.plain and not (number and DECIMAL.fullmatch(node.text)):
        seen_as = meaning(node.text)
        if seen_as and not (seen_as == "nothing" and not node.text):
            findings.add("BH0111", node, hint=f'quote it: "{presentable(node.text)}"', text=node.text, meaning=seen_as)
            return None
    return _visible(node, what, findings)


def read_written(node: Node, what: str, findings: Findings) -> Scalar | None:
    """A scalar taken as written, quoted or not, for values whose text only one reader interprets: this one."""
    if not isinstance(node, Scalar):
        _report_type(node, what, "text", findings)
        return None
    return _visible(node, what, findings)


def read_words(node: Node, what: str, findings: Findings) -> str | None:
    """A line or more of prose."""
    if isinstance(node, Scalar) and "\n" in node.text:
        folded = node._replace(text=" ".join(node.text.split("\n")).strip())
        return read_words(folded, what, findings)
    text = read_text(node, what, findings)
    return text.text if text else None


def _visible(node: Scalar, what: str, findings: Findings) -> Scalar | None:
    if not node.text.strip():
        findings.add("BH0209", node, what=what)
        return None
    if not node.text.isprintable():
        odd = next(character for character in node.text if not character.isprintable())
        findings.add("BH0110", node, character=f"U+{ord(odd):04X}")
        return None
    return node


def read_word(node: Node, what: str, words: dict[str, T], findings: Findings) -> T | None:
    """One of a few words."""
    text = read_text(node, what, findings)
    if text is None:
        return None
    if text.text not in words:
        choice = ", ".join(f"`{word}`" for word in words)
        hint = did_you_mean(text.text, words, findings) or f"one of {choice}"
        findings.add("BH0306", text, hint=hint, text=text.text, what=what)
        return None
    return words[text.text]


def _report_type(node: Node, what: str, wanted: str, findings: Findings, hint: str = "") -> None:
    if isinstance(node, Broken):
        return
    findings.add("BH0207", node, hint=hint, what=what, wanted=wanted, found=_shape(node))


def _shape(node: Node) -> str:
    if isinstance(node, Mapping):
        return "a mapping"
    if isinstance(node, Sequence):
        return "a list"
    return "nothing" if isinstance(node, Scalar) and node.plain and not node.text else "text"
