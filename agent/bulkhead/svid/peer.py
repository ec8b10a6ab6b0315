"""The process at the other end of a Unix socket, as the kernel names it."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from pathlib import Path
from typing import Any, Final

_SO_PEERPIDFD: Final = 77
_CREDENTIALS: Final = struct.Struct("=iII")
_NONE: Final = -1


class Process:
    """The process that opened a connection. Its number is worth nothing once it has ended: `is_alive` says so.

    Close it after use. Raises OSError for what is no connection of a Unix socket.
    """

    def __init__(self, connection: Any) -> None:
        size = _CREDENTIALS.size
        self.pid, self.uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        self._handle, self._started = _NONE, ""
        try:
            self._handle = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
        except OSError as error:
            if error.errno == errno.ENOPROTOOPT:  # older than Linux 6.5: else the process has ended already
                self._started = _started(self.pid)

    @property
    def is_alive(self) -> bool:
        """Whether the number is still this process's."""
        if self._handle >= 0:
            poll = select.poll()
            poll.register(self._handle, select.POLLIN)
            return not poll.poll(0)
        return bool(self._started) and _started(self.pid) == self._started

    def close(self) -> None:
        """Give up the handle."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = _NONE


def _started(pid: int) -> str:
    """When the process of that number began, in ticks since boot; empty when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
