"""A program's own sockets, used in every order that might leave a verdict where it no longer belongs."""

from __future__ import annotations

import socket

import pytest

from .conftest import FRIEND, OURS, STRANGER, Arena, got, inbox, listen, outcome

DENIED = ("policy", "egress", "deny")
LOCAL = "127.0.0.1"
STEER = """
import ctypes, struct
prog = ctypes.create_string_buffer(struct.pack('HBBI', 0x06, 0, 0, {index}))
{name}.setsockopt(1, 51, struct.pack('HxxxxxxQ', 1, ctypes.addressof(prog)))
"""
"""Attach a program that hands everything for a group of sockets to one of them; takes no privilege."""


SPLICE = (
    "f = os.memfd_create('f'); os.write(f, DATA); os.lseek(f, 0, 0); "
    "r, w = os.pipe(); os.splice(f, w, 99); os.splice(r, c.fileno(), 99)"
)


def shared_listener(name: str, kind: int, port: int) -> str:
    end = f"{name}.listen(); {name}.settimeout(0.15)" if kind == socket.SOCK_STREAM else f"{name}.settimeout(0.15)"
    return (
        f"{name} = socket.socket(2, {kind}); {name}.setsockopt(1, socket.SO_REUSEPORT, 1); "
        f"{name}.bind(('0.0.0.0', {port})); {end}"
    )


def test_a_listener_that_steals_a_port_by_steering_gets_no_conversation_over_the_wire(arena: Arena, db, rogue) -> None:
    db.do(shared_listener("s", socket.SOCK_STREAM, 5432))
    rogue.do(shared_listener("s", socket.SOCK_STREAM, 5432) + STEER.format(name="s", index=1))
    for _ in range(8):
        with arena.at_peer(kind=socket.SOCK_STREAM) as peer:
            peer.settimeout(0.1)
            peer.bind((FRIEND, 0))
            with pytest.raises(TimeoutError):
                peer.connect((OURS, 5432))
    assert outcome(rogue, "s.accept()") == "timeout"


def test_a_listener_that_steals_a_port_by_steering_gets_no_conversation_on_loopback(
    arena: Arena, db, rogue, web
) -> None:
    db.do(shared_listener("s", socket.SOCK_STREAM, 5432))
    rogue.do(shared_listener("s", socket.SOCK_STREAM, 5432) + STEER.format(name="s", index=1))
    outcomes = {
        outcome(web, "c = socket.socket(); c.settimeout(0.1); c.connect(('127.0.0.1', 5432))") for _ in range(8)
    }
    assert outcomes <= {"EPERM", "timeout"}
    assert outcome(rogue, "s.accept()") == "timeout"


def test_a_port_shared_without_steering_gives_each_its_own(arena: Arena, db, rogue) -> None:
    db.do(shared_listener("s", socket.SOCK_DGRAM, 5300))
    rogue.do(shared_listener("s", socket.SOCK_DGRAM, 5300))
    with arena.counting() as refused:
        for _ in range(30):
            with arena.at_peer() as peer:
                peer.bind((FRIEND, 0))
                peer.sendto(b"x", (OURS, 5300))
        assert got(rogue, "s") == 0
    assert got(db, "s") + refused[("policy", "ingress", "deny")] == 30
    assert sum(refused.values()) == refused[("policy", "ingress", "deny")] > 0


def test_steering_datagrams_between_two_workloads_of_one_user_is_a_stated_limit(arena: Arena, db, rogue) -> None:
    db.do(shared_listener("s", socket.SOCK_DGRAM, 5300))
    rogue.do(shared_listener("s", socket.SOCK_DGRAM, 5300) + STEER.format(name="s", index=1))
    for _ in range(30):
        with arena.at_peer() as peer:
            peer.bind((FRIEND, 0))
            peer.sendto(b"x", (OURS, 5300))
    assert got(rogue, "s") > 0


def test_address_translation_behind_the_hook_opens_no_stream(arena: Arena, db) -> None:
    listen(db, 5432)
    rules = "type nat hook prerouting priority -100; }; add rule ip sly pre tcp dport 80 redirect to :5432"
    arena.host.run("", ["nft", "add table ip sly; add chain ip sly pre { " + rules])
    try:
        with arena.at_peer(kind=socket.SOCK_STREAM) as peer:
            peer.settimeout(0.4)
            peer.bind((STRANGER, 0))
            with pytest.raises(TimeoutError):
                peer.connect((OURS, 80))
        assert outcome(db, "listener.accept()") == "timeout"
    finally:
        arena.host.run("", ["nft", "delete table ip sly"])


# The same socket again


def test_a_socket_that_disconnects_is_judged_anew(arena: Arena, db, rogue, web) -> None:
    listen(db, 5432)
    listen(rogue, 5433)
    web.do("c = socket.create_connection(('127.0.0.1', 5432), 1)")
    assert web.do("__import__('ctypes').CDLL(None).connect(c.fileno(), bytes(16), 16)") == 0
    with arena.counting() as refused:
        assert outcome(web, "c.connect(('127.0.0.1', 5433))") == "EPERM"
    assert refused == {DENIED: 1}
    assert outcome(rogue, "listener.accept()") == "timeout"
    assert outcome(web, "c.connect(('127.0.0.1', 5432)); c.send(b'again')") == "ok"


def test_a_datagram_socket_that_changes_its_peer_is_judged_anew(arena: Arena, db, rogue, web) -> None:
    inbox(db, 5300)
    inbox(rogue, 5301)
    web.do("c = socket.socket(2, 2); c.connect(('127.0.0.1', 5300)); c.send(b'x')")
    assert got(db) == 1
    for step in ("c.connect(('127.0.0.1', 5301)); c.send(b'x')", "c.sendto(b'x', ('127.0.0.1', 5301))"):
        with arena.counting() as refused:
            outcome(web, step)
        assert refused == {DENIED: 1}
        assert got(rogue) == 0


def test_a_connected_datagram_socket_may_not_send_elsewhere(arena: Arena, db, rogue, web) -> None:
    inbox(db, 5300)
    inbox(rogue, 5301)
    web.do("c = socket.socket(2, 2); c.connect(('127.0.0.1', 5300)); c.send(b'x')")
    with arena.counting() as refused:
        for _ in range(5):
            outcome(web, "c.sendto(b'x', ('127.0.0.1', 5301))")
            outcome(web, "c.sendmsg([b'x'], [], 0, ('127.0.0.2', 5301))")
    assert refused == {DENIED: 10}
    assert got(rogue) == 0


def test_one_socket_with_many_peers_reaches_exactly_those_that_policy_names(arena: Arena, db, rogue, web) -> None:
    inbox(db, 5300)
    inbox(rogue, 5300, "127.0.0.9")
    web.do("c = socket.socket(2, 2)")
    with arena.counting() as refused:
        web.do(
            """
for turn in range(50):
    for target in ('127.0.0.1', '127.0.0.9', '10.77.0.1', '127.0.0.2'):
        try: c.sendto(b'x', (target, 5300))
        except PermissionError: pass
"""
        )
        assert got(db) == 150
        assert got(rogue) == 0
    assert refused == {DENIED: 50}


def test_a_tuple_used_again_by_another_identity_starts_from_nothing(arena: Arena, db, rogue, web) -> None:
    listen(db, 5432)
    bound = "c = socket.socket(); c.setsockopt(1, 2, 1); c.bind(('127.0.0.1', 40123)); c.settimeout(0.3); "
    web.do(bound + "c.connect(('127.0.0.1', 5432)); c.setsockopt(1, 13, struct.pack('ii', 1, 0)); c.close()")
    with arena.counting() as refused:
        assert outcome(rogue, bound + "c.connect(('127.0.0.1', 5432))") == "EPERM"
    assert refused == {DENIED: 1}


def test_a_live_conversation_lends_its_tuple_to_nobody(arena: Arena, db, rogue, web) -> None:
    listen(db, 5432)
    share = "c = socket.socket(); c.setsockopt(1, 15, 1); c.setsockopt(1, 2, 1); c.bind(('127.0.0.1', 40124)); "
    web.do(share + "c.connect(('127.0.0.1', 5432))")
    assert outcome(rogue, share + "c.settimeout(0.3); c.connect(('127.0.0.1', 5432))") in ("EPERM", "EADDRNOTAVAIL")
    assert outcome(rogue, share + "c.listen()") in ("ok", "EADDRINUSE")
    assert outcome(web, "c.send(b'mine')") == "ok"


# Ways of calling


@pytest.mark.parametrize(
    "how",
    [
        "c = socket.socket(10); c.settimeout(0.3); c.connect(('::ffff:127.0.0.1', PORT))",
        "c = socket.socket(10); c.settimeout(0.3); c.connect(('::ffff:0.0.0.0', PORT))",
        "c = socket.socket(); c.settimeout(0.3); c.connect(('0.0.0.0', PORT))",
        "c = socket.socket(); c.settimeout(0.3); c.connect(('127.9.9.9', PORT))",
        "c = socket.socket(); c.settimeout(0.3); c.connect(('10.77.0.1', PORT))",
        "c = socket.socket(2, 1, 262); c.settimeout(0.3); c.connect(('127.0.0.1', PORT))",
        "c = socket.socket(); c.sendto(b'early', socket.MSG_FASTOPEN, ('127.0.0.1', PORT))",
        "c = socket.socket(); c.settimeout(0.3); c.setsockopt(1, 5, 1); c.connect(('127.0.0.1', PORT))",
        "c = socket.socket(); c.setsockopt(1, 25, b'lo\\0'); c.settimeout(0.3); c.connect(('127.0.0.1', PORT))",
    ],
)
def test_every_way_to_connect_gives_the_same_verdict(arena: Arena, db, rogue, web, how: str) -> None:
    listen(db, 5432)
    assert outcome(web, how.replace("PORT", "5432")) == "ok"
    with arena.counting() as refused:
        assert outcome(rogue, how.replace("PORT", "5432")) in ("EPERM", "timeout")
        rogue.do("c.close()")
    assert refused[DENIED] >= 1
    assert set(refused) == {DENIED}
    assert outcome(db, "listener.accept(); listener.accept()") == "timeout"


@pytest.mark.parametrize(
    "how",
    [
        "c.send(DATA)",
        "c.setsockopt(1, 60, 1); c.send(DATA, 0x4000000)",
        "c.sendmsg([DATA[:9], DATA[9:]])",
        "f = os.memfd_create('f'); os.write(f, DATA); os.sendfile(c.fileno(), f, 0, len(DATA))",
        SPLICE,
    ],
    ids=["send", "zerocopy", "sendmsg", "sendfile", "splice"],
)
def test_every_way_to_send_is_cut_with_its_conversation(arena: Arena, db, web, how: str) -> None:
    how = "DATA = b'sixteen letters.'; " + how
    listen(db, 5432)
    web.do("c = socket.create_connection(('127.0.0.1', 5432), 1)")
    db.do("k, _ = listener.accept(); k.settimeout(1)")
    web.do(how)
    assert db.do("len(k.recv(99))") == 16
    with arena.policy(arena_without_rules()):
        outcome(web, how)
        assert outcome(db, "k.settimeout(0.2); assert not k.recv(99)") in (
            "ok",
            "timeout",
            "ECONNABORTED",
            "ECONNRESET",
        )


def test_datagrams_through_segmentation_offload_are_judged_as_one_and_passed_as_many(arena: Arena, web, rogue) -> None:
    with arena.at_peer() as target:
        target.bind((FRIEND, 7000))
        for one in (web, rogue):
            outcome(
                one, "c = socket.socket(2, 2); c.setsockopt(17, 103, 1000); c.sendto(bytes(5000), ('10.77.0.2', 7000))"
            )
        for _ in range(5):
            assert len(target.recv(9999)) == 1000
        target.settimeout(0.2)
        with pytest.raises(TimeoutError):
            target.recv(9999)


def test_an_accepted_socket_speaks_for_the_listener_whoever_accepts(arena: Arena, db, rogue, web) -> None:
    """Sockets are judged, not the processes that hold them: passing one passes what it may do. A stated limit."""
    listen(db, 5432)
    path = str(arena.host.directory / "pass.sock")
    rogue.do(f"u = socket.socket(1); u.bind({path!r}); u.listen()")
    db.do(f"p = socket.socket(1); p.connect({path!r}); socket.send_fds(p, [b'x'], [listener.fileno()])")
    rogue.do("p, _ = u.accept(); _, fds, _, _ = socket.recv_fds(p, 9, 1); s = socket.socket(fileno=fds[0])")
    web.do("c = socket.create_connection(('127.0.0.1', 5432), 1); c.send(b'hello')")
    assert rogue.do("s.accept()[0].recv(9).decode()") == "hello"


def test_a_socket_that_a_program_hands_out_gives_no_right_to_open_another(arena: Arena, db, rogue, web) -> None:
    listen(db, 5432)
    path = str(arena.host.directory / "pass2.sock")
    rogue.do(f"u = socket.socket(1); u.bind({path!r}); u.listen()")
    web.do(f"c = socket.create_connection(('127.0.0.1', 5432), 1); p = socket.socket(1); p.connect({path!r})")
    web.do("socket.send_fds(p, [b'x'], [c.fileno()])")
    rogue.do("p, _ = u.accept(); _, fds, _, _ = socket.recv_fds(p, 9, 1); s = socket.socket(fileno=fds[0])")
    assert outcome(rogue, "s.send(b'through a borrowed socket')") == "ok"
    assert outcome(rogue, "n = socket.socket(); n.settimeout(0.3); n.connect(('127.0.0.1', 5432))") == "EPERM"


def test_udp_lite_is_no_way_around_udp(arena: Arena, db, rogue) -> None:
    db.do("inbox = socket.socket(2, 2, 136); inbox.bind(('0.0.0.0', 5300))")
    with arena.counting() as refused:
        outcome(rogue, "l = socket.socket(2, 2, 136); l.sendto(b'x', ('127.0.0.1', 5300))")
        with arena.at_peer(proto=136) as peer:
            peer.bind((FRIEND, 0))
            peer.sendto(b"x", (OURS, 5300))
        assert got(db) == 0
    assert sum(refused.values()) == 2
    assert {verdict for _, _, verdict in refused} == {"deny"}


def arena_without_rules() -> str:
    return """apiVersion: bulkhead/v1alpha1
kind: Policy
metadata: {name: t}
workloads:
  web: {match: {cgroup: /t/web}, mode: enforce}
  db: {match: {cgroup: /t/db}, mode: enforce}
"""
