"""What every registry of nodes does, whatever holds its records.

A registry is a list of records, and then what changes of it: in that order, over and over, because any of them may
have to begin again. What a back end calls the place in its history is kept as text and compared by that back end alone,
so that each kind of store fits:

    store                 place in history        begins again when
    files of the policy   the commit              a commit is accepted
    etcd                  the revision            its history is compacted away (`compact_revision`)
    Kubernetes objects    the resource version    the watch ends with 410 Gone

No back end trusts the clock of its store, and none forgets a node because the store cannot be asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from bulkhead.config import Settings
from bulkhead.policy.nodes import Node, Roster
from bulkhead.registry.files import FilesRegistry
from bulkhead.registry.state import State

OnRoster = Callable[[Roster, State], None]
"""Told of each change, of the roster or of what is known about the registry. Must not block."""


class Registry(Protocol):
    """Where the nodes of the trust domain come from."""

    @property
    def state(self) -> State:
        """How it stands with the registry now."""

    async def run(self, on_roster: OnRoster) -> None:
        """Follow the registry until cancelled. Begins with what was known last; trouble is told, never raised."""

    async def announce(self, node: Node) -> None:
        """From now on, and until `withdraw`, see to it that this node has a record. Does not wait for it.

        `number` is a wish: the record has the next free one where another node has it, so a node reads its number
        from the roster. What comes of it stands in `State.own`.
        """

    async def withdraw(self) -> None:
        """Take this node's record back; returns after a few seconds at most, even if the registry does not answer."""


def open_registry(settings: Settings) -> Registry:
    """The registry that the settings name. That of files has to be given what each commit says."""
    if settings.etcd is None:
        return FilesRegistry()
    from bulkhead.registry.etcd import EtcdRegistry

    return EtcdRegistry(settings.etcd, settings.host, settings.saved_nodes)
