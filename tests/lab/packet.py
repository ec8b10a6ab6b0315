"""An IP packet as bytes, read and altered as a box on the path would.

Checksums are amended by what has changed, never computed anew: one that was wrong on arrival is as wrong afterwards, so
a sender's mistake is not put right on the way and stays visible to the receiver.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58
END, NOP, EXPERIMENT = 0, 1, 253
"""Kinds of TCP options."""
_CHECKSUM_AT = {TCP: 16, UDP: 6, ICMP: 2, ICMP6: 2}
_NAMES = {TCP: "tcp", UDP: "udp", ICMP: "icmp", ICMP6: "icmp6"}
_FLAGS = ((0x02, "S"), (0x10, "A"), (0x01, "F"), (0x04, "R"), (0x08, "P"))
_IPV4_HEADER_BYTES, _IPV6_HEADER_BYTES, _TCP_HEADER_BYTES, _UDP_HEADER_BYTES = 20, 40, 20, 8
_TCP_OPTIONS_MAX = 40


@dataclass(frozen=True, slots=True)
class Packet:
    """From the first byte of the IP header. Transport fields are 0, or empty, where there is no such header."""

    raw: bytes

    def __str__(self) -> str:
        (source, destination), options = self.ports, " ".join(str(kind) for kind, _ in self.options if kind != NOP)
        ends = f"{self.source} {source} > {self.destination} {destination}"
        more = f" {self.flags} options {options or 'none'}" if self.protocol == TCP else ""
        return f"{ends} {_NAMES.get(self.protocol, self.protocol)}{more}, {len(self.payload)} bytes"

    # The IP header

    @property
    def version(self) -> int:
        return self.raw[0] >> 4

    @property
    def _is_six(self) -> bool:
        return self.version == 6

    @property
    def _header_bytes(self) -> int:
        return _IPV6_HEADER_BYTES if self._is_six else (self.raw[0] & 0xF) * 4

    @property
    def protocol(self) -> int:
        """The number after the IP header; of IPv6 the first extension header's, if there is one."""
        return self.raw[6 if self._is_six else 9]

    @property
    def source(self) -> str:
        """Address as text."""
        return str(ipaddress.ip_address(self.raw[8:24] if self._is_six else self.raw[12:16]))

    @property
    def destination(self) -> str:
        """Address as text."""
        return str(ipaddress.ip_address(self.raw[24:40] if self._is_six else self.raw[16:20]))

    @property
    def segment(self) -> bytes:
        """What the IP header carries."""
        length = int.from_bytes(self.raw[4:6] if self._is_six else self.raw[2:4], "big")
        return self.raw[self._header_bytes : length + (_IPV6_HEADER_BYTES if self._is_six else 0)]

    @property
    def _is_later_fragment(self) -> bool:
        return not self._is_six and bool(int.from_bytes(self.raw[6:8], "big") & 0x1FFF)

    # The transport's header

    def _has(self, *protocols: int) -> bool:
        shortest = _TCP_HEADER_BYTES if self.protocol == TCP else _UDP_HEADER_BYTES
        return self.protocol in protocols and not self._is_later_fragment and len(self.segment) >= shortest

    @property
    def ports(self) -> tuple[int, int]:
        """Source and destination."""
        if not self._has(TCP, UDP):
            return 0, 0
        source, destination = struct.unpack(">HH", self.segment[:4])
        return source, destination

    @property
    def flags(self) -> str:
        """Of TCP, in the order `SAFRP`: `S`, `SA`, `A`, `AP`, `R`, …"""
        bits = self.segment[13] if self._has(TCP) else 0
        return "".join(letter for bit, letter in _FLAGS if bits & bit)

    @property
    def sequence(self) -> int:
        return int.from_bytes(self.segment[4:8], "big") if self._has(TCP) else 0

    @property
    def acknowledgement(self) -> int:
        return int.from_bytes(self.segment[8:12], "big") if self._has(TCP) else 0

    @property
    def _tcp_header_bytes(self) -> int:
        return max((self.segment[12] >> 4) * 4, _TCP_HEADER_BYTES)

    @property
    def options(self) -> tuple[tuple[int, bytes], ...]:
        """TCP options as (kind, whole option), no-operations included, up to the end or what cannot be understood."""
        if not self._has(TCP):
            return ()
        found, rest = [], self.segment[_TCP_HEADER_BYTES : self._tcp_header_bytes]
        while rest and rest[0] != END:
            size = 1 if rest[0] == NOP else rest[1] if len(rest) > 1 else 0
            if not 1 <= size <= len(rest) or (size == 1 and rest[0] != NOP):
                break
            found.append((rest[0], rest[:size]))
            rest = rest[size:]
        return tuple(found)

    def option(self, kind: int) -> bytes | None:
        """The first TCP option of a kind, with its kind and length."""
        return next((whole for one, whole in self.options if one == kind), None)

    @property
    def payload(self) -> bytes:
        """What the transport carries; of UDP without the trailer that may follow the datagram."""
        if self._has(TCP):
            return self.segment[self._tcp_header_bytes :]
        return self.segment[_UDP_HEADER_BYTES : self._udp_length] if self._has(UDP) else b""

    @property
    def _udp_length(self) -> int:
        return int.from_bytes(self.segment[4:6], "big")

    @property
    def trailer(self) -> bytes:
        """What lies between the end of a UDP datagram and that of the IP packet: UDP options (RFC 9868)."""
        return self.segment[self._udp_length :] if self._has(UDP) else b""

    # Altered

    def readdressed(self, source: str | None = None, destination: str | None = None) -> Packet:
        """With other addresses, of the same family."""
        return self._rebuilt(self.segment, source or self.source, destination or self.destination)

    def with_ports(self, source: int | None = None, destination: int | None = None) -> Packet:
        """From or to another port."""
        old = self.ports
        ports = struct.pack(">HH", old[0] if source is None else source, old[1] if destination is None else destination)
        return self._rebuilt(ports + self.segment[4:])

    def with_sequence(self, sequence: int) -> Packet:
        """With another TCP sequence number."""
        return self._rebuilt(self.segment[:4] + struct.pack(">I", sequence) + self.segment[8:])

    def with_payload(self, payload: bytes) -> Packet:
        """A TCP segment that carries other bytes."""
        return self._rebuilt(self.segment[: self._tcp_header_bytes] + payload)

    def with_options(self, options: Iterable[bytes]) -> Packet:
        """With other TCP options, filled up to a whole word with no-operations. Raises ValueError when too long."""
        data = b"".join(options)
        data += bytes([NOP]) * (-len(data) % 4)
        if len(data) > _TCP_OPTIONS_MAX:
            raise ValueError(f"TCP options take {_TCP_OPTIONS_MAX} bytes at most, not {len(data)}")
        old = self.segment
        words = (_TCP_HEADER_BYTES + len(data)) // 4
        head = old[:12] + bytes([words << 4 | old[12] & 0xF]) + old[13:_TCP_HEADER_BYTES]
        return self._rebuilt(head + data + old[self._tcp_header_bytes :])

    def without_option(self, kind: int) -> Packet:
        """Without the TCP options of a kind; the header gets shorter."""
        if self.option(kind) is None:
            return self
        return self.with_options(whole for one, whole in self.options if one != kind)

    def with_option_blanked(self, kind: int) -> Packet:
        """With no-operations where the TCP options of a kind were; no length changes."""
        return self.with_options(bytes([NOP]) * len(whole) if one == kind else whole for one, whole in self.options)

    def with_options_in_order(self, kinds: Sequence[int]) -> Packet:
        """TCP options of these kinds first, then the others, closed up: as a box writes them that makes them anew."""
        present = [(kind, whole) for kind, whole in self.options if kind != NOP]
        rank = {kind: place for place, kind in enumerate(kinds)}
        return self.with_options(whole for _, whole in sorted(present, key=lambda one: rank.get(one[0], len(rank))))

    def with_trailer(self, trailer: bytes) -> Packet:
        """A UDP datagram with other bytes after its end, or none."""
        return self._rebuilt(self.segment[: self._udp_length] + trailer) if self._has(UDP) else self

    def _rebuilt(self, segment: bytes, source: str | None = None, destination: str | None = None) -> Packet:
        """With another segment or addresses. Lengths and checksums follow."""
        addresses = b"".join(
            ipaddress.ip_address(one).packed for one in (source or self.source, destination or self.destination)
        )
        before = self._covered(self.segment, self._addresses)
        if before is not None:
            segment = _amended(segment, _CHECKSUM_AT[self.protocol], before, self._covered(segment, addresses) or 0)
        if self._is_six:
            return Packet(self.raw[:4] + struct.pack(">H", len(segment)) + self.raw[6:8] + addresses + segment)
        head, size = self.raw[: self._header_bytes], self._header_bytes + len(segment)
        changed = head[:2] + struct.pack(">H", size) + head[4:12] + addresses + head[_IPV4_HEADER_BYTES:]
        return Packet(_amended(changed, 10, _sum(head), _sum(changed)) + segment)

    @property
    def _addresses(self) -> bytes:
        return self.raw[8:40] if self._is_six else self.raw[12:20]

    def _covered(self, segment: bytes, addresses: bytes) -> int | None:
        """The sum over what the transport's checksum covers, itself included. None: there is no checksum to keep."""
        at = _CHECKSUM_AT.get(self.protocol)
        if at is None or self._is_later_fragment or len(segment) < at + 2:
            return None
        if self.protocol == UDP:
            if segment[at : at + 2] == b"\0\0":
                return None
            segment = segment[: int.from_bytes(segment[4:6], "big")]
        pseudo = b"" if self.protocol == ICMP else addresses + struct.pack(">HH", self.protocol, len(segment))
        return (_sum(pseudo) + _sum(segment)) % 0xFFFF


def _sum(data: bytes) -> int:
    """In ones' complement, of 16-bit words: a number modulo 65535."""
    return int.from_bytes(data + bytes(len(data) % 2), "big") % 0xFFFF


def _amended(data: bytes, at: int, before: int, after: int) -> bytes:
    """With the checksum at `at` changed by as much as the sum has changed. 0xFFFF stands for zero, as UDP wants it."""
    old = int.from_bytes(data[at : at + 2], "big")
    new = (old + before - after) % 0xFFFF or 0xFFFF
    return data[:at] + struct.pack(">H", old if before == after else new) + data[at + 2 :]


def is_sound(packet: Packet) -> bool:
    """Whether the checksums of the IP header and of the transport are right."""
    covered = packet._covered(packet.segment, packet._addresses)
    header = 0 if packet.version == 6 else _sum(packet.raw[: packet._header_bytes])
    return header == 0 and not covered
