"""A file as it was written: values with the comments and blank lines that stand with them.

No YAML reader keeps comments. But it says where every scalar begins and ends, and a `#` outside of all of them begins a
comment: nothing else between scalars can hold one. Only for text that `yaml_nodes.compose` has taken without a finding,
with `\n` for its line ends: anchors, tags and depth are not looked at again.

Where a comment belongs:
- behind something on its line: to that;
- on a line of its own: to what follows in the same collection, or to the collection's end when it is indented deeper
  than what stands around the collection;
- behind `key:` whose value is on the next lines: to the key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from yaml.events import (
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    ScalarEvent,
)

from bulkhead.policy.yaml_nodes import Loader


class Text(NamedTuple):
    """A scalar. `plain` when it carried no quotes."""

    text: str
    plain: bool


class Block(NamedTuple):
    """A scalar in lines of its own, after `|` or `>`."""

    style: str
    text: str
    lines: tuple[str, ...]
    """As written, without their indentation."""
    comment: str
    """Behind the `|`."""


class Item(NamedTuple):
    """One entry of a mapping, or one item of a list, whose `key` is None."""

    key: Text | None
    value: Value
    before: tuple[str, ...] = ()
    """Lines above it: comments, and empty ones."""
    beside: str = ""
    """The comment behind the key, when the value begins on a later line."""
    after: str = ""
    """The comment behind the value."""


class Group(NamedTuple):
    """A mapping or a list."""

    mapping: bool
    items: tuple[Item, ...]
    tail: tuple[str, ...]
    """Lines behind the last item."""


Value = Text | Block | Group


class Document(NamedTuple):
    """One document of a file: `source` is all of it, comments around it and `---` included."""

    source: str
    header: tuple[str, ...]
    root: Value
    comments: tuple[str, ...]
    """All of them, found without regard to what they belong to."""


def read_documents(text: str) -> list[Document]:
    """The documents of a file, in order."""
    parts = list(_documents(text))
    edges = [0, *(_edge(before, after) for before, after in pairwise(parts)), len(text)]
    return [_Reader(text, part, *edges[number : number + 2]).document() for number, part in enumerate(parts)]


def read_comments(text: str) -> list[str]:
    """All comments of a file, in order."""
    events = (event for part in _documents(text) for event in part)
    return [comment.text for comment in _comments(text, events, 0, len(text))]


def _documents(text: str) -> Iterator[list[Event]]:
    """The events of each document."""
    loader = Loader(text)
    part: list[Event] = []
    try:
        while (event := loader.get_event()) is not None:
            if isinstance(event, DocumentStartEvent):
                part = []
            part.append(event)
            if isinstance(event, DocumentEndEvent):
                yield part
    finally:
        loader.dispose()


def _edge(before: Sequence[Event], after: Sequence[Event]) -> int:
    """Where a document ends and the next begins: at its `---`, or else behind the `...` of the first."""
    begun = after[0]
    return _start(begun) if isinstance(begun, DocumentStartEvent) and begun.explicit else _end(before[-1])


def _start(event: Event) -> int:
    if event.start_mark is None:
        raise ValueError("the parser was told to keep no marks")
    return event.start_mark.index


def _end(event: Event) -> int:
    if event.end_mark is None:
        raise ValueError("the parser was told to keep no marks")
    return event.end_mark.index


class _Comment(NamedTuple):
    text: str
    start: int
    column: int
    alone: bool
    """Whether it has its line to itself."""
    of_block: bool = False
    """Whether it stands behind the `|` or `>` of a scalar with text, which then holds it."""

    @property
    def end(self) -> int:
        return self.start + len(self.text)


_HEADER = re.compile(r"[|>][-+0-9]*[ \t]*(#[^\n]*)?")


def _comments(text: str, events: Iterable[Event], first: int, last: int) -> Iterator[_Comment]:
    """The comments between two offsets that the events lie between."""
    position = first
    for event in events:
        if isinstance(event, ScalarEvent):
            yield from _comments_between(text, position, _start(event))
            header = _HEADER.match(text, _start(event)) if event.style in ("|", ">") else None
            if header and header[1]:
                yield _comment(text, header.start(1), header.end(1))._replace(of_block=bool(event.value.strip()))
            position = _end(event)
    yield from _comments_between(text, position, last)


def _comments_between(text: str, first: int, last: int) -> Iterator[_Comment]:
    while (start := text.find("#", first, last)) >= 0:
        end = text.find("\n", start)
        first = len(text) if end < 0 else end
        yield _comment(text, start, first)


def _comment(text: str, start: int, end: int) -> _Comment:
    line = text.rfind("\n", 0, start) + 1
    return _Comment(text[start:end].rstrip(), start, start - line, not text[line:start].strip())


class _Reader:
    """Reads one document. Comments are taken from a queue as what they belong to goes by."""

    def __init__(self, text: str, events: list[Event], first: int, last: int) -> None:
        self._text = text
        self._first = first
        self._last = last
        self._events = iter(events[1:-1])
        self._next = next(self._events)
        found = list(_comments(text, events, first, last))
        self._all = tuple(comment.text for comment in found)
        self._comments = [comment for comment in reversed(found) if not comment.of_block]
        self._position = first
        """The end of what was read last, a scalar, a closing bracket or a comment."""
        self._kept = 0
        """The end of the last scalar whose trailing blank lines are its own."""

    def document(self) -> Document:
        """The document, with all that belongs to it."""
        begun = _start(self._next)
        header = self._lines(self._take(begun), begun)
        root = self._value(-1)
        if isinstance(root, Group):
            root = root._replace(tail=root.tail + self._lines(self._take(self._last)))
        return Document(self._text[self._first : self._last], header, root, self._all)

    def _pop(self) -> Event:
        event = self._next
        # At the end of a document nothing is looked at any more.
        self._next = next(self._events, event)
        return event

    def _value(self, outer: int) -> Value:
        """The next node. `outer` is the column of the block collection around it, -1 where there is none."""
        event = self._pop()
        if isinstance(event, ScalarEvent):
            return self._scalar(event, outer)
        if isinstance(event, CollectionStartEvent):
            return self._group(event, outer)
        raise ValueError("the text holds what a policy may not")

    def _group(self, start: CollectionStartEvent, outer: int) -> Group:
        mapping = isinstance(start, MappingStartEvent)
        flow = bool(start.flow_style)
        if flow:
            self._position = _end(start)
        column = outer if flow or start.start_mark is None else start.start_mark.column
        items = []
        while not isinstance(self._next, CollectionEndEvent):
            items.append(self._item(mapping, column, flow))
        end = self._pop()
        if not flow:
            return Group(mapping, tuple(items), self._lines(self._take_deeper(outer)))
        tail = self._lines(self._take(_start(end)), flow=True)
        self._position = _end(end)
        return Group(mapping, tuple(items), tail)

    def _item(self, mapping: bool, column: int, flow: bool) -> Item:
        begun = _start(self._next)
        before = self._lines(self._take(begun), begun, flow=flow)
        if not mapping:
            return _emptied(Item(None, self._value(column), before, after=self._take_beside()))
        key = self._scalar(self._pop(), column)
        beside = self._take_beside() if self._is_ahead(_start(self._next)) else ""
        begun = _start(self._next)
        between = self._lines(self._take(begun))
        value = self._value(column)
        after = self._take_beside()
        if isinstance(value, Group) and value.items:
            return Item(_as_key(key), _with_first(value, between), before, beside, after)
        above = _joined(before, (beside, *between) if beside else between)
        return _emptied(Item(_as_key(key), value, above, after=after))

    def _scalar(self, event: Event, outer: int) -> Text | Block:
        if not isinstance(event, ScalarEvent):
            raise ValueError("a key is no scalar")
        self._position = _end(event)
        if event.style in ("|", ">"):
            if event.value.endswith("\n\n"):
                self._kept = self._position
            if event.value.strip():
                return _block(event, self._text[_start(event) : _end(event)], outer)
        return Text(event.value, not event.style)

    def _lines(self, comments: list[_Comment], begun: int | None = None, *, flow: bool = False) -> tuple[str, ...]:
        """Comments as lines, with an empty one where blank lines stand above one, or above what begins at `begun`."""
        lines = []
        for comment in comments:
            lines += (
                ["", comment.text] if comment.alone and not flow and self._is_apart(comment.start) else [comment.text]
            )
        if begun is not None and not flow and self._is_apart(begun):
            lines.append("")
        return tuple(lines)

    def _is_apart(self, offset: int) -> bool:
        """Whether the line above the one of `offset` is blank."""
        line = self._text.rfind("\n", 0, offset)
        if line <= max(self._first, self._kept - 1):
            return False
        return not self._text[self._text.rfind("\n", 0, line) + 1 : line].strip()

    def _is_ahead(self, offset: int) -> bool:
        return bool(self._comments) and self._comments[-1].start < offset

    def _take(self, offset: int) -> list[_Comment]:
        """The comments up to `offset`."""
        taken = []
        while self._is_ahead(offset):
            taken.append(self._comments.pop())
            self._position = taken[-1].end
        return taken

    def _take_beside(self) -> str:
        """The comment behind what was read last, on the same line and of the same collection."""
        if not self._comments or self._comments[-1].alone:
            return ""
        if self._text[self._position : self._comments[-1].start].strip(" \t,:"):
            return ""
        return self._take(self._comments[-1].end)[0].text

    def _take_deeper(self, outer: int) -> list[_Comment]:
        """The comments behind the last item that are indented deeper than `outer`."""
        taken = []
        while self._comments and self._comments[-1].alone and self._comments[-1].column > outer:
            comment = self._comments[-1]
            if self._text[self._position : comment.start].strip():
                break
            taken += self._take(comment.end)
        return taken


def _as_key(key: Text | Block) -> Text:
    return Text(key.text, plain=False) if isinstance(key, Block) else key


def _joined(lines: tuple[str, ...], more: tuple[str, ...]) -> tuple[str, ...]:
    """Lines and more lines, without a second empty one where they meet."""
    return lines + more[1:] if lines and more and lines[-1] == more[0] == "" else lines + more


def _emptied(item: Item) -> Item:
    """The item with comments between brackets that hold nothing else put above it."""
    if not isinstance(item.value, Group) or item.value.items:
        return item
    return item._replace(before=_joined(item.before, item.value.tail), value=item.value._replace(tail=()))


def _with_first(group: Group, before: tuple[str, ...]) -> Group:
    """The group with lines above its first item."""
    if not before:
        return group
    first = group.items[0]
    return group._replace(items=(first._replace(before=before + first.before), *group.items[1:]))


def _block(event: ScalarEvent, source: str, outer: int) -> Block:
    head, *lines = source.split("\n")
    header = _HEADER.match(head)
    comment = (header[1] or "").rstrip() if header else ""
    given = re.search(r"[1-9]", head.partition("#")[0])
    if given:
        indent = max(outer, 0) + int(given[0])
    else:
        indent = next(len(line) - len(line.lstrip(" ")) for line in lines if line.strip())
    own = [line[indent:] for line in lines]
    while own and not own[-1]:
        own.pop()
    return Block(head[0], event.value, tuple(own), comment)
