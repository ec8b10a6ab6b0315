"""A name server that says what a test wants to hear, and a program that asks it: plain sockets and bytes.

Run as a program, it serves: `python nameserver.py ADDRESS PORT`. It answers `N.many.example.net` with N % 16 + 1
addresses of 10.80.0.0/12 that no other name has: each is one that nobody has been told before.
"""

from __future__ import annotations

import socket
import struct
import sys
from ipaddress import IPv4Address

ROOM = int(IPv4Address("10.80.0.0"))
RECORDS_MAX = 16
A = 1


def question(name: str, number: int, kind: int = A) -> bytes:
    """A query for one name."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", number, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, kind, 1)


def addresses_in(message: bytes) -> list[str]:
    """The addresses in an answer of `answer_to`."""
    count = struct.unpack_from("!H", message, 6)[0]
    start = len(message) - 16 * count
    return [str(IPv4Address(message[at + 12 : at + 16])) for at in range(start, len(message), 16)]


def answer_to(query: bytes, addresses: list[bytes], ttl: int = 60) -> bytes:
    """The answer that gives these addresses to the one question in a query."""
    head = query[:2] + struct.pack("!5H", 0x8180, 1, len(addresses), 0, 0)
    records = (struct.pack("!HHHIH", 0xC00C, A, 1, ttl, 4) + address for address in addresses)
    return head + query[12:] + b"".join(records)


def many(query: bytes) -> list[bytes]:
    """The addresses of `N.many.example.net`."""
    number = int(query[13 : 13 + query[12]])
    first = ROOM + number * RECORDS_MAX
    return [(first + at).to_bytes(4, "big") for at in range(number % RECORDS_MAX + 1)]


def main() -> None:
    """Serve for ever."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((sys.argv[1], int(sys.argv[2])))
        print("ready", flush=True)
        while True:
            query, asker = server.recvfrom(4096)
            server.sendto(answer_to(query, many(query)), asker)


if __name__ == "__main__":
    main()
