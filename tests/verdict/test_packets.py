"""Crafted packets through the real programs: what passes, what does not, and exactly what is counted for it.

Every test runs twice: with everybody enforced, where a refused packet is dropped, and with everybody observed, where
the same packet passes and counts as one that would have been refused.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_LSRR
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    IPv6ExtHdrSegmentRouting,
    PadN,
    RouterAlert,
)
from scapy.layers.l2 import ARP, LLC, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from bulkhead.abi import ControlKind, Direction, DropReason, Identity, SockFlag, SockState, Verdict
from bulkhead.identity.selectors import Endpoint
from bulkhead.kernel.judge import Entry, Judge
from lab.verdict import Bench, Outcome, allowed, bundle_of, passed, passed_as

POLICY = """
apiVersion: bulkhead/v1alpha1
kind: Policy
metadata: {name: shop}
workloads:
  web: {match: {cgroup: /web}}
  db: {match: {cgroup: /db}}
  rogue: {match: {cgroup: /rogue}}
externals:
  peer: {cidr: [10.77.1.0/24, 8.0.0.1/32, "fd77:1::/64", "2001:db8:86dd::1/128"]}
  four: {cidr: [198.51.100.0/24]}
allow:
  - {name: web-db, from: web, to: db, ports: [5432]}
  - {name: peer-db, from: peer, to: db, ports: [5432, 5353/udp]}
  - {name: web-peer, from: web, to: peer, ports: [5432, 5353/udp, icmp/echo, proto/47]}
  - {name: web-four, from: web, to: four, ports: [any]}
"""

WEB, DB, ROGUE = (Endpoint("here", path) for path in ("/web", "/db", "/rogue"))
MACHINE = Endpoint("here", "/system.slice/networkd.service")

PEER4, OUR4 = "10.77.1.2", "10.77.1.1"
PEER6, OUR6 = "fd77:1::2", "fd77:1::1"
EVIL4, EVIL6 = "203.0.113.66", "2001:db8:bad::1"
LOOPBACK_JUDGED = 0xB17C
OWN_MARKS = range(0xB17C, 0xB181)

DIRECTIONS = pytest.mark.parametrize("direction", list(Direction), ids=lambda direction: direction.name.lower())


@pytest.fixture(scope="module", params=["enforced", "observed"])
def bench(judge: Judge, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The policy above, in force or only watched."""
    enforced = request.param == "enforced"
    bundle = bundle_of(tmp_path_factory.mktemp("policy"), POLICY)
    judge.enforce(bundle, (WEB, DB, ROGUE, MACHINE), observe_only=not enforced)
    for name in ("fragments", "echoes", "datagrams"):
        forgotten = judge.maps.fixed(name)
        keys, _ = forgotten.lookup_batch()
        forgotten.delete_batch(keys, len(keys) // forgotten.info.key_size)
    return Bench(judge, enforced)


def framed(layers: Packet, kind: int | None = None) -> Packet:
    addresses = {"src": "02:00:00:00:00:02", "dst": "02:00:00:00:00:01"}
    return Ether(**addresses) / layers if kind is None else Ether(type=kind, **addresses) / layers


def in4(**fields: object) -> Packet:
    """The start of a frame from the peer to us."""
    return framed(IP(**{"src": PEER4, "dst": OUR4, **fields}))


def in6(**fields: object) -> Packet:
    return framed(IPv6(**{"src": PEER6, "dst": OUR6, **fields}))


def out4(**fields: object) -> Packet:
    """The start of a frame from us to the peer."""
    return in4(**{"src": OUR4, "dst": PEER4, **fields})


def out6(**fields: object) -> Packet:
    return in6(**{"src": OUR6, "dst": PEER6, **fields})


def syn(port: int = 5432) -> Packet:
    return TCP(sport=40000, dport=port, flags="S")


def segment(flags: str = "A") -> Packet:
    return TCP(sport=40000, dport=5432, flags=flags) / b"data"


def datagram(port: int = 5353) -> Packet:
    return UDP(sport=40000, dport=port) / b"data"


def crossing(bench: Bench, direction: Direction, frame: Packet) -> Outcome:
    """A packet of the peer that comes in, or the same from `web` going out."""
    return bench.arrives(frame) if direction is Direction.INGRESS else bench.leaves(frame, WEB)


@contextlib.contextmanager
def listening(bench: Bench, protocol: int, port: int, who: Endpoint = DB) -> Iterator[None]:
    with bench.judge.receiving(protocol, port, bench.judge.sender(who)):
        yield


# Lengths that contradict each other

MALFORMED = {
    "an IPv4 header shorter than itself": in4(ihl=4) / syn(),
    "an IPv4 length shorter than its header": in4(len=19) / syn(),
    "an IPv4 length longer than the frame": in4(len=1000) / syn(),
    "another version under the IPv4 ethertype": in4(version=5) / syn(),
    "another version under the IPv6 ethertype": in6(version=4) / syn(),
    "an IPv6 length longer than the frame": in6(plen=1000) / syn(),
    "a TCP header shorter than itself": in4() / TCP(dport=5432, flags="S", dataofs=4),
    "a TCP header longer than its packet": in4() / TCP(dport=5432, flags="S", dataofs=15),
    "a TCP header that is cut": in4(proto=6) / Raw(bytes(syn())[:12]),
    "a TCP header that is cut, over IPv6": in6(nh=6) / Raw(bytes(syn())[:12]),
    "a TCP header shorter than itself, under way": in4() / TCP(dport=5432, flags="A", dataofs=4),
    "a UDP length below its header": in4() / UDP(dport=5353, len=7),
    "a UDP length of nothing": in4() / UDP(dport=5353, len=0),
    "a UDP length of nothing, over IPv6": in6() / UDP(dport=5353, len=0),
    "a UDP length beyond its packet": in4() / UDP(dport=5353, len=100),
    "a UDP header that is cut": in4(proto=17) / Raw(bytes(datagram())[:6]),
    "a UDP header that continues in the link's padding": in4(len=24) / datagram(),
    "an ICMP header that is cut": in4(proto=1) / Raw(b"\x08\0\0\0"),
    "an ICMP header that continues in the link's padding": in4(len=24) / ICMP(),
    "an IPv6 fragment header that is cut": in6(nh=44) / Raw(b"\x06\0\0\0"),
    "a hop-by-hop header that is cut": in6(nh=0) / Raw(b"\x3a\0\x05\x02"),
    "a first fragment too short for its ports": in4(flags="MF", proto=6) / Raw(bytes(syn())[:8]),
}


@DIRECTIONS
@pytest.mark.parametrize("frame", MALFORMED.values(), ids=MALFORMED.keys())
def test_refuse_what_contradicts_its_own_lengths(bench: Bench, frame: Packet, direction: Direction) -> None:
    bench.refused(crossing(bench, direction, frame), DropReason.MALFORMED, direction)


@DIRECTIONS
@pytest.mark.parametrize("transport", [TCP, UDP])
@pytest.mark.parametrize("ports", [(0, 5432), (40000, 0), (0, 0)])
@pytest.mark.parametrize("network", [in4, in6])
def test_refuse_port_zero_whatever_is_allowed(
    bench: Bench, network: object, ports: tuple[int, int], transport: type[Packet], direction: Direction
) -> None:
    frame = (in4 if network is in4 else in6)() / transport(sport=ports[0], dport=ports[1])
    bench.refused(crossing(bench, direction, frame), DropReason.MALFORMED, direction)


# Fragments


def pieces(port: int, number: int) -> tuple[Packet, Packet]:
    """The first and the last fragment of a datagram to us."""
    whole = bytes(UDP(sport=40000, dport=port, len=24, chksum=0) / bytes(16))
    first = in4(flags="MF", proto=17, id=number) / Raw(whole[:16])
    return first, in4(frag=2, proto=17, id=number) / Raw(whole[16:])


def test_judge_a_first_fragment_like_the_whole_datagram(bench: Bench) -> None:
    bench.refused_in(bench.arrives(pieces(53, 1)[0]), DropReason.POLICY)
    with listening(bench, socket.IPPROTO_UDP, 5353):
        allowed(bench.arrives(pieces(5353, 2)[0]))


@DIRECTIONS
def test_refuse_a_later_fragment_of_a_datagram_never_seen(bench: Bench, direction: Direction) -> None:
    bench.refused(crossing(bench, direction, pieces(5353, 3)[1]), DropReason.FRAGMENT, direction)


def test_pass_the_rest_of_an_allowed_datagram_this_way_only(bench: Bench) -> None:
    first, last = pieces(5353, 4)
    with listening(bench, socket.IPPROTO_UDP, 5353):
        allowed(bench.arrives(first))
    passed(bench.arrives(last))
    bench.refused_out(bench.leaves(last, WEB), DropReason.FRAGMENT)
    bench.refused_in(bench.arrives(in4(frag=2, proto=6, id=4) / bytes(16)), DropReason.FRAGMENT)


def test_a_refused_first_fragment_withdraws_what_an_allowed_one_opened(bench: Bench) -> None:
    with listening(bench, socket.IPPROTO_UDP, 5353):
        allowed(bench.arrives(pieces(5353, 5)[0]))
    bench.refused_in(bench.arrives(pieces(53, 5)[0]), DropReason.POLICY)
    after = bench.arrives(pieces(53, 5)[1])
    if bench.enforced:
        bench.refused_in(after, DropReason.FRAGMENT)
    else:
        passed(after)


def test_no_fragment_of_a_refused_datagram_leaves(bench: Bench) -> None:
    whole = bytes(UDP(sport=40000, dport=53, len=3000, chksum=0) / bytes(2992))
    first = out4(flags="MF", proto=17, id=6) / Raw(whole[:1480])
    rest = [out4(flags="MF", frag=185, proto=17, id=6) / Raw(whole[1480:2960]), out4(frag=370, proto=17, id=6) / b"end"]
    bench.refused_out(bench.leaves(first, ROGUE), DropReason.POLICY)
    for frame in rest:
        after = bench.leaves(frame, ROGUE)
        bench.refused_out(after, DropReason.FRAGMENT) if bench.enforced else passed(after)


def test_a_raw_socket_cannot_append_its_own_rest_to_an_allowed_datagram(bench: Bench) -> None:
    whole = bytes(UDP(sport=40000, dport=5353, len=24, chksum=0) / bytes(16))
    allowed(bench.leaves(out4(flags="MF", proto=17, id=7) / Raw(whole[:16]), WEB))
    forged = bench.judge.sender(ROGUE)
    forged.flags |= SockFlag.RAW
    bench.refused_out(bench.leaves(out4(frag=2, proto=17, id=7) / b"forged", forged), DropReason.RAW_SOCKET)
    passed(bench.leaves(out4(frag=2, proto=17, id=7) / Raw(whole[16:]), WEB))


def test_refuse_an_ipv6_fragment_whose_first_was_never_seen(bench: Bench) -> None:
    bench.refused_in(bench.arrives(in6() / IPv6ExtHdrFragment(offset=2, id=8, nh=17) / bytes(16)), DropReason.FRAGMENT)


def test_pass_the_rest_of_an_allowed_ipv6_datagram(bench: Bench) -> None:
    whole = bytes(UDP(sport=40000, dport=5353, len=24, chksum=1) / bytes(16))
    with listening(bench, socket.IPPROTO_UDP, 5353):
        allowed(bench.arrives(in6() / IPv6ExtHdrFragment(m=1, id=9, nh=17) / Raw(whole[:16])))
    passed(bench.arrives(in6() / IPv6ExtHdrFragment(offset=2, id=9, nh=17) / Raw(whole[16:])))


def test_judge_an_atomic_fragment_like_the_packet_it_is(bench: Bench) -> None:
    with listening(bench, socket.IPPROTO_TCP, 5432):
        allowed(bench.arrives(in6() / IPv6ExtHdrFragment(id=10) / syn()))
    bench.refused_in(bench.arrives(in6() / IPv6ExtHdrFragment(id=10) / syn(22)), DropReason.POLICY)


# Extension headers and link protocols

HIDING = {
    "hop-by-hop": IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(4))]) / syn(),
    "router alert in front of TCP": IPv6ExtHdrHopByHop(options=[RouterAlert(), PadN()]) / syn(),
    "hop-by-hop in front of an echo request": IPv6ExtHdrHopByHop(options=[RouterAlert(), PadN()]) / ICMPv6EchoRequest(),
    "hop-by-hop without router alert in front of MLD": IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(4))])
    / ICMPv6MLReport2(),
    "two hop-by-hop headers": IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(4))]) / IPv6ExtHdrHopByHop() / syn(),
    "destination options": IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(4))]) / syn(),
    "destination options behind an atomic fragment": IPv6ExtHdrFragment(id=11)
    / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(4))])
    / syn(),
    "a fragment in a fragment": IPv6ExtHdrFragment(id=12) / IPv6ExtHdrFragment(id=13) / syn(),
    "routing": IPv6ExtHdrRouting(addresses=[EVIL6]) / syn(),
    "segment routing": IPv6ExtHdrSegmentRouting(addresses=[EVIL6], segleft=0, lastentry=0) / syn(),
    "router advertisement behind destination options": IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(4))])
    / ICMPv6ND_RA(),
}


@DIRECTIONS
@pytest.mark.parametrize("layers", HIDING.values(), ids=HIDING.keys())
def test_refuse_extension_headers_that_can_hide_the_transport(
    bench: Bench, layers: Packet, direction: Direction
) -> None:
    frame = (in6 if direction is Direction.INGRESS else out6)(hlim=255) / layers
    bench.refused(crossing(bench, direction, frame), DropReason.EXTENSION_HEADER, direction)


LINK_PROTOCOLS = {
    "stacked tags": framed(Dot1AD(vlan=5) / Dot1Q(vlan=6) / IP(src=PEER4, dst=OUR4) / syn()),
    "a tag that the device has not taken off": framed(Dot1Q(vlan=5) / IP(src=PEER4, dst=OUR4) / syn()),
    "LLDP": framed(Raw(bytes(46)), 0x88CC),
    "EAPOL": framed(Raw(bytes(46)), 0x888E),
    "PPPoE": framed(Raw(bytes(46)), 0x8864),
    "802.3": Ether(type=46) / LLC() / bytes(43),
}


@DIRECTIONS
@pytest.mark.parametrize("frame", LINK_PROTOCOLS.values(), ids=LINK_PROTOCOLS.keys())
def test_refuse_link_protocols_other_than_ip_and_arp(bench: Bench, frame: Packet, direction: Direction) -> None:
    bench.refused(crossing(bench, direction, frame), DropReason.LINK_PROTOCOL, direction)


@DIRECTIONS
def test_pass_arp_as_arp(bench: Bench, direction: Direction) -> None:
    passed_as(crossing(bench, direction, framed(ARP(psrc=PEER4, pdst=OUR4))), ControlKind.ARP)


# Addresses

MARTIANS = {
    "to IPv4 loopback": in4(dst="127.0.0.1") / syn(),
    "to IPv4 loopback, under way": in4(dst="127.0.0.1") / segment(),
    "from IPv4 loopback": in4(src="127.8.8.8") / syn(),
    "from IPv4 loopback, under way": in4(src="127.8.8.8") / segment(),
    "between IPv4 loopback addresses": in4(src="127.0.0.1", dst="127.0.0.1") / datagram(),
    "from nobody": in4(src="0.0.0.0") / syn(),
    "from an IPv4 group": in4(src="224.0.0.5") / datagram(),
    "from broadcast": in4(src="255.255.255.255") / datagram(),
    "to IPv6 loopback": in6(dst="::1") / syn(),
    "to IPv6 loopback, under way": in6(dst="::1") / segment(),
    "from IPv6 loopback": in6(src="::1") / datagram(),
    "from a mapped address": in6(src=f"::ffff:{PEER4}") / syn(),
    "to a mapped address": in6(dst=f"::ffff:{OUR4}") / syn(),
    "to a mapped address, under way": in6(dst=f"::ffff:{OUR4}") / segment(),
    "from an IPv6 group": in6(src="ff02::5") / datagram(),
}


@pytest.mark.parametrize("frame", MARTIANS.values(), ids=MARTIANS.keys())
def test_refuse_addresses_that_cannot_come_off_a_wire(bench: Bench, frame: Packet) -> None:
    with listening(bench, socket.IPPROTO_TCP, 5432), listening(bench, socket.IPPROTO_UDP, 5353):
        bench.refused_in(bench.arrives(frame), DropReason.MARTIAN)


GROUPS = {
    "an IPv4 group": in4(dst="239.1.1.1") / datagram(),
    "mDNS": in4(dst="224.0.0.251", ttl=255) / UDP(sport=5353, dport=5353),
    "IPv4 broadcast": in4(dst="255.255.255.255") / datagram(),
    "an IPv6 group": in6(dst="ff02::fb") / datagram(),
    "TCP to a group": in4(dst="239.1.1.1") / syn(),
    "a DHCP request": in4(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67),
}


@pytest.mark.parametrize("frame", GROUPS.values(), ids=GROUPS.keys())
def test_refuse_groups_that_nobody_here_has_an_identity_for(bench: Bench, frame: Packet) -> None:
    with listening(bench, socket.IPPROTO_UDP, 5353):
        bench.refused_in(bench.arrives(frame), DropReason.MULTICAST)


@pytest.mark.parametrize(
    "address", ["64:ff9b::198.51.100.7", "2002:c633:6407::1", "::198.51.100.7", "::ffff:198.51.100.7"]
)
def test_an_ipv4_rule_does_not_reach_through_transition_prefixes(bench: Bench, address: str) -> None:
    bench.refused_out(bench.leaves(out6(dst=address) / syn(443), WEB), DropReason.POLICY)
    allowed(bench.leaves(out4(dst="198.51.100.7") / syn(443), WEB))


@pytest.mark.parametrize("frame", [out4(dst="169.254.169.254"), out6(dst="fd00:ec2::254"), out6(dst="fe80::1")])
def test_refuse_metadata_and_link_local_addresses_without_a_rule(bench: Bench, frame: Packet) -> None:
    bench.refused_out(bench.leaves(frame / syn(80), WEB), DropReason.POLICY)


# Openings


def test_judge_openings_by_the_receivers_identity(bench: Bench) -> None:
    for network in (in4, in6):
        with listening(bench, socket.IPPROTO_TCP, 5432, DB):
            outcome = bench.arrives(network() / syn())
            allowed(outcome)
            assert outcome.ruling.direction is Direction.INGRESS
        with listening(bench, socket.IPPROTO_TCP, 5432, ROGUE):
            bench.refused_in(bench.arrives(network() / syn()), DropReason.POLICY)
        bench.refused_in(bench.arrives(network() / syn()), DropReason.POLICY)


def test_judge_openings_by_the_senders_identity(bench: Bench) -> None:
    for network in (out4, out6):
        allowed(bench.leaves(network() / syn(), WEB))
        bench.refused_out(bench.leaves(network() / syn(), ROGUE), DropReason.POLICY)
        bench.refused_out(bench.leaves(network() / syn()), DropReason.UNATTESTED)


def test_deny_when_a_receiver_is_not_attested(bench: Bench) -> None:
    with bench.judge.receiving(socket.IPPROTO_TCP, 5432, bench.judge.sender(None)):
        bench.refused_in(bench.arrives(in4() / syn()), DropReason.UNATTESTED)


def test_loopback_judges_both_ends_at_once(bench: Bench) -> None:
    opening = in4(src="127.0.0.1", dst="127.0.0.1") / syn()
    with listening(bench, socket.IPPROTO_TCP, 5432):
        allowed(bench.leaves(opening, WEB, Entry.EGRESS_LOOPBACK))
        bench.refused_out(bench.leaves(opening, ROGUE, Entry.EGRESS_LOOPBACK), DropReason.POLICY)
    with listening(bench, socket.IPPROTO_TCP, 5432, ROGUE):
        bench.refused_out(bench.leaves(opening, WEB, Entry.EGRESS_LOOPBACK), DropReason.POLICY)
    bench.refused_out(bench.leaves(opening, WEB, Entry.EGRESS_LOOPBACK), DropReason.POLICY)


def test_loopback_takes_in_only_what_was_judged_on_its_way_out(bench: Bench) -> None:
    opening = in4(src="127.0.0.1", dst="127.0.0.1") / syn()
    bench.refused_in(bench.arrives(opening, Entry.INGRESS_LOOPBACK), DropReason.LOOPBACK_BYPASS)
    passed(bench.arrives(opening, Entry.INGRESS_LOOPBACK, tc_index=LOOPBACK_JUDGED))


def test_a_datagram_of_udp_lite_is_not_taken_for_that_of_the_udp_socket_on_its_port(bench: Bench) -> None:
    lite = in4(src="127.0.0.1", dst="127.0.0.1", proto=136) / Raw(bytes(datagram(5432)))
    with listening(bench, socket.IPPROTO_UDP, 5432):
        bench.refused_out(bench.leaves(lite, WEB, Entry.EGRESS_LOOPBACK), DropReason.POLICY)
        bench.refused_in(bench.arrives(in4(proto=136) / Raw(bytes(datagram(5432)))), DropReason.UNATTESTED)


def test_count_every_packet_of_a_refused_stream_and_an_allowed_one_once(bench: Bench) -> None:
    state = bench.judge.sender(WEB)
    state.flags |= SockFlag.OPENED
    outcome = bench.leaves(out4() / segment(), state, times=50)
    assert (outcome.hits, dict(outcome.refusals), outcome.ruling.passes) == (1, {}, True)
    state = bench.judge.sender(ROGUE)
    state.flags |= SockFlag.OPENED
    outcome = bench.leaves(out4() / segment(), state, times=50)
    times = 50 if bench.enforced else 1
    assert outcome.refusals == {(DropReason.POLICY, Direction.EGRESS, not bench.enforced): times}
    assert outcome.ruling.passes is not bench.enforced


def test_a_refused_stream_may_still_reset_itself(bench: Bench) -> None:
    passed_as(bench.leaves(out4() / TCP(sport=40000, dport=5432, flags="RA"), ROGUE), ControlKind.TCP_RESET)
    passed_as(
        bench.leaves(out4() / TCP(sport=40000, dport=5432, flags="RA"), judged(bench, ROGUE)), ControlKind.TCP_RESET
    )


def judged(bench: Bench, who: Endpoint) -> SockState:
    """The state of a stream whose verdict stands: allowed for `web`, refused for others."""
    state = bench.judge.sender(who)
    state.flags |= SockFlag.OPENED | SockFlag.STREAM
    state.generation = bench.judge.maps.control().generation
    state.verdict = Verdict.ALLOW if who is WEB else Verdict.DENY
    state.reason = DropReason.NONE if who is WEB else DropReason.POLICY
    return state


def test_a_standing_verdict_holds_for_plain_segments_only(bench: Bench) -> None:
    detour = IPOption_LSRR(routers=[PEER4])
    roundabout = IPv6ExtHdrSegmentRouting(addresses=[PEER6, EVIL6], segleft=1, lastentry=1)
    for plain in (out4() / segment(), out6() / segment()):
        passed(bench.leaves(plain, judged(bench, WEB)))
    bench.refused_out(
        bench.leaves(out4(dst=EVIL4, options=[detour]) / segment(), judged(bench, WEB)), DropReason.POLICY
    )
    bench.refused_out(
        bench.leaves(out6(dst=EVIL6) / roundabout / segment(), judged(bench, WEB)), DropReason.EXTENSION_HEADER
    )


def test_refuse_transport_forged_through_a_raw_socket_and_judge_what_is_not(bench: Bench) -> None:
    for forged in (syn(), segment("R"), datagram()):
        raw = bench.judge.sender(WEB)
        raw.flags |= SockFlag.RAW
        bench.refused_out(bench.leaves(out4() / forged, raw), DropReason.RAW_SOCKET)
        allowed(bench.leaves(out4(proto=47) / bytes(8), raw))


PROTOCOLS = {"HOPOPT": 0, "ST": 5, "DCCP": 33, "GRE": 47, "ESP": 50, "SCTP": 132, "reserved": 255}


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS.keys())
def test_deny_by_default_whatever_the_protocol(bench: Bench, protocol: int) -> None:
    bench.refused_in(bench.arrives(in4(proto=protocol) / bytes(20)), DropReason.POLICY)
    bench.refused_out(bench.leaves(out4(proto=protocol) / bytes(20), ROGUE), DropReason.POLICY)


# Answers to nothing


@pytest.fixture
def conversation(bench: Bench) -> Iterator[tuple[int, int]]:
    """Local ports of a TCP socket that waits for its SYN-ACK and of a UDP socket, both connected to the peer's 5432."""
    with contextlib.ExitStack() as opened:
        with bench.judge.inside():
            for command in ("link add far type veth peer end", f"addr add {OUR4}/24 dev far", "link set far up"):
                subprocess.run(["ip", *command.split()], check=True, capture_output=True)
            stream = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            datagrams = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        for made in (stream, datagrams):
            bench.judge.stamp(made.fileno(), bench.judge.sender(WEB))
        stream.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            stream.connect((PEER4, 5432))
        datagrams.connect((PEER4, 5432))
        yield stream.getsockname()[1], datagrams.getsockname()[1]
    with bench.judge.inside():
        subprocess.run(["ip", "link", "del", "far"], check=True, capture_output=True)


def test_refuse_a_syn_ack_that_answers_nothing(bench: Bench) -> None:
    answer = in4() / TCP(sport=5432, dport=40000, flags="SA")
    bench.refused_in(bench.arrives(answer), DropReason.UNSOLICITED)
    with listening(bench, socket.IPPROTO_TCP, 40000):
        bench.refused_in(bench.arrives(answer), DropReason.UNSOLICITED)


def test_pass_a_syn_ack_to_the_socket_that_waits_for_it(bench: Bench, conversation: tuple[int, int]) -> None:
    passed(bench.arrives(in4() / TCP(sport=5432, dport=conversation[0], flags="SA")))
    bench.refused_in(bench.arrives(in4() / TCP(sport=5433, dport=conversation[0], flags="SA")), DropReason.UNSOLICITED)


def test_leave_segments_under_way_to_the_stack(bench: Bench) -> None:
    for flags in ("A", "PA", "FA", "R", ""):
        passed(bench.arrives(in4() / segment(flags)))
        passed(bench.arrives(in6() / segment(flags)))


def test_refuse_an_echo_reply_that_was_not_asked_for(bench: Bench) -> None:
    number = 100 + bench.enforced
    bench.refused_in(bench.arrives(in4() / ICMP(type=0, id=number)), DropReason.UNSOLICITED)
    bench.refused_in(bench.arrives(in6() / ICMPv6EchoReply(id=number)), DropReason.UNSOLICITED)
    allowed(bench.leaves(out4() / ICMP(type=8, id=number), WEB))
    passed(bench.arrives(in4() / ICMP(type=0, id=number)))
    bench.refused_in(bench.arrives(in4() / ICMP(type=0, id=number + 50)), DropReason.UNSOLICITED)
    bench.refused_in(bench.arrives(in4(src="10.77.1.3") / ICMP(type=0, id=number)), DropReason.UNSOLICITED)


def test_an_echo_request_is_no_answer_to_one_with_the_same_number(bench: Bench) -> None:
    allowed(bench.leaves(out6() / ICMPv6EchoRequest(id=300), WEB))
    bench.refused_in(bench.arrives(in6() / ICMPv6EchoRequest(id=300)), DropReason.POLICY)
    passed(bench.arrives(in6() / ICMPv6EchoReply(id=300)))


def test_deny_echo_requests_without_a_rule_however_much_they_carry(bench: Bench) -> None:
    bench.refused_out(bench.leaves(out4() / ICMP(type=8) / bytes(1400), ROGUE), DropReason.POLICY)
    bench.refused_in(bench.arrives(in4() / ICMP(type=8) / bytes(1400)), DropReason.POLICY)


def test_pass_icmp_errors_that_quote_a_live_conversation_only(bench: Bench, conversation: tuple[int, int]) -> None:
    stream, datagrams = conversation
    quote = IP(src=OUR4, dst=PEER4)
    too_big = in4(src="10.77.1.254") / ICMP(type=3, code=4)
    passed_as(bench.arrives(too_big / quote / TCP(sport=stream, dport=5432)), ControlKind.ICMP_ERROR)
    passed_as(bench.arrives(too_big / quote / UDP(sport=datagrams, dport=5432)), ControlKind.ICMP_ERROR)
    unknown = (TCP(sport=1, dport=5432), TCP(sport=stream, dport=5433), UDP(sport=1, dport=5432), ICMP())
    for transport in unknown:
        bench.refused_in(bench.arrives(too_big / quote / transport), DropReason.UNSOLICITED)
    bench.refused_in(bench.arrives(too_big / Raw(bytes(quote)[:12])), DropReason.UNSOLICITED)


def test_refuse_icmp_errors_that_quote_a_listener(bench: Bench) -> None:
    with listening(bench, socket.IPPROTO_TCP, 5432):
        for frame, quote in (
            (in4() / ICMP(type=3, code=4), IP(src=OUR4, dst=PEER4)),
            (in6() / ICMPv6PacketTooBig(), IPv6(src=OUR6, dst=PEER6)),
            (in6() / ICMPv6DestUnreach(), IPv6(src=OUR6, dst=PEER6)),
        ):
            outcome = bench.arrives(frame / quote / TCP(sport=5432, dport=40000))
            bench.refused_in(outcome, DropReason.UNSOLICITED)


# What a host cannot live without


def test_pass_neighbour_discovery_from_on_link_only(bench: Bench) -> None:
    for message in (ICMPv6ND_NS(tgt=OUR6), ICMPv6ND_NA(tgt=PEER6), ICMPv6ND_RA()):
        passed_as(bench.arrives(in6(hlim=255) / message), ControlKind.NEIGHBOUR)
        bench.refused_in(bench.arrives(in6(hlim=64) / message), DropReason.NEIGHBOUR)


def test_refuse_neighbour_discovery_behind_a_fragment_header(bench: Bench) -> None:
    for header in (IPv6ExtHdrFragment(id=14), IPv6ExtHdrFragment(id=15, m=1)):
        bench.refused_in(bench.arrives(in6(hlim=255) / header / ICMPv6ND_RA()), DropReason.NEIGHBOUR)


def test_a_redirect_needs_a_rule(bench: Bench) -> None:
    bench.refused_in(bench.arrives(in6(hlim=255) / ICMPv6ND_Redirect()), DropReason.POLICY)


def test_a_workload_may_not_speak_for_its_neighbours(bench: Bench) -> None:
    for message in (ICMPv6ND_NA(tgt=PEER6), ICMPv6ND_RA(), ICMPv6ND_NS(tgt=PEER6)):
        raw = bench.judge.sender(WEB)
        raw.flags |= SockFlag.RAW
        bench.refused_out(bench.leaves(out6(hlim=255) / message, raw), DropReason.POLICY)


def test_pass_group_membership_under_its_name(bench: Bench) -> None:
    passed_as(bench.arrives(in4(proto=2, dst="224.0.0.1", ttl=1) / bytes(8)), ControlKind.GROUP)
    report = IPv6ExtHdrHopByHop(options=[RouterAlert(), PadN()]) / ICMPv6MLReport2()
    passed_as(bench.arrives(in6(dst="ff02::16", hlim=1) / report), ControlKind.GROUP)
    passed_as(bench.leaves_ownerless(out6(dst="ff02::16", hlim=1) / report), ControlKind.GROUP)


def test_the_host_may_ask_for_an_address_and_a_workload_may_not(bench: Bench) -> None:
    for ask in (
        out4(dst="255.255.255.255") / UDP(sport=68, dport=67),
        out6(dst="ff02::1:2") / UDP(sport=546, dport=547),
    ):
        passed_as(bench.leaves(ask, MACHINE), ControlKind.DHCP)
        bench.refused_out(bench.leaves(ask, ROGUE), DropReason.POLICY)


def test_a_workload_may_not_give_out_addresses(bench: Bench) -> None:
    for offer in (out4() / UDP(sport=67, dport=68), out6() / UDP(sport=547, dport=546)):
        bench.refused_out(bench.leaves(offer, ROGUE), DropReason.POLICY)
        bench.refused_out(bench.leaves(offer, MACHINE), DropReason.POLICY)


def test_pass_an_offered_address_to_the_host_and_not_to_a_workload(bench: Bench) -> None:
    offer = in4(dst="255.255.255.255") / UDP(sport=67, dport=68)
    passed_as(bench.arrives(offer), ControlKind.DHCP)
    with listening(bench, socket.IPPROTO_UDP, 68, ROGUE):
        bench.refused_in(bench.arrives(offer), DropReason.POLICY)


OWN_PACKETS = {
    "a reset": (out4() / TCP(sport=1, dport=2, flags="R"), ControlKind.TCP_RESET),
    "an acknowledgement": (out4() / TCP(sport=1, dport=2, flags="A"), ControlKind.TCP_ACK),
    "a SYN cookie": (out6() / TCP(sport=1, dport=2, flags="SA"), ControlKind.TCP_ACK),
    "an ICMP error": (out4() / ICMP(type=3) / IP() / UDP(), ControlKind.ICMP_ERROR),
    "an ICMPv6 error": (out6() / ICMPv6DestUnreach() / IPv6() / UDP(), ControlKind.ICMP_ERROR),
    "an echo reply": (out4() / ICMP(type=0), ControlKind.ECHO_REPLY),
    "an ICMPv6 echo reply": (out6() / ICMPv6EchoReply(), ControlKind.ECHO_REPLY),
    "a neighbour solicitation": (out6(hlim=255) / ICMPv6ND_NS(), ControlKind.NEIGHBOUR),
    "a membership report": (out4(proto=2, dst="224.0.0.22", ttl=1) / bytes(8), ControlKind.GROUP),
    "ARP": (framed(ARP()), ControlKind.ARP),
}


@pytest.mark.parametrize("frame, kind", OWN_PACKETS.values(), ids=OWN_PACKETS.keys())
def test_pass_what_the_kernel_itself_must_say(bench: Bench, frame: Packet, kind: ControlKind) -> None:
    passed_as(bench.leaves_ownerless(frame), kind)


NOBODYS = {
    "an opening": out4() / syn(),
    "data": out4() / segment(),
    "an acknowledgement with data": out6() / segment("PA"),
    "nothing but a FIN": out4() / TCP(sport=1, dport=2, flags="F"),
    "a datagram": out4() / datagram(),
    "an echo request": out4() / ICMP(type=8),
    "neighbour discovery from off-link": out6(hlim=64) / ICMPv6ND_NS(),
    "a redirect": out6(hlim=255) / ICMPv6ND_Redirect(),
    "another protocol": out4(proto=255) / bytes(8),
}


@pytest.mark.parametrize("frame", NOBODYS.values(), ids=NOBODYS.keys())
def test_refuse_what_no_socket_sent_and_what_is_forwarded(bench: Bench, frame: Packet) -> None:
    bench.refused_out(bench.leaves_ownerless(frame), DropReason.OWNERLESS)
    bench.refused_out(bench.leaves_ownerless(frame, ingress_ifindex=7), DropReason.FORWARDED)


@pytest.mark.parametrize("mark", OWN_MARKS)
def test_a_mark_of_our_own_lets_nothing_through_that_is_forwarded(bench: Bench, mark: int) -> None:
    """Whoever is root in a network namespace of his own can set it there, and it crosses a veth pair."""
    frame = NOBODYS["data"]
    bench.refused_out(bench.leaves_ownerless(frame, ingress_ifindex=7, tc_index=mark), DropReason.FORWARDED)
    bench.refused_out(bench.leaves_ownerless(frame, tc_index=mark), DropReason.OWNERLESS)


def test_control_packets_beyond_their_rate_are_refused_and_every_one_is_counted(bench: Bench) -> None:
    sent = 50_000
    outcome = bench.arrives(in4(proto=2) / bytes(8), times=sent)
    refusal = (DropReason.CONTROL_RATE, Direction.INGRESS, not bench.enforced)
    assert set(outcome.refusals) == {refusal}
    assert set(outcome.controls) == {ControlKind.GROUP}
    assert outcome.refusals[refusal] + outcome.controls[ControlKind.GROUP] == sent
    buckets = bench.judge.maps.fixed("buckets")
    index = int(ControlKind.GROUP).to_bytes(4, "little")
    buckets.update(index, bytes(len(buckets.lookup(index) or b"")))


# Devices without a link header. Test runs look for the ethertype where a link header has it: hence these sources.


def test_judge_bare_devices_like_others(bench: Bench) -> None:
    four, six = IP(src="8.0.0.1", dst=OUR4), IPv6(src="2001:db8:86dd::1", dst=OUR6)
    for network in (four, six):
        with listening(bench, socket.IPPROTO_TCP, 5432):
            allowed(bench.arrives(network / syn(), Entry.INGRESS_BARE))
        bench.refused_in(bench.arrives(network / syn(22), Entry.INGRESS_BARE), DropReason.POLICY)
        passed(bench.arrives(network / segment(), Entry.INGRESS_BARE))
        bench.refused_in(bench.arrives(network / TCP(dport=0), Entry.INGRESS_BARE), DropReason.MALFORMED)
    for network, target in ((four, PEER4), (six, PEER6)):
        leaving = type(network)(src=network.src, dst=target)
        allowed(bench.leaves(leaving / syn(), WEB, Entry.EGRESS_BARE))
        passed(bench.leaves(leaving / segment(), judged(bench, WEB), Entry.EGRESS_BARE))
        bench.refused_out(bench.leaves(leaving / syn(), ROGUE, Entry.EGRESS_BARE), DropReason.POLICY)


# Before any policy


@pytest.fixture
def unswitched(bench: Bench) -> Iterator[Bench]:
    """The same maps, but nothing has been switched in."""
    control = bench.judge.maps.fixed("control")
    in_force = control.lookup(bytes(4)) or b""
    control.update(bytes(4), bytes(8))
    yield Bench(bench.judge, enforced=True)
    control.update(bytes(4), in_force)


def test_drop_everything_before_a_policy_is_switched_in(unswitched: Bench) -> None:
    arp = framed(ARP())
    with listening(unswitched, socket.IPPROTO_TCP, 5432):
        for frame in (in4() / syn(), in6() / syn(), in4() / datagram(), in4() / ICMP(), arp):
            unswitched.refused_in(unswitched.arrives(frame), DropReason.NO_POLICY)
    for frame in (out4() / syn(), out6() / syn(), out4() / datagram(), out4() / segment(), arp):
        unswitched.refused_out(unswitched.leaves(frame, WEB), DropReason.NO_POLICY)
        unswitched.refused_out(unswitched.leaves_ownerless(frame), DropReason.NO_POLICY)
    assert unswitched.leaves(out4() / segment(), judged(unswitched, WEB)).ruling.local == Identity.UNKNOWN
