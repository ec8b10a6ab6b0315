"""From a roster to the maps of identity on the wire: real maps, a real key process, no programs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from select import select

import pytest

from bulkhead.abi import Capacity, ClaimKey, NodeEntry, NodeKey, WireCount, WireKeyId, WireKeys, WireSelf
from bulkhead.config import Settings
from bulkhead.daemon.keys import KeyProcess
from bulkhead.daemon.wire import WireIdentity
from bulkhead.dataplane import bundle
from bulkhead.dataplane.bundle import Bundle
from bulkhead.dataplane.compile import compile_commit
from bulkhead.kernel.addresses import outward_addresses
from bulkhead.kernel.audit import Drift
from bulkhead.kernel.clock import JumpWatch, clock_state, monotonic_offset_s
from bulkhead.kernel.libbpf import BPF_F_NO_PREALLOC, Map, MapType, map_create
from bulkhead.kernel.wire import WireMaps, claim_key
from bulkhead.policy.model import Match
from bulkhead.policy.nodes import Node, default_number, roster
from bulkhead.registry.files import FilesRegistry
from bulkhead.registry.state import State
from lab.bpf import can_attach
from lab.netns import Namespace
from lab.nodes import KeyFile, key_file
from lab.wire import Party, direction_key, host_set_of, pair_secret
from unit.dataplane.build import NOW, shop, workload

WEB, DB = Party("web-1", b"\x11" * 32), Party("db-1", b"\x22" * 32)
SHAPES = {
    "wire_self": (MapType.ARRAY, 4, len(bytes(WireSelf())), 1, 0),
    "nodes": (MapType.LPM_TRIE, len(bytes(NodeKey())), len(bytes(NodeEntry())), Capacity.NODES, BPF_F_NO_PREALLOC),
    "wire_keys": (MapType.HASH, len(bytes(WireKeyId())), len(bytes(WireKeys())), Capacity.WIRE_KEYS, BPF_F_NO_PREALLOC),
    "claims": (MapType.HASH, len(bytes(ClaimKey())), 4, Capacity.CLAIMS, BPF_F_NO_PREALLOC),
    "wire_counts": (MapType.PERCPU_ARRAY, 4, 8, WireCount.MAX, 0),
}
"""As in bpf/maps.h."""


@pytest.fixture
def maps() -> Iterator[dict[str, Map]]:
    if not can_attach():
        pytest.skip("needs root")
    made = {name: map_create(shape[0], f"t_{name}", *shape[1:]) for name, shape in SHAPES.items()}
    yield made
    for one in made.values():
        one.close()


@pytest.fixture
def key(tmp_path: Path) -> KeyFile:
    return key_file(tmp_path)


def node(party: Party, address: str) -> Node:
    return Node(party.name, party.node, (ip_network(address),), party.public)


def compiled(*globs: tuple[str, ...]) -> Bundle:
    """A commit with a workload for each tuple of `host` globs."""
    workloads = [workload(f"w{at}", Match(host=one, cgroup=(f"/w{at}",)), at + 1) for at, one in enumerate(globs)]
    return bundle.read(bundle.pack(compile_commit(shop(workloads=workloads), "near-1", NOW)))


class Desk:
    """The node `near-1` beside `web-1` and `db-1`."""

    def __init__(self, maps: dict[str, Map], key: KeyFile) -> None:
        settings = Settings(host="near-1", node_key=key.path, node_key_passphrase=key.passphrase)
        self.maps, self.keys = maps, KeyProcess(settings)
        self.wire = WireIdentity(settings, WireMaps(maps.__getitem__), self.keys, FilesRegistry())
        self.near = Node("near-1", default_number("near-1"), (ip_network("10.0.0.1"),), key.public)

    def know(self, *others: Node) -> None:
        """These and itself are the nodes."""
        self.wire.set_roster(roster([self.near, *others]), State("files", True, time.time()))

    def claims(self) -> set[bytes]:
        """What is in the map."""
        return set(self.maps["claims"].as_dict())

    def keys_of(self, number: int) -> dict[bytes, bytes]:
        """A node's keys in the map, by epoch."""
        packed = number.to_bytes(4, "little")
        return {one[4:]: value for one, value in self.maps["wire_keys"].as_dict().items() if one[:4] == packed}


def with_desk(maps: dict[str, Map], key: KeyFile, work: Callable[[Desk], Awaitable[None]]) -> None:
    """Runs a key process while `work` does, from when its key is known."""

    async def main() -> None:
        desk, told = Desk(maps, key), asyncio.Event()
        desk.keys.on_change = told.set
        desk.keys.start()
        try:
            await asyncio.wait_for(told.wait(), 20)
            await asyncio.wait_for(work(desk), 20)
        finally:
            await desk.keys.stop()

    asyncio.run(main())


def test_claims_of_a_commit_are_there_before_it_and_those_of_the_last_go_after_it(maps, key) -> None:
    web, db = host_set_of(["web-*"]), host_set_of(["db-1"])
    claimed = {claim_key(WEB.node, web)}, {claim_key(DB.node, db)}

    async def work(desk: Desk) -> None:
        desk.know(node(WEB, "10.0.0.2"), node(DB, "10.0.0.3"))
        first, second = compiled(("web-*",)), compiled(("db-1",))
        desk.wire.stage(first)
        assert desk.claims() == claimed[0]
        desk.wire.stage(second)
        await desk.wire.look()
        assert desk.claims() == claimed[0] | claimed[1], "a look in between takes nothing away"
        desk.wire.settle(second, beside=first)
        desk.know(node(WEB, "10.0.0.2"), node(DB, "10.0.0.3"))
        await desk.wire.look()
        assert desk.claims() == claimed[0] | claimed[1], "the trial can still end"
        desk.wire.settle(second)
        desk.know(node(WEB, "10.0.0.2"), node(DB, "10.0.0.3"))
        await desk.wire.look()
        assert desk.claims() == claimed[1]

    with_desk(maps, key, work)


def test_a_node_that_changes_its_key_is_known_by_the_new_one_alone(maps, key) -> None:
    renewed = Party("web-1", b"\x33" * 32)

    async def work(desk: Desk) -> None:
        desk.know(node(WEB, "10.0.0.2"), node(DB, "10.0.0.3"))
        await desk.wire.look()
        before, others = desk.keys_of(WEB.node), desk.keys_of(DB.node)
        assert before
        desk.know(node(renewed, "10.0.0.2"), node(DB, "10.0.0.3"))
        await desk.wire.look()
        after = desk.keys_of(WEB.node)
        assert after.keys() == before.keys()
        assert not set(after.values()) & set(before.values())
        epoch = max(after)
        pair, near = pair_secret(renewed.secret, key.public), Party("near-1", b"")
        number = int.from_bytes(epoch, "little")
        assert after[epoch][:16] == direction_key(pair, desk.wire._domain, near, renewed, number)
        assert desk.keys_of(DB.node) == others

    with_desk(maps, key, work)


def test_keys_of_a_node_that_is_gone_go_though_the_key_process_does_not_answer(maps, key) -> None:
    async def work(desk: Desk) -> None:
        desk.know(node(WEB, "10.0.0.2"), node(DB, "10.0.0.3"))
        await desk.wire.look()
        await desk.keys.stop()
        desk.know(node(DB, "10.0.0.3"))
        await desk.wire.look()
        assert desk.keys_of(WEB.node) == {}
        assert desk.keys_of(DB.node)
        assert desk.wire.status()["speaking"]

    with_desk(maps, key, work)


def test_what_is_in_force_stays_until_the_nodes_are_known(maps, key) -> None:
    async def work(desk: Desk) -> None:
        desk.know(node(WEB, "10.0.0.2"))
        await desk.wire.look()
        held = {name: maps[name].as_dict() for name in ("nodes", "wire_keys")}
        stamp_key = bytes(desk.wire._maps.own().stamp_key)
        again = Desk(maps, key)  # as after a restart of the agent: nothing is known yet
        again.wire.set_roster(roster([]), State("etcd", problem="it does not answer"))
        await again.wire.look()
        assert {name: maps[name].as_dict() for name in held} == held
        again.know(node(WEB, "10.0.0.2"))
        await again.wire.look()
        assert {name: maps[name].as_dict() for name in held} == held, "the own key is not known yet"
        own = again.wire._maps.own()
        assert (bytes(own.stamp_key), own.node) == (stamp_key, again.near.number)

    with_desk(maps, key, work)


def test_a_node_without_a_key_empties_what_an_earlier_agent_left(maps, key) -> None:
    async def work(desk: Desk) -> None:
        desk.know(node(WEB, "10.0.0.2"))
        await desk.wire.look()
        settings = Settings(host="near-1")
        plain = WireIdentity(settings, WireMaps(maps.__getitem__), KeyProcess(settings), FilesRegistry())
        await plain.look()
        assert (maps["nodes"].as_dict(), maps["wire_keys"].as_dict()) == ({}, {})
        status = plain.status()
        assert (status["speaking"], status["mute"], status["keys"]["error"]) == (False, "no `node_key` is set", None)

    with_desk(maps, key, work)


def test_who_this_node_is_cannot_be_changed_for_long_by_somebody_else(maps, key) -> None:
    async def work(desk: Desk) -> None:
        told: list[Drift] = []
        desk.wire.on_drift = told.extend
        desk.know(node(WEB, "10.0.0.2"))
        await desk.wire.look()
        true = desk.wire._maps.own()
        maps["wire_self"].update(bytes(4), bytes(WireSelf(node=7)))
        desk.wire._next_look = 0.0
        await desk.wire.look()
        now = desk.wire._maps.own()
        assert (now.node, bytes(now.stamp_key)) == (true.node, bytes(true.stamp_key))
        assert [one.what for one in told] == ["`wire_self` was written by somebody else"]

    with_desk(maps, key, work)


def test_more_nodes_than_have_room_for_a_day_of_keys_have_fewer_hours(maps, key) -> None:
    async def work(desk: Desk) -> None:
        many = [Node(f"n{at}", at + 1, (ip_network(at + 1),), at.to_bytes(32, "big")) for at in range(1, 6001)]
        desk.know(*many)
        window = desk.wire._window()
        assert 3 <= len(window) == Capacity.WIRE_KEYS // 6001

    with_desk(maps, key, work)


def test_counts_are_summed_and_named(maps, key) -> None:
    cpus = maps["wire_counts"].lookup(bytes(4))
    assert cpus is not None
    maps["wire_counts"].update((1).to_bytes(4, "little"), (3).to_bytes(8, "little") * (len(cpus) // 8))
    found = WireMaps(maps.__getitem__).counts()
    assert (found["said"], found["verified"]) == (0, 3 * (len(cpus) // 8))
    del key


# The clock, and where this machine is


def test_the_kernel_says_how_the_clock_is_kept() -> None:
    state = clock_state()
    assert state.synchronised in (True, False)
    assert state.error_s >= 0
    assert abs(monotonic_offset_s() + time.monotonic() - time.time()) <= 1


def test_a_clock_that_nobody_sets_is_not_told_of() -> None:
    with JumpWatch() as jumps:
        assert select([jumps], [], [], 0) == ([], [], [])
        assert not jumps.drain()


def test_outward_addresses_are_those_of_the_default_routes(namespace: Namespace) -> None:
    assert outward_addresses() == ()
    namespace.ip("link add up0 type veth peer name up1")
    namespace.ip("addr add 10.5.0.7/24 dev up0")
    namespace.ip("addr add 10.6.0.7/24 dev up0")
    namespace.ip("link set up1 up")
    namespace.ip("link set up0 up")
    namespace.ip("route add default via 10.5.0.1")
    assert outward_addresses() == (ip_network("10.5.0.7/32"),)
