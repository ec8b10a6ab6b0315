"""Sockets as the kernel lists them: netlink SOCK_DIAG of one network namespace.

It sees what no process's descriptors show (sockets in a listen queue, orphans that are still closing, descriptors in
flight), and it ends a conversation by the socket's cookie, which is never reused while the machine runs.

Raw netlink rather than pyroute2: the request for socket storage and the exact cookie need attributes that its
`DiagSocket` does not speak, and one dump of 100,000 sockets should not build 100,000 dictionaries.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import TracebackType
from typing import Self

from bulkhead.errors import KernelError

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_SOCK_DESTROY = 21
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLM_F_REQUEST = 0x1
_NLM_F_ACK = 0x4
_NLM_F_DUMP = 0x300
_NLM_F_DUMP_INTR = 0x10
_NLA_F_NESTED = 0x8000
_NLA_TYPE_MASK = 0x3FFF
_INET_DIAG_REQ_SK_BPF_STORAGES = 2
_SK_DIAG_BPF_STORAGE_REQ_MAP_FD = 1
_INET_DIAG_SK_BPF_STORAGES = 20
_INET_DIAG_CGROUP_ID = 21
_SK_DIAG_BPF_STORAGE_MAP_VALUE = 3
_NO_COOKIE = 2**64 - 1

_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBBI")
_ADDRESSES = struct.Struct("!HH16s16s")
_PLACE = struct.Struct("=IQ")
_ANSWER = struct.Struct("=BBBB48sIIIII")
_BUFFER = 1 << 17


class SocketState(IntEnum):
    """State of a TCP socket (the kernel's TCP_*). Other protocols use ESTABLISHED for connected and CLOSE for not."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11
    NEW_SYN_RECV = 12


ALL_STATES = frozenset(SocketState)
TALKING = ALL_STATES - {SocketState.LISTEN, SocketState.CLOSE, SocketState.TIME_WAIT}
"""States of a conversation that something can still leave through."""


@dataclass(frozen=True, slots=True)
class SocketId:
    """Which socket: its cookie, and the tuple by which the kernel looks it up before comparing the cookie.

    IPv4-mapped addresses stand for IPv4 and find sockets of both families, so the addresses of a verdict event can be
    used as they are.
    """

    cookie: int
    source: IPv4Address | IPv6Address
    source_port: int
    destination: IPv4Address | IPv6Address
    destination_port: int
    interface: int = 0
    """Index of the device the socket is bound to; 0 when to none."""


@dataclass(frozen=True, slots=True)
class SocketEntry:
    """One socket of a dump."""

    socket_id: SocketId
    family: int
    """AF_INET or AF_INET6, of the socket, whatever its addresses are."""
    protocol: int
    state: SocketState
    uid: int
    inode: int
    """0 when no file refers to it: in a listen queue, or closed by its process."""
    cgroup_id: int | None
    """Of the control group in which it was made; None when the kernel does not tell."""
    storage: bytes | None
    """Its value in the asked socket storage map; None when it has none there, or when no map was asked for."""


@dataclass(frozen=True, slots=True)
class SocketDump:
    """The sockets found. `complete` is false when the kernel says that its list changed under the dump."""

    sockets: tuple[SocketEntry, ...]
    complete: bool


class SocketDiag:
    """A netlink socket into the network namespace that is current when it is made. Use it in a `with` block."""

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
        except OSError as error:
            raise KernelError(f"cannot open netlink SOCK_DIAG: {error.strerror}", error.errno or 0) from error
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the netlink socket. Closing twice does no harm."""
        self._socket.close()

    def dump(
        self,
        protocol: int = socket.IPPROTO_TCP,
        states: frozenset[SocketState] = ALL_STATES,
        storage_map_fd: int | None = None,
    ) -> SocketDump:
        """The sockets of one protocol in both families, with their value in a socket storage map if one is given.

        Storage needs CAP_NET_ADMIN. Sockets that are only half there (TIME_WAIT, NEW_SYN_RECV) carry none. Raises
        KernelError; ENOENT means that the kernel lists no sockets of this protocol.
        """
        found: list[SocketEntry] = []
        complete = True
        for family in (socket.AF_INET, socket.AF_INET6):
            self._send(_SOCK_DIAG_BY_FAMILY, _NLM_F_DUMP, _dump_request(family, protocol, states, storage_map_fd))
            for flags, payload in self._answers():
                complete = complete and not flags & _NLM_F_DUMP_INTR
                found.append(_parse_entry(payload, protocol))
        return SocketDump(tuple(found), complete)

    def find(self, cookie: int, protocol: int = socket.IPPROTO_TCP) -> SocketEntry | None:
        """The socket with that cookie; None when there is none. Costs a whole dump."""
        matching = (entry for entry in self.dump(protocol).sockets if entry.socket_id.cookie == cookie)
        return next(matching, None)

    def conversation(self, wanted: SocketId) -> SocketEntry | None:
        """The TCP socket that has exactly this conversation, whatever its cookie; None when none has. Never a listener.

        A listener's storage is handed down to what it accepts: only addresses and ports tell those sockets apart.
        """
        anybody = replace(wanted, cookie=_NO_COOKIE)
        self._send(_SOCK_DIAG_BY_FAMILY, _NLM_F_ACK, _exact_request(anybody, socket.IPPROTO_TCP))
        try:
            found = [_parse_entry(payload, socket.IPPROTO_TCP) for _, payload in self._answers()]
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return next((entry for entry in found if entry.state is not SocketState.LISTEN), None)

    def destroy(self, socket_id: SocketId, protocol: int = socket.IPPROTO_TCP) -> bool:
        """End exactly this socket: its process gets ECONNABORTED, the peer a reset. False when it is gone already.

        Needs CAP_NET_ADMIN. Raises KernelError: EOPNOTSUPP on kernels without CONFIG_INET_DIAG_DESTROY.
        """
        if socket_id.cookie in (0, _NO_COOKIE):
            raise KernelError("a socket is destroyed by its cookie, never by its addresses alone", errno.EINVAL)
        self._send(_SOCK_DESTROY, _NLM_F_ACK, _exact_request(socket_id, protocol))
        try:
            for _ in self._answers():
                pass
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def _send(self, kind: int, flags: int, payload: bytes) -> None:
        self._sequence += 1
        header = _HEADER.pack(_HEADER.size + len(payload), kind, _NLM_F_REQUEST | flags, self._sequence, 0)
        self._socket.send(header + payload)

    def _answers(self) -> Iterator[tuple[int, bytes]]:
        """(flags, payload) of each message of the answer to the last request, up to its end or acknowledgement."""
        while True:
            data, _, message_flags, _ = self._socket.recvmsg(_BUFFER)
            if message_flags & socket.MSG_TRUNC:
                raise KernelError("an answer of netlink SOCK_DIAG was cut short", errno.EMSGSIZE)
            for kind, flags, sequence, payload in _messages(data):
                if sequence != self._sequence:
                    continue
                if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    _check(payload)
                    return
                yield flags, payload


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _check(payload: bytes) -> None:
    code = struct.unpack_from("=i", payload)[0] if len(payload) >= 4 else 0
    if code < 0:
        raise KernelError(f"netlink SOCK_DIAG refused: {os.strerror(-code)}", -code)


def _dump_request(family: int, protocol: int, states: frozenset[SocketState], map_fd: int | None) -> bytes:
    mask = sum(1 << state for state in states)
    request = _REQUEST.pack(family, protocol, 0, 0, mask) + bytes(48)
    if map_fd is not None:
        inner = _attribute(_SK_DIAG_BPF_STORAGE_REQ_MAP_FD, struct.pack("=I", map_fd))
        request += _attribute(_INET_DIAG_REQ_SK_BPF_STORAGES | _NLA_F_NESTED, inner)
    return request


def _exact_request(socket_id: SocketId, protocol: int) -> bytes:
    family = socket.AF_INET if socket_id.source.version == 4 else socket.AF_INET6
    addresses = _ADDRESSES.pack(
        socket_id.source_port, socket_id.destination_port, socket_id.source.packed, socket_id.destination.packed
    )
    states = sum(1 << state for state in ALL_STATES)
    request = _REQUEST.pack(family, protocol, 0, 0, states)
    return request + addresses + _PLACE.pack(socket_id.interface, socket_id.cookie)


def _attribute(kind: int, payload: bytes) -> bytes:
    length = 4 + len(payload)
    return struct.pack("=HH", length, kind) + payload + bytes(-length % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            return
        yield kind & _NLA_TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def _parse_entry(payload: bytes, protocol: int) -> SocketEntry:
    family, state, _, _, place, _, _, _, uid, inode = _ANSWER.unpack_from(payload)
    cgroup_id: int | None = None
    storage: bytes | None = None
    for kind, value in _attributes(payload[_ANSWER.size :]):
        if kind == _INET_DIAG_CGROUP_ID:
            cgroup_id = int(struct.unpack("=Q", value)[0])
        elif kind == _INET_DIAG_SK_BPF_STORAGES:
            storage = _parse_storage(value)
    return SocketEntry(_parse_id(family, place), family, protocol, SocketState(state), uid, inode, cgroup_id, storage)


def _parse_id(family: int, data: bytes) -> SocketId:
    source_port, destination_port, source, destination = _ADDRESSES.unpack_from(data)
    interface, cookie = _PLACE.unpack_from(data, _ADDRESSES.size)
    width = 4 if family == socket.AF_INET else 16
    return SocketId(
        cookie, ip_address(source[:width]), source_port, ip_address(destination[:width]), destination_port, interface
    )


def _parse_storage(data: bytes) -> bytes | None:
    """The value of the one map that was asked for."""
    for _, one in _attributes(data):
        for kind, value in _attributes(one):
            if kind == _SK_DIAG_BPF_STORAGE_MAP_VALUE:
                return value
    return None
