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
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import sdnotify

from bulkhead.config import Settings
from bulkhead.control.server import Server
from bulkhead.daemon.answers import Answers
from bulkhead.daemon.enforcer import EVENT_POLL_S, Enforcer, empty_bundle
from bulkhead.daemon.keys import KeyProcess
from bulkhead.daemon.measurements import measure
from bulkhead.daemon.probe import Prober
from bulkhead.daemon.proxy import take_down
from bulkhead.daemon.records import Records
from bulkhead.daemon.succession import Succession
from bulkhead.daemon.svids import SvidProcess
from bulkhead.daemon.upkeep import Upkeep
from bulkhead.errors import BulkheadError, RefusedError
from bulkhead.identity.cgroups import CgroupTree, find_mount
from bulkhead.kernel import attach, netns
from bulkhead.kernel.capabilities import require_capabilities
from bulkhead.kernel.load import is_current
from bulkhead.observe import logs, metrics
from bulkhead.registry.registry import open_registry
from bulkhead.svid.svids import Attested

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
        take_down(settings)
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
        self.succession = Succession(settings)
        self.records = Records(settings, self.succession.namer)
        self.keys = KeyProcess(settings)
        self.svids = SvidProcess(settings, self._attest)
        self.registry = open_registry(settings)
        self._notifier = sdnotify.SystemdNotifier()
        self._stopping = asyncio.Event()
        self.is_ready = False
        """Everything is in force: from here on an error must not open anything."""

    async def serve(self) -> None:
        """Start, serve until stopped, let go."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self.succession.hangup)
        self.succession.worker.start()
        self.keys.start()
        # A host that needs nobody's identity does not hold a process for it, until somebody calls.
        self.svids.start(at_once=self.settings.authority is not None or self.settings.registry != "files")
        try:
            await self._load()
            self.enforcer = Enforcer(self.settings, self.records.on_verdict, self.keys, self.registry, self.svids)
        except BaseException:
            await self._stop_children()
            raise
        self.upkeep = Upkeep(self.succession.look)
        self.answers = Answers(self.enforcer, self.succession.policy, self.records.flows, self.upkeep)
        self.succession.serve(self.enforcer, self.answers)
        self.records.serve(self.enforcer, self.answers)
        try:
            await self._start(loop)
            await self._serve()
        finally:
            self.records.save()
            self.enforcer.unwatch(loop)
            await self.enforcer.mesh.stop()
            await self._stop_children()
            self.enforcer.close()

    def _attest(self, pid: int) -> Attested:
        return self.enforcer.mesh.attest(pid)

    async def _stop_children(self) -> None:
        await self.svids.stop()
        await self.keys.stop()
        await self.succession.worker.stop()

    # Start

    async def _load(self) -> None:
        """Have the loader compile and pin, unless that has been done."""
        if is_current(self.settings.pins):
            return
        command = [sys.executable, "-m", "bulkhead.kernel.load", str(self.settings.pins), str(self.settings.cache_dir)]
        process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        _, complaint = await process.communicate()
        if process.returncode:
            raise RefusedError(f"the loader failed: {complaint.decode(errors='replace').strip()}")

    async def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        enforcer = self.enforcer
        enforcer.stamp_sockets()
        self.records.load()
        if enforcer.restore():
            self.succession.in_force()
        else:
            await self._first_policy()
        enforcer.reinstate_quarantine()
        self.succession.in_force()
        enforcer.watch(loop)
        await self.succession.begin()
        enforcer.attach_devices()

    async def _first_policy(self) -> None:
        """Wait for the first commit. Without one the kernel keeps what it has; a fresh host is watched only."""
        succession, policy = self.succession, self.succession.policy
        try:
            await asyncio.wait_for(succession.first_report.wait(), _FIRST_POLICY_S)
        except TimeoutError:
            policy.refused("", "no policy has been read yet")
        await succession.apply_pending()
        if policy.source.error and not policy.error:
            policy.refused("", f"no policy has been read yet: {policy.source.error}")
        if not self.enforcer.maps.control().generation:
            self.enforcer.enforce(empty_bundle(self.settings.host))
            succession.in_force()

    # Service

    async def _serve(self) -> None:
        async with AsyncExitStack() as stack:
            prober = Prober(self.enforcer, self.records)
            reads, changes = self.records.reads() | prober.reads(), self.succession.changes() | prober.changes()
            server = Server(self.settings.control_socket, reads, changes, {"watch": self.records.watch})
            await stack.enter_async_context(server)
            self.enforcer.on_hooks_changed = self.upkeep.hint
            self.enforcer.wire.on_drift = self.upkeep.note
            posture = self.enforcer.posture.run(self.succession.examine_posture)
            nodes = (self.registry.run(self.enforcer.wire.set_roster), self.enforcer.wire.run())
            mesh, upkeep = self.enforcer.mesh.run(), self.upkeep.run()
            for task in (self._poll_events(), self._feed_watchdog(), posture, upkeep, *nodes, mesh):
                stack.callback(asyncio.create_task(task).cancel)
            self.is_ready = self.succession.is_ready = True
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
        measured = partial(measure, self.answers, self.records.namer, self.enforcer, self.succession.policy)
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
