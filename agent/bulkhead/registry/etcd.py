"""Records of nodes in etcd: listed, then watched; the own one kept alive under a lease.

One session with one member at a time. In it, three tasks: the watch tells what changes, the beat asks a majority of the
members whether all this is still true, and the voice sees to the own record. When any of them fails the session ends,
what is known stays in force and is shown as not fresh, and the next member is asked.

A database that has gone back, in its revision or to another cluster, is a backup or somebody else's: its records may
name nodes that were removed for a reason. It is refused until it has caught up, or an operator has this host forget.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from bulkhead.config import Etcd
from bulkhead.observe.logs import Log
from bulkhead.policy.nodes import Node, Roster, roster
from bulkhead.registry import saved
from bulkhead.registry.announcing import Keys, Voice, beat_s
from bulkhead.registry.gateway import Change, CompactedError, Gateway, GatewayError, Page, TooLargeError
from bulkhead.registry.records import NODES_MAX, Records
from bulkhead.registry.state import State

log = Log()

PAGE: Final = 256
"""Keys that are asked for at a time."""
PAUSE_S: Final = (0.2, 10.0)
"""The shortest and the longest pause after every member has failed."""
LIST_S: Final = 60.0
"""For all pages of a list."""
DIGEST_S: Final = 0.05
"""Between two rosters, at least: changes that come together are told together."""
DIGEST_REST: Final = 5
"""How many times as long as a roster takes nothing is done: changes without end must not keep the agent busy."""


class _RelistError(Exception):
    """What is known can no longer be kept up to date by the watch: list everything again."""


class EtcdRegistry:
    """Follows the records below a prefix, and keeps the own one there."""

    def __init__(self, etcd: Etcd, host: str, path: Path) -> None:
        self._etcd = etcd
        self._host = host
        self._path = path
        self._keys = Keys(etcd.prefix)
        self._where = f"etcd {etcd.prefix}nodes/"
        self._source = f"etcd {etcd.prefix} {' '.join(sorted(etcd.endpoints))}"
        self._records = Records(self._where)
        self._roster = Roster()
        self._told: tuple[Roster, State] | None = None
        self._on_roster: Callable[[Roster, State], None] | None = None
        self._cluster = 0
        self._floor = 0
        """The highest revision that was ever told."""
        self._is_fresh = False
        self._last_heard = 0.0
        self._problem = "etcd has not been asked yet"
        self._is_unsaved = False
        self._changed = asyncio.Event()
        self._voice = Voice(self._keys, etcd.ttl_s, self._tell)

    @property
    def state(self) -> State:
        """How it stands with etcd now."""
        revision = str(self._records.revision) if self._records.revision else ""
        return State("etcd", self._is_fresh, self._last_heard, self._problem, revision, self._voice.problem)

    async def announce(self, node: Node) -> None:
        """Keep a record of this node in etcd from now on."""
        self._voice.ask(node)

    async def withdraw(self) -> None:
        """Take the record back."""
        await self._voice.end()

    async def run(self, on_roster: Callable[[Roster, State], None]) -> None:
        """Follow etcd until cancelled."""
        self._on_roster = on_roster
        self._load()
        self._tell()
        failures, member = 0, random.randrange(len(self._etcd.endpoints))
        try:
            while True:
                began = time.monotonic()
                await self._attend(self._etcd.endpoints[member % len(self._etcd.endpoints)])
                failures = 1 if time.monotonic() - began > PAUSE_S[1] else failures + 1
                member += 1
                await asyncio.sleep(self._pause_s(failures))
        finally:
            if self._records.revision:
                self._write(self._snapshot())

    # A session

    async def _attend(self, endpoint: str) -> None:
        """Work with one member until it fails."""
        try:
            async with Gateway(endpoint, self._etcd) as gateway:
                await self._list(gateway)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._follow(gateway))
                    tasks.create_task(self._digest())
                    tasks.create_task(self._beat(gateway))
                    tasks.create_task(self._voice.speak(gateway, lambda: self._records))
        except* GatewayError as failed:
            self._problem = str(failed.exceptions[0])
        self._is_fresh = False
        self._tell()

    def _pause_s(self, failures: int) -> float:
        """None until each member was asked once, then longer each time; never so long that a lease would end of it."""
        rounds = failures // len(self._etcd.endpoints)
        longest = min(PAUSE_S[1], beat_s(self._etcd.ttl_s))
        return random.uniform(0.5, 1.0) * min(longest, PAUSE_S[0] * 2 ** min(rounds, 16)) if rounds else 0.0

    async def _list(self, gateway: Gateway) -> None:
        """Know everything, at one revision."""
        try:
            async with asyncio.timeout(LIST_S):
                await self._list_all(gateway)
        except TimeoutError:
            raise GatewayError(f"etcd did not list the nodes within {LIST_S:g} s") from None
        self._take_in()

    async def _list_all(self, gateway: Gateway) -> None:
        floor, fresh = self._floor, Records(self._where)
        first: Page | None = None
        async for page in self._pages(gateway, self._keys.node(""), values=True):
            first = first or page
            for entry in page.entries:
                fresh.put(self._name(entry.key, self._keys.node("")), entry.value)
            if len(fresh) > NODES_MAX:
                break
        assert first is not None
        revoked = 0
        async for page in self._pages(gateway, self._keys.revoked(""), first.revision, values=False):
            revoked += len(page.entries)
            if revoked > NODES_MAX:
                raise GatewayError(f"more than {NODES_MAX} nodes are revoked in etcd")
            for entry in page.entries:
                fresh.revoke(self._name(entry.key, self._keys.revoked("")))
        self._accept(first.cluster, first.revision, floor)
        self._records, fresh.revision = fresh, first.revision

    async def _pages(self, gateway: Gateway, start: bytes, revision: int = 0, *, values: bool) -> AsyncIterator[Page]:
        """The keys that begin with `start`, all at one revision, that of the first page where none is given."""
        at, end, size = start, _after(start), PAGE
        while True:
            try:
                page = await gateway.range(at, end, limit=size, revision=revision, keys_only=not values)
            except TooLargeError:
                if size == 1:
                    raise
                size //= 2
                continue
            keys = [entry.key for entry in page.entries]
            if keys != sorted(set(keys)) or (keys and not at <= keys[0] <= keys[-1] < end) or len(keys) > size:
                raise GatewayError("etcd answers with other keys than it was asked for")
            revision = revision or page.revision
            yield page
            if not page.more or not keys:
                return
            at = keys[-1] + b"\0"

    async def _follow(self, gateway: Gateway) -> None:
        """Apply what changes, as it changes."""
        start, end = self._keys.prefix.encode(), _after(self._keys.prefix.encode())
        while True:
            try:
                async with contextlib.aclosing(gateway.watch(start, end, self._records.revision + 1)) as changes:
                    async for change in changes:
                        self._apply(change)
            except (CompactedError, _RelistError):
                await asyncio.sleep(PAUSE_S[0])
                await self._list(gateway)

    def _apply(self, change: Change) -> None:
        if not change.events:
            return
        nodes, revoked = self._keys.node(""), self._keys.revoked("")
        for event in change.events:
            entry = event.entry
            if entry.mod_revision <= self._records.revision:
                raise GatewayError("etcd tells of changes that are older than what it told before")
            if entry.key.startswith(nodes):
                self._put(self._name(entry.key, nodes), None if event.deleted else entry.value)
            elif entry.key.startswith(revoked):
                self._revoke(self._name(entry.key, revoked), not event.deleted)
        if change.whole:
            self._records.revision = change.revision
            self._floor = max(self._floor, change.revision)
        self._changed.set()
        if self._records.lacks_some:
            raise _RelistError

    def _put(self, name: str, value: bytes | None) -> None:
        if value is None:
            self._records.remove(name)
        else:
            self._records.put(name, value)
        if name == self._host:
            self._voice.stir()

    def _revoke(self, name: str, is_revoked: bool) -> None:
        if is_revoked:
            self._records.revoke(name)
        else:
            self._records.restore(name)
        if name == self._host:
            self._voice.stir()

    async def _digest(self) -> None:
        """Tell of what has changed."""
        while True:
            await self._changed.wait()
            began = time.monotonic()
            self._take_in()
            await asyncio.sleep(max(DIGEST_S, (time.monotonic() - began) * DIGEST_REST))

    async def _beat(self, gateway: Gateway) -> None:
        """Ask a majority of the members whether the database is still the one that is watched."""
        while True:
            await asyncio.sleep(beat_s(self._etcd.ttl_s))
            floor = self._floor
            self._accept(*await gateway.revision(self._keys.node("")), floor)
            if self._is_unsaved:
                self._is_unsaved = False
                await asyncio.to_thread(self._write, self._snapshot())

    def _accept(self, cluster: int, revision: int, floor: int) -> None:
        """A majority has answered; it must not be of another past than `floor`, which was known before the question."""
        if self._cluster and cluster != self._cluster:
            raise GatewayError(
                f"etcd is another cluster ({cluster:x}) than the one that is known here ({self._cluster:x}): "
                f"remove `{self._path}` and restart the agent if that is meant"
            )
        if revision < floor:
            raise GatewayError(
                f"etcd has gone back from revision {floor} to {revision}, as after a restore of an old backup: "
                f"its records do not count before it is at {floor} again"
            )
        self._cluster, self._floor, self._last_heard = cluster, max(self._floor, revision), time.time()

    # What is known

    def _name(self, key: bytes, start: bytes) -> str:
        return key[len(start) :].decode("utf-8", "backslashreplace")

    def _take_in(self) -> None:
        """The records are what etcd says now."""
        self._changed.clear()
        found = self._records.roster()
        self._is_unsaved |= found != self._roster
        self._roster, self._is_fresh, self._problem = found, True, ""
        self._tell()

    def _tell(self) -> None:
        """Say what is new, if anything is; that etcd was heard again is not."""
        shown = replace(self.state, last_heard=0.0, revision="")
        if self._told is None or self._told != (self._roster, shown):
            self._told = self._roster, shown
            if self._on_roster is not None:
                self._on_roster(self._roster, self.state)

    def _load(self) -> None:
        try:
            known = saved.load(self._path, self._source, self._where)
        except (ValueError, OSError) as error:
            log.warning("the saved nodes cannot be used", path=str(self._path), cause=str(error))
            return
        if known is not None:
            self._cluster, self._floor, self._last_heard = known.cluster, known.revision, known.last_heard
            self._roster = roster(known.nodes)

    def _snapshot(self) -> saved.Saved:
        nodes = tuple(self._records.nodes())
        return saved.Saved(self._source, self._cluster, self._floor, self._last_heard, nodes)

    def _write(self, snapshot: saved.Saved) -> None:
        try:
            saved.save(self._path, snapshot)
        except OSError as error:
            log.warning("the nodes cannot be saved", path=str(self._path), cause=str(error))


def _after(start: bytes) -> bytes:
    """The first key behind all that begin so."""
    return start[:-1] + bytes([start[-1] + 1])
