"""Documents of other people's making, such as what `kubectl` writes: YAML or JSON as plain mappings, lists and values.

Megabytes of them are read for a few fields each, so they carry no places. Nothing but text, numbers, truth values and
null is ever made, and what could make a small file large (aliases) or a deep one dangerous is refused.
"""

from __future__ import annotations

import json
import re
from typing import Final

import yaml
from yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentEndEvent,
    Event,
    MappingStartEvent,
    ScalarEvent,
    StreamEndEvent,
)

from bulkhead.errors import UsageError
from bulkhead.policy.yaml_nodes import Loader

DEPTH_MAX: Final = 64

Value = object
"""`dict[str, Value]`, `list[Value]`, `str`, `int`, `float`, `bool` or None."""

_WORDS: Final[dict[str, object]] = {"": None, "~": None, "null": None, "true": True, "false": False}
_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,18})")


def load_documents(content: bytes, path: str) -> list[Value]:
    """The documents of a file, empty ones left out. Raises UsageError, by place, for what cannot be read."""
    if content.lstrip()[:1] in (b"{", b"["):
        try:
            return [json.loads(content)]
        except (ValueError, RecursionError):
            pass  # a flow mapping of YAML begins like this too
    return _load_yaml(content, path)


def _load_yaml(content: bytes, path: str) -> list[Value]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: byte {error.start + 1} is not UTF-8") from error
    try:
        loader = Loader(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: it has characters that YAML does not allow") from error
    builder = _Builder(path)
    try:
        while (event := loader.get_event()) is not None and not isinstance(event, StreamEndEvent):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else path
        raise UsageError(f"{place}: {error.problem or 'it ends too early'}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: it has characters that YAML does not allow") from error
    finally:
        loader.dispose()
    return [document for document in builder.documents if document is not None]


class _Builder:
    """Takes events one by one. Keeps its own stack, so that depth is a number and not the interpreter's."""

    def __init__(self, path: str) -> None:
        self.documents: list[Value] = []
        self._path = path
        self._children = self.documents
        """Of the innermost collection that has not ended; of a mapping, keys and values in turn."""
        self._stack: list[tuple[bool, list[Value]]] = []
        """Whether each open collection is a mapping, and the children of the one around it."""

    def take(self, event: Event) -> None:
        """Works one event in. Raises UsageError for what is not taken."""
        if isinstance(event, ScalarEvent):
            if event.tag is not None or event.anchor is not None:
                raise self._error(event, "anchors and tags are not read")
            self._children.append(event.value if event.style else _plain(event.value))
        elif isinstance(event, CollectionStartEvent):
            self._begin(event)
        elif isinstance(event, CollectionEndEvent):
            self._end(event)
        elif isinstance(event, AliasEvent):
            raise self._error(event, "aliases are not read")
        elif isinstance(event, DocumentEndEvent):
            self._children = self.documents

    def _begin(self, event: CollectionStartEvent) -> None:
        if event.tag is not None or event.anchor is not None:
            raise self._error(event, "anchors and tags are not read")
        if len(self._stack) >= DEPTH_MAX:
            raise self._error(event, f"more than {DEPTH_MAX} collections in each other")
        self._stack.append((isinstance(event, MappingStartEvent), self._children))
        self._children = []

    def _end(self, event: CollectionEndEvent) -> None:
        children = self._children
        is_mapping, self._children = self._stack.pop()
        if not is_mapping:
            self._children.append(children)
            return
        keys = children[::2]
        if not all(isinstance(key, (str, int, float, bool, type(None))) for key in keys):
            raise self._error(event, "a key is text")
        self._children.append(dict(zip(map(str, keys), children[1::2], strict=True)))

    def _error(self, event: Event, problem: str) -> UsageError:
        mark = event.start_mark
        return UsageError(f"{self._path}:{mark.line + 1}:{mark.column + 1}: {problem}" if mark else problem)


def _plain(text: str) -> Value:
    """What text without quotes says; only what Kubernetes itself writes without quotes is anything but text."""
    if text in _WORDS:
        return _WORDS[text]
    return int(text) if _INTEGER.fullmatch(text) else text
