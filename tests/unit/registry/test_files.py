"""The registry of files, and how one is chosen."""

from __future__ import annotations

import asyncio
from ipaddress import ip_network
from pathlib import Path

from bulkhead.config import Etcd, Settings
from bulkhead.policy.nodes import Node, Roster
from bulkhead.registry.etcd import EtcdRegistry
from bulkhead.registry.files import FilesRegistry
from bulkhead.registry.registry import Registry, open_registry
from lab.following import following

ROSTER = Roster((Node("web-1", 7, (ip_network("10.0.0.7"),), None),))


def test_each_commit_is_told_with_its_nodes() -> None:
    async def main() -> None:
        registry = FilesRegistry()
        async with following(registry) as heard:
            state = await heard.until_stale()
            assert "no commit" in state.problem and heard.roster == Roster()
            registry.give(ROSTER, "3f2c1ab")
            roster, state = await heard.until(lambda _, state: state.is_fresh)
            assert (roster, state.kind, state.revision, state.problem) == (ROSTER, "files", "3f2c1ab", "")
            registry.give(Roster(), "4a5b6c7")
            await heard.until(lambda roster, state: state.revision == "4a5b6c7" and roster == Roster())

    asyncio.run(main())


def test_what_was_given_before_it_runs_is_told_first() -> None:
    async def main() -> None:
        registry = FilesRegistry()
        registry.give(ROSTER, "3f2c1ab")
        async with following(registry) as heard:
            await heard.until(lambda roster, _: roster == ROSTER)
            assert heard.told[0][0] == ROSTER

    asyncio.run(main())


def test_nodes_neither_announce_themselves_nor_withdraw() -> None:
    async def main() -> None:
        registry = FilesRegistry()
        registry.give(ROSTER, "3f2c1ab")
        await registry.announce(Node("me", 1, (ip_network("10.0.0.1"),), None))
        await registry.withdraw()
        async with following(registry) as heard:
            await heard.until(lambda roster, _: roster == ROSTER)

    asyncio.run(main())


def test_the_settings_choose_the_registry(tmp_path: Path) -> None:
    etcd = Etcd(("https://10.0.0.1:2379",), "/ca", "/cert", "/key")
    files: Registry = open_registry(Settings())
    other: Registry = open_registry(Settings(registry="etcd", etcd=etcd, state_dir=tmp_path))
    assert isinstance(files, FilesRegistry) and isinstance(other, EtcdRegistry)
