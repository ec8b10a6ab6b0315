"""Sending a probe: one opening, or one datagram, from a workload's own control group and network.

It is sent by a child process that lives for the probe alone: it enters, gives up its privileges, sends, and ends. What
ends it in any case is its own alarm, the death of this process, and this process when its time is up.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from bulkhead.errors import BulkheadError, KernelError

_PR_SET_NAME: Final = 15
_ENTER_S: Final = 2.0
_SPARE_S: Final = 1.0
"""Beyond the probe's own timeout: for the answer to reach this process."""
_MESSAGE_BYTES_MAX: Final = 4096
_MEMORY_BYTES: Final = 1 << 30
_RST_AT_CLOSE: Final = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a probe is sent from."""

    cgroup: Path
    netns: Path
    comm: str
    """What its process is called there."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where it goes."""

    address: str
    port: int
    protocol: str
    """`tcp` or `udp`."""


@dataclass(frozen=True, slots=True)
class Report:
    """What came of it."""

    pid: int
    outcome: str
    """`connected`, `answered`, `reset`, `refused`, `timeout`, or the name of another error."""
    ms: float


def send(place: Place, target: Target, timeout_s: float, entered: Callable[[], None]) -> Report:
    """Send one probe and wait for what comes of it; `entered` is called when its process stands where it is to stand.

    Raises KernelError where it could not be sent at all.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        _live(place, target, timeout_s, theirs)
    theirs.close()
    try:
        _heard(ours, place, _ENTER_S)
        entered()
        ours.send(b"go")
        said = _heard(ours, place, timeout_s + _SPARE_S)
    finally:
        ours.close()
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return Report(pid, said["outcome"], said["ms"])


def _heard(ours: socket.socket, place: Place, timeout_s: float) -> dict[str, Any]:
    """What the child says next."""
    ours.settimeout(timeout_s)
    try:
        line = ours.recv(_MESSAGE_BYTES_MAX)
    except TimeoutError:
        line = b""
    if not line:
        raise KernelError(f"the probe came to no end in `{place.cgroup}`: is it frozen, or out of memory?")
    said: dict[str, Any] = json.loads(line)
    if "problem" in said:
        raise KernelError(f"the probe could not be sent: {said['problem']}")
    return said


def _live(place: Place, target: Target, timeout_s: float, theirs: socket.socket) -> NoReturn:
    """The child's whole life."""
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, _ENTER_S + timeout_s + _SPARE_S)
        try:
            _enter(place)
            theirs.send(b"{}")
            said = _probe(target, timeout_s) if theirs.recv(_MESSAGE_BYTES_MAX) else {}
        except (OSError, BulkheadError) as error:
            said = {"problem": str(error)}
        theirs.send(json.dumps(said).encode())
    finally:
        os._exit(0)


def _enter(place: Place) -> None:
    """Become a process of the workload's, with nothing else that it may do than to open a socket."""
    from bulkhead.confinement import confine, end_with_parent
    from bulkhead.kernel import netns

    end_with_parent()
    netns.enter(place.netns)
    ctypes.CDLL(None).prctl(_PR_SET_NAME, place.comm.encode(), 0, 0, 0)
    (place.cgroup / "cgroup.procs").write_text("0")
    confine(_MEMORY_BYTES)


def _probe(target: Target, timeout_s: float) -> dict[str, Any]:
    family = socket.AF_INET6 if ":" in target.address else socket.AF_INET
    kind = socket.SOCK_STREAM if target.protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, kind) as one:
        one.settimeout(timeout_s)
        if kind == socket.SOCK_STREAM:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_AT_CLOSE)
        began = time.monotonic()
        outcome = _outcome(one, (target.address, target.port), kind)
        return {"outcome": outcome, "ms": round((time.monotonic() - began) * 1000, 3)}


def _outcome(one: socket.socket, end: tuple[str, int], kind: socket.SocketKind) -> str:
    try:
        one.connect(end)
        if kind == socket.SOCK_STREAM:
            return "connected"
        one.send(b"")
        one.recv(1)
    except TimeoutError:
        return "timeout"
    except ConnectionRefusedError:
        return "reset"
    except PermissionError:
        return "refused"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "answered"
