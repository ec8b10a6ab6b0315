"""A child process of the agent's: started over a pair of sockets, heard, asked, and restarted when it dies.

Messages from a child are a JSON line with `bytes`, followed by as many raw bytes. The child is not trusted: sizes are
checked before anything is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from bulkhead.errors import UnreachableError

_HEAD_BYTES_MAX: Final = 1 << 20
_RESTART_S: Final = (0.2, 1.0, 5.0, 15.0)
"""Pause before each restart in a row."""
_NOT_PASSED_ON: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC")
"""Of the environment: what systemd says to the agent alone."""

_ENDS: Final = (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError, ValueError, KeyError, TypeError)
"""The process is gone, or says what makes no sense."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kind:
    """What a child is."""

    called: str
    """For people: `the key process`."""
    module: str
    """What it runs: `bulkhead.keyd`."""
    body_bytes_max: int
    options: tuple[str, ...] = ()
    """For the interpreter."""


class Child:
    """Keeps one process of a kind running.

    `arguments` gives what it is started with, after the number of the channel's descriptor; `hear` gets each message,
    `ended` why the process ended, each time that it does. A message without what `hear` needs ends it too.
    """

    def __init__(
        self,
        kind: Kind,
        arguments: Callable[[], Sequence[str]],
        hear: Callable[[dict[str, Any], bytes], Awaitable[None]],
        ended: Callable[[str], None],
        started: Callable[[], None] = lambda: None,
        descriptors: Sequence[int] = (),
    ) -> None:
        self.pid = 0
        """0: it does not run."""
        self.restarts = 0
        self._kind = kind
        self._arguments = arguments
        self._hear = hear
        self._ended = ended
        self._started = started
        self._descriptors = descriptors
        self._writer: asyncio.StreamWriter | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._promises: set[asyncio.Future[Any]] = set()

    @property
    def is_running(self) -> bool:
        """Whether it can be told anything."""
        return self._writer is not None

    def start(self) -> None:
        """Start the process and go on in the background."""
        self._task = asyncio.create_task(self._keep_running(), name=self._kind.module)

    async def stop(self) -> None:
        """End the process."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._process is not None:
            self._terminate()
            await self._process.wait()

    def send_line(self, request: dict[str, Any]) -> None:
        """Tell it something, as a JSON line. Raises UnreachableError while it does not run."""
        if self._writer is None:
            raise UnreachableError(f"{self._kind.called} is not running")
        self._writer.write(json.dumps(request).encode() + b"\n")

    def send(self, head: dict[str, Any], body: bytes = b"") -> None:
        """Tell it something, in the form of its own messages. Raises UnreachableError while it does not run."""
        self.send_line(head | {"bytes": len(body)})
        if body and self._writer is not None:
            self._writer.write(body)

    def promise(self) -> asyncio.Future[Any]:
        """Something that `hear` will resolve; it fails with UnreachableError when the process ends before."""
        made = asyncio.get_running_loop().create_future()
        self._promises.add(made)
        made.add_done_callback(self._promises.discard)
        return made

    async def kept(self, promise: asyncio.Future[T], timeout_s: float) -> T:
        """What a promise comes to. Raises UnreachableError when the process ends, or takes longer."""
        try:
            return await asyncio.wait_for(promise, timeout_s)
        except TimeoutError:
            raise UnreachableError(f"{self._kind.called} did not answer in time") from None

    async def _keep_running(self) -> None:
        failures = 0
        while True:
            try:
                reader = await self._spawn()
                self._started()
                while True:
                    await self._hear(*await self._read(reader))
                    failures = 0
            except _ENDS as error:
                self._ended(f"{self._kind.called} ended: {error}")
            finally:
                self._close()
            await asyncio.sleep(_RESTART_S[min(failures, len(_RESTART_S) - 1)])
            failures += 1
            self.restarts += 1

    async def _spawn(self) -> asyncio.StreamReader:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, *self._kind.options, "-m", self._kind.module),
                *(str(theirs.fileno()), *self._arguments()),
                pass_fds=(theirs.fileno(), *self._descriptors),
                stdin=asyncio.subprocess.DEVNULL,
                env={key: value for key, value in os.environ.items() if key not in _NOT_PASSED_ON},
            )
        self.pid = self._process.pid
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=_HEAD_BYTES_MAX)
        return reader

    async def _read(self, reader: asyncio.StreamReader) -> tuple[dict[str, Any], bytes]:
        head = json.loads(await reader.readuntil(b"\n"))
        size = head.get("bytes") if isinstance(head, dict) else None
        if type(size) is not int or not 0 <= size <= self._kind.body_bytes_max:
            raise ValueError(f"{self._kind.called} sent a message without a proper size")
        return head, await reader.readexactly(size)

    def _terminate(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    def _close(self) -> None:
        self.pid = 0
        self._terminate()  # one that makes no sense is not to go on beside the next
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        for promise in [one for one in self._promises if not one.done()]:
            promise.set_exception(UnreachableError(f"{self._kind.called} ended"))
