"""What the proxies of the nodes do for a commit: which conversations go through them, as whom, and to whom.

A rule between workloads means mutual TLS unless it says `mtls: off`. Between nodes the kernel steers such a
conversation into the node's proxy by a *lane*: a loopback address of its own for each pair of a caller and the set of
workloads that it may reach on that port. A lane presents its caller's SVID and accepts no other peers than its own; so
the proxy knows nothing of ports, and the kernel nothing of certificates.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from itertools import count
from typing import Final

from bulkhead.dataplane.requests import Authorization, JwtIssuer

LANE_BITS: Final = 22
LANE_BASE: Final = int(IPv4Address("127.64.0.0"))
"""Lanes are 127.64.0.1 to 127.127.255.254: loopback, and next to nobody's."""
LANE_PORT: Final = 15001
HBONE_PORT: Final = 15008


@dataclass(frozen=True, slots=True, order=True)
class Lane:
    """One way out of a node."""

    number: int
    """1 .. 2**22 - 2, of which its address is made. Equal lanes have equal numbers in every commit, unless two of a
    commit want the same."""
    source: int
    """Identity of the caller."""
    peers: tuple[int, ...]
    """Identities of those who may answer, ascending."""

    @property
    def address(self) -> str:
        """Where the proxy listens for it."""
        return str(IPv4Address(LANE_BASE + self.number))


@dataclass(frozen=True, slots=True, order=True)
class Call:
    """A local workload may be called through the proxy by another."""

    destination: int
    source: int
    ports: tuple[tuple[int, int], ...]
    """Intervals of TCP ports, disjoint and ascending."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """What one node's proxy has to do."""

    lanes: tuple[Lane, ...] = ()
    """Of local callers, by number."""
    calls: tuple[Call, ...] = ()
    """To local workloads."""
    authorizations: tuple[Authorization, ...] = ()
    """Of local workloads some of whose ports are judged by request."""
    issuers: tuple[JwtIssuer, ...] = ()
    svids: dict[int, str] = field(default_factory=dict)
    """Template of the SPIFFE ID of every identity above; `{host}` stands for the name of the node it runs on."""

    @property
    def is_empty(self) -> bool:
        """Whether no proxy is needed."""
        return not self.lanes and not self.calls


def lane_number(source: int, peers: Iterable[int], attempt: int = 0) -> int:
    """The number that these want, at first (`attempt` 0) or after two wanted the same (1, and so on)."""
    text = f"bulkhead lane {source} {','.join(map(str, sorted(peers)))}{f' #{attempt}' if attempt else ''}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % ((1 << LANE_BITS) - 2) + 1


Ends = tuple[int, tuple[int, ...]]
"""Source and peers of a lane."""


def number_lanes(lanes: Iterable[Ends]) -> dict[Ends, Lane]:
    """Every lane with its number. What several want at once none of them gets: a number that was theirs in another
    commit must not become the way of somebody else in this one."""
    numbered: dict[Ends, Lane] = {}
    refused: set[int] = set()
    pending = sorted(set(lanes))
    for attempt in count():
        if not pending:
            break
        wanted = [lane_number(*ends, attempt) for ends in pending]
        refused |= {number for number, wishes in Counter(wanted).items() if wishes > 1}
        given = {ends: number for ends, number in zip(pending, wanted, strict=True) if number not in refused}
        numbered |= {ends: Lane(number, *ends) for ends, number in given.items()}
        refused |= set(given.values())
        pending = [ends for ends in pending if ends not in given]
    return numbered
