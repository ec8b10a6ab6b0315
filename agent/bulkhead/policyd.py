"""bulkhead-policy: the process that reads what other people wrote.

Git objects, YAML and everything derived from them are handled here, in a child of the agent that has given up every
capability and privilege it can, so that a bug in a parser is not a bug in the process that holds the kernel maps. What
leaves is a compiled bundle, which the agent checks before it uses it.

Messages to the agent, each a JSON line followed by `bytes` raw bytes:

    {"kind": "bundle", "commit": …, "bytes": N, "took_ms": …}
    {"kind": "refused", "commit": …, "error": …, "bytes": 0}

The agent sends one byte to have the reference read again; when it closes its end, this process ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import socket
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from inotify_simple import INotify, flags

from bulkhead.dataplane.bundle import pack
from bulkhead.dataplane.compile import compile_commit
from bulkhead.errors import BulkheadError, UnreachableError
from bulkhead.policy.parse import ParseCache, parse
from bulkhead.policy.source import git_directory, read_commit, resolve

_MEMORY_BYTES_MAX = 4 << 30
_FILES_MAX = 256
_PROCESSES_MAX = 64
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_PDEATHSIG = 1
_CAPABILITY_VERSION_3 = 0x20080522
_WATCHED = flags.CREATE | flags.MOVED_TO | flags.CLOSE_WRITE | flags.DELETE | flags.DELETE_SELF | flags.ATTRIB
_MISSED_EVENT_S = 5.0
"""How often the reference is read without an event: file systems exist that report none."""


def confine() -> None:
    """Give up privileges for good: no new ones by exec, no capabilities, bounded memory, files and processes."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot set no_new_privs")
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    if libc.capset(header, nothing) != 0:
        raise OSError(ctypes.get_errno(), "cannot give up capabilities")
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES_MAX, _MEMORY_BYTES_MAX))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES_MAX, _FILES_MAX))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@dataclass(slots=True)
class Compiler:
    """Compiles what a reference names, when that has changed."""

    repository: Path
    ref: str
    host: str
    channel: socket.socket
    cache: ParseCache
    last: str = ""
    """What was reported last: a commit, or the text of a failure that names none."""

    def refresh(self, force: bool = False) -> None:
        """Read the reference; if it moved, compile and report."""
        try:
            commit = resolve(self.repository, self.ref)
        except BulkheadError as error:
            if force or self.last != str(error):
                self.last = str(error)
                self._send({"kind": "refused", "commit": "", "error": str(error)})
            return
        if commit == self.last and not force:
            return
        self.last = commit
        started = time.monotonic()
        try:
            bundle = self._compile(commit)
        except BulkheadError as error:
            self._send({"kind": "refused", "commit": commit, "error": str(error)})
        except (MemoryError, RecursionError) as error:
            self._send({"kind": "refused", "commit": commit, "error": f"the policy exhausts memory: {error!r}"})
        else:
            took_ms = round((time.monotonic() - started) * 1000, 1)
            self._send({"kind": "bundle", "commit": commit, "took_ms": took_ms}, bundle)

    def _compile(self, commit: str) -> bytes:
        policy_set = parse(read_commit(self.repository, commit), self.cache)
        return pack(compile_commit(policy_set, self.host, datetime.now(UTC)))

    def _send(self, head: dict[str, object], body: bytes = b"") -> None:
        self.channel.sendall(json.dumps(head | {"bytes": len(body)}).encode() + b"\n" + body)


class Watch:
    """Wakes when a reference of a repository may have moved."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._inotify = INotify()

    def fileno(self) -> int:
        """For select."""
        return int(self._inotify.fileno())

    def renew(self) -> None:
        """Watch every directory that references live in; harmless when repeated."""
        try:
            top = git_directory(self._repository)
        except UnreachableError:
            for parent in (self._repository, self._repository.parent):
                if parent.is_dir():
                    self._inotify.add_watch(str(parent), _WATCHED)
            return
        for directory, _, _ in os.walk(top / "refs"):
            self._inotify.add_watch(directory, _WATCHED)
        self._inotify.add_watch(str(top), _WATCHED)

    def drain(self) -> None:
        """Forget what has been reported."""
        self._inotify.read(timeout=0)


def serve(compiler: Compiler) -> None:
    """Compile now, then whenever the reference moves or the agent asks, until the agent is gone."""
    watch = Watch(compiler.repository)
    sources: list[socket.socket | Watch] = [compiler.channel, watch]
    watch.renew()
    compiler.refresh()
    while True:
        ready, _, _ = select.select(sources, [], [], _MISSED_EVENT_S)
        force = False
        if compiler.channel in ready:
            if not compiler.channel.recv(4096):
                return
            force = True
        if watch in ready:
            watch.drain()
        watch.renew()
        compiler.refresh(force)


def main() -> None:
    """Entry point: `policyd FD REPOSITORY REF HOST`."""
    number, repository, ref, host = sys.argv[1:5]
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, 15, 0, 0, 0)
    channel = socket.socket(fileno=int(number))
    confine()
    try:
        serve(Compiler(Path(repository), ref, host, channel, ParseCache()))
    except ConnectionError:
        return  # the agent is gone, and nobody is left to tell


if __name__ == "__main__":
    main()
