"""Nodes come and go in a real etcd: what an agent hears of it."""

from __future__ import annotations

import asyncio
import json
import time
from ipaddress import ip_network
from pathlib import Path

import pytest

from bulkhead.config import Etcd
from bulkhead.policy.nodes import Unknown
from bulkhead.registry import gateway, record
from bulkhead.registry.etcd import EtcdRegistry
from lab.etcd import Operator, node, put, registry
from lab.following import following, names_of


def test_what_is_there_and_what_comes_and_goes_is_told(etcd: Etcd, tmp_path: Path) -> None:
    async def main() -> None:
        async with Operator(etcd) as operator, following(registry(etcd, tmp_path)) as heard:
            await heard.until_names()
            await put(operator, node("a", 1))
            await heard.until_names("a")
            await put(operator, node("b", 2, unknown=Unknown.ADDRESS), node("c", 3, key=None))
            roster = await heard.until_names("a", "b", "c")
            assert roster.by_name("b").unknown is Unknown.ADDRESS
            assert roster.by_name("c").key is None
            assert roster.by_name("c").origin == f"etcd {etcd.prefix}nodes/c"
            await operator.delete("nodes/b")
            await heard.until_names("a", "c")
            await put(operator, node("a", 9))
            await heard.until(lambda roster, _: ip_network("10.9.0.9") in roster.by_name("a").addresses)
            assert heard.state.kind == "etcd" and not heard.state.problem
            assert int(heard.state.revision) > 1 and abs(time.time() - heard.state.last_heard) < 60

    asyncio.run(main())


def test_a_revoked_node_does_not_count_whatever_its_record_says(etcd: Etcd, tmp_path: Path) -> None:
    async def main() -> None:
        async with Operator(etcd) as operator:
            await put(operator, node("a", 1), node("b", 2), node("c", 3))
            await operator.put("revoked/a", b"")
            async with following(registry(etcd, tmp_path)) as heard:
                await heard.until_names("b", "c")
                await operator.put("revoked/b", b"stolen")
                roster = await heard.until_names("c")
                assert [one.reason for one in roster.refused] == ["revoked", "revoked"]
                await operator.delete("revoked/a")
                await heard.until_names("a", "c")

    asyncio.run(main())


GARBAGE = {
    "not JSON": b"\xff\x00 nonsense",
    "not an object": b"[]",
    "nested without end": b"[" * 60000,
    "too large": json.dumps({"version": 1, "name": "x", "addresses": ["10.9.0.7"] * 6000}).encode(),
    "of another version": json.dumps({"version": 2, "name": "x", "addresses": ["10.9.0.7"]}).encode(),
    "of another name": record.write(node("y", 7)),
}


@pytest.mark.parametrize("value", GARBAGE.values(), ids=GARBAGE.keys())
@pytest.mark.parametrize("when", ["before", "while"])
def test_a_record_that_is_garbage_hurts_no_other(etcd: Etcd, tmp_path: Path, value: bytes, when: str) -> None:
    async def main() -> None:
        async with Operator(etcd) as operator:
            await put(operator, node("a", 1), node("x", 7))
            if when == "before":
                await operator.put("nodes/x", value)
            async with following(registry(etcd, tmp_path)) as heard:
                await heard.until_names(*(["a"] if when == "before" else ["a", "x"]))
                await operator.put("nodes/x", value)
                roster = await heard.until_names("a")
                assert [(one.name, one.reason) for one in roster.refused] == [("x", "invalid")]
                await put(operator, node("x", 7))
                await heard.until_names("a", "x")

    asyncio.run(main())


@pytest.mark.parametrize("name", ["../up", "a/b", "", "ü", "-a", "x" * 300, "a\nb"])
def test_a_record_under_a_name_that_no_host_can_have_is_refused(etcd: Etcd, tmp_path: Path, name: str) -> None:
    async def main() -> None:
        async with Operator(etcd) as operator, following(registry(etcd, tmp_path)) as heard:
            value = record.write(node("a", 1)).replace(b'"a"', json.dumps(name).encode())
            await operator.put(f"nodes/{name}", value)
            roster, _ = await heard.until(lambda roster, _: bool(roster.refused))
            assert names_of(roster) == () and roster.refused[0].reason == "invalid"
            assert "\n" not in roster.refused[0].detail and len(roster.refused[0].detail) < 600

    asyncio.run(main())


@pytest.mark.parametrize("trait", ["number", "addresses", "key"])
def test_two_nodes_with_one_of_what_must_be_their_own_are_both_refused(etcd: Etcd, tmp_path: Path, trait: str) -> None:
    async def main() -> None:
        async with Operator(etcd) as operator, following(registry(etcd, tmp_path)) as heard:
            await put(operator, node("a", 1), node("b", 2))
            await heard.until_names("a", "b")
            await put(operator, node("c", 3, **{trait: getattr(node("a", 1), trait)}))
            roster = await heard.until_names("b")
            assert [one.reason for one in roster.refused] == [trait.removesuffix("es")] * 2

    asyncio.run(main())


def test_history_that_was_compacted_away_is_made_up_for_by_a_list(
    etcd: Etcd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "SILENCE_S", 2.0)

    class Counting(EtcdRegistry):
        async def _list(self, gateway: gateway.Gateway) -> None:
            await super()._list(gateway)
            lists.put_nowait(None)

    async def main() -> None:
        elsewhere = etcd._replace(prefix=f"{etcd.prefix[:-1]}-elsewhere/")
        async with (
            Operator(etcd) as operator,
            Operator(elsewhere) as other,
            following(Counting(etcd, "me", tmp_path / "nodes.json")) as heard,
        ):
            await put(operator, node("a", 1))
            await heard.until_names("a")
            await lists.get()
            for _ in range(3):
                await other.put("x", b"what raises the revision, and is not ours")
            await other.compact()
            await asyncio.wait_for(lists.get(), 60)
            await put(operator, node("b", 2))
            await heard.until_names("a", "b")
            assert [state.problem for _, state in heard.told[1:]] == [""] * (len(heard.told) - 1)

    lists: asyncio.Queue[None] = asyncio.Queue()
    asyncio.run(main())


def test_only_so_many_nodes_count_and_the_next_one_moves_up(
    etcd: Etcd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bulkhead.registry.records.NODES_MAX", 3)
    monkeypatch.setattr("bulkhead.registry.etcd.NODES_MAX", 3)

    async def main() -> None:
        async with Operator(etcd) as operator:
            await put(operator, *(node(name, at) for at, name in enumerate("bcdef")))
            async with following(registry(etcd, tmp_path)) as heard:
                roster = await heard.until_names("b", "c", "d")
                assert [one.name for one in roster.refused] == ["e"]
                await put(operator, node("a", 9))
                await heard.until_names("a", "b", "c")
                await operator.delete("nodes/a")
                await operator.delete("nodes/b")
                await heard.until_names("c", "d", "e")

    asyncio.run(main())


def test_five_hundred_nodes_are_known_within_two_seconds(etcd: Etcd, tmp_path: Path) -> None:
    async def main() -> None:
        async with Operator(etcd) as operator:
            await put(operator, *(node(f"node-{at:03}", at) for at in range(500)))
            began = time.monotonic()
            async with following(registry(etcd, tmp_path)) as heard:
                roster, _ = await heard.until(lambda roster, _: len(roster.nodes) == 500)
                took_s = time.monotonic() - began
                print(f"500 nodes listed, read and checked in {took_s * 1000:.0f} ms")
                assert roster.refused == () and took_s < 2

    asyncio.run(main())
