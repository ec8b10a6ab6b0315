"""Which workload a process is, told as the kernel tells it for a socket that the process would open now."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Final

from bulkhead.abi import Need
from bulkhead.dataplane.bundle import Bundle
from bulkhead.dataplane.subjects import executable_id
from bulkhead.errors import BulkheadError
from bulkhead.identity import processes
from bulkhead.identity.cgroups import CgroupTree
from bulkhead.identity.processes import ExecutableKey
from bulkhead.identity.selectors import CgroupView, Identified
from bulkhead.kernel.attestation import Plan
from bulkhead.observe.logs import Log
from bulkhead.policy.model import QualifiedName
from bulkhead.policy.spiffe import HOST
from bulkhead.svid.svids import Attested

log = Log()

NOBODY: Final = Attested()


def spiffe_ids(bundle: Bundle, host: str) -> dict[QualifiedName, str]:
    """The SPIFFE ID of every workload of this host."""
    return {info.qualified: info.svid.replace(HOST, host) for info in bundle.workloads() if info.local}


class Attesting:
    """Answers for the plan in force.

    `named` gives the number of an executable that policy names, as `Attestation.named_executable` does. `isolated` are
    the workloads in quarantine: they get no SVID, like those that are withheld for their posture.
    """

    def __init__(
        self,
        tree: CgroupTree,
        plan: Callable[[], Plan | None],
        named: Callable[[ExecutableKey], int],
        isolated: Callable[[], Collection[str]] = tuple,
        proxy: str = "",
    ) -> None:
        self.spiffe_ids: dict[QualifiedName, str] = {}
        """Of the workloads of the plan in force."""
        self._tree = tree
        self._plan = plan
        self._named = named
        self._isolated = isolated
        self._proxy = proxy
        """Control group of the node's proxy, from the tree's root; empty: it has none."""

    def attest(self, pid: int) -> Attested:
        """Who a process is. Nobody: it is gone, it is no workload, or that cannot be told."""
        try:
            return self._attest(pid)
        except (BulkheadError, OSError) as error:
            log.error("a caller of the Workload API cannot be attested", pid=pid, cause=str(error))
            return NOBODY

    def _attest(self, pid: int) -> Attested:
        plan, path = self._plan(), self._path(pid)
        if path is None:
            return NOBODY
        if self._proxy and path == self._proxy:
            return Attested(proxy=True)
        name = self._workload(plan, path, pid) if plan is not None else None
        found = self.spiffe_ids.get(name) if name is not None else None
        return Attested((found,)) if found is not None else NOBODY

    def _path(self, pid: int) -> str | None:
        process = processes.read(pid)
        if process is None or process.cgroup_path is None:
            return None
        return self._tree.relative_of_namespace(process.cgroup_path)

    def _workload(self, plan: Plan, path: str, pid: int) -> QualifiedName | None:
        view = plan.narrower.view(path)
        outcome = view.decide(*self._facts(plan, view, pid))
        if not isinstance(outcome, Identified):
            return None
        name = outcome.workload.qualified
        return None if name in plan.answers.withheld or name in self._isolated() else name

    def _facts(self, plan: Plan, view: CgroupView, pid: int) -> tuple[str | None, int | None, int | None]:
        """Executable, uid and gid, where the view asks for them."""
        exe = self._executable(plan, pid) if view.needs & Need.EXECUTABLE else None
        if not view.needs & (Need.USER | Need.GROUP):
            return exe, None, None
        process = processes.read(pid)
        return (exe, process.uid, process.gid) if process is not None else (exe, None, None)

    def _executable(self, plan: Plan, pid: int) -> str | None:
        """By the file, never by a path that a mount namespace could make up."""
        running = processes.executable_of(pid)
        number = self._named(running.key) if running is not None and running.key is not None else 0
        return next((path for path in plan.executables if executable_id(path) == number), None) if number else None

    def processes(self) -> dict[QualifiedName, int]:
        """A running process of each workload, for an upstream that attests by process. Reads every control group."""
        found: dict[QualifiedName, int] = {}
        for name, pid in self._running():
            found.setdefault(name, pid)
        return found

    def _running(self) -> Iterator[tuple[QualifiedName, int]]:
        plan = self._plan()
        for path in tuple(plan.paths.values()) if plan is not None else ():
            if plan is None or not any(isinstance(one, Identified) for one in plan.narrower.view(path).table.values()):
                continue
            for pid in self._tree.members(path):
                name = self._workload(plan, path, pid)
                if name is not None:
                    yield name, pid
