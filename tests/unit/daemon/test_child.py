"""A child of the agent's: what it says is bounded, and whoever waits for it is told when it ends."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from bulkhead.daemon.child import Child, Kind
from bulkhead.errors import UnreachableError

ECHO = """
import json, socket, sys
line = socket.socket(fileno=int(sys.argv[1]))
def say(head, body=b""):
    line.sendall(json.dumps(head | {"bytes": len(body)}).encode() + b"\\n" + body)
say({"kind": "up", "with": sys.argv[2:]})
for text in line.makefile("rb"):
    asked = json.loads(text)
    if asked["op"] == "raw":
        line.sendall(asked["text"].encode() + b"\\n")
    elif asked["op"] == "echo":
        say({"kind": "echo"}, asked["text"].encode())
"""
WAIT_S = 20.0


class Ears:
    """A child that echoes, and all that is heard of it."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[tuple[dict[str, Any], bytes]] = asyncio.Queue()
        self.ends: asyncio.Queue[str] = asyncio.Queue()
        self.arguments = ("first",)
        kind = Kind("the echo", "echo_child", body_bytes_max=1000, options=("-B",))
        self.child = Child(kind, lambda: self.arguments, self._hear, self.ends.put_nowait)

    async def _hear(self, head: dict[str, Any], body: bytes) -> None:
        if head["kind"] == "echo" and body == b"nonsense":
            raise ValueError("nonsense")
        await self.heard.put((head, body))


def with_child(work: Callable[[Ears], Awaitable[None]]) -> None:
    async def main() -> None:
        ears = Ears()
        ears.child.start()
        try:
            async with asyncio.timeout(WAIT_S):
                head, _ = await ears.heard.get()
                assert head["with"] == ["first"]
                await work(ears)
        finally:
            await ears.child.stop()
        assert not ears.child.is_running

    asyncio.run(main())


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "echo_child.py").write_text(ECHO)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")


def test_what_is_said_is_heard_with_its_body() -> None:
    async def work(ears: Ears) -> None:
        ears.child.send_line({"op": "echo", "text": "x" * 1000})
        assert (await ears.heard.get())[1] == b"x" * 1000
        environment = Path(f"/proc/{ears.child.pid}/environ").read_bytes().split(b"\0")
        assert not any(one.startswith(b"NOTIFY_SOCKET=") for one in environment)

    with_child(work)


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ({"op": "echo", "text": "x" * 1001}, "proper size"),
        ({"op": "raw", "text": '{"kind": "x"}'}, "proper size"),
        ({"op": "raw", "text": '{"kind": "x", "bytes": -1}'}, "proper size"),
        ({"op": "raw", "text": '{"kind": "x", "bytes": true}'}, "proper size"),
        ({"op": "raw", "text": "[]"}, "proper size"),
        ({"op": "raw", "text": "not json"}, "ended"),
        ({"op": "raw", "text": '{"bytes": 0}'}, "kind"),
        ({"op": "echo", "text": "nonsense"}, "nonsense"),
    ],
)
def test_a_child_that_makes_no_sense_is_started_anew(said: dict[str, Any], word: str) -> None:
    async def work(ears: Ears) -> None:
        before = ears.child.pid
        ears.arguments = ("second",)
        ears.child.send_line(said)
        assert word in await ears.ends.get()
        head, _ = await ears.heard.get()
        assert (head["with"], ears.child.restarts) == (["second"], 1)
        assert ears.child.pid != before

    with_child(work)


def test_who_waits_for_a_child_that_ends_is_told(tmp_path: Path) -> None:
    async def work(ears: Ears) -> None:
        promise = ears.child.promise()
        os.kill(ears.child.pid, 9)
        with pytest.raises(UnreachableError, match="the echo ended"):
            await ears.child.kept(promise, WAIT_S)
        with pytest.raises(UnreachableError, match="is not running"):
            ears.child.send_line({"op": "echo"})
        with pytest.raises(UnreachableError, match="did not answer in time"):
            await ears.child.kept(ears.child.promise(), 0.01)

    with_child(work)
