"""The decoder of the lab holds what docs/wire.md says, and the page's vectors are its own."""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.packet import Packet

from bulkhead import abi
from bulkhead.policy.nodes import default_number
from lab import wire
from lab.wire import Forger, Party, message

PAGE = Path(__file__).resolve().parents[2] / "docs" / "wire.md"

ALPHA = Party("alpha.example.org", bytes(range(1, 33)))
BETA = Party("beta.example.org", bytes(range(33, 65)))
DOMAIN = "example.org"
TICK = wire.tick_of(1_800_000_000)
WEB, DB = 0x12AB34CD, 0x00C0FFEE
CALL, REPLY = 1000, 3_000_000_000
NONCE = bytes.fromhex("0102030405060708")

FROM_ALPHA = Forger.knowing(ALPHA, BETA, DOMAIN)
FROM_BETA = Forger.knowing(BETA, ALPHA, DOMAIN)

ticks = st.integers(0, 2**32 - 1)
words = st.integers(0, 2**32 - 1)
identities = st.integers(256, 2**31 - 1)


def vectors() -> dict[str, str]:
    """Everything that the page states, by name."""
    epoch = wire.epoch_of(TICK)
    refusal = FROM_BETA.refusal(DB, CALL + 1, TICK, abi.DropReason.POLICY, 7, bytes.fromhex("3f2c1ab200000000"))
    bare = {
        "name alpha": ALPHA.name,
        "name beta": BETA.name,
        "private key alpha": ALPHA.secret.hex(),
        "private key beta": BETA.secret.hex(),
        "public key alpha": ALPHA.public.hex(),
        "public key beta": BETA.public.hex(),
        "number alpha": f"{ALPHA.node}",
        "number beta": f"{BETA.node}",
        "PRK": wire.pair_secret(ALPHA.secret, BETA.public).hex(),
        "tick": f"{TICK}",
        "epoch": f"{epoch}",
        "key(alpha, beta)": FROM_ALPHA.key(epoch).hex(),
        "key(beta, alpha)": FROM_BETA.key(epoch).hex(),
        "identity alpha": f"{WEB:08x}",
        "identity beta": f"{DB:08x}",
    }
    said = {
        "SYN, sequence 1000: message": message(CALL, 0, WEB, TICK, wire.OPENING),
        "SYN: option": bytes(FROM_ALPHA.option(WEB, CALL, TICK)),
        "SYN-ACK, 3000000000 and 1001: message": message(REPLY, CALL + 1, DB, TICK, wire.ANSWER),
        "SYN-ACK: option": bytes(FROM_BETA.option(DB, REPLY, TICK, CALL + 1, wire.ANSWER)),
        "RST, generation 7, reason 1: option": bytes(refusal),
        "datagram ping: surplus area": wire.surplus_area(FROM_ALPHA.trailer(WEB, 4, TICK, NONCE), 12),
        "datagram hello: surplus area": wire.surplus_area(FROM_ALPHA.trailer(WEB, 5, TICK, NONCE), 13),
        "carrier: surplus area": wire.surplus_area(FROM_ALPHA.trailer(WEB, 0, TICK, NONCE, flags=1), 8),
    }
    return bare | {name: value.hex() for name, value in said.items()}


def test_the_page_has_these_vectors() -> None:
    stated = PAGE.read_text(encoding="utf-8").rpartition("```text\n")[2].partition("```")[0]
    assert stated == "".join(f"{name} = {value}\n" for name, value in vectors().items())


# Primitives

SIPHASH_VECTORS = """
310e0edd47db6f72 fd67dc93c539f874 5a4fa9d909806c0d 2d7efbd796666785 b7877127e09427cf 8da699cd64557618 cee3fe586e46c9cb
37d1018bf50002ab 6224939a79f5f593 b0e4a90bdf82009e f3b9dd94c5bb5d7a a7ad6b22462fb3f4 fbe50e86bc8f1e75 903d84c02756ea14
eef27a8e90ca23f7 e545be4961ca29a1
"""
"""Of SipHash's authors: key 00..0f, messages of 0 to 15 bytes 00, 01, ..."""


@pytest.mark.parametrize(("length", "expected"), list(enumerate(SIPHASH_VECTORS.split())))
def test_siphash_gives_its_authors_vectors(length: int, expected: str) -> None:
    assert wire.siphash(bytes(range(16)), bytes(range(length))).hex() == expected


def test_a_key_is_one_hkdf_over_the_exchange() -> None:
    shared = X25519PrivateKey.from_private_bytes(BETA.secret).exchange(X25519PublicKey.from_public_bytes(ALPHA.public))
    numbers = bytes.fromhex("921be0 3e7c2d 00000005")
    info = b"bulkhead wire v1\0example.org\0alpha.example.org\0beta.example.org\0" + numbers
    assert FROM_ALPHA.key(5) == HKDF(SHA256(), 16, b"bulkhead wire v1", info).derive(shared)


def test_every_part_of_what_a_key_is_for_changes_it() -> None:
    pair = wire.pair_secret(ALPHA.secret, BETA.public)
    renamed, renumbered = Party("gamma", ALPHA.secret, ALPHA.node), Party(ALPHA.name, ALPHA.secret, 1)
    keys = {
        wire.direction_key(pair, DOMAIN, ALPHA, BETA, 5),
        wire.direction_key(pair, DOMAIN, ALPHA, BETA, 6),
        wire.direction_key(pair, DOMAIN, BETA, ALPHA, 5),
        wire.direction_key(pair, "example.com", ALPHA, BETA, 5),
        wire.direction_key(pair, DOMAIN, renamed, BETA, 5),
        wire.direction_key(pair, DOMAIN, renumbered, BETA, 5),
        wire.direction_key(wire.pair_secret(ALPHA.secret, ALPHA.public), DOMAIN, ALPHA, BETA, 5),
    }
    assert len(keys) == 7


@pytest.mark.parametrize("name", ["a", "web-1.example.org", "möbius"])
def test_a_node_has_the_number_that_the_agent_gives_it(name: str) -> None:
    assert wire.number_of(name) == default_number(name)


@given(own=st.integers(200, 2**32 - 200), apart=st.integers(-127, 127))
def test_the_low_bits_of_a_tick_tell_it_within_half_an_hour(own: int, apart: int) -> None:
    assert wire.nearest_tick(own + apart & 0xFF, own) == own + apart


# Formats


@pytest.mark.parametrize(
    ("layer", "structure", "size"),
    [
        (wire.Option, abi.WireOption, abi.Wire.OPTION_BYTES),
        (wire.Refusal, abi.WireRefusal, abi.Wire.REFUSAL_BYTES),
        (wire.Trailer, abi.WireTrailer, abi.Wire.TRAILER_BYTES),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_decoder_and_kernel_have_the_fields_at_the_same_places(layer: type[Packet], structure: type, size: int) -> None:
    blank = layer(length=0, kind=0, experiment=0)
    for name, _ in structure._fields_:
        field = getattr(structure, name)
        raw = bytearray(size)
        raw[field.offset : field.offset + field.size] = bytes(range(1, field.size + 1))
        read = layer(bytes(raw))
        assert [each.name for each in layer.fields_desc if read.fields[each.name] != blank.getfieldval(each.name)] == [
            name
        ]
        assert bytes(read) == bytes(raw)


@given(identity=identities, sequence=words, tick=ticks, acknowledgement=words)
def test_what_a_segment_says_is_read_from_the_end_of_its_header(
    identity: int, sequence: int, tick: int, acknowledgement: int
) -> None:
    for made in (
        FROM_ALPHA.option(identity, sequence, tick),
        FROM_ALPHA.refusal(identity, acknowledgement, tick, 1, 7, bytes(8)),
    ):
        header = wire.segment(made, sequence, 5432)
        assert (header[12] >> 4) * 4 == len(header) <= 60
        read = wire.found(header)
        assert type(read) is type(made)
        assert bytes(read) == bytes(made)


def test_an_identity_that_is_not_the_last_option_is_none() -> None:
    said = bytes(FROM_ALPHA.option(WEB, CALL, TICK))
    assert wire.found(wire.segment(said + b"\x01\x01\x01\x01", CALL, 5432)) is None
    assert wire.found(wire.segment(None, CALL, 5432)) is None


@given(data=st.binary(min_size=1, max_size=64), seed=st.integers(0, 2**32))
def test_damage_always_changes_something(data: bytes, seed: int) -> None:
    assert len(spoilt := wire.damaged(data, Random(seed))) == len(data)
    assert spoilt != data


# Checksums


def carried(user_data: bytes, flags: int = 0) -> tuple[bytes, int]:
    """A datagram with its surplus area, as it is on the wire, and the length of the area."""
    header = IP(src="10.77.1.1", dst="10.77.2.1")
    plain = bytes(header / UDP(sport=40000, dport=5353) / user_data)[20:]
    area = wire.surplus_area(FROM_ALPHA.trailer(WEB, len(user_data), TICK, NONCE, flags), len(plain))
    return plain + area, len(area)


def pseudo_sum(length: int) -> int:
    return wire.sum_words(bytes([10, 77, 1, 1, 10, 77, 2, 1, 0, 17]) + length.to_bytes(2, "big"))


@given(user_data=st.binary(max_size=200))
def test_a_datagram_says_what_was_put_behind_it(user_data: bytes) -> None:
    datagram, area = carried(user_data)
    read = wire.found_behind(datagram, len(datagram))
    assert read is not None
    assert (read.identity, read.node, read.nonce) == (WEB, ALPHA.node, NONCE)
    assert area == 32 + len(user_data) % 2


@given(user_data=st.binary(max_size=200))
def test_who_sums_to_the_end_of_the_packet_under_its_whole_length_gets_the_same_checksum(user_data: bytes) -> None:
    datagram, _ = carried(user_data)
    assert wire.folded(wire.sum_words(datagram) + pseudo_sum(len(datagram))) == 0xFFFF


@given(user_data=st.binary(max_size=200))
def test_completing_a_checksum_is_off_by_the_length_of_the_surplus_area_unless_it_is_added(user_data: bytes) -> None:
    datagram, area = carried(user_data)
    true = datagram[6:8]
    length = struct.unpack_from("!H", datagram, 4)[0]

    def completed(seed: int) -> bytes:
        started = datagram[:6] + wire.folded(seed).to_bytes(2, "big") + datagram[8:]
        return (0xFFFF - wire.folded(wire.sum_words(started)) or 0xFFFF).to_bytes(2, "big")

    assert completed(pseudo_sum(length) + area) == true
    assert completed(pseudo_sum(length)) != true


@given(user_data=st.binary(max_size=60), seed=st.integers(0, 2**32))
def test_a_surplus_area_that_is_not_as_it_was_made_is_refused(user_data: bytes, seed: int) -> None:
    datagram, area = carried(user_data)
    random = Random(seed)
    at = len(datagram) - random.randint(1, area)
    spoilt = datagram[:at] + bytes([datagram[at] ^ 1 << random.randrange(8)]) + datagram[at + 1 :]
    with pytest.raises(ValueError, match=r"surplus area|somebody else"):
        wire.found_behind(spoilt, len(spoilt))


# The attacker


def test_only_the_key_of_the_pair_makes_what_the_receiver_expects() -> None:
    expected = FROM_ALPHA.option(WEB, CALL, TICK).mac
    thief = Party("thief.example.org", bytes(range(65, 97)))
    others = (
        Forger.knowing(ALPHA, BETA, DOMAIN, thief.secret),
        Forger.knowing(BETA, ALPHA, DOMAIN),
        Forger.knowing(ALPHA, BETA, "example.com"),
        Forger.ignorant(ALPHA.node),
    )
    assert expected not in [forger.option(WEB, CALL, TICK).mac for forger in others]


@given(
    first=st.tuples(words, words, identities, ticks, words, words),
    second=st.tuples(words, words, identities, ticks, words, words),
)
def test_different_messages_are_different_bytes(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    assert (message(*first) == message(*second)) == (first == second)
