"""Broken, odd and hostile packets: whatever they are, nothing is allowed by accident and nothing goes uncounted."""

from __future__ import annotations

import os
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6MLReport2,
    ICMPv6ND_NS,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    PadN,
    RouterAlert,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether

from bulkhead.abi import SockFlag
from bulkhead.identity.selectors import Endpoint
from bulkhead.kernel.judge import Entry, Judge
from lab.verdict import Bench, Outcome, bundle_of

EXAMPLES = 50_000 if os.environ.get("HYPOTHESIS_PROFILE") == "deep" else 500

POLICY = """
apiVersion: bulkhead/v1alpha1
kind: Policy
metadata: {name: shop}
workloads:
  web: {match: {cgroup: /web}}
"""
WEB = Endpoint("here", "/web")

FOUR, SIX = (
    Ether() / IP(src="8.0.0.1", dst="10.77.1.1"),
    Ether() / IPv6(src="2001:db8:86dd::1", dst="fd77:1::1", hlim=255),
)
SEEDS = [
    bytes(frame)
    for frame in (
        FOUR / TCP(dport=5432, flags="S"),
        FOUR / TCP(dport=5432, flags="A") / b"data",
        FOUR / UDP(dport=53) / b"data",
        FOUR / ICMP() / bytes(16),
        FOUR / ICMP(type=3, code=4) / IP(src="10.77.1.1", dst="8.0.0.1") / TCP(),
        Ether() / IP(src="8.0.0.1", dst="10.77.1.1", flags="MF", id=7) / UDP(dport=53, len=64) / bytes(16),
        Ether() / IP(src="8.0.0.1", dst="10.77.1.1", frag=3, id=7, proto=17) / bytes(16),
        Ether() / IP(src="8.0.0.1", dst="255.255.255.255") / UDP(sport=67, dport=68) / bytes(32),
        SIX / TCP(dport=5432, flags="S"),
        SIX / TCP(dport=5432, flags="A") / b"data",
        SIX / UDP(dport=53) / b"data",
        SIX / ICMPv6EchoRequest(),
        SIX / ICMPv6ND_NS(),
        SIX / ICMPv6PacketTooBig() / IPv6(src="fd77:1::1") / UDP(),
        SIX / IPv6ExtHdrFragment(m=1, id=8, nh=17) / UDP(dport=53, len=64) / bytes(16),
        SIX / IPv6ExtHdrFragment(offset=3, id=8, nh=17) / bytes(16),
        SIX / IPv6ExtHdrHopByHop(options=[RouterAlert(), PadN()]) / ICMPv6MLReport2(),
        Ether() / ARP(),
        Ether() / Dot1Q(vlan=5) / IP() / TCP(),
    )
]
SHORTEST = 54
"""The kernel refuses to test-run less than an Ethernet and an IPv6 header."""


@pytest.fixture(scope="module")
def closed(judge: Judge, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Everybody enforced, and not one rule."""
    judge.enforce(bundle_of(tmp_path_factory.mktemp("policy"), POLICY), (WEB,))
    for name in ("fragments", "echoes", "datagrams"):
        forgotten = judge.maps.fixed(name)
        keys, _ = forgotten.lookup_batch()
        forgotten.delete_batch(keys, len(keys) // forgotten.info.key_size)
    return Bench(judge, enforced=True)


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """A valid frame with some bytes changed, most of them in its headers, and perhaps cut or longer."""
    frame = bytearray(draw(st.sampled_from(SEEDS)))
    rng = Random(draw(st.integers(0, 2**64 - 1)))
    for _ in range(draw(st.integers(0, 6))):
        at = rng.randrange(12, min(len(frame), 80))
        frame[at] = rng.choice((0, 1, 6, 17, 44, 58, 255, frame[at] ^ 1 << rng.randrange(8), rng.randrange(256)))
    if draw(st.booleans()):
        del frame[rng.randrange(14, len(frame)) :]
    return bytes(frame) + bytes(max(draw(st.sampled_from((0, 1, 9))), SHORTEST - len(frame)))


def is_later_tcp_segment(packet: bytes, kind: int) -> bool:
    """TCP without SYN: what arrives of it is the stack's to refuse. Read from the packet without the programs' help."""
    if kind == 0x0800:
        protocol, at = packet[9:10], (packet[0] & 15) * 4
    else:
        protocol, at = (packet[40:41], 48) if packet[6] == 44 else (packet[6:7], 40)
    flags = packet[at + 13 : at + 14]
    return kind in (0x0800, 0x86DD) and protocol == b"\x06" and bool(flags) and not flags[0] & 2


def check(outcome: Outcome, may_pass: bool) -> None:
    counted = sum(outcome.refusals.values()) + sum(outcome.controls.values())
    assert not outcome.hits
    if outcome.refusals:
        assert (counted, outcome.ruling.passes) == (1, False)
    elif outcome.controls:
        assert (counted, outcome.ruling.passes) == (1, True)
    else:
        assert may_pass and outcome.ruling.passes


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="HYPOTHESIS_PROFILE" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(mutations())
def test_without_a_rule_nothing_passes_but_named_control_packets(closed: Bench, frame: bytes) -> None:
    kind = int.from_bytes(frame[12:14], "big")
    check(closed.arrives(frame), is_later_tcp_segment(frame[14:], kind))
    for send in _ways_out(closed):
        check(send(frame), may_pass=False)
    bare = frame[14:].ljust(SHORTEST, b"\0")
    kind = int.from_bytes(bare[12:14], "big")  # where a test run looks for it
    check(closed.arrives(bare, Entry.INGRESS_BARE), is_later_tcp_segment(bare, kind))
    check(closed.leaves(bare, WEB, Entry.EGRESS_BARE), may_pass=False)


def _ways_out(bench: Bench) -> list[Callable[[bytes], Outcome]]:
    raw = bench.judge.sender(WEB)
    raw.flags |= SockFlag.RAW
    return [
        lambda frame: bench.leaves(frame, WEB),
        lambda frame: bench.leaves(frame, raw),
        lambda frame: bench.leaves(frame, WEB, Entry.EGRESS_LOOPBACK),
        lambda frame: bench.leaves_ownerless(frame),
    ]
