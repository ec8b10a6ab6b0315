"""The process that evaluates the modules of one commit, a request at a time, until it is ended.

It speaks with `bulkhead.rego.judges` in frames of four bytes of length and as many bytes. The first says, as JSON,
which packages there are, or why there are none. Then each request (a CheckRequest) is answered by an outcome, a zero
byte and the CheckResponse.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from bulkhead.policy.rego_modules import RegoModule
from bulkhead.rego.child import limit_self
from bulkhead.rego.engine import Engine, RegoError, UndefinedError
from bulkhead.rego.messages import message
from bulkhead.rego.outcome import Outcome
from bulkhead.rego.request import InputError, input_document, package_of
from bulkhead.rego.response import DecisionError, refusal, response

LENGTH: Final = struct.Struct("!I")
FRAME_BYTES_MAX: Final = 4 << 20


def run(channel: socket.socket, modules: Sequence[RegoModule]) -> NoReturn:
    """In a process that was forked for it: serve until the other end is closed."""
    status = 1
    try:
        os.closerange(3, channel.fileno())
        os.closerange(channel.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        limit_self()
        _serve(channel, modules)
        status = 0
    except (ConnectionError, MemoryError):
        status = 0  # the other end is gone, or learns of it by our end
    except BaseException as error:  # noqa: BLE001  it must not go on as a second copy of its parent
        os.write(sys.stderr.fileno(), f"bulkhead-regod: a judge failed: {error!r}\n".encode())
    finally:
        os._exit(status)


def _serve(channel: socket.socket, modules: Sequence[RegoModule]) -> None:
    try:
        engine = Engine(modules)
    except RegoError as error:
        _send(channel, json.dumps({"error": str(error)}).encode())
        return
    judge(engine, b"")  # what is made at the first request is made now
    _send(channel, json.dumps({"packages": sorted(engine.packages)}).encode())
    with channel.makefile("rb") as requests:
        while len(head := requests.read(LENGTH.size)) == LENGTH.size:
            outcome, answer = judge(engine, requests.read(*LENGTH.unpack(head)))
            _send(channel, outcome.encode() + b"\0" + answer.SerializeToString())


def judge(engine: Engine, content: bytes) -> tuple[Outcome, Any]:
    """The outcome and the CheckResponse for a CheckRequest."""
    request = message("CheckRequest").FromString(content)
    package = package_of(request)
    try:
        document = json.dumps(input_document(request))
        return response(package, engine.value(f"{package}.allow", document))
    except (InputError, RecursionError):
        outcome = Outcome.INPUT
    except UndefinedError:
        outcome = Outcome.UNDEFINED
    except RegoError:
        outcome = Outcome.ERROR
    except DecisionError:
        outcome = Outcome.DECISION
    return outcome, refusal(package, outcome)


def _send(channel: socket.socket, content: bytes) -> None:
    channel.sendall(LENGTH.pack(len(content)) + content)
