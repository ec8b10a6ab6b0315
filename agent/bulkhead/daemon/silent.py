"""Conversations that policy no longer allows and that say nothing.

The kernel judges a conversation again at its next packet. One that is silent would stay open, silently, until then; so
after each change of policy the open TCP sockets are gone through once, and those that would be refused are destroyed.
Whatever cannot be told for sure is left to the kernel.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from bulkhead.abi import Direction, Identity, Mode, SockFlag, SockState, Verdict
from bulkhead.daemon.conversations import OPEN, origin_state
from bulkhead.daemon.enforcer import Enforcer, report_destroyed
from bulkhead.daemon.learned import Borne
from bulkhead.dataplane.subjects import Answer
from bulkhead.kernel.diag import SocketDiag, SocketEntry
from bulkhead.kernel.steering import Steered
from bulkhead.observe.tables import Tables, tables_of

_End = tuple[IPv4Address | IPv6Address, int]
_States = Mapping[tuple[_End, _End], tuple[SocketEntry, SockState]]


def cut_silent(enforcer: Enforcer) -> int:
    """Destroy every TCP socket whose conversation the policy in force refuses; returns how many. Any thread may."""
    bundle, plan = enforcer.bundle, enforcer.attestation.plan
    if bundle is None or plan is None:
        return 0
    with SocketDiag() as diag:
        dump = diag.dump(states=OPEN, storage_map_fd=enforcer.maps.fixed("sockets").fd.fileno())
        states = {_ends(entry): (entry, state) for entry in dump.sockets if (state := origin_state(entry)) is not None}
        isolated = frozenset(one.identity for one in enforcer.quarantine)
        view = _View(_Who(enforcer), tables_of(bundle), Borne(enforcer), isolated, enforcer.mesh.lane_call)
        refused = list(_refused(states, view))
        cut = [entry for entry in refused if diag.destroy(entry.socket_id, socket.IPPROTO_TCP)]
    for entry in cut:
        here, there = _ends(entry)
        report_destroyed(states[here, there][1], (str(here[0]), here[1]), (str(there[0]), there[1]))
    return len(cut)


def _is_settled(state: SockState) -> bool:
    """Whether it is known who opened the conversation: it was judged and allowed, or accepted and has said nothing."""
    if state.flags & SockFlag.STREAM:
        return bool(state.verdict == Verdict.ALLOW)
    return not state.flags & (SockFlag.ADOPTED | SockFlag.OPENED)


def _ends(entry: SocketEntry) -> tuple[_End, _End]:
    one = entry.socket_id
    return (_plain(one.source), one.source_port), (_plain(one.destination), one.destination_port)


def _plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    return getattr(address, "ipv4_mapped", None) or address


class _Who:
    """Tells the identity that a socket has in the generation in force."""

    def __init__(self, enforcer: Enforcer) -> None:
        self._attestation = enforcer.attestation

    def __call__(self, state: SockState) -> Answer | None:
        plan, path = self._attestation.plan, self._attestation.path_of(state.cgroup_id)
        if plan is None or path is None:
            return None
        if plan.is_of_proxy(path):
            return Answer(int(Identity.PROXY), Mode.ENFORCE)
        view = plan.narrower.view(path)
        exe = self._attestation.executable_path(state.exe_inode, state.exe_device, state.exe_generation) or None
        if view.executables and exe is None:
            return None
        return plan.answers.of(view.decide(exe, state.uid, state.gid))


@dataclass(frozen=True, slots=True)
class _View:
    """What the conversations are judged by."""

    who: _Who
    tables: Tables
    borne: Borne
    isolated: frozenset[int]
    lane_call: Callable[[_End, _End], Steered | None]

    def allows(self, own: int, direction: Direction, remotes: Iterable[int], port: int) -> bool:
        """Whether policy lets `own` talk with one of `remotes` over TCP."""
        found = (self.tables.lookup(own, int(direction), one, socket.IPPROTO_TCP, port) for one in remotes)
        return any(one is not None and (one.deadline is None or one.deadline > time.time()) for one in found)


def _refused(states: _States, view: _View) -> Iterator[SocketEntry]:
    for (here, there), (entry, state) in states.items():
        if state.flags & SockFlag.STEERED:
            if _is_refused_with_proxy(view, here, there, state):
                yield entry
            continue
        peer = states.get((there, here))
        is_local = peer is not None or there[0].is_loopback or there[0] == here[0]
        if (is_local and peer is None) or not _is_settled(state):
            continue
        own, other = view.who(state), view.who(peer[1]) if peer is not None else None
        if {own.identity if own else 0, other.identity if other else 0} & view.isolated:
            yield entry
            continue
        if own is None or own.mode is not Mode.ENFORCE or (is_local and other is None):
            continue
        opened = bool(state.flags & SockFlag.OPENED)
        direction, port = (Direction.EGRESS, there[1]) if opened else (Direction.INGRESS, here[1])
        if other is not None:
            remotes = [other.identity]
        elif state.flags & SockFlag.WIRE or state.remote_identity == Identity.LEGACY:
            remotes = [state.remote_identity]
        else:
            remotes = [view.tables.class_of(there[0]), *view.borne.classes(own.identity, there[0], state.remote_name)]
        if not view.allows(own.identity, direction, remotes, port):
            yield entry


def _is_refused_with_proxy(view: _View, here: _End, there: _End, state: SockState) -> bool:
    """A conversation with the node's proxy, by the workload's end: as what it stands for."""
    own = view.who(state)
    if own is None or own.identity == Identity.PROXY:
        return False  # the other end tells
    if {own.identity, state.remote_identity} & view.isolated:
        return True
    if own.mode is not Mode.ENFORCE or not _is_settled(state):
        return False
    if not state.flags & SockFlag.OPENED:
        return not view.allows(own.identity, Direction.INGRESS, [state.remote_identity], here[1])
    called = view.lane_call(here, there)
    return called is not None and not view.allows(own.identity, Direction.EGRESS, [called.called], called.port)
