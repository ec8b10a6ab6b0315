"""One datagram for many: there is no single identity to judge by, so whoever is enforced gets none."""

from __future__ import annotations

import socket

import pytest

from .conftest import FRIEND, OURS, STRANGER, Arena, got, inbox, outcome

GROUP = "239.1.1.1"
REFUSED = ("multicast", "ingress", "deny")
JOIN = f"inbox.setsockopt(0, 35, socket.inet_aton('{GROUP}') + socket.inet_aton('{OURS}'))"


@pytest.mark.parametrize("source", [STRANGER, FRIEND])
@pytest.mark.parametrize("target", [GROUP, "10.77.0.255"])
def test_a_group_or_broadcast_off_the_wire_reaches_no_enforced_workload(
    arena: Arena, db, source: str, target: str
) -> None:
    inbox(db, 5300, options=JOIN)
    with arena.at_peer() as peer, arena.counting() as refused:
        peer.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(source))
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        peer.bind((source, 0))
        peer.sendto(b"x", (target, 5300))
        assert got(db) == 0
    assert refused == {REFUSED: 1}


def test_the_copy_that_a_group_makes_for_this_machine_is_judged_as_what_it_is(arena: Arena, db, plain) -> None:
    inbox(db, 5300, options=JOIN)
    plain.do(f"g = socket.socket(2, 2); g.setsockopt(0, 32, socket.inet_aton('{OURS}')); g.setsockopt(1, 6, 1)")
    with arena.counting() as refused:
        for target in (GROUP, "10.77.0.255"):
            assert outcome(plain, f"g.sendto(b'x', ({target!r}, 5300))") == "ok"
        assert got(db) == 0
    assert refused == {REFUSED: 2, ("policy", "egress", "would-deny"): 2}


@pytest.mark.parametrize("target", ["127.255.255.255", GROUP])
@pytest.mark.parametrize("last", ["db", "rogue"])
def test_a_broadcast_on_loopback_reaches_nobody_beside_whom_policy_names(
    arena: Arena, db, rogue, web, target: str, last: str
) -> None:
    join = f"inbox.setsockopt(0, 35, socket.inet_aton('{GROUP}') + socket.inet_aton('127.0.0.1'))"
    for one in (rogue, db) if last == "db" else (db, rogue):
        inbox(one, 5300, options=join)
    web.do("b = socket.socket(2, 2); b.setsockopt(1, 6, 1); b.setsockopt(0, 32, socket.inet_aton('127.0.0.1'))")
    outcome(web, f"b.sendto(b'x', ({target!r}, 5300))")
    assert (got(db), got(rogue)) == (0, 0)


def test_membership_of_a_group_is_kept_up_under_its_name(arena: Arena, db) -> None:
    with arena.counting() as refused:
        inbox(db, 5300, options=JOIN)
        db.do("inbox.close()")
    assert refused == {}
