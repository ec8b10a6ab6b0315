"""Packets that nobody's socket vouches for: frames, raw sockets, forged answers and errors."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether

from .conftest import FRIEND, FRIEND6, OURS, OURS6, STRANGER, STRANGER6, Arena, framed, got, inbox, listen, outcome

DENIED = ("policy", "ingress", "deny")
UNSOLICITED = ("unsolicited", "ingress", "deny")


QUIET = (
    "add table ip quiet; add chain ip quiet in { type filter hook input priority 0; }; "
    "add rule ip quiet in tcp dport 7000 drop"
)
"""The peer takes the SYN and says nothing."""


def packet_socket(device: str, frame: bytes, past_the_qdisc: bool = False) -> str:
    bypass = "p.setsockopt(263, 20, 1)\n" if past_the_qdisc else ""
    return f"p = socket.socket(17, 3); p.bind(({device!r}, 0x800))\n{bypass}p.send(bytes.fromhex('{frame.hex()}'))"


def raw_socket(packet: Any, to: str) -> str:
    return f"r = socket.socket(2, 3, 255); r.sendto(bytes.fromhex('{bytes(packet).hex()}'), ({to!r}, 0))"


# Frames


@pytest.mark.parametrize("who", ["rogue", "web"])
def test_a_frame_written_to_the_wire_is_dropped_whoever_the_workload(arena: Arena, who: str) -> None:
    forged = framed(arena, IP(src=OURS, dst=FRIEND) / UDP(sport=4000, dport=7000) / b"forged", to="peer")
    with arena.at_peer() as target, arena.another(who) as attacker:
        target.bind((FRIEND, 7000))
        target.settimeout(0.2)
        with arena.counting() as refused:
            for _ in range(3):
                assert outcome(attacker, packet_socket("eth0", forged)) == "ENOBUFS"
            with pytest.raises(TimeoutError):
                target.recv(99)
    assert refused == {("packet-socket", "egress", "deny"): 3}


QUIET = (
    "add table ip quiet; add chain ip quiet in { type filter hook input priority 0; }; "
    "add rule ip quiet in tcp dport 7000 drop"
)
"""Rules that swallow what arrives for port 7000."""


def test_a_frame_past_the_qdisc_is_the_stated_limit_on_a_wire_and_none_on_loopback(arena: Arena, rogue, db) -> None:
    inbox(db, 6200)
    forged = bytes(Ether() / IP(src="127.0.0.1", dst="127.0.0.1") / UDP(sport=999, dport=6200) / b"forged")
    with arena.counting() as refused:
        assert outcome(rogue, packet_socket("lo", forged, past_the_qdisc=True)) == "ok"
        assert got(db) == 0
    assert refused == {("loopback-bypass", "ingress", "deny"): 1}
    out = framed(arena, IP(src=OURS, dst=FRIEND) / UDP(sport=4000, dport=7000) / b"forged", to="peer")
    with arena.at_peer() as target:
        target.bind((FRIEND, 7000))
        assert outcome(rogue, packet_socket("eth0", out, past_the_qdisc=True)) == "ok"
        assert target.recv(99) == b"forged"


@pytest.mark.parametrize("who", ["rogue", "web", "plain"])
def test_a_frame_written_to_loopback_reaches_nobody_who_is_enforced(arena: Arena, db, who: str) -> None:
    inbox(db, 5300)
    forged = bytes(Ether() / IP(src="127.0.0.1", dst="127.0.0.1") / UDP(sport=999, dport=5300) / b"forged")
    with arena.another(who) as attacker, arena.counting() as refused:
        assert outcome(attacker, packet_socket("lo", forged)) == "ENOBUFS"
        assert got(db) == 0
    assert refused == {("packet-socket", "egress", "deny"): 1}


# Raw sockets


@pytest.mark.parametrize("who", ["rogue", "web", "plain"])
@pytest.mark.parametrize("source", ["127.0.0.1", "10.99.9.9"])
def test_transport_through_a_raw_socket_reaches_nobody_who_is_enforced(arena: Arena, db, who: str, source: str) -> None:
    inbox(db, 5300)
    forged = [IP(src=source, dst="127.0.0.1") / UDP(sport=999, dport=5300) / b"forged"]
    forged.append(IP(src=source, dst="127.0.0.1") / TCP(sport=999, dport=5432, flags="A") / b"forged")
    with arena.another(who) as attacker, arena.counting() as refused:
        for packet in forged:
            outcome(attacker, raw_socket(packet, "127.0.0.1"))
        assert got(db) == 0
    assert refused == {("raw-socket", "egress", "deny"): 2}


def test_transport_through_a_raw_socket_does_not_leave_even_where_a_rule_allows_it(arena: Arena, web) -> None:
    with arena.at_peer() as target, arena.counting() as refused:
        target.bind((FRIEND, 7000))
        target.settimeout(0.2)
        outcome(web, raw_socket(IP(src=OURS, dst=FRIEND) / UDP(sport=9, dport=7000) / b"x", FRIEND))
        outcome(web, "u = socket.socket(2, 3, 17); u.sendto(struct.pack('!4H', 9, 7000, 8, 0), ('10.77.0.2', 0))")
        with pytest.raises(TimeoutError):
            target.recv(99)
    assert refused == {("raw-socket", "egress", "deny"): 2}


def test_what_a_raw_socket_may_send_is_judged_as_its_owner_whatever_source_it_claims(arena: Arena, rogue) -> None:
    echo = ICMP(type=8, id=7) / (b"secret" * 200)
    with arena.counting() as refused:
        for source in (OURS, FRIEND, "8.8.8.8", "127.0.0.1"):
            outcome(rogue, raw_socket(IP(src=source, dst=FRIEND) / echo, FRIEND))
    assert refused == {("policy", "egress", "deny"): 4}


def test_kernel_errors_and_resets_cannot_be_forged_by_a_raw_socket(arena: Arena, rogue) -> None:
    quoted = IP(src=FRIEND, dst=OURS) / UDP(sport=1, dport=2) / b"covert"
    with arena.counting() as refused:
        outcome(rogue, raw_socket(IP(src=OURS, dst=FRIEND) / ICMP(type=3, code=3) / quoted, FRIEND))
        outcome(rogue, raw_socket(IP(src=OURS, dst=FRIEND) / ICMP(type=0) / b"covert", FRIEND))
        outcome(rogue, raw_socket(IP(src=OURS, dst=FRIEND) / TCP(sport=9, dport=9, flags="R"), FRIEND))
    assert refused == {("policy", "egress", "deny"): 2, ("raw-socket", "egress", "deny"): 1}


def test_a_mark_on_a_socket_buys_nothing(arena: Arena, db, rogue) -> None:
    listen(db, 5432)
    with arena.counting() as refused:
        for mark in (1, 0xB17C, 0xFFFFFFFF):
            rogue.do(f"c = socket.socket(); c.setsockopt(1, 36, struct.pack('=I', {mark}))")
            assert outcome(rogue, "c.connect(('127.0.0.1', 5432))") == "EPERM"
    assert refused == {("policy", "egress", "deny"): 3}


# Answers to nothing


@pytest.mark.parametrize("source, target", [(FRIEND, OURS), (FRIEND6, OURS6)])
def test_an_answer_to_a_syn_that_nobody_sent_is_refused(arena: Arena, db, source: str, target: str) -> None:
    listen(db, 5432, "::" if ":" in target else "0.0.0.0")
    network = (IPv6 if ":" in target else IP)(src=source, dst=target)
    with arena.counting() as refused:
        arena.send_frames(*(framed(arena, network / TCP(sport=7000, dport=port, flags="SA")) for port in (5432, 999)))
        assert outcome(db, "listener.accept()") == "timeout"
    assert refused == {UNSOLICITED: 2}


def test_segments_of_no_conversation_reach_no_program_and_open_nothing(arena: Arena, db) -> None:
    listen(db, 5432)
    flags = ("A", "PA", "FA", "R", "RA", "", "FPU")
    stray = [IP(src=STRANGER, dst=OURS) / TCP(sport=7000, dport=5432, flags=one, seq=1, ack=1) / b"x" for one in flags]
    arena.send_frames(*(framed(arena, one) for one in stray))
    assert outcome(db, "listener.accept()") == "timeout"


@pytest.mark.parametrize("flags", ["S", "SF", "SP", "SEC"])
def test_a_syn_is_judged_whatever_else_it_carries(arena: Arena, db, flags: str) -> None:
    listen(db, 5432)
    with arena.counting() as refused:
        syn = IP(src=STRANGER, dst=OURS) / TCP(sport=7001, dport=5432, flags=flags) / b"data in the SYN"
        arena.send_frames(*[framed(arena, syn)] * 4)
        assert outcome(db, "listener.accept()") == "timeout"
    assert refused == {DENIED: 4}


def test_simultaneous_open_gives_a_refused_peer_no_way_in(arena: Arena, web) -> None:
    with arena.counting() as refused:
        code = "c = socket.socket(); c.bind(('10.77.0.1', 4711)); c.settimeout(0.3); c.connect(('10.77.0.2', 7000))"
        arena.peer.run("", ["nft", QUIET])
        assert outcome(web, code) == "timeout"
        arena.send_frames(framed(arena, IP(src=FRIEND, dst=OURS) / TCP(sport=7000, dport=4711, flags="S")))
        arena.send_frames(framed(arena, IP(src=STRANGER, dst=OURS) / TCP(sport=7000, dport=4711, flags="S")))
        web.do("c.close()")
        arena.peer.run("", ["nft", "delete table ip quiet"])
    # the second finds nobody and is the host's, which is only observed
    assert refused == {DENIED: 1, ("policy", "ingress", "would-deny"): 1}


# ICMP


def test_an_error_about_a_conversation_that_does_not_exist_is_refused(arena: Arena, db) -> None:
    listen(db, 5432)
    quotes = [TCP(sport=5432, dport=7000), TCP(sport=40000, dport=7000), UDP(sport=40000, dport=7000), ICMP()]
    with arena.counting() as refused:
        for quote in quotes:
            error = IP(src=STRANGER, dst=OURS) / ICMP(type=3, code=4, nexthopmtu=600) / IP(src=OURS, dst=FRIEND) / quote
            arena.send_frames(framed(arena, error))
    assert refused == {UNSOLICITED: len(quotes)}


def test_an_error_about_a_live_conversation_passes_and_the_conversation_goes_on(arena: Arena, web) -> None:
    with arena.at_peer(kind=socket.SOCK_STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((FRIEND, 7000))
        server.listen()
        web.do("c = socket.create_connection(('10.77.0.2', 7000), 1)")
        one, (_, port) = server.accept()
        with one, arena.counting() as refused:
            quote = IP(src=OURS, dst=FRIEND) / TCP(sport=port, dport=7000)
            arena.send_frames(framed(arena, IP(src=STRANGER, dst=OURS) / ICMP(type=3, code=4, nexthopmtu=600) / quote))
            web.do("c.send(b'still here')")
            assert one.recv(99) == b"still here"
        web.do("c.close()")
    assert refused == {}


@pytest.mark.parametrize("size", [0, 1400])
def test_an_echo_request_against_its_rule_is_refused_even_with_an_identifier_in_use(
    arena: Arena, web, size: int
) -> None:
    with arena.policy(POLICY_WITHOUT_ECHO_IN, hosts="enforce"):
        assert web.raw_echo(FRIEND) == "ok"
        request = ICMP(type=8, id=web.pid & 0xFFFF) / bytes(size)
        with arena.counting() as refused:
            arena.send_frames(*[framed(arena, IP(src=FRIEND, dst=OURS) / request)] * 3)
            arena.send_frames(framed(arena, IPv6(src=FRIEND6, dst=OURS6) / ICMPv6EchoRequest(data=bytes(size))))
        assert refused == {DENIED: 4}


def test_an_echo_reply_that_nobody_asked_for_is_refused(arena: Arena, web) -> None:
    assert web.raw_echo(FRIEND) == "ok"
    number = web.pid & 0xFFFF
    with arena.counting() as refused:
        arena.send_frames(framed(arena, IP(src=FRIEND, dst=OURS) / ICMP(type=0, id=number ^ 1) / b"covert"))
        arena.send_frames(framed(arena, IP(src=STRANGER, dst=OURS) / ICMP(type=0, id=number) / b"covert"))
    assert refused == {UNSOLICITED: 2}


# Headers


def test_a_priority_tag_changes_no_verdict_and_stacked_tags_are_refused(arena: Arena, db) -> None:
    inbox(db, 5300)
    refusable, fine = (IP(src=source, dst=OURS) / UDP(sport=4000, dport=5300) / b"x" for source in (STRANGER, FRIEND))
    with arena.counting() as refused:
        arena.send_frames(framed(arena, refusable, vlan=Dot1Q(vlan=0)), framed(arena, fine, vlan=Dot1Q(vlan=0)))
        assert got(db) == 1
    assert refused == {DENIED: 1}
    with arena.counting() as refused:
        arena.send_frames(framed(arena, fine, vlan=Dot1AD(vlan=0) / Dot1Q(vlan=0)))
        arena.send_frames(framed(arena, fine, vlan=Dot1Q(vlan=0) / Dot1Q(vlan=0)))
        assert got(db) == 0
    assert sum(refused.values()) == 2
    assert set(refused) <= {("link-protocol", "ingress", "deny"), ("malformed", "ingress", "deny")}


def test_loopback_addresses_off_the_wire_are_refused_even_where_routing_takes_them(arena: Arena, db) -> None:
    inbox(db, 5300)
    arena.host.run("", ["sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet"])
    forged = [("127.0.0.1", "127.0.0.1"), (FRIEND, "127.0.0.1"), ("127.0.0.1", OURS)]
    with arena.counting() as refused:
        for source, target in forged:
            arena.send_frames(framed(arena, IP(src=source, dst=target) / UDP(sport=4000, dport=5300) / b"x"))
            arena.send_frames(
                framed(arena, IP(src=source, dst=target) / TCP(sport=4000, dport=5432, flags="PA") / b"x")
            )
        assert got(db) == 0
    assert refused == {("martian", "ingress", "deny"): 2 * len(forged)}


@pytest.mark.parametrize("source, target", [("::ffff:10.77.0.2", OURS6), (FRIEND6, "::ffff:10.77.0.1"), ("::1", OURS6)])
def test_addresses_that_are_not_for_wires_are_refused(arena: Arena, db, source: str, target: str) -> None:
    inbox(db, 5300, "::")
    with arena.counting() as refused:
        arena.send_frames(framed(arena, IPv6(src=source, dst=target) / UDP(sport=4000, dport=5300) / b"x"))
        assert got(db) == 0
    assert refused == {("martian", "ingress", "deny"): 1}


def test_our_own_address_as_source_is_an_address_and_no_identity(arena: Arena, db) -> None:
    inbox(db, 5300, "::")
    with arena.counting() as refused:
        arena.send_frames(framed(arena, IPv6(src=OURS6, dst=OURS6) / UDP(sport=4000, dport=5300) / b"x"))
        arena.send_frames(framed(arena, IP(src=OURS, dst=OURS) / UDP(sport=4000, dport=5300) / b"x"))
        assert got(db) == 0
    assert refused == {DENIED: 2}


@pytest.mark.parametrize(
    "header", [IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), IPv6ExtHdrRouting(addresses=[OURS6], segleft=0)], ids=repr
)
def test_an_extension_header_hides_nothing(arena: Arena, db, header: Any) -> None:
    inbox(db, 5300, "::")
    with arena.counting() as refused:
        arena.send_frames(framed(arena, IPv6(src=FRIEND6, dst=OURS6) / header / UDP(sport=4000, dport=5300) / b"x"))
        assert got(db) == 0
    assert refused == {("extension-header", "ingress", "deny"): 1}


@pytest.mark.parametrize("source, delivered", [(FRIEND6, 1), (STRANGER6, 0)])
def test_an_atomic_fragment_is_judged_as_the_packet_it_is(arena: Arena, db, source: str, delivered: int) -> None:
    inbox(db, 5300, "::")
    atom = IPv6(src=source, dst=OURS6) / IPv6ExtHdrFragment(offset=0, m=0, id=9) / UDP(sport=4000, dport=5300) / b"x"
    with arena.counting() as refused:
        arena.send_frames(framed(arena, atom))
        assert got(db) == delivered
    assert refused == ({} if delivered else {DENIED: 1})


@pytest.mark.parametrize("source, delivered", [(FRIEND, 1), (STRANGER, 0)])
def test_ip_options_change_no_verdict(arena: Arena, db, source: str, delivered: int) -> None:
    inbox(db, 5300)
    options = [IPOption_NOP()] * 40
    with arena.counting() as refused:
        arena.send_frames(framed(arena, IP(src=source, dst=OURS, options=options) / UDP(sport=4000, dport=5300) / b"x"))
        assert got(db) == delivered
    assert refused == ({} if delivered else {DENIED: 1})


def test_port_zero_is_no_port(arena: Arena, db) -> None:
    inbox(db, 5300)
    with arena.counting() as refused:
        for transport in (UDP(sport=0, dport=5300), UDP(sport=4000, dport=0), TCP(sport=0, dport=5432, flags="S")):
            arena.send_frames(framed(arena, IP(src=FRIEND, dst=OURS) / transport / b"x"))
        assert got(db) == 0
    assert refused == {("malformed", "ingress", "deny"): 3}


POLICY_WITHOUT_ECHO_IN = """apiVersion: bulkhead/v1alpha1
kind: Policy
metadata: {name: t}
workloads: {web: {match: {cgroup: /t/web}, mode: enforce}}
externals: {friend: {cidr: [10.77.0.2/32, "fd77::2/128"]}}
allow: [{name: web-friend, from: web, to: friend, ports: [icmp/echo]}]
"""
