"""Both ends of the control socket, talking through a real one."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from bulkhead.control import client
from bulkhead.control.peers import Peer, peer_of
from bulkhead.control.protocol import REQUEST_MAX, RemoteError
from bulkhead.control.server import CONNECTIONS_MAX, Server
from bulkhead.errors import ExitCode, RefusedError, UnreachableError, UsageError


async def echo(args: dict[str, Any]) -> dict[str, Any]:
    return args


async def change(args: dict[str, Any], peer: Peer) -> dict[str, Any]:
    return {**args, "uid": peer.uid}


async def refuse(args: dict[str, Any]) -> dict[str, Any]:
    raise UsageError("no such `thing`")


async def fail(args: dict[str, Any]) -> dict[str, Any]:
    raise ZeroDivisionError("secret")


async def count(args: dict[str, Any]) -> AsyncGenerator[Any, None]:
    for number in range(args["to"]):
        yield number


class Endless:
    """A stream that says when it was closed."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    async def __call__(self, args: dict[str, Any]) -> AsyncGenerator[Any, None]:
        try:
            yield "first"
            await asyncio.Event().wait()
        finally:
            self.closed.set()


@contextmanager
def serving(
    path: Path, idle_timeout_s: float = 5.0, endless: Endless | None = None, group: int | None = None
) -> Iterator[None]:
    """A server in a thread of its own."""
    streams = {"count": count, "endless": endless or Endless(), "sour": sour}
    server = Server(path, {"echo": echo, "refuse": refuse, "fail": fail}, {"change": change}, streams, idle_timeout_s)
    started, loop = threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    async def main() -> None:
        await server.start(group)
        started.set()
        await stop.wait()
        await server.close()

    def run() -> None:
        with closing(loop):
            loop.run_until_complete(main())

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(5)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(5)
        assert not thread.is_alive()


async def sour(args: dict[str, Any]) -> AsyncGenerator[Any, None]:
    yield 1
    raise UsageError("no more")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


def talk(path: Path, sent: bytes) -> list[dict[str, Any]]:
    """Everything that comes back for raw bytes, until the server closes."""
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(5)
        raw.connect(str(path))
        raw.sendall(sent)
        received = b""
        while chunk := raw.recv(65536):
            received += chunk
    return [json.loads(line) for line in received.splitlines()]


def test_an_answer_comes_back(path: Path) -> None:
    with serving(path):
        assert client.call(path, "echo", {"a": [1, "ü"]}) == {"a": [1, "ü"]}
        assert client.call(path, "change") == {"uid": os.getuid()}


def test_a_large_answer_comes_back_whole(path: Path) -> None:
    async def large(args: dict[str, Any]) -> dict[str, Any]:
        return {"a": "b" * 3_000_000}

    async def main() -> Any:
        async with Server(path, {"large": large}):
            return await asyncio.to_thread(client.call, path, "large")

    assert len(asyncio.run(main())["a"]) == 3_000_000


def test_an_error_reaches_the_client_with_its_exit_code(path: Path) -> None:
    with serving(path), pytest.raises(RemoteError, match="no such `thing`") as caught:
        client.call(path, "refuse")
    assert caught.value.exit_code is ExitCode.INVALID


def test_an_unforeseen_error_is_told_without_its_details(path: Path) -> None:
    with serving(path), pytest.raises(RemoteError) as caught:
        client.call(path, "fail")
    assert "its log has the details" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_an_unknown_operation_is_refused_by_name(path: Path) -> None:
    with serving(path), pytest.raises(RemoteError, match="unknown operation `drop`"):
        client.call(path, "drop")


def test_a_stream_gives_one_answer_after_the_other(path: Path) -> None:
    with serving(path):
        assert list(client.stream(path, "count", {"to": 3})) == [0, 1, 2]


def test_an_error_within_a_stream_reaches_the_client(path: Path) -> None:
    with serving(path):
        answers = client.stream(path, "sour")
        assert next(answers) == 1
        with pytest.raises(RemoteError, match="no more"):
            next(answers)


def test_a_stream_ends_when_the_client_leaves(path: Path) -> None:
    endless = Endless()
    with serving(path, endless=endless):
        answers = client.stream(path, "endless")
        assert next(answers) == "first"
        answers.close()  # type: ignore[attr-defined]
        assert endless.closed.wait(5)


def test_a_stream_ends_with_the_server(path: Path) -> None:
    endless = Endless()
    with serving(path, endless=endless):
        answers = client.stream(path, "endless")
        assert next(answers) == "first"
    assert endless.closed.is_set()
    assert list(answers) == []


def test_several_requests_share_a_connection(path: Path) -> None:
    line = b'{"version": 1, "op": "echo", "args": {"n": 1}}\n'
    with serving(path), socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(5)
        raw.connect(str(path))
        for _ in range(2):
            raw.sendall(line)
            assert json.loads(raw.recv(65536)) == {"ok": True, "data": {"n": 1}}


@pytest.mark.parametrize(
    "sent",
    [b"GET / HTTP/1.0\r\n\r\n", b"{}\n", b"\x00\xff\n", b"[" * 60_000 + b"\n", b"x" * (REQUEST_MAX + 1), b"\n"],
    ids=["http", "empty", "binary", "nested", "endless", "blank"],
)
def test_nonsense_gets_one_error_and_the_door(path: Path, sent: bytes) -> None:
    with serving(path):
        answers = talk(path, sent)
        assert len(answers) == 1
        assert answers[0]["ok"] is False
        assert answers[0]["error"]["exit_code"] == ExitCode.INVALID
        assert client.call(path, "echo") == {}


def test_a_request_without_its_end_is_refused(path: Path) -> None:
    with serving(path), socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(5)
        raw.connect(str(path))
        raw.sendall(b'{"version": 1')
        raw.shutdown(socket.SHUT_WR)
        assert b"without a line break" in raw.recv(65536)


def test_a_client_that_sends_nothing_is_shown_out(path: Path) -> None:
    with serving(path, idle_timeout_s=0.05):
        (answer,) = talk(path, b"")
    assert "no request came within" in answer["error"]["message"]


def test_a_client_that_does_not_read_is_dropped(path: Path) -> None:
    closed = threading.Event()

    async def flood(args: dict[str, Any]) -> AsyncGenerator[Any, None]:
        try:
            while True:
                yield "x" * 65536
        finally:
            closed.set()

    async def main() -> None:
        async with Server(path, {}, streams={"flood": flood}, idle_timeout_s=0.1):
            with socket.socket(socket.AF_UNIX) as raw:
                raw.connect(str(path))
                raw.sendall(b'{"version": 1, "op": "flood"}\n')
                assert await asyncio.to_thread(closed.wait, 5)

    asyncio.run(main())


def test_connections_are_bounded(path: Path) -> None:
    with serving(path):
        held = []
        try:
            for _ in range(CONNECTIONS_MAX):
                raw = socket.socket(socket.AF_UNIX)
                held.append(raw)
                raw.connect(str(path))
                raw.sendall(b'{"version": 1, "op": "echo"}\n')
                raw.settimeout(5)
                raw.recv(100)
            (answer,) = talk(path, b"")
            assert "has 64 control connections" in answer["error"]["message"]
        finally:
            for raw in held:
                raw.close()


# The socket itself


def test_the_socket_is_for_root_and_its_group(path: Path) -> None:
    with serving(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert not path.exists()


def test_the_socket_of_an_agent_that_is_gone_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with serving(path):
        assert client.call(path, "echo") == {}


def test_another_agent_is_not_replaced(path: Path) -> None:
    with serving(path):
        with pytest.raises(RefusedError, match="another agent listens"):
            asyncio.run(Server(path, {}).start())
        assert client.call(path, "echo") == {}


def test_a_file_in_the_way_is_left_alone(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(RefusedError, match="is not a socket"):
        asyncio.run(Server(path, {}).start())
    assert path.read_text() == "precious"


def test_without_an_agent_the_error_says_how_to_start_one(path: Path) -> None:
    with pytest.raises(UnreachableError, match="systemctl start bulkhead"):
        client.call(path, "echo")


def test_an_agent_that_hangs_is_given_up(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        with pytest.raises(UnreachableError, match="did not answer in time"):
            client.call(path, "echo", timeout_s=0.05)


# Who may


def test_the_peer_is_who_the_kernel_says() -> None:
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        peer = peer_of(one)
    assert (peer.pid, peer.uid) == (os.getpid(), os.geteuid())
    assert os.getegid() in peer.gids


def test_reading_is_for_root_and_the_group() -> None:
    assert Peer(1, 0, frozenset()).may_read(50)
    assert Peer(1, 1000, frozenset({50})).may_read(50)
    assert not Peer(1, 1000, frozenset({51})).may_read(50)


def test_changing_is_for_root_of_this_user_namespace() -> None:
    assert Peer(os.getpid(), 0, frozenset()).may_change()
    assert not Peer(os.getpid(), 1000, frozenset({0})).may_change()


def test_root_whose_namespace_cannot_be_seen_may_not_change() -> None:
    assert not Peer(0, 0, frozenset()).may_change()
    assert not Peer(2**22 + 1, 0, frozenset()).may_change()


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes its user")

ASK = """
import os, sys
from pathlib import Path
from bulkhead.control import client
from bulkhead.errors import BulkheadError
path, op, uid, groups = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), [int(g) for g in sys.argv[4].split(",") if g]
if uid:
    os.setgroups(groups); os.setgid(uid); os.setuid(uid)
try:
    print("answered", client.call(path, op))
except BulkheadError as error:
    print(int(error.exit_code), error)
"""


def ask_as(path: Path, op: str, uid: int, groups: str = "", prefix: tuple[str, ...] = ()) -> str:
    command = [*prefix, sys.executable, "-c", ASK, str(path), op, str(uid), groups]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=20, check=False)
    return done.stdout + done.stderr


@contextmanager
def reachable() -> Iterator[Path]:
    """A path that other users can get to."""
    with tempfile.TemporaryDirectory(prefix="bulkhead-test-") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory) / "control.sock"


@needs_root
def test_a_stranger_cannot_open_the_socket() -> None:
    with reachable() as path, serving(path):
        assert "is not yours to open" in ask_as(path, "echo", 4242)


@needs_root
def test_a_member_of_the_group_may_read_but_not_change() -> None:
    with reachable() as path, serving(path, group=4243):
        assert ask_as(path, "echo", 4242, "4243") == "answered {}\n"
        assert "only root may ask" in ask_as(path, "change", 4242, "4243")


@needs_root
def test_a_stranger_who_gets_in_is_refused() -> None:
    with reachable() as path, serving(path):
        path.chmod(0o666)
        assert "only root and members" in ask_as(path, "echo", 4242)


@needs_root
def test_root_of_another_user_namespace_may_not_change() -> None:
    with reachable() as path, serving(path):
        answer = ask_as(path, "change", 0, prefix=("unshare", "--user", "--map-root-user"))
        assert "only root may ask" in answer
