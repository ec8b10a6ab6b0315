"""What a conversation costs over a wire between two hosts: bare, enforced by us, filtered by nftables."""

from __future__ import annotations

import itertools
import random
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import traffic
from figures import Figure, at_least, at_most, context, median, percentile, spread
from hosts import DEVICES, Pair, quiet_wires
from traffic import Place, Traffic

from lab.netns import Namespace
from lab.offloads import SEGMENTATION, set_offloads

_ECHO_PORT = 7001
_SINK_PORT = 7002
_TRIPS = 600
_REQUESTS = 200
_BLOCKS = 8
_RUNS = 20
"""Of each measure under each condition, in each block."""
_STREAM_MS = 150
_STREAM_RUNS = 4
_NFT_ELEMENTS = 1000

BARE, OURS, NFT = CONDITIONS = ("bare", "bulkhead", "nftables")
_FAST = "fast mode: p25 over runs of each run's p10, one CPU, conditions in turn and in random order"


@dataclass(frozen=True, slots=True)
class Lane:
    """One wire, and where the processes at its ends run."""

    client: Place
    server: Place
    address: str


@dataclass(frozen=True, slots=True)
class Course:
    """What is compared. Ours and bare are two wires between the same two hosts, which change roles with every block."""

    program: Traffic
    pair: Pair
    filtered: Lane

    @contextmanager
    def lanes(self, block: int) -> Iterator[dict[str, Lane]]:
        """By condition, for one block."""
        enforced, bare = DEVICES if block % 2 else reversed(DEVICES)
        left, right = self.pair
        with left.unhooked(bare), right.unhooked(bare):
            yield {
                BARE: Lane(Place(left.namespace, None), Place(right.namespace, None), right.addresses[bare]),
                OURS: Lane(left.place("client"), right.place("server"), right.addresses[enforced]),
                NFT: self.filtered,
            }


@contextmanager
def nft_lane(subnet: int) -> Iterator[Lane]:
    """A wire between two hosts that nftables filters."""
    with quiet_wires(subnet, (DEVICES[0],)) as (wire,):
        left, right = wire.left_address4, wire.right_address4
        with _filtered(wire.left, _nft_rules("output", right)), _filtered(wire.right, _nft_rules("input", left)):
            yield Lane(Place(wire.left, None), Place(wire.right, None), right)


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


def _nft_rules(opening: str, peer: str) -> str:
    """A host that opens conversations with its peer (`output`), or accepts them (`input`)."""
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


def measure(program: Traffic, pair: Pair, subnet: int) -> list[Figure]:
    """Round trips, requests and streams under every condition, in turn."""
    with nft_lane(subnet) as filtered:
        course = Course(program, pair, filtered)
        trips, requests = _blocks(course, (_round_trips, _requests), _BLOCKS, _RUNS)
        figures = _slower("1-byte TCP round trip, both ends enforced, 1,000 rules", trips, 0.5)
        figures += _slower("connect-request-close, both ends enforced, 1,000 rules", requests, 5)
        for word, is_on, limit in (("on", True, 97), ("off", False, 93)):
            _set_offloads(course, is_on)
            (streams,) = _blocks(course, (_stream,), _BLOCKS, _STREAM_RUNS)
            figures += _share(f"single-stream throughput, GSO {word}, both ends enforced", streams, limit)
        _set_offloads(course, True)
    return figures


Results = dict[str, list[float]]
"""By condition, one number per run."""


def _blocks(
    course: Course, measures: Sequence[Callable[[Traffic, Lane], float]], blocks: int, runs: int
) -> list[Results]:
    """In each block, so many times, every measure under every condition in random order: neighbours in time compare."""
    results: list[Results] = [{name: [] for name in CONDITIONS} for _ in measures]
    for block in range(blocks):
        with course.lanes(block) as lanes:
            for _, (once, result) in itertools.product(range(runs), zip(measures, results, strict=True)):
                for name in random.sample(CONDITIONS, len(CONDITIONS)):
                    result[name].append(once(course.program, lanes[name]))
    return results


def _round_trips(program: Traffic, lane: Lane) -> float:
    """Microseconds, p10."""
    with traffic.ready(program, lane.server, "serve-echo", lane.address, _ECHO_PORT):
        return traffic.run(program, lane.client, "round-trips", lane.address, _ECHO_PORT, _TRIPS)[0] / 1000


def _requests(program: Traffic, lane: Lane) -> float:
    """Microseconds, p10."""
    with traffic.ready(program, lane.server, "serve-echo", lane.address, _ECHO_PORT):
        return traffic.run(program, lane.client, "requests", lane.address, _ECHO_PORT, _REQUESTS)[0] / 1000


def _stream(program: Traffic, lane: Lane) -> float:
    """Gb/s."""
    with traffic.ready(program, lane.server, "serve-sink", lane.address, _SINK_PORT):
        sent, took_ns = traffic.run(program, lane.client, "stream", lane.address, _SINK_PORT, _STREAM_MS)
        return sent * 8 / took_ns


def _slower(name: str, results: Results, limit: float) -> list[Figure]:
    """How much longer it takes than on the bare wire."""
    fast = {condition: percentile(values, 0.25) for condition, values in results.items()}

    def method(condition: str) -> str:
        differences = [value - bare for value, bare in zip(results[condition], results[BARE], strict=True)]
        return (
            f"over a bare wire ({fast[BARE]:.2f} us), {_FAST}; {spread(differences, 'us')} paired differences, "
            f"median {median(differences):+.2f}"
        )

    return [
        at_most(name, fast[OURS] - fast[BARE], "us", limit, method(OURS)),
        context(_by(name), fast[NFT] - fast[BARE], "us", method(NFT)),
    ]


def _share(name: str, results: Results, limit: float) -> list[Figure]:
    """How much of the bare wire's throughput is left."""
    shares = {
        condition: [100 * value / bare for value, bare in zip(results[condition], results[BARE], strict=True)]
        for condition in (OURS, NFT)
    }

    def method(condition: str) -> str:
        return (
            f"of a bare wire ({median(results[BARE]):.2f} Gb/s), median of paired rounds of {_STREAM_MS} ms, one CPU; "
            f"{spread(shares[condition], '%')}"
        )

    return [
        at_least(name, median(shares[OURS]), "%", limit, method(OURS)),
        context(_by(name), median(shares[NFT]), "%", method(NFT)),
    ]


def _by(name: str) -> str:
    return name.split(", both ends enforced")[0] + f", {NFT} at both ends (conntrack, set of 1,000)"


def _set_offloads(course: Course, is_on: bool) -> None:
    """Segmentation and receive coalescing, at both ends of every wire."""
    ends = [(host.namespace, device) for host in course.pair for device in DEVICES]
    ends += [(place.namespace, DEVICES[0]) for place in (course.filtered.client, course.filtered.server)]
    for namespace, device in ends:
        with namespace.entered():
            set_offloads(device, is_on, SEGMENTATION)
