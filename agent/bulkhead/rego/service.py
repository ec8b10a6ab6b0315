"""Envoy's question about a request, over gRPC: `envoy.service.auth.v3.Authorization/Check`."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any, Final

from google.protobuf.message import DecodeError
from grpclib.const import Cardinality, Handler
from grpclib.encoding.base import CodecBase
from grpclib.server import Server, Stream

from bulkhead.rego.judges import Judges
from bulkhead.rego.messages import SERVICE, message
from bulkhead.rego.outcome import Outcome, Tally
from bulkhead.rego.request import package_of
from bulkhead.rego.response import refusal

METHOD: Final = f"/{SERVICE}.Authorization/Check"


class Bytes(CodecBase):
    """Messages as they are on the wire: most of them are only passed on."""

    __content_subtype__ = "proto"

    def encode(self, content: Any, message_type: Any) -> bytes:  # noqa: ARG002  of the library's interface
        """Nothing to be done."""
        return bytes(content)

    def decode(self, content: bytes, message_type: Any) -> bytes:  # noqa: ARG002  of the library's interface
        """Nothing to be done."""
        return content


class Authorization:
    """Answers each question; what cannot be answered is refused, and says so."""

    def __init__(self, judges: Judges, tally: Tally) -> None:
        self._judges = judges
        self._tally = tally

    def __mapping__(self) -> dict[str, Handler]:
        """What grpclib serves."""
        return {METHOD: Handler(self.check, Cardinality.UNARY_UNARY, bytes, bytes)}

    async def check(self, stream: Stream[bytes, bytes]) -> None:
        """One question."""
        content = await stream.recv_message()
        if content is not None:
            await stream.send_message(await self.answer(content))

    async def answer(self, content: bytes) -> bytes:
        """The CheckResponse to a CheckRequest."""
        started = time.perf_counter()
        package = ""
        try:
            package = package_of(message("CheckRequest").FromString(content))
            outcome, answer = await self._judges.ask(package, content)
        except DecodeError:
            outcome, answer = Outcome.INPUT, b""
        self._tally.add(package, outcome, time.perf_counter() - started)
        return answer or bytes(refusal(package, outcome).SerializeToString())


async def start_server(listening: socket.socket, judges: Judges, tally: Tally) -> Callable[[], None]:
    """Answer whoever connects, until what is given back is called."""
    server = Server([Authorization(judges, tally)], codec=Bytes())
    await server.start(sock=listening)
    return server.close
