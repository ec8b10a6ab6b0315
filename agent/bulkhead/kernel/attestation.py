"""Who is who, kept true in the kernel's maps: control groups and executables as they come and go.

Everything here is driven by events (bpf/lifecycle.c). A control group that has no entry, and an executable that is not
attested, match nothing; the window between the event and the entry is therefore closed, only slow.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from bulkhead.abi import CgroupEntry, Identity, Mode, SockState
from bulkhead.abi import ExecutableKey as KernelKey
from bulkhead.dataplane.bundle import Bundle
from bulkhead.dataplane.compile import WorkloadInfo
from bulkhead.dataplane.subjects import Answers, ViewEntries, executable_id, view_entries
from bulkhead.errors import KernelError
from bulkhead.identity.cgroups import CgroupTree
from bulkhead.identity.globs import normal_path
from bulkhead.identity.posture import Failure
from bulkhead.identity.processes import ExecutableKey, Process, executable_at, executable_of, scan
from bulkhead.identity.selectors import Ambiguous, CgroupView, Identified, Narrower
from bulkhead.identity.users import Users
from bulkhead.kernel.libbpf import Map
from bulkhead.kernel.maps import KernelMaps, Table
from bulkhead.policy import model
from bulkhead.policy.model import QualifiedName

_PATHS_KEPT: Final = 8192
"""Executables whose path is remembered for reports after their processes have ended."""


@dataclass(slots=True)
class Plan:
    """How one generation sees control groups. Groups are numbered in the order in which their views are met."""

    narrower: Narrower
    answers: Answers
    executables: tuple[str, ...]
    groups: dict[CgroupView, int] = field(default_factory=dict)
    paths: dict[int, str] = field(default_factory=dict)
    """Control groups that have an entry, by id."""
    required: tuple[WorkloadInfo, ...] = ()
    """Workloads of this host with a posture."""
    failing: Mapping[QualifiedName, tuple[Failure, ...]] = field(default_factory=dict)
    """Those of them that are not as required."""
    proxy: str = ""
    """The control group of the node's proxy, which is nobody else whatever selectors say; empty: there is none."""

    def is_of_proxy(self, path: str) -> bool:
        """Whether a control group is the proxy's, or below it."""
        return bool(self.proxy) and f"{normal_path(path)}/".startswith(f"{self.proxy}/")

    def entries(self, path: str) -> tuple[ViewEntries, bool]:
        """What the kernel must hold for a control group, and whether its group of answers is a new one."""
        if self.is_of_proxy(path):
            mode = Mode.OBSERVE if self.answers.observe_only else Mode.ENFORCE
            return ViewEntries(bytes(CgroupEntry(identity=Identity.PROXY, mode=mode)), {}, {}), False
        view = self.narrower.view(path)
        is_new = bool(view.needs) and view not in self.groups
        number = self.groups.setdefault(view, len(self.groups) + 1) if view.needs else 0
        return view_entries(view, number, self.answers), is_new

    def withhold(self, exempt: frozenset[str]) -> None:
        """Make nobody of the workloads that are failing, but of those in `exempt`."""
        self.answers = replace(self.answers, withheld=frozenset(self.failing) - exempt)

    def tables(self) -> dict[str, dict[bytes, bytes]]:
        """What the tables of control groups, members and subjects must hold."""
        cgroups: dict[bytes, bytes] = {}
        members: dict[bytes, bytes] = {}
        subjects: dict[bytes, bytes] = {}
        for number, path in self.paths.items():
            cgroups[number.to_bytes(8, "little")] = self.entries(path)[0].entry
        for view, group in self.groups.items():
            entries = view_entries(view, group, self.answers)
            members |= entries.members
            subjects |= entries.subjects
        return {"cgroups": cgroups, "members": members, "subjects": subjects}

    def withheld_identity(self, ends: Iterable[tuple[str, str, int | None]]) -> int:
        """Which workload the first of these that is withheld would be. For reports only.

        `ends` are processes by control group, executable and user.
        """
        for path, exe, uid in ends:
            outcome = self.narrower.view(path).decide(exe, uid, None)
            if isinstance(outcome, Identified) and outcome.workload.qualified in self.answers.withheld:
                return self.answers.identities[outcome.workload.qualified]
        return int(Identity.WITHHELD)

    def ambiguous(self) -> list[tuple[str, tuple[str, ...]]]:
        """Control groups in which no workload can win, with the workloads that tie."""
        found: list[tuple[str, tuple[str, ...]]] = []
        for path in self.paths.values():
            for outcome in self.narrower.view(path).table.values():
                if isinstance(outcome, Ambiguous):
                    found.append((path, tuple(w.qualified for w in outcome.workloads)))
                    break
        return found


def make_plan(bundle: Bundle, host: str, users: Users, observe_only: bool, proxy: str = "") -> Plan:
    """The plan of a commit on this host. `proxy`: control group of the node's proxy, from the agent's root."""
    local = [info for info in bundle.workloads() if info.local]
    host_mode = Mode.ENFORCE if bundle.host_mode is model.Mode.ENFORCE and not observe_only else Mode.OBSERVE
    answers = Answers({info.qualified: info.identity for info in local}, host_mode, observe_only)
    users.refresh()
    narrower = Narrower([info.as_workload() for info in local], host, users.uid, users.gid)
    required = tuple(info for info in local if info.posture)
    return Plan(narrower, answers, bundle.executables, required=required, proxy=normal_path(proxy) if proxy else "")


def survey(plan: Plan, tree: CgroupTree) -> tuple[Table, Table, Table]:
    """Entries for every control group there is: `cgroups`, `members`, `subjects`."""
    cgroups: dict[bytes, bytes] = {}
    members: dict[bytes, bytes] = {}
    subjects: dict[bytes, bytes] = {}
    for group in tree.walk().groups:
        entries, is_new = plan.entries(group.path)
        cgroups[group.cgroup_id.to_bytes(8, "little")] = entries.entry
        plan.paths[group.cgroup_id] = group.path
        if is_new:
            members |= entries.members
            subjects |= entries.subjects
    return Table.of(cgroups), Table.of(members), Table.of(subjects)


class Attestation:
    """Applies lifecycle events to the generation in force."""

    def __init__(self, maps: KernelMaps, tree: CgroupTree) -> None:
        self._maps = maps
        self._tree = tree
        self._named: dict[bytes, int] = {}
        self._ever_named: dict[bytes, int] = {}
        """With what earlier generations named: a number stands for a path, and stays true of the file."""
        self._paths: OrderedDict[bytes, str] = OrderedDict()
        self.plan: Plan | None = None
        self._fallback: Plan | None = None
        """Of the generation that returns when a trial ends; its tables are kept true meanwhile."""

    def path_of(self, cgroup_id: int) -> str | None:
        """Path of a control group, known as long as it has an entry."""
        return self.plan.paths.get(cgroup_id) if self.plan else None

    def identity_of(self, state: SockState) -> int | None:
        """Identity of who opened a socket, as the policy in force selects; None: nobody that can be told."""
        path = self.path_of(state.cgroup_id)
        if self.plan is None or path is None:
            return None
        exe = self.executable_path(state.exe_inode, state.exe_device, state.exe_generation)
        outcome = self.plan.narrower.view(path).decide(exe or None, state.uid, state.gid)
        return self.plan.answers.identities.get(outcome.workload.qualified) if isinstance(outcome, Identified) else None

    def adopt_plan(self, plan: Plan) -> None:
        """From now on events are answered by `plan`, whose generation has just been switched in."""
        self.plan = plan
        self.name_executables(plan.executables)  # an exec since they were named was answered by the old plan

    def try_plan(self, plan: Plan) -> None:
        """As `adopt_plan`, for a trial: the plan before stays at hand."""
        self._fallback = self.plan
        self.adopt_plan(plan)

    def end_trial(self, *, stays: bool) -> None:
        """Go on with the plan that was tried, or with the one before."""
        returning, self._fallback = self._fallback, None
        if not stays and returning is not None:
            self.adopt_plan(returning)

    def cgroup_made(self, cgroup_id: int, path: str) -> None:
        """Give a control group its entry; what it points to is written first."""
        for plan, table in self._live():
            entries, is_new = plan.entries(path)
            if is_new:
                self._write(table("members"), entries.members)
                self._write(table("subjects"), entries.subjects)
            self._write(table("cgroups"), {cgroup_id.to_bytes(8, "little"): entries.entry})
            plan.paths[cgroup_id] = path

    def _live(self) -> Iterator[tuple[Plan, Callable[[str], Map | None]]]:
        """Plans whose tables are, or may come, in force, with where to find these."""
        if self.plan is not None:
            yield self.plan, self._maps.current
        if self._fallback is not None:
            yield self._fallback, self._maps.fallback

    def cgroup_gone(self, cgroup_id: int) -> None:
        """Forget a control group. Sockets that outlive it match nothing from the next generation on."""
        for plan, table in self._live():
            cgroups = table("cgroups")
            if cgroups is not None:
                cgroups.delete(cgroup_id.to_bytes(8, "little"))
            plan.paths.pop(cgroup_id, None)

    def rescan(self) -> int:
        """Compare with the control groups that are there, after events were lost; returns how many were missing."""
        if self.plan is None:
            return 0
        present = {group.cgroup_id: group.path for group in self._tree.walk().groups}
        missing = [(number, path) for number, path in present.items() if number not in self.plan.paths]
        for number, path in missing:
            self.cgroup_made(number, path)
        for number in [number for number in self.plan.paths if number not in present]:
            self.cgroup_gone(number)
        return len(missing)

    def expected(self) -> dict[str, dict[bytes, bytes]]:
        """What the tables of control groups, members and subjects must hold in the generation in force."""
        return self.plan.tables() if self.plan is not None else {}

    def plans(self) -> list[Plan]:
        """The plan in force, and behind it the one that returns when a trial ends."""
        return [plan for plan, _ in self._live()]

    def withhold(self, exempt: frozenset[str]) -> bool:
        """Write what `Plan.failing` comes to, of all workloads but those in `exempt`; whether anything changed.

        What was judged before has to be judged again.
        """
        changed = False
        for plan, table in self._live():
            if frozenset(plan.failing) - exempt == plan.answers.withheld:
                continue
            changed, before = True, plan.tables()
            plan.withhold(exempt)
            for name, entries in plan.tables().items():
                fresh = {key: value for key, value in entries.items() if before[name].get(key) != value}
                self._write(table(name), fresh)
        return changed

    def misnamed(self) -> dict[bytes, bytes]:
        """Executables that the kernel takes for a file that policy names though they are not, with their true number,
        and named ones that it does not know."""
        held = self._maps.fixed("executables").as_dict()
        wanted = {key: number.to_bytes(4, "little") for key, number in self._ever_named.items()}
        wrong = {key: wanted.get(key, bytes(4)) for key, value in held.items() if value != wanted.get(key, bytes(4))}
        missing = {key: wanted[key] for key in wanted.keys() - held.keys() if key in self._named}
        return wrong | missing

    @staticmethod
    def _write(target: Map | None, entries: dict[bytes, bytes]) -> None:
        if target is None:
            raise KernelError("a map of the generation in force is not open")
        table = Table.of(entries)
        target.update_batch(table.keys, table.values, table.count)

    def name_executables(self, paths: Iterable[str]) -> None:
        """Find the files that policy names. Before a switch: their numbers must be there when policy asks for them."""
        self._named = {}
        for path in paths:
            found = executable_at(path)
            if found is not None and found.key is not None and not found.deleted and found.path == path:
                self._named[kernel_key(found.key)] = executable_id(path)
        self._ever_named |= self._named
        executables = self._maps.fixed("executables")
        for key, number in self._named.items():
            executables.update(key, number.to_bytes(4, "little"))

    def named_executable(self, key: ExecutableKey) -> int:
        """The number of a file that policy names, or has named; 0 for every other."""
        return self._ever_named.get(kernel_key(key), 0)

    def executable_path(self, inode: int, device: int, generation: int) -> str:
        """Where an executable was when it was last seen to run; empty when it never was. For reports only."""
        return self._paths.get(bytes(KernelKey(inode=inode, device=device, generation=generation)), "")

    def _remember_path(self, key: bytes, path: str) -> None:
        self._paths[key] = path
        self._paths.move_to_end(key)
        if len(self._paths) > _PATHS_KEPT:
            self._paths.popitem(last=False)

    def executable_seen(self, key: bytes, pid: int) -> None:
        """Attest an executable that runs. The file, not the process, is asked: a process could change its tale."""
        running = executable_of(pid)
        if running is not None and running.key is not None and kernel_key(running.key) == key:
            self._remember_path(key, running.path)
        number = self._named.get(key)
        if number is None and self.plan is not None:
            self.name_executables(self.plan.executables)  # a package upgrade puts a new file in place
            number = self._named.get(key)
        self._attest(self._maps.fixed("executables"), key, number or 0)

    def executables_running(self, processes: Iterable[Process]) -> int:
        """Attest what runs already; returns how many different files. What an earlier agent attested stays as it is."""
        keys: set[bytes] = set()
        for process in processes:
            if process.executable is not None and process.executable.key is not None:
                key = kernel_key(process.executable.key)
                keys.add(key)
                self._remember_path(key, process.executable.path)
        executables = self._maps.fixed("executables")
        for key in keys:
            if executables.lookup(key) is None:
                self._attest(executables, key, self._named.get(key, 0))
        return len(keys)

    def _attest(self, executables: Map, key: bytes, number: int) -> None:
        try:
            executables.update(key, number.to_bytes(4, "little"))
        except KernelError:
            # full: forget the unnamed ones that do not run; each is attested again when it runs again
            kept = {kernel_key(p.executable.key) for p in scan().processes if p.executable and p.executable.key}
            keys, values = executables.lookup_batch()
            size = executables.info.key_size
            for index in range(len(values) // 4):
                one = keys[index * size : (index + 1) * size]
                if not any(values[index * 4 : index * 4 + 4]) and one not in kept:
                    executables.delete(one)
            executables.update(key, number.to_bytes(4, "little"))


def kernel_key(key: ExecutableKey) -> bytes:
    """An executable as the kernel programs write it. File systems that tell no generation hold 0."""
    return bytes(KernelKey(inode=key.inode, device=key.device, generation=key.generation or 0))
