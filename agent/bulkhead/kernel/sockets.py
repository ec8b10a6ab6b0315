"""Sockets that are older than the hooks, and sockets whose process has become someone else.

A hook stamps a socket with its origin (control group, executable, user, process) when it is made. For the others the
agent does it from outside: it borrows the descriptor with pidfd_getfd(2) and writes the socket's storage through it.
A stamp that a hook gave is never overwritten by adoption, because only the hook knows who made the socket; adoption
sees who holds it, and takes the oldest holder.

What cannot be reached this way, and is counted or named where it can be: sockets that no process's descriptor table
shows (in a listen queue, in flight between processes, held only by io_uring or by a thread with a table of its own),
the subflows of MPTCP, and processes that the kernel shields. They have no origin, so they match no policy.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bulkhead.abi import Direction, SockFlag, SockState
from bulkhead.errors import KernelError, RefusedError
from bulkhead.identity.cgroups import CgroupTree
from bulkhead.identity.processes import Process, read, sockets_of
from bulkhead.kernel.diag import TALKING, SocketState
from bulkhead.kernel.libbpf import BPF_EXIST, BPF_NOEXIST, Map

_SYS_PIDFD_GETFD = {"x86_64": 438, "aarch64": 438}
_SO_COOKIE = 57
_SO_NETNS_COOKIE = 71
_PEER_GENERATION_BITS = 0xFFFF
_REFUSALS = (errno.EPERM, errno.EACCES)
_LIBC = ctypes.CDLL(None, use_errno=True)

Accepting = frozenset[tuple[int, int]]
"""(network namespace cookie, TCP port) of every listening socket."""


@dataclass(frozen=True, slots=True)
class SocketFacts:
    """What a socket says of itself. `uid` and `gid` are those of the one who made it, not of the one who holds it."""

    cookie: int
    netns_cookie: int
    uid: int
    gid: int
    raw: bool
    tcp_state: SocketState | None
    """None unless it is a TCP socket."""
    local_port: int
    """0 unless it is a TCP socket."""


@dataclass(frozen=True, slots=True)
class AdoptionReport:
    """What became of the sockets that were looked at. One socket held through two descriptors counts twice."""

    stamped: int = 0
    kept: int = 0
    """Carried a stamp already, or belong to another process."""
    unopened: int = 0
    """Sockets that are there but that the kernel refused to hand over."""
    closed: int = 0
    """Closed while being looked at."""
    refused: tuple[int, ...] = ()
    """Processes whose descriptors the kernel refused to list; how many sockets they hold is not known."""
    outside: int = 0
    """Processes outside the agent's control group root: not this agent's business."""

    @property
    def complete(self) -> bool:
        """Was every socket reached that a descriptor shows?"""
        return not self.unopened and not self.refused

    def __str__(self) -> str:
        text = f"{self.stamped} sockets stamped, {self.kept} kept"
        if self.unopened:
            text += f"; sockets that could not be opened: {self.unopened}"
        if self.refused:
            text += f"; processes whose sockets could not be listed: {len(self.refused)}"
        return text if self.complete else text + "; what was not reached stays unattested"


def adopt(storage: Map, tree: CgroupTree, processes: Sequence[Process]) -> AdoptionReport:
    """Stamp every inet socket of `processes` (oldest first) that carries no origin yet.

    Repeating it is harmless. Raises KernelError when the storage map cannot be written, and RefusedError on a kernel
    without pidfd_getfd(2).
    """
    accepting = _accepting(processes)
    tally = _Tally()
    for process in processes:
        cgroup_id = _cgroup_id(tree, process)
        if cgroup_id is None:
            tally.outside += 1
            continue
        for one in _borrow(process.pid, tally):
            with one:
                tally.outcomes[_adopt_one(storage, one, process, cgroup_id, accepting)] += 1
    return tally.report()


def restamp(storage: Map, tree: CgroupTree, pid: int) -> AdoptionReport:
    """Give the sockets that process `pid` made its present control group and executable, and have them judged anew.

    For a process that was moved or runs a new program. Sockets that another process made are left as they are, and so
    are user and group, which are those at the time of opening. Outside the root, or with an unknown executable, the
    new origin matches nothing. A process that is gone has nothing to stamp. Raises as `adopt` does.
    """
    tally = _Tally()
    process = read(pid)
    if process is None:
        return tally.report()
    cgroup_id = _cgroup_id(tree, process) or 0
    for one in _borrow(pid, tally):
        with one:
            tally.outcomes[_restamp_one(storage, one, process, cgroup_id)] += 1
    return tally.report()


def listening(pid: int, port: int) -> Iterator[socket.socket]:
    """A duplicate of each TCP socket of process `pid` that listens on `port`; the caller closes it.

    Raises KernelError when the kernel does not let its descriptors be seen, RefusedError without pidfd_getfd(2).
    """
    tally = _Tally()
    for one in _borrow(pid, tally):
        facts = facts_of(one)
        if facts.tcp_state is SocketState.LISTEN and facts.local_port == port:
            yield one
        else:
            one.close()
    if tally.refused or tally.outcomes["unopened"]:
        raise KernelError(f"the sockets of process {pid} cannot be seen", errno.EPERM)


def netns_cookie() -> int:
    """The number of the calling thread's network namespace, as the programs know it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        return _cookie(one, _SO_NETNS_COOKIE)


def read_state(storage: Map, fd: int) -> SockState | None:
    """What is stored in a socket; None when nothing is. `fd` is a descriptor of this process."""
    value = storage.lookup(struct.pack("=i", fd))
    return None if value is None else SockState.from_buffer_copy(value)


def facts_of(one: socket.socket) -> SocketFacts:
    """Facts on an inet socket. Raises OSError when the kernel does not know an option (Linux before 5.14)."""
    is_tcp = one.type == socket.SOCK_STREAM and one.proto == socket.IPPROTO_TCP
    state = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[0] if is_tcp else None
    owner = os.fstat(one.fileno())
    return SocketFacts(
        cookie=cookie_of(one),
        netns_cookie=_cookie(one, _SO_NETNS_COOKIE),
        uid=owner.st_uid,
        gid=owner.st_gid,
        raw=one.type == socket.SOCK_RAW,
        tcp_state=None if state is None else SocketState(state),
        local_port=one.getsockname()[1] if is_tcp else 0,
    )


def cookie_of(one: socket.socket) -> int:
    """The number of a socket, never used again while the machine runs."""
    return _cookie(one, _SO_COOKIE)


def _cookie(one: socket.socket, option: int) -> int:
    return int(struct.unpack("=Q", one.getsockopt(socket.SOL_SOCKET, option, 8))[0])


class _Tally:
    """Counts while sockets are being looked at."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.refused: list[int] = []
        self.outside = 0

    def report(self) -> AdoptionReport:
        return AdoptionReport(
            stamped=self.outcomes["stamped"],
            kept=self.outcomes["kept"],
            unopened=self.outcomes["unopened"],
            closed=self.outcomes["closed"],
            refused=tuple(self.refused),
            outside=self.outside,
        )


def _accepting(processes: Sequence[Process]) -> Accepting:
    # Over all processes: a conversation accepted through one process's listener is often held by another. What is
    # refused here is refused again, and counted, when it is to be stamped.
    found: set[tuple[int, int]] = set()
    uncounted = _Tally()
    for process in processes:
        for one in _borrow(process.pid, uncounted):
            with one:
                facts = facts_of(one)
            if facts.tcp_state is SocketState.LISTEN:
                found.add((facts.netns_cookie, facts.local_port))
    return frozenset(found)


def _borrow(pid: int, tally: _Tally) -> Iterator[socket.socket]:
    """A duplicate of each inet socket the process holds; the caller closes it."""
    try:
        fds = sockets_of(pid)
        pidfd = os.pidfd_open(pid) if fds else -1
    except ProcessLookupError:
        return
    except KernelError as error:
        if error.errno not in _REFUSALS:
            raise
        tally.refused.append(pid)
        return
    if pidfd < 0:
        return
    try:
        for fd in sorted(fds):
            one = _borrow_one(pidfd, fd, tally.outcomes)
            if one is not None:
                yield one
    finally:
        os.close(pidfd)


def _borrow_one(pidfd: int, fd: int, outcomes: Counter[str]) -> socket.socket | None:
    copy: int = _LIBC.syscall(_pidfd_getfd_number(), pidfd, fd, 0)
    if copy < 0:
        number = ctypes.get_errno()
        if number == errno.ENOSYS:
            raise RefusedError("this kernel cannot hand over descriptors: pidfd_getfd(2) needs Linux 5.6")
        outcomes["closed" if number in (errno.EBADF, errno.ESRCH) else "unopened"] += 1
        return None
    try:
        one = socket.socket(fileno=copy)
    except OSError:
        # The number has come to mean a file that is no socket.
        os.close(copy)
        outcomes["closed"] += 1
        return None
    if one.family in (socket.AF_INET, socket.AF_INET6):
        return one
    one.close()
    return None


def _pidfd_getfd_number() -> int:
    machine = platform.machine()
    if machine not in _SYS_PIDFD_GETFD:
        raise RefusedError(f"sockets cannot be adopted on `{machine}`: its system call numbers are not known")
    return _SYS_PIDFD_GETFD[machine]


def _adopt_one(storage: Map, one: socket.socket, process: Process, cgroup_id: int, accepting: Accepting) -> str:
    known = read_state(storage, one.fileno())
    if known is not None and known.flags & SockFlag.ORIGIN:
        return "kept"
    facts = facts_of(one)
    state = known or SockState(direction=Direction.INGRESS if _is_accepted(facts, accepting) else Direction.EGRESS)
    state.flags |= _flags(facts, accepting)
    state.socket_cookie, state.uid, state.gid = facts.cookie, facts.uid, facts.gid
    state.opened_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    _write_origin(state, process, cgroup_id)
    # Between the read and this, a hook may have stamped the socket (EEXIST) or its last user closed it (ENOENT).
    return _write(storage, one, state, BPF_NOEXIST if known is None else BPF_EXIST)


def _restamp_one(storage: Map, one: socket.socket, process: Process, cgroup_id: int) -> str:
    state = read_state(storage, one.fileno())
    if state is None or state.tgid != process.pid:
        return "kept"
    _write_origin(state, process, cgroup_id)
    # Which peers it has opened to stays true; that they were allowed does not.
    state.peer_word &= ~_PEER_GENERATION_BITS
    return _write(storage, one, state, BPF_EXIST)


def _write(storage: Map, one: socket.socket, state: SockState, flags: int) -> str:
    try:
        storage.update(struct.pack("=i", one.fileno()), bytes(state), flags)
    except KernelError as error:
        if error.errno not in (errno.EEXIST, errno.ENOENT):
            raise
        return "kept" if error.errno == errno.EEXIST else "closed"
    return "stamped"


def _write_origin(state: SockState, process: Process, cgroup_id: int) -> None:
    key = process.executable.key if process.executable else None
    state.generation = 0
    state.identity_generation = 0
    state.flags |= SockFlag.ORIGIN
    state.cgroup_id = cgroup_id
    state.exe_inode = key.inode if key else 0
    state.exe_device = key.device if key else 0
    state.exe_generation = (key.generation or 0) if key else 0
    state.tgid = process.pid
    state.comm = os.fsencode(process.comm)[:15]


def _flags(facts: SocketFacts, accepting: Accepting) -> SockFlag:
    flags = SockFlag.ORIGIN
    if facts.raw:
        flags |= SockFlag.RAW
    # Listeners and idle streams must carry neither: the kernel hands a listener's storage down to what it accepts, and
    # that is not older than the hooks.
    if facts.tcp_state is None or facts.tcp_state in TALKING:
        flags |= SockFlag.ADOPTED
    if facts.tcp_state in TALKING and not _is_accepted(facts, accepting):
        flags |= SockFlag.OPENED
    return flags


def _is_accepted(facts: SocketFacts, accepting: Accepting) -> bool:
    if facts.tcp_state not in TALKING or facts.tcp_state is SocketState.SYN_SENT:
        return False
    return (facts.netns_cookie, facts.local_port) in accepting


def _cgroup_id(tree: CgroupTree, process: Process) -> int | None:
    if process.cgroup_path is None:
        return None
    path = tree.relative_of_namespace(process.cgroup_path)
    return None if path is None else tree.cgroup_id(path)
