"""A node's own record in a real etcd: under a lease, with a number of its own, in nobody's place."""

from __future__ import annotations

import asyncio
import base64
from ipaddress import ip_network
from pathlib import Path

import pytest

from bulkhead.config import Etcd
from bulkhead.policy.nodes import NUMBER_MAX
from bulkhead.registry import record
from lab.etcd import EtcdServer, Operator, node, put, registry
from lab.following import following, number_of


def test_a_node_that_disappears_drops_out_when_its_lease_ends(etcd: Etcd, tmp_path: Path) -> None:
    async def main() -> None:
        async with following(registry(etcd, tmp_path, "a")) as a:
            gone = registry(etcd, tmp_path, "b")
            async with following(gone):
                await gone.announce(node("b", 2))
                assert (await a.until_names("b")).by_name("b").addresses == node("b", 2).addresses
            await a.until_names()

    asyncio.run(main())


def test_a_record_is_kept_beyond_its_lease_while_its_agent_lives(etcd: Etcd, tmp_path: Path) -> None:
    async def main() -> None:
        brief = registry(etcd, tmp_path, "b")
        lasting, ends = registry(etcd._replace(ttl_s=2), tmp_path, "a"), registry(etcd._replace(ttl_s=8), tmp_path, "c")
        async with following(lasting) as heard, following(brief):
            await lasting.announce(node("a", 1))
            async with following(ends):
                await ends.announce(node("c", 3))
                await heard.until_names("a", "c")
                told = len(heard.told)
            # The lease that ends now is four times as long as the one that has to be kept alive meanwhile.
            await heard.until_names("a")
            assert all(roster.by_name("a") for roster, _ in heard.told[told:])

    asyncio.run(main())


def test_withdrawing_takes_the_record_back_at_once(etcd: Etcd, tmp_path: Path) -> None:
    async def main() -> None:
        own = registry(etcd._replace(ttl_s=600), tmp_path, "a")
        async with Operator(etcd) as operator, following(own) as heard:
            await own.announce(node("a", 1))
            roster = await heard.until_names("a")
            await own.withdraw()
            await heard.until_names()
            assert await operator.get(f"numbers/{number_of(roster, 'a')}") is None

    asyncio.run(main())


def test_what_was_never_announced_is_withdrawn_without_asking(etcd: Etcd, tmp_path: Path) -> None:
    asyncio.run(asyncio.wait_for(registry(etcd, tmp_path).withdraw(), 1))


def test_nodes_that_want_one_number_get_one_each(etcd: Etcd, tmp_path: Path) -> None:
    async def main() -> None:
        names, wanted = "abcd", NUMBER_MAX - 1
        registries = [registry(etcd._replace(ttl_s=60), tmp_path, name) for name in names]
        async with (
            following(registries[0]) as heard,
            following(registries[1]),
            following(registries[2]),
            following(registries[3]),
        ):
            for at, (name, one) in enumerate(zip(names, registries, strict=True)):
                await one.announce(node(name, at, number=wanted))
            roster = await heard.until_names(*names)
            assert {one.number for one in roster} == {NUMBER_MAX - 1, NUMBER_MAX, 1, 2}
            assert roster.refused == ()

    asyncio.run(main())


def test_a_number_that_an_operator_gave_or_keeps_is_left_alone(etcd: Etcd, tmp_path: Path) -> None:
    async def main() -> None:
        own = registry(etcd, tmp_path, "a")
        async with Operator(etcd) as operator, following(own) as heard:
            await put(operator, node("legacy", 2, number=100, key=None))
            await operator.put("numbers/101", b"kept for later")
            await heard.until_names("legacy")
            await own.announce(node("a", 1, number=100))
            assert number_of(await heard.until_names("a", "legacy"), "a") == 102

    asyncio.run(main())


def test_an_agent_that_starts_again_has_its_number_and_a_lease_anew(etcd: Etcd, tmp_path: Path) -> None:
    async def main() -> None:
        moved = ip_network("10.9.0.5")
        async with Operator(etcd) as operator, following(registry(etcd, tmp_path, "watcher")) as heard:
            await operator.put("numbers/100", b"another")
            first, second = registry(etcd._replace(ttl_s=600), tmp_path, "a"), registry(etcd, tmp_path, "a")
            async with following(first):
                await first.announce(node("a", 1, number=100))
                assert number_of(await heard.until_names("a"), "a") == 101
            await operator.delete("numbers/100")
            async with following(second):
                await second.announce(node("a", 1, number=100, addresses=(moved,)))
                roster, _ = await heard.until(lambda roster, _: moved in roster.by_name("a").addresses)
                assert number_of(roster, "a") == 101
            await heard.until_names()
            assert await operator.get("numbers/101") is None

    asyncio.run(main())


@pytest.mark.parametrize(
    ("there", "word"),
    [
        (record.write(node("a", 2)), "with another key than this node's: remove"),
        (record.write(node("a", 1, key=None)), "without a key: remove"),
        (b"garbage", "is no record of a node (it is not JSON): remove"),
        (record.write(node("a", 1, revoked=True)), "is revoked by"),
    ],
)
def test_the_name_of_another_is_not_taken_until_its_record_is_removed(
    etcd: Etcd, tmp_path: Path, there: bytes, word: str
) -> None:
    async def main() -> None:
        own = registry(etcd, tmp_path, "a")
        async with Operator(etcd) as operator:
            await operator.put("nodes/a", there)
            async with following(own) as heard:
                await own.announce(node("a", 1))
                _, state = await heard.until(lambda _, state: bool(state.own))
                assert word in state.own and f"`{etcd.prefix}nodes/a`" in state.own
                assert await operator.get("nodes/a") == there
                await operator.delete("nodes/a")
                await heard.until(lambda roster, state: roster.by_name("a") == _as_told(etcd) and not state.own)

    asyncio.run(main())


def _as_told(etcd: Etcd) -> object:
    return node("a", 1, origin=f"etcd {etcd.prefix}nodes/a")


def test_a_record_that_an_operator_wrote_for_good_with_this_key_is_taken_as_it_is(etcd: Etcd, tmp_path: Path) -> None:
    async def main() -> None:
        own = registry(etcd, tmp_path, "a")
        async with Operator(etcd) as operator:
            written = record.write(node("a", 1, number=77))
            await operator.put("nodes/a", written)
            async with following(own) as heard:
                await own.announce(node("a", 1))
                await heard.until_names("a")
                await own.withdraw()
                assert await operator.get("nodes/a") == written and own.state.own == ""

    asyncio.run(main())


def test_what_becomes_of_the_own_record_is_noticed(etcd: Etcd, tmp_path: Path) -> None:
    async def main() -> None:
        own = registry(etcd._replace(ttl_s=60), tmp_path, "a")
        async with Operator(etcd) as operator, following(own) as heard:
            await own.announce(node("a", 1))
            await heard.until_names("a")
            await operator.put("revoked/a", b"")
            _, state = await heard.until(lambda roster, state: bool(state.own) and not roster.nodes)
            assert state.own == f"`a` is revoked by `{etcd.prefix}revoked/a`"
            await operator.delete("revoked/a")
            await heard.until(lambda roster, state: bool(roster.nodes) and not state.own)
            gone = await operator.revision() + 1
            await operator.delete("nodes/a")
            await operator.until_put("nodes/a", gone)
            await put(operator, node("a", 9))
            _, state = await heard.until(lambda _, state: bool(state.own))
            assert "another key" in state.own

    asyncio.run(main())


def test_an_agent_with_an_etcd_user_of_its_own_writes_its_record_and_no_other(
    own_etcd: EtcdServer, tmp_path: Path
) -> None:
    """The roles are those of docs/registry.md."""

    async def main() -> None:
        secrets = {}
        for user in ("root", "a"):
            secrets[user] = tmp_path / f"{user}.password"
            secrets[user].touch(mode=0o600)
            secrets[user].write_text(f"secret of {user}\n")
        plain = own_etcd.settings()
        root = plain._replace(user="root", password=str(secrets["root"]))
        async with Operator(plain) as operator:
            for user in ("root", "a"):
                await operator.call("auth/user/add", name=user, password=f"secret of {user}")
                await operator.call("auth/role/add", name=user)
                await operator.call("auth/user/grant", user=user, role=user)
            for kind, key, end in [
                ("READ", "/bulkhead/", "/bulkhead0"),
                ("READWRITE", "/bulkhead/nodes/a", ""),
                ("READWRITE", "/bulkhead/numbers/", "/bulkhead/numbers0"),
            ]:
                perm = {"permType": kind, "key": _b64(key), "range_end": _b64(end)}
                await operator.call("auth/role/grant", name="a", perm=perm)
            await operator.call("auth/enable")
        for name, user, succeeds in [("a", "a", True), ("b", "a", False), ("c", "", False)]:
            settings = plain._replace(user=user, password=str(secrets[user]) if user else "")
            one = registry(settings, tmp_path, name)
            async with following(one) as heard:
                await one.announce(node(name, 1))
                if succeeds:
                    await heard.until_names("a")
                    await one.withdraw()
                else:
                    _, state = await heard.until(lambda _, state: "refuses" in state.problem)
                    assert ("permission denied" if user else "user name is empty") in state.problem
        async with Operator(root) as operator:
            assert await operator.get("nodes/b") is None
        secrets["a"].chmod(0o644)
        async with following(registry(plain._replace(user="a", password=str(secrets["a"])), tmp_path)) as heard:
            await heard.until(lambda _, state: "readable by others" in state.problem)

    asyncio.run(main())


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
