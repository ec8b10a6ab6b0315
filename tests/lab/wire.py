"""Identity on the wire, read and written from docs/wire.md alone: a second implementation to check the first by.

Nothing here comes from bpf/ or agent/, and nothing there may come from here. Formats are scapy layers, so that
`show()` explains a captured option; keys, MACs and checksums are below. A `Forger` is the attacker: it makes openings,
answers, refusals and datagrams with whatever secrets it has got hold of.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from scapy.fields import (
    ByteField,
    IntField,
    ThreeBytesField,
    XByteField,
    XIntField,
    XShortField,
    XStrFixedLenField,
)
from scapy.layers.inet import TCP
from scapy.packet import Packet

OPTION_KIND, DATAGRAM_KIND, EXPERIMENT = 253, 127, 0xB07C
TICK_S, EPOCH_TICKS, TICKS_APART = 16, 256, 2
LABEL = b"bulkhead wire v1"

OPENING, ANSWER, DATAGRAM, REFUSAL = 1, 2, 3, 4
"""What a MAC is about."""

USUAL_OPTIONS = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 0)), ("NOP", None), ("WScale", 7)]
"""Twenty bytes that Linux puts into a SYN, which leave twenty."""

_MASK = (1 << 64) - 1
F = TypeVar("F", bound=Packet)


# Formats


class _Layer(Packet):
    def extract_padding(self, s: bytes) -> tuple[bytes, bytes]:
        """What follows is no part of it."""
        return b"", s


class Option(_Layer):
    """In a SYN and a SYN-ACK."""

    name = "Bulkhead identity"
    fields_desc = [
        ByteField("kind", OPTION_KIND),
        ByteField("length", 20),
        XShortField("experiment", EXPERIMENT),
        XIntField("identity", 0),
        ThreeBytesField("node", 0),
        XByteField("tick", 0),
        XStrFixedLenField("mac", bytes(8), 8),
    ]


class Refusal(_Layer):
    """In a RST that says why."""

    name = "Bulkhead refusal"
    fields_desc = [
        ByteField("kind", OPTION_KIND),
        ByteField("length", 36),
        XShortField("experiment", EXPERIMENT),
        XIntField("identity", 0),
        ThreeBytesField("node", 0),
        XByteField("tick", 0),
        IntField("generation", 0),
        XStrFixedLenField("commit", bytes(8), 8),
        ByteField("reason", 0),
        XStrFixedLenField("reserved", bytes(3), 3),
        XStrFixedLenField("mac", bytes(8), 8),
    ]


class Trailer(_Layer):
    """Behind the user data of a datagram, after the pad byte if there is one."""

    name = "Bulkhead trailer"
    fields_desc = [
        XShortField("checksum", 0),
        ByteField("kind", DATAGRAM_KIND),
        ByteField("length", 30),
        XShortField("experiment", EXPERIMENT),
        XByteField("flags", 0),
        XByteField("tick", 0),
        XIntField("identity", 0),
        ThreeBytesField("node", 0),
        XByteField("reserved", 0),
        XStrFixedLenField("nonce", bytes(8), 8),
        XStrFixedLenField("mac", bytes(8), 8),
    ]


def found(header: bytes) -> Option | Refusal | None:
    """What the end of a TCP header says, if it says anything."""
    for layer, length in ((Refusal, 36), (Option, 20)):
        end = header[-length:]
        if len(header) >= 20 + length and end[:4] == struct.pack("!BBH", OPTION_KIND, length, EXPERIMENT):
            return layer(end)
    return None


def found_behind(datagram: bytes, ip_payload_length: int) -> Trailer | None:
    """What the surplus area of a datagram says; `datagram` starts with the UDP header.

    Raises ValueError where there is a surplus area that is not exactly ours, or its checksum does not hold.
    """
    length = struct.unpack_from("!H", datagram, 4)[0]
    surplus = datagram[length:ip_payload_length]
    if not surplus:
        return None
    pad = length % 2
    trailer = Trailer(surplus[pad:])
    if len(surplus) != pad + 32 or any(surplus[:pad]):
        raise ValueError(f"a surplus area of {len(surplus)} bytes behind {length}")
    if (trailer.kind, trailer.length, trailer.experiment) != (DATAGRAM_KIND, 30, EXPERIMENT):
        raise ValueError("an option of somebody else")
    if folded(sum_words(surplus[pad:]) + len(surplus)) != 0xFFFF:
        raise ValueError("the checksum of the surplus area is wrong")
    return trailer


# Checksums


def sum_words(data: bytes) -> int:
    """The sum of the 16-bit words, without carries folded in; an odd byte is the high half of a word."""
    padded = data + b"\0" * (len(data) % 2)
    return sum(struct.unpack(f"!{len(padded) // 2}H", padded))


def folded(value: int) -> int:
    """A sum with its carries added in until it has 16 bits."""
    while value > 0xFFFF:
        value = (value & 0xFFFF) + (value >> 16)
    return value


def option_checksum(trailer: bytes, pad: int) -> int:
    """OCS: over the surplus area, whose checksum field is taken as zero, and its length, pad byte included."""
    total = sum_words(trailer[2:]) + len(trailer) + pad
    return 0xFFFF - folded(total) or 0xFFFF


def surplus_area(trailer: Trailer, udp_length: int) -> bytes:
    """The bytes behind a datagram: pad byte, checksum, option."""
    pad = udp_length % 2
    raw = bytes(trailer)
    return bytes(pad) + option_checksum(raw, pad).to_bytes(2, "big") + raw[2:]


# Keys


def siphash(key: bytes, message: bytes) -> bytes:
    """SipHash-2-4, as the 8 bytes of its little-endian number."""
    k0, k1 = struct.unpack("<2Q", key)
    v0, v1, v2, v3 = k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573
    last = message[len(message) // 8 * 8 :].ljust(7, b"\0") + bytes([len(message) % 256])
    words = struct.unpack(f"<{len(message) // 8 + 1}Q", message[: len(message) // 8 * 8] + last)
    for word in words:
        v3 ^= word
        v0, v1, v2, v3 = _round(*_round(v0, v1, v2, v3))
        v0 ^= word
    v2 ^= 0xFF
    v0, v1, v2, v3 = _round(*_round(*_round(*_round(v0, v1, v2, v3))))
    return struct.pack("<Q", v0 ^ v1 ^ v2 ^ v3)


def _round(v0: int, v1: int, v2: int, v3: int) -> tuple[int, int, int, int]:
    v0 = v0 + v1 & _MASK
    v2 = v2 + v3 & _MASK
    v1 = _rotated(v1, 13) ^ v0
    v3 = _rotated(v3, 16) ^ v2
    v0 = _rotated(v0, 32) + v3 & _MASK
    v2 = v2 + v1 & _MASK
    v1 = _rotated(v1, 17) ^ v2
    v3 = _rotated(v3, 21) ^ v0
    return v0, v1, _rotated(v2, 32), v3


def _rotated(word: int, by: int) -> int:
    return (word << by | word >> 64 - by) & _MASK


def number_of(name: str) -> int:
    """The number of a node whose record gives it none."""
    return int.from_bytes(hashlib.sha256(b"bulkhead node " + name.encode()).digest()[:3], "big") or 1


def host_set_of(globs: list[str]) -> int:
    """The number of a workload's set of `host:` globs; 0 for none."""
    if not globs:
        return 0
    return int.from_bytes(hashlib.sha256("\0".join(sorted(set(globs))).encode()).digest()[:4], "big")


@dataclass(frozen=True, slots=True)
class Party:
    """A node, as one that knows its private key sees it."""

    name: str
    secret: bytes
    number: int = 0
    """0: the one that its name gives."""

    @property
    def node(self) -> int:
        return self.number or number_of(self.name)

    @property
    def public(self) -> bytes:
        key = X25519PrivateKey.from_private_bytes(self.secret).public_key()
        return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def pair_secret(secret: bytes, public: bytes) -> bytes:
    """What both nodes of a pair extract from their X25519 exchange."""
    shared = X25519PrivateKey.from_private_bytes(secret).exchange(X25519PublicKey.from_public_bytes(public))
    extract = HMAC(LABEL, SHA256())
    extract.update(shared)
    return extract.finalize()


def direction_key(pair: bytes, domain: str, sender: Party, receiver: Party, epoch: int) -> bytes:
    """The 16 bytes under which `sender` authenticates what it sends to `receiver` during an epoch."""
    parts = (LABEL, domain.encode(), sender.name.encode(), receiver.name.encode())
    numbers = sender.node.to_bytes(3, "big") + receiver.node.to_bytes(3, "big") + epoch.to_bytes(4, "big")
    return HKDFExpand(SHA256(), 16, b"\0".join(parts) + b"\0" + numbers).derive(pair)


def tick_of(unix_s: float) -> int:
    return int(unix_s) // TICK_S


def epoch_of(tick: int) -> int:
    return tick // EPOCH_TICKS


def nearest_tick(low: int, own: int) -> int:
    """The tick with these low 8 bits that is nearest to one's own."""
    return own + (low - own + 128) % 256 - 128


def message(sequence: int, acknowledgement: int, identity: int, tick: int, kind: int, detail: int = 0) -> bytes:
    """What is authenticated."""
    return struct.pack("<6I", sequence, acknowledgement, identity, tick, kind, detail)


# The attacker


@dataclass(frozen=True, slots=True)
class Forger:
    """Says that it is `node`, under keys it has or makes up."""

    node: int
    key: Callable[[int], bytes]
    """By epoch."""

    @classmethod
    def knowing(cls, sender: Party, receiver: Party, domain: str, secret: bytes | None = None) -> Forger:
        """One that can do what `sender` can towards `receiver`; with `secret`, what its holder can in sender's name."""
        pair = pair_secret(secret or sender.secret, receiver.public)
        return cls(sender.node, lambda epoch: direction_key(pair, domain, sender, receiver, epoch))

    @classmethod
    def ignorant(cls, node: int) -> Forger:
        """One that has no key at all."""
        return cls(node, lambda epoch: secrets.token_bytes(16))

    def mac(self, tick: int, text: bytes) -> bytes:
        return siphash(self.key(epoch_of(tick)), text)

    def option(
        self, identity: int, sequence: int, tick: int, acknowledgement: int = 0, kind: int = OPENING, **fields: int
    ) -> Option:
        """For a SYN; with `kind` ANSWER and an acknowledgement number, for a SYN-ACK."""
        mac = self.mac(tick, message(sequence, acknowledgement, identity, tick, kind))
        return Option(**{"identity": identity, "node": self.node, "tick": tick & 0xFF, "mac": mac} | fields)

    def refusal(
        self, identity: int, acknowledgement: int, tick: int, reason: int, generation: int, commit: bytes
    ) -> Refusal:
        """For the RST that answers a SYN; its sequence number is 0."""
        mac = self.mac(tick, message(0, acknowledgement, identity, tick, REFUSAL | reason << 8, generation))
        said = {"identity": identity, "node": self.node, "tick": tick & 0xFF, "reason": reason}
        return Refusal(**said, generation=generation, commit=commit, mac=mac)

    def trailer(self, identity: int, user_data_length: int, tick: int, nonce: bytes, flags: int = 0) -> Trailer:
        """For a datagram; its checksum is that of `surplus_area`."""
        first, second = struct.unpack("!2I", nonce)
        mac = self.mac(tick, message(first, second, identity, tick, DATAGRAM | flags << 8 | user_data_length << 16))
        return Trailer(flags=flags, tick=tick & 0xFF, identity=identity, node=self.node, nonce=nonce, mac=mac)

    def syn(self, identity: int, tick: int, sequence: int, port: int, source_port: int = 40000) -> bytes:
        """An opening as Linux makes it, with its identity."""
        return segment(self.option(identity, sequence, tick), sequence, port, source_port)


def segment(
    said: Packet | bytes | None,
    sequence: int,
    port: int,
    source_port: int = 40000,
    acknowledgement: int = 0,
    flags: str = "S",
) -> bytes:
    """A TCP header without checksum whose options end with these bytes, after the usual ones if they find room."""
    raw = b"" if said is None else bytes(said)
    usual = [] if len(raw) > 20 else USUAL_OPTIONS
    # Built by hand behind the usual options: scapy would pad and could not cut.
    header = bytes(TCP(sport=source_port, dport=port, seq=sequence, ack=acknowledgement, flags=flags, options=usual))
    whole = header + raw + b"\x01" * (-len(raw) % 4)
    return whole[:12] + bytes([len(whole) // 4 << 4]) + whole[13:]


def damaged(data: bytes, random: Random, *, least: int = 1) -> bytes:
    """The same length with at least `least` bits turned; never the same bytes."""
    number = int.from_bytes(data, "big")
    for at in random.sample(range(len(data) * 8), random.randint(least, least + 7)):
        number ^= 1 << at
    return number.to_bytes(len(data), "big")
