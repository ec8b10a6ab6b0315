"""What a conversation costs over a wire between two hosts: bare, enforced at both ends, filtered by nftables at both."""

from __future__ import annotations

import ctypes
import fcntl
import random
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import traffic
from figures import Figure, at_least, at_most, context, median, percentile, spread
from hosts import DEVICE, Pair
from lab.netns import Namespace
from traffic import Traffic

_ECHO_PORT = 7001
_SINK_PORT = 7002
_TRIPS = 2000
_REQUESTS = 400
_BLOCKS = 10
_RUNS = 8
"""Of each measure, in each block, under each condition."""
_STREAM_MS = 500
_STREAM_BLOCKS = 9
_NFT_ELEMENTS = 1000
_SIOCETHTOOL = 0x8946
_OFFLOADS = {"tso": 0x1F, "gso": 0x24, "gro": 0x2C}
"""ETHTOOL_S* by name."""

BARE, OURS, NFT = CONDITIONS = ("bare", "bulkhead", "nftables")
_FAST = "fast mode: p25 over runs of each run's p10, one CPU, same wire, conditions in turn and in random order"


@dataclass(frozen=True, slots=True)
class Path:
    """The wire between two hosts, and what may be done to its packets. All of it happens on the same wire in turn."""

    program: Traffic
    pair: Pair

    @contextmanager
    def condition(self, name: str) -> Iterator[None]:
        """While in the block, packets meet what the name says and nothing else."""
        with ExitStack() as stack:
            if name != OURS:
                for host in self.pair:
                    stack.enter_context(host.unhooked())
            if name == NFT:
                for host, opening in ((self.pair.left, "output"), (self.pair.right, "input")):
                    stack.enter_context(_filtered(host.namespace, _nft_rules(self.pair, opening)))
            yield

    @contextmanager
    def served(self, command: str, port: int) -> Iterator[None]:
        """With a server at the right end."""
        right = self.pair.right
        with traffic.ready(self.program, right.place("server"), command, right.address, port):
            yield

    def client(self, command: str, port: int, number: int) -> list[int]:
        """What a client at the left end measures."""
        return traffic.run(self.program, self.pair.left.place("client"), command, self.pair.right.address, port, number)


@contextmanager
def _filtered(namespace: Namespace, rules: str) -> Iterator[None]:
    """With a table of nftables: conntrack, and a set of 1,000 elements for what is new."""
    _nft(namespace, rules)
    try:
        yield
    finally:
        _nft(namespace, "delete table inet bench")


def _nft(namespace: Namespace, commands: str) -> None:
    with namespace.entered():
        subprocess.run(["nft", "--file", "-"], input=commands, check=True, capture_output=True, text=True)


def _nft_rules(pair: Pair, opening: str) -> str:
    """A host that opens conversations (`output`) or accepts them (`input`)."""
    peer = pair.right.address if opening == "output" else pair.left.address
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


def measure(program: Traffic, pair: Pair) -> list[Figure]:
    """Round trips, requests and streams under every condition, in turn."""
    path = Path(program, pair)
    trips, requests = _blocks(path, (_round_trips, _requests), _BLOCKS, _RUNS)
    figures = _slower("1-byte TCP round trip, both ends enforced, 1,000 rules", trips, 0.5)
    figures += _slower("connect-request-close, both ends enforced, 1,000 rules", requests, 5)
    for word, is_on, limit in (("on", True, 97), ("off", False, 93)):
        for host in pair:
            set_offloads(host.namespace, is_on)
        (streams,) = _blocks(path, (_stream,), _STREAM_BLOCKS, 1)
        figures += _share(f"single-stream throughput, GSO {word}, both ends enforced", streams, limit)
    for host in pair:
        set_offloads(host.namespace, True)
    return figures


Rounds = dict[str, list[float]]
"""By condition, one number per run."""


def _blocks(path: Path, measures: Sequence[Callable[[Path], float]], blocks: int, runs: int) -> list[Rounds]:
    """Each block takes every condition once, in random order, and each measure so many times under it."""
    results: list[Rounds] = [{name: [] for name in CONDITIONS} for _ in measures]
    for _ in range(blocks):
        for name in random.sample(CONDITIONS, len(CONDITIONS)):
            with path.condition(name):
                for _ in range(runs):
                    for measure_once, rounds in zip(measures, results, strict=True):
                        rounds[name].append(measure_once(path))
    return results


def _round_trips(path: Path) -> float:
    """Microseconds, p10."""
    with path.served("serve-echo", _ECHO_PORT):
        return path.client("round-trips", _ECHO_PORT, _TRIPS)[0] / 1000


def _requests(path: Path) -> float:
    """Microseconds, p10."""
    with path.served("serve-echo", _ECHO_PORT):
        return path.client("requests", _ECHO_PORT, _REQUESTS)[0] / 1000


def _stream(path: Path) -> float:
    """Gb/s."""
    with path.served("serve-sink", _SINK_PORT):
        sent, took_ns = path.client("stream", _SINK_PORT, _STREAM_MS)
        return sent * 8 / took_ns


def _slower(name: str, rounds: Rounds, limit: float) -> list[Figure]:
    """How much longer it takes than on the bare wire."""
    fast = {condition: percentile(values, 0.25) for condition, values in rounds.items()}

    def method(condition: str) -> str:
        differences = [value - bare for value, bare in zip(rounds[condition], rounds[BARE], strict=True)]
        return (
            f"over a bare wire ({fast[BARE]:.2f} us), {_FAST}; {spread(differences, 'us')} paired differences, "
            f"median {median(differences):+.2f}"
        )

    return [
        at_most(name, fast[OURS] - fast[BARE], "us", limit, method(OURS)),
        context(_by(name), fast[NFT] - fast[BARE], "us", method(NFT)),
    ]


def _share(name: str, rounds: Rounds, limit: float) -> list[Figure]:
    """How much of the bare wire's throughput is left."""
    shares = {
        condition: [100 * value / bare for value, bare in zip(rounds[condition], rounds[BARE], strict=True)]
        for condition in (OURS, NFT)
    }

    def method(condition: str) -> str:
        return (
            f"of a bare wire ({median(rounds[BARE]):.2f} Gb/s), median of paired rounds of {_STREAM_MS} ms, one CPU, "
            f"same wire; {spread(shares[condition], '%')}"
        )

    return [
        at_least(name, median(shares[OURS]), "%", limit, method(OURS)),
        context(_by(name), median(shares[NFT]), "%", method(NFT)),
    ]


def _by(name: str) -> str:
    return name.split(", both ends enforced")[0] + f", {NFT} at both ends (conntrack, set of 1,000)"


def set_offloads(namespace: Namespace, is_on: bool) -> None:
    """Segmentation and receive coalescing of a namespace's end of the wire."""
    with namespace.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for command in _OFFLOADS.values():
            _ethtool(control, command, is_on)


def _ethtool(control: socket.socket, command: int, value: bool) -> None:
    argument = ctypes.create_string_buffer(struct.pack("=II", command, value), 8)
    request = struct.pack("=16sQ16x", DEVICE.encode(), ctypes.addressof(argument))
    fcntl.ioctl(control, _SIOCETHTOOL, request)
