"""How somebody came to be on this machine: the login that a process belongs to.

A login over the network hangs on one connection, held by a server process made for it (sshd's, say). When that process
is younger than a change of policy, the connection was judged by the changed policy, which proves that a way in is left.
New sessions, terminals or shells opened from within an old login prove nothing, so the ancestors are asked.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import ip_address

import psutil

from bulkhead.errors import UnreachableError


@dataclass(frozen=True, slots=True)
class Login:
    """What a process descends from."""

    pid: int
    """The process that holds the connection, or that leads the session."""
    started: float
    """Unix seconds."""
    peer: str
    """Address at the other end of the connection; empty for a login that is not over a network."""
    is_local: bool
    """Whether the other end is this machine itself: such a login says nothing of a way in."""


def login_of(pid: int) -> Login:
    """The login that a process belongs to: its nearest ancestor with an established connection.

    Without one, the leader of its session. Raises UnreachableError when it is gone.
    """
    try:
        process = psutil.Process(pid)
        for one in (process, *process.parents()):
            found = _connection(one)
            if found is not None:
                local, peer = found
                is_local = ip_address(peer).is_loopback or local == peer
                return Login(one.pid, one.create_time(), peer, is_local)
        leader = psutil.Process(os.getsid(pid) or pid)
        return Login(leader.pid, leader.create_time(), "", is_local=False)
    except (psutil.Error, ProcessLookupError) as error:
        raise UnreachableError(f"the process {pid} that asked is gone") from error


def _connection(process: psutil.Process) -> tuple[str, str] | None:
    """Both addresses of the connection that a process serves; None for a server that waits for logins."""
    connections = process.net_connections("tcp")
    if any(one.status == psutil.CONN_LISTEN for one in connections):
        return None
    served = [one for one in connections if one.status == psutil.CONN_ESTABLISHED and one.raddr]
    return (served[0].laddr.ip, served[0].raddr.ip) if served else None
