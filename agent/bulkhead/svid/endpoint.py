"""A gRPC server behind a Unix socket that anybody on the host may connect to: what one user can take is bounded."""

from __future__ import annotations

import struct
from collections import Counter
from typing import Any, Final, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message
from grpclib.config import Configuration
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.protocol import H2Protocol
from grpclib.server import Server

from bulkhead.svid.peer import Process

MESSAGE_BYTES_MAX: Final = 256 << 10
CONNECTIONS_PER_USER: Final = 256
_WINDOW: Final = 256 << 10
_PREFIX: Final = struct.Struct(">?I")

M = TypeVar("M", bound=Message)


async def receive(stream: Any, kind: type[M], bytes_max: int = MESSAGE_BYTES_MAX) -> M | None:
    """The next message of a call; None at its end. Raises GRPCError for one that is too large or none at all.

    The library's own way waits for as many bytes as the caller announces.
    """
    try:
        prefix = await stream._stream.recv_data(_PREFIX.size)
        if not prefix:
            return None
        compressed, size = _PREFIX.unpack(prefix)
        if compressed:
            raise GRPCError(Status.UNIMPLEMENTED, "compressed messages are not read")
        if size > bytes_max:
            raise GRPCError(Status.RESOURCE_EXHAUSTED, f"a message has {size} bytes, more than {bytes_max}")
        return kind.FromString(await stream._stream.recv_data(size))
    except AssertionError:  # how the library says that the caller ended amid what it announced
        raise GRPCError(Status.INVALID_ARGUMENT, "the message is cut short") from None
    except DecodeError as error:
        raise GRPCError(Status.INVALID_ARGUMENT, "the message cannot be read") from error


def unimplemented(cardinality: Cardinality) -> Handler:
    """A method that is not offered. The library's own answer lacks what some clients ask of every answer."""

    async def refuse(_: Any) -> None:
        raise GRPCError(Status.UNIMPLEMENTED, "this method is not offered")

    return Handler(refuse, cardinality, Empty, Empty)


def peer_of(stream: Any) -> Process:
    """The process that opened the connection of a call."""
    connection: _Connection = stream.peer._transport.get_protocol()
    return connection.process


class _Connection(H2Protocol):
    """One connection, refused at once where its user has too many."""

    process: Process

    def __init__(self, server: BoundedServer, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._server = server

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.process = Process(transport.get_extra_info("socket"))
        self._server.connections[self.process.uid] += 1
        if self._server.connections[self.process.uid] > CONNECTIONS_PER_USER:
            transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        uid = self.process.uid
        self._server.connections[uid] -= 1
        if not self._server.connections[uid]:
            del self._server.connections[uid]
        self.process.close()
        super().connection_lost(exc)


class BoundedServer(Server):
    """Counts connections by user, and offers small windows."""

    def __init__(self, handlers: Any) -> None:
        windows = Configuration(http2_connection_window_size=_WINDOW, http2_stream_window_size=_WINDOW)
        super().__init__(handlers, config=windows)
        self.connections: Counter[int] = Counter()
        """By user."""

    def _protocol_factory(self) -> H2Protocol:
        made = super()._protocol_factory()
        return _Connection(self, made.handler, made.config, made.h2_config)
