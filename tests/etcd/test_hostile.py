"""Whoever answers in etcd's place with what etcd would not say: nothing of it is believed, and it costs little."""

from __future__ import annotations

import asyncio
import json
import resource
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from bulkhead.config import Etcd
from bulkhead.registry import gateway, record
from lab.authority import Authority
from lab.etcd import EtcdServer, Operator, node, put, registry
from lab.following import following, names_of
from lab.hostile_etcd import Answer, b64, hostile_etcd, page, raw_server, says, still_heard, streams

A, B = ("/bulkhead/nodes/a", record.write(node("a", 1))), ("/bulkhead/nodes/b", record.write(node("b", 2)))

LISTS: dict[str, tuple[Answer, str]] = {
    "no JSON": (says(b"<html>welcome</html>"), "not JSON"),
    "nested without end": (says(b"[" * 100_000), "not JSON"),
    "a list": (says([]), "no JSON object"),
    "no header": (says({}), "no `header`"),
    "a header that is a number": (says({"header": 3}), "no `header`"),
    "no revision": (says({"header": {"cluster_id": "7"}}), "no revision"),
    "a revision that is negative": (says(page(revision=-3)), "`revision` is no number"),
    "a revision without end": (says(page(revision=10**30)), "`revision` is no number"),
    "keys that are a text": (says(page(kvs="all")), "`kvs` is no list"),
    "a key that is a number": (says(page(kvs=[{"key": 3}])), "`key` is not base64"),
    "a value that is not base64": (says(page(kvs=[{"key": b64(b"x"), "value": "???"}])), "`value` is not base64"),
    "keys from elsewhere": (says(page(("/other/nodes/a", A[1]))), "other keys than it was asked for"),
    "a key twice": (says(page(A, A)), "other keys than it was asked for"),
    "keys out of order": (says(page(B, A)), "other keys than it was asked for"),
    "the same page for ever": (says(page(A, more=True)), "other keys than it was asked for"),
    "an error without a word": (says({"error": 3}, status=500), "an error without a word"),
    "an error with many": (says({"message": "no! " * 5000}, status=500), "refuses: no! no!"),
    "a way to elsewhere": (says({}, status=307, Location="https://127.0.0.1:1/v3/kv/range"), "an error without a word"),
    "more bytes than there is room": (streams(again=b"x" * 65536), "answers with more than"),
}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def settings(authority: Authority) -> Etcd:
    pair = authority.issue("agent")
    files = (str(authority.certificate), str(pair.certificate), str(pair.key))
    return Etcd((), *files, ttl_s=2)


@pytest.mark.parametrize(("answer", "word"), LISTS.values(), ids=LISTS.keys())
def test_an_answer_that_is_none_of_etcds_is_refused_and_named(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer, word: str
) -> None:
    monkeypatch.setattr(gateway, "ANSWER_BYTES_MAX", 1 << 20)
    monkeypatch.setattr(gateway, "TIMEOUT_S", 30.0)  # the machine may be busy; what hangs is tested elsewhere

    async def main() -> None:
        async with (
            hostile_etcd(authority, settings(authority), {"kv/range": answer}) as etcd,
            following(registry(etcd, tmp_path)) as heard,
        ):
            _, state = await heard.until(lambda _, state: word in state.problem)
            assert not state.is_fresh and not heard.roster.nodes
            assert "\n" not in state.problem and len(state.problem) < 300

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    asyncio.run(main())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\x00\xff" * 5000,
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 999999 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x" * (1 << 20),
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * (1 << 20) + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 8\r\n\r\nnonsense",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nSet-Cookie: \xff\x00\r\nContent-Type: \xff;;=\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
def test_what_is_not_even_http_is_refused(authority: Authority, tmp_path: Path, said: bytes) -> None:
    async def main() -> None:
        async with (
            raw_server(authority, settings(authority), said) as etcd,
            following(registry(etcd, tmp_path)) as heard,
        ):
            _, state = await heard.until(lambda _, state: etcd.endpoints[0] in state.problem)
            assert "\n" not in state.problem and len(state.problem) < 300

    asyncio.run(main())


def line(result: Any) -> bytes:
    return json.dumps({"result": {"header": {"revision": "5"}} | result}).encode() + b"\n"


def event(revision: int, key: str = "/bulkhead/nodes/b", value: bytes = B[1]) -> dict[str, Any]:
    return {"kv": {"key": b64(key.encode()), "value": b64(value), "mod_revision": str(revision)}}


WATCHES: dict[str, tuple[Answer, str]] = {
    "ended at once": (says(b""), "ended the watch"),
    "no JSON": (streams(b"hello\n"), "not JSON"),
    "no result": (streams(b"{}\n"), "no `result`"),
    "events of the past": (streams(line({"events": [event(4)]})), "older than what it told before"),
    "events that are a number": (streams(line({"events": 3})), "`events` is no list"),
    "events of nothing": (streams(line({"events": [{}]})), "no `kv`"),
    "cancelled": (streams(line({"canceled": True, "cancel_reason": "no\nleader"})), "ended the watch: no leader"),
    "an error": (streams(b'{"error": {"message": "gone"}}\n'), "refuses: gone"),
    "refused": (says({"message": "permission denied"}, status=403), "refuses: permission denied"),
    "a line without end": (streams(again=b"x" * 65536), "in one breath"),
}


@pytest.mark.parametrize(("answer", "word"), WATCHES.values(), ids=WATCHES.keys())
def test_a_watch_that_says_nonsense_ends_and_what_was_listed_stays(
    authority: Authority, tmp_path: Path, answer: Answer, word: str
) -> None:
    async def lists(request: Any) -> Any:
        key = (await request.json())["key"]
        return await says(page(A) if key == b64(b"/bulkhead/nodes/") else page())(request)

    async def main() -> None:
        async with (
            hostile_etcd(authority, settings(authority), {"kv/range": lists, "watch": answer}) as etcd,
            following(registry(etcd, tmp_path)) as heard,
        ):
            await heard.until(lambda _, state: word in state.problem)
            assert names_of(heard.roster) == ("a",)

    asyncio.run(main())


def test_changes_without_end_do_not_starve_the_agent(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "TIMEOUT_S", 30.0)

    async def lists(request: Any) -> Any:
        return await says(page())(request)

    async def changes(request: Any) -> Any:
        response = web.StreamResponse()
        await response.prepare(request)
        for revision in range(6, 1 << 30):
            if not await still_heard(request):
                break
            await response.write(line({"events": [event(revision)]}))
        return response

    async def main() -> None:
        async with (
            hostile_etcd(authority, settings(authority), {"kv/range": lists, "watch": changes}) as etcd,
            following(registry(etcd, tmp_path)) as heard,
        ):
            await heard.until(lambda roster, _: bool(roster.nodes))
            # Only the beat can see that the lists are older than what the watch has told.
            await heard.until(lambda _, state: "has gone back" in state.problem)

    asyncio.run(main())


def test_a_server_of_an_old_revision_is_refused_while_another_is_right(own_etcd: EtcdServer, tmp_path: Path) -> None:
    """One member lies; the agent goes on with the next and never takes in what the liar says."""

    async def main() -> None:
        etcd = own_etcd.settings()
        async with Operator(etcd) as operator:
            await put(operator, node("a", 1))
            await operator.put("elsewhere", b"")
            header = (await operator.call("kv/range", key=b64(b"x")))["header"]
            old = page(A, B) | {"header": header | {"revision": "2"}}
            async with hostile_etcd(own_etcd.authority, etcd, {"kv/range": says(old)}) as hostile:
                async with following(registry(etcd, tmp_path)) as heard:
                    await heard.until_names("a")
                path = tmp_path / "me.json"
                both = etcd._replace(endpoints=(hostile.endpoints[0], etcd.endpoints[0]))
                path.write_text(path.read_text().replace(etcd.endpoints[0], " ".join(sorted(both.endpoints))))
                for _ in range(4):  # whichever is asked first
                    async with following(registry(both, tmp_path)) as heard:
                        await heard.until_names("a")
                        assert not any(roster.by_name("b") for roster, _ in heard.told)

    asyncio.run(main())


def test_the_answer_that_is_too_large_is_asked_for_in_smaller_pages(
    own_etcd: EtcdServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "ANSWER_BYTES_MAX", 200_000)

    async def main() -> None:
        async with Operator(own_etcd.settings()) as operator:
            for name in "bcdefg":
                await operator.put(f"nodes/{name}", b"x" * 100_000)
            await put(operator, node("a", 1), node("h", 2))
            async with following(registry(own_etcd.settings(), tmp_path)) as heard:
                roster = await heard.until_names("a", "h")
                assert [one.name for one in roster.refused] == list("bcdefg")

    asyncio.run(main())
