"""Who is at the other end of a control connection, as the kernel attests it, and what that allows."""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass
from typing import Final

_SO_PEERGROUPS: Final = 59
_GROUPS_MAX: Final = 256
"""As many as Python has room for. Of a peer in more, the primary group alone counts."""
_UCRED: Final = struct.Struct("=iII")


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected, with its credentials at that moment."""

    pid: int
    """0: it is in a process namespace that this one cannot see."""
    uid: int
    gids: frozenset[int]

    def may_read(self, group: int) -> bool:
        """Root, or a member of the socket's group."""
        return self.uid == 0 or group in self.gids

    def may_change(self) -> bool:
        """Root of this very user namespace. What cannot be proven is refused."""
        return self.uid == 0 and self.pid > 0 and _is_same_user_namespace(self.pid)


def peer_of(connection: socket.socket) -> Peer:
    """The peer of a connected Unix socket."""
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Peer(pid, uid, frozenset({gid, *_groups(connection)}))


def _groups(connection: socket.socket) -> tuple[int, ...]:
    try:
        packed = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _GROUPS_MAX)
    except OSError:
        # Too many groups, or a kernel before 4.13.
        return ()
    return struct.unpack(f"={len(packed) // 4}I", packed)


def _is_same_user_namespace(pid: int) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/ns/user") == os.readlink("/proc/self/ns/user")
    except OSError:
        return False
