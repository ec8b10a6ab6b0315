"""SOCK_DIAG on this kernel, with real sockets in a network namespace of their own."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Self

import pytest

from bulkhead.errors import KernelError
from bulkhead.kernel.diag import TALKING, SocketDiag, SocketEntry, SocketState
from lab.cgroup import cgroup_subtree, child, read_line
from lab.loopback import private_loopback
from lab.storage import sk_storage_map

SO_COOKIE = 57


@pytest.fixture
def diag() -> Iterator[SocketDiag]:
    with private_loopback(), SocketDiag() as one:
        yield one


def cookie_of(one: socket.socket) -> int:
    return int(struct.unpack("=Q", one.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0])


def entry_of(diag: SocketDiag, one: socket.socket) -> SocketEntry:
    entry = diag.find(cookie_of(one))
    assert entry is not None
    return entry


class Conversation:
    """A listener, one conversation through it, and both of its ends."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.listener = socket.create_server((address, 0), family=family)
        self.opener = socket.create_connection(self.listener.getsockname()[:2])
        self.accepted, _ = self.listener.accept()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ignored: object) -> None:
        for one in (self.listener, self.opener, self.accepted):
            one.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_dump_tells_both_ends_and_the_listener(diag: SocketDiag, address: str) -> None:
    with Conversation(address) as talk:
        dump = diag.dump()
        assert dump.complete
        by_cookie = {entry.socket_id.cookie: entry for entry in dump.sockets}
        assert set(by_cookie) == {cookie_of(one) for one in (talk.listener, talk.opener, talk.accepted)}

        opener = by_cookie[cookie_of(talk.opener)]
        assert opener.state is SocketState.ESTABLISHED
        assert opener.family == talk.opener.family
        assert str(opener.socket_id.source) == str(opener.socket_id.destination) == address
        assert opener.socket_id.source_port == talk.opener.getsockname()[1]
        assert opener.socket_id.destination_port == talk.listener.getsockname()[1]
        assert opener.inode == os.fstat(talk.opener.fileno()).st_ino
        assert opener.uid == os.geteuid()
        assert by_cookie[cookie_of(talk.listener)].state is SocketState.LISTEN


def test_dump_of_some_states_leaves_out_the_others(diag: SocketDiag) -> None:
    with Conversation() as talk:
        cookies = {entry.socket_id.cookie for entry in diag.dump(states=TALKING).sockets}
        assert cookies == {cookie_of(talk.opener), cookie_of(talk.accepted)}


def test_dump_reaches_past_one_netlink_message(diag: SocketDiag) -> None:
    ones = [socket.create_server(("127.0.0.1", 0)) for _ in range(700)]
    try:
        assert {entry.socket_id.cookie for entry in diag.dump().sockets} == {cookie_of(one) for one in ones}
    finally:
        for one in ones:
            one.close()


def test_dump_shows_a_conversation_that_nobody_has_accepted_yet(diag: SocketDiag) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as opener:
        port = opener.getsockname()[1]
        (queued,) = (entry for entry in diag.dump().sockets if entry.socket_id.destination_port == port)
        assert queued.state is SocketState.ESTABLISHED
        assert queued.inode == 0


def test_dump_of_datagram_sockets_by_protocol(diag: SocketDiag) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        (entry,) = diag.dump(socket.IPPROTO_UDP).sockets
        assert entry.socket_id.cookie == cookie_of(one)


def test_dump_of_an_unlisted_protocol_is_an_error(diag: SocketDiag) -> None:
    with pytest.raises(KernelError) as caught:
        diag.dump(255)
    assert caught.value.errno == errno.ENOENT


def test_dump_names_the_control_group_in_which_a_socket_was_made(diag: SocketDiag) -> None:
    code = "import socket; s = socket.create_server(('127.0.0.1', 0)); print('ready', flush=True); input()"
    with cgroup_subtree() as root, child(code, cgroup=root) as process:
        assert read_line(process) == "ready"
        (entry,) = diag.dump().sockets
        assert entry.cgroup_id == root.stat().st_ino


def test_dump_carries_the_storage_of_each_socket(diag: SocketDiag) -> None:
    with Conversation("::1") as talk, sk_storage_map(128) as storage:
        value = bytes(range(128))
        storage.update(struct.pack("=i", talk.opener.fileno()), value)
        dump = diag.dump(storage_map_fd=storage.fd.fileno())
        stored = {entry.socket_id.cookie: entry.storage for entry in dump.sockets}
        assert stored == {
            cookie_of(talk.opener): value,
            cookie_of(talk.accepted): None,
            cookie_of(talk.listener): None,
        }


def test_destroy_ends_exactly_one_end(diag: SocketDiag) -> None:
    with Conversation() as talk, Conversation() as bystander:
        assert diag.destroy(entry_of(diag, talk.opener).socket_id)
        with pytest.raises(ConnectionAbortedError):
            talk.opener.recv(1)
        with pytest.raises(ConnectionResetError):
            talk.accepted.recv(1)
        bystander.opener.sendall(b"x")
        assert bystander.accepted.recv(1) == b"x"


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_destroy_of_a_socket_that_is_gone_is_false(diag: SocketDiag, address: str) -> None:
    with Conversation(address) as talk:
        socket_id = entry_of(diag, talk.accepted).socket_id
        assert diag.destroy(socket_id)
        assert not diag.destroy(socket_id)


def test_destroy_spares_another_socket_on_the_same_addresses(diag: SocketDiag) -> None:
    with Conversation() as talk:
        socket_id = entry_of(diag, talk.opener).socket_id
        assert not diag.destroy(replace(socket_id, cookie=socket_id.cookie + 1_000_000))
        talk.opener.sendall(b"x")
        assert talk.accepted.recv(1) == b"x"


def test_destroy_takes_the_mapped_addresses_of_an_event(diag: SocketDiag) -> None:
    with Conversation() as talk:
        socket_id = entry_of(diag, talk.opener).socket_id
        assert isinstance(socket_id.source, IPv4Address)
        mapped = IPv6Address(f"::ffff:{socket_id.source}")
        assert diag.destroy(replace(socket_id, source=mapped, destination=mapped))


def test_destroy_finds_an_ipv6_socket_that_talks_ipv4(diag: SocketDiag) -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as opener, listener.accept()[0] as accepted:
            assert diag.destroy(entry_of(diag, accepted).socket_id)
            with pytest.raises(ConnectionResetError):
                opener.recv(1)


@pytest.mark.parametrize("cookie", [0, 2**64 - 1])
def test_destroy_refuses_cookies_that_mean_any_socket(diag: SocketDiag, cookie: int) -> None:
    with Conversation() as talk:
        socket_id = entry_of(diag, talk.opener).socket_id
        with pytest.raises(KernelError):
            diag.destroy(replace(socket_id, cookie=cookie))


def test_destroy_of_a_datagram_socket(diag: SocketDiag) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        one.connect(("127.0.0.1", 9))
        (entry,) = diag.dump(socket.IPPROTO_UDP).sockets
        assert diag.destroy(entry.socket_id, socket.IPPROTO_UDP)
        with pytest.raises(ConnectionAbortedError):
            one.recv(1)
