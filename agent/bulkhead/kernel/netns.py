"""Entering a network namespace. A namespace belongs to the calling thread, not to the process."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bulkhead.errors import KernelError, RefusedError

_CLONE_NEWNET: Final = 0x40000000
CURRENT: Final = Path("/proc/thread-self/ns/net")
"""The network namespace of the calling thread."""


def enter(path: Path) -> None:
    """Move the calling thread into the network namespace at `path` for good. Threads started later inherit it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise RefusedError(f"cannot open the network namespace `{path}`: {error.strerror}") from error
    try:
        _setns(fd, path)
    finally:
        os.close(fd)


@contextlib.contextmanager
def entered(path: Path) -> Iterator[None]:
    """Run a block inside the network namespace at `path`, then return to where the thread was."""
    home = os.open(CURRENT, os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(path)
        yield
    finally:
        try:
            _setns(home, CURRENT)
        finally:
            os.close(home)


def _setns(fd: int, path: Path) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.setns(fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise KernelError(f"cannot enter the network namespace `{path}`: {os.strerror(number)}", number)
