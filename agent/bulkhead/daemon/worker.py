"""The agent's end of bulkhead-policy: starts the child, reads its messages, restarts it when it dies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from bulkhead.config import Settings, dump
from bulkhead.daemon.accepted import Accepted
from bulkhead.daemon.child import Child, Kind
from bulkhead.errors import UsageError
from bulkhead.observe.logs import Log

log = Log()

BUNDLE_BYTES_MAX: Final = 256 << 20
_KIND: Final = Kind("the policy process", "bulkhead.policyd", BUNDLE_BYTES_MAX)
_ROLLBACK_TIMEOUT_S: Final = 120.0
"""A fetch may have to end first."""


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
        self._on_report = on_report
        self._on_source = on_source
        self._accepted = accepted
        self._rollback: asyncio.Future[Report] | None = None
        self._child = Child(
            _KIND,
            lambda: (dump(settings), self._accepted.commit, self._accepted.held_off),
            self._hear,
            lambda why: log.error("the policy process ended; what is enforced stays in force", cause=why),
        )

    def start(self) -> None:
        """Start the child and go on in the background."""
        self._child.start()

    async def stop(self) -> None:
        """End the child."""
        await self._child.stop()

    def reload(self) -> None:
        """Have the reference read again, changed or not."""
        self._ask(op="reload")

    def accept(self, accepted: Accepted) -> None:
        """What the next commit has to follow, from now on."""
        self._accepted = accepted
        if self._child.is_running:  # one to come is told as it starts
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
        self._rollback = self._child.promise()
        try:
            self._ask(op=op, commit=commit)
            return await self._child.kept(self._rollback, _ROLLBACK_TIMEOUT_S)
        finally:
            self._rollback = None

    def _ask(self, **request: str) -> None:
        self._child.send_line(request)

    async def _hear(self, head: dict[str, Any], body: bytes) -> None:
        await self._hand_over(_report(head, body))

    async def _hand_over(self, report: Report | SourceReport) -> None:
        if isinstance(report, SourceReport):
            self._on_source(report)
        elif not report.rollback:
            await self._on_report(report)
        elif self._rollback is not None and not self._rollback.done():
            self._rollback.set_result(report)


def _report(head: dict[str, Any], body: bytes) -> Report | SourceReport:
    """One message. The child is not trusted."""
    commit, error, code = str(head.get("commit", ""))[:64], str(head.get("error", "")), str(head.get("code", ""))[:16]
    if head.get("kind") == "source":
        return SourceReport(float(head.get("at", 0.0)), error, code, commit)
    rollback = head.get("rollback") is True
    if head.get("kind") == "refused":
        return Report(commit, b"", error or "refused without a reason", 0.0, code or "other", rollback)
    took_ms, tip = float(head.get("took_ms", 0.0)), str(head.get("tip", ""))[:64]
    return Report(commit, body, "", took_ms, rollback=rollback, tip=tip)
