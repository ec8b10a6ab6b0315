"""The nodes of a trust domain: who may say on the wire whom it hosts, by which key, reached at which addresses.

Where the records come from is a registry's business (files of the policy repository, etcd); what they mean is here.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from bulkhead.errors import Loc
from bulkhead.policy.model import Network

NUMBER_MAX = (1 << 24) - 1
KEY_BYTES = 32
AUTHORITIES_MAX = 4
"""Certificates of one node's authority."""
NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9._]{0,251}[A-Za-z0-9])?")
"""What a node may be called: what `host:` globs can match."""


class Unknown(StrEnum):
    """What becomes of traffic from a node that does not say who is talking."""

    DENY = "deny"
    ADDRESS = "address"
    """It is judged by its address, as that of a machine outside the trust domain: for a roll-out under way."""


def default_number(name: str) -> int:
    """The number of a node that is given none: three bytes of a hash of its name, never 0."""
    return int.from_bytes(hashlib.sha256(f"bulkhead node {name}".encode()).digest()[:3], "big") or 1


@dataclass(frozen=True, slots=True)
class Node:
    """One node, as its record says."""

    name: str
    """As in its agent's setting `host`, which `host:` selectors are compared with."""
    number: int
    """1..NUMBER_MAX; what its packets carry."""
    addresses: tuple[Network, ...]
    """Where it is reached, translated addresses included; a prefix for one that routes a network of its own."""
    key: bytes | None
    """X25519 public key, 32 bytes. None: it runs no agent."""
    unknown: Unknown = Unknown.DENY
    revoked: bool = False
    origin: str = ""
    """Where the record is, for people: `nodes.yaml:3`, `etcd /bulkhead/nodes/web-1`."""
    ca: tuple[bytes, ...] = ()
    """Certificates (DER) of its authority, which vouches for its workloads: one, or two while they are rotated."""

    def place(self, commit: str = "") -> Loc:
        """Where the record is, if that is a file of the policy repository."""
        file, _, line = self.origin.rpartition(":")
        return Loc(file or self.origin, int(line) if line.isdecimal() else 1, commit=commit)


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that does not count, and why."""

    name: str
    reason: str
    """`name`, `number`, `address`, `key`: shared with another node; `revoked`; `invalid`: cannot be understood."""
    detail: str
    """One sentence."""


@dataclass(frozen=True, slots=True)
class Roster:
    """The nodes that count, by name in order, and the records that do not."""

    nodes: tuple[Node, ...] = ()
    refused: tuple[Refused, ...] = ()

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def by_name(self, name: str) -> Node | None:
        """The node of that name."""
        return next((node for node in self.nodes if node.name == name), None)

    def by_number(self, number: int) -> Node | None:
        """The node of that number."""
        return next((node for node in self.nodes if node.number == number), None)


def roster(records: Iterable[Node], invalid: Iterable[Refused] = ()) -> Roster:
    """What counts of these records.

    Two that share a name, a number, a key or an address are both refused: which of them is the real one cannot be told
    here. Prefixes may lie within each other; only equal ones are shared.
    """
    given = sorted(records, key=lambda node: (node.name, node.origin))
    refused = list(invalid)
    refused += [Refused(n.name, "revoked", f"`{n.name}` is revoked ({n.origin})") for n in given if n.revoked]
    standing = [node for node in given if not node.revoked]
    shared = dict(_shared(standing))
    refused += shared.values()
    refused += [
        Refused(node.name, "invalid", problem)
        for node in standing
        if id(node) not in shared and (problem := _problem(node))
    ]
    bad = {one.name for one in refused if one.reason != "revoked"}
    return Roster(tuple(n for n in standing if id(n) not in shared and n.name not in bad), tuple(refused))


def _problem(node: Node) -> str:
    if not 1 <= node.number <= NUMBER_MAX:
        return f"the number of `{node.name}` is 1..{NUMBER_MAX}, not {node.number}"
    if node.key is not None and (len(node.key) != KEY_BYTES or not any(node.key)):
        return f"the key of `{node.name}` is not {KEY_BYTES} bytes of an X25519 public key"
    if not node.addresses:
        return f"`{node.name}` has no address"
    return ""


_TRAITS: dict[str, Callable[[Node], tuple[object, ...]]] = {
    "name": lambda node: (node.name,),
    "number": lambda node: (node.number,),
    "key": lambda node: () if node.key is None else (node.key,),
    "address": lambda node: node.addresses,
}


class Clash(NamedTuple):
    """What must be one node's alone, and is another's too."""

    node: Node
    trait: str
    """`name`, `number`, `key` or `address`."""
    held: object
    """What they share: a name, a number, the bytes of a key, a network."""
    other: Node

    @property
    def shown(self) -> str:
        """What they share, for people."""
        return f"{self.held.hex()[:8]}…" if isinstance(self.held, bytes) else str(self.held)


def clashes(nodes: Sequence[Node]) -> Iterator[Clash]:
    """Of each node that shares something with another, the first such thing, and the first node that has it too."""
    found: set[int] = set()
    for trait, values in _TRAITS.items():
        counts = Counter(value for node in nodes for value in set(values(node)))
        for node in nodes:
            held = next((value for value in values(node) if counts[value] > 1), None)
            if held is not None and id(node) not in found:
                found.add(id(node))
                other = next(n for n in nodes if n is not node and held in values(n))
                yield Clash(node, trait, held, other)


def _shared(nodes: Sequence[Node]) -> Iterator[tuple[int, Refused]]:
    """By identity of the record, those that share what must be theirs alone."""
    for clash in clashes(nodes):
        name, place = clash.node.name, clash.other.origin or clash.other.name
        yield id(clash.node), Refused(name, clash.trait, f"{clash.trait} {clash.shown} of `{name}` is also in {place}")
