"""The agent's end of bulkhead-policy: starts the child, reads its messages, restarts it when it dies."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from bulkhead.config import Settings
from bulkhead.errors import UnreachableError
from bulkhead.observe.logs import Log

log = Log()

BUNDLE_BYTES_MAX: Final = 256 << 20
_HEAD_BYTES_MAX: Final = 1 << 20
_RESTART_S: Final = (0.2, 1.0, 5.0, 15.0)
"""Pause before each restart in a row."""


@dataclass(frozen=True, slots=True)
class Report:
    """What the child had to say of one commit: a bundle, or why there is none."""

    commit: str
    bundle: bytes
    error: str
    took_ms: float


class PolicyWorker:
    """Keeps one bulkhead-policy process running and hands over what it reports."""

    def __init__(self, settings: Settings, on_report: Callable[[Report], Awaitable[None]]) -> None:
        self._settings = settings
        self._on_report = on_report
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the child and go on in the background."""
        self._task = asyncio.create_task(self._keep_running(), name="policy-worker")

    async def stop(self) -> None:
        """End the child."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()

    def reload(self) -> None:
        """Have the reference read again, changed or not."""
        if self._writer is None:
            raise UnreachableError("the policy process is not running")
        self._writer.write(b"r")

    async def _keep_running(self) -> None:
        failures = 0
        while True:
            try:
                reader = await self._spawn()
                while True:
                    await self._on_report(await _read_report(reader))
                    failures = 0
            except (asyncio.IncompleteReadError, ConnectionError, ValueError, OSError) as error:
                log.error("the policy process ended; what is enforced stays in force", cause=str(error))
            finally:
                self._close()
            await asyncio.sleep(_RESTART_S[min(failures, len(_RESTART_S) - 1)])
            failures += 1

    async def _spawn(self) -> asyncio.StreamReader:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "bulkhead.policyd",
                str(theirs.fileno()),
                str(self._settings.repository),
                self._settings.ref,
                self._settings.host,
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                env={key: value for key, value in os.environ.items() if key not in ("NOTIFY_SOCKET", "WATCHDOG_USEC")},
            )
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=_HEAD_BYTES_MAX)
        return reader

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


async def _read_report(reader: asyncio.StreamReader) -> Report:
    """One message. The child is not trusted: sizes are checked before anything is read."""
    head = json.loads(await reader.readuntil(b"\n"))
    size = head.get("bytes") if isinstance(head, dict) else None
    if not isinstance(size, int) or not 0 <= size <= BUNDLE_BYTES_MAX:
        raise ValueError("the policy process sent a message without a proper size")
    body = await reader.readexactly(size)
    commit, error = str(head.get("commit", ""))[:64], str(head.get("error", ""))
    if head.get("kind") == "refused":
        return Report(commit, b"", error or "refused without a reason", 0.0)
    return Report(commit, body, "", float(head.get("took_ms", 0.0)))
