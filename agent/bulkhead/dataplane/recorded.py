"""What was recorded of conversations, in the terms that a commit can be asked about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from bulkhead.abi import Direction
from bulkhead.dataplane.addresses import Address


class Facts(NamedTuple):
    """What was recorded of a process; None where it was not."""

    host: str
    cgroup: str
    exe: str | None
    uid: int | None
    gid: int | None = None


@dataclass(frozen=True, slots=True)
class Party:
    """One end of a flow."""

    name: str
    """As recorded: a workload, `host`, externals; anything else names nobody."""
    facts: Facts | None = None
    address: Address | None = None
    """Of an end outside this machine, and of no other."""


class Talk(NamedTuple):
    """A conversation that is open now."""

    process: str
    """Of the end on this machine, of the one that opened it when both are: `nginx[8123]`."""
    peer: str
    """`ADDRESS:PORT`."""


@dataclass(frozen=True, slots=True)
class Flow:
    """Something that was recorded, or is open now."""

    source: Party
    destination: Party
    protocol: int
    port: int
    """Of the destination; for ICMP `type << 8 | code`."""
    direction: Direction
    """Which end recorded it. Two ends on one machine both do."""
    count: int = 0
    """Events recorded; 0 for what is open now."""
    last_seen: float = 0.0
    """Unix seconds."""
    passed: bool | None = None
    """Whether policy allowed it when it was recorded, where that was the commit before; None: it was another."""
    talk: Talk | None = None
