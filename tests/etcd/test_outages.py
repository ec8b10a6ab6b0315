"""A real etcd that dies, hangs, returns, goes back in time or is another: known nodes stay, and it is shown."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from bulkhead.registry import gateway
from lab.authority import Authority
from lab.etcd import EtcdServer, Operator, node, put, registry
from lab.following import Following, following, names_of


async def known_still(heard: Following, *names: str) -> str:
    """Wait until etcd is known not to answer; the nodes are there as before. Why, in one sentence."""
    state = await heard.until_stale()
    assert names_of(heard.roster) == names
    assert state.last_heard > time.time() - 60 and state.problem and "\n" not in state.problem
    return state.problem


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_known_nodes_stay_while_etcd_is_away_and_what_it_knows_counts_when_it_is_back(
    own_etcd: EtcdServer, tmp_path: Path, how: str
) -> None:
    async def main() -> None:
        etcd, own = own_etcd.settings(ttl_s=5), registry(own_etcd.settings(ttl_s=5), tmp_path, "a")
        async with following(own) as heard:
            await own.announce(node("a", 1))
            async with Operator(etcd) as operator:
                await put(operator, node("b", 2))
            await heard.until_names("a", "b")
            getattr(own_etcd, how)()
            assert own_etcd.endpoint in await known_still(heard, "a", "b")
            own_etcd.start()
            await heard.until_names("a", "b")
            async with Operator(etcd) as operator:
                await put(operator, node("c", 3))
                await heard.until_names("a", "b", "c")
        assert all(roster.by_name("b") for roster, state in heard.told[-3:])

    asyncio.run(main())


def test_an_etcd_that_hangs_is_noticed_at_the_next_beat(
    own_etcd: EtcdServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "TIMEOUT_S", 0.5)

    async def main() -> None:
        async with Operator(own_etcd.settings()) as operator:
            await put(operator, node("a", 1))
        async with following(registry(own_etcd.settings(), tmp_path)) as heard:
            await heard.until_names("a")
            own_etcd.freeze()
            assert "did not answer within 0.5 s" in await known_still(heard, "a")
            own_etcd.thaw()
            await heard.until_names("a")

    asyncio.run(main())


def test_an_agent_that_starts_while_etcd_is_away_knows_what_the_one_before_knew(
    own_etcd: EtcdServer, tmp_path: Path
) -> None:
    async def main() -> None:
        etcd = own_etcd.settings()
        async with Operator(etcd) as operator, following(registry(etcd, tmp_path)) as heard:
            await put(operator, node("a", 1), node("b", 2))
            await operator.put("revoked/b", b"")
            await heard.until_names("a")
        own_etcd.stop()
        async with following(registry(etcd, tmp_path)) as again:
            await known_still(again, "a")
            assert [one.reason for one in again.roster.refused] == ["revoked"]
        async with following(registry(etcd._replace(prefix="/elsewhere/"), tmp_path)) as other:
            await other.until(lambda roster, state: "cannot be asked" in state.problem and not roster.nodes)

    asyncio.run(main())


@pytest.mark.parametrize("saved", ["", "{}", "[1]", "\x00", '{"version": 1', '{"version": 1, "source": 3}'])
def test_a_saved_file_that_is_broken_is_as_good_as_none(own_etcd: EtcdServer, tmp_path: Path, saved: str) -> None:
    async def main() -> None:
        (tmp_path / "me.json").write_text(saved)
        async with Operator(own_etcd.settings()) as operator:
            await put(operator, node("a", 1))
        async with following(registry(own_etcd.settings(), tmp_path)) as heard:
            await heard.until_names("a")

    asyncio.run(main())


@pytest.mark.parametrize("restarted", [False, True], ids=["while the agent runs", "between two of its runs"])
def test_an_etcd_restored_from_an_old_backup_is_refused_until_it_has_caught_up(
    own_etcd: EtcdServer, tmp_path: Path, restarted: bool
) -> None:
    async def restore(heard: Following | None) -> None:
        own_etcd.stop()
        if heard is not None:
            await heard.until_stale()
        own_etcd.restore(tmp_path / "backup")
        own_etcd.start()

    async def main() -> None:
        etcd = own_etcd.settings()
        async with Operator(etcd) as operator:
            await put(operator, node("a", 1), node("stolen", 2))
        own_etcd.stop()
        own_etcd.back_up(tmp_path / "backup")
        own_etcd.start()
        async with following(registry(etcd, tmp_path)) as heard:
            async with Operator(etcd) as operator:
                await operator.delete("nodes/stolen")
                await operator.put("elsewhere", b"")
                await heard.until_names("a")
            if not restarted:
                await restore(heard)
                await refused_then_caught_up(heard)
        if restarted:
            await restore(None)
            async with following(registry(etcd, tmp_path)) as again:
                await refused_then_caught_up(again)

    async def refused_then_caught_up(heard: Following) -> None:
        await heard.until(lambda _, state: "has gone back from revision" in state.problem)
        assert names_of(heard.roster) == ("a",)
        told = len(heard.told)
        async with Operator(own_etcd.settings()) as operator:
            await operator.delete("nodes/stolen")
            for _ in range(3):
                await operator.put("elsewhere", b"")
        await heard.until_names("a")
        assert not any(roster.by_name("stolen") for roster, _ in heard.told[told:])

    asyncio.run(main())


def test_another_cluster_in_the_place_of_the_known_one_is_refused(own_etcd: EtcdServer, tmp_path: Path) -> None:
    async def main() -> None:
        etcd = own_etcd.settings()
        async with following(registry(etcd, tmp_path)) as heard:
            async with Operator(etcd) as operator:
                await put(operator, node("a", 1))
                await heard.until_names("a")
            own_etcd.stop()
            own_etcd.forget()
            own_etcd.start(token="another")
            _, state = await heard.until(lambda _, state: "another cluster" in state.problem)
            assert names_of(heard.roster) == ("a",) and str(tmp_path / "me.json") in state.problem
        (tmp_path / "me.json").unlink()
        async with following(registry(etcd, tmp_path)) as heard:
            await heard.until_names()

    asyncio.run(main())


def test_the_next_member_is_asked_when_one_is_dead(own_etcd: EtcdServer, tmp_path: Path) -> None:
    async def main() -> None:
        dead = tuple(f"https://127.0.0.1:{port}" for port in (1, 2, 3))
        etcd = own_etcd.settings()
        async with Operator(etcd) as operator:
            await put(operator, node("a", 1))
        async with following(registry(etcd._replace(endpoints=(*dead, own_etcd.endpoint)), tmp_path)) as heard:
            await heard.until_names("a")

    asyncio.run(main())


@pytest.mark.parametrize("which", ["no certificate of the client", "a server of another authority", "no such file"])
def test_nothing_is_heard_without_certificates_that_fit(own_etcd: EtcdServer, tmp_path: Path, which: str) -> None:
    async def main() -> None:
        stranger = Authority(tmp_path, "stranger")
        pair, etcd = stranger.issue("me"), own_etcd.settings()
        given, word = {
            "no certificate of the client": ({"cert": str(pair.certificate), "key": str(pair.key)}, "cannot be asked"),
            "a server of another authority": ({"ca": str(stranger.certificate)}, "certificate verify failed"),
            "no such file": ({"key": str(tmp_path / "none")}, "do not make a TLS client"),
        }[which]
        async with Operator(etcd) as operator:
            await put(operator, node("a", 1))
        async with following(registry(etcd._replace(**given), tmp_path)) as heard:
            await heard.until(lambda roster, state: word in state.problem and not roster.nodes)

    asyncio.run(main())
