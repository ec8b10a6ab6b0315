"""bulkhead-policy: the process that reads what other people wrote.

Git objects, signatures, YAML and everything derived from them are handled here, in a child of the agent that has given
up every capability and privilege it can, so that a bug in a parser is not a bug in the process that holds the kernel
maps. What leaves is a compiled bundle, which the agent checks before it uses it.

Messages to the agent, each a JSON line followed by `bytes` raw bytes:

    {"kind": "bundle", "commit": …, "tip": …, "bytes": N, "took_ms": …, "rollback": false}
    {"kind": "refused", "commit": …, "error": …, "code": …, "bytes": 0, "rollback": false}
    {"kind": "source", "error": …, "code": …, "commit": …, "at": …, "bytes": 0}

Messages from it, a JSON line each; when it closes its end, this process ends:

    {"op": "reload"}
    {"op": "accepted", "commit": …, "held_off": …}    what is in force now, and the tip that was rolled back
    {"op": "rollback", "commit": …}
    {"op": "trial", "commit": …}
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from inotify_simple import INotify, flags

from bulkhead import config
from bulkhead.config import Settings
from bulkhead.confinement import confine, end_with_parent
from bulkhead.dataplane.bundle import pack
from bulkhead.dataplane.compile import compile_commit
from bulkhead.errors import BulkheadError, PolicyError, UnreachableError, UsageError
from bulkhead.policy.git import git_directory, resolve
from bulkhead.policy.history import History
from bulkhead.policy.lifeline import with_lifeline
from bulkhead.policy.parse import ParseCache, parse
from bulkhead.policy.remote import Mirror, Remote, RemoteError
from bulkhead.policy.signers import Roots, read_operators
from bulkhead.policy.source import read_commit
from bulkhead.rego.examine import examine

_WATCHED = flags.CREATE | flags.MOVED_TO | flags.CLOSE_WRITE | flags.DELETE | flags.DELETE_SELF | flags.ATTRIB
_MISSED_EVENT_S = 5.0
"""How often the reference is read without an event: file systems exist that report none."""


class LocalSource:
    """A repository on this machine, read where it is."""

    interval_s = _MISSED_EVENT_S

    def __init__(self, settings: Settings) -> None:
        self.repository = Path(settings.repository)
        self.watched: Path | None = self.repository
        self._ref = settings.ref

    def look(self, force: bool) -> str:  # noqa: ARG002  there is nothing to be forced
        """What the reference names now."""
        return self.tip()

    def tip(self) -> str:
        """What the reference named when it was looked at last."""
        return resolve(git_directory(self.repository), self._ref, self.repository)

    def keep(self, commit: str) -> None:
        """Nothing: the repository is its owner's to keep."""


class RemoteSource:
    """A repository elsewhere, read in a mirror."""

    def __init__(self, settings: Settings) -> None:
        self._remote = Remote(
            settings.repository,
            settings.ref,
            settings.ssh_key,
            settings.ssh_known_hosts,
            settings.https_ca,
            settings.https_credentials,
        )
        self._mirror = Mirror(settings.mirror)
        self.repository = settings.mirror
        self.watched = self._remote.path
        self.interval_s = settings.poll_s

    def look(self, force: bool) -> str:
        """Fetch, and say what came. Raises RemoteError, or PolicyError for what may not be fetched."""
        if force or not self._is_current():
            self._mirror.fetch(self._remote)
        return self.tip()

    def _is_current(self) -> bool:
        """Whether a repository on this machine still names what was fetched: asking costs less than fetching."""
        if self._remote.path is None:
            return False
        try:
            path = self._remote.path
            return resolve(git_directory(path), self._remote.ref, path) == self.tip()
        except UnreachableError:
            return False

    def tip(self) -> str:
        """What the reference named when it was fetched last."""
        return self._mirror.tip()

    def keep(self, commit: str) -> None:
        """Keep what was accepted, whatever happens to the reference."""
        self._mirror.keep(commit)


@dataclass(slots=True)
class Compiler:
    """Compiles what a reference names, when that has changed and may follow what was accepted."""

    settings: Settings
    channel: socket.socket
    source: LocalSource | RemoteSource
    cache: ParseCache
    accepted: str = ""
    held_off: str = ""
    """The tip that was rolled back: it and what it descends from are left alone."""
    last: str = ""
    """What was reported last: a commit, or the text of a failure that names none."""

    def refresh(self, force: bool = False) -> None:
        """Look at the reference; if it moved, compile and report."""
        try:
            commit = self.source.look(force)
        except RemoteError as error:
            self._report_source(error)
            return
        except PolicyError as error:
            self._report_source(None)  # the remote did answer
            self._refuse_source(error, force)
            return
        except BulkheadError as error:
            self._report_source(error)
            self._refuse_source(error, force)
            return
        self._report_source(None, commit)
        if commit == self.last and not force:
            return
        self.last = commit
        self._deliver(self.accepted if self._is_held_off(commit) else commit, self._verify, rollback=False)

    def _refuse_source(self, error: BulkheadError, force: bool) -> None:
        if force or self.last != str(error):
            self.last = str(error)
            self._refuse("", error, rollback=False)

    def _is_held_off(self, commit: str) -> bool:
        if not self.held_off:
            return False
        return History(self.source.repository, Roots(), self.settings.keyring).descends(commit, self.held_off)

    def accept(self, commit: str, held_off: str) -> None:
        """What the agent has put into force: the next one has to follow it."""
        self.accepted, self.held_off = commit, held_off
        with suppress(UnreachableError):  # a mirror that cannot be written says so when it is fetched into
            self.source.keep(commit)

    def rollback(self, revision: str) -> None:
        """Compile an earlier commit that an operator wants, and report it or why it cannot be had."""
        self._deliver_wanted(revision, self._verify_rollback)

    def trial(self, revision: str) -> None:
        """Compile a commit that an operator wants to try, and report it or why it cannot be had."""
        self._deliver_wanted(revision, self._verify_trial)

    def _deliver_wanted(self, revision: str, verify: Callable[[str], None]) -> None:
        try:
            commit = resolve(git_directory(self.source.repository), revision, self.source.repository)
        except BulkheadError as error:
            self._refuse("", error, rollback=True)
            return
        self._deliver(commit, verify, rollback=True)

    def _verify(self, commit: str) -> None:
        self._history().judge(self.accepted, commit)

    def _verify_rollback(self, commit: str) -> None:
        """What was accepted once, with all before it, was judged then. Anything else is judged as a first commit is."""
        history = self._history()
        if not (self.accepted and history.descends(commit, self.accepted)):
            history.vouch(commit, self.accepted)

    def _verify_trial(self, commit: str) -> None:
        """A commit that follows what was accepted is judged as if the reference named it; another like a rollback."""
        if self.accepted and self._history().descends(self.accepted, commit):
            self._verify(commit)
        else:
            self._verify_rollback(commit)

    def _history(self) -> History:
        settings = self.settings
        roots = read_operators(settings.signers) if settings.signers else Roots()
        return History(self.source.repository, roots, settings.keyring)

    def _deliver(self, commit: str, verify: Callable[[str], None], *, rollback: bool) -> None:
        started = time.monotonic()
        try:
            verify(commit)
            bundle = self._compile(commit)
        except BulkheadError as error:
            self._refuse(commit, error, rollback=rollback)
        except (MemoryError, RecursionError) as error:
            self._refuse(commit, UsageError(f"the policy exhausts memory: {error!r}"), rollback=rollback)
        else:
            took_ms = round((time.monotonic() - started) * 1000, 1)
            head = {"kind": "bundle", "commit": commit, "took_ms": took_ms, "rollback": rollback}
            self._send(head | ({"tip": self.source.tip()} if rollback else {}), bundle)

    def _compile(self, commit: str) -> bytes:
        policy_set = parse(read_commit(self.source.repository, commit), self.cache)
        refusals = [one for one in examine(policy_set) if one.severity == "error"]
        if refusals:
            raise PolicyError(refusals)
        policy_set = with_lifeline(policy_set, self.settings.lifeline)
        return pack(compile_commit(policy_set, self.settings.host, datetime.now(UTC)))

    def _refuse(self, commit: str, error: BulkheadError, *, rollback: bool) -> None:
        head = {"kind": "refused", "commit": commit, "error": str(error), "code": code_of(error)}
        self._send(head | {"rollback": rollback})

    def _report_source(self, error: BulkheadError | None, commit: str = "") -> None:
        text, code = (str(error), code_of(error)) if error else ("", "")
        self._send({"kind": "source", "error": text, "code": code, "commit": commit, "at": time.time()})

    def _send(self, head: dict[str, object], body: bytes = b"") -> None:
        self.channel.sendall(json.dumps(head | {"bytes": len(body)}).encode() + b"\n" + body)


def code_of(error: BulkheadError) -> str:
    """The code of the first finding; `other` when there is none."""
    if isinstance(error, PolicyError) and error.diagnostics:
        return error.diagnostics[0].code
    return error.code if isinstance(error, RemoteError) else "other"


class Watch:
    """Wakes when a reference of a repository may have moved. `repository` None: never."""

    def __init__(self, repository: Path | None) -> None:
        self._repository = repository
        self._inotify = INotify()

    def fileno(self) -> int:
        """For select."""
        return int(self._inotify.fileno())

    def renew(self) -> None:
        """Watch every directory that references live in; harmless when repeated."""
        if self._repository is None:
            return
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


class Requests:
    """What the agent asks for, a line at a time."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._partial = b""

    def read(self) -> list[dict[str, Any]] | None:
        """What has arrived; None when the agent is gone."""
        received = self._channel.recv(1 << 16)
        if not received:
            return None
        *lines, self._partial = (self._partial + received).split(b"\n")
        return [json.loads(line) for line in lines]


def serve(compiler: Compiler) -> None:
    """Compile now, then whenever the reference moves or the agent asks, until the agent is gone."""
    watch, requests = Watch(compiler.source.watched), Requests(compiler.channel)
    sources: list[socket.socket | Watch] = [compiler.channel, watch]
    watch.renew()
    compiler.refresh()
    looked = time.monotonic()
    while True:
        left = looked + compiler.source.interval_s - time.monotonic()
        ready, _, _ = select.select(sources, [], [], max(left, 0.0))
        wanted = compiler.channel not in ready
        force = False
        if compiler.channel in ready:
            asked = requests.read()
            if asked is None:
                return
            force = _obey(compiler, asked)
        if watch in ready:
            watch.drain()
            wanted = True
        if wanted or force:
            watch.renew()
            compiler.refresh(force)
            looked = time.monotonic()


def _obey(compiler: Compiler, asked: list[dict[str, Any]]) -> bool:
    """Do what the agent asks; true when the reference is to be looked at too."""
    for one in asked:
        if one["op"] == "accepted":
            compiler.accept(one["commit"], one["held_off"])
        elif one["op"] == "rollback":
            compiler.rollback(one["commit"])
        elif one["op"] == "trial":
            compiler.trial(one["commit"])
    return any(one["op"] == "reload" for one in asked)


def main() -> None:
    """Entry point: `policyd FD SETTINGS ACCEPTED HELD_OFF`."""
    number, settings_text, accepted, held_off = sys.argv[1:5]
    end_with_parent()
    channel = socket.socket(fileno=int(number))
    settings = config.parse(settings_text)
    confine()
    source = RemoteSource(settings) if config.scheme_of(settings.repository) else LocalSource(settings)
    try:
        serve(Compiler(settings, channel, source, ParseCache(), accepted, held_off))
    except ConnectionError:
        return  # the agent is gone, and nobody is left to tell


if __name__ == "__main__":
    main()
