"""Identity on the wire as it arrives: the real programs judge what the lab's own codec makes, and the attacker's too.

The receiver is node beta. Alpha and gamma share keys with it, delta is registered and has none, and eve is nobody.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from random import Random

import pytest
from scapy.layers.inet import IP, TCP, in4_chksum
from scapy.layers.inet6 import IPv6, in6_chksum
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from bulkhead.abi import (
    Direction,
    DropReason,
    Identity,
    NodeFlag,
    SockFlag,
    SockState,
    WireCount,
)
from bulkhead.identity.registry import workload_identity
from bulkhead.identity.selectors import Endpoint
from bulkhead.kernel import libbpf
from bulkhead.kernel.judge import Judge
from bulkhead.kernel.maps import KernelMaps
from bulkhead.policy.model import QualifiedName
from lab import wire
from lab.verdict import Bench, allowed, bundle_of
from lab.wire import Forger, Party, segment

POLICY = """
apiVersion: bulkhead/v1alpha1
kind: Policy
metadata: {name: shop}
workloads:
  web: {match: {cgroup: /web}}
  bound: {match: {cgroup: /bound, host: ["alpha*"]}}
  rogue: {match: {cgroup: /rogue}}
  db: {match: {cgroup: /db}}
externals:
  rack: {cidr: [10.77.1.0/24]}
  partner: {cidr: [198.51.100.0/24]}
allow:
  - {name: web-db, from: [web, bound], to: db, ports: [5432]}
  - {name: rack-db, from: rack, to: db, ports: [7000]}
  - {name: db-web, from: db, to: [web, partner], ports: [8080]}
"""
DOMAIN = "example.org"
STORM = int(os.environ.get("BULKHEAD_WIRE_SYNS", "50000"))
"""How many openings an attacker tries."""
_PASS = -1


def identity_of(name: str) -> int:
    return workload_identity(DOMAIN, QualifiedName(f"shop/{name}"))


WEB, BOUND, ROGUE, DB = (identity_of(name) for name in ("web", "bound", "rogue", "db"))
NOBODYS = identity_of("nobody")
DB_END = Endpoint("beta.example.org", "/db")

ALPHA = Party("alpha.example.org", bytes(range(1, 33)))
BETA = Party("beta.example.org", bytes(range(33, 65)))
GAMMA = Party("gamma.example.org", bytes(range(65, 97)))
DELTA = wire.number_of("delta.example.org")
EVE = Party("eve.example.org", bytes(range(97, 129)))

HERE, HERE6 = "10.77.1.1", "fd77:1::1"
AT_ALPHA, AT_ALPHA6, AT_DELTA = "10.77.1.2", "fd77:1::2", "10.77.1.4"
BY_ADDRESS, LEGACY = "10.77.1.5", "10.77.1.6"
ELSEWHERE, PARTNER = "203.0.113.7", "198.51.100.9"
NODES = {
    AT_ALPHA: (ALPHA.node, 0),
    AT_ALPHA6: (ALPHA.node, 0),
    AT_DELTA: (DELTA, 0),
    BY_ADDRESS: (GAMMA.node, NodeFlag.BY_ADDRESS),
    LEGACY: (77, NodeFlag.LEGACY),
}
ENDS = {"source": AT_ALPHA, "target": HERE}

FROM_ALPHA, FROM_GAMMA = (Forger.knowing(party, BETA, DOMAIN) for party in (ALPHA, GAMMA))
FROM_BETA = Forger.knowing(BETA, ALPHA, DOMAIN)
STAMP_KEY = bytes(range(16))
COMMIT = bytes.fromhex("3f2c1ab23f2c1ab2")
GUARD_SLOTS = 8
WIRE_VERIFIED = 0xB17E
"""The mark of what another device of the host has verified."""


EPOCH = 439_453
TICK = EPOCH * wire.EPOCH_TICKS + 1
"""The receiver's, in all tests: its second in an epoch, so that clocks that are slow are in the one before."""


# What the receiver knows


def mapped(address: str) -> bytes:
    if ":" in address:
        return socket.inet_pton(socket.AF_INET6, address)
    return bytes(10) + b"\xff\xff" + socket.inet_aton(address)


def tell(maps: KernelMaps) -> None:
    """Fill the maps as the agent of beta would, by the lab's own derivation."""
    set_clock(maps)
    for address, (node, flags) in NODES.items():
        maps.fixed("nodes").update(struct.pack("<I16s", 128, mapped(address)), struct.pack("<II", node, flags))
    for party in (ALPHA, GAMMA):
        pair = wire.pair_secret(BETA.secret, party.public)
        for epoch in (EPOCH - 1, EPOCH):
            sending = wire.direction_key(pair, DOMAIN, BETA, party, epoch)
            receiving = wire.direction_key(pair, DOMAIN, party, BETA, epoch)
            maps.fixed("wire_keys").update(struct.pack("<II", party.node, epoch), sending + receiving)
    bound_to = wire.host_set_of(["alpha*"])
    maps.fixed("claims").update(struct.pack("<II", ALPHA.node, bound_to), (1).to_bytes(4, "little"))


def set_clock(maps: KernelMaps) -> None:
    """It is the middle of TICK: nothing that takes less than half a tick sees another."""
    offset = TICK * wire.TICK_S + wire.TICK_S // 2 - int(time.clock_gettime(time.CLOCK_BOOTTIME))
    own = STAMP_KEY + struct.pack("<QII8s", offset, BETA.node, 0, COMMIT)
    maps.fixed("wire_self").update(bytes(4), own)


def forget(maps: KernelMaps) -> None:
    """As if there had never been an identity on the wire."""
    maps.fixed("wire_self").update(bytes(4), bytes(maps.fixed("wire_self").info.value_size))
    for name in ("nodes", "wire_keys", "claims"):
        table = maps.fixed(name)
        keys = b"".join(table.as_dict())
        table.delete_batch(keys, len(keys) // table.info.key_size)
    guard_with(maps, 0)


def guard_with(maps: KernelMaps, *words: int) -> None:
    """Every bucket of the replay guard with these entries, over and over."""
    table = maps.fixed("guard")
    buckets = table.info.max_entries
    bucket = struct.pack(f"<{GUARD_SLOTS}Q", *(words[at % len(words)] for at in range(GUARD_SLOTS)))
    table.update_batch(struct.pack(f"<{buckets}I", *range(buckets)), bucket * buckets, buckets)


@pytest.fixture(scope="module")
def node(judge: Judge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    """Node beta, everybody enforced."""
    judge.enforce(bundle_of(tmp_path_factory.mktemp("policy"), POLICY), (DB_END,))
    tell(judge.maps)
    yield judge
    forget(judge.maps)


@pytest.fixture
def bench(node: Judge) -> Iterator[Bench]:
    """The same with a database that listens, and no opening remembered."""
    guard_with(node.maps, 0)
    set_clock(node.maps)
    with (
        node.receiving(socket.IPPROTO_TCP, 5432, node.sender(DB_END)),
        node.receiving(socket.IPPROTO_TCP, 7000, node.sender(DB_END)),
    ):
        yield Bench(node, enforced=True)


# Openings


def framed(header: bytes, source: str = AT_ALPHA, target: str = HERE, data: bytes = b"") -> bytes:
    """A segment on its way, with the checksum that it should have."""
    is_six = ":" in source
    network = IPv6(src=source, dst=target, nh=6) if is_six else IP(src=source, dst=target, proto=6)
    checksum = (in6_chksum if is_six else in4_chksum)(6, network, header + data)
    whole = header[:16] + checksum.to_bytes(2, "big") + header[18:] + data
    return bytes(Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01") / network / whole)


@dataclass(frozen=True, slots=True)
class Opening:
    """A SYN in the making. Fields that are not the ordinary ones make it a bad one."""

    identity: int = WEB
    sequence: int = 1000
    apart: int = 0
    """Ticks from now."""
    forger: Forger = FROM_ALPHA
    port: int = 5432
    source_port: int = 40000
    source: str = AT_ALPHA
    target: str = HERE
    data: bytes = b""
    sent_sequence: int | None = None
    change: Callable[[bytes], bytes] = bytes
    """What becomes of the option."""

    def frame(self) -> bytes:
        said = self.change(bytes(self.forger.option(self.identity, self.sequence, TICK + self.apart)))
        sequence = self.sequence if self.sent_sequence is None else self.sent_sequence
        header = segment(said, sequence, self.port, self.source_port)
        return framed(header, self.source, self.target, self.data)


def patched(at: int, *values: int) -> Callable[[bytes], bytes]:
    """Other bytes from `at` on."""
    return lambda said: said[:at] + bytes(values) + said[at + len(values) :]


def toggled(at: int, bit: int = 1) -> Callable[[bytes], bytes]:
    return lambda said: said[:at] + bytes([said[at] ^ bit]) + said[at + 1 :]


def under(key: Callable[[int], bytes], node: int = ALPHA.node) -> Forger:
    return Forger(node, key)


GOOD = {
    "an opening": Opening(),
    "one over IPv6": Opening(source=AT_ALPHA6, target=HERE6),
    "one from behind a NAT": Opening(source=ELSEWHERE),
    "one from another node's address": Opening(source=AT_DELTA),
    "one of a workload that is bound to this node": Opening(identity=BOUND),
    "one from a clock that is 32 s slow": Opening(apart=-2),
    "one from a clock that is 32 s fast": Opening(apart=2),
}


@pytest.mark.parametrize("opening", GOOD.values(), ids=GOOD)
def test_an_opening_is_judged_by_the_identity_that_it_proves(bench: Bench, opening: Opening) -> None:
    verified = counted(bench, WireCount.VERIFIED)
    outcome = bench.arrives(opening.frame())
    allowed(outcome)
    assert outcome.ruling.remote == opening.identity
    assert counted(bench, WireCount.VERIFIED) == verified + 1


def test_an_opening_that_proves_another_identity_is_refused_for_what_it_is(bench: Bench) -> None:
    outcome = bench.arrives(Opening(identity=ROGUE).frame())
    bench.refused_in(outcome, DropReason.POLICY)
    assert outcome.ruling.remote == ROGUE


def test_the_hosts_own_processes_are_judged_by_their_address(bench: Bench) -> None:
    opening = Opening(identity=Identity.HOST, port=7000)
    allowed(bench.arrives(opening.frame()))
    bench.refused_in(bench.arrives(replace(opening, sequence=2, port=5432).frame()), DropReason.POLICY)
    bench.refused_in(bench.arrives(replace(opening, sequence=3, source=ELSEWHERE).frame()), DropReason.POLICY)


@pytest.mark.parametrize("source", [AT_DELTA, BY_ADDRESS, LEGACY])
def test_a_node_is_not_the_host_at_an_address_that_is_registered_for_another(bench: Bench, source: str) -> None:
    """Identity 1 is judged by the address: with that of another node it would be the other node's host."""
    opening = Opening(identity=Identity.HOST, port=7000, source=source)
    bench.refused_in(bench.arrives(opening.frame()), DropReason.WIRE_CLAIM)


BAD = {
    "nothing is said": (Opening(change=lambda said: b""), DropReason.WIRE_MISSING),
    "it is not the last option": (Opening(change=lambda said: said + b"\1\1\1\1"), DropReason.WIRE_MISSING),
    "its place is filled with NOPs": (Opening(change=lambda said: b"\1" * 20), DropReason.WIRE_MISSING),
    "it is another experiment": (Opening(change=toggled(3)), DropReason.WIRE_MISSING),
    "it is another kind": (Opening(change=patched(0, 254)), DropReason.WIRE_MISSING),
    "it is cut": (Opening(change=lambda said: said[:12]), DropReason.WIRE_MISSING),
    "its length is less": (Opening(change=patched(1, 19)), DropReason.WIRE_MALFORMED),
    "its length is more": (Opening(change=patched(1, 21)), DropReason.WIRE_MALFORMED),
    "there is data": (Opening(data=b"early"), DropReason.WIRE_MALFORMED),
    "a node that is not registered": (Opening(forger=Forger.knowing(EVE, BETA, DOMAIN)), DropReason.WIRE_NO_KEY),
    "a registered node without a key": (Opening(forger=Forger.ignorant(DELTA)), DropReason.WIRE_NO_KEY),
    "the receiver itself": (Opening(forger=Forger.knowing(BETA, BETA, DOMAIN)), DropReason.WIRE_NO_KEY),
    "node 0": (Opening(change=patched(8, 0, 0, 0)), DropReason.WIRE_NO_KEY),
    "another identity": (Opening(change=toggled(7)), DropReason.WIRE_FORGED),
    "another node": (Opening(change=patched(8, *GAMMA.node.to_bytes(3, "big"))), DropReason.WIRE_FORGED),
    "another tick that would be believed": (Opening(apart=-1, change=toggled(11)), DropReason.WIRE_FORGED),
    "another first byte of the MAC": (Opening(change=toggled(12)), DropReason.WIRE_FORGED),
    "another last byte of the MAC": (Opening(change=toggled(19, 128)), DropReason.WIRE_FORGED),
    "a MAC of nothing": (Opening(change=patched(12, *bytes(8))), DropReason.WIRE_FORGED),
    "another sequence number": (Opening(sent_sequence=1001), DropReason.WIRE_FORGED),
    "a guessed key": (Opening(forger=Forger.ignorant(ALPHA.node)), DropReason.WIRE_FORGED),
    "a key of zeroes": (Opening(forger=under(lambda epoch: bytes(16))), DropReason.WIRE_FORGED),
    "the key of another epoch": (Opening(forger=under(lambda e: FROM_ALPHA.key(e - 1))), DropReason.WIRE_FORGED),
    "the key of the other direction": (
        Opening(forger=under(FROM_BETA.key)),
        DropReason.WIRE_FORGED,
    ),
    "the key of another trust domain": (
        Opening(forger=under(Forger.knowing(ALPHA, BETA, "example.com").key)),
        DropReason.WIRE_FORGED,
    ),
    "another node's key": (Opening(forger=under(FROM_GAMMA.key)), DropReason.WIRE_FORGED),
    "a clock that is 64 s slow": (Opening(apart=-4), DropReason.WIRE_CLOCK),
    "a clock that is 64 s fast": (Opening(apart=4), DropReason.WIRE_CLOCK),
    "a clock that is 10 minutes slow": (Opening(apart=-38), DropReason.WIRE_CLOCK),
    "a clock that is 10 minutes fast": (Opening(apart=38), DropReason.WIRE_CLOCK),
    "an opening of an epoch ago": (Opening(apart=-256), DropReason.WIRE_FORGED),
    "a workload of other nodes": (Opening(forger=FROM_GAMMA, identity=BOUND), DropReason.WIRE_CLAIM),
    "a workload that policy does not know": (Opening(identity=NOBODYS), DropReason.WIRE_CLAIM),
    "an address class": (Opening(identity=WEB | 1 << 31), DropReason.WIRE_CLAIM),
    "the identity 0": (Opening(identity=Identity.UNKNOWN), DropReason.WIRE_CLAIM),
    "the world": (Opening(identity=Identity.WORLD), DropReason.WIRE_CLAIM),
    "whoever answers": (Opening(identity=Identity.PEER), DropReason.WIRE_CLAIM),
    "a node without an agent": (Opening(identity=Identity.LEGACY), DropReason.WIRE_CLAIM),
}


@pytest.mark.parametrize(("opening", "reason"), BAD.values(), ids=BAD)
def test_an_opening_that_does_not_hold_is_refused_for_exactly_that(
    bench: Bench, opening: Opening, reason: DropReason
) -> None:
    verified = counted(bench, WireCount.VERIFIED)
    bench.refused_in(bench.arrives(opening.frame()), reason)
    assert counted(bench, WireCount.VERIFIED) == verified


def counted(bench: Bench, what: WireCount) -> int:
    table = bench.judge.maps.fixed("wire_counts")
    return table.sum_words(table.lookup(int(what).to_bytes(4, "little")) or bytes(8))[0]


# Who says nothing


def test_a_node_may_be_known_by_its_address_if_its_record_says_so(bench: Bench) -> None:
    silent = Opening(change=lambda said: b"", source=BY_ADDRESS)
    allowed(bench.arrives(replace(silent, port=7000).frame()))
    bench.refused_in(bench.arrives(silent.frame()), DropReason.POLICY)


def test_what_such_a_node_does_say_has_to_hold(bench: Bench) -> None:
    lie = Opening(source=BY_ADDRESS, port=7000, forger=Forger.ignorant(GAMMA.node))
    bench.refused_in(bench.arrives(lie.frame()), DropReason.WIRE_FORGED)


def test_a_node_without_an_agent_is_legacy_whatever_its_prefix_says(bench: Bench) -> None:
    outcome = bench.arrives(Opening(change=lambda said: b"", source=LEGACY, port=7000).frame())
    bench.refused_in(outcome, DropReason.POLICY)
    assert outcome.ruling.remote == Identity.LEGACY


# Replays


REPLAYS = {
    "from another port": {"source_port": 40001},
    "from another address": {"source": ELSEWHERE},
    "to another port": {"port": 7000},
}
HERE6_TOO = "fd77:2::1"
"""Its last 32 bits are those of HERE6."""


@pytest.mark.parametrize("other", REPLAYS.values(), ids=REPLAYS)
def test_an_opening_that_has_arrived_is_refused_from_other_ends(bench: Bench, other: dict[str, object]) -> None:
    opening = Opening()
    allowed(bench.arrives(opening.frame()))
    bench.refused_in(bench.arrives(replace(opening, **other).frame()), DropReason.WIRE_REPLAYED)


def test_the_whole_of_an_address_tells_one_conversation_from_another(bench: Bench) -> None:
    opening = Opening(source=AT_ALPHA6, target=HERE6)
    allowed(bench.arrives(opening.frame()))
    bench.refused_in(bench.arrives(replace(opening, target=HERE6_TOO).frame()), DropReason.WIRE_REPLAYED)


def test_an_opening_that_arrives_again_from_the_same_ends_is_a_retransmission(bench: Bench) -> None:
    frame = Opening().frame()
    allowed(bench.arrives(frame))
    allowed(bench.arrives(frame))


def test_openings_are_not_forgotten_while_they_can_be_replayed(bench: Bench) -> None:
    believed = [(tick & 0xFF) << 56 | (at + 1) << 32 | 1 for at, tick in enumerate(range(TICK - 1, TICK + 2))]
    guard_with(bench.judge.maps, *believed)
    bench.refused_in(bench.arrives(Opening().frame()), DropReason.WIRE_GUARD)


def test_openings_that_are_too_old_to_be_believed_make_room(bench: Bench) -> None:
    guard_with(bench.judge.maps, ((TICK - 4) & 0xFF) << 56 | 1 << 32 | 1)
    allowed(bench.arrives(Opening().frame()))


# Answers


@dataclass(frozen=True, slots=True)
class Answer:
    """A SYN-ACK in the making, to an opening of 1000."""

    identity: int = WEB
    acknowledgement: int = 1001
    forger: Forger = FROM_ALPHA
    kind: int = wire.ANSWER
    apart: int = 0
    sent_sequence: int = 5000
    change: Callable[[bytes], bytes] = bytes

    def frame(self) -> bytes:
        said = self.forger.option(self.identity, 5000, TICK + self.apart, self.acknowledgement, self.kind)
        header = segment(self.change(bytes(said)), self.sent_sequence, 41000, 8080, self.acknowledgement, "SA")
        return framed(header)


@pytest.fixture
def pending(node: Judge) -> Iterator[Bench]:
    """A database whose opening has left for alpha and waits for an answer."""
    with waiting(node, node.sender(DB_END)):
        yield Bench(node, enforced=True)


@contextmanager
def waiting(node: Judge, state: SockState) -> Iterator[None]:
    """A socket with this state whose opening has left for alpha."""
    state.flags |= SockFlag.OPENED | SockFlag.STREAM | SockFlag.PENDING
    state.remote_node, state.wire_word = ALPHA.node, 1000
    set_clock(node.maps)
    with node.inside():
        ip("link add wire0 type veth peer name wire1")  # nobody answers there
        ip(f"address add {HERE}/24 dev wire0")
        ip("link set wire0 up")
        ip("link set wire1 up")
        caller = socket.socket()
    try:
        with caller:
            caller.setblocking(False)
            caller.bind((HERE, 41000))
            caller.connect_ex((AT_ALPHA, 8080))
            node.stamp(caller.fileno(), state)
            yield
    finally:
        with node.inside():
            ip("link delete wire0")


def ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)


def test_an_answer_is_judged_by_who_proves_to_have_given_it(pending: Bench) -> None:
    outcome = pending.arrives(Answer().frame())
    allowed(outcome)
    assert (outcome.ruling.direction, outcome.ruling.remote) == (Direction.EGRESS, WEB)


def test_an_answer_of_somebody_else_is_refused_for_who_it_is(pending: Bench) -> None:
    outcome = pending.arrives(Answer(identity=ROGUE).frame())
    pending.refused_out(outcome, DropReason.POLICY)
    assert outcome.ruling.remote == ROGUE


BAD_ANSWERS = {
    "nothing is said": (Answer(change=lambda said: b""), DropReason.WIRE_MISSING),
    "another sequence number": (Answer(sent_sequence=5001), DropReason.WIRE_FORGED),
    "the caller's own word, sent back": (Answer(forger=FROM_BETA, kind=wire.OPENING), DropReason.WIRE_NO_KEY),
    "the same in the other node's name": (Answer(forger=under(FROM_BETA.key)), DropReason.WIRE_FORGED),
    "an opening in place of an answer": (Answer(kind=wire.OPENING), DropReason.WIRE_FORGED),
    "another identity": (Answer(change=toggled(7)), DropReason.WIRE_FORGED),
    "a node that was not asked": (Answer(forger=FROM_GAMMA), DropReason.WIRE_CLAIM),
    "a node without a key": (Answer(forger=Forger.ignorant(DELTA)), DropReason.WIRE_NO_KEY),
    "too old": (Answer(apart=-4), DropReason.WIRE_CLOCK),
    "a workload that policy does not know": (Answer(identity=NOBODYS), DropReason.WIRE_CLAIM),
}


@pytest.mark.parametrize(("answer", "reason"), BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_an_answer_that_does_not_hold_is_refused_for_exactly_that(
    pending: Bench, answer: Answer, reason: DropReason
) -> None:
    pending.refused_out(pending.arrives(answer.frame()), reason)


def test_an_answer_to_another_opening_settles_nothing(pending: Bench) -> None:
    pending.refused_in(pending.arrives(Answer(acknowledgement=1002).frame()), DropReason.WIRE_REPLAYED)
    allowed(pending.arrives(Answer().frame()))


def test_after_an_answer_that_does_not_hold_the_right_one_is_still_taken(pending: Bench) -> None:
    pending.refused_out(pending.arrives(Answer(sent_sequence=5001).frame()), DropReason.WIRE_FORGED)
    allowed(pending.arrives(Answer().frame()))


# What leaves, read by the lab's decoder


PLACE = bytes(wire.Option())
DECLINED = {
    "a cookie request": bytes([34, 2, 1, 1]),
    "an experimental cookie request": bytes([254, 4, 0xF9, 0x89]),
    "MP_CAPABLE": bytes([30, 4, 1, 1]),
}
SHORT_PLACE = bytes([wire.OPTION_KIND, 16, 0xB0, 0x7C]) + bytes(12)


def leaving(bench: Bench, said: bytes, target: str = AT_ALPHA) -> Packet:
    """An opening of the database as it is when it has left; sock_ops has put `said` into it."""
    origin = HERE6 if ":" in target else HERE
    frame = framed(segment(said, 1000, 8080), origin, target)
    assert bench.leaves(frame, DB_END).ruling.passes
    return transformed(bench, "harness_packet", frame)


def transformed(bench: Bench, program: str, frame: bytes) -> Packet:
    """A packet as a program leaves it, with checksums that hold."""
    with bench.judge.inside():
        result = Ether(libbpf.prog_test_run(bench.judge.program(program), frame).data)
    network = result.payload
    sums = in6_chksum if IPv6 in result else in4_chksum
    assert sums(6, network, bytes(result[TCP])) == 0
    assert IPv6 in result or wire.folded(wire.sum_words(bytes(result)[14:34])) == 0xFFFF
    return result


@pytest.mark.parametrize("target", [AT_ALPHA, AT_ALPHA6])
def test_an_opening_leaves_with_the_callers_identity(bench: Bench, target: str) -> None:
    header = leaving(bench, PLACE, target)[TCP]
    assert bytes(wire.found(bytes(header)) or b"") == bytes(FROM_BETA.option(DB, 1000, TICK))


@pytest.mark.parametrize("declined", DECLINED.values(), ids=DECLINED)
def test_an_identity_is_written_over_what_the_conversation_can_do_without(bench: Bench, declined: bytes) -> None:
    header = leaving(bench, declined + SHORT_PLACE)[TCP]
    assert bytes(wire.found(bytes(header)) or b"") == bytes(FROM_BETA.option(DB, 1000, TICK))
    assert declined not in bytes(header)


def test_an_identity_is_written_over_nothing_else(bench: Bench) -> None:
    frame = framed(segment(bytes([30, 4, 1, 1])[::-1] + SHORT_PLACE, 1000, 8080), HERE, AT_ALPHA)
    bench.refused_out(bench.leaves(frame, DB_END), DropReason.WIRE_NO_ROOM)


def test_nobody_but_a_node_is_told_who_calls(bench: Bench) -> None:
    header = bytes(leaving(bench, PLACE, PARTNER)[TCP])
    assert wire.found(header) is None
    assert header[-20:] == b"\1" * 20


@pytest.mark.parametrize("declined", DECLINED.values(), ids=DECLINED)
def test_nothing_is_declined_towards_others(bench: Bench, declined: bytes) -> None:
    header = bytes(leaving(bench, declined + SHORT_PLACE, PARTNER)[TCP])
    assert header[-20:] == declined + b"\1" * 16


def test_an_opening_without_room_does_not_leave_for_a_node(bench: Bench) -> None:
    frame = framed(segment(b"", 1000, 8080), HERE, AT_ALPHA)
    bench.refused_out(bench.leaves(frame, DB_END), DropReason.WIRE_NO_ROOM)


def test_no_data_leaves_for_a_node_with_an_opening(bench: Bench) -> None:
    """By a Fast Open cookie from before, where the other options are few enough to leave room for both."""
    frame = framed(segment(PLACE, 1000, 8080), HERE, AT_ALPHA, data=b"early")
    bench.refused_out(bench.leaves(frame, DB_END), DropReason.WIRE_NO_ROOM)


def test_an_opening_does_not_leave_for_a_node_without_a_key(bench: Bench) -> None:
    frame = framed(segment(PLACE, 1000, 8080), HERE, AT_DELTA)
    bench.refused_out(bench.leaves(frame, DB_END), DropReason.WIRE_NO_KEY)


def test_an_opening_for_which_no_answer_could_be_allowed_does_not_leave(bench: Bench) -> None:
    frame = framed(segment(PLACE, 1000, 8081), HERE, AT_ALPHA)
    bench.refused_out(bench.leaves(frame, DB_END), DropReason.POLICY)


def test_what_was_verified_reaches_the_stack_under_a_stamp_of_this_machine(bench: Bench) -> None:
    sent = Ether(Opening().frame())
    came, went = (wire.found(bytes(packet[TCP])) for packet in (sent, transformed(bench, "tc_ingress", bytes(sent))))
    assert came is not None and went is not None
    assert (went.identity, went.node) == (WEB, ALPHA.node)
    assert went.mac != came.mac


@pytest.mark.parametrize("source", [AT_ALPHA, AT_ALPHA6])
def test_a_stamp_holds_at_the_next_device_for_what_comes_from_the_same_end(bench: Bench, source: str) -> None:
    opening = Opening(source=source, target=HERE6 if ":" in source else HERE)
    header = bytes(transformed(bench, "tc_ingress", opening.frame())[TCP])
    stamped = framed(header[:16] + bytes(2) + header[18:], opening.source, opening.target)
    allowed(bench.arrives(stamped, tc_index=WIRE_VERIFIED))
    bench.refused_in(bench.arrives(stamped), DropReason.WIRE_FORGED)


@pytest.mark.parametrize("other", ["port", "address", "sequence number"])
def test_a_stamp_that_was_learned_holds_for_nothing_else(bench: Bench, other: str) -> None:
    """A listener may read it, and root in a namespace behind a veth pair may set the mark."""
    header = bytes(transformed(bench, "tc_ingress", Opening().frame())[TCP])
    source = ELSEWHERE if other == "address" else AT_ALPHA
    if other == "port":
        header = (40001).to_bytes(2, "big") + header[2:]
    elif other == "sequence number":
        header = header[:4] + (1001).to_bytes(4, "big") + header[8:]
    cleared = header[:16] + bytes(2) + header[18:]
    outcome = bench.arrives(framed(cleared, source), tc_index=WIRE_VERIFIED)
    bench.refused_in(outcome, DropReason.WIRE_FORGED)


RESETS = {
    "an opening and a reset at once": (framed(segment(b"", 1000, 5432, flags="SR")), DropReason.WIRE_MISSING),
    "from nowhere": (framed(segment(b"", 1000, 5432, flags="R"), "127.0.0.1"), DropReason.MARTIAN),
}


@pytest.mark.parametrize(("frame", "reason"), RESETS.values(), ids=RESETS)
def test_a_reset_that_is_refused_does_not_pass(bench: Bench, frame: bytes, reason: DropReason) -> None:
    bench.refused_in(bench.arrives(frame), reason)


@pytest.mark.parametrize("source", [AT_ALPHA, AT_ALPHA6])
def test_a_refusal_by_policy_is_explained_to_the_node_that_is_refused(bench: Bench, source: str) -> None:
    opening = Opening(identity=ROGUE, source=source, target=HERE6 if ":" in source else HERE)
    reset = transformed(bench, "tc_ingress", opening.frame())[TCP]
    assert (reset.flags, reset.sport, reset.dport, reset.seq, reset.ack) == ("RA", 5432, 40000, 0, 1001)
    assert reset.underlayer.dst == source
    generation = bench.judge.maps.generation
    expected = FROM_BETA.refusal(DB, 1001, TICK, DropReason.POLICY, generation, COMMIT)
    assert bytes(wire.found(bytes(reset)) or b"") == bytes(expected)


def test_a_forgery_is_told_nothing(bench: Bench) -> None:
    forged = Opening(change=toggled(12)).frame()
    told = counted(bench, WireCount.TOLD)
    assert bytes(transformed(bench, "tc_ingress", forged)) == forged
    assert counted(bench, WireCount.TOLD) == told


# The storm


def storm(random: Random, known: list[bytes], count: int) -> Iterator[bytes]:
    """Frames of an attacker on the path: it has seen `known`, knows the format and every node, and has no key."""
    tcp = 14 + 20
    nodes = [party.node.to_bytes(3, "big") for party in (ALPHA, BETA, GAMMA)]
    seen = [(frame, len(frame) - (20 if frame[-20] == wire.OPTION_KIND else 16)) for frame in known]
    for at in range(count):
        original, option = seen[at % len(seen)]
        frame = bytearray(original)
        attack = at % 5
        if attack == 0:  # a guess in the right form
            frame[tcp + 4 : tcp + 8] = random.randbytes(4)
            frame[option + 4 :] = random.randbytes(len(frame) - option - 4)
            frame[option + 8 : option + 11] = nodes[at % 3]
            if len(frame) - option == 20:
                frame[option + 11] = (TICK + at % 3 - 1) & 0xFF
        elif attack == 1:  # a few bits of what was seen
            frame[option:] = wire.damaged(bytes(frame[option:]), random)
        elif attack == 2:  # for another opening
            frame[tcp + 4 : tcp + 8] = wire.damaged(bytes(frame[tcp + 4 : tcp + 8]), random)
        elif attack == 3:  # the same again, from elsewhere
            frame[tcp : tcp + 2] = (1024 + at % 38000).to_bytes(2, "big")
        else:  # with less of an option
            frame[tcp + 12] = random.randint(5, (len(frame) - tcp) // 4 - 1) << 4
        yield bytes(frame)


def judged(node: Judge, frames: list[bytes]) -> int:
    """How many of these pass, all within one tick."""
    set_clock(node.maps)
    program = node.program("tc_ingress")
    with node.inside():
        return sum(libbpf.prog_test_run(program, frame).retval == _PASS for frame in frames)


def batched(frames: Iterator[bytes], count: int) -> Iterator[list[bytes]]:
    while batch := list(islice(frames, count)):
        yield batch


def test_no_random_or_mutated_opening_is_accepted(bench: Bench) -> None:
    known = [Opening(sequence=at).frame() for at in range(1000, 1040)]
    for frame in known:
        allowed(bench.arrives(frame))
    before, hits, verified = bench.refusals(), bench.hits(), counted(bench, WireCount.VERIFIED)
    passed = sum(judged(bench.judge, frames) for frames in batched(storm(Random(5), known, STORM), 10_000))
    assert passed == 0
    assert (bench.hits(), counted(bench, WireCount.VERIFIED)) == (hits, verified)
    refused = {key: count - before[key] for key, count in bench.refusals().items() if count != before[key]}
    assert sum(refused.values()) == STORM
    assert {direction for _, direction, _ in refused} == {Direction.INGRESS}
