"""Which commit is accepted, over restarts: kept by the agent, because the process that reads commits is not trusted."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

_COMMIT: Final = re.compile(r"(?:[0-9a-f]{40}|[0-9a-f]{64})?")
_REQUIRED: Final = frozenset({"commit", "held_off"})
_KEYS: Final = _REQUIRED | {"lost"}


@dataclass(frozen=True, slots=True)
class Accepted:
    """What the next commit has to descend from."""

    commit: str = ""
    """Full id; empty: none yet."""
    held_off: str = ""
    """The tip that was rolled back: left alone until the reference has moved on past it."""
    lost: str = ""
    """Why it cannot be told which commit was accepted; empty: it can. While it is lost nothing may follow, since to
    forget what was accepted would be to accept anything: an operator has to name a commit."""


@dataclass(frozen=True, slots=True)
class Rollback:
    """What an operator did; `at` in Unix seconds, `origin` and `target` commits."""

    at: float
    origin: str
    target: str
    reason: str
    uid: int


def load(path: Path) -> Accepted:
    """What `save` wrote; nothing when there is no file, as on a new host; `lost` for anything else."""
    try:
        return _checked(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return Accepted()
    except (OSError, ValueError, RecursionError) as error:
        return Accepted(
            lost=f"`{path}` does not say which commit was accepted last ({error}): "
            "no commit is taken until `bulkhead rollback COMMIT --reason TEXT` names the one to go on from"
        )


def _checked(found: object) -> Accepted:
    if not isinstance(found, dict) or not _REQUIRED <= found.keys() <= _KEYS:
        raise ValueError(f"it has to hold {' and '.join(sorted(_REQUIRED))}")
    if not all(isinstance(value, str) for value in found.values()):
        raise ValueError("it holds something else than text")
    accepted = Accepted(**found)
    for commit in (accepted.commit, accepted.held_off):
        if not _COMMIT.fullmatch(commit):
            raise ValueError(f"{commit[:64]!r} is not the full id of a commit")
    return accepted


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
