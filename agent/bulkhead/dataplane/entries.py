"""Entries of the kernel's policy map: who may talk to whom, and what a conversation has to bring with it.

Each rule opens both ends: an egress entry at every local member of `from`, an ingress entry at every local member of
`to`. The kernel takes the entry with the longest port prefix, whatever rule it came from, so entries that overlap are
made to agree beforehand. Of the rules that cover a port, the ports of an entry are covered by exactly those that have
the entry itself or one around it: prefixes nest or are apart. So an entry

- lasts as long as the longest-lived of them, and names a rule that holds for that long;
- carries MTLS if all of them ask for it: one that says `mtls: off` permits plaintext while it is in force;
- carries REQUESTS if all that last longest are judged by request: one that ends earlier has its part in the proxy's
  authorization, with its deadline, so that nothing of it is left in the kernel when it is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from bulkhead.abi import Direction, PolicyFlag
from bulkhead.dataplane.ports import PortPrefix, port_prefixes, prefix_of
from bulkhead.dataplane.resolve import ResolvedRule
from bulkhead.policy.model import PortSpec, Rule, RuleId
from bulkhead.policy.ports import TCP

MTLS: Final = int(PolicyFlag.MTLS)
"""Flag of an entry: between nodes, mutual TLS and nothing else."""
REQUESTS: Final = int(PolicyFlag.REQUESTS)
"""Flag of an entry: through the proxy, which judges each request, on one host too."""
LANE_MASK: Final = int(PolicyFlag.LANE)
"""The bits of the flags that name a lane; 0: none."""


class PolicyKey(NamedTuple):
    """What one entry is about. A tuple rather than a dataclass: there can be a million of them."""

    local_identity: int
    direction: int
    """`Direction`, as a plain number."""
    remote_identity: int
    protocol: int
    port: int
    """Of the end that is connected to; for ICMP `type << 8 | code`. Bits beyond `port_bits` are 0."""
    port_bits: int
    """0 (any port) to 16 (one port)."""


class PolicyEntry(NamedTuple):
    """An allow."""

    rule_id: RuleId
    deadline: float | None
    """Unix seconds after which it lapses; None: never."""
    flags: int = 0
    """MTLS, REQUESTS, and the number of a lane."""


def demands(rule: Rule) -> int:
    """The flags that TCP between two workloads has by a rule."""
    return (MTLS if rule.mtls else 0) | (REQUESTS if rule.by_request else 0)


def preference(found: ResolvedRule) -> tuple[float, int]:
    """Permanent before passing, the later deadline before the earlier, then the lower rule id."""
    return (float("-inf") if found.deadline is None else -found.deadline), found.rule.rule_id


def build(rules: Iterable[ResolvedRule]) -> dict[PolicyKey, PolicyEntry]:
    """The entries of all rules, in agreement."""
    ordered = sorted(rules, key=preference)
    entries: dict[PolicyKey, PolicyEntry] = {}
    for found in ordered:
        for key, entry in _entries_of(found):
            # The preferred rule comes first and keeps the key.
            held = entries.setdefault(key, entry)
            if held.flags and held is not entry:
                entries[key] = _lifted(held, entry)
    is_mixed = len({demands(found.rule) for found in ordered}) > 1
    return folded(entries, _liftable(entries) if is_mixed else ())


def _entries_of(found: ResolvedRule) -> Iterator[tuple[PolicyKey, PolicyEntry]]:
    plain = PolicyEntry(found.rule.rule_id, found.deadline)
    demanding = plain._replace(flags=demands(found.rule))
    ports = protocol_prefixes(found.rule.ports)
    outside = [(protocol, prefix.value, prefix.bits, plain) for protocol, prefix in ports]
    between = [
        (protocol, value, bits, demanding if protocol == TCP else entry) for protocol, value, bits, entry in outside
    ]
    source, destination = found.source, found.destination
    ends = [(local, int(Direction.EGRESS), source, destination) for local in source.local]
    ends += [(local, int(Direction.INGRESS), destination, source) for local in destination.local]
    for local, direction, near, far in ends:
        workloads = far.workloads if local in near.workloads else ()
        for remote in far.members:
            for protocol, value, bits, entry in between if remote in workloads else outside:
                yield PolicyKey(local, direction, remote, protocol, value, bits), entry


def protocol_prefixes(ports: Iterable[PortSpec]) -> list[tuple[int, PortPrefix]]:
    """The prefixes of a rule's ports, each behind its protocol."""
    return [(spec.protocol, prefix) for spec in ports for prefix in port_prefixes(spec.first, spec.last)]


def _lifted(entry: PolicyEntry, other: PolicyEntry) -> PolicyEntry:
    """An entry beside another on its ports that lasts no longer: what ends before it does lifts nothing.

    The kernel has one entry, and would go on without what was lifted after the other has ended.
    """
    return entry._replace(flags=entry.flags & other.flags) if other.deadline == entry.deadline else entry


def _liftable(entries: Mapping[PolicyKey, PolicyEntry]) -> list[PolicyKey]:
    """Those whose flags an entry around them might lift."""
    weak = {key[:3] for key, entry in entries.items() if key.port_bits < 16 and entry.flags != MTLS | REQUESTS}
    return [key for key, entry in entries.items() if entry.flags and key[:3] in weak]


def folded(entries: dict[PolicyKey, PolicyEntry], liftable: Iterable[PolicyKey] = ()) -> dict[PolicyKey, PolicyEntry]:
    """Entries made to agree with those around them: all that have a deadline, and those in `liftable`."""
    widths = sorted({key.port_bits for key in entries}, reverse=True)
    wanted = {key for key, entry in entries.items() if entry.deadline is not None}
    agreed = {key: _agreed(entries[key], broader(entries, key, widths)) for key in wanted.union(liftable)}
    entries.update(agreed)
    return entries


def broader(entries: Mapping[PolicyKey, PolicyEntry], key: PolicyKey, widths: Iterable[int]) -> Iterator[PolicyEntry]:
    """Entries for more ports around those of `key`, the nearest first."""
    for bits in widths:
        if bits < key.port_bits:
            covering = entries.get(key._replace(port=prefix_of(key.port, bits).value, port_bits=bits))
            if covering is not None:
                yield covering


def _agreed(entry: PolicyEntry, around: Iterable[PolicyEntry]) -> PolicyEntry:
    for other in around:
        entry = _lifted(other, entry) if _outlives(other, entry) else _lifted(entry, other)
    return entry


def _outlives(one: PolicyEntry, other: PolicyEntry) -> bool:
    return other.deadline is not None and (one.deadline is None or one.deadline > other.deadline)
