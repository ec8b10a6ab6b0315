"""bulkhead-regod: the process that evaluates the Rego of the policy repository.

Envoy asks it about requests over a Unix socket, which the agent has made and keeps. The modules are evaluated in
processes of their own, which it ends when they take too long. It holds no capability and writes no file.

Messages to the agent, each a JSON line with `bytes`, of which there are none:

    {"kind": "ready", "bytes": 0}                                       give me the modules
    {"kind": "loaded", "commit": …, "packages": […], "bytes": 0}
    {"kind": "failed", "commit": …, "error": …, "bytes": 0}             nothing is judged: every request is refused
    {"kind": "status", "decisions": …, "latency": …, "ended": …, "error": …, "bytes": 0}
                                                                        a second after a change, at most

Messages from it, a JSON line followed by `bytes` raw bytes; when it closes its end, this process ends:

    {"op": "modules", "commit": …, "bytes": N}    a JSON list of [path, text] follows
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import sys
from typing import Any, Final

from bulkhead.confinement import confine, end_with_parent
from bulkhead.errors import Loc, UnreachableError
from bulkhead.policy.rego_modules import RegoModule
from bulkhead.policy.source import REPOSITORY_BYTES_MAX
from bulkhead.rego.judges import Judges
from bulkhead.rego.outcome import Tally
from bulkhead.rego.service import start_server

_MEMORY_BYTES_MAX: Final = 2 << 30
_FILES_MAX: Final = 1024
_BODY_BYTES_MAX: Final = 8 * REPOSITORY_BYTES_MAX
"""JSON may write a character as six."""
_REPORT_S: Final = 1.0


class Reports:
    """What the agent is told."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    def send(self, kind: str, **values: Any) -> None:
        """Tell the agent something."""
        self._writer.write(json.dumps({"kind": kind, **values, "bytes": 0}).encode() + b"\n")

    async def keep_telling(self, judges: Judges, tally: Tally) -> None:
        """The counts, whenever they have changed."""
        told: dict[str, Any] = {}
        while True:
            status = tally.status() | {"ended": judges.ended, "error": judges.error or judges.trouble}
            if status != told:
                self.send("status", **status)
                told = status
            await asyncio.sleep(_REPORT_S)


async def obey(reader: asyncio.StreamReader, judges: Judges, reports: Reports) -> None:
    """Take the modules that the agent gives, until it is gone."""
    while line := await reader.readline():
        asked = json.loads(line)
        if not 0 <= asked["bytes"] <= _BODY_BYTES_MAX:
            raise ValueError("a message of that size")
        listed = json.loads(await reader.readexactly(asked["bytes"]))
        modules = [RegoModule(path, text, Loc(path, 1)) for path, text in listed]
        try:
            await judges.load(modules)
        except UnreachableError as error:
            reports.send("failed", commit=asked["commit"], error=str(error))
        else:
            reports.send("loaded", commit=asked["commit"], packages=sorted(judges.packages))


async def serve(channel: socket.socket, listening: socket.socket) -> None:
    """Answer Envoy until the agent is gone."""
    reader, writer = await asyncio.open_connection(sock=channel)
    reports, judges, tally = Reports(writer), Judges(), Tally()
    stop_serving = await start_server(listening, judges, tally)
    telling = asyncio.create_task(reports.keep_telling(judges, tally))
    reports.send("ready")
    try:
        await obey(reader, judges, reports)
    finally:
        telling.cancel()
        judges.close()
        stop_serving()


def main() -> None:
    """Entry point: `regod FD LISTENING_FD`."""
    end_with_parent()
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    channel, listening = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    confine(_MEMORY_BYTES_MAX, _FILES_MAX)
    try:
        asyncio.run(serve(channel, listening))
    except (ConnectionError, asyncio.IncompleteReadError):
        return  # the agent is gone, and nobody is left to tell


if __name__ == "__main__":
    main()
