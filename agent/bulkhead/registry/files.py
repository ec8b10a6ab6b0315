"""The registry that needs nothing to run: the records are files of the policy repository, and come with each commit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from bulkhead.policy.nodes import Node, Roster
from bulkhead.registry.state import State


class FilesRegistry:
    """Hands on what the commit in force says. Nodes do not announce themselves here: people write their records."""

    def __init__(self) -> None:
        self.state = State("files", problem="no commit is in force yet")
        self._roster = Roster()
        self._given = asyncio.Event()

    def give(self, roster: Roster, commit: str) -> None:
        """Take the nodes of the commit that is in force now."""
        self._roster = roster
        self.state = State("files", is_fresh=True, last_heard=time.time(), revision=commit)
        self._given.set()

    async def run(self, on_roster: Callable[[Roster, State], None]) -> None:
        """Tell of each commit's nodes, until cancelled."""
        while True:
            on_roster(self._roster, self.state)
            await self._given.wait()
            self._given.clear()

    async def announce(self, node: Node) -> None:
        """Nothing: the node has the record that people gave it, or none."""

    async def withdraw(self) -> None:
        """Nothing: the record stays until people remove it."""
