"""What the tests of identities share: the real process behind a real socket, and the public client."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpclib.client import Channel, Stream
from grpclib.const import Cardinality
from grpclib.protocol import H2Protocol
from h2.exceptions import StreamClosedError

from bulkhead.config import Settings
from bulkhead.daemon.svids import Identities, SvidProcess
from bulkhead.svid.messages import message
from bulkhead.svid.svids import Attested, Workload
from bulkhead.svid.workload_api import HEADER

sys.modules.setdefault("OpenSSL", None)  # type: ignore[arg-type]  the client's dependency tries a distribution's old one

DOMAIN = "example.org"
WAIT_S = 20.0


def spiffe(path: str) -> str:
    """The SPIFFE ID of a workload here."""
    return f"spiffe://{DOMAIN}/{path}"


def workload(path: str) -> Workload:
    """A workload of that name."""
    return Workload(spiffe(path), path)


WEB, DB = workload("shop/web"), workload("shop/db")


@dataclass
class Node:
    """An agent's identity process, and whom the agent takes processes for."""

    settings: Settings
    people: dict[int, Attested] = field(default_factory=dict)
    """By pid; everybody else is nobody."""
    asked: list[int] = field(default_factory=list)
    process: SvidProcess = field(init=False)

    def __post_init__(self) -> None:
        self.process = SvidProcess(self.settings, self._attest)
        self.told = asyncio.Event()
        self.process.on_change = self.process.on_status = self.told.set

    def _attest(self, pid: int) -> Attested:
        self.asked.append(pid)
        return self.people.get(pid, Attested())

    @property
    def address(self) -> str:
        """As SPIFFE_ENDPOINT_SOCKET says it."""
        return f"unix:{self.settings.workload_socket}"

    def publish(self, *workloads: Workload, lifetime_s: float = 3600.0, **more: object) -> None:
        """Have these served."""
        fields = {"trust_domain": DOMAIN, "anchors": {}, "federated": {}} | more
        self.process.publish(Identities(workloads=workloads, lifetime_s=lifetime_s, **fields))  # type: ignore[arg-type]

    async def serve(self, *workloads: Workload, lifetime_s: float = 3600.0, **more: object) -> None:
        """Have these served, and wait until they are."""
        self.publish(*workloads, lifetime_s=lifetime_s, **more)
        await self.until(lambda: self.process.own is not None)
        await self.process.bundles()

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait for something that the process is told to have come to."""
        async with asyncio.timeout(WAIT_S):
            while not is_so():
                self.told.clear()
                await self.told.wait()

    async def status(self, is_so: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """What the process says of itself, once it is so."""
        await self.until(lambda: bool(self.process.status().get("svids") is not None and is_so(self.process.status())))
        return self.process.status()


@contextlib.asynccontextmanager
async def running(directory: Path, **settings: object) -> AsyncIterator[Node]:
    """A node whose test is the workload `shop/web`."""
    node = Node(Settings(host="node-1", run_dir=directory, **settings), {os.getpid(): Attested((WEB.spiffe_id,))})  # type: ignore[arg-type]
    node.process.start()
    try:
        yield node
    finally:
        await node.process.stop()


class Line:
    """A gRPC client that may say anything."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @contextlib.asynccontextmanager
    async def call(
        self, method: str, question: object, answer: str, *, header: bool = True, end: bool = True
    ) -> AsyncIterator[Stream[object, object]]:
        """A call of a method, with one question asked; the only one, if that is the `end`."""
        metadata = dict([HEADER]) if header else {}
        types = (type(question), message(answer))
        async with self._channel.request(method, Cardinality.STREAM_STREAM, *types, metadata=metadata) as stream:
            await stream.send_message(question, end=end)
            yield stream

    async def first(self, method: str, question: object, answer: str, **more: object) -> object:
        """The first answer. Raises GRPCError."""
        async with self.call(method, question, answer, **more) as stream:  # type: ignore[arg-type]
            found = await stream.recv_message()
            with contextlib.suppress(StreamClosedError):  # it was the only one, and the call has ended
                await stream.cancel()
            if found is None:
                await stream.recv_trailing_metadata()
            return found


class OverSocket(Channel):
    """A client on a connection that is there already."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(path="unused")
        self._connection = connection

    async def _create_connection(self) -> H2Protocol:
        _, protocol = await asyncio.get_running_loop().create_connection(self._protocol_factory, sock=self._connection)
        return protocol


@contextlib.contextmanager
def line(to: Node | socket.socket) -> Iterator[Line]:
    """A client."""
    channel = Channel(path=str(to.settings.workload_socket)) if isinstance(to, Node) else OverSocket(to)
    with contextlib.closing(channel):
        yield Line(channel)


def x509_request() -> object:
    return message("X509SVIDRequest")()


class Shared:
    """One node for the tests of a module, each of which says itself what is served to whom."""

    def __init__(self, runner: asyncio.Runner, node: Node) -> None:
        self._runner = runner
        self._node = node

    def run(self, work: Callable[[Node], Coroutine[Any, Any, None]]) -> None:
        """Do something with it."""

        async def bounded() -> None:
            self._node.people = {os.getpid(): Attested((WEB.spiffe_id,))}
            async with asyncio.timeout(WAIT_S):
                await work(self._node)

        self._runner.run(bounded())
