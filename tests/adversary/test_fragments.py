"""Datagrams in pieces: what cannot be judged alone goes the way of what could."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6

from .conftest import FRIEND, FRIEND6, OURS, OURS6, STRANGER, STRANGER6, Arena, framed, got, inbox, listen, outcome

DENIED = ("policy", "ingress", "deny")
HEADLESS = ("fragment", "ingress", "deny")
MALFORMED = ("malformed", "ingress", "deny")


def pieces(source: str, number: int, size: int = 4000, port: int = 5300) -> list[Any]:
    if ":" in source:
        whole = IPv6(src=source, dst=OURS6) / IPv6ExtHdrFragment(id=number) / UDP(sport=4000, dport=port) / bytes(size)
        return list(fragment6(whole, 1400))
    return list(fragment(IP(src=source, dst=OURS, id=number) / UDP(sport=4000, dport=port) / bytes(size), 1400))


def send(arena: Arena, *packets: Any) -> None:
    arena.send_frames(*(framed(arena, packet) for packet in packets))


@pytest.mark.parametrize("friend, stranger", [(FRIEND, STRANGER), (FRIEND6, STRANGER6)])
def test_a_datagram_in_pieces_is_judged_by_its_first_and_every_piece_is_counted(
    arena: Arena, db, friend: str, stranger: str
) -> None:
    inbox(db, 5300, "::")
    with arena.counting() as refused:
        send(arena, *pieces(friend, 30101))
        assert got(db) == 1
    assert refused == {}
    parts = pieces(stranger, 30102)
    with arena.counting() as refused:
        send(arena, *parts)
        assert got(db) == 0
    assert refused == {DENIED: 1, HEADLESS: len(parts) - 1}


@pytest.mark.parametrize("friend", [FRIEND, FRIEND6])
def test_a_later_piece_ahead_of_its_first_is_refused(arena: Arena, db, friend: str) -> None:
    inbox(db, 5300, "::")
    first, *later = pieces(friend, 30103)
    with arena.counting() as refused:
        send(arena, *later, first)
        assert got(db) == 0
    assert refused == {HEADLESS: len(later)}


def test_a_refused_first_piece_withdraws_what_an_allowed_one_opened(arena: Arena, db, rogue) -> None:
    inbox(db, 5300)
    inbox(rogue, 5301)
    first, *later = pieces(FRIEND, 30104)
    poison, *_ = pieces(FRIEND, 30104, port=5301)
    with arena.counting() as refused:
        send(arena, first, poison, *later)
        assert got(db) == 0
    assert refused == {DENIED: 1, HEADLESS: len(later)}


def test_another_sender_cannot_ride_on_an_allowed_datagrams_number(arena: Arena, db) -> None:
    inbox(db, 5300)
    first, *_ = pieces(FRIEND, 30105)
    _, *later = pieces(STRANGER, 30105)
    with arena.counting() as refused:
        send(arena, first, *later)
        assert got(db) == 0
    assert refused == {HEADLESS: len(later)}


@pytest.mark.parametrize("cut", [8, 16])
def test_a_first_piece_too_small_for_its_header_is_refused(arena: Arena, db, cut: int) -> None:
    listen(db, 5432)
    syn = bytes(TCP(sport=4000, dport=5432, flags="S"))
    head = IP(src=FRIEND, dst=OURS, id=30106, flags="MF", proto=6) / syn[:cut]
    tail = IP(src=FRIEND, dst=OURS, id=30106, frag=cut // 8, proto=6) / syn[cut:]
    with arena.counting() as refused:
        send(arena, head, tail)
    assert refused == {MALFORMED: 1, HEADLESS: 1}


def test_a_piece_that_overlaps_a_judged_header_changes_no_port(arena: Arena, db) -> None:
    """The stack throws an overlapping datagram away whole; what was judged is what would be delivered."""
    inbox(db, 5300)
    db.do("judged = inbox")
    inbox(db, 5999)
    judged = bytes(UDP(sport=4000, dport=5300, len=40, chksum=0)) + bytes(16)
    forged = bytes(UDP(sport=4000, dport=5999, len=40, chksum=0)) + bytes(16)
    head = IP(src=FRIEND, dst=OURS, id=30107, flags="MF", proto=17) / judged
    over = IP(src=FRIEND, dst=OURS, id=30107, flags="MF", proto=17) / forged
    tail = IP(src=FRIEND, dst=OURS, id=30107, frag=3, proto=17) / bytes(16)
    with arena.counting() as refused:
        send(arena, head, over, tail)
        assert (got(db), got(db, "judged")) == (0, 0)
    assert refused == {DENIED: 1, HEADLESS: 1}


def test_a_syn_cannot_be_overlaid_on_a_judged_segment(arena: Arena, db) -> None:
    """A first piece without SYN passes to the stack; a later one that rewrites its flags is an overlap, thrown away."""
    listen(db, 5432)
    plain = bytes(TCP(sport=4000, dport=5432, flags="A", chksum=0)) + bytes(12)
    syn = bytes(TCP(sport=4000, dport=5432, flags="S", chksum=0)) + bytes(12)
    send(
        arena,
        IP(src=STRANGER, dst=OURS, id=30108, flags="MF", proto=6) / plain,
        IP(src=STRANGER, dst=OURS, id=30108, flags="MF", frag=1, proto=6) / syn[8:],
        IP(src=STRANGER, dst=OURS, id=30108, frag=4, proto=6) / bytes(8),
    )
    assert outcome(db, "listener.accept()") == "timeout"


def test_what_is_refused_leaves_no_pieces_behind_on_its_way_out(arena: Arena, rogue) -> None:
    with arena.at_peer(socket.AF_PACKET, socket.SOCK_RAW) as tap:
        tap.bind(("eth0", 0x0800))
        tap.settimeout(0.2)
        with arena.counting() as refused:
            rogue.do("u = socket.socket(2, 2)\ntry: u.sendto(bytes(4000), ('10.77.0.2', 7000))\nexcept OSError: pass")
            seen = []
            with suppress(TimeoutError):
                while True:
                    seen.append(tap.recv(2000))
    assert not [one for one in seen if one[26:30] == bytes([10, 77, 0, 1]) and one[23] == 17]
    assert refused == {("policy", "egress", "deny"): 1}
