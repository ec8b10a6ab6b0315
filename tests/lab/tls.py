"""TLS as it is on the wire: what somebody on the path can tell of captured packets, and nothing more."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from lab.packet import TCP, Packet

CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION_DATA = 20, 21, 22, 23
CLIENT_HELLO, SERVER_HELLO = 1, 2
TLS_1_3 = 0x0304
_RECORD_HEADER_BYTES = 5
_SUPPORTED_VERSIONS = 43

Flow = tuple[tuple[str, int], tuple[str, int]]
"""(address, port) of the sender, and of the receiver."""


@dataclass(frozen=True, slots=True)
class Record:
    """One TLS record."""

    kind: int
    body: bytes


def streams(packets: Iterable[Packet]) -> dict[Flow, bytes]:
    """What was said in each direction of each TCP conversation, from the first byte that was captured on.

    Raises AssertionError where a piece is missing.
    """
    segments: dict[Flow, dict[int, bytes]] = defaultdict(dict)
    for packet in packets:
        if packet.protocol == TCP and packet.payload:
            source, destination = packet.ports
            pieces = segments[(packet.source, source), (packet.destination, destination)]
            if len(packet.payload) > len(pieces.get(packet.sequence, b"")):
                pieces[packet.sequence] = packet.payload
    return {flow: _joined(pieces) for flow, pieces in segments.items()}


def _joined(pieces: Mapping[int, bytes]) -> bytes:
    found, start = b"", min(pieces)
    for sequence in sorted(pieces):
        assert sequence - start <= len(found), "a segment was not captured"
        found += pieces[sequence][len(found) - (sequence - start) :]
    return found


def records(stream: bytes) -> Iterator[Record]:
    """A stream, record by record; what is left at its end is as much of one as was captured."""
    while len(stream) >= _RECORD_HEADER_BYTES:
        size = _RECORD_HEADER_BYTES + int.from_bytes(stream[3:5], "big")
        yield Record(stream[0], stream[_RECORD_HEADER_BYTES:size])
        stream = stream[size:]


def server_version(hello: bytes) -> int:
    """The protocol version that a ServerHello settles on: its extension `supported_versions`, else its old field."""
    assert hello[0] == SERVER_HELLO
    at = 4 + 2 + 32
    at += 1 + hello[at]
    at += 2 + 1 + 2
    while at < len(hello):
        kind, size = int.from_bytes(hello[at : at + 2], "big"), int.from_bytes(hello[at + 2 : at + 4], "big")
        if kind == _SUPPORTED_VERSIONS:
            return int.from_bytes(hello[at + 4 : at + 4 + size], "big")
        at += 4 + size
    return int.from_bytes(hello[4:6], "big")
