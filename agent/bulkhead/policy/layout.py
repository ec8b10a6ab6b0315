"""How a document is laid out: what goes into one line, what each line begins with, where its comments go.

A mapping or a list is written in one line if it fits and no comment stands inside it. Otherwise each of its items has a
line of its own, or several by the same rule. Always in lines of their own are the items of a document, of a list that
holds mappings (rules), and of a mapping directly below the document that holds mappings (workloads).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from typing import Final

from bulkhead.policy.scalars import meaning
from bulkhead.policy.schema import Schema, schema
from bulkhead.policy.written import Block, Group, Item, Text, Value

WIDTH: Final = 120
"""Columns that a mapping or a list may reach in one line. Comments behind it do not count."""


def lay_out(header: tuple[str, ...], root: Group) -> list[str]:
    """The lines of a document of the language, comments before it included."""
    body = _lines(root, _document_shape(), 0, top=True)
    return [*_trimmed(header), *body] if body else [*header, "{}"]


class Shape:
    """What the schema says of a place: the order of keys, and the shapes below it, each made once."""

    def __init__(self, schemas: tuple[Schema, ...]) -> None:
        self._schemas = schemas
        self._orders = [one["properties"].keys() for one in schemas if "properties" in one]
        self._below: dict[str, Shape] = {}

    def of_key(self, key: str) -> Shape:
        """The shape of the value of a key."""
        if key not in self._below:
            found = [one.get("properties", {}).get(key, one.get("additionalProperties")) for one in self._schemas]
            self._below[key] = Shape(_all_alternatives(found))
        return self._below[key]

    @cached_property
    def of_items(self) -> Shape:
        """The shape of the items of a list."""
        return Shape(_all_alternatives(one.get("items") for one in self._schemas))

    def of_item(self, item: Item) -> Shape:
        """The shape of the value of an entry, or of an item of a list."""
        return self.of_key(item.key.text) if item.key else self.of_items

    def ordered(self, group: Group) -> tuple[Item, ...]:
        """The items, known keys in the order of the alternative that knows most of them, others behind them."""
        if not group.mapping or not self._orders:
            return group.items
        keys = {item.key.text for item in group.items if item.key}
        order = max(self._orders, key=lambda one: len(one & keys))
        rank = {key: place for place, key in enumerate(order)}
        return tuple(sorted(group.items, key=lambda item: rank.get(item.key.text if item.key else "", len(rank))))


@lru_cache(maxsize=1)
def _document_shape() -> Shape:
    return Shape(_all_alternatives([_schema()]))


@lru_cache(maxsize=1)
def _schema() -> Schema:
    return schema()


def _alternatives(one: Schema) -> Iterator[Schema]:
    """A schema and those that it is put together from, references followed."""
    yield one
    if "$ref" in one:
        yield from _alternatives(_schema()["definitions"][one["$ref"].rpartition("/")[2]])
    for word in ("allOf", "anyOf", "oneOf"):
        for part in one.get(word, ()):
            yield from _alternatives(part)


def _all_alternatives(found: Iterable[object]) -> tuple[Schema, ...]:
    return tuple(deeper for one in found if isinstance(one, dict) for deeper in _alternatives(one))


def _lines(group: Group, shape: Shape, column: int, *, top: bool = False) -> list[str]:
    """A group with an item a line, to be indented by `column`."""
    lines: list[str] = []
    for item in shape.ordered(group):
        below = shape.of_item(item)
        settled = item if item.key else _hoisted(item, below)
        before = settled.before if lines else _trimmed(settled.before)
        lines += [*before, *_item(settled, below, column, top=top)]
    return [*lines, *(group.tail if lines else _trimmed(group.tail))]


def _trimmed(lines: tuple[str, ...]) -> tuple[str, ...]:
    """The lines without an empty one in front."""
    return lines[1:] if lines and not lines[0] else lines


def _hoisted(item: Item, shape: Shape) -> Item:
    """An item of a list with the comments above its first key put above its dash, where they are found again."""
    if not isinstance(item.value, Group) or not item.value.items:
        return item
    first, *rest = shape.ordered(item.value)
    if first.key is None:
        first = _hoisted(first, shape.of_items)
    value = item.value._replace(items=(first._replace(before=()), *rest))
    return item._replace(before=item.before + _trimmed(first.before), value=value)


def _item(item: Item, shape: Shape, column: int, *, top: bool) -> list[str]:
    lead = f"{_scalar(item.key)}:" if item.key else "-"
    if isinstance(item.value, Block):
        header, *rest = _block(item.value)
        return [*_above(item.beside), f"{lead} {header}", *_indented(rest), *_above(item.after)]
    inline = None if top and _holds_mappings(item.value) else _inline(item.value, shape)
    line = f"{lead} {inline}" if inline else lead
    if isinstance(item.value, Group) and item.value.items and (inline is None or column + len(line) > WIDTH):
        return _spread(item, item.value, lead, shape, column)
    above, behind = (item.beside, item.after) if item.after else ("", item.beside)
    return [*_above(above), _commented(line, behind)]


def _above(comment: str) -> list[str]:
    return [comment] if comment else []


def _commented(line: str, comment: str) -> str:
    return f"{line}  {comment}" if comment else line


def _spread(item: Item, group: Group, lead: str, shape: Shape, column: int) -> list[str]:
    """An item whose value takes lines of its own. A comment behind a closing bracket finds another place."""
    beside, after = item.beside, item.after
    if after and not beside and not _has_comments(group):
        beside, after = after, ""
    lines = [*_lines(group, shape, column + 2), *_above(after)]
    if item.key:
        return [_commented(lead, beside), *_indented(lines)]
    # A comment that found its place above the first of the lines cannot stand behind the dash.
    first = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return [*_above(beside), *lines[:first], f"- {lines[first]}", *_indented(lines[first + 1 :])]


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" if line else "" for line in lines]


def _inline(value: Value, shape: Shape) -> str | None:
    """A value in one line; None when it has to take several."""
    if isinstance(value, Text):
        return _scalar(value)
    if isinstance(value, Block) or _is_commented(value) or (not value.mapping and _holds_mappings(value)):
        return None
    parts = [_inline_item(item, shape) for item in shape.ordered(value)]
    if None in parts:
        return None
    text = ", ".join(part for part in parts if part is not None)
    return f"{{{text}}}" if value.mapping else f"[{text}]"


def _inline_item(item: Item, shape: Shape) -> str | None:
    value = _inline(item.value, shape.of_item(item))
    # An empty plain scalar can end a line, not stand in one.
    if not value:
        return None
    return f"{_scalar(item.key)}: {value}" if item.key else value


def _is_commented(group: Group) -> bool:
    """Whether a comment stands with any of its items."""
    return bool(group.tail) or any(any(item.before) or item.beside or item.after for item in group.items)


def _has_comments(value: Value) -> bool:
    if not isinstance(value, Group):
        return isinstance(value, Block) and bool(value.comment)
    return _is_commented(value) or any(_has_comments(item.value) for item in value.items)


def _holds_mappings(value: Value) -> bool:
    return isinstance(value, Group) and any(
        isinstance(item.value, Group) and item.value.mapping for item in value.items
    )


_PLAIN = re.compile(r"[\w/.(][^:#,\[\]{}]*")
"""Text that needs no quotes. Less than YAML would take: a `:` or a `#` within a word is read wrongly by people."""

_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t"}


def _scalar(text: Text) -> str:
    if meaning(text.text):
        return text.text if text.plain else _quoted(text.text)
    if _PLAIN.fullmatch(text.text) and text.text.isprintable() and not text.text.endswith(" "):
        return text.text
    return _quoted(text.text)


def _quoted(text: str) -> str:
    if text.isprintable() and "'" not in text and ('"' in text or "\\" in text):
        return f"'{text}'"
    return f'"{"".join(_ESCAPES.get(one) or (one if one.isprintable() else _escape(one)) for one in text)}"'


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _block(block: Block) -> list[str]:
    """The lines of a text block, the first with its `|` or `>`."""
    ends = len(block.text) - len(block.text.rstrip("\n"))
    indent = "2" if any(line[:1] in (" ", "\t") for line in _opening(block.lines)) else ""
    chomp = "-" if ends == 0 else "+" if ends > 1 else ""
    return [_commented(block.style + indent + chomp, block.comment), *block.lines, *[""] * (ends - 1)]


def _opening(lines: tuple[str, ...]) -> Iterator[str]:
    """The lines up to the first with text, by which a reader would measure the indentation."""
    for line in lines:
        yield line
        if line.strip():
            return
