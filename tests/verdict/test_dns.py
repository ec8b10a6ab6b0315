"""Crafted questions and answers through the real programs: what is learned from them, and what is not, and why not."""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import pairwise

import pytest
from scapy.layers.dns import DNS, DNSQR, DNSRR, DNSRROPT
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from bulkhead.abi import DnsOutcome, SockState, Verdict
from bulkhead.identity.selectors import Endpoint
from bulkhead.kernel.judge import TCP, Judge
from lab.verdict import bundle_of

POLICY = """
apiVersion: bulkhead/v1alpha1
kind: Policy
metadata: {name: shop}
workloads:
  web: {match: {cgroup: /web}}
  other: {match: {cgroup: /other}}
externals:
  resolver: {cidr: [192.0.2.53/32, "2001:db8::53/128"]}
  rogue: {cidr: [192.0.2.66/32]}
  api: {fqdn: [api.example.org]}
  cdn: {fqdn: ["*.cdn.example.net", "b.cdn.example.net"]}
  long: {fqdn: [LONG]}
  partner: {cidr: [198.51.100.0/24]}
allow:
  - {name: dns, from: [web, other], to: resolver, ports: [53/udp, 53]}
  - {name: dns-answers, from: resolver, to: [web, other], ports: [any/udp]}
  - {name: rogue-talks, from: rogue, to: web, ports: [any/udp]}
  - {name: api, from: [web, other], to: api, ports: [443]}
  - {name: cdn, from: web, to: [cdn, long], ports: [443]}
  - {name: partner, from: web, to: partner, ports: [8443]}
"""

LABELS = [letter * 63 for letter in "abc"]
LONGEST = ".".join([*LABELS, "d" * 61])
"""253 characters, 255 bytes on the wire."""

WEB, OTHER = Endpoint("here", "/web"), Endpoint("here", "/other")
OURS, RESOLVER, ROGUE = "192.0.2.1", "192.0.2.53", "192.0.2.66"
PORT = 40053
GRACE, CAP = 5, 86400


@dataclass
class Resolving:
    """A workload's socket that asks, in the judge's world."""

    judge: Judge
    state: SockState
    who: Endpoint = WEB

    def ask(self, name: str, kind: str = "A", number: int = 7, server: str = RESOLVER) -> None:
        question = UDP(sport=PORT, dport=53) / DNS(id=number, rd=1, qd=DNSQR(qname=name, qtype=kind))
        self.judge.send(bytes(between(OURS, server) / question), self.state)

    def hear(self, answer: Packet | bytes, server: str = RESOLVER, port: int = 53) -> bool:
        """Whether the answer passes."""
        payload = Raw(answer) if isinstance(answer, bytes) else answer
        with self.judge.receiving(socket.IPPROTO_UDP, PORT, self.state):
            frame = between(server, OURS) / UDP(sport=port, dport=PORT) / payload
            return self.judge.receive(bytes(frame)).passes

    def reaches(self, address: str, port: int = 443, who: Endpoint | None = None) -> bool:
        return self.judge.egress_remote(who or self.who, ip_address(address), TCP, port).verdict is Verdict.ALLOW

    def outcomes(self) -> dict[DnsOutcome, int]:
        """What answers came to; kinds that never occurred are left out."""
        table = self.judge.maps.fixed("dns_answers")
        values = (table.sum_words(table.lookup(kind.to_bytes(4, "little")) or b"")[0] for kind in range(DnsOutcome.MAX))
        return {DnsOutcome(kind): count for kind, count in enumerate(values) if count}

    def expiry(self, address: str) -> int:
        """Seconds until the only name of an address lapses."""
        raw = self.judge.maps.fixed("learned").lookup(key_of(self.judge, self.who, address)) or bytes(32)
        return (struct.unpack("<4Q", raw)[0] & 0xFFFFFFFF) - int(time.clock_gettime(time.CLOCK_BOOTTIME))

    def grow_old(self, address: str) -> None:
        """As if the address had been learned long ago."""
        table, key = self.judge.maps.fixed("learned"), key_of(self.judge, self.who, address)
        words = struct.unpack("<4Q", table.lookup(key) or b"")
        table.update(key, struct.pack("<4Q", *(word >> 32 << 32 | 1 if word else 0 for word in words)))


def key_of(judge: Judge, who: Endpoint, address: str) -> bytes:
    found = ip_address(address)
    packed = found.packed if found.version == 6 else bytes(10) + b"\xff\xff" + found.packed
    local = judge.egress_remote(who, ip_address("203.0.113.1"), TCP, 1).local
    return struct.pack("<I16s", local, packed)


def between(source: str, target: str) -> Packet:
    network = IPv6 if ":" in source else IP
    return Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01") / network(src=source, dst=target)


def answer(name: str, *records: DNSRR, kind: str = "A", number: int = 7, **flags: object) -> DNS:
    fields = {"id": number, "qr": 1, "rd": 1, "ra": 1, "qd": DNSQR(qname=name, qtype=kind), "an": list(records)}
    return DNS(**(fields | flags))


def a(name: str, address: str = "203.0.113.7", ttl: int = 60) -> DNSRR:
    return DNSRR(rrname=name, type="A", ttl=ttl, rdata=address)


def aaaa(name: str, address: str, ttl: int = 60) -> DNSRR:
    return DNSRR(rrname=name, type="AAAA", ttl=ttl, rdata=address)


def cname(name: str, target: str, ttl: int = 60) -> DNSRR:
    return DNSRR(rrname=name, type="CNAME", ttl=ttl, rdata=target)


@pytest.fixture
def web(judge: Judge, tmp_path_factory: pytest.TempPathFactory) -> Resolving:
    """A socket of `web` under the policy above, with nothing learned and nothing counted."""
    bundle = bundle_of(tmp_path_factory.mktemp("policy"), POLICY.replace("LONG", LONGEST))
    judge.enforce(bundle, (WEB, OTHER))
    for name in ("questions", "learned"):
        table = judge.maps.fixed(name)
        keys, _ = table.lookup_batch()
        table.delete_batch(keys, len(keys) // table.info.key_size)
    answers = judge.maps.fixed("dns_answers")
    empty = bytes(len(answers.lookup(bytes(4)) or b""))
    for kind in range(DnsOutcome.MAX):
        answers.update(kind.to_bytes(4, "little"), empty)
    return Resolving(judge, judge.sender(WEB))


def test_an_answered_name_can_be_connected_to(web: Resolving) -> None:
    assert not web.reaches("203.0.113.7")
    web.ask("api.example.org")
    assert web.hear(answer("api.example.org", a("api.example.org")))
    assert web.reaches("203.0.113.7")
    assert not web.reaches("203.0.113.7", port=80)
    assert not web.reaches("203.0.113.8")
    assert web.outcomes() == {DnsOutcome.LEARNED: 1}


def test_rulings_name_the_external_and_its_rule(web: Resolving) -> None:
    web.ask("api.example.org")
    web.hear(answer("api.example.org", a("api.example.org")))
    ruling = web.judge.egress_remote(WEB, ip_address("203.0.113.7"), TCP, 443)
    assert ruling.remote >> 31
    assert ruling.rule_id


# Answers by hand

NAME = "api.example.org"
ASKED = b"\xc0\x0c"
"""A pointer to the name in the question."""
ADDRESS = bytes([203, 0, 113, 7])


def wire(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def record(
    owner: bytes = ASKED, data: bytes = ADDRESS, kind: int = 1, ttl: int = 60, length: int | None = None
) -> bytes:
    return owner + struct.pack("!HHIH", kind, 1, ttl, len(data) if length is None else length) + data


def message(
    *records: bytes, flags: int = 0x8180, questions: int = 1, answers: int | None = None, asked: bytes = wire(NAME)
) -> bytes:
    counts = questions, len(records) if answers is None else answers, 0, 0
    return struct.pack("!6H", 7, flags, *counts) + (asked + b"\0\1\0\1") * questions + b"".join(records)


def chain(length: int) -> list[DNSRR]:
    """Aliases from the name asked for to the name of the address, which is outside every external."""
    names = [NAME, *(f"hop{number}.example.com" for number in range(length))]
    return [*(cname(first, second) for first, second in pairwise(names)), a(names[-1])]


GOOD: dict[str, Packet | bytes] = {
    "one address": answer(NAME, a(NAME)),
    "one address, and pointers": message(record()),
    "letters in another case than in the question": answer("aPi.ExAmPlE.oRg", a("API.example.ORG")),
    "an alias, and a name outside of policy": answer(NAME, *chain(1)),
    "a chain of as many records as are read": answer(NAME, *chain(15)),
    "sixteen addresses": answer(NAME, *(a(NAME, f"203.0.113.{last}") for last in range(1, 17))),
    "records of other kinds": answer(NAME, DNSRR(rrname=NAME, type="TXT", rdata=b"hello"), a(NAME)),
    "an address of somebody else as well": answer(NAME, a("evil.example.com", "203.0.113.66"), a(NAME)),
    "EDNS": answer(NAME, a(NAME), ar=DNSRROPT(rclass=4096)),
    "an alias that points into the question": message(record(data=b"\1x\xc0\x10", kind=5), record(b"\1x\xc0\x10")),
}


@pytest.mark.parametrize("heard", GOOD.values(), ids=GOOD.keys())
def test_addresses_are_learned_from_an_answer_with(web: Resolving, heard: Packet | bytes) -> None:
    web.ask(NAME)
    assert web.hear(heard)
    assert web.outcomes() == {DnsOutcome.LEARNED: 1}
    assert web.reaches("203.0.113.7")
    assert not web.reaches("203.0.113.66")


LOOPING = message(record(b"\xc0\x21"))
"""The owner is a pointer to itself: it begins behind 12 bytes of header and 21 of question."""

BAD: dict[str, tuple[Packet | bytes, DnsOutcome]] = {
    "no such name": (answer(NAME, rcode=3), DnsOutcome.EMPTY),
    "an error, and an address all the same": (answer(NAME, a(NAME), rcode=2), DnsOutcome.EMPTY),
    "addresses of somebody else": (answer(NAME, a("evil.example.com")), DnsOutcome.EMPTY),
    "an address in front of its alias": (
        answer(NAME, a("x.example.com"), cname(NAME, "x.example.com")),
        DnsOutcome.EMPTY,
    ),
    "an alias of somebody else": (answer(NAME, cname("x.example.com", NAME), a("x.example.com")), DnsOutcome.EMPTY),
    "aliases in a circle": (answer(NAME, cname(NAME, "x.example.com"), cname("x.example.com", NAME)), DnsOutcome.EMPTY),
    "an address of the other family": (answer(NAME, aaaa(NAME, "2001:db8::7")), DnsOutcome.EMPTY),
    "an address of another class": (message(ASKED + struct.pack("!HHIH", 1, 3, 60, 4) + ADDRESS), DnsOutcome.EMPTY),
    "the address among additional records": (answer(NAME, an=[], ar=[a(NAME)]), DnsOutcome.EMPTY),
    "more to come over TCP": (answer(NAME, a(NAME), tc=1), DnsOutcome.TRUNCATED),
    "seventeen records": (answer(NAME, *chain(16)), DnsOutcome.TOO_MANY),
    "more records than there are": (message(record(), answers=2), DnsOutcome.MALFORMED),
    "65,535 records": (message(record(), answers=65535), DnsOutcome.TOO_MANY),
    "two questions": (message(record(), questions=2), DnsOutcome.OTHER),
    "no question": (message(record(), questions=0), DnsOutcome.OTHER),
    "another name": (answer("x.cdn.example.net", a("x.cdn.example.net")), DnsOutcome.OTHER),
    "another kind": (answer(NAME, a(NAME), kind="AAAA"), DnsOutcome.OTHER),
    "another operation": (answer(NAME, a(NAME), opcode=4), DnsOutcome.OTHER),
    "a pointer to itself": (LOOPING, DnsOutcome.MALFORMED),
    "two pointers to each other": (message(record(b"\xc0\x23\xc0\x21")), DnsOutcome.MALFORMED),
    "a pointer forward": (message(record(b"\xc0\x40"), wire(NAME)), DnsOutcome.MALFORMED),
    "a pointer into the header": (message(record(b"\xc0\x04")), DnsOutcome.MALFORMED),
    "a pointer in the question": (message(record(), asked=b"\xc0\x0c"), DnsOutcome.MALFORMED),
    "a pointer cut in two": (message(record())[:34], DnsOutcome.MALFORMED),
    "a label of a kind that nobody uses": (message(record(b"\x41" + b"x" * 65 + b"\0")), DnsOutcome.MALFORMED),
    "a name of 256 bytes": (message(record(wire(".".join([*LABELS, "d" * 62])))), DnsOutcome.MALFORMED),
    "a record longer than the message": (message(record(length=5)), DnsOutcome.MALFORMED),
    "an address of three bytes": (message(record(data=ADDRESS[:3])), DnsOutcome.MALFORMED),
    "an address of sixteen bytes": (message(record(data=bytes(16))), DnsOutcome.MALFORMED),
    "an alias longer than its record": (message(record(data=wire("x.org") + b"\0", kind=5)), DnsOutcome.MALFORMED),
    "a good record and a bad one": (message(record(), record(b"\xc0\x40")), DnsOutcome.MALFORMED),
    "a header that is cut": (message(record())[:11], DnsOutcome.EMPTY),
}


@pytest.mark.parametrize(("heard", "outcome"), BAD.values(), ids=BAD.keys())
def test_nothing_is_learned_but_the_answer_passes_with(
    web: Resolving, heard: Packet | bytes, outcome: DnsOutcome
) -> None:
    web.ask(NAME)
    assert web.hear(heard)
    if heard != message(record())[:11]:  # without an id, nobody can say whether it was an answer
        assert web.outcomes() == {outcome: 1}
    assert not web.reaches("203.0.113.7")
    assert not web.judge.maps.fixed("learned").as_dict()


def test_nothing_is_learned_from_an_answer_in_fragments(web: Resolving) -> None:
    whole = bytes(UDP(sport=53, dport=PORT, len=4000) / message(record()))
    first = Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01") / IP(src=RESOLVER, dst=OURS, flags="MF", proto=17)
    web.ask(NAME)
    with web.judge.receiving(socket.IPPROTO_UDP, PORT, web.state):
        assert web.judge.receive(bytes(first / Raw(whole))).passes
    assert web.outcomes() == {DnsOutcome.TOO_LONG: 1}
    assert not web.reaches("203.0.113.7")


# Whose answer it is


def test_an_answer_that_nobody_asked_for_teaches_nothing(web: Resolving) -> None:
    assert web.hear(answer(NAME, a(NAME)))
    assert web.outcomes() == {DnsOutcome.UNASKED: 1}
    assert not web.reaches("203.0.113.7")


@pytest.mark.parametrize(
    "forged",
    [
        {"server": ROGUE},
        {"port": 5353},
        {"answer": answer(NAME, a(NAME), number=8)},
    ],
    ids=["from another server", "from another port", "under another id"],
)
def test_a_forged_answer_teaches_nothing(web: Resolving, forged: dict[str, object]) -> None:
    web.ask(NAME)
    heard = forged.pop("answer", answer(NAME, a(NAME)))
    assert web.hear(heard, **forged)
    assert not web.reaches("203.0.113.7")
    web.hear(answer(NAME, a(NAME)))
    assert web.reaches("203.0.113.7")


def test_an_answer_counts_once(web: Resolving) -> None:
    web.ask(NAME)
    web.hear(answer(NAME, a(NAME)))
    web.hear(answer(NAME, a(NAME, "203.0.113.8")))
    assert not web.reaches("203.0.113.8")


def test_what_one_workload_learned_opens_nothing_for_another(web: Resolving) -> None:
    web.ask(NAME)
    web.hear(answer(NAME, a(NAME)))
    assert not web.reaches("203.0.113.7", who=OTHER)


def test_an_answer_to_another_socket_teaches_nothing(web: Resolving) -> None:
    other = Resolving(web.judge, web.judge.sender(OTHER), OTHER)
    web.ask(NAME)
    assert other.hear(answer(NAME, a(NAME)))
    assert not web.reaches("203.0.113.7")
    assert not other.reaches("203.0.113.7")


def test_a_server_that_policy_refuses_teaches_nothing(web: Resolving) -> None:
    web.ask(NAME, server=ROGUE)
    assert web.hear(answer(NAME, a(NAME)), server=ROGUE)
    assert not web.reaches("203.0.113.7")


def test_a_server_that_is_only_watched_teaches_nothing(
    web: Resolving, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bundle = bundle_of(tmp_path_factory.mktemp("observed"), POLICY.replace("LONG", LONGEST))
    web.judge.enforce(bundle, (WEB, OTHER), observe_only=True)
    for _ in range(2):  # the second time as part of a conversation
        web.ask(NAME, server=ROGUE)
        assert web.hear(answer(NAME, a(NAME)), server=ROGUE)
        assert not web.reaches("203.0.113.7")
    web.ask(NAME)
    web.hear(answer(NAME, a(NAME)))
    assert web.reaches("203.0.113.7")


# Names


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("a.cdn.example.net", True),
        ("B.CDN.EXAMPLE.NET", True),
        ("cdn.example.net", False),
        ("a.b.cdn.example.net", False),
        ("x.api.example.org", False),
        (LONGEST, True),
        (LONGEST[:-1], False),
        ("org", False),
    ],
)
def test_a_name_is_one_of_policy_or_not(web: Resolving, name: str, known: bool) -> None:
    web.ask(name)
    web.hear(answer(name, a(name)))
    assert web.reaches("203.0.113.7") is known
    assert bool(web.outcomes()) is known


def test_ipv6_addresses_are_learned_over_either_family(web: Resolving) -> None:
    web.ask(NAME, "AAAA")
    web.hear(answer(NAME, aaaa(NAME, "2001:db8:7::1"), aaaa(NAME, "::ffff:203.0.113.9"), kind="AAAA"))
    assert web.reaches("2001:db8:7::1")
    assert not web.reaches("203.0.113.9")
    assert not web.reaches("2001:db8:7::2")


def test_an_address_bears_several_names_and_any_may_allow(web: Resolving) -> None:
    for number, name in enumerate(("a.cdn.example.net", "b.cdn.example.net", NAME, LONGEST)):
        web.ask(name, number=number)
        web.hear(answer(name, a(name), number=number))
    raw = web.judge.maps.fixed("learned").lookup(key_of(web.judge, WEB, "203.0.113.7"))
    assert all(struct.unpack("<4Q", raw or b""))
    assert web.reaches("203.0.113.7")


def test_an_address_is_still_what_its_prefix_says(web: Resolving) -> None:
    web.ask(NAME)
    web.hear(answer(NAME, a(NAME, "198.51.100.7")))
    assert web.reaches("198.51.100.7")
    assert web.reaches("198.51.100.7", port=8443)


# Time


@pytest.mark.parametrize(
    ("ttl", "seconds"),
    [(0, GRACE), (60, 60 + GRACE), (86400, CAP + GRACE), (2**31 - 1, CAP + GRACE), (2**32 - 1, GRACE)],
)
def test_an_address_lasts_as_long_as_its_time_to_live(web: Resolving, ttl: int, seconds: int) -> None:
    web.ask(NAME)
    web.hear(answer(NAME, a(NAME, ttl=ttl)))
    assert web.reaches("203.0.113.7")
    assert seconds - 2 <= web.expiry("203.0.113.7") <= seconds


def test_an_alias_that_lapses_sooner_takes_the_address_along(web: Resolving) -> None:
    web.ask(NAME)
    web.hear(answer(NAME, cname(NAME, "x.example.com", ttl=20), a("x.example.com", ttl=3600)))
    assert web.expiry("203.0.113.7") <= 20 + GRACE


def test_a_lapsed_address_is_refused_until_it_is_learned_anew(web: Resolving) -> None:
    web.ask(NAME)
    web.hear(answer(NAME, a(NAME)))
    web.grow_old("203.0.113.7")
    assert not web.reaches("203.0.113.7")
    web.ask(NAME)
    web.hear(answer(NAME, a(NAME)))
    assert web.reaches("203.0.113.7")


# Policy changes


def test_what_was_learned_outlives_a_new_policy_that_keeps_the_name(
    web: Resolving, tmp_path_factory: pytest.TempPathFactory
) -> None:
    web.ask(NAME)
    web.hear(answer(NAME, a(NAME)))
    policy = POLICY.replace("LONG", LONGEST)
    for changed, kept in (("[api.example.org, new.example.org]", True), ("[new.example.org]", False)):
        bundle = bundle_of(tmp_path_factory.mktemp("next"), policy.replace("[api.example.org]", changed))
        web.judge.enforce(bundle, (WEB, OTHER))
        assert web.reaches("203.0.113.7") is kept
