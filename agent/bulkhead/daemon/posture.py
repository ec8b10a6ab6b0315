"""Which workloads are not as their posture requires. Looked at often, and at once when a program starts.

Everything is asked again each time, which notices what no notification tells: a file that grows too old, a mount that
hides another. It is cheap: a file that has not changed is not read again.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from bulkhead.abi import Need
from bulkhead.dataplane.subjects import executable_id
from bulkhead.errors import BulkheadError
from bulkhead.identity import processes
from bulkhead.identity.cgroups import CgroupTree
from bulkhead.identity.posture import Examiner, Failure, FileKey, file_key, running_executable
from bulkhead.identity.processes import ExecutableKey
from bulkhead.identity.selectors import CgroupView, Identified
from bulkhead.kernel.attestation import Attestation, Plan
from bulkhead.observe.logs import Log
from bulkhead.policy.model import QualifiedName

log = Log()

INTERVAL_S: Final = 0.4
"""How often postures are looked at without an occasion, unless that takes long."""
INTERVAL_MAX_S: Final = 5.0
_SHARE: Final = 5
"""Between two looks passes this many times what one takes, until INTERVAL_MAX_S, however many programs start."""
_PAUSE_S: Final = 0.1
"""A storm of programs that start is one occasion for this long."""
_KEYS_KEPT: Final = 8192

Failing = Mapping[QualifiedName, tuple[Failure, ...]]


@dataclass(frozen=True, slots=True)
class Withheld:
    """A workload that is not as required."""

    workload: QualifiedName
    since: float
    """Unix seconds; of this agent."""
    failures: tuple[Failure, ...]


class PostureGuard:
    """Examines; what comes of it is the enforcer's business."""

    def __init__(self, examiner: Examiner, tree: CgroupTree, attestation: Attestation) -> None:
        self._examiner = examiner
        self._tree = tree
        self._attestation = attestation
        self._keys: dict[FileKey, ExecutableKey | None] = {}
        self._hint = asyncio.Event()
        self.standing: tuple[Withheld, ...] = ()
        """Of the generation in force."""

    # The clock

    def hint(self) -> None:
        """Something has happened: look now."""
        self._hint.set()

    async def run(self, look: Callable[[], Awaitable[None]]) -> None:
        """Look for ever."""
        while True:
            started = time.monotonic()
            try:
                await look()
            except BulkheadError as error:
                log.error("what posture requires could not be applied", cause=str(error))
            pause = max(_PAUSE_S, (time.monotonic() - started) * _SHARE)
            await asyncio.sleep(min(pause, INTERVAL_MAX_S))
            try:
                async with asyncio.timeout(max(0.0, INTERVAL_S - pause)):
                    await self._hint.wait()
            except TimeoutError:
                continue
            finally:
                self._hint.clear()

    # Looking

    def failing(self, plan: Plan, paths: Collection[str]) -> Failing:
        """Workloads of a plan that are not as required, in these control groups. Any thread may ask."""
        try:
            members = self._members(plan, paths)
        except (BulkheadError, OSError) as error:
            failure = Failure("processes", "can be examined", str(error))
            return {info.qualified: (failure,) for info in plan.required}
        found = {
            info.qualified: self._examiner.failures(info.posture, info.match.exe, members[info.qualified])
            for info in plan.required
        }
        return {name: failures for name, failures in found.items() if failures}

    def note(self, failing: Failing) -> None:
        """What fails in the generation in force, for those who ask, and for the log when it changes."""
        before = {one.workload: one for one in self.standing}
        now = time.time()
        self.standing = tuple(
            Withheld(name, before[name].since if name in before else now, failures)
            for name, failures in sorted(failing.items())
        )
        for one in self.standing:
            if one.workload not in before:
                first = one.failures[0]
                wanted = f"{first.term} {first.expected}"
                log.error("identity withheld", workload=one.workload, expected=wanted, found=first.found)
        for name in before.keys() - failing.keys():
            log.info("identity no longer withheld", workload=name)

    def _members(self, plan: Plan, paths: Iterable[str]) -> dict[QualifiedName, list[int]]:
        """Processes of the workloads that require something, as the kernel would place their sockets."""
        found: dict[QualifiedName, list[int]] = {info.qualified: [] for info in plan.required}
        if not found:
            return found
        numbers = {executable_id(path): path for path in plan.executables}
        for path in paths:
            view = plan.narrower.view(path)
            if not any(isinstance(one, Identified) and one.workload.qualified in found for one in view.table.values()):
                continue
            for pid in self._tree.members(path):
                outcome = view.decide(*self._facts(pid, view, numbers))
                if isinstance(outcome, Identified) and outcome.workload.qualified in found:
                    found[outcome.workload.qualified].append(pid)
        return found

    def _facts(
        self, pid: int, view: CgroupView, numbers: Mapping[int, str]
    ) -> tuple[str | None, int | None, int | None]:
        """Executable, uid and gid, where the view asks for them."""
        key = self._executable(pid) if view.needs & Need.EXECUTABLE else None
        exe = numbers.get(self._attestation.named_executable(key)) if key is not None else None
        if not view.needs & (Need.USER | Need.GROUP):
            return exe, None, None
        process = processes.read(pid)
        return (exe, process.uid, process.gid) if process is not None else (exe, None, None)

    def _executable(self, pid: int) -> ExecutableKey | None:
        """What a process runs, as the kernel knows the file. Its path could be made up in a mount namespace."""
        link = running_executable(pid)
        if link is None:
            return None
        try:
            state = file_key(os.stat(link))
        except FileNotFoundError:
            return None
        if state not in self._keys:
            running = processes.executable_of(int(link.split("/")[2]))
            if len(self._keys) >= _KEYS_KEPT:
                self._keys.clear()
            self._keys[state] = running.key if running is not None else None
        return self._keys[state]
