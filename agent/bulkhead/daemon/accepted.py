"""Which commit is accepted, over restarts: kept by the agent, because the process that reads commits is not trusted."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from bulkhead.errors import RefusedError


@dataclass(frozen=True, slots=True)
class Accepted:
    """What the next commit has to descend from."""

    commit: str = ""
    """Full id; empty: none yet."""
    held_off: str = ""
    """The tip that was rolled back: left alone until the reference has moved on past it."""


@dataclass(frozen=True, slots=True)
class Rollback:
    """What an operator did; `at` in Unix seconds, `origin` and `target` commits."""

    at: float
    origin: str
    target: str
    reason: str
    uid: int


def load(path: Path) -> Accepted:
    """What `save` wrote; nothing when there is no file. Raises RefusedError for anything else: to forget what was
    accepted would be to accept anything."""
    try:
        return Accepted(**{key: str(value) for key, value in json.loads(path.read_text(encoding="utf-8")).items()})
    except FileNotFoundError:
        return Accepted()
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RefusedError(
            f"`{path}` does not say which commit was accepted last ({error}): "
            "remove it to accept what the reference names, as on a new host"
        ) from error


def save(path: Path, accepted: Accepted) -> None:
    """In one step, and on the disk when it returns."""
    fresh = path.with_suffix(".new")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(json.dumps(asdict(accepted)) + "\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    _sync(path.parent)


def record(path: Path, rollback: Rollback) -> None:
    """Add a line, on the disk when it returns."""
    line = {"time": rollback.at, "from": rollback.origin, "to": rollback.target}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line | {"reason": rollback.reason, "uid": rollback.uid}) + "\n")
        file.flush()
        os.fsync(file.fileno())
    _sync(path.parent)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
