"""Policy and inventory from files, for commands that need no agent."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from bulkhead.dataplane.compile import Compiled, compile_commit
from bulkhead.dataplane.inventory import read_inventory
from bulkhead.dataplane.matrix import identity_of
from bulkhead.errors import UsageError
from bulkhead.policy.model import PolicySet
from bulkhead.policy.parse import parse
from bulkhead.policy.source import read_commit, read_directory


def read_policy(place: Path, revision: str | None) -> PolicySet:
    """A directory as it is, or a commit of a repository when a revision is given or `place` is a bare repository."""
    bare = (place / "HEAD").is_file() and (place / "objects").is_dir()
    sources = read_commit(place, revision or "HEAD") if revision or bare else read_directory(place)
    return parse(sources)


def compile_policy(place: Path, revision: str | None) -> Compiled:
    """The tables of all hosts at once. Raises PolicyError with every finding."""
    return compile_commit(read_policy(place, revision), None, datetime.now(UTC))


def aliases(compiled: Compiled, inventory: Path | None) -> Mapping[str, int]:
    """The endpoints of an inventory by name, with their identities."""
    if inventory is None:
        return {}
    listed = read_inventory(inventory)
    return {one.name: identity_of(compiled, one.endpoint) for one in listed}


def split_pair(text: str, what: str) -> tuple[str, str]:
    """The two sides of `NAME=VALUE`. Raises UsageError for anything else."""
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise UsageError(f"`{text}` is not {what}")
    return name, value
