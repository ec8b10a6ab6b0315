"""Handing what happens to whoever follows it, without ever waiting for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Generic, TypeVar

QUEUE_MAX: Final = 1024

T = TypeVar("T")


class Subscription(Generic[T]):
    """One follower's queue. When it is full the oldest item goes, and is counted in `lost`."""

    def __init__(self, limit: int, wanted: Callable[[T], bool] | None = None) -> None:
        self._queue: asyncio.Queue[T] = asyncio.Queue(limit)
        self._wanted = wanted
        self.lost = 0

    async def get(self) -> T:
        """The next item, waiting for it."""
        return await self._queue.get()

    def drain(self) -> list[T]:
        """What is there now, without waiting."""
        return [self._queue.get_nowait() for _ in range(self._queue.qsize())]

    def put(self, item: T) -> None:
        """Adds an item that is wanted, never waiting."""
        if self._wanted is not None and not self._wanted(item):
            return
        if self._queue.full():
            self._queue.get_nowait()
            self.lost += 1
        self._queue.put_nowait(item)


class Subscriptions(Generic[T]):
    """All followers. False when there is none, so that nothing needs to be made for them."""

    def __init__(self) -> None:
        self._open: set[Subscription[T]] = set()

    def __bool__(self) -> bool:
        return bool(self._open)

    @contextmanager
    def subscribe(self, limit: int = QUEUE_MAX, wanted: Callable[[T], bool] | None = None) -> Iterator[Subscription[T]]:
        """A subscription that ends with the block, to everything or to what is wanted."""
        subscription: Subscription[T] = Subscription(limit, wanted)
        self._open.add(subscription)
        try:
            yield subscription
        finally:
            self._open.discard(subscription)

    def publish(self, item: T) -> None:
        """Gives an item to every follower."""
        for subscription in self._open:
            subscription.put(item)
