"""The agent's control socket: who may ask, and what nonsense does to it."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Arena, outcome

CONNECT = (
    "s = socket.socket(1); s.settimeout(2); s.connect({path!r}); "
    "s.sendall({request!r}); answer = s.recv(1 << 16).decode()"
)
STATUS = b'{"v": 1, "op": "status", "args": {}}\n'


@pytest.fixture
def path(arena: Arena) -> Iterator[Path]:
    """The socket, with every directory above it open to all, and its own mode loosened by a careless administrator."""
    found = next(one for one in arena.host.run_dir.iterdir() if stat.S_ISSOCK(one.stat().st_mode))
    loosened = [arena.host.directory, arena.host.run_dir]
    before = [one.stat().st_mode for one in loosened]
    for one in loosened:
        one.chmod(0o755)
    yield found
    for one, mode in zip(loosened, before, strict=True):
        one.chmod(stat.S_IMODE(mode))


def test_only_root_and_its_group_may_open_the_socket(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o660


@pytest.mark.parametrize("careless", [False, True])
@pytest.mark.parametrize("namespace", [False, True])
def test_another_user_learns_nothing_even_as_root_of_a_namespace(
    arena: Arena, rogue, path: Path, careless: bool, namespace: bool
) -> None:
    rogue.do("os.setgroups([]); os.setgid(65534); os.setuid(65534); answer = ''")
    assert rogue.do("__import__('ctypes').CDLL(None).prctl(4, 1, 0, 0, 0)") == 0
    if namespace:
        assert rogue.do("__import__('ctypes').CDLL(None).unshare(0x10000000)") == 0
        rogue.do("open('/proc/self/setgroups', 'w').write('deny'); open('/proc/self/uid_map', 'w').write('0 65534 1')")
        assert rogue.do("os.getuid()") == 0
    if careless:
        path.chmod(0o666)
    try:
        result = outcome(rogue, CONNECT.format(path=str(path), request=STATUS))
        said = str(rogue.do("answer"))
    finally:
        path.chmod(0o660)
    assert result == "EACCES" or (careless and "commit" not in said)


@pytest.mark.parametrize(
    "request_",
    [
        b"\x00" * 4096,
        b"\xff\xfe\n",
        b"{" * 100_000 + b"\n",
        b'{"v": 1, "op": "status"' + b" " * 3_000_000,
        b'{"v": 1, "op": ["status"], "args": {}}\n',
        b'{"v": 1, "op": "drops", "args": {"limit": -1, "verdict": {"a": []}, "since": "x"}}\n',
        b'{"v": 1, "op": "why", "args": {"from": {"$": 1}, "to": null}}\n',
        b'{"v": 1, "op": "__class__", "args": {}}\n',
        b'{"v": 1e400, "op": "status", "args": {}}\n',
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=range(10),
)
def test_nonsense_is_answered_once_or_not_at_all_and_the_next_question_is_answered(
    arena: Arena, path: Path, request_: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(path))
        try:
            client.sendall(request_)
            client.shutdown(socket.SHUT_WR)
            while client.recv(1 << 16):
                continue
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert arena.host.ask("status")["commit"]


def test_clients_that_never_ask_do_not_keep_others_from_asking(arena: Arena, path: Path) -> None:
    idle = []
    for _ in range(40):
        one = socket.socket(socket.AF_UNIX)
        one.connect(str(path))
        idle.append(one)
    assert arena.host.ask("status")["commit"]
    for one in idle:
        one.close()
    assert os.path.exists(path)
