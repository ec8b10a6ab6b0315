"""An isolated workload tries to get out by what it opened before, by every kind of socket, and by way of others."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bulkhead.abi import Capacity
from bulkhead.daemon.quarantine import Isolation, Quarantine
from bulkhead.errors import RefusedError, UsageError
from lab.puppet import Puppet

from .conftest import FRIEND, FRIEND6, Arena, listen, outcome

SECRET, END = b"the-secret-of-the-isolated", b"that-was-all"
ETH_P_ALL = 3
PREPARED = f"""
import array
SECRET = {SECRET!r}
web_udp = socket.socket(2, 2); web_udp.connect(('{FRIEND}', 7000)); web_udp.send(b'x')
web_tcp = socket.create_connection(('{FRIEND}', 7000), 1); web_tcp.send(b'x')
"""


@pytest.fixture
def isolated(arena: Arena, web: Puppet, db: Puppet) -> Iterator[Puppet]:
    """`web`, isolated while it holds an open conversation and a connected datagram socket."""
    listen(db, 5432)
    with arena.at_peer(kind=socket.SOCK_STREAM) as listener, arena.at_peer() as inbox:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((FRIEND, 7000))
        listener.listen()
        inbox.bind((FRIEND, 7000))
        web.do(PREPARED)
        arena.host.call("quarantine", workload="t/web", reason="drill")
        yield web
        arena.host.call("release", workload="t/web")


@contextmanager
def nothing_leaves(arena: Arena) -> Iterator[None]:
    """No frame with the secret in it arrives at the peer's end of the wire, whatever the sender is told."""
    with arena.at_peer(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("eth0", ETH_P_ALL))
        yield
        arena.send_frames(b"\xff" * 12 + b"\x88\xb5" + END)
        while END not in (frame := wire.recv(65535)):
            assert SECRET not in frame


@pytest.mark.parametrize(
    "code",
    [
        f"socket.create_connection(('{FRIEND}', 7000), 0.5)",
        "socket.create_connection(('127.0.0.1', 5432), 0.5)",
        f"socket.socket(2, 2).sendto(SECRET, ('{FRIEND}', 7000))",
        f"socket.socket(10, 2).sendto(SECRET, ('{FRIEND6}', 7000))",
    ],
)
def test_no_call_of_an_isolated_workload_succeeds(isolated: Puppet, code: str) -> None:
    assert outcome(isolated, code) == "EPERM"


@pytest.mark.parametrize(
    "code",
    [
        "web_udp.send(SECRET)",
        "web_tcp.send(SECRET)",
        f"socket.socket(2, 3, 1).sendto(bytes.fromhex('0800f7ff00000000') + SECRET, ('{FRIEND}', 0))",
        f"socket.socket(2, 3, 253).sendto(SECRET, ('{FRIEND}', 0))",
        f"socket.socket(10, 3, 253).sendto(SECRET, ('{FRIEND6}', 0))",
    ],
)
def test_nothing_leaves_by_what_was_opened_before_or_by_raw_sockets(arena: Arena, isolated: Puppet, code: str) -> None:
    with nothing_leaves(arena):
        outcome(isolated, code)
        outcome(isolated, code)  # the first may only have been told of an earlier error


def test_a_socket_that_an_isolated_workload_hands_to_another_is_still_its_own(arena: Arena, isolated: Puppet) -> None:
    path = arena.host.directory / "handed"
    with arena.another("plain") as other, nothing_leaves(arena):
        other.do(f"inn = socket.socket(socket.AF_UNIX, 2); inn.bind({str(path)!r})")
        isolated.do("fds = array.array('i', [web_udp.fileno()])")
        isolated.do(
            "out = socket.socket(socket.AF_UNIX, 2); "
            f"out.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)], 0, {str(path)!r})"
        )
        other.do("got = socket.recv_fds(inn, 1, 1)[1][0]; handed = socket.socket(fileno=got)")
        for _ in range(2):
            outcome(other, f"handed.send({SECRET!r})")


def test_no_more_are_isolated_than_the_kernel_can_hold(tmp_path: Path) -> None:
    """The list would be kept, and no agent could start with it."""
    listed = [Isolation(f"t/w{n}", n + 10, time.time(), "drill", 0) for n in range(Capacity.QUARANTINED)]
    path = tmp_path / "quarantine.json"
    path.write_text(json.dumps([{name: getattr(one, name) for name in one.__slots__} for one in listed]))
    quarantine = Quarantine(path)
    quarantine.add(listed[0])
    with pytest.raises(UsageError, match="no more than 1024 workloads"):
        quarantine.add(Isolation("t/one-more", 5000, time.time(), "drill", 0))
    assert len(Quarantine(path)) == Capacity.QUARANTINED


@pytest.mark.parametrize("content", ["", "[", "null", '[{"workload": "t/web"}]', "[1]", "\udcff"])
def test_a_list_of_the_isolated_that_cannot_be_read_releases_nobody(tmp_path: Path, content: str) -> None:
    path = tmp_path / "quarantine.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    quarantine = Quarantine(path)
    assert "mend or remove it" in quarantine.problem
    with pytest.raises(RefusedError, match="mend or remove it"):
        quarantine.add(Isolation("t/web", 5000, time.time(), "drill", 0))
    assert path.read_bytes() == content.encode("utf-8", "surrogateescape")
