"""Which policy is in force, and what may follow it: commits as they come, rollbacks, trials, isolations."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from bulkhead.config import Settings
from bulkhead.control.peers import Peer
from bulkhead.control.server import ChangeHandler
from bulkhead.daemon import accepted as acceptance
from bulkhead.daemon.accepted import Accepted, Rollback
from bulkhead.daemon.answers import Answers, PolicyState
from bulkhead.daemon.enforcer import Enforcer
from bulkhead.daemon.silent import cut_silent
from bulkhead.daemon.trial import Trial, checked_seconds
from bulkhead.daemon.worker import PolicyWorker, Report, SourceReport
from bulkhead.errors import BulkheadError, RefusedError, UnreachableError, UsageError
from bulkhead.kernel.audit import Drift
from bulkhead.observe import logs
from bulkhead.observe.names import GenerationNamer
from bulkhead.observe.tables import tables_of

log = logs.Log()

Json = dict[str, Any]


class Succession:
    """Puts one policy after the other into force, and remembers which was accepted.

    Reports that come before `begin` wait for it; what comes while a policy is tried waits for the trial's end.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.policy = PolicyState()
        self.namer = GenerationNamer()
        self.accepted = acceptance.load(settings.accepted)
        self.policy.source.held_off = self.accepted.held_off
        if self.accepted.lost:
            self._refuse("", self.accepted.lost)
        self.worker = PolicyWorker(settings, self._on_report, self._on_source, self.accepted)
        self.first_report = asyncio.Event()
        """The policy process has said something."""
        self.trial: Trial | None = None
        self.is_ready = False
        """Everything is in force: from here on a change has live conversations to look at."""
        self._switching = asyncio.Lock()
        self._pending: list[Report] = []
        self._ending: asyncio.Task[None] | None = None
        self._cutting: asyncio.Task[None] | None = None
        self._waiting: Report | None = None
        """What came while a policy was tried."""
        self._has_begun = False

    def serve(self, enforcer: Enforcer, answers: Answers) -> None:
        """Say what puts policies into force, and who tells of them."""
        self.enforcer, self.answers = enforcer, answers

    async def begin(self) -> None:
        """From now on reports are applied as they come."""
        self._has_begun = True
        await self.apply_pending()

    def changes(self) -> dict[str, ChangeHandler]:
        """What an operator can ask for, by operation."""
        return {
            "reload": _change(self._reload),
            "rollback": self._rollback,
            "try": self._try,
            "confirm": self._confirm,
            "revert": self._revert,
            "quarantine": _change(self._quarantine),
            "release": _change(self._release),
        }

    # Commits

    async def apply_pending(self) -> None:
        """Apply what has been reported so far."""
        reports, self._pending = self._pending, []
        for report in reports:
            await self._apply(report)

    async def _on_report(self, report: Report) -> None:
        if not self._has_begun:
            self._pending.append(report)
            self.first_report.set()
            return
        await self._apply(report)

    def _on_source(self, report: SourceReport) -> None:
        """The repository was looked at. That it cannot be read changes nothing of what is enforced."""
        was_up = not self.policy.source.error
        self.policy.source.looked(report.at, report.error, report.code, report.commit)
        if report.error and was_up:
            log.error("the policy repository cannot be read, what is enforced stays in force", cause=report.error)
        if not report.error and not was_up:
            log.info("the policy repository can be read again")
        if report.error:
            self.first_report.set()

    async def _apply(self, report: Report) -> None:
        """Switch to what was compiled, or keep what is in force and say why. While a policy is tried, it waits."""
        if self.trial is not None:
            self._waiting = report
            return
        if self.accepted.lost:
            self._refuse(report.commit, self.accepted.lost)
            return
        if report.error:
            self._refuse(report.commit, report.error, report.code)
            return
        try:
            await self._switch(report)
        except BulkheadError as error:
            if self.enforcer.is_trying:  # it began while this waited for its turn
                self._waiting = report
                return
            self._refuse(report.commit, str(error))
            return
        if report.commit != self.accepted.commit:
            self._accept(Accepted(report.commit))
        self.policy.accepted()

    async def _switch(self, report: Report) -> None:
        started = time.monotonic()
        async with self._switching:
            if self.enforcer.holds(report.bundle):
                return
            await self.enforcer.enforce_soon(report.bundle)
            self.in_force()
            log.info(
                "enforcing",
                commit=report.commit,
                generation=self.enforcer.generation,
                compile_ms=report.took_ms,
                switch_ms=round((time.monotonic() - started) * 1000, 1),
            )

    def _accept(self, accepted: Accepted) -> None:
        """From here on, commits have to follow this one."""
        acceptance.save(self.settings.accepted, accepted)
        self.accepted = accepted
        self.policy.source.held_off = accepted.held_off
        self.worker.accept(accepted)

    def _refuse(self, commit: str, error: str, code: str = "other") -> None:
        self.policy.refused(commit, error, code)
        log.error("policy refused, the last good one stays in force", commit=commit, cause=error)

    def look(self) -> list[Drift]:
        """Compare the kernel with what was put there, and see whether a trial has ended."""
        found = self.enforcer.look()
        if found:
            self.in_force()
        if self.trial is not None and not self.enforcer.is_trying and not self._switching.locked():
            log.warning("nobody confirmed the policy that was tried", commit=self.trial.commit)
            self._ending = asyncio.create_task(self._trial_over())
        return found

    async def examine_posture(self) -> None:
        """Withhold and give back identities as posture has changed."""
        if await self.enforcer.examine_posture():
            self.in_force()

    def in_force(self) -> None:
        """A generation has been switched in: events name it, and silent conversations are looked for."""
        if self.enforcer.bundle is not None:
            self.namer.add(self.enforcer.generation, tables_of(self.enforcer.bundle))
        if self.is_ready:
            self._cutting = asyncio.create_task(self._cut_silent(self._cutting))

    async def _cut_silent(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        try:
            await asyncio.to_thread(cut_silent, self.enforcer)
        except BulkheadError as error:
            log.error("cannot look for silent conversations; each is judged at its next packet", cause=str(error))

    # What an operator asks for

    async def _rollback(self, args: Json, peer: Peer) -> Json:
        """Enforce the commit that an operator names, and leave alone the one that he turns away from."""
        wanted, reason = _text(args, "commit"), _text(args, "reason")
        if self.trial is not None:
            raise RefusedError("a policy is being tried: confirm or revert it first")
        report = await self.worker.rollback(wanted)
        if report.error:
            raise UsageError(f"cannot roll back to `{wanted}`: {report.error}")
        before, held_off = self.accepted, report.tip if report.tip != report.commit else ""
        # First, so that no restart in between goes forward again.
        self._accept(Accepted(report.commit, held_off))
        try:
            await self._switch(report)
        except BulkheadError:
            self._accept(before)
            raise
        rollback = Rollback(time.time(), before.commit, report.commit, reason, peer.uid)
        acceptance.record(self.settings.rollbacks, rollback)
        self.policy.accepted()
        log.warning("rolled back", origin=before.commit, commit=report.commit, reason=reason, uid=peer.uid)
        return asdict(rollback) | {"held_off": held_off, "generation": self.enforcer.generation}

    # Trials

    async def _try(self, args: Json, peer: Peer) -> Json:
        revision, seconds = _text(args, "revision"), checked_seconds(args.get("seconds"))
        if self.trial is not None:
            raise RefusedError("a policy is being tried: confirm or revert it first")
        report = await self.worker.trial(revision)
        if report.error:
            raise UsageError(report.error)
        async with self._switching:
            if self.trial is not None:
                raise RefusedError("a policy is being tried: confirm or revert it first")
            began, before = time.time(), self.enforcer.bundle.commit if self.enforcer.bundle else ""
            until = await self.enforcer.begin_trial(report.bundle, seconds)
            tip = report.tip if report.tip != report.commit else ""
            self.trial = self.answers.trial = Trial(report.commit, before, began, until, peer.uid, peer.pid, tip)
            self.in_force()
        log.warning("trying a policy", commit=report.commit, before=before, seconds=seconds, uid=peer.uid)
        return self._trial_json(self.trial)

    async def _confirm(self, _: Json, peer: Peer) -> Json:
        trial = self._trial_under_way()
        trial.check_confirmation(peer.pid)
        self.enforcer.confirm_trial()
        self._accept(Accepted(trial.commit, trial.tip))
        self.policy.accepted()
        log.warning("the policy that was tried stays", commit=trial.commit, uid=peer.uid)
        await self._trial_over()
        return self._trial_json(trial)

    async def _revert(self, _: Json, peer: Peer) -> Json:
        trial = self._trial_under_way()
        self.enforcer.end_trial()
        log.warning("the policy that was tried is gone", commit=trial.commit, before=trial.before, uid=peer.uid)
        await self._trial_over()
        return self._trial_json(trial)

    def _trial_under_way(self) -> Trial:
        if self.trial is None or not self.enforcer.is_trying:
            raise RefusedError("no policy is being tried")
        return self.trial

    def _trial_json(self, trial: Trial) -> Json:
        return asdict(trial) | {"generation": self.enforcer.generation}

    async def _trial_over(self) -> None:
        """The reference is followed again, and what it named meanwhile is put into force."""
        self.trial = self.answers.trial = None
        self.in_force()
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            await self._apply(waiting)

    def _quarantine(self, args: Json, peer: Peer) -> Json:
        name, reason = _text(args, "workload"), _text(args, "reason")
        isolation = self.enforcer.isolate(name, reason, peer.uid)
        self.in_force()
        log.warning("isolated", workload=isolation.workload, reason=isolation.reason, uid=peer.uid)
        return asdict(isolation) | {"generation": self.enforcer.generation}

    def _release(self, args: Json, peer: Peer) -> Json:
        isolation = self.enforcer.release(_text(args, "workload"), peer.uid)
        self.in_force()
        log.warning("released", workload=isolation.workload, uid=peer.uid)
        return asdict(isolation) | {"generation": self.enforcer.generation}

    def _reload(self, _: Json, __: Peer) -> Json:
        self.worker.reload()
        return {}

    def hangup(self) -> None:
        """As a reload, for a signal: nobody is there to be told."""
        try:
            self.worker.reload()
        except UnreachableError as error:
            log.warning("cannot reload now", cause=str(error))


def _text(args: Json, key: str) -> str:
    value = args.get(key)
    if not isinstance(value, str) or not value:
        raise UsageError(f"the request lacks `{key}`")
    return value


def _change(function: Callable[[Json, Peer], Json]) -> ChangeHandler:
    async def handler(args: Json, peer: Peer) -> Json:
        return function(args, peer)

    return handler
