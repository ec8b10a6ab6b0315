"""A node's own record in etcd: under a lease, with a number that no other node has, and never in another's place.

Two keys are written in one transaction: PREFIX/nodes/NAME with the record, and PREFIX/numbers/N with the name. It goes
through only if both are still what they were when they were read, so of two nodes that want one number, one gets it and
the other sees it taken.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from bulkhead.policy.nodes import NUMBER_MAX, Node
from bulkhead.registry import record
from bulkhead.registry.gateway import Entry, Gateway, GatewayError
from bulkhead.registry.records import Records

BEATS_A_LEASE: Final = 3
REPEAT_S: Final = 1.0
"""Between two announcements, so that two agents with one key do not outdo each other."""
WITHDRAW_S: Final = 5.0
TRIES_MAX: Final = 64
"""Numbers that are tried, and races that are lost, before it is left for later."""


class NotAnnouncedError(Exception):
    """The registry has no record of this node, and an operator has to see to it; one sentence."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Where what is."""

    prefix: str

    def node(self, name: str) -> bytes:
        """Of a node's record."""
        return f"{self.prefix}nodes/{name}".encode()

    def revoked(self, name: str) -> bytes:
        """Of an operator's word that a node does not count."""
        return f"{self.prefix}revoked/{name}".encode()

    def number(self, number: int) -> bytes:
        """Of who has a number."""
        return f"{self.prefix}numbers/{number}".encode()


@dataclass(frozen=True, slots=True)
class Announcement:
    """What etcd holds for this node."""

    node: Node
    wish: Node
    """What it was asked to hold."""
    lease: int
    """0: an operator wrote the record, for good."""
    revision: int
    """Since when."""


def beat_s(ttl_s: int) -> float:
    """How often a lease of that many seconds is kept alive."""
    return ttl_s / BEATS_A_LEASE


class Voice:
    """Sees to it that a node's record is what it was asked to be, over every session with etcd."""

    def __init__(self, keys: Keys, ttl_s: int, tell: Callable[[], None]) -> None:
        self.problem = ""
        """Why the record is not there."""
        self._keys = keys
        self._ttl_s = ttl_s
        self._tell = tell
        self._wish: Node | None = None
        self._there: Announcement | None = None
        self._stirred = asyncio.Event()
        self._silent = asyncio.Event()
        self._silent.set()

    def ask(self, node: Node) -> None:
        """Keep a record of this node from now on."""
        self._wish = node
        self._silent.clear()
        self._stirred.set()

    async def end(self) -> None:
        """Take the record back, or give up after WITHDRAW_S."""
        self._wish = None
        self._stirred.set()
        await _wait(self._silent, WITHDRAW_S)

    def stir(self) -> None:
        """What etcd has of this node has changed: look again."""
        self._stirred.set()

    async def speak(self, gateway: Gateway, records: Callable[[], Records]) -> None:
        """Do it, until cancelled. `records` are those of the session, which may be listed anew."""
        while True:
            self._stirred.clear()
            before = self._there
            await (self._take_back(gateway) if self._wish is None else self._say(gateway, self._wish, records()))
            if before is not None and self._there is not before:
                await asyncio.sleep(REPEAT_S)
            await _wait(self._stirred, beat_s(self._ttl_s))

    async def _take_back(self, gateway: Gateway) -> None:
        there, self._there = self._there, None
        if there is not None and there.lease:
            await gateway.revoke(there.lease)
        self._outcome("")
        self._silent.set()

    async def _say(self, gateway: Gateway, wish: Node, records: Records) -> None:
        if records.is_revoked(wish.name):
            self._there = None
            self._outcome(f"`{wish.name}` is revoked by `{self._keys.revoked(wish.name).decode()}`")
            return
        if await self._stands(gateway, wish, records):
            return
        self._there = None
        try:
            self._there = await announce(gateway, self._keys, wish, self._ttl_s, records.is_taken)
        except NotAnnouncedError as refused:
            self._outcome(str(refused))
        else:
            self._outcome("")

    async def _stands(self, gateway: Gateway, wish: Node, records: Records) -> bool:
        """Is the record what was wished for, still there as far as the watch has come, and kept for another while?"""
        there = self._there
        if there is None or there.wish != wish:
            return False
        found = records.node(wish.name)
        if records.revision >= there.revision and (found is None or not _is_same(found, there.node)):
            return False
        return not there.lease or await gateway.keep_alive(there.lease)

    def _outcome(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            self._tell()


async def _wait(event: asyncio.Event, at_most_s: float) -> None:
    """Not `asyncio.wait_for`: before Python 3.12 that forgets a cancellation which comes together with the event."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(at_most_s):
            await event.wait()


def _is_same(one: Node, other: Node) -> bool:
    return replace(one, origin="") == replace(other, origin="")


async def announce(
    gateway: Gateway, keys: Keys, node: Node, ttl_s: int, is_taken: Callable[[int, str], bool]
) -> Announcement:
    """Bring the node's record in. `is_taken` says whether the records, as known, give a number to another than a name.

    Raises NotAnnouncedError where the name, or every number that was tried, is another's.
    """
    number, lease = 0, 0
    for _ in range(TRIES_MAX):
        there = await _entry(gateway, keys.node(node.name))
        before = None if there is None else _own(there, node, keys)
        if before is not None and there is not None and not there.lease:
            return Announcement(before, node, 0, there.mod_revision)
        number = number or (before or node).number
        taken = await _entry(gateway, keys.number(number))
        if (taken is not None and taken.value != node.name.encode()) or is_taken(number, node.name):
            number = number % NUMBER_MAX + 1
            continue
        lease = lease or await gateway.grant(ttl_s)
        wanted = replace(node, number=number)
        revision = await gateway.put_if(
            {keys.node(node.name): _revision(there), keys.number(number): _revision(taken)},
            {keys.node(node.name): record.write(wanted), keys.number(number): node.name.encode()},
            lease,
        )
        if revision is not None:
            return Announcement(wanted, node, lease, revision)
    raise NotAnnouncedError(f"no number was free for `{node.name}` in {TRIES_MAX} tries, from {node.number} on")


def _own(there: Entry, node: Node, keys: Keys) -> Node:
    """The record that is there already, which has to be this node's."""
    where = f"`{keys.node(node.name).decode()}`"
    remedy = f"remove {where} if that is not a living node's"
    try:
        found = record.read(node.name, there.value, where)
    except record.RecordError as error:
        raise NotAnnouncedError(f"{where} is there and is no record of a node ({error}): {remedy}") from error
    if found.revoked:
        raise NotAnnouncedError(f"`{node.name}` is revoked by {where}")
    if found.key != node.key:
        other = "without a key" if found.key is None else "with another key than this node's"
        raise NotAnnouncedError(f"{where} is there {other}: {remedy}")
    return found


def _revision(entry: Entry | None) -> int:
    return 0 if entry is None else entry.mod_revision


async def _entry(gateway: Gateway, key: bytes) -> Entry | None:
    entries = (await gateway.range(key)).entries
    if not entries:
        return None
    if len(entries) != 1 or entries[0].key != key:
        raise GatewayError(f"asked for `{key.decode()}`, etcd answers with something else")
    return entries[0]
