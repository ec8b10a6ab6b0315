"""Keeps the kernel doing what the last good commit says, and hears what it has to tell."""

from __future__ import annotations

import asyncio
import ctypes
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from bulkhead.abi import (
    EventFlag,
    ExecutableKey,
    LifecycleEvent,
    LifecycleKind,
    Loss,
    SockState,
    VerdictEvent,
)
from bulkhead.config import Settings
from bulkhead.daemon.keys import KeyProcess
from bulkhead.daemon.mesh import MeshKeeper
from bulkhead.daemon.posture import PostureGuard
from bulkhead.daemon.quarantine import Isolation, Quarantine
from bulkhead.daemon.svids import SvidProcess
from bulkhead.daemon.wire import WireIdentity
from bulkhead.dataplane import bundle as bundles
from bulkhead.dataplane.bundle import Bundle
from bulkhead.dataplane.compile import WorkloadInfo, compile_commit
from bulkhead.errors import BulkheadError, KernelError, RefusedError, UsageError
from bulkhead.identity import cgroups, processes
from bulkhead.identity.cgroups import CgroupTree
from bulkhead.identity.posture import Examiner
from bulkhead.identity.users import Users
from bulkhead.kernel import generation, sockets
from bulkhead.kernel.attach import Attachments, Programs
from bulkhead.kernel.attestation import Attestation, Plan, make_plan, survey
from bulkhead.kernel.audit import Auditor, Drift
from bulkhead.kernel.devices import (
    DeviceAdded,
    DeviceRemoved,
    DeviceWatcher,
    HooksChanged,
    Resync,
)
from bulkhead.kernel.diag import SocketDiag, SocketId
from bulkhead.kernel.libbpf import AttachType
from bulkhead.kernel.maps import KernelMaps, Staged
from bulkhead.kernel.ringbuf import RingBuffer
from bulkhead.kernel.steering import Steering, socket_ends
from bulkhead.kernel.wire import WireMaps
from bulkhead.observe.flows import address_text
from bulkhead.observe.logs import Log
from bulkhead.policy.model import Mode, PolicySet
from bulkhead.registry.registry import Registry

log = Log()

EVENT_POLL_S: Final = 0.1
"""How often verdict events are read: waking a reader per event would cost more than judging the packet."""
_EXECUTABLE_OFFSET: Final = int(vars(LifecycleEvent)["exe_inode"].offset)
_EXECUTABLE_SIZE: Final = ctypes.sizeof(ExecutableKey)
_EVENT_PATH_MAX: Final = int(vars(LifecycleEvent)["path"].size) - 1
_FLAGS_OFFSET: Final = int(vars(VerdictEvent)["flags"].offset)


def empty_bundle(host: str) -> bytes:
    """What is in force before any policy: nothing is allowed, nothing is dropped."""
    nothing = PolicySet(commit="", trust_domain="none.invalid", host_mode=Mode.OBSERVE)
    return bundles.pack(compile_commit(nothing, host, datetime.now(UTC)))


@dataclass(frozen=True, slots=True)
class _Change:
    """A bundle on its way into force."""

    packed: bytes
    bundle: Bundle
    plan: Plan
    slots: dict[str, int]
    staged: Staged


@dataclass(frozen=True, slots=True)
class _Tried:
    """What is in force until `until_s` (boot clock), and what was before."""

    packed: bytes
    before: Bundle | None
    until_s: int


class Enforcer:
    """One host's enforcement: maps, hooks, attestation. Everything but the event callbacks is synchronous."""

    def __init__(
        self,
        settings: Settings,
        on_verdict: Callable[[bytes], None],
        keys: KeyProcess,
        registry: Registry,
        svids: SvidProcess,
    ) -> None:
        self.settings = settings
        self._on_verdict = on_verdict
        self.tree = CgroupTree(settings.cgroup_root or cgroups.find_mount().mount_point)
        self.maps = KernelMaps(settings.pins)
        self.programs = Programs.open(settings.pins)
        self.attachments = Attachments(
            settings.pins,
            self.programs,
            self.tree.root,
            "clsact" if settings.prefer == "clsact" else "tcx",
            unused=frozenset() if settings.speaks else frozenset({AttachType.CGROUP_SOCK_OPS}),
        )
        self.attestation = Attestation(self.maps, self.tree)
        self.users = Users()
        self.hits = generation.HitSlots(settings.hit_slots)
        self.watcher = DeviceWatcher()
        self.diag = SocketDiag()
        self.bundle: Bundle | None = None
        self.generation = 0
        self.adoption = sockets.AdoptionReport()
        self.executables = 0
        self.hook_errors: dict[str, str] = {}
        """Devices that could not be hooked, with why."""
        steering = Steering(self.maps, self.attachments)
        self.auditor = Auditor(settings.pins, self.maps, self.programs, self.attachments, self.attestation, steering)
        self.wire = WireIdentity(settings, WireMaps(self.maps.fixed), keys, registry)
        self.mesh = MeshKeeper(
            *(settings, self.maps, self.tree, self.attestation, steering, self.wire, svids),
            isolated=self._isolated,
            catch_up=self.read_verdicts,
        )
        self.quarantine = Quarantine(settings.quarantine)
        self.posture = PostureGuard(Examiner(settings.health), self.tree, self.attestation)
        self.on_hooks_changed: Callable[[], None] = lambda: None
        self._switching = False
        self._tried: _Tried | None = None
        self._verdicts = RingBuffer(self.maps.fixed("verdict_events"))
        self._lifecycle = RingBuffer(self.maps.fixed("lifecycle_events"))
        self._losses_seen = 0

    def close(self) -> None:
        """Let go; everything stays in force."""
        for opened in (self._verdicts, self._lifecycle, self.watcher, self.diag, self.attachments, self.programs):
            opened.close()
        self.maps.close()

    # Start

    def stamp_sockets(self) -> None:
        """From here on every new socket is stamped; those that are there already are adopted."""
        if self.maps.end_inherited_trial():
            log.warning("the trial that an earlier agent began is over")
        attachments = self.attachments
        for change in (*attachments.attach_tracepoints(), *attachments.attach_cgroup(), *attachments.attach_netns()):
            log.info("attached", hook=change)
        found = processes.scan()
        self.executables = self.attestation.executables_running(found.processes)
        self.adoption = sockets.adopt(self.maps.fixed("sockets"), self.tree, found.processes)
        log.info("existing sockets looked at", outcome=str(self.adoption))

    def restore(self) -> bool:
        """Put the last good policy in force again; False when there is none."""
        if not self.settings.saved_bundle.exists():
            return False
        try:
            self.enforce(self.settings.saved_bundle.read_bytes())
        except BulkheadError as error:
            log.error("the saved policy cannot be used", cause=str(error))
            return False
        return True

    def attach_devices(self) -> None:
        """Hook every device. Raises KernelError when one cannot be hooked."""
        for change in self.attachments.sync_devices(self.watcher.devices()):
            log.info("attached", hook=change)

    # Policy

    def holds(self, packed: bytes) -> bool:
        """Is that what is in force already?"""
        fresh, held = bundles.read(packed), self.bundle
        return (
            held is not None
            and bool(fresh.commit)
            and fresh.commit == held.commit
            and fresh.policy_keys == held.policy_keys
            and fresh.policy_entries == held.policy_entries
        )

    def enforce(self, packed: bytes) -> int:
        """Switch to a bundle, in one step, and return the generation; on any error the old one stays in force."""
        change = self._prepare(packed)
        self.maps.hang(change.staged)
        return self._finish(change)

    async def enforce_soon(self, packed: bytes) -> int:
        """As `enforce`, with events heard while the kernel waits for packets that still read the old generation."""
        await self.mesh.prepare(bundles.read(packed))
        change = self._prepare(packed)
        self._switching = True
        try:
            await asyncio.to_thread(self.maps.hang, change.staged)
            generation = self._finish(change)
        finally:
            self._switching = False
        self.attestation.rescan()  # control groups that appeared meanwhile have an entry in the old generation only
        return generation

    # Trials

    async def begin_trial(self, packed: bytes, seconds: int) -> float:
        """Switch to a bundle that the kernel leaves again by itself; returns when (Unix seconds)."""
        await self.mesh.prepare(bundles.read(packed))
        until_s = int(time.clock_gettime(time.CLOCK_BOOTTIME)) + seconds
        change = self._prepare(packed, beside=self.bundle)
        self._switching = True
        try:
            await asyncio.to_thread(self.maps.hang, change.staged, until_s)
            self.generation = self.maps.adopt(change.staged)
            generation.zero_hits(self.maps, self.hits.keep(change.slots))
            self.attestation.try_plan(change.plan)
            self.posture.note(change.plan.failing)
            self._tried = _Tried(packed, self.bundle, until_s)
            self.bundle = change.bundle
            self.wire.settle(change.bundle, beside=self._tried.before)
            self.mesh.settle(change.bundle, beside=self._tried.before)
            self._record("try", seconds=seconds)
        finally:
            self._switching = False
        self.attestation.rescan()
        return until_s + generation.boot_offset_s()

    def confirm_trial(self) -> None:
        """What is tried stays. Raises RefusedError when nothing is, or its time is up."""
        tried = self._tried
        if tried is None or self.end_trial_in_time():
            raise RefusedError("no policy is being tried" if tried is None else "the trial has ended already")
        self.generation = self.maps.confirm()
        self.attestation.end_trial(stays=True)
        self._tried = None
        self._settle_wire()
        _write_file(self.settings.saved_bundle, tried.packed)
        self._record("confirm")

    def end_trial(self, why: str = "revert") -> None:
        """Go back to the generation before the trial. Raises RefusedError when there is no trial."""
        if self._tried is None:
            raise RefusedError("no policy is being tried")
        if not self.maps.has_reverted():
            self.maps.revert()
        self.attestation.end_trial(stays=False)
        self.generation, self.bundle, self._tried = self.maps.generation, self._tried.before, None
        self._settle_wire()
        self.attestation.rescan()
        self._record(why)

    def end_trial_in_time(self) -> bool:
        """End a trial whose time is up, or which the kernel has ended; whether one was ended."""
        if self._tried is None:
            return False
        if time.clock_gettime(time.CLOCK_BOOTTIME) < self._tried.until_s:
            return False
        self.end_trial("lapse")
        return True

    @property
    def is_trying(self) -> bool:
        """Whether what is in force is only tried."""
        return self._tried is not None

    def _prepare(self, packed: bytes, beside: Bundle | None = None) -> _Change:
        fresh = bundles.read(packed)
        if fresh.host not in (None, self.settings.host):
            raise KernelError(f"the bundle is for the host `{fresh.host}`")
        plan = make_plan(fresh, self.settings.host, self.users, self.settings.observe_only, self.settings.proxy_cgroup)
        self.attestation.name_executables(plan.executables)
        if plan.required:
            plan.failing = self.posture.failing(plan, [group.path for group in self.tree.walk().groups])
            plan.withhold(self._isolated())
        kept = beside.rules() if beside is not None else ()
        slots = self.hits.assign(dict.fromkeys(info.name for info in (*fresh.rules(), *kept)))
        tables = generation.tables(fresh, plan, survey(plan, self.tree), slots)
        self.wire.stage(fresh)
        return _Change(packed, fresh, plan, slots, self.maps.stage(tables))

    def _finish(self, change: _Change) -> int:
        self.generation = self.maps.adopt(change.staged)
        generation.zero_hits(self.maps, self.hits.keep(change.slots))
        self.attestation.adopt_plan(change.plan)
        self.posture.note(change.plan.failing)
        self.bundle = change.bundle
        self._settle_wire()
        _write_file(self.settings.saved_bundle, change.packed)
        self._record("commit")
        return self.generation

    def _settle_wire(self) -> None:
        if self.bundle is not None:
            self.wire.settle(self.bundle)
            self.mesh.settle(self.bundle)

    def _record(self, why: str, **details: object) -> None:
        """Which commit the generation in force is, and why there is a new one."""
        record = {
            "generation": self.generation,
            "commit": self.bundle.commit if self.bundle else "",
            "digest": self.bundle.digest if self.bundle else "",
            "at": time.time(),
            "why": why,
        }
        _append_line(self.settings.generations, record | details)

    # Beside policy

    def isolate(self, name: str, reason: str, uid: int) -> Isolation:
        """Cut a workload off, in the kernel, now. Raises UsageError for a name that is no workload of this commit."""
        found = [info for info in self._workloads() if name in (info.qualified, _short(info.qualified))]
        if not found:
            raise UsageError(f"`{name}` is no workload of the policy in force: `bulkhead workloads` lists them")
        if len(found) > 1:
            raise UsageError(f"`{name}` is several workloads: {', '.join(info.qualified for info in found)}")
        (workload,) = found
        isolation = Isolation(workload.qualified, workload.identity, time.time(), reason, uid)
        self.quarantine.add(isolation)
        self._apply_quarantine()
        self._withhold()
        self._record("quarantine", workload=isolation.workload, reason=reason, uid=uid)
        return isolation

    def release(self, name: str, uid: int) -> Isolation:
        """End an isolation: policy decides again."""
        known = [one.workload for one in self.quarantine if name in (one.workload, _short(one.workload))]
        isolation = self.quarantine.remove(known[0] if len(known) == 1 else name)
        self._withhold()
        self._apply_quarantine()
        self._record("release", workload=isolation.workload, uid=uid)
        return isolation

    def _workloads(self) -> Iterator[WorkloadInfo]:
        if self.bundle is not None:
            yield from self.bundle.workloads()

    def reinstate_quarantine(self) -> None:
        """Isolate again whom an operator has isolated, as after a reboot."""
        if self.quarantine.problem:
            log.error("what is isolated stays so", cause=self.quarantine.problem)
        elif self.quarantine or self.maps.isolated():
            self._apply_quarantine()
            self._record("quarantine", workloads=[one.workload for one in self.quarantine])

    def _apply_quarantine(self) -> None:
        offset = generation.boot_offset_s()
        wanted = {one.identity: max(1, int(one.since - offset)) for one in self.quarantine}
        self.generation = self.maps.isolate(wanted)
        self.mesh.attest_again()

    async def examine_posture(self) -> bool:
        """Withhold the identity of workloads that are not as required, and of no others; whether anything changed."""
        plans = [(plan, tuple(plan.paths.values())) for plan in self.attestation.plans() if plan.required]
        if not plans:
            self.posture.note({})
            return False
        found = await asyncio.to_thread(lambda: [self.posture.failing(*one) for one in plans])
        if self._switching:  # the plan in force is about to be another, which was examined on its way
            self.posture.hint()
            return False
        for (plan, _), failing in zip(plans, found, strict=True):
            plan.failing = failing
        if self.attestation.plan is not None:
            self.posture.note(self.attestation.plan.failing)
        return self._withhold()

    def _withhold(self) -> bool:
        if not self.attestation.withhold(self._isolated()):
            return False
        self.generation = self.maps.rejudge()
        self.mesh.attest_again()
        withheld = self.attestation.plan.answers.withheld if self.attestation.plan is not None else ()
        self._record("posture", withheld=sorted(withheld))
        return True

    def _isolated(self) -> frozenset[str]:
        """They keep their identity, by which they are isolated: that refuses more, in observe mode too."""
        return frozenset(one.workload for one in self.quarantine)

    def look(self) -> list[Drift]:
        """Compare the kernel with what was put there, and repair it; nothing while a generation is switched in."""
        if self._switching:
            return []
        self.end_trial_in_time()
        self.read_devices()  # a device that has only just appeared is no drift
        found = self.auditor.look(self.watcher.known())
        if self.maps.generation != self.generation:
            self.generation = self.maps.generation
            self._record("repair", found=[one.what for one in found])
        return found

    # Events

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hear events from now on."""
        loop.add_reader(self.maps.fixed("lifecycle_events").fd.fileno(), self.read_lifecycle)
        loop.add_reader(self.maps.fixed("verdict_events").fd.fileno(), self.read_verdicts)
        loop.add_reader(self.watcher.fileno(), self.read_devices)
        self.read_lifecycle()
        self.attestation.rescan()

    def unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stop hearing."""
        for fd in (self.maps.fixed("lifecycle_events").fd, self.maps.fixed("verdict_events").fd, self.watcher):
            loop.remove_reader(fd.fileno())

    def read_verdicts(self) -> None:
        """Hand on what was judged, and destroy the sockets of conversations that were cut."""
        for record in self._verdicts.drain():
            raw = bytes(record)
            self._on_verdict(raw)
            if raw[_FLAGS_OFFSET] & EventFlag.CUT:
                self._destroy(VerdictEvent.from_buffer_copy(raw))

    def _destroy(self, event: VerdictEvent) -> None:
        source, destination = socket_ends(event)
        wanted = SocketId(0, *source, *destination, event.ifindex)
        entry = self.diag.conversation(wanted)
        if entry is not None and self.diag.destroy(entry.socket_id, socket.IPPROTO_TCP):
            ends = (address_text(bytes(event.source)), event.source_port)
            report_destroyed(event, ends, (address_text(bytes(event.destination)), event.destination_port))

    def read_lifecycle(self) -> None:
        """Attest what has appeared."""
        for record in self._lifecycle.drain():
            self._lifecycle_event(bytes(record))
        lost = self._lost(Loss.LIFECYCLE)
        if lost != self._losses_seen:
            self._losses_seen = lost
            log.warning("lifecycle events were lost: looking at every control group and process again")
            self.attestation.rescan()
            self._look_again()

    def _lost(self, kind: Loss) -> int:
        losses = self.maps.fixed("losses")
        return losses.sum_words(losses.lookup(int(kind).to_bytes(4, "little")) or b"")[0]

    def _lifecycle_event(self, raw: bytes) -> None:
        event = LifecycleEvent.from_buffer_copy(raw)
        if event.kind == LifecycleKind.EXEC:
            key = raw[_EXECUTABLE_OFFSET : _EXECUTABLE_OFFSET + _EXECUTABLE_SIZE]
            self.attestation.executable_seen(key, event.tgid)
            self.posture.hint()
            if self.bundle is not None and self.bundle.executables:
                self._restamp(event.tgid)
            return
        path = self.tree.relative(event.path.decode(errors="surrogateescape"), event.cgroup_id)
        if path is None:
            return
        if len(event.path) >= _EVENT_PATH_MAX and event.kind != LifecycleKind.MOVED:
            self.attestation.rescan()  # the path was cut, and may be that of another group
        elif event.kind == LifecycleKind.CGROUP_MADE:
            self.attestation.cgroup_made(event.cgroup_id, path)
        elif event.kind == LifecycleKind.CGROUP_GONE:
            self.attestation.cgroup_gone(event.cgroup_id)
        elif event.kind == LifecycleKind.MOVED:
            self._restamp(event.tgid)

    def _look_again(self) -> None:
        """What an event did not tell: an executable that runs, a process that has moved or runs another program."""
        running = processes.scan().processes
        self.attestation.executables_running(running)
        for process in running:
            self._restamp(process.pid)

    def _restamp(self, pid: int) -> None:
        report = sockets.restamp(self.maps.fixed("sockets"), self.tree, pid)
        if report.stamped:
            log.info("a process changed its workload, its sockets are judged anew", pid=pid, outcome=str(report))

    def read_devices(self) -> None:
        """Hook what has appeared. A device that cannot be hooked is reported, and does not keep others from it."""
        for event in self.watcher.read():
            if isinstance(event, DeviceRemoved):
                self.attachments.forget_device(event.device.index)
                self.hook_errors.pop(event.device.name, None)
            elif isinstance(event, DeviceAdded):
                self._hook(partial(self.attachments.attach_device, event.device), event.device.name)
            elif isinstance(event, Resync):
                self._hook(lambda: self.attachments.sync_devices(self.watcher.devices()), "all devices")
            elif isinstance(event, HooksChanged):
                self.on_hooks_changed()

    def _hook(self, attach: Callable[[], list[str]], name: str) -> None:
        try:
            changes = attach()
        except BulkheadError as error:
            self.hook_errors[name] = str(error)
            log.error("cannot hook a device", device=name, cause=str(error))
            return
        self.hook_errors.pop(name, None)
        for change in changes:
            log.info("attached", hook=change)


def _short(qualified: str) -> str:
    return qualified.rpartition("/")[2]


def report_destroyed(owner: VerdictEvent | SockState, source: tuple[str, int], destination: tuple[str, int]) -> None:
    """Tell of a socket that was destroyed, whose it was and which conversation that ended."""
    log.info(
        "destroyed a socket whose conversation policy no longer allows",
        pid=owner.tgid,
        comm=owner.comm.decode(errors="replace"),
        source=_endpoint(*source),
        destination=_endpoint(*destination),
    )


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _write_file(path: Path, content: bytes) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(content)
    fresh.replace(path)


def _append_line(path: Path, record: dict[str, object]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
