"""The agent's life: start, serve, stop. Stopping opens nothing: hooks and maps stay as they are.

Order at start: load if the pins are not ours, stamp sockets (new ones by hooks, old ones by adoption), put a policy in
force, and only then hook devices. A packet is never judged by a half-filled map, and nothing is judged that could not
have been attested.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

import sdnotify

from bulkhead.abi import DropReason, Identity, VerdictEvent
from bulkhead.config import Settings
from bulkhead.control.peers import Peer
from bulkhead.control.server import ChangeHandler, Server
from bulkhead.daemon import accepted as acceptance
from bulkhead.daemon.accepted import Accepted, Rollback
from bulkhead.daemon.answers import Answers, PolicyState
from bulkhead.daemon.conversations import conversations
from bulkhead.daemon.enforcer import EVENT_POLL_S, Enforcer, empty_bundle
from bulkhead.daemon.learned import learned_names
from bulkhead.daemon.measurements import measure
from bulkhead.daemon.silent import cut_silent
from bulkhead.daemon.switches import switches
from bulkhead.daemon.trial import Trial, checked_seconds
from bulkhead.daemon.upkeep import Upkeep
from bulkhead.daemon.worker import PolicyWorker, Report, SourceReport
from bulkhead.errors import BulkheadError, KernelError, RefusedError, UnreachableError, UsageError
from bulkhead.identity import processes
from bulkhead.identity.cgroups import CgroupTree, find_mount
from bulkhead.identity.selectors import unit_of
from bulkhead.kernel import attach, netns
from bulkhead.kernel.audit import Drift
from bulkhead.kernel.capabilities import require_capabilities
from bulkhead.kernel.generation import boot_offset_s
from bulkhead.kernel.load import is_current
from bulkhead.observe import explain, flows, logs, metrics
from bulkhead.observe.filters import Filter, filter_from_json
from bulkhead.observe.names import GenerationNamer
from bulkhead.observe.question import question_from_json
from bulkhead.observe.tables import tables_of

log = logs.Log()

Json = dict[str, Any]
_WATCHDOG_SHARE: Final = 3
"""Notify the watchdog this many times in its period."""
_FIRST_POLICY_S: Final = 10.0
"""How long a start waits for the first policy before it goes on without."""


def run(settings: Settings) -> None:
    """Run until told to stop. Raises RefusedError when this host cannot be enforced on as asked."""
    logs.set_up()
    if os.geteuid() != 0:
        raise RefusedError("the agent needs root: it holds BPF maps and reads other users' processes")
    require_capabilities()
    for directory in (settings.run_dir, settings.state_dir):
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    if settings.netns is not None:
        netns.enter(settings.netns)
    CgroupTree(settings.cgroup_root or find_mount().mount_point)  # refuses before a compile, not after
    with _alone(settings.lock):
        was_enforced, agent = settings.pins.exists(), Agent(settings)
        try:
            asyncio.run(agent.serve())
        except BulkheadError:
            if not was_enforced and not agent.is_ready:
                _unhook(settings)
            raise


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Raises RefusedError when another agent runs here: two would switch generations under each other's feet."""
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise RefusedError(f"another agent runs already: pid {lock.read().strip()} holds `{path}`") from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def detach(settings: Settings) -> None:
    """Remove every hook, pin and map. Nothing is enforced afterwards. Raises RefusedError while an agent runs."""
    if settings.netns is not None:
        netns.enter(settings.netns)
    settings.run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    with _alone(settings.lock):
        _unhook(settings)
        kept = (settings.saved_bundle, settings.hit_slots, settings.generations, settings.saved_flows, settings.lock)
        for path in (*kept, settings.accepted):
            path.unlink(missing_ok=True)
        for directory in (settings.mirror, settings.keyring):
            shutil.rmtree(directory, ignore_errors=True)


def _unhook(settings: Settings) -> None:
    links = settings.pins / "links"
    if links.exists():
        attach.detach_all(links)
    if settings.pins.exists():
        shutil.rmtree(settings.pins)


class Agent:
    """One agent process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.policy = PolicyState()
        self.namer = GenerationNamer()
        self.flows = flows.FlowLog()
        self.accepted = acceptance.load(settings.accepted)
        self.policy.source.held_off = self.accepted.held_off
        self.worker = PolicyWorker(settings, self._on_report, self._on_source, self.accepted)
        self._notifier = sdnotify.SystemdNotifier()
        self._first_report = asyncio.Event()
        self._stopping = asyncio.Event()
        self._switching = asyncio.Lock()
        self._pending: list[Report] = []
        self.trial: Trial | None = None
        self._ending: asyncio.Task[None] | None = None
        self._cutting: asyncio.Task[None] | None = None
        self._waiting: Report | None = None
        """What came while a policy was tried."""
        self._started = False
        self.is_ready = False
        """Everything is in force: from here on an error must not open anything."""

    async def serve(self) -> None:
        """Start, serve until stopped, let go."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._hangup)
        self.worker.start()
        try:
            await self._load()
            self.enforcer = Enforcer(self.settings, self._on_verdict)
        except BaseException:
            await self.worker.stop()
            raise
        self.upkeep = Upkeep(self._look)
        self.answers = Answers(self.enforcer, self.policy, self.flows, self.upkeep)
        try:
            await self._start(loop)
            await self._serve()
        finally:
            self._save_flows()
            self.enforcer.unwatch(loop)
            await self.worker.stop()
            self.enforcer.close()

    # Start

    async def _load(self) -> None:
        """Have the loader compile and pin, unless that has been done."""
        if is_current(self.settings.pins):
            return
        command = [sys.executable, "-m", "bulkhead.kernel.load", str(self.settings.pins)]
        process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        _, complaint = await process.communicate()
        if process.returncode:
            raise RefusedError(f"the loader failed: {complaint.decode(errors='replace').strip()}")

    async def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        enforcer = self.enforcer
        enforcer.stamp_sockets()
        self._load_flows()
        if enforcer.restore():
            self._in_force()
        else:
            await self._first_policy()
        enforcer.reinstate_quarantine()
        self._in_force()
        enforcer.watch(loop)
        self._started = True
        await self._apply_pending()
        enforcer.attach_devices()

    async def _first_policy(self) -> None:
        """Wait for the first commit. Without one the kernel keeps what it has; a fresh host is watched only."""
        try:
            await asyncio.wait_for(self._first_report.wait(), _FIRST_POLICY_S)
        except TimeoutError:
            self.policy.refused("", "no policy has been read yet")
        await self._apply_pending()
        if self.policy.source.error and not self.policy.error:
            self.policy.refused("", f"no policy has been read yet: {self.policy.source.error}")
        if not self.enforcer.maps.control().generation:
            self.enforcer.enforce(empty_bundle(self.settings.host))
            self._in_force()

    async def _apply_pending(self) -> None:
        reports, self._pending = self._pending, []
        for report in reports:
            await self._apply(report)

    # Policy

    async def _on_report(self, report: Report) -> None:
        if not self._started:
            self._pending.append(report)
            self._first_report.set()
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
            self._first_report.set()

    async def _apply(self, report: Report) -> None:
        """Switch to what was compiled, or keep what is in force and say why. While a policy is tried, it waits."""
        if self.trial is not None:
            self._waiting = report
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
            self._in_force()
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

    def _look(self) -> list[Drift]:
        found = self.enforcer.look()
        if found:
            self._in_force()
        if self.trial is not None and not self.enforcer.is_trying and not self._switching.locked():
            log.warning("nobody confirmed the policy that was tried", commit=self.trial.commit)
            self._ending = asyncio.create_task(self._trial_over())
        return found

    async def _examine_posture(self) -> None:
        if await self.enforcer.examine_posture():
            self._in_force()

    def _in_force(self) -> None:
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

    # Service

    async def _serve(self) -> None:
        async with AsyncExitStack() as stack:
            server = Server(self.settings.control_socket, self._reads(), self._changes(), {"watch": self._watch})
            await stack.enter_async_context(server)
            self.enforcer.on_hooks_changed = self.upkeep.hint
            posture = self.enforcer.posture.run(self._examine_posture)
            for task in (self._poll_events(), self._feed_watchdog(), posture, self.upkeep.run()):
                stack.callback(asyncio.create_task(task).cancel)
            self.is_ready = True
            self._notifier.notify(f"READY=1\nSTATUS=generation {self.enforcer.generation}")
            log.info("ready", host=self.settings.host, generation=self.enforcer.generation)
            if self.settings.metrics_port:
                await self._serve_metrics(stack)
            await self._stopping.wait()
            self._notifier.notify("STOPPING=1")
            log.info("stopping; what is enforced stays in force")

    async def _serve_metrics(self, stack: AsyncExitStack) -> None:
        """After readiness, and imported in a thread: an HTTP server takes longer to import than policy to enforce."""
        await asyncio.to_thread(importlib.import_module, "aiohttp.web")
        measured = partial(measure, self.answers, self.namer, self.enforcer, self.policy)
        collector = metrics.BulkheadCollector(measured)
        runner = await metrics.serve(collector, self.settings.metrics_host, self.settings.metrics_port)
        stack.push_async_callback(runner.cleanup)

    async def _poll_events(self) -> None:
        while True:
            await asyncio.sleep(EVENT_POLL_S)
            self.enforcer.read_verdicts()

    async def _feed_watchdog(self) -> None:
        period_us = int(os.environ.get("WATCHDOG_USEC", "0"))
        while period_us:
            self._notifier.notify("WATCHDOG=1")
            await asyncio.sleep(period_us / 1e6 / _WATCHDOG_SHARE)

    def _reads(self) -> dict[str, Callable[[Json], Awaitable[Json]]]:
        answers = self.answers
        return {
            "status": _answer(lambda _: answers.status()),
            "rules": _answer(lambda _: answers.rules()),
            "workloads": _answer(lambda args: answers.inventory() if args.get("inventory") else answers.workloads()),
            "drops": _answer(partial(self._records, verdicts=("deny", "would-deny"))),
            "flows": _answer(partial(self._records, verdicts=("allow", "deny", "would-deny"))),
            "minutes": _answer(self._minutes),
            "conversations": self._conversations,
            "names": _answer(lambda _: learned_names(self.enforcer, self.namer)),
            "why": _answer(self._why),
            "can": _answer(self._can),
        }

    def _changes(self) -> dict[str, ChangeHandler]:
        return {
            "reload": _change(self._reload),
            "rollback": self._rollback,
            "try": self._try,
            "confirm": self._confirm,
            "revert": self._revert,
            "quarantine": _change(self._quarantine),
            "release": _change(self._release),
        }

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
            self._in_force()
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
        self._in_force()
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            await self._apply(waiting)

    def _quarantine(self, args: Json, peer: Peer) -> Json:
        name, reason = _text(args, "workload"), _text(args, "reason")
        isolation = self.enforcer.isolate(name, reason, peer.uid)
        self._in_force()
        log.warning("isolated", workload=isolation.workload, reason=isolation.reason, uid=peer.uid)
        return asdict(isolation) | {"generation": self.enforcer.generation}

    def _release(self, args: Json, peer: Peer) -> Json:
        isolation = self.enforcer.release(_text(args, "workload"), peer.uid)
        self._in_force()
        log.warning("released", workload=isolation.workload, uid=peer.uid)
        return asdict(isolation) | {"generation": self.enforcer.generation}

    def _reload(self, _: Json, __: Peer) -> Json:
        self.worker.reload()
        return {}

    def _hangup(self) -> None:
        try:
            self.worker.reload()
        except UnreachableError as error:
            log.warning("cannot reload now", cause=str(error))

    def _records(self, args: Json, verdicts: tuple[str, ...]) -> Json:
        self.enforcer.read_verdicts()
        wanted = _wanted(args, verdicts)
        records = [flows.record_to_json(record) for record in self.flows.records(wanted)]
        totals, lost = self.answers.totals(), self.answers.lost()
        return {"records": records, "totals": totals, "lost": lost, "log": self.answers.flow_log(wanted)}

    def _minutes(self, _: Json) -> Json:
        self.enforcer.read_verdicts()
        return {
            "host": self.settings.host,
            "at": time.time(),
            "absent_s": self.flows.absent_s,
            "totals": self.answers.totals(),
            "lost": self.answers.lost(),
            "switches": switches(self.settings.generations),
            "minutes": self.flows.minutes.to_json(),
        }

    async def _conversations(self, _: Json) -> Json:
        # A machine can have a hundred thousand of them: events are heard meanwhile.
        return await asyncio.to_thread(conversations, self.enforcer, self.namer)

    def _tables(self) -> Any:
        if self.enforcer.bundle is None:
            raise UsageError("no policy is in force")
        return tables_of(self.enforcer.bundle)

    def _can(self, args: Json) -> Json:
        question = question_from_json(args)
        answer = explain.can(self._tables(), question, time.time(), observe_only=self.settings.observe_only)
        return explain.answer_to_json(answer)

    def _why(self, args: Json) -> Json:
        self.enforcer.read_verdicts()
        tables, question = self._tables(), question_from_json(args)
        answer = explain.can(tables, question, time.time(), observe_only=self.settings.observe_only)
        records = self.flows.records(explain.asked_about(tables, question))
        why = explain.why(records, answer, tables, self.answers.lost(), self.settings.host)
        ends = (answer.source, answer.destination)
        return why | {"withheld": [asdict(one) for one in self.enforcer.posture.standing if one.workload in ends]}

    async def _watch(self, args: Json) -> AsyncGenerator[Json, None]:
        wanted = _wanted(args, ("deny", "would-deny"))
        with self.flows.subscriptions.subscribe() as subscription:
            while True:
                record = await subscription.get()
                if wanted(record):
                    yield flows.record_to_json(record)

    # Events

    def _on_verdict(self, raw: bytes) -> None:
        record = self.flows.record(self._with_withheld_named(raw), self._context())
        if record is not None and record.verdict == "deny":
            log.warning("refused", **_refusal_fields(record))

    def _with_withheld_named(self, raw: bytes) -> bytes:
        """A refusal for posture, of the workload that would be the one: the kernel only knows that it is withheld."""
        event, plan = VerdictEvent.from_buffer_copy(raw), self.enforcer.attestation.plan
        if event.reason != DropReason.POSTURE or plan is None:
            return raw
        executable = event.exe_inode, event.exe_device, event.exe_generation
        process = self._process(flows.Sighting(event.tgid, event.cgroup_id, *executable))
        peer = self._peer(event.peer_tgid) if event.peer_tgid else None
        ends = [(one.cgroup, one.exe, uid) for one, uid in ((process, event.uid), (peer, None)) if one and one.cgroup]
        if event.local_identity == Identity.WITHHELD:  # of a call, or on lo, the process may be the other end's
            event.local_identity = plan.withheld_identity(ends)
        if event.remote_identity == Identity.WITHHELD:
            event.remote_identity = plan.withheld_identity(ends[::-1])
        return bytes(event)

    def _context(self) -> flows.Context:
        return flows.Context(self.namer, self._process, boot_offset_s(), self._peer)

    def _process(self, sighting: flows.Sighting) -> flows.Process | None:
        """What can still be told of an event's process; its control group is known even when it is gone."""
        path = self.enforcer.attestation.path_of(sighting.cgroup_id) or ""
        exe = self.enforcer.attestation.executable_path(
            sighting.exe_inode, sighting.exe_device, sighting.exe_generation
        )
        return flows.Process(exe, unit_of(path) or "" if path else "", path)

    def _peer(self, pid: int) -> flows.Process | None:
        """What a process of this machine is now; None when it is gone."""
        try:
            found = processes.read(pid)
        except KernelError:
            return None
        if found is None or found.cgroup_path is None:
            return None
        path = self.enforcer.tree.relative_of_namespace(found.cgroup_path)
        exe = found.executable.path if found.executable is not None else ""
        return None if path is None else flows.Process(exe, unit_of(path) or "", path)

    def _save_flows(self) -> None:
        path = self.settings.saved_flows
        fresh = path.with_suffix(".new")
        fresh.write_text(self.flows.dump())
        fresh.replace(path)

    def _load_flows(self) -> None:
        if not self.settings.saved_flows.exists():
            return
        try:
            self.flows.load(self.settings.saved_flows.read_text())
        except (BulkheadError, OSError, UnicodeDecodeError) as error:
            log.warning("the saved flow log cannot be used", cause=str(error))


def _refusal_fields(record: flows.FlowRecord) -> dict[str, object]:
    """The first refusal of a kind, for the journal."""
    return {
        "source": record.source,
        "destination": record.destination,
        "port": f"{record.port}/{record.protocol}",
        "address": record.remote_address,
        "direction": record.direction,
        "reason": record.reason,
        "comm": record.comm,
        "exe": record.exe,
        "unit": record.unit,
        "object_pid": record.pid,
        "commit": record.commit[:7],
        "generation": record.generation,
    }


def _wanted(args: Json, verdicts: tuple[str, ...]) -> Filter:
    """The filter that was asked for, within `verdicts`."""
    return filter_from_json({**args, "verdict": args.get("verdict") or list(verdicts)})


def _text(args: Json, key: str) -> str:
    value = args.get(key)
    if not isinstance(value, str) or not value:
        raise UsageError(f"the request lacks `{key}`")
    return value


def _change(function: Callable[[Json, Peer], Json]) -> ChangeHandler:
    async def handler(args: Json, peer: Peer) -> Json:
        return function(args, peer)

    return handler


def _answer(function: Callable[[Json], Json]) -> Callable[[Json], Awaitable[Json]]:
    async def handler(args: Json) -> Json:
        return function(args)

    return handler
