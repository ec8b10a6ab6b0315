"""Which program hangs where, kept true: devices, control groups, the network namespace, tracepoints.

Everything is a link, pinned below `links/`, except where a kernel without tcx forces filters. What is attached is
therefore read back from the kernel, never remembered, and every call here is idempotent: after a restart the programs
of existing links are replaced in place, and no packet passes between the old one and the new.

    links/tcx_INDEX_DIRECTION    a device's hook; its link is dead (device index 0) once the device is gone
    links/clsact_INDEX           an empty directory: the clsact on that device is of our making
    links/cgroup_HOOK
    links/proxy_HOOK             at the control group of the node's proxy
    links/netns_sk_lookup        in the network namespace
    links/tracepoint_NAME
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from bulkhead.abi import Direction
from bulkhead.errors import KernelError, RefusedError
from bulkhead.kernel import clsact, libbpf
from bulkhead.kernel.clsact import Tc
from bulkhead.kernel.devices import Device, Framing, list_devices
from bulkhead.kernel.libbpf import AttachType, Fd, LinkInfo, LinkType
from bulkhead.kernel.netns import CURRENT
from bulkhead.kernel.programs import LOOKUP, PROGRAMS, PROXY_HOOKS, TRACEPOINTS

Mechanism = Literal["tcx", "clsact"]

_TCX_HOOKS: Final = {Direction.INGRESS: AttachType.TCX_INGRESS, Direction.EGRESS: AttachType.TCX_EGRESS}
_NO_UPDATE: Final = (errno.EINVAL, errno.EOPNOTSUPP)
"""A link whose program cannot be replaced: tracepoints, or a program of another type."""
_ALREADY_DETACHED: Final = (errno.ENOLINK, errno.EOPNOTSUPP, errno.EINVAL)
_LOOPBACK_INDEX: Final = 1


@dataclass(frozen=True, slots=True)
class DevicePrograms:
    """The two programs for one framing."""

    ingress: Fd
    egress: Fd

    def of(self, direction: Direction) -> Fd:
        return self.ingress if direction is Direction.INGRESS else self.egress


@dataclass(frozen=True, slots=True)
class Programs:
    """Every program, opened. Owns the descriptors. `tracepoints` is by the tracepoint's name."""

    opened: Mapping[str, Fd]
    """All of them, by name."""
    devices: Mapping[Framing, DevicePrograms]
    cgroup: Mapping[AttachType, Fd]
    tracepoints: Mapping[str, Fd]
    proxy: Mapping[AttachType, Fd] = field(default_factory=dict)
    """For the control group of the node's proxy."""
    lookup: Fd | None = None
    """For the network namespace."""

    @classmethod
    def open(cls, pins: Path) -> Programs:
        """Open what the loader pinned below `pins`. Raises KernelError when one is missing."""
        opened: dict[str, Fd] = {}
        try:
            for program in PROGRAMS:
                opened[program.name] = libbpf.obj_get(pins / "programs" / program.name)
        except KernelError:
            for fd in opened.values():
                fd.close()
            raise
        hooks = {p.name: AttachType(p.attach_type) for p in PROGRAMS if p.attach_type >= 0}
        return cls(
            opened=opened,
            devices={
                Framing.ETHERNET: DevicePrograms(opened["tc_ingress"], opened["tc_egress"]),
                Framing.BARE: DevicePrograms(opened["tc_ingress_bare"], opened["tc_egress_bare"]),
                Framing.LOOPBACK: DevicePrograms(opened["tc_ingress_loopback"], opened["tc_egress_loopback"]),
            },
            cgroup={hook: opened[name] for name, hook in hooks.items() if name not in (*PROXY_HOOKS, LOOKUP)},
            tracepoints={tracepoint: opened[name] for name, tracepoint in TRACEPOINTS.items()},
            proxy={hooks[name]: opened[name] for name in PROXY_HOOKS},
            lookup=opened[LOOKUP],
        )

    def close(self) -> None:
        """Close every descriptor; what is attached stays attached."""
        for fd in self.opened.values():
            fd.close()


@dataclass(frozen=True, slots=True)
class Attachment:
    """One hook as the kernel reports it. `position` 0: nothing runs before ours; -1: not known."""

    mechanism: str
    """`tcx`, `clsact`, `cgroup`, `proxy`, `netns` or `tracepoint`."""
    target: str
    """Device name, control group path, tracepoint name, or the network namespace's inode."""
    hook: str
    program_id: int
    position: int = -1


class Attachments:
    """Attaches the programs of one agent: one network namespace, one control group root, one directory of pins.

    Borrows `programs`. Holds every link open besides its pin, so that removing a pin by hand opens nothing.
    """

    def __init__(
        self,
        pins: Path,
        programs: Programs,
        cgroup: Path | None = None,
        prefer: Mechanism = "tcx",
        unused: frozenset[AttachType] = frozenset(),
    ) -> None:
        """`unused`: control group hooks that this agent has nothing to do at."""
        self._unused = unused
        self._proxy: Path | None = None
        self._proxy_inode = 0
        """Of the control group that was attached to last."""
        self._links = _LinkStore(pins / "links")
        self._programs = programs
        self._cgroup = cgroup
        self._tc = Tc()
        self.mechanism: Mechanism = "tcx" if prefer == "tcx" and tcx_is_available() else "clsact"
        """How devices are hooked on this kernel."""

    def close(self) -> None:
        """Let go of everything; what is attached stays attached."""
        self._tc.close()
        self._links.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def attach_all(self, devices: Iterable[Device]) -> list[str]:
        """Attach everything that is not yet, devices last; returns what was changed, for the log."""
        changes = [*self.attach_tracepoints(), *self.attach_cgroup(), *self.attach_netns(), *self.attach_proxy()]
        return changes + self.sync_devices(devices)

    def sync_devices(self, devices: Iterable[Device]) -> list[str]:
        """Hook exactly these devices: the whole list, as after start or lost notifications."""
        devices = tuple(devices)
        changes = [change for device in devices for change in self.attach_device(device)]
        present = {device.index for device in devices}
        for index in self._links.device_indexes() - present:
            self.forget_device(index)
        return changes

    def attach_device(self, device: Device) -> list[str]:
        """Hook one device in both directions. One that has gone meanwhile is no error."""
        hook = self._hook_by_tcx if self.mechanism == "tcx" else self._hook_by_clsact
        try:
            return [f"{device.name} {d.name.lower()}" for d in Direction if hook(device, d)]
        except KernelError as error:
            if error.errno != errno.ENODEV:
                raise
            self.forget_device(device.index)
            return []

    def forget_device(self, index: int) -> None:
        """Remove the pins of a device that is gone; the kernel has dropped the hooks with it."""
        self._links.forget_device(index)

    def attach_cgroup(self) -> list[str]:
        """Attach to the control group root. Raises RefusedError, naming the owner, when a hook is held exclusively."""
        if self._cgroup is None:
            return []
        used = {hook: program for hook, program in self._programs.cgroup.items() if hook not in self._unused}
        return self._attach_cgroup_hooks("cgroup", self._cgroup, used)

    def use(self, hook: AttachType) -> list[str]:
        """From now on there is something to do at this hook of the control group root; returns what was attached."""
        self._unused -= {hook}
        return self.attach_cgroup()

    def attach_proxy(self) -> list[str]:
        """Attach to the control group of the node's proxy, if `proxy_is_in` has named one that is there.

        Returns what had been detached. A group that has only just come, as with each start of the proxy, had nothing.
        """
        if self._proxy is None or not self._proxy.is_dir():
            return []
        inode, before = self._proxy.stat().st_ino, self._proxy_inode
        changes = self._attach_cgroup_hooks("proxy", self._proxy, self._programs.proxy)
        self._proxy_inode = inode
        return changes if inode == before else []

    def proxy_is_in(self, cgroup: Path | None) -> list[str]:
        """Attach to this control group as the proxy's, and to no other; returns what had been detached. None: to none.

        Raises RefusedError, naming the owner, when a hook is held exclusively.
        """
        self._proxy = cgroup
        if cgroup is None:
            for hook in self._programs.proxy:
                self._links.drop(f"proxy_{hook_name(hook)}")
        return self.attach_proxy()

    def attach_netns(self) -> list[str]:
        """Attach to the network namespace of the calling thread."""
        program = self._programs.lookup
        if program is None:
            return []
        with Fd(os.open(CURRENT, os.O_RDONLY | os.O_CLOEXEC)) as namespace:
            inode = os.fstat(namespace.fileno()).st_ino
            create = partial(libbpf.link_create, program, namespace.fileno(), AttachType.SK_LOOKUP)
            changed = self._links.ensure("netns_sk_lookup", program, lambda info: info.netns_inode == inode, create)
        return ["netns sk_lookup"] if changed else []

    def attach_tracepoints(self) -> list[str]:
        """Attach to the raw tracepoints."""
        return [
            f"tracepoint {name}"
            for name, program in self._programs.tracepoints.items()
            if self._links.ensure(
                f"tracepoint_{name}", program, _is_tracepoint, partial(libbpf.raw_tracepoint_open, name, program)
            )
        ]

    def report(self, devices: Iterable[Device]) -> list[Attachment]:
        """What is attached where, asked from the kernel now. A hook that is missing here is not enforced."""
        found = [a for device in devices for a in self._report_device(device)]
        for name, info in self._links.infos():
            kind, _, rest = name.partition("_")
            if kind == "cgroup" and info.cgroup_id:
                found.append(Attachment("cgroup", str(self._cgroup), rest, info.program_id))
            if kind == "proxy" and info.cgroup_id:
                found.append(Attachment("proxy", str(self._proxy), rest, info.program_id))
            if kind == "netns" and info.netns_inode:
                found.append(Attachment("netns", str(info.netns_inode), rest, info.program_id))
            if kind == "tracepoint":
                found.append(Attachment("tracepoint", rest, "raw", info.program_id))
        return found

    def unpinned(self) -> list[str]:
        """Links whose pin was removed behind our back; attaching again puts it back."""
        return self._links.unpinned()

    def behind_others(self, devices: Iterable[Device]) -> list[tuple[Device, Direction]]:
        """Hooks at which some other program sees packets first, and could keep them from ours."""
        return [
            (device, Direction[found.hook.upper()])
            for device in devices
            for found in self._report_device(device)
            if found.position > 0 and found.mechanism == self.mechanism
        ]

    def to_the_front(self, device: Device, direction: Direction) -> None:
        """Put a device's hook before all others. By way of the other mechanism: there is no moment without a hook."""
        if self.mechanism == "tcx":
            self._hook_by_clsact(device, direction)
            self._hook_by_tcx(device, direction)
        else:
            self._hook_by_clsact(device, direction)

    def detach_all(self) -> None:
        """Remove every hook and pin of ours. Nothing is enforced afterwards."""
        self._links.close()
        detach_all(self._links.directory)

    def _hook_by_tcx(self, device: Device, direction: Direction) -> bool:
        hook, program = _TCX_HOOKS[direction], self._programs.devices[device.framing].of(direction)

        def is_alive(info: LinkInfo) -> bool:
            # The query also tells apart a device of the same index in another network namespace.
            return info.ifindex == device.index and info.program_id in libbpf.prog_query(device.index, hook).program_ids

        def create() -> Fd:
            return libbpf.link_create(program, device.index, hook, libbpf.BPF_F_BEFORE)

        changed = self._links.ensure(_tcx_name(device.index, direction), program, is_alive, create)
        if changed:
            self._leave_clsact(device, direction)
        return changed

    def _hook_by_clsact(self, device: Device, direction: Direction) -> bool:
        program = self._programs.devices[device.framing].of(direction)
        chain = clsact.filters(self._tc, device, direction)
        wanted = libbpf.prog_info(program).program_id
        if chain and chain[0].is_ours and chain[0].program_id == wanted:
            self._links.drop(_tcx_name(device.index, direction))
            return False
        if clsact.qdisc_ensure(self._tc, device):
            self._links.mark_clsact(device.index)
        clsact.filter_put(self._tc, device, direction, program)
        self._links.drop(_tcx_name(device.index, direction))
        return True

    def _leave_clsact(self, device: Device, direction: Direction) -> None:
        """Only after tcx is in place: changing the mechanism leaves no gap."""
        if not clsact.filter_remove(self._tc, device, direction):
            return
        if self._links.is_clsact_ours(device.index) and clsact.qdisc_remove(self._tc, device):
            self._links.unmark_clsact(device.index)

    def _attach_cgroup_hooks(self, kind: str, cgroup: Path, programs: Mapping[AttachType, Fd]) -> list[str]:
        with Fd(os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as group:
            cgroup_id = os.fstat(group.fileno()).st_ino

            def is_alive(info: LinkInfo) -> bool:
                return info.cgroup_id == cgroup_id

            return [
                f"{cgroup} {hook_name(hook)}"
                for hook, program in programs.items()
                if self._links.ensure(
                    f"{kind}_{hook_name(hook)}", program, is_alive, partial(_attach_to, cgroup, group, hook, program)
                )
            ]

    def _report_device(self, device: Device) -> Iterator[Attachment]:
        for direction in Direction:
            info = self._links.info(_tcx_name(device.index, direction))
            if info is not None and info.ifindex == device.index:
                order = libbpf.prog_query(device.index, _TCX_HOOKS[direction]).program_ids
                position = order.index(info.program_id) if info.program_id in order else -1
                yield Attachment("tcx", device.name, direction.name.lower(), info.program_id, position)
            chain = clsact.filters(self._tc, device, direction) if clsact.is_taken(device, direction) else []
            for position, found in enumerate(chain):
                if found.is_ours:
                    yield Attachment("clsact", device.name, direction.name.lower(), found.program_id, position)


class _LinkStore:
    """The pinned links of one directory, each held open as well."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._held: dict[str, Fd] = {}
        directory.mkdir(mode=0o700, exist_ok=True)

    def close(self) -> None:
        for link in self._held.values():
            link.close()
        self._held.clear()

    def ensure(self, name: str, program: Fd, is_alive: Callable[[LinkInfo], bool], create: Callable[[], Fd]) -> bool:
        """Make link `name` run `program`: keep, update, or create it. False when nothing was to do."""
        wanted = libbpf.prog_info(program).program_id
        link = self._find(name)
        if link is not None:
            info = libbpf.link_info(link)
            if is_alive(info):
                self._repin(name, link, info)
                if info.program_id == wanted:
                    return False
                if _update(link, program):
                    return True
        self._replace(name, create())
        return True

    def drop(self, name: str) -> None:
        """Detach link `name` for good, and remove its pin."""
        link = self._find(name)
        (self.directory / name).unlink(missing_ok=True)
        if link is not None:
            del self._held[name]
            _detach(link)

    def info(self, name: str) -> LinkInfo | None:
        """What the kernel says about link `name`; None when there is none."""
        link = self._find(name)
        return None if link is None else libbpf.link_info(link)

    def infos(self) -> Iterator[tuple[str, LinkInfo]]:
        """Every link, by name, also those that an earlier agent left."""
        pinned = {name for name in os.listdir(self.directory) if not (self.directory / name).is_dir()}
        for name in sorted(pinned | self._held.keys()):
            link = self._find(name)
            if link is not None:
                yield name, libbpf.link_info(link)

    def unpinned(self) -> list[str]:
        """Links that are held and have no pin any more."""
        return [name for name in self._held if not (self.directory / name).exists()]

    def device_indexes(self) -> set[int]:
        """Devices that something in the directory belongs to."""
        names = (name.split("_") for name in os.listdir(self.directory))
        return {int(parts[1]) for parts in names if parts[0] in ("tcx", "clsact") and parts[1].isdigit()}

    def forget_device(self, index: int) -> None:
        for direction in Direction:
            self.drop(_tcx_name(index, direction))
        self.unmark_clsact(index)

    def mark_clsact(self, index: int) -> None:
        (self.directory / f"clsact_{index}").mkdir(mode=0o700, exist_ok=True)

    def unmark_clsact(self, index: int) -> None:
        if self.is_clsact_ours(index):
            (self.directory / f"clsact_{index}").rmdir()

    def is_clsact_ours(self, index: int) -> bool:
        return (self.directory / f"clsact_{index}").exists()

    def _find(self, name: str) -> Fd | None:
        if name not in self._held and (self.directory / name).exists():
            link = libbpf.obj_get(self.directory / name)
            if not libbpf.is_link(link):
                link.close()
                raise RefusedError(f"`{self.directory / name}` is no link: something else was pinned there")
            self._held[name] = link
        return self._held.get(name)

    def _repin(self, name: str, link: Fd, info: LinkInfo) -> None:
        """Put a pin back that was removed, or replaced, behind our back."""
        path = self.directory / name
        if path.exists():
            with libbpf.obj_get(path) as pinned:
                if libbpf.is_link(pinned) and libbpf.link_info(pinned).link_id == info.link_id:
                    return
            path.unlink()
        libbpf.obj_pin(link, path)

    def _replace(self, name: str, link: Fd) -> None:
        """Pin the new link over the old one, then let the old one go. Names in bpffs may not contain a dot."""
        fresh = self.directory / f"new_{name}"
        fresh.unlink(missing_ok=True)
        libbpf.obj_pin(link, fresh)
        fresh.rename(self.directory / name)
        old = self._held.pop(name, None)
        self._held[name] = link
        if old is not None:
            _detach(old)


def detach_all(links: Path) -> None:
    """Remove every hook of ours from the devices of this network namespace, and every link pinned in `links`.

    Needs no programs, so it also cleans up after an agent that cannot start. Nothing is enforced afterwards.
    """
    store = _LinkStore(links)
    with Tc() as tc:
        for device in list_devices():
            ours = [clsact.filter_remove(tc, device, direction) for direction in Direction]
            if any(ours) and store.is_clsact_ours(device.index):
                clsact.qdisc_remove(tc, device)
    for index in store.device_indexes():
        store.forget_device(index)
    for name in os.listdir(links):
        store.drop(name)


def tcx_is_available() -> bool:
    """Does this kernel hook devices by tcx? Older ones do not know the hook at all."""
    try:
        libbpf.prog_query(_LOOPBACK_INDEX, AttachType.TCX_INGRESS)
    except KernelError as error:
        if error.errno == errno.EINVAL:
            return False
        if error.errno != errno.ENODEV:
            raise
    return True


def hook_name(hook: AttachType) -> str:
    """`CGROUP_CONNECT4` -> `connect4`."""
    return hook.name.lower().removeprefix("cgroup_")


def _tcx_name(index: int, direction: Direction) -> str:
    return f"tcx_{index}_{direction.name.lower()}"


def _is_tracepoint(info: LinkInfo) -> bool:
    return info.link_type == LinkType.RAW_TRACEPOINT


def _update(link: Fd, program: Fd) -> bool:
    try:
        libbpf.link_update(link, program)
    except KernelError as error:
        if error.errno not in _NO_UPDATE:
            raise
        return False
    return True


def _detach(link: Fd) -> None:
    with link:
        try:
            libbpf.link_detach(link)
        except KernelError as error:
            if error.errno not in _ALREADY_DETACHED:
                raise


def _attach_to(cgroup: Path, group: Fd, hook: AttachType, program: Fd) -> Fd:
    try:
        return libbpf.link_create(program, group.fileno(), hook)
    except KernelError as error:
        if error.errno == errno.EPERM:
            raise _cgroup_refusal(cgroup, hook, error) from error
        raise


def _cgroup_refusal(cgroup: Path, hook: AttachType, error: KernelError) -> RefusedError:
    """Who holds the hook: at the control group itself, or exclusively above it."""
    device = cgroup.stat().st_dev
    for directory in (cgroup, *cgroup.parents):
        if directory.stat().st_dev != device:
            break
        with Fd(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
            attached = libbpf.prog_query(fd.fileno(), hook)
        if attached.program_ids and not attached.flags & libbpf.ATTACH_FLAG_MULTI:
            owners = ", ".join(_program_text(program_id) for program_id in attached.program_ids)
            return RefusedError(f"the hook {hook_name(hook)} of `{directory}` is held exclusively by {owners}")
    return RefusedError(f"{error}: needs CAP_NET_ADMIN and CAP_BPF")


def _program_text(program_id: int) -> str:
    try:
        with libbpf.prog_get_by_id(program_id) as program:
            return f"`{libbpf.prog_info(program).name}` (program {program_id})"
    except KernelError as error:
        return f"program {program_id} (name not known: {error})"
