"""YAML text to nodes that know their place, for a reader that trusts nobody.

The nodes are built from the parser's events rather than by its composer: that refuses anchors, aliases, tags and depth
as they come up, before anything is expanded or recursed into, tells plain scalars from quoted ones, and is twice as
fast. Nothing is converted: a scalar stays the text that was written.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import yaml
from yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    StreamEndEvent,
)

from bulkhead.policy.findings import Findings

DEPTH_MAX = 32

Loader: type[yaml.SafeLoader | yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff]|\r(?!\n)"
)
"""Controls, line ends that are none to other tools, marks that turn the direction of text."""


class Spot(NamedTuple):
    """A place: line and column from 1; a column of 0 is the whole line."""

    line: int
    column: int
    width: int = 1


class Scalar(NamedTuple):
    """Text as written; `plain` when it carried no quotes."""

    text: str
    plain: bool
    line: int
    column: int
    width: int


class Sequence(NamedTuple):
    items: tuple[Node, ...]
    line: int
    column: int
    width: int


class Mapping(NamedTuple):
    """Entries in written order, keys unique."""

    entries: tuple[tuple[Scalar, Node], ...]
    line: int
    column: int
    width: int


class Broken(NamedTuple):
    """Stands where a finding was made already; readers pass over it in silence."""

    line: int
    column: int
    width: int


Node = Scalar | Sequence | Mapping | Broken


class Composition(NamedTuple):
    """The documents of one file; not `complete` when reading stopped early."""

    documents: tuple[Node, ...]
    complete: bool


def compose(content: bytes, findings: Findings) -> Composition:
    """The documents of a file. What is wrong goes into `findings`; nothing is raised for it."""
    text = _decode(content, findings)
    if text is None:
        return Composition((), complete=False)
    composer = _Composer(findings)
    loader = Loader(text)
    try:
        while (event := loader.get_event()) is not None and composer.take(event):
            pass
    except yaml.MarkedYAMLError as error:
        _report_syntax(error, findings)
        composer.complete = False
    finally:
        loader.dispose()
    return Composition(tuple(composer.documents), composer.complete)


def _decode(content: bytes, findings: Findings) -> str | None:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        findings.add("BH0102", _spot_at(content[: error.start].decode("utf-8", "replace")))
        return None
    unseen = _UNSEEN.search(text)
    if unseen is None:
        return text
    findings.add("BH0110", _spot_at(text[: unseen.start()]), character=f"U+{ord(unseen[0]):04X}")
    return None


def _spot_at(before: str) -> Spot:
    return Spot(before.count("\n") + 1, len(before) - before.rfind("\n"))


_SYNTAX = {
    "while scanning an alias": "BH0103",
    "while scanning an anchor": "BH0104",
    "while scanning a tag": "BH0105",
    "while parsing a tag": "BH0105",
    "while scanning a directive": "BH0105",
    "while scanning a %TAG directive": "BH0105",
    "while scanning a %YAML directive": "BH0105",
}

_HINTS = {
    "did not find expected node content": "an IPv6 prefix or other text that begins with `:` or `,` needs quotes",
    "found character that cannot start any token": "indent with spaces; text that begins like this needs quotes",
    "mapping values are not allowed in this context": "text with `: ` in it needs quotes; or the indentation is off",
    "did not find expected key": "the indentation is off, or a quote is missing",
    "found unexpected end of stream": "a quote is not closed",
}


def _report_syntax(error: yaml.MarkedYAMLError, findings: Findings) -> None:
    mark = error.problem_mark or error.context_mark
    spot = Spot(mark.line + 1, mark.column + 1) if mark else Spot(1, 0)
    number = _SYNTAX.get(error.context or "", "BH0101")
    problem = error.problem or "it ends too early"
    if number == "BH0101":
        begun = error.context_mark
        related = ((findings.loc(Spot(begun.line + 1, begun.column + 1)), error.context or ""),) if begun else ()
        findings.add(number, spot, hint=_HINTS.get(problem, ""), related=related, problem=problem)
    else:
        findings.add(number, Spot(spot.line, max(1, spot.column - 1)), hint="quote it")


class _Composer:
    """Takes events one by one. Keeps its own stack, so that depth is a number and not the interpreter's."""

    def __init__(self, findings: Findings) -> None:
        self.documents: list[Node] = []
        self.complete = True
        self._findings = findings
        self._children = self.documents
        """Of the innermost collection that has not ended; of a mapping, keys and values in turn."""
        self._stack: list[tuple[CollectionStartEvent, list[Node]]] = []
        """Collections that have begun, each with the children of the one around it."""

    def take(self, event: Event) -> bool:
        """Works one event in. False when there is no more to read."""
        if isinstance(event, ScalarEvent):
            self._children.append(self._scalar(event))
        elif isinstance(event, CollectionStartEvent):
            return self._begin(event)
        elif isinstance(event, CollectionEndEvent):
            self._end(event)
        elif isinstance(event, AliasEvent):
            self._children.append(self._broken(event, "BH0103"))
        elif isinstance(event, DocumentStartEvent) and (event.version or event.tags):
            self._broken(event, "BH0105")
        return not isinstance(event, StreamEndEvent)

    def _scalar(self, event: ScalarEvent) -> Scalar | Broken:
        if event.anchor is not None:
            return self._broken(event, "BH0104")
        if event.tag is not None:
            return self._broken(event, "BH0105")
        return Scalar(event.value, not event.style, *_extent(event, event))

    def _begin(self, event: CollectionStartEvent) -> bool:
        if len(self._stack) >= DEPTH_MAX:
            self._findings.add("BH0109", _spot(event), limit=DEPTH_MAX)
            self.complete = False
            return False
        if event.anchor is not None:
            self._broken(event, "BH0104")
        if event.tag is not None:
            self._broken(event, "BH0105")
        self._stack.append((event, self._children))
        self._children = []
        return True

    def _end(self, event: CollectionEndEvent) -> None:
        start, outer = self._stack.pop()
        place = _extent(start, event)
        if isinstance(start, MappingStartEvent):
            outer.append(Mapping(self._entries(self._children), *place))
        else:
            outer.append(Sequence(tuple(self._children), *place))
        self._children = outer

    def _entries(self, children: list[Node]) -> tuple[tuple[Scalar, Node], ...]:
        entries: dict[str, tuple[Scalar, Node]] = {}
        for key, value in zip(children[::2], children[1::2], strict=True):
            if isinstance(key, Broken):
                continue
            if not isinstance(key, Scalar):
                self._findings.add("BH0108", key)
            elif key.text == "<<" and key.plain:
                self._findings.add("BH0106", key, hint="write the keys out")
            elif key.text in entries:
                first = self._findings.loc(entries[key.text][0])
                self._findings.add("BH0107", key, related=((first, "first written here"),), key=key.text)
            else:
                entries[key.text] = (key, value)
        return tuple(entries.values())

    def _broken(self, event: NodeEvent | DocumentStartEvent, number: str) -> Broken:
        hint = "write it out, or quote it if it is text" if number == "BH0103" else ""
        spot = _spot(event)
        self._findings.add(number, spot, hint=hint)
        return Broken(*spot)


def _spot(event: Event) -> Spot:
    return Spot(*_extent(event, event))


def _extent(first: Event, last: Event) -> tuple[int, int, int]:
    """Line and column at which `first` begins, and the width up to the end of `last` if that is on the same line."""
    start, end = first.start_mark, last.end_mark
    if start is None or end is None:
        raise ValueError("the parser was told to keep no marks")
    line, column = start.line, start.column
    width = end.column - column if end.line == line else 1
    return line + 1, column + 1, width or 1
