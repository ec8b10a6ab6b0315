"""The node's proxy, as the kernel has to know it: whether it is wanted, where it runs, who listens for it.

What a conversation through the proxy stands for is kept by the programs (bpf/steering.h), in its sockets and, by its
ends, in a map that is read here. Everything outlasts the agent: it is pinned, and stays in force.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

from bulkhead.abi import EventFlag, Lane, LegKey, MeshFlag, MeshSelf, SteeringRole, VerdictEvent
from bulkhead.abi import Steering as KernelSteering
from bulkhead.kernel import sockets
from bulkhead.kernel.attach import Attachments
from bulkhead.kernel.libbpf import AttachType
from bulkhead.kernel.maps import KernelMaps

Address = IPv4Address | IPv6Address
End = tuple[Address, int]
"""Address and port."""

_ZERO: Final = bytes(4)
_MAPPED: Final = bytes(10) + b"\xff\xff"
_FAMILIES: Final = {socket.AF_INET: 0, socket.AF_INET6: 1}
"""Index in `proxy_listeners`."""


@dataclass(frozen=True, slots=True)
class Steered:
    """What a conversation with the proxy stands for."""

    address: Address | None
    """Lanes: whom the caller called. Legs: the caller's; None when the proxy has not said."""
    port: int
    """Lanes: that the caller called. Legs: 0."""
    socket_cookie: int
    """Of the socket that opened it: the workload's on a lane, the proxy's on a leg."""
    caller: int
    """Identity."""
    called: int
    """Identity; IDENTITY_PEER for whichever workload of another node answers."""


class Steering:
    """Borrows the maps and the attachments. One thread at a time."""

    def __init__(self, maps: KernelMaps, attachments: Attachments) -> None:
        self._maps = maps
        self._attachments = attachments
        self._own = self._held()
        self._listeners: dict[int, int] = {}
        """Cookies of the proxy's listeners, by family."""
        self._pid = 0
        self._pidfd = -1

    def close(self) -> None:
        """Give back descriptors; the proxy goes on."""
        number, self._pidfd = self._pidfd, -1
        if number >= 0:
            os.close(number)

    # Whether there is one

    @property
    def is_wanted(self) -> bool:
        """Whether the kernel steers into the proxy."""
        return bool(self._own.flags & MeshFlag.PROXY)

    def want(self, wanted: bool) -> None:
        """Steer what policy asks for into the proxy of the calling thread's network namespace, or steer nothing.

        While it is wanted, nobody else is given what comes for its port. Raises KernelError when it cannot be written.
        """
        if wanted:
            self._attachments.use(AttachType.CGROUP_SOCK_OPS)
        flags = int(MeshFlag.PROXY) if wanted else 0
        own = MeshSelf(netns_cookie=sockets.netns_cookie() if wanted else 0, flags=flags)
        if bytes(own) != bytes(self._held()):
            self._maps.fixed("mesh_self").update(_ZERO, bytes(own))
        self._own = own

    def _held(self) -> MeshSelf:
        raw = self._maps.fixed("mesh_self").lookup(_ZERO)
        return MeshSelf.from_buffer_copy(raw) if raw else MeshSelf()

    # Where it runs, and who listens

    def attach_proxy(self, cgroup: Path | None) -> list[str]:
        """The proxy runs in this control group; returns what was attached. None: it runs nowhere.

        Raises RefusedError when somebody else holds a hook of that group, KernelError when it cannot be attached.
        """
        return self._attachments.proxy_is_in(cgroup)

    def serves(self, pid: int) -> bool:
        """Whether what comes for the proxy is given to listeners of that process."""
        return self._pid == pid and bool(self._listeners) and self._listening() == self._listeners

    def set_listeners(self, pid: int) -> bool:
        """Give what comes for the proxy from other nodes to the sockets in which process `pid` listens for it.

        False when it does not listen; then everything stays as it is. Raises KernelError and RefusedError as
        `sockets.listening` does, ProcessLookupError when the process is gone.
        """
        self.close()
        self._pidfd, self._pid = os.pidfd_open(pid), pid
        return self._borrow_listeners()

    def _borrow_listeners(self) -> bool:
        found: dict[int, socket.socket] = {}
        with contextlib.ExitStack() as borrowed:
            for one in sockets.listening(self._pid, Lane.INBOUND_PORT):
                borrowed.enter_context(one)
                found.setdefault(_FAMILIES[one.family], one)
            if select.select([self._pidfd], [], [], 0)[0]:
                return False  # it has ended, and its number may have been another's meanwhile
            if found:
                self._write_listeners(found)
        return bool(found)

    def _write_listeners(self, listeners: Mapping[int, socket.socket]) -> None:
        # The map alone keeps them: a descriptor that is held here would listen on after its process.
        table = self._maps.fixed("proxy_listeners")
        for index in _FAMILIES.values():
            key, one = index.to_bytes(4, "little"), listeners.get(index)
            if one is not None:
                table.update(key, one.fileno().to_bytes(8, "little"))
            elif table.lookup(key) is not None:
                table.delete(key)
        self._listeners = {index: sockets.cookie_of(one) for index, one in listeners.items()}

    def _listening(self) -> dict[int, int]:
        """Who is given what comes: cookies by family."""
        table = self._maps.fixed("proxy_listeners")
        held = {index: table.lookup(index.to_bytes(4, "little")) for index in _FAMILIES.values()}
        return {index: int.from_bytes(cookie, "little") for index, cookie in held.items() if cookie is not None}

    def put_right(self) -> Iterator[str]:
        """What somebody else has changed, each put back as it was. A listener that the proxy has closed is none."""
        if bytes(self._held()) != bytes(self._own):
            self._maps.fixed("mesh_self").update(_ZERO, bytes(self._own))
            yield "`mesh_self` was written by somebody else"
        before = self._listeners
        if self._pidfd < 0 or self._listening() == before:
            return
        if self._borrow_listeners() and self._listeners == before:
            yield "`proxy_listeners` was written by somebody else"

    # What goes through it

    def lane_call(self, source: End, destination: End) -> Steered | None:
        """What a conversation on a lane stands for, by the ends that the proxy sees: caller's socket, lane."""
        return self._find(source, destination, SteeringRole.LANE_PROXY)

    def leg(self, source: End, destination: End) -> Steered | None:
        """What a leg stands for, by its ends: the proxy's socket, the workload's."""
        return self._find(source, destination, SteeringRole.LEG_CALLED)

    def _find(self, source: End, destination: End, role: SteeringRole) -> Steered | None:
        key = LegKey(
            source=tuple(_packed(source[0])),
            destination=tuple(_packed(destination[0])),
            source_port=source[1],
            destination_port=destination[1],
        )
        raw = self._maps.fixed("legs").lookup(bytes(key))
        if raw is None:
            return None
        held = KernelSteering.from_buffer_copy(raw)
        return _steered(held) if held.role == role else None


def socket_ends(event: VerdictEvent) -> tuple[End, End]:
    """Source and destination of a conversation as its sockets have them, where an event shows whom they stand for."""
    source = _address(bytes(event.source)), event.source_port
    destination = _address(bytes(event.destination)), event.destination_port
    via = _address(bytes(event.via)), event.via_port
    if not event.flags & EventFlag.STEERED:
        return source, destination
    return (via, destination) if event.flags & EventFlag.VIA_SOURCE else (source, via)


def _steered(held: KernelSteering) -> Steered:
    packed = bytes(held.address)
    return Steered(_address(packed) if any(packed) else None, held.port, held.socket_cookie, held.caller, held.called)


def _packed(address: Address) -> bytes:
    return (_MAPPED if address.version == 4 else b"") + address.packed


def _address(packed: bytes) -> Address:
    address = IPv6Address(packed)
    return address.ipv4_mapped or address
