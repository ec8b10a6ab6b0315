"""Who calls: the process at the other end of the socket, as the kernel names it and the agent attests it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from bulkhead.svid.endpoint import peer_of
from bulkhead.svid.peer import Process
from bulkhead.svid.served import Served
from bulkhead.svid.svids import Attested

CALLS_PER_USER: Final = 256
"""Under way at once, of one user as one workload: many pods of a node share a user."""
CALLS_OF_PROXY: Final = 8192
_PER_SECOND: Final = 200.0
"""How often one user's calls may have the agent asked, beyond a burst."""
_BURST_S: Final = 10.0
_USERS_KEPT: Final = 1024

Ask = Callable[[int], Awaitable[Attested]]
"""Whom the agent attests a process as. Raises ConnectionError when the agent does not answer."""


@dataclass(slots=True)
class Caller:
    """One call's caller."""

    process: Process
    attested: Attested


class Callers:
    """Attests callers, and bounds how much one user has under way."""

    def __init__(self, served: Served, ask: Ask) -> None:
        self._served = served
        self._ask = ask
        self._calls: Counter[tuple[int, Attested]] = Counter()
        self._asking: dict[Process, asyncio.Future[Attested]] = {}
        self._free_at: dict[int, float] = {}
        """By user, until when the questions that it caused have used up what is its due."""

    @contextlib.asynccontextmanager
    async def admit(self, stream: Any) -> AsyncIterator[Caller]:
        """The caller of a stream, for as long as it is served. Raises GRPCError for one that is not to be."""
        process = peer_of(stream)
        if not self._served.is_ready:
            raise self.refusal(Status.UNAVAILABLE, "initialising", "this node's identities are not known yet")
        caller = Caller(process, await self.attest(process))
        with self._counted(process.uid, caller.attested):
            yield caller

    async def attest(self, process: Process) -> Attested:
        """Who a process is now. Raises GRPCError for nobody."""
        await self._pace(process.uid)
        try:
            attested = await self._asked(process)
        except ConnectionError as error:
            raise self.refusal(Status.UNAVAILABLE, "no-agent", "the agent does not answer") from error
        if not process.is_alive:
            raise self.refusal(Status.PERMISSION_DENIED, "process-ended", "the calling process has ended")
        if attested.is_nobody:
            raise self.refusal(
                Status.PERMISSION_DENIED, "no-identity", f"process {process.pid} is no workload of this node's policy"
            )
        return attested

    async def _asked(self, process: Process) -> Attested:
        """Ask once for all calls of a process that want to know at this moment: after a change that is all of them."""
        asking = self._asking.get(process)
        if asking is None:
            asking = self._asking[process] = asyncio.ensure_future(self._ask(process.pid))
            asking.add_done_callback(lambda _: self._asking.pop(process, None))
        return await asyncio.shield(asking)

    async def _pace(self, uid: int) -> None:
        """Hold up a user that calls without end: each question takes time of the agent's."""
        now = asyncio.get_running_loop().time()
        if len(self._free_at) > _USERS_KEPT:
            self._free_at = {user: at for user, at in self._free_at.items() if at > now - _BURST_S}
        free_at = max(self._free_at.get(uid, 0.0), now - _BURST_S) + 1 / _PER_SECOND
        self._free_at[uid] = free_at
        if free_at > now:
            await asyncio.sleep(free_at - now)

    @contextlib.contextmanager
    def _counted(self, uid: int, attested: Attested) -> Iterator[None]:
        key, most = (uid, attested), CALLS_OF_PROXY if attested.proxy else CALLS_PER_USER
        if self._calls[key] >= most:
            raise self.refusal(
                Status.RESOURCE_EXHAUSTED, "too-many-calls", f"user {uid} has {most} calls under way already"
            )
        self._calls[key] += 1
        try:
            yield
        finally:
            self._calls[key] -= 1
            if not self._calls[key]:
                del self._calls[key]

    def refusal(self, status: Status, reason: str, message: str) -> GRPCError:
        """An error for the caller, counted by its reason."""
        self._served.counts.refusals[reason] += 1
        return GRPCError(status, message)
