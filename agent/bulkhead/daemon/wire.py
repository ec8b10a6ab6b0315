"""Who this node is on the wire, who the others are, and by which keys they are told apart: from a roster to the maps.

The maps are made to hold what they must, again and again: when the roster, the policy or the own key changes, when an
epoch ends, when somebody sets the clock, and every few seconds to see whether anybody else has written to them. What
gives rights comes before what needs them, and what takes them away comes first of all.
"""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from ipaddress import ip_network
from itertools import islice
from typing import Any, Final

from bulkhead.abi import Capacity, NodeFlag, Wire
from bulkhead.config import Settings
from bulkhead.daemon.keys import KeyProcess
from bulkhead.dataplane.bundle import Bundle
from bulkhead.dataplane.hosting import HostSet
from bulkhead.errors import BulkheadError
from bulkhead.identity.globs import Glob, compile_glob
from bulkhead.kernel.addresses import outward_addresses
from bulkhead.kernel.audit import Drift
from bulkhead.kernel.clock import JumpWatch, clock_state
from bulkhead.kernel.wire import CLAIMED, WireMaps, claim_key, node_entry, node_key
from bulkhead.observe.logs import Log
from bulkhead.policy.nodes import Node, Refused, Roster, Unknown, default_number, roster
from bulkhead.registry.files import FilesRegistry
from bulkhead.registry.registry import Registry
from bulkhead.registry.state import State

log = Log()

Json = dict[str, Any]

EPOCH_S: Final = Wire.TICK_S * Wire.EPOCH_TICKS
_BEAT_S: Final = 5.0
"""How often the clock is told to the kernel, and the maps are compared unless that takes long."""
_SHARE: Final = 50
"""Comparing takes at most this part of the agent's time."""
_PEERS_AT_ONCE: Final = 64
_FEWEST_EPOCHS: Final = 3
"""The one that ends, the one that is, the one that comes."""


@dataclass(frozen=True, slots=True)
class _Target:
    """What the maps must hold."""

    own: Node | None
    """None: this node is nobody on the wire."""
    mute: str
    """Why not."""
    nodes: Mapping[bytes, bytes]
    keyed: tuple[Node, ...]
    """The others that have a key."""


class WireIdentity:
    """Keeps the maps of identity on the wire. Methods are for the event loop's thread; the work is done in others."""

    def __init__(self, settings: Settings, maps: WireMaps, keys: KeyProcess, registry: Registry) -> None:
        self._settings = settings
        self._maps = maps
        self._keys = keys
        self._registry = registry
        self.on_drift: Callable[[list[Drift]], None] = lambda _: None
        """Told of what somebody else has written, after it was put right."""
        self.roster: Roster | None = None
        """None: not known yet, and the maps are left as they are."""
        self.state = registry.state
        self.mute = "it has only just started"
        """Why this node says nothing; empty: it speaks."""
        self.problem = ""
        """Why the maps could not be made right."""
        self.authority: tuple[bytes, ...] = ()
        """Certificates of this node's own authority, DER, for a registry to which it announces itself."""
        self.until: dict[int, int] = {}
        """The last epoch for which there are keys, by node."""
        self._domain = self._commit = ""
        self._host_sets: dict[int, HostSet] = {}
        self._named = _Named(())
        self._weak: dict[str, bytes] = {}
        """Public keys with which nothing secret is shared, by node."""
        self._derived: dict[int, tuple[object, ...]] = {}
        """What the keys of each node were derived from."""
        self._filled = range(0)
        """The epochs for which they were."""
        self._announced: Node | None = None
        self._writing = threading.Lock()
        self._wanted = asyncio.Event()
        self._is_settled = False
        """Nothing has changed since the maps were made right: what differs then was written by somebody else."""
        self._next_look = 0.0
        keys.on_change = self.hint

    # What is to be

    def stage(self, bundle: Bundle) -> None:
        """Before a bundle comes into force: nodes may claim what it lets them host, beside what is in force."""
        with self._writing:
            self._host_sets = self._host_sets | dict(bundle.host_sets())
            if self._keys.is_wanted:
                self._maps.claim(self._claims())

    def settle(self, bundle: Bundle, beside: Bundle | None = None) -> None:
        """After it has: these are in force, `bundle` now and `beside` when a trial ends."""
        with self._writing:
            self._host_sets = dict(beside.host_sets() if beside is not None else ()) | dict(bundle.host_sets())
        self._domain, self._commit = bundle.trust_domain, bundle.commit
        self._maps.write_own(self._maps.node, self._commit)
        if isinstance(self._registry, FilesRegistry):
            found = roster(bundle.nodes())
            self._registry.give(found, bundle.commit)
            self.set_roster(found, self._registry.state)
        self.hint()

    def set_roster(self, found: Roster, state: State) -> None:
        """What the registry says now, or said last; before it has said anything nothing is changed."""
        self.state = state
        if not state.last_heard:
            return
        refused = self.roster.refused if self.roster is not None else ()
        for one in found.refused:
            if one not in refused:
                log.warning("the record of a node does not count", node=one.name, reason=one.reason, cause=one.detail)
        if found != self.roster:
            with self._writing:
                self.roster, self._named = found, _Named(found)
            self.hint()

    def hint(self) -> None:
        """Something has changed: look now."""
        self._is_settled = False
        self._wanted.set()

    # The work

    async def run(self) -> None:
        """Keep the maps right for ever."""
        loop = asyncio.get_running_loop()
        with JumpWatch() as jumps:
            loop.add_reader(jumps.fileno(), lambda: self._clock_set(jumps))
            try:
                while True:
                    self._wanted.clear()
                    await self.look()
                    try:
                        async with asyncio.timeout(_BEAT_S):
                            await self._wanted.wait()
                    except TimeoutError:
                        continue
            finally:
                loop.remove_reader(jumps.fileno())

    def _clock_set(self, jumps: JumpWatch) -> None:
        if jumps.drain():
            self._tell_time()
            log.warning("the clock was set")
            self.hint()

    async def look(self) -> None:
        """Make the maps right once; why that fails is kept and told."""
        if self._is_settled and self._window() == self._filled and time.monotonic() < self._next_look:
            await asyncio.to_thread(self._tell_time)
            return
        before, started = self.problem, time.monotonic()
        try:
            await self._announce()
            await self._make_right()
            self.problem = ""
        except (BulkheadError, OSError) as error:
            self.problem, self._is_settled = str(error), False
        if self.problem and self.problem != before:
            log.error("what is known of other nodes could not be put into force", cause=self.problem)
        self._next_look = time.monotonic() + (time.monotonic() - started) * _SHARE

    async def _announce(self) -> None:
        """Have the registry know this node, where it is one that nodes announce themselves to."""
        own, host = self._keys.own, self._settings.host
        if own is None or isinstance(self._registry, FilesRegistry):
            return
        given = tuple(map(ip_network, self._settings.node_addresses))
        addresses = given or await asyncio.to_thread(outward_addresses)
        record = Node(host, default_number(host), addresses, own.public, ca=self.authority)
        if addresses and record != self._announced:
            self._announced = record
            await self._registry.announce(record)

    async def _make_right(self) -> None:
        target, window = self._target(), self._window()
        if target is None:
            await asyncio.to_thread(self._tell_time)
            return
        was_settled, self._is_settled = self._is_settled, True
        found = await asyncio.to_thread(self._place, target, window)
        if target.own is not None and self._keys.own is not None:
            found += await self._derive(target.own, target.keyed, window)
            await asyncio.to_thread(self._maps.write_own, target.own.number, self._commit)
        self.mute = target.mute
        if was_settled and self._is_settled and found:
            self.on_drift(found)

    def _target(self) -> _Target | None:
        """None: what there is stays, for it is not known yet what there should be."""
        if not self._keys.is_wanted:
            return _Target(None, self._keys.error, {}, ())
        if self.roster is None:
            self.mute = "the nodes are not known yet"
            return None
        own, mute = self.roster.by_name(self._settings.host), self._why_mute(self.roster)
        if mute:
            return _Target(None, mute, {}, ())
        if self._keys.own is None and not self._maps.node:
            mute = self._keys.error or "the key process has not said its key yet"
        others = [node for node in self.roster if node is not own]
        keyed = tuple(node for node in others if node.key is not None and self._weak.get(node.name) != node.key)
        nodes = {node_key(network): _entry(node) for node in others for network in node.addresses}
        return _Target(own, mute, nodes, keyed)

    def _why_mute(self, known: Roster) -> str:
        """Why the registry does not let this node speak; empty when it does, or when the own key is not known yet."""
        host, public = self._settings.host, self._keys.own.public if self._keys.own is not None else None
        record = known.by_name(host)
        if record is None:
            refused = [one.detail for one in known.refused if one.name == host]
            return refused[0] if refused else f"there is no record of the node `{host}`"
        if record.key is None:
            return f"the record of `{host}` ({record.origin}) has no key"
        if public is not None and record.key != public:
            return f"the record of `{host}` ({record.origin}) has another key than this node's, {_key_text(public)}"
        return ""

    def _window(self) -> range:
        """The epochs for which there should be keys; fewer than wanted where more nodes are than have room."""
        now = int(time.time()) // EPOCH_S
        ahead = -(-self._settings.wire_hours * 3600 // EPOCH_S)
        nodes = sum(node.key is not None for node in self.roster or ())
        room = Capacity.WIRE_KEYS // max(1, nodes)
        return range(now - 1, now - 1 + max(_FEWEST_EPOCHS, min(2 + ahead, room)))

    def _tell_time(self) -> None:
        self._maps.write_own(self._maps.node, self._commit)

    def _claims(self) -> dict[bytes, bytes]:
        """For each host set the nodes whose name its globs match, as `host:` selectors match a host."""
        return {
            claim_key(node, number): CLAIMED
            for number, globs in self._host_sets.items()
            for node in self._named.matching(globs)
        }

    def _place(self, target: _Target, window: range) -> list[Drift]:
        """All but the keys to come. Who is gone loses keys, claims and address, in this order."""
        found = [] if self._maps.is_ours() else [Drift("entries", "`wire_self` was written by somebody else", True)]
        self._maps.write_own(self._maps.node if target.own is not None else 0, self._commit)
        with self._writing:
            found += self._drop_keys(target.keyed, window)
            wanted = {"claims": self._claims() if target.own is not None else {}, "nodes": target.nodes}
            for name, entries in wanted.items():
                delta = self._maps.sync(name, entries)
                if delta:
                    counts = f"{len(delta.add)} missing, {len(delta.change)} changed, {len(delta.remove)} foreign"
                    found.append(Drift("entries", f"entries of `{name}`: {counts}", True))
        return found

    def _drop_keys(self, keyed: Iterable[Node], window: range) -> list[Drift]:
        held = self._maps.key_epochs()
        # Of a node whose key has changed, what came from the old one counts for nothing, before there is new.
        numbers = {n.number for n in keyed if self._derived.get(n.number, (n.name, n.key))[-2:] == (n.name, n.key)}
        stale = [
            (number, epoch) for number, epochs in held.items() if number in numbers for epoch in epochs - {*window}
        ]
        foreign = [(number, epoch) for number, epochs in held.items() if number not in numbers for epoch in epochs]
        self._maps.drop_keys([*foreign, *stale])
        self._derived = {number: source for number, source in self._derived.items() if number in numbers}
        self.until = {number: max(epochs) for number, epochs in held.items() if number in numbers}
        return [Drift("entries", f"entries of `wire_keys`: {len(foreign)} foreign", True)] if foreign else []

    async def _derive(self, own: Node, keyed: Sequence[Node], window: range) -> list[Drift]:
        """Have the keys that are missing derived, and write them."""
        held = await asyncio.to_thread(self._maps.key_epochs)
        wanted: dict[range, list[Node]] = {}
        lost = 0
        for node in keyed:
            missing = set(window)
            if self._derived.get(node.number) == self._source(own, node):
                missing -= held.get(node.number, set())
                lost += len(missing & {*self._filled})
            if missing:
                wanted.setdefault(range(min(missing), max(missing) + 1), []).append(node)
        for epochs, nodes in wanted.items():
            for at in range(0, len(nodes), _PEERS_AT_ONCE):
                await self._derive_some(own, nodes[at : at + _PEERS_AT_ONCE], epochs)
        self._filled = window
        return [Drift("entries", f"entries of `wire_keys`: {lost} missing", True)] if lost else []

    async def _derive_some(self, own: Node, nodes: Sequence[Node], epochs: range) -> None:
        sources = {node.number: self._source(own, node) for node in nodes}
        derived = await self._keys.derive(self._domain, own, nodes, epochs)
        numbers = [node.number for node in derived.nodes]
        await asyncio.to_thread(self._maps.write_keys, numbers, epochs, derived.values)
        self._derived |= {number: sources[number] for number in numbers}
        self.until |= dict.fromkeys(numbers, epochs[-1])
        for node in nodes:
            if node.name in derived.weak and node.key is not None:
                self._weak[node.name] = node.key
                log.warning("the record of a node does not count", node=node.name, reason="key", cause=_weak_text(node))
                self.hint()

    def _source(self, own: Node, peer: Node) -> tuple[object, ...]:
        public = self._keys.own.public if self._keys.own is not None else b""
        return public, self._domain, own.name, own.number, peer.name, peer.key

    # What there is to tell

    def refused(self) -> tuple[Refused, ...]:
        """The records that do not count."""
        known = self.roster or Roster()
        weak = (node for node in known if node.key is not None and self._weak.get(node.name) == node.key)
        return (*known.refused, *(Refused(node.name, "key", _weak_text(node)) for node in weak))

    def keys_until(self) -> float | None:
        """When the first node can no longer be told apart unless keys are derived meanwhile (Unix seconds)."""
        return min(((epoch + 1) * EPOCH_S for epoch in self.until.values()), default=None)

    def counts(self) -> dict[str, int]:
        """What identity on the wire has come to, since the maps were made."""
        return self._maps.counts()

    def status(self) -> Json:
        """For `status`."""
        own, known, number = self._keys.own, self.roster or Roster(), self._maps.node
        record = known.by_name(self._settings.host)
        return {
            "wanted": self._keys.is_wanted,
            "speaking": bool(number),
            "mute": self.mute or None,
            "node": self._settings.host,
            "number": number or (record.number if record is not None else None),
            "key": _key_text(own.public) if own is not None else None,
            "registry": {
                **asdict(self.state),
                "nodes": len(known.nodes),
                "keyed": sum(node.key is not None for node in known),
                "by_address": sum(node.unknown is Unknown.ADDRESS for node in known),
                "refused": [asdict(one) for one in self.refused()],
            },
            "keys": {
                "nodes": len(self.until),
                "until": self.keys_until(),
                "process": self._keys.pid or None,
                "restarts": self._keys.restarts,
                "ephemeral": own.ephemeral if own is not None else None,
                "locked": own.locked if own is not None else None,
                "error": self._keys.error or None if self._keys.is_wanted else None,
            },
            "clock": asdict(clock_state()),
            "problem": self.problem or None,
            "counts": self.counts(),
        }

    def nodes(self) -> Json:
        """All nodes, for `wire nodes`."""
        return {
            "host": self._settings.host,
            "registry": asdict(self.state),
            "known": self.roster is not None,
            "nodes": [self._node(node) for node in self.roster or ()],
            "refused": [asdict(one) for one in self.refused()],
        }

    def _node(self, node: Node) -> Json:
        until = self.until.get(node.number)
        return {
            "name": node.name,
            "number": node.number,
            "addresses": [str(network) for network in node.addresses],
            "key": _key_text(node.key) if node.key is not None else None,
            "unknown": str(node.unknown),
            "own": node.name == self._settings.host,
            "keys_until": (until + 1) * EPOCH_S if until is not None else None,
            "source": node.origin,
        }

    def refused_by_reason(self) -> dict[str, int]:
        """How many records do not count, by reason."""
        return dict(Counter(one.reason for one in self.refused()))


def _key_text(public: bytes) -> str:
    """As in a record."""
    return base64.b64encode(public).decode()


def _weak_text(node: Node) -> str:
    return f"nothing secret can be shared by the key of `{node.name}` ({node.origin})"


def _entry(node: Node) -> bytes:
    legacy = NodeFlag.LEGACY if node.key is None else 0
    by_address = NodeFlag.BY_ADDRESS if node.unknown is Unknown.ADDRESS else 0
    return node_entry(node.number, legacy | by_address)


class _Named:
    """Finds nodes by the globs of host sets, each set once."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._numbers = {node.name: node.number for node in nodes if node.key is not None}
        self._names = sorted(self._numbers)
        self._found: dict[HostSet, tuple[int, ...]] = {}

    def matching(self, globs: HostSet) -> tuple[int, ...]:
        """The numbers of the nodes with a key that one of the globs matches."""
        found = self._found.get(globs)
        if found is None:
            names = {name for pattern in globs for name in self._matching(compile_glob(pattern))}
            found = self._found[globs] = tuple(self._numbers[name] for name in sorted(names))
        return found

    def _matching(self, glob: Glob) -> Iterator[str]:
        for name in islice(self._names, bisect_left(self._names, glob.prefix), None):
            if not name.startswith(glob.prefix):
                return
            if glob.matches(name):
                yield name
