"""A registry at work, and what it tells, waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from bulkhead.policy.nodes import Node, Roster
from bulkhead.registry.registry import Registry
from bulkhead.registry.state import State

WAIT_S = 60.0


class Following:
    """Everything that a registry has told so far."""

    def __init__(self) -> None:
        self.told: list[tuple[Roster, State]] = []
        self._news = asyncio.Condition()
        self._notices: set[asyncio.Task[None]] = set()

    @property
    def roster(self) -> Roster:
        """The last."""
        return self.told[-1][0]

    @property
    def state(self) -> State:
        """The last."""
        return self.told[-1][1]

    def hear(self, roster: Roster, state: State) -> None:
        """What the registry calls."""
        self.told.append((roster, state))
        notice = asyncio.create_task(self._notify())
        self._notices.add(notice)
        notice.add_done_callback(self._notices.discard)

    async def _notify(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def until(self, holds: Callable[[Roster, State], bool]) -> tuple[Roster, State]:
        """Wait until the last that was told is as wanted."""
        try:
            async with asyncio.timeout(WAIT_S), self._news:
                await self._news.wait_for(lambda: bool(self.told) and holds(*self.told[-1]))
        except TimeoutError:
            raise AssertionError(f"it never came to that; told last: {self.told[-1:]}") from None
        return self.told[-1]

    async def until_names(self, *names: str) -> Roster:
        """Wait until exactly these nodes count, as heard just now."""
        return (await self.until(lambda roster, state: state.is_fresh and names_of(roster) == names))[0]

    async def until_stale(self) -> State:
        """Wait until the registry is known not to answer."""
        return (await self.until(lambda _, state: not state.is_fresh))[1]


def names_of(roster: Roster) -> tuple[str, ...]:
    """Of the nodes that count."""
    return tuple(node.name for node in roster)


def number_of(roster: Roster, name: str) -> int:
    """Of a node that counts."""
    found: Node | None = roster.by_name(name)
    assert found is not None
    return found.number


@asynccontextmanager
async def following(registry: Registry) -> AsyncIterator[Following]:
    """Run a registry for as long as the block lasts."""
    heard = Following()
    task = asyncio.create_task(registry.run(heard.hear))
    try:
        yield heard
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
