"""Work that is done in a process of its own, which is ended when it takes too long, and may crash."""

from __future__ import annotations

import faulthandler
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

from bulkhead.confinement import end_with_parent

_MEMORY_BYTES: Final = 512 << 20
"""Of address space, that a process which evaluates Rego may take beyond what its parent had."""
_RESULT_BYTES_MAX: Final = 16 << 20
_READ_BYTES: Final = 1 << 16


class ChildError(Exception):
    """No result came: the text says why."""


def in_child(work: Callable[[], bytes], seconds: float) -> bytes:
    """What `work` gives, done in a copy of this process. Raises ChildError when it takes longer, or does not finish."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _work(work, writing)
    os.close(writing)
    try:
        return _read(reading, time.monotonic() + seconds, seconds)
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def limit_self() -> None:
    """Of a process that has just been forked: end with the parent, take no more memory than may be, leave no core."""
    end_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.disable()  # a crash is an answer here, and so is an error, which is not to cost a walk over the stack
    os.environ["RUST_BACKTRACE"] = "0"
    pages, _, _ = Path("/proc/self/statm").read_text().partition(" ")
    bound = int(pages) * resource.getpagesize() + _MEMORY_BYTES
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        bound = min(bound, most)
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _work(work: Callable[[], bytes], writing: int) -> NoReturn:
    status = 1
    try:
        limit_self()
        with open(writing, "wb") as file:
            file.write(b"=" + work())
        status = 0
    except MemoryError:
        status = 2
    except BaseException as error:  # noqa: BLE001  it must not go on as a second copy of its parent
        os.write(sys.stderr.fileno(), f"bulkhead: evaluating Rego failed: {error!r}\n".encode())
    finally:
        os._exit(status)


def _read(reading: int, until: float, seconds: float) -> bytes:
    """The result, behind a sign that there is one."""
    found = bytearray()
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    while True:
        left = until - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise ChildError(f"took longer than {seconds:g} s")
        piece = os.read(reading, _READ_BYTES)
        if not piece:
            break
        found += piece
        if len(found) > _RESULT_BYTES_MAX:
            raise ChildError("came to more than can be taken")
    if not found:
        raise ChildError("crashed the engine, or took more memory than there is for it")
    return bytes(found[1:])
