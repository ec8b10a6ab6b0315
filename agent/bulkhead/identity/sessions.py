"""How somebody came to be on this machine: the login that a process belongs to.

A login over the network hangs on one connection, held by a server process made for it (sshd's, say). When that process
is younger than a change of policy, the connection was judged by the changed policy, which proves that a way in is left.
New sessions, terminals or shells opened from within an old login prove nothing, so the ancestors are asked. Neither
does a process that has left its login (a daemon, a timer, `setsid --fork`), nor a connection that goes out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from socket import AF_INET, AF_INET6
from typing import Final

import psutil

from bulkhead.errors import RefusedError, UnreachableError

_PSEUDO_TERMINALS: Final = range(136, 144)
"""Device numbers of terminals that some program makes, sshd or tmux: they say nothing of where somebody sits."""
_LISTENING: Final = "0A"
_TERMINAL: Final = 4
_START_TICKS: Final = 19
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")

_Ends = tuple[str, int, str, int]
"""Address and port of this end and of the other."""


@dataclass(frozen=True, slots=True)
class Login:
    """What a process descends from."""

    pid: int
    """The process that holds the connection, or that leads the session."""
    started_s: float
    """On the boot clock: somebody may set the other one meanwhile."""
    peer: str
    """Address at the other end of the connection; empty for a login that is not over a network."""
    is_local: bool
    """Whether the other end is this machine itself: such a login says nothing of a way in."""


def login_of(pid: int) -> Login:
    """The login that a process belongs to: the oldest of its ancestors that hold the connection it came in by.

    Without one, the leader of its session, at a terminal of this machine. Raises RefusedError when it is neither,
    UnreachableError when the process is gone.
    """
    try:
        process = psutil.Process(pid)
        ancestors = [one for one in (process, *process.parents()) if one.pid != 1]
        served = [(one, ends) for one in ancestors for ends in _connections(one)]
        if served:
            return _over_network(served)
        leader = psutil.Process(os.getsid(pid) or pid)
        if not _has_own_terminal(leader.pid):
            raise RefusedError(
                "this process belongs to no login: confirm from one over the network, or at a terminal of this machine"
            )
        return Login(leader.pid, _started_s(leader.pid), "", is_local=False)
    except (psutil.Error, OSError) as error:
        raise UnreachableError(f"the process {pid} that asked is gone") from error


def _over_network(served: list[tuple[psutil.Process, _Ends]]) -> Login:
    nearest = served[0][1]
    # A server may fork once more when somebody has proved who he is: the connection is older than that.
    started_s, holder = min((_started_s(one.pid), one.pid) for one, ends in served if ends == nearest)
    local, peer = _plain(nearest[0]), _plain(nearest[2])
    return Login(holder, started_s, str(peer), peer.is_loopback or peer in {local, *_own_addresses()})


def _own_addresses() -> Iterator[IPv4Address | IPv6Address]:
    for addresses in psutil.net_if_addrs().values():
        yield from (_plain(one.address.partition("%")[0]) for one in addresses if one.family in (AF_INET, AF_INET6))


def _connections(process: psutil.Process) -> list[_Ends]:
    """Connections from elsewhere that a process serves; none for a server that waits for logins."""
    held = process.net_connections("tcp")
    if not held or any(one.status == psutil.CONN_LISTEN for one in held):
        return []
    listened = _listened(process.pid)
    served = [one for one in held if one.status == psutil.CONN_ESTABLISHED and one.raddr]
    return [(*one.laddr, *one.raddr) for one in served if one.laddr.port in listened]


def _listened(pid: int) -> set[int]:
    """Ports on which connections are taken, in the network namespace of a process."""
    tables = (path for name in ("tcp", "tcp6") if (path := Path(f"/proc/{pid}/net/{name}")).exists())
    lines = [line.split() for path in tables for line in path.read_text().splitlines()[1:]]
    return {int(words[1].rpartition(":")[2], 16) for words in lines if words[3] == _LISTENING}


def _started_s(pid: int) -> float:
    return int(_status(pid)[_START_TICKS]) / _TICKS_PER_S


def _status(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on (proc_pid_stat(5)): names may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _has_own_terminal(pid: int) -> bool:
    number = int(_status(pid)[_TERMINAL])
    return number != 0 and (number >> 8 & 0xFFF) not in _PSEUDO_TERMINALS


def _plain(text: str) -> IPv4Address | IPv6Address:
    address = ip_address(text)
    return getattr(address, "ipv4_mapped", None) or address
