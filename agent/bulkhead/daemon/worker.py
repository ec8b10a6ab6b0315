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

from bulkhead.config import Settings, dump
from bulkhead.daemon.accepted import Accepted
from bulkhead.errors import UnreachableError, UsageError
from bulkhead.observe.logs import Log

log = Log()

BUNDLE_BYTES_MAX: Final = 256 << 20
_HEAD_BYTES_MAX: Final = 1 << 20
_ROLLBACK_TIMEOUT_S: Final = 120.0
"""A fetch may have to end first."""
_RESTART_S: Final = (0.2, 1.0, 5.0, 15.0)
"""Pause before each restart in a row."""


@dataclass(frozen=True, slots=True)
class Report:
    """What the child had to say of one commit: a bundle, or why there is none."""

    commit: str
    bundle: bytes
    error: str
    took_ms: float
    code: str = ""
    """Of the first finding, when refused; `other` when there is none."""
    rollback: bool = False
    """It is the answer to an operator."""
    tip: str = ""
    """For a rollback: what the reference names."""


@dataclass(frozen=True, slots=True)
class SourceReport:
    """How the child's last look at the repository went; `at` in Unix seconds."""

    at: float
    error: str
    code: str
    commit: str
    """What the reference names; empty when it cannot be told."""


class PolicyWorker:
    """Keeps one bulkhead-policy process running and hands over what it reports."""

    def __init__(
        self,
        settings: Settings,
        on_report: Callable[[Report], Awaitable[None]],
        on_source: Callable[[SourceReport], None],
        accepted: Accepted,
    ) -> None:
        self._settings = settings
        self._on_report = on_report
        self._on_source = on_source
        self._accepted = accepted
        self._rollback: asyncio.Future[Report] | None = None
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
        self._ask(op="reload")

    def accept(self, accepted: Accepted) -> None:
        """What the next commit has to follow, from now on."""
        self._accepted = accepted
        if self._writer is not None:  # a child to come is told as it starts
            self._ask(op="accepted", commit=accepted.commit, held_off=accepted.held_off)

    async def rollback(self, commit: str) -> Report:
        """The commit that an operator wants back, compiled; or why it cannot be had."""
        return await self._wanted("rollback", commit)

    async def trial(self, commit: str) -> Report:
        """The commit that an operator wants to try, compiled; or why it cannot be had."""
        return await self._wanted("trial", commit)

    async def _wanted(self, op: str, commit: str) -> Report:
        if self._rollback is not None:
            raise UsageError("another commit is being compiled for an operator")
        self._rollback = asyncio.get_running_loop().create_future()
        try:
            self._ask(op=op, commit=commit)
            return await asyncio.wait_for(self._rollback, _ROLLBACK_TIMEOUT_S)
        except TimeoutError:
            raise UnreachableError("the policy process did not answer in time") from None
        finally:
            self._rollback = None

    def _ask(self, **request: str) -> None:
        if self._writer is None:
            raise UnreachableError("the policy process is not running")
        self._writer.write(json.dumps(request).encode() + b"\n")

    async def _keep_running(self) -> None:
        failures = 0
        while True:
            try:
                reader = await self._spawn()
                while True:
                    await self._hand_over(await _read_report(reader))
                    failures = 0
            except (asyncio.IncompleteReadError, ConnectionError, ValueError, OSError) as error:
                log.error("the policy process ended; what is enforced stays in force", cause=str(error))
            finally:
                self._close()
            await asyncio.sleep(_RESTART_S[min(failures, len(_RESTART_S) - 1)])
            failures += 1

    async def _hand_over(self, report: Report | SourceReport) -> None:
        if isinstance(report, SourceReport):
            self._on_source(report)
        elif not report.rollback:
            await self._on_report(report)
        elif self._rollback is not None and not self._rollback.done():
            self._rollback.set_result(report)

    async def _spawn(self) -> asyncio.StreamReader:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "bulkhead.policyd",
                str(theirs.fileno()),
                dump(self._settings),
                self._accepted.commit,
                self._accepted.held_off,
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
        if self._rollback is not None and not self._rollback.done():
            self._rollback.set_exception(UnreachableError("the policy process ended"))


async def _read_report(reader: asyncio.StreamReader) -> Report | SourceReport:
    """One message. The child is not trusted: sizes are checked before anything is read."""
    head = json.loads(await reader.readuntil(b"\n"))
    size = head.get("bytes") if isinstance(head, dict) else None
    if not isinstance(size, int) or not 0 <= size <= BUNDLE_BYTES_MAX:
        raise ValueError("the policy process sent a message without a proper size")
    body = await reader.readexactly(size)
    commit, error, code = str(head.get("commit", ""))[:64], str(head.get("error", "")), str(head.get("code", ""))[:16]
    if head.get("kind") == "source":
        return SourceReport(float(head.get("at", 0.0)), error, code, commit)
    rollback = head.get("rollback") is True
    if head.get("kind") == "refused":
        return Report(commit, b"", error or "refused without a reason", 0.0, code or "other", rollback)
    took_ms, tip = float(head.get("took_ms", 0.0)), str(head.get("tip", ""))[:64]
    return Report(commit, body, "", took_ms, rollback=rollback, tip=tip)
