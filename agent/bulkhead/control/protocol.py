"""One JSON object a line, in both directions.

    request   {"version": 1, "op": "drops", "args": {...}}
    answer    {"ok": true, "data": {...}}
    refusal   {"ok": false, "error": {"message": "...", "exit_code": 2}}

A connection carries one request after the other. Some operations answer with many lines, as things happen, until either
side closes the connection.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from bulkhead.errors import BulkheadError, ExitCode, UsageError

VERSION: Final = 1
REQUEST_MAX: Final = 64 << 10
"""Bytes of the longest request, its line break included."""

RESPONSE_MAX: Final = 64 << 20
"""Bytes of the longest answer."""


class RemoteError(BulkheadError):
    """The agent refused a request; its words and its exit code."""

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of the agent."""

    op: str
    args: dict[str, Any]


def encode_request(request: Request) -> bytes:
    """A request as a line. Raises UsageError beyond the size limit."""
    line = _line({"version": VERSION, "op": request.op, "args": request.args})
    if len(line) > REQUEST_MAX:
        raise UsageError(f"a request of {len(line):,} bytes is more than {REQUEST_MAX:,}")
    return line


def decode_request(line: bytes) -> Request:
    """The request in a line. Raises UsageError for anything else."""
    value = _object(line, "request")
    if value.get("version") != VERSION:
        raise UsageError(f"this agent speaks version {VERSION} of the control language")
    op, args = value.get("op"), value.get("args", {})
    if not isinstance(op, str) or not isinstance(args, dict) or set(value) - {"version", "op", "args"}:
        raise UsageError("a request has a text `op` and an object `args`")
    return Request(op, args)


def encode_answer(data: object) -> bytes:
    """An answer as a line."""
    return _line({"ok": True, "data": data})


def encode_error(error: BulkheadError) -> bytes:
    """A refusal as a line."""
    return _line({"ok": False, "error": {"message": str(error), "exit_code": int(error.exit_code)}})


def decode_answer(line: bytes) -> Any:
    """The data of an answer. Raises RemoteError for a refusal, UsageError for what is neither."""
    value = _object(line, "answer")
    if value.get("ok") is True and "data" in value:
        return value["data"]
    error = value.get("error")
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        raise UsageError("the agent sent an answer of another shape")
    known = {int(code): code for code in ExitCode}
    code = error.get("exit_code")
    exit_code = known.get(code, ExitCode.UNREACHABLE) if isinstance(code, int) else ExitCode.UNREACHABLE
    raise RemoteError(error["message"], exit_code)


def _line(value: object) -> bytes:
    # Escaping everything beyond ASCII also keeps line breaks and escape sequences of others out of the line.
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _object(line: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the {what} is not JSON") from error
    if not isinstance(value, dict):
        raise UsageError(f"the {what} is not a JSON object")
    return value
