"""A small rtnetlink: lists of objects, answered at once, and the notifications of a multicast group.

Rejected: pyroute2's synchronous socket, which (0.9) drives an event loop of its own and so refuses to run inside the
agent's, and hides the overflow of a notification queue, which `devices` must see.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from bulkhead.errors import KernelError

NLM_F_REQUEST: Final = 0x1
NLM_F_DUMP: Final = 0x300

_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_NLM_F_DUMP_INTR: Final = 0x10
_HEADER: Final = struct.Struct("=IHHII")
"""Length, type, flags, sequence, port."""
_NETLINK_EXT_ACK: Final = 11
_SOL_NETLINK: Final = 270
_NLM_F_CAPPED: Final = 0x100
_NLM_F_ACK_TLVS: Final = 0x200
_RECEIVE_BYTES: Final = 1 << 17
_DUMP_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class Message:
    """One netlink message; `body` starts after the header."""

    kind: int
    flags: int
    body: bytes


def attributes(body: bytes, offset: int = 0) -> dict[int, bytes]:
    """Decode the attributes from `offset` on; of a repeated kind, the last."""
    found: dict[int, bytes] = {}
    while offset + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = body[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def text_of(payload: bytes) -> str:
    """Decode a string attribute."""
    return payload.partition(b"\0")[0].decode(errors="replace")


def messages(data: bytes) -> Iterator[Message]:
    """The messages of one datagram."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, _, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield Message(kind, flags, data[offset + _HEADER.size : offset + length])
        offset += (length + 3) & ~3


class Rtnetlink:
    """A socket for requests, in the network namespace of the thread that made it. Not for several threads at once."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def dump(self, kind: int, body: bytes, what: str) -> list[Message]:
        """Every object of a kind. Repeated when the set changed meanwhile, so that the answer is of one moment."""
        for _ in range(_DUMP_ATTEMPTS):
            found, consistent = self._dump_once(kind, body, what)
            if consistent:
                return found
        raise KernelError(f"cannot {what}: it changes faster than it can be read", errno.EAGAIN)

    def _dump_once(self, kind: int, body: bytes, what: str) -> tuple[list[Message], bool]:
        found: list[Message] = []
        consistent = True
        for message in self._replies(self._send(kind, NLM_F_REQUEST | NLM_F_DUMP, body)):
            consistent = consistent and not message.flags & _NLM_F_DUMP_INTR
            if message.kind == _NLMSG_ERROR:
                _raise_refusal(message, what)
            if message.kind == _NLMSG_DONE:
                break
            found.append(message)
        return found, consistent

    def _send(self, kind: int, flags: int, body: bytes) -> int:
        self._sequence += 1
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, self._sequence, 0) + body)
        return self._sequence

    def _replies(self, sequence: int) -> Iterator[Message]:
        """Messages that answer request `sequence`; what is left of an abandoned one is passed over."""
        while True:
            data = self._socket.recv(_RECEIVE_BYTES)
            if struct.unpack_from("=I", data, 8)[0] == sequence:
                yield from messages(data)


def _raise_refusal(message: Message, what: str) -> None:
    """Raise the KernelError that an error message stands for; code 0 is success."""
    code: int = struct.unpack_from("=i", message.body)[0]
    if code == 0:
        return
    reason = os.strerror(-code)
    detail = _explanation(message)
    raise KernelError(f"cannot {what}: {reason}{f' ({detail})' if detail else ''}", -code)


def _explanation(message: Message) -> str:
    """The kernel's own words, where it has any."""
    if not message.flags & _NLM_F_ACK_TLVS:
        return ""
    echoed: int = struct.unpack_from("=I", message.body, 4)[0]
    offset = 4 + (_HEADER.size if message.flags & _NLM_F_CAPPED else (echoed + 3) & ~3)
    return text_of(attributes(message.body, offset).get(1, b"")).lower()
