"""The TCP conversations that are open now, with who is at each end: what a change of policy could cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

from bulkhead.abi import SockFlag, SockState
from bulkhead.daemon.enforcer import Enforcer
from bulkhead.kernel.diag import SocketDiag, SocketEntry, SocketState
from bulkhead.observe.names import Namer

CONVERSATIONS_MAX: Final = 50_000
"""Told at once; the rest is counted."""

OPEN: Final = frozenset({SocketState.ESTABLISHED, SocketState.CLOSE_WAIT})
"""States in which a conversation is under way."""

Json = dict[str, Any]
_End = tuple[str, int]
_Ends = tuple[_End, _End]


def conversations(enforcer: Enforcer, namer: Namer) -> Json:
    """Every open TCP conversation of this network namespace that has an end with a known origin.

    An end whose `process` is null is an address outside. `unattested` counts sockets that cannot be told: without an
    origin, or with a peer on this machine that is closing.
    """
    with SocketDiag() as diag:  # not the enforcer's: it may be in use by the thread that hears events
        dump = diag.dump(states=OPEN, storage_map_fd=enforcer.maps.fixed("sockets").fd.fileno())
    states = {_ends(entry): state for entry in dump.sockets if (state := origin_state(entry)) is not None}
    found = list(_paired(states, _Describer(enforcer, namer)))
    told = sum(
        1 + (row["source"]["process"] is not None and row["destination"]["process"] is not None) for row in found
    )
    return {
        "host": enforcer.settings.host,
        "complete": dump.complete,
        "conversations": found[:CONVERSATIONS_MAX],
        "omitted": max(0, len(found) - CONVERSATIONS_MAX),
        "unattested": len(dump.sockets) - told,
    }


def origin_state(entry: SocketEntry) -> SockState | None:
    """What the hooks know of a socket; None when they know of no origin."""
    if entry.storage is None:
        return None
    state = SockState.from_buffer_copy(entry.storage)
    return state if state.flags & SockFlag.ORIGIN else None


def _ends(entry: SocketEntry) -> _Ends:
    """This end and the other."""
    one = entry.socket_id
    return (_plain(one.source), one.source_port), (_plain(one.destination), one.destination_port)


def _plain(address: IPv4Address | IPv6Address) -> str:
    mapped = getattr(address, "ipv4_mapped", None)
    return str(address if mapped is None else mapped)


class _Describer:
    """Says of a socket whose it is."""

    def __init__(self, enforcer: Enforcer, namer: Namer) -> None:
        self._attestation = enforcer.attestation
        self._namer = namer

    def __call__(self, state: SockState) -> Json:
        exe = self._attestation.executable_path(state.exe_inode, state.exe_device, state.exe_generation)
        return {
            "name": self._namer.identity(state.local_identity, state.identity_generation),
            "cgroup": self._attestation.path_of(state.cgroup_id) or "",
            "exe": exe,
            "uid": state.uid,
            "gid": state.gid,
            "pid": state.tgid,
            "comm": state.comm.decode(errors="replace"),
        }


def _paired(states: Mapping[_Ends, SockState], describe: _Describer) -> Iterator[Json]:
    """Conversations from the end that opened them; two sockets of this machine that talk to each other are one."""
    for (here, there), state in states.items():
        peer = states.get((there, here))
        opened = bool(state.flags & SockFlag.OPENED)
        if peer is not None:
            if opened and not peer.flags & SockFlag.OPENED:
                yield _row((here, describe(state)), (there, describe(peer)))
        elif not _is_loopback(there):
            ends = (here, describe(state)), (there, None)
            yield _row(*ends) if opened else _row(*reversed(ends))


def _is_loopback(end: _End) -> bool:
    """Whether an address is one that never leaves the machine, so that its end is a process here."""
    return end[0].startswith("127.") or end[0] == "::1"


def _row(source: tuple[_End, Json | None], destination: tuple[_End, Json | None]) -> Json:
    return {
        name: {"address": address, "port": port, "process": process}
        for name, ((address, port), process) in (("source", source), ("destination", destination))
    }
