"""Nodes that announce themselves to a real etcd, each with a key of its own run: from there to the maps."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bulkhead.config import Settings
from bulkhead.daemon.keys import KeyProcess
from bulkhead.daemon.wire import WireIdentity
from bulkhead.kernel.libbpf import Map, map_create
from bulkhead.kernel.wire import WireMaps
from bulkhead.policy.nodes import default_number
from bulkhead.registry.registry import open_registry
from kernel.test_wire import SHAPES
from lab.bpf import can_attach
from lab.etcd import EtcdServer


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    if shutil.which("etcd") is None or not can_attach():
        pytest.skip("needs root and etcd-server")
    with EtcdServer(tmp_path) as server:
        yield server


class Member:
    """One node: its key process, its registry and its maps."""

    def __init__(self, name: str, address: str, server: EtcdServer) -> None:
        state = server.directory / name
        state.mkdir()
        settings = Settings(
            host=name, registry="etcd", etcd=server.settings(ttl_s=5), node_addresses=(address,), state_dir=state
        )
        self.number = default_number(name)
        self.maps: dict[str, Map] = {
            kind: map_create(shape[0], f"t_{kind}", *shape[1:]) for kind, shape in SHAPES.items()
        }
        self.keys, self.registry = KeyProcess(settings), open_registry(settings)
        self.wire = WireIdentity(settings, WireMaps(self.maps.__getitem__), self.keys, self.registry)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """As the agent does."""
        self.keys.start()
        self._tasks = [asyncio.create_task(one) for one in (self.registry.run(self.wire.set_roster), self.wire.run())]

    async def stop(self) -> None:
        """As when the agent ends."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.keys.stop()

    def close(self) -> None:
        """Give the maps back."""
        for one in self.maps.values():
            one.close()

    def keys_of(self, other: Member) -> dict[bytes, bytes]:
        """By epoch."""
        number = other.number.to_bytes(4, "little")
        return {one[4:]: value for one, value in self.maps["wire_keys"].as_dict().items() if one[:4] == number}


async def until(is_so: Callable[[], object], what: Callable[[], object]) -> None:
    """Ask until it is so."""
    try:
        async with asyncio.timeout(20):
            while not is_so():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(what()) from None


def test_nodes_that_announce_themselves_share_keys_and_part_when_one_has_another(etcd: EtcdServer) -> None:
    ann, bob = Member("ann", "10.0.0.1", etcd), Member("bob", "10.0.0.2", etcd)

    def told() -> object:
        return ann.wire.status(), bob.wire.status()

    async def main() -> None:
        ann.start()
        bob.start()
        try:
            await until(lambda: ann.keys_of(bob) and bob.keys_of(ann), told)
            ours, theirs = ann.keys_of(bob), bob.keys_of(ann)
            for epoch in ours.keys() & theirs.keys():
                assert (ours[epoch][:16], ours[epoch][16:]) == (theirs[epoch][16:], theirs[epoch][:16])
            assert ours.keys() & theirs.keys()
            await until(lambda: ann.wire.status()["speaking"] and bob.wire.status()["speaking"], told)
            assert ann.wire.status()["keys"]["ephemeral"]
            await _renewed(ann, bob, told)
        finally:
            await ann.stop()
            await bob.stop()

    try:
        asyncio.run(main())
    finally:
        ann.close()
        bob.close()


async def _renewed(ann: Member, bob: Member, told: Callable[[], object]) -> None:
    """The process that holds a key of this run is killed: a new key is announced, and both ends go over to it."""
    before, process = bob.keys_of(ann), ann.keys.pid
    assert ann.keys.own is not None
    first = ann.keys.own.public
    os.kill(process, 9)
    await until(lambda: ann.keys.own is not None and ann.keys.own.public != first, told)
    await until(lambda: bob.keys_of(ann) and not bob.keys_of(ann).items() & before.items(), told)
    await until(lambda: ann.wire.status()["speaking"] and ann.keys_of(bob), told)
    ours, theirs = ann.keys_of(bob), bob.keys_of(ann)
    assert all(ours[epoch][:16] == theirs[epoch][16:] for epoch in ours.keys() & theirs.keys())
