"""The agent's end of the control socket.

Reading is for root and the socket's group, changing for root alone. A client that sends nothing, too much or nonsense
is told so once and disconnected; a client that does not read is dropped. Nothing it does keeps the agent waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, Self

from bulkhead.control.peers import Peer, peer_of
from bulkhead.control.protocol import REQUEST_MAX, Request, decode_request, encode_answer, encode_error
from bulkhead.errors import BulkheadError, RefusedError, UnreachableError, UsageError

CONNECTIONS_MAX: Final = 64
IDLE_TIMEOUT_S: Final = 30.0
"""For a client to send a request, or to take an answer."""

MODE: Final = 0o660

Handler = Callable[[dict[str, Any]], Awaitable[Any]]
"""Takes the arguments of a request and gives the data of the answer. BulkheadErrors reach the client."""

ChangeHandler = Callable[[dict[str, Any], Peer], Awaitable[Any]]
"""As a Handler, for what changes something: it is told who asks, for the record."""

StreamHandler = Callable[[dict[str, Any]], AsyncGenerator[Any, None]]
"""Gives one answer after the other; closed when the client leaves."""

_log = logging.getLogger("bulkhead.control")


class Server:
    """Serves operations at `path`: `reads` and `streams` to readers, `changes` to root."""

    def __init__(
        self,
        path: Path,
        reads: Mapping[str, Handler],
        changes: Mapping[str, ChangeHandler] | None = None,
        streams: Mapping[str, StreamHandler] | None = None,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
    ) -> None:
        self.path = path
        self._reads = dict(reads)
        self._changes = dict(changes or {})
        self._streams = dict(streams or {})
        self._idle_timeout_s = idle_timeout_s
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._group = 0

    async def start(self, group: int | None = None) -> None:
        """Listens, with the socket given to `group`. Raises RefusedError when another agent does so already."""
        listener = _bind(self.path, group)
        self._group = os.stat(self.path).st_gid
        self._server = await asyncio.start_unix_server(self._accept, sock=listener, limit=REQUEST_MAX)

    async def close(self) -> None:
        """Stops listening, ends all connections and removes the socket."""
        if self._server is None:
            return
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        self._server = None
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._talk(reader, writer)
        except _GoneError:
            writer.transport.abort()
        finally:
            self._connections.discard(task)
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) > CONNECTIONS_MAX:
            await self._refuse(writer, UnreachableError(f"the agent has {CONNECTIONS_MAX} control connections already"))
            return
        peer = peer_of(writer.get_extra_info("socket"))
        try:
            while line := await self._line(reader):
                request = decode_request(line)
                if not await self._serve(request, peer, reader, writer):
                    return
        except BulkheadError as error:
            await self._refuse(writer, error)

    async def _line(self, reader: asyncio.StreamReader) -> bytes:
        """The next request; empty when the client has left. Raises UsageError for one that is none."""
        try:
            async with asyncio.timeout(self._idle_timeout_s):
                return await reader.readuntil(b"\n")
        except asyncio.LimitOverrunError:
            raise UsageError(f"a request has at most {REQUEST_MAX:,} bytes") from None
        except ConnectionError as error:
            raise _GoneError from error
        except asyncio.IncompleteReadError as error:
            if not error.partial:
                return b""
            raise UsageError("the request ends without a line break") from None
        except TimeoutError:
            raise UsageError(f"no request came within {self._idle_timeout_s:g} seconds") from None

    async def _serve(
        self, request: Request, peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Answers a request. False when the connection ends with it."""
        self._authorise(request, peer)
        stream = self._streams.get(request.op)
        if stream is not None:
            await self._follow(stream, request, reader, writer)
            return False
        await self._send(writer, encode_answer(await _guarded(request, self._answer(request, peer))))
        return True

    async def _answer(self, request: Request, peer: Peer) -> Any:
        read = self._reads.get(request.op)
        return await (read(request.args) if read is not None else self._changes[request.op](request.args, peer))

    def _authorise(self, request: Request, peer: Peer) -> None:
        if request.op in self._changes:
            if not peer.may_change():
                raise UnreachableError(f"`{request.op}` changes what is enforced: only root may ask for it")
            return
        if not peer.may_read(self._group):
            raise UnreachableError("only root and members of the socket's group may ask")
        if request.op not in self._reads and request.op not in self._streams:
            known = ", ".join(sorted({*self._reads, *self._changes, *self._streams}))
            raise UsageError(f"unknown operation `{request.op[:64]}`: this agent knows {known}")

    async def _follow(
        self, stream: StreamHandler, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Streams until there is no more, or the client closes or says anything more."""

        async def pass_on() -> None:
            async with contextlib.aclosing(stream(request.args)) as items:
                async for item in items:
                    await self._send(writer, encode_answer(item))

        leaving = asyncio.ensure_future(reader.read(1))
        sending = asyncio.ensure_future(_guarded(request, pass_on()))
        try:
            await asyncio.wait((leaving, sending), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            await _cancelled(leaving)
            await _cancelled(sending)

    async def _send(self, writer: asyncio.StreamWriter, line: bytes) -> None:
        writer.write(line)
        try:
            async with asyncio.timeout(self._idle_timeout_s):
                await writer.drain()
        except OSError as error:
            raise _GoneError from error

    async def _refuse(self, writer: asyncio.StreamWriter, error: BulkheadError) -> None:
        await self._send(writer, encode_error(error))


class _GoneError(Exception):
    """The client left, or stopped reading: its loss alone."""


async def _cancelled(future: asyncio.Future[Any]) -> None:
    """Ends a future and waits for its end."""
    future.cancel()
    await asyncio.wait([future])


async def _guarded(request: Request, answer: Awaitable[Any]) -> Any:
    """An answer, with what nobody foresaw turned into an error that the client can be told."""
    try:
        return await answer
    except (BulkheadError, _GoneError):
        raise
    except Exception as error:
        _log.exception("control operation %s failed", request.op)
        raise UnreachableError(f"`{request.op}` failed in the agent: its log has the details") from error


def _bind(path: Path, group: int | None) -> socket.socket:
    """A listening socket at `path`, open to nobody else from its first moment on."""
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    before = os.umask(0o777 & ~stat.S_IRWXU)
    try:
        listener.bind(os.fspath(path))
        if group is not None:
            os.chown(path, -1, group)
        os.chmod(path, MODE)
        listener.listen(CONNECTIONS_MAX)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise RefusedError(f"cannot listen at `{path}`: {error.strerror}") from error
    finally:
        os.umask(before)
    return listener


def _remove_stale(path: Path) -> None:
    """Removes the socket of an agent that is gone. Raises RefusedError when one answers, or it is no socket."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise RefusedError(f"`{path}` is in the way: it is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:
            raise RefusedError(f"cannot tell whether an agent listens at `{path}`: {error.strerror}") from error
    raise RefusedError(f"another agent listens at `{path}`")
