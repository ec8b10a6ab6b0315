"""Control groups: where the unified hierarchy is mounted, which groups exist, who is in them.

The id of a control group is the 64-bit number that `bpf_get_current_cgroup_id` returns: the kernfs node id. On a 64-bit
kernel it is the inode number of the directory and the whole of its file handle; `CgroupTree` compares the two once, for
its root, and refuses a kernel on which they differ.

Three notations of one group meet here:

- *relative*: from the agent's root, `/` for the root itself. All of policy uses this one.
- *namespace path*: the `0::` line of /proc/PID/cgroup, from the root of the agent's cgroup namespace.
- *kernel path*: what tracepoints report, from the root of the real hierarchy.
"""

from __future__ import annotations

import errno
import os
import struct
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from bulkhead.errors import KernelError, RefusedError
from bulkhead.identity.handles import FileHandle, handle_of, open_handle
from bulkhead.identity.mounts import Mount, parse_mounts

_FILEID_KERNFS = 0xFE
_INITIAL_NAMESPACE_INODE = 0xEFFFFFFB
"""PROC_CGROUP_INIT_INO: the cgroup namespace the machine booted with."""
_HIERARCHY_ROOT_ID = 1
_GONE = (errno.ENOENT, errno.ENODEV, errno.ENOTDIR)


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A control group and its path relative to the agent's root."""

    cgroup_id: int
    path: str


@dataclass(frozen=True, slots=True)
class CgroupScan:
    """The groups that a walk found, parents before children. `complete` is false when its limit cut it short."""

    groups: tuple[Cgroup, ...]
    complete: bool


def find_mount(mountinfo: str | None = None) -> Mount:
    """The cgroup2 mount that shows most of the hierarchy, on unified and hybrid machines alike.

    Mounts that another mount hides are not used. Raises RefusedError when there is none.
    """
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    mounts = [mount for mount in parse_mounts(text) if mount.filesystem == "cgroup2"]
    visible = [mount for mount in mounts if _is_visible(mount)]
    if not visible:
        cause = "every mount of it is hidden or unreadable" if mounts else "it is not mounted"
        raise RefusedError(f"no cgroup2 hierarchy can be used: {cause}; `mount -t cgroup2 none DIRECTORY` provides one")
    return min(visible, key=lambda mount: (mount.root.split("/").count(".."), len(mount.root)))


def _is_visible(mount: Mount) -> bool:
    try:
        device = os.stat(mount.mount_point).st_dev
    except OSError:
        return False
    return os.major(device) << 20 | os.minor(device) == mount.device


class CgroupTree:
    """The control groups below one directory of the unified hierarchy: all that one agent attests.

    `root` is that directory. Raises RefusedError when it is not in a cgroup2 mount, or when this kernel's control
    group ids are not inode numbers.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._mount = _mount_of(self.root)
        self.root_id = _checked_id(self.root)
        self._namespace = _namespace_below(self._mount) if ".." in self._mount.root.split("/") else None
        self._below_mount = "/" + "/".join(self.root.relative_to(self._mount.mount_point).parts)
        self.kernel_root = _kernel_root(self._mount, self._below_mount)

    def walk(self, limit: int = 65536) -> CgroupScan:
        """Every group from the root down, breadth first, at most `limit`. Groups that vanish meanwhile are left out."""
        groups = [Cgroup(self.root_id, "/")]
        waiting = deque(["/"])
        while waiting:
            for group in self._children(waiting.popleft()):
                if len(groups) >= limit:
                    return CgroupScan(tuple(groups), complete=False)
                groups.append(group)
                waiting.append(group.path)
        return CgroupScan(tuple(groups), complete=True)

    def _children(self, path: str) -> list[Cgroup]:
        prefix = path.rstrip("/")
        try:
            with os.scandir(self.directory(path)) as entries:
                return [
                    Cgroup(entry.inode(), f"{prefix}/{entry.name}")
                    for entry in entries
                    if entry.is_dir(follow_symlinks=False)
                ]
        except OSError as error:
            if error.errno in _GONE:
                return []
            raise KernelError(f"cannot list control group `{path}`: {error.strerror}", error.errno or 0) from error

    def directory(self, path: str) -> Path:
        """The directory of a relative path."""
        return self.root / path.lstrip("/")

    def cgroup_id(self, path: str) -> int | None:
        """The id of the group at a relative path; None when there is none."""
        try:
            return os.stat(self.directory(path), follow_symlinks=False).st_ino
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise KernelError(f"cannot read control group `{path}`: {error.strerror}", error.errno or 0) from error

    def alive(self, group: Cgroup) -> bool:
        """Does that very group still exist? A group made anew under the same name has another id."""
        return self.cgroup_id(group.path) == group.cgroup_id

    def members(self, path: str) -> tuple[int, ...]:
        """The processes directly in the group, as the agent's pid namespace numbers them; empty when it is gone.

        Processes that this pid namespace cannot see are left out.
        """
        return tuple(int(pid) for pid in _listed(self.directory(path)) if pid != "0")

    def path_of(self, cgroup_id: int) -> str | None:
        """The relative path of a live group by its id; None when it is gone or outside the root.

        Needs CAP_DAC_READ_SEARCH; raises KernelError (EPERM) without.
        """
        path = self._kernfs_path(cgroup_id)
        return None if path is None else _below(str(self.root), path)

    def relative(self, kernel_path: str, cgroup_id: int = 0) -> str | None:
        """The relative path of a kernel path; None when it is outside the root.

        Inside a cgroup namespace the real name of the root is not readable anywhere. It is then learnt from the first
        event about a live group (`cgroup_id`) inside the root, and until then the answer is None.
        """
        if self.kernel_root is None:
            self._learn(kernel_path, cgroup_id)
        return None if self.kernel_root is None else _below(self.kernel_root, kernel_path)

    def relative_of_namespace(self, namespace_path: str) -> str | None:
        """The relative path of a namespace path; None when it is outside the root."""
        if self._namespace is None:
            path = _below(self._mount.root, namespace_path)
        else:
            path = _climb(self._namespace, namespace_path)
        return None if path is None else _below(self._below_mount, path)

    def _learn(self, kernel_path: str, cgroup_id: int) -> None:
        path = self.path_of(cgroup_id) if cgroup_id else None
        if path is None:
            return
        if path == "/":
            self.kernel_root = kernel_path
        elif kernel_path.endswith(path):
            self.kernel_root = kernel_path.removesuffix(path) or "/"

    def _kernfs_path(self, cgroup_id: int) -> str | None:
        root_fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = open_handle(root_fd, FileHandle(_FILEID_KERNFS, struct.pack("=Q", cgroup_id)))
        except KernelError as error:
            if error.errno == errno.ESTALE:
                return None
            raise
        finally:
            os.close(root_fd)
        try:
            return os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)


def _mount_of(root: Path) -> Mount:
    """The mount whose mount point is the nearest above `root`; the last one mounted there is the one that is seen."""
    mounts = list(parse_mounts(Path("/proc/self/mountinfo").read_text()))
    above = [mount for mount in mounts if root.is_relative_to(mount.mount_point)]
    nearest = max(above, key=lambda mount: (len(mount.mount_point.parts), mounts.index(mount)))
    if nearest.filesystem != "cgroup2":
        raise RefusedError(
            f"control group root `{root}` is on {nearest.filesystem}, not on cgroup2; set it to a directory below the "
            "cgroup2 mount that /proc/self/mountinfo names"
        )
    return nearest


def _checked_id(root: Path) -> int:
    try:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise RefusedError(f"cannot open control group root `{root}`: {error.strerror}") from error
    try:
        inode = os.fstat(fd).st_ino
        handle = handle_of(fd)
    finally:
        os.close(fd)
    if handle is None or handle.data != struct.pack("=Q", inode):
        raise RefusedError("this kernel's control group ids are not inode numbers; a 64-bit kernel of 5.5 or later is")
    return inode


def _kernel_root(mount: Mount, below_mount: str) -> str | None:
    """The kernel path of a directory of the mount; None inside a namespace that hides what is above."""
    if os.stat(mount.mount_point).st_ino == _HIERARCHY_ROOT_ID:
        return below_mount
    if os.stat("/proc/self/ns/cgroup").st_ino == _INITIAL_NAMESPACE_INODE:
        return "/".join((mount.root.rstrip("/"), *below_mount.split("/")[1:])).rstrip("/") or "/"
    return None


def _namespace_below(mount: Mount) -> tuple[str, ...] | None:
    """Where the namespace's root is below a mount that reaches above it (an agent in a container, the host's mount).

    The kernel names it only by `..`, so it is found from the group that holds this process; None when it is not there.
    """
    own = _climb((), _own_path())
    pid = str(os.getpid())
    for directory, _, files in os.walk(mount.mount_point):
        if "cgroup.procs" not in files or pid not in _listed(Path(directory)):
            continue
        parts = Path(directory).relative_to(mount.mount_point).parts
        names = tuple(own.split("/")[1:]) if own and own != "/" else ()
        if own is not None and parts[len(parts) - len(names) :] == names:
            return parts[: len(parts) - len(names)]
    return None


def _own_path() -> str:
    lines = Path("/proc/self/cgroup").read_text().split("\n")
    return next((line[3:] for line in lines if line.startswith("0::")), "/..")


def _listed(directory: Path) -> list[str]:
    try:
        return (directory / "cgroup.procs").read_text().split()
    except OSError as error:
        # A threaded group lists its processes only at the root of its threaded subtree.
        if error.errno in (*_GONE, errno.EOPNOTSUPP):
            return []
        raise KernelError(f"cannot read `{directory}`: {error.strerror}", error.errno or 0) from error


def _climb(base: tuple[str, ...], path: str) -> str | None:
    """`path` taken from `base`, its `..` followed; None when it climbs above the top."""
    names = list(base)
    for name in path.split("/"):
        if name != "..":
            names += [name] if name else []
        elif names:
            names.pop()
        else:
            return None
    return "/" + "/".join(names)


def _below(root: str, path: str) -> str | None:
    """`path` as seen from `root`, both absolute; None when it is not below. A path with `..` is never below."""
    if ".." in path.removeprefix(root).split("/"):
        return None
    if path == root:
        return "/"
    prefix = root if root.endswith("/") else root + "/"
    return "/" + path[len(prefix) :] if path.startswith(prefix) else None
