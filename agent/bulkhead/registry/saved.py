"""What a registry said last, on disk: so that a restart of the agent while it cannot be asked forgets no node."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bulkhead.policy.nodes import Node
from bulkhead.registry import record

SAVED_BYTES_MAX: Final = 1 << 30
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Saved:
    """What was known, and from where."""

    source: str
    """Which registry: nothing is believed of another."""
    cluster: int
    revision: int
    last_heard: float
    """Unix seconds."""
    nodes: tuple[Node, ...]


def save(path: Path, saved: Saved) -> None:
    """In one step, and on the disk when it returns. Raises OSError."""
    fields = {
        "version": _VERSION,
        "source": saved.source,
        "cluster": saved.cluster,
        "revision": saved.revision,
        "last_heard": saved.last_heard,
        "nodes": {node.name: record.write(node).decode() for node in saved.nodes},
    }
    fresh = path.with_suffix(".new")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump(fields, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def load(path: Path, source: str, where: str) -> Saved | None:
    """What `save` wrote for that source; `where` goes in front of names, for people. None: nothing.

    Raises ValueError for a file that `save` did not write, OSError for one that cannot be read.
    """
    try:
        if path.stat().st_size > SAVED_BYTES_MAX:
            raise ValueError("it is too large")
        fields = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    try:
        if fields["version"] != _VERSION or fields["source"] != source:
            return None
        nodes = tuple(_nodes(fields["nodes"].items(), where))
        return Saved(source, int(fields["cluster"]), int(fields["revision"]), float(fields["last_heard"]), nodes)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it lacks {error}") from error


def _nodes(given: Iterable[tuple[str, str]], where: str) -> Iterable[Node]:
    return (record.read(name, text.encode(), f"{where}{name}") for name, text in given)
