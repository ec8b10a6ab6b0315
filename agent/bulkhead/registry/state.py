"""How it stands with a registry, for status and for people."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class State:
    """What is known about the registry itself."""

    kind: str
    """`files` or `etcd`."""
    is_fresh: bool = False
    """The roster is what the registry says now; otherwise it is what it said at `last_heard`, and in force."""
    last_heard: float = 0.0
    """When it last answered, in Unix seconds of this host's clock; 0: never."""
    problem: str = ""
    """Why it is not fresh, in one sentence."""
    revision: str = ""
    """The place in the registry's history that the roster is of."""
    own: str = ""
    """Why this node's own record is not there, in one sentence; empty: it is, or none was announced."""
