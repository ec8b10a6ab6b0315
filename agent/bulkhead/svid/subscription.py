"""One stream of secrets: what is asked on it is heard, and it is told of what changes."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Any

from grpclib.const import Status

from bulkhead.svid.callers import Caller
from bulkhead.svid.secrets import Secrets


class Subscription(ABC):
    """A stream for as long as its client wants it and may have it."""

    def __init__(self, secrets: Secrets, stream: Any, caller: Caller, bytes_max: int) -> None:
        self._secrets = secrets
        self._stream = stream
        self._caller = caller
        self._bytes_max = bytes_max
        """Of one request."""
        self._states = secrets.served.states

    @abstractmethod
    def _hear(self, request: Any) -> None:
        """Take note of a request."""

    @abstractmethod
    async def _say(self) -> None:
        """Send what there is to be said, after a request or a change."""

    async def serve(self) -> None:
        """Until the client ends it. Raises GRPCError for a client that is not to be served any longer."""
        served = self._secrets.served
        hearing = asyncio.ensure_future(self._secrets.receive(self._stream, self._bytes_max))
        changing = asyncio.ensure_future(served.change(-1))
        try:
            while True:
                await asyncio.wait((hearing, changing), return_when=asyncio.FIRST_COMPLETED)
                if hearing.done():
                    request = hearing.result()
                    if request is None:
                        return
                    hearing = asyncio.ensure_future(self._secrets.receive(self._stream, self._bytes_max))
                    self._hear(request)
                if changing.done():
                    changing = asyncio.ensure_future(served.change(served.version))
                    await self._attest_again()
                await self._say()
        finally:
            hearing.cancel()
            changing.cancel()
            await asyncio.gather(hearing, changing, return_exceptions=True)

    async def _attest_again(self) -> None:
        served, callers = self._secrets.served, self._secrets.callers
        if served.states != self._states:
            self._states = served.states
            self._caller.attested = await callers.attest(self._caller.process)
        elif not self._caller.process.is_alive:
            raise callers.refusal(Status.PERMISSION_DENIED, "process-ended", "the calling process has ended")
