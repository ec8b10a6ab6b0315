"""What a conversation costs over a wire between two hosts: bare, enforced at both ends, filtered by nftables at both."""

from __future__ import annotations

import ctypes
import fcntl
import random
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import traffic
from figures import Figure, at_least, at_most, context, median, percentile, spread
from hosts import DEVICE, Pair, quiet_wire
from lab.netns import Namespace, Wire
from traffic import Place, Traffic

_ECHO_PORT = 7001
_SINK_PORT = 7002
_TRIPS = 3000
_REQUESTS = 500
_ROUNDS = 60
_STREAM_MS = 500
_STREAM_ROUNDS = 9
_NFT_ELEMENTS = 1000
_SIOCETHTOOL = 0x8946
_OFFLOADS = {"tso": 0x1F, "gso": 0x24, "gro": 0x2C}
"""ETHTOOL_S* by name."""

BARE, OURS, NFT = "bare", "bulkhead", "nftables"
_FAST = "fast mode: p25 over rounds of each run's p10, one CPU, lanes in random order within each round"


@dataclass(frozen=True, slots=True)
class Lane:
    """One wire with a client and a server, in whatever way it is filtered."""

    name: str
    client: Place
    server: Place
    address: str


@contextmanager
def bare_lane(subnet: int) -> Iterator[Lane]:
    """A wire that nobody filters."""
    with quiet_wire(subnet) as joined:
        yield Lane(BARE, Place(joined.left, None), Place(joined.right, None), joined.right_address4)


@contextmanager
def nft_lane(subnet: int) -> Iterator[Lane]:
    """A wire that nftables filters at both ends: conntrack, and a set of 1,000 elements for what is new."""
    with quiet_wire(subnet) as joined:
        for namespace, rules in (
            (joined.left, _nft_rules(joined, "output")),
            (joined.right, _nft_rules(joined, "input")),
        ):
            with namespace.entered():
                subprocess.run(["nft", "--file", "-"], input=rules, check=True, capture_output=True, text=True)
        yield Lane(NFT, Place(joined.left, None), Place(joined.right, None), joined.right_address4)


def _nft_rules(joined: Wire, opening: str) -> str:
    """A host that opens conversations (`output`) or accepts them (`input`)."""
    peer = joined.right_address4 if opening == "output" else joined.left_address4
    elements = [f"{peer} . {port}" for port in (_ECHO_PORT, _SINK_PORT)]
    elements += [
        f"100.64.{index // 250}.{index % 250} . {10000 + index}" for index in range(_NFT_ELEMENTS - len(elements))
    ]
    address = "daddr" if opening == "output" else "saddr"
    other = "input" if opening == "output" else "output"
    return f"""
table inet bench {{
    set allowed {{ type ipv4_addr . inet_service; elements = {{ {", ".join(elements)} }} }}
    chain opening {{
        type filter hook {opening} priority 0; policy drop;
        ct state established,related accept
        ip {address} . tcp dport @allowed accept
    }}
    chain answering {{
        type filter hook {other} priority 0; policy drop;
        ct state established,related accept
    }}
}}
"""


def our_lane(pair: Pair) -> Lane:
    """The wire of two enforced hosts."""
    return Lane(OURS, pair.left.place("client"), pair.right.place("server"), pair.right.address)


def measure(program: Traffic, lanes: list[Lane]) -> list[Figure]:
    """Round trips, requests and streams on every lane, in turn."""
    figures = []
    for lane in lanes:  # the first run of a lane fills caches and tables
        _round_trips(program, lane)
    trips = _rounds(program, lanes, _round_trips, _ROUNDS)
    figures += _slower("1-byte TCP round trip, both ends enforced, 1,000 rules", trips, 0.5)
    requests = _rounds(program, lanes, _requests, _ROUNDS)
    figures += _slower("connect-request-close, both ends enforced, 1,000 rules", requests, 5)
    for word, is_on, limit in (("on", True, 97), ("off", False, 93)):
        for lane in lanes:
            for place in (lane.client, lane.server):
                set_offloads(place.namespace, is_on)
        streams = _rounds(program, lanes, _stream, _STREAM_ROUNDS)
        figures += _share(f"single-stream throughput, GSO {word}, both ends enforced", streams, limit)
    return figures


Rounds = dict[str, list[float]]
"""By lane, one number per round."""


def _rounds(program: Traffic, lanes: list[Lane], run: Callable[[Traffic, Lane], float], number: int) -> Rounds:
    results: Rounds = {lane.name: [] for lane in lanes}
    for _ in range(number):
        for lane in random.sample(lanes, len(lanes)):
            results[lane.name].append(run(program, lane))
    return results


def _round_trips(program: Traffic, lane: Lane) -> float:
    """Microseconds, p10."""
    with (
        traffic.ready(program, lane.server, "serve-echo", lane.address, _ECHO_PORT),
        traffic.ready(program, lane.client, "round-trips", lane.address, _ECHO_PORT) as session,
    ):
        return session.ask(_TRIPS)[0] / 1000


def _requests(program: Traffic, lane: Lane) -> float:
    """Microseconds, p10."""
    with traffic.ready(program, lane.server, "serve-echo", lane.address, _ECHO_PORT):
        return traffic.run(program, lane.client, "requests", lane.address, _ECHO_PORT, _REQUESTS)[0] / 1000


def _stream(program: Traffic, lane: Lane) -> float:
    """Gb/s."""
    with traffic.ready(program, lane.server, "serve-sink", lane.address, _SINK_PORT):
        sent, took_ns = traffic.run(program, lane.client, "stream", lane.address, _SINK_PORT, _STREAM_MS)
        return sent * 8 / took_ns


def _slower(name: str, rounds: Rounds, limit: float) -> list[Figure]:
    """How much longer it takes than on the bare wire."""
    fast = {lane: percentile(values, 0.25) for lane, values in rounds.items()}
    figures = []
    for lane in rounds.keys() - {BARE}:
        differences = [value - bare for value, bare in zip(rounds[lane], rounds[BARE], strict=True)]
        method = (
            f"over a bare wire ({fast[BARE]:.2f} us), {_FAST}; {spread(differences, 'us')} paired differences, "
            f"median {median(differences):+.2f}"
        )
        value = fast[lane] - fast[BARE]
        figures.append(
            at_most(name, value, "us", limit, method) if lane == OURS else context(_by(name), value, "us", method)
        )
    return _ours_first(figures)


def _share(name: str, rounds: Rounds, limit: float) -> list[Figure]:
    """How much of the bare wire's throughput is left."""
    figures = []
    for lane in rounds.keys() - {BARE}:
        shares = [100 * value / bare for value, bare in zip(rounds[lane], rounds[BARE], strict=True)]
        method = (
            f"of a bare wire ({median(rounds[BARE]):.2f} Gb/s), median of paired rounds of {_STREAM_MS} ms, one CPU; "
            f"{spread(shares, '%')}"
        )
        value = median(shares)
        figures.append(
            at_least(name, value, "%", limit, method) if lane == OURS else context(_by(name), value, "%", method)
        )
    return _ours_first(figures)


def _by(name: str) -> str:
    return name.split(", both ends enforced")[0] + f", {NFT} at both ends (conntrack, set of 1,000)"


def _ours_first(figures: list[Figure]) -> list[Figure]:
    return sorted(figures, key=lambda figure: figure.mark is None)


def set_offloads(namespace: Namespace, is_on: bool) -> None:
    """Segmentation and receive coalescing of a namespace's end of the wire."""
    with namespace.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for command in _OFFLOADS.values():
            _ethtool(control, command, is_on)


def _ethtool(control: socket.socket, command: int, value: bool) -> None:
    argument = ctypes.create_string_buffer(struct.pack("=II", command, value), 8)
    request = struct.pack("=16sQ16x", DEVICE.encode(), ctypes.addressof(argument))
    fcntl.ioctl(control, _SIOCETHTOOL, request)
