"""The command line's end of the control socket. Synchronous, and light to import."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from bulkhead.control.protocol import RESPONSE_MAX, Request, decode_answer, encode_request
from bulkhead.errors import UnreachableError

TIMEOUT_S: Final = 10.0


def call(path: Path, op: str, args: Mapping[str, Any] | None = None, timeout_s: float = TIMEOUT_S) -> Any:
    """The data that the agent answers with.

    Raises UnreachableError when no agent answers in time, RemoteError when it refuses.
    """
    with _connected(path, timeout_s) as connection:
        _send(connection, op, args)
        for line in _lines(connection, path):
            return decode_answer(line)
    raise UnreachableError(f"the agent at `{path}` closed the connection without an answer")


def stream(path: Path, op: str, args: Mapping[str, Any] | None = None, timeout_s: float = TIMEOUT_S) -> Iterator[Any]:
    """One answer after the other, waiting for each, until the agent ends. Raises as `call` does."""
    with _connected(path, timeout_s) as connection:
        _send(connection, op, args)
        connection.settimeout(None)
        for line in _lines(connection, path):
            yield decode_answer(line)


def _connected(path: Path, timeout_s: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connection.settimeout(timeout_s)
    try:
        connection.connect(os.fspath(path))
    except OSError as error:
        connection.close()
        raise UnreachableError(_cause(path, error)) from error
    return connection


def _cause(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return f"no agent answers at `{path}`: start it with `systemctl start bulkhead`, or in a lab `bulkhead agent`"
    if isinstance(error, PermissionError):
        return f"the agent's socket `{path}` is not yours to open: be root, or a member of its group"
    if isinstance(error, TimeoutError) or error.errno == errno.EAGAIN:
        return f"the agent at `{path}` is too busy to answer"
    return f"cannot reach the agent at `{path}`: {error.strerror or error}"


def _send(connection: socket.socket, op: str, args: Mapping[str, Any] | None) -> None:
    line = encode_request(Request(op, dict(args or {})))
    try:
        connection.sendall(line)
    except BrokenPipeError:
        # It refused before it read; its words are waiting to be read.
        return
    except TimeoutError as error:
        raise UnreachableError("the agent does not take the request") from error


def _lines(connection: socket.socket, path: Path) -> Iterator[bytes]:
    """Lines as they come. Raises UnreachableError when none comes in time, or one is too long."""
    received = bytearray()
    scanned = 0
    while True:
        end = received.find(b"\n", scanned)
        if end >= 0:
            yield bytes(received[:end])
            del received[: end + 1]
            scanned = 0
            continue
        scanned = len(received)
        if scanned > RESPONSE_MAX:
            raise UnreachableError(f"the agent's answer is longer than {RESPONSE_MAX:,} bytes")
        chunk = _receive(connection, path)
        if not chunk:
            return
        received += chunk


def _receive(connection: socket.socket, path: Path) -> bytes:
    try:
        return connection.recv(1 << 16)
    except TimeoutError as error:
        raise UnreachableError(f"the agent at `{path}` did not answer in time") from error
    except ConnectionResetError:
        return b""
