"""Calls of a gRPC server behind a Unix socket that is not ours: bounded in bytes and in time.

Whatever goes wrong is a `CallError`: of a kind, to be counted and acted upon, and one sentence, to be told.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message
from grpclib.client import Channel, Stream
from grpclib.config import Configuration
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

CALLS_MAX: Final = 64
"""On one connection: servers need not take more than 100 at a time, and a subscription lasts."""
MESSAGE_BYTES_MAX: Final = 4 << 20
"""Of one answer; what SPIRE's own clients take."""
ANSWER_S: Final = 5.0
"""For one answer, and for the whole of one call that is no subscription."""
FIRST_S: Final = 30.0
"""For the first word of a subscription: SPIRE may have to sign first. Silence after it is as it should be."""

_TOLD_MAX: Final = 160
_PREFIX: Final = struct.Struct(">BI")
_WINDOW: Final = 1 << 20

T = TypeVar("T")
PeerCertificate = Mapping[str, Any]
"""As `ssl.SSLSocket.getpeercert` gives it."""


class Failure(StrEnum):
    """What went wrong, for counters."""

    ABSENT = "absent"
    """There is no such socket."""
    UNOFFERED = "unoffered"
    """There is somebody, who does not offer it."""
    AWAY = "away"
    """There is a socket, and no connection to be had."""
    REFUSED = "refused"
    """We may not ask this."""
    UNKNOWN = "unknown"
    """The workload is not found."""
    BROKEN = "broken"
    """The answer ended before it should, or never came."""
    FAILED = "failed"
    """An answer of any other error."""
    MALFORMED = "malformed"
    """The answer makes no sense."""
    TOO_LARGE = "too_large"
    """The answer, or the number of things in it, is beyond its bounds."""
    IMPOSTOR = "impostor"
    """Somebody else than SPIRE's agent answers."""
    WRONG_ID = "wrong_id"
    """There are SVIDs, of other SPIFFE IDs than policy says."""
    WITHHELD = "withheld"
    """There is no SVID."""
    GONE = "gone"
    """The process that stood for the workload has ended."""
    RENEWED = "renewed"
    """Our own SVID was renewed: connect anew with it."""


_BY_STATUS: Final = {
    Status.UNIMPLEMENTED: Failure.UNOFFERED,
    Status.PERMISSION_DENIED: Failure.REFUSED,
    Status.UNAUTHENTICATED: Failure.REFUSED,
    Status.NOT_FOUND: Failure.UNKNOWN,
}


class CallError(Exception):
    """A call did not give what was asked; the message is one sentence."""

    def __init__(self, failure: Failure, message: str) -> None:
        super().__init__(message)
        self.failure = failure


class Call(NamedTuple, Generic[T]):
    """One thing that can be asked."""

    method: str
    """`/SERVICE/METHOD`."""
    question: Message
    answer: type[Message]
    read: Callable[[Any], T]
    """What an answer means; may raise CallError."""


@dataclass(slots=True)
class _Line:
    """A connection, made when it is first needed and again when it was lost."""

    channel: Channel
    calls: int = 0
    """Under way."""


class Caller:
    """Connections to one server, as many as the calls under way need. Used in one event loop."""

    def __init__(
        self,
        socket: Path,
        metadata: Mapping[str, str],
        tls: ssl.SSLContext | None = None,
        check_peer: Callable[[PeerCertificate], None] | None = None,
        unheard: str = "",
    ) -> None:
        """`unheard`: what to say of a connection that was lost before there was any answer on it."""
        self._socket = socket
        self._unheard = unheard
        self._metadata = metadata
        self._check_peer = check_peer
        self._tls = tls
        # No host is spoken to, but a name has to be there for TLS; who it is, `check_peer` says.
        self._configuration = Configuration(
            http2_connection_window_size=_WINDOW,
            http2_stream_window_size=_WINDOW,
            ssl_target_name_override="spire" if tls else None,
        )
        self._lines: list[_Line] = []

    def close(self) -> None:
        """End the connections and every call on them."""
        for line in self._lines:
            line.channel.close()

    async def ask(self, call: Call[T]) -> T:
        """The one answer of a call. Raises CallError."""
        with self._explained(), _late_is_broken(f"`{self._socket}` gave no answer within {ANSWER_S:g} s"):
            async with asyncio.timeout(ANSWER_S), self._stream(call, Cardinality.UNARY_UNARY) as stream:
                await self._begin(stream, call.question)
                found = await self._first(stream)
        if found is None:
            raise CallError(Failure.BROKEN, f"`{self._socket}` ended the call without an answer")
        return call.read(found)

    async def follow(self, call: Call[T]) -> AsyncGenerator[T, None]:
        """The answers of a subscription, which never ends but by CallError. Close it with `contextlib.aclosing`."""
        with self._explained():
            async with self._stream(call, Cardinality.UNARY_STREAM) as stream:
                with _late_is_broken(f"`{self._socket}` said nothing within {FIRST_S:g} s"):
                    async with asyncio.timeout(FIRST_S):
                        await self._begin(stream, call.question)
                        found = await self._first(stream)
                while found is not None:
                    yield call.read(found)
                    found = await _receive(stream)
        raise CallError(Failure.BROKEN, f"`{self._socket}` ended the subscription")

    @contextlib.asynccontextmanager
    async def _stream(self, call: Call[T], cardinality: Cardinality) -> AsyncGenerator[Stream[Message, Message], None]:
        line = next((one for one in self._lines if one.calls < CALLS_MAX), None)
        if line is None:
            line = _Line(Channel(path=str(self._socket), ssl=self._tls, config=self._configuration))
            self._lines.append(line)
        line.calls += 1
        try:
            question = type(call.question)
            request = line.channel.request(call.method, cardinality, question, call.answer, metadata=self._metadata)
            async with request as stream:
                yield stream
        finally:
            line.calls -= 1

    async def _begin(self, stream: Stream[Message, Message], question: Message) -> None:
        """Ask, but not somebody else than who is meant."""
        await stream.send_request()
        if self._check_peer is not None:
            certificate = stream.peer.cert() if stream.peer else None
            if certificate is None:
                raise CallError(Failure.IMPOSTOR, f"whoever answers at `{self._socket}` shows no certificate")
            self._check_peer(certificate)
        await stream.send_message(question, end=True)

    async def _first(self, stream: Stream[Message, Message]) -> Message | None:
        found = await _receive(stream)
        self._unheard = ""
        return found

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Every failure of what is inside as a CallError."""
        try:
            yield
        except FileNotFoundError:
            raise CallError(Failure.ABSENT, f"there is no socket `{self._socket}`") from None
        except ssl.SSLError as error:
            reason = error.reason or "TLS failed"
            raise CallError(Failure.IMPOSTOR, f"no TLS with `{self._socket}`: {shown(reason)}") from None
        except GRPCError as error:
            failure = _BY_STATUS.get(error.status, Failure.FAILED)
            said = f"{error.status.name}: {shown(error.message or 'no reason given')}"
            raise CallError(failure, f"`{self._socket}` answers {said}") from None
        except (DecodeError, KeyError, ValueError):  # the latter where headers are not those of gRPC
            raise CallError(Failure.MALFORMED, f"`{self._socket}` answers what is no message of this call") from None
        except (StreamTerminatedError, ProtocolError) as error:
            said = f"`{self._socket}` ended the call: {shown(str(error))}{self._unheard}"
            raise CallError(Failure.BROKEN, said) from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise CallError(Failure.AWAY, f"cannot connect to `{self._socket}`: {shown(reason)}") from None


@contextlib.contextmanager
def _late_is_broken(message: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError as late:
        if late.errno is not None:
            raise
        raise CallError(Failure.BROKEN, message) from None


async def _receive(stream: Stream[Message, Message]) -> Message | None:
    """The next answer; None after the last. Raises CallError for one that is too large or cut short.

    In place of the library's own, which takes in whatever length is announced.
    """
    if not stream._recv_initial_metadata_done:
        await stream.recv_initial_metadata()
    with stream._wrapper:
        try:
            head = await stream._stream.recv_data(_PREFIX.size)
            if not head:
                return None
            compressed, length = _PREFIX.unpack(head)
            if compressed:
                raise CallError(Failure.MALFORMED, "an answer is compressed, which nobody asked for")
            if length > MESSAGE_BYTES_MAX:
                most = f"{MESSAGE_BYTES_MAX} are taken at most"
                raise CallError(Failure.TOO_LARGE, f"an answer has {length} bytes, and {most}")
            body = await stream._stream.recv_data(length)
        except AssertionError:  # how the library says that the stream ended amid what was announced
            raise CallError(Failure.BROKEN, "an answer was cut short") from None
        return stream._recv_type.FromString(body)


def shown(text: str) -> str:
    """What another said, fit to be part of one sentence."""
    clean = "".join(letter if letter.isprintable() else "?" for letter in text)
    return clean if len(clean) <= _TOLD_MAX else clean[:_TOLD_MAX] + "…"
