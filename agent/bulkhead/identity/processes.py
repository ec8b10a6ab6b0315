"""Processes: what the kernel can prove about one, and nothing that the process says of itself.

Executables are compared as the kernel knows them: inode number, device and inode generation. The device is the
superblock's (`s_dev`), which st_dev is not on btrfs and overlay: it is taken from the mount that the file was opened
through. An open descriptor pins that mount, so its number cannot come to mean another one between the two reads.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bulkhead.errors import KernelError
from bulkhead.identity.handles import handle_of
from bulkhead.identity.mounts import mount_device

_FS_IOC_GETVERSION = 0x80087601
_FILEID_INO32_GEN = 1
_DELETED = " (deleted)"
_GONE = (errno.ENOENT, errno.ESRCH, errno.ENOTDIR)
_NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class ExecutableKey:
    """An executable as the kernel knows it. `device` is `major << 20 | minor` of its superblock.

    `generation` is None where the filesystem does not tell it; the kernel's own record then holds whatever it holds.
    """

    inode: int
    device: int
    generation: int | None

    def agrees(self, other: ExecutableKey) -> bool:
        """Do both name one file, as far as both are known?"""
        if (self.inode, self.device) != (other.inode, other.device):
            return False
        return self.generation is None or other.generation is None or self.generation == other.generation


@dataclass(frozen=True, slots=True)
class Executable:
    """What a process runs. `path` has its symlinks resolved and is written from the process's own mount namespace.

    `key` is None when the device cannot be proven. `deleted`: the file was unlinked or replaced since.
    """

    path: str
    key: ExecutableKey | None
    deleted: bool


@dataclass(frozen=True, slots=True)
class Process:
    """A process at one moment. `uid` and `gid` are the effective ones; `real_uid` and `real_gid` the real ones."""

    pid: int
    comm: str
    started_ns: int
    """Nanoseconds since boot (CLOCK_BOOTTIME), to the clock tick."""
    uid: int
    gid: int
    real_uid: int
    real_gid: int
    cgroup_path: str | None
    """From the root of the reader's cgroup namespace; None when the group has been removed."""
    executable: Executable | None
    """None for kernel threads and zombies, and where the kernel refuses to tell."""
    refused: bool
    """The kernel refused to tell the executable: CAP_SYS_PTRACE is missing, or the process is shielded."""


@dataclass(frozen=True, slots=True)
class ProcessScan:
    """All processes seen, oldest first."""

    processes: tuple[Process, ...]
    vanished: int
    """Ended while the scan was running."""
    complete: bool
    """False when the limit cut the scan short."""

    @property
    def refused(self) -> int:
        """Processes whose executable the kernel refused to tell."""
        return sum(process.refused for process in self.processes)


def scan(limit: int = 65536) -> ProcessScan:
    """Facts on every process that /proc shows, at most `limit`."""
    found: list[Process] = []
    vanished = 0
    for pid in _pids():
        if len(found) >= limit:
            return ProcessScan(_oldest_first(found), vanished, complete=False)
        process = read(pid)
        if process is None:
            vanished += 1
        else:
            found.append(process)
    return ProcessScan(_oldest_first(found), vanished, complete=True)


def _oldest_first(found: list[Process]) -> tuple[Process, ...]:
    return tuple(sorted(found, key=lambda process: (process.started_ns, process.pid)))


def _pids() -> Iterator[int]:
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdigit():
                yield int(entry.name)


def read(pid: int) -> Process | None:
    """Facts on one process; None when it is gone."""
    try:
        comm, started_ns = _stat(pid)
        uids, gids = _credentials(pid)
        cgroup_path = _cgroup_path(pid)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise _refused(pid, error) from error
    executable, refused = _executable_if_told(pid)
    return Process(pid, comm, started_ns, uids[1], gids[1], uids[0], gids[0], cgroup_path, executable, refused)


def _executable_if_told(pid: int) -> tuple[Executable | None, bool]:
    try:
        return executable_of(pid), False
    except KernelError as error:
        if error.errno not in (errno.EACCES, errno.EPERM):
            raise
        return None, True


def executable_of(pid: int) -> Executable | None:
    """What the process runs; None for kernel threads, zombies and processes that are gone.

    Raises KernelError when the kernel refuses.
    """
    try:
        fd = os.open(f"/proc/{pid}/exe", os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise _refused(pid, error) from error
    try:
        path = os.readlink(f"/proc/self/fd/{fd}")
        return Executable(path.removesuffix(_DELETED), _key(fd, pid), path.endswith(_DELETED))
    finally:
        os.close(fd)


def executable_at(path: str) -> Executable | None:
    """The executable at `path` as this process sees it, symlinks resolved; None when there is no such regular file."""
    try:
        fd = os.open(os.path.realpath(path), os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (*_GONE, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG):
            return None
        raise KernelError(f"cannot open `{path}`: {error.strerror}", error.errno or 0) from error
    try:
        if not os.path.isfile(f"/proc/self/fd/{fd}"):
            return None
        resolved = os.readlink(f"/proc/self/fd/{fd}")
        return Executable(resolved.removesuffix(_DELETED), _key(fd, os.getpid()), resolved.endswith(_DELETED))
    finally:
        os.close(fd)


def attest(pid: int, expected: ExecutableKey) -> str | None:
    """The absolute path of the executable that the kernel reported as `expected` for this process.

    None when that cannot be proven: the process is gone or runs something else by now, the file was deleted or
    replaced, its device is unknown, or the path leads to another file on this machine. The last one is what a process
    with a mount namespace of its own would use to pass for a program that it is not: `unshare -rm` and a bind mount
    put any file at any path. The answer is a fact about the file, so a reused pid cannot spoil it.

    Raises KernelError when the kernel refuses to tell.
    """
    running = executable_of(pid)
    if running is None or running.deleted or running.key is None or not running.key.agrees(expected):
        return None
    here = executable_at(running.path)
    if here is None or here.deleted or here.key is None or not here.key.agrees(expected):
        return None
    return here.path


def sockets_of(pid: int) -> dict[int, int]:
    """`{fd: inode}` of every socket the process holds; empty when it is gone.

    Raises KernelError when the kernel refuses (CAP_SYS_PTRACE).
    """
    found: dict[int, int] = {}
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                inode = _socket_inode(entry.path)
                if inode is not None:
                    found[int(entry.name)] = inode
    except OSError as error:
        if error.errno not in _GONE:
            raise _refused(pid, error) from error
    return found


def _socket_inode(link: str) -> int | None:
    try:
        target = os.readlink(link)
    except FileNotFoundError:
        return None
    return int(target[8:-1]) if target.startswith("socket:[") else None


def _stat(pid: int) -> tuple[str, int]:
    text = Path(f"/proc/{pid}/stat").read_bytes()
    # The name is in parentheses and may hold any byte, parentheses included: its end is the last one.
    opening, closing = text.index(b"("), text.rindex(b")")
    ticks = int(text[closing + 2 :].split()[19])
    return os.fsdecode(text[opening + 1 : closing]), ticks * _NS_PER_TICK


def _credentials(pid: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """((real uid, effective uid), (real gid, effective gid))."""
    ids: dict[bytes, tuple[int, int]] = {}
    for line in Path(f"/proc/{pid}/status").read_bytes().split(b"\n"):
        if line.startswith((b"Uid:", b"Gid:")):
            label, real, effective = line.split()[:3]
            ids[label] = (int(real), int(effective))
    return ids[b"Uid:"], ids[b"Gid:"]


def _cgroup_path(pid: int) -> str | None:
    for line in os.fsdecode(Path(f"/proc/{pid}/cgroup").read_bytes()).split("\n"):
        if line.startswith("0::"):
            path = line[3:]
            return None if path.endswith(_DELETED) else path
    return None


def _key(fd: int, pid: int) -> ExecutableKey | None:
    """The key of an open file. `pid` names the process whose mount namespace most likely has its mount."""
    device = _device(fd, pid)
    if device is None:
        return None
    inode = os.fstat(fd).st_ino
    return ExecutableKey(inode, device, _generation(fd, inode))


def _device(fd: int, pid: int) -> int | None:
    mount_id = _mount_id(fd)
    # A process that made its mount namespace after exec still runs from a mount of the one it left. Mount numbers are
    # unique over all namespaces, so whichever lists this one is right.
    for place in dict.fromkeys((os.getpid(), pid, 1)):
        device = mount_device(_mountinfo(place), mount_id)
        if device is not None:
            return device
    return None


def _mountinfo(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/mountinfo").read_bytes()
    except OSError as error:
        # EINVAL: a zombie has no mount namespace left.
        if error.errno in (*_GONE, errno.EACCES, errno.EPERM, errno.EINVAL):
            return b""
        raise


def _mount_id(fd: int) -> int:
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().split("\n"):
        if line.startswith("mnt_id:"):
            return int(line[7:])
    raise KernelError("/proc/self/fdinfo names no mount: this kernel is older than 3.15")


def _generation(fd: int, inode: int) -> int | None:
    generation = _generation_by_ioctl(fd)
    return _generation_by_handle(fd, inode) if generation is None else generation


def _generation_by_ioctl(fd: int) -> int | None:
    try:
        readable = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        # Executables need not be readable; what cannot be asked is not known.
        return None
    try:
        answer = fcntl.ioctl(readable, _FS_IOC_GETVERSION, bytes(8))
    except OSError:
        return None
    finally:
        os.close(readable)
    # Declared with a long, but the kernel writes an int.
    return int(struct.unpack_from("=I", answer)[0])


def _generation_by_handle(fd: int, inode: int) -> int | None:
    """From the file handle. tmpfs has no such ioctl but puts (generation, inode) into its handles."""
    handle = handle_of(fd)
    if handle is None or handle.kind != _FILEID_INO32_GEN or len(handle.data) != 12:
        return None
    generation, low, high = struct.unpack("=III", handle.data)
    return int(generation) if high << 32 | low == inode else None


def _refused(pid: int, error: OSError) -> KernelError:
    return KernelError(f"cannot inspect process {pid}: {error.strerror}", error.errno or 0)
