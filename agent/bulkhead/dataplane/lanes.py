"""Openings towards nodes, and the lanes that some of them take.

Who will answer at a node's address is not known when a connection is opened. So the kernel has one more entry for each
workload and port, towards PEER, that covers whichever workload may answer there; if one of those asks for mutual TLS,
the opening goes through the proxy, in the lane of exactly these. The ports of such an entry are covered by the rules
that have it or one around it (`entries`), so its peers are theirs taken together, and its prefix needs no splitting.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from bulkhead.abi import Direction
from bulkhead.dataplane.entries import (
    MTLS,
    REQUESTS,
    PolicyEntry,
    PolicyKey,
    demands,
    folded,
    preference,
    protocol_prefixes,
)
from bulkhead.dataplane.mesh import Ends, Lane, number_lanes
from bulkhead.dataplane.ports import prefix_of
from bulkhead.dataplane.resolve import PEER, Resolved, ResolvedRule, Side
from bulkhead.errors import Diagnostic, PolicyError
from bulkhead.policy.ports import TCP

LANES_MAX = 65_535
"""Of one host."""


class _Openings(NamedTuple):
    """Entries towards PEER, and all rules of each."""

    entries: dict[PolicyKey, PolicyEntry]
    rules: dict[PolicyKey, list[ResolvedRule]]


class _Answers(NamedTuple):
    """Who may answer, and what the most demanding of them asks for."""

    flags: int
    peers: tuple[int, ...]


def steer(
    resolved: Resolved, entries: dict[PolicyKey, PolicyEntry]
) -> tuple[dict[PolicyKey, PolicyEntry], tuple[Lane, ...]]:
    """The entries towards PEER, and the lanes of the host, by number; those of `entries` that need one get theirs.

    There are no lanes where every host is compiled at once. Raises PolicyError (BH0701) for more than a host may have.
    """
    found = _openings(resolved.rules)
    answers = _answers(found, resolved.directory.workloads.values())
    openings = {key: entry._replace(flags=_flags(answers, key)) for key, entry in found.entries.items()}
    if resolved.host is None:
        return openings, ()
    ways = {key: (key.local_identity, one.peers) for key, one in answers.items() if one.flags}
    ways_inside = {key: (key.local_identity, (key.remote_identity,)) for key in _inside(resolved, entries)}
    numbered = number_lanes([*ways.values(), *ways_inside.values()])
    _check_count(resolved, numbered)
    for target, chosen in ((openings, ways), (entries, ways_inside)):
        target |= {key: _in_lane(target[key], numbered[ends]) for key, ends in chosen.items()}
    return openings, tuple(sorted(numbered.values()))


def _flags(answers: Mapping[PolicyKey, _Answers], key: PolicyKey) -> int:
    return answers[key].flags if key in answers else 0


def _in_lane(entry: PolicyEntry, lane: Lane) -> PolicyEntry:
    return entry._replace(flags=entry.flags | lane.number)


def _inside(resolved: Resolved, entries: Mapping[PolicyKey, PolicyEntry]) -> Iterator[PolicyKey]:
    """Openings to workloads of the same host that are judged by request."""
    if any(found.rule.by_request for found in resolved.rules):
        local = resolved.directory.local
        for key, entry in entries.items():
            if entry.flags & REQUESTS and key.direction == Direction.EGRESS and key.remote_identity in local:
                yield key


def _check_count(resolved: Resolved, lanes: Mapping[Ends, Lane]) -> None:
    if len(lanes) > LANES_MAX:
        largest = max(resolved.rules, key=lambda found: len(found.source.local) * found.rule.mtls)
        problem = f"{len(lanes):,} lanes through the proxy of host `{resolved.host}` are more than {LANES_MAX:,}"
        hint = f"`{largest.rule.qualified}` has the most workloads of this host that call others"
        raise PolicyError([Diagnostic("BH0701", problem, largest.rule.loc, hint=hint)])


# Entries towards PEER


def _openings(rules: Iterable[ResolvedRule]) -> _Openings:
    found = _Openings({}, {})
    for one in sorted(rules, key=preference):
        entry = PolicyEntry(one.rule.rule_id, one.deadline)
        for key in _keys(one):
            found.entries.setdefault(key, entry)
            if key.protocol == TCP:
                found.rules.setdefault(key, []).append(one)
    folded(found.entries)
    return found


def _keys(found: ResolvedRule) -> Iterator[PolicyKey]:
    if found.destination.workloads:
        for local in found.source.local:
            for protocol, (value, bits) in protocol_prefixes(found.rule.ports):
                yield PolicyKey(local, int(Direction.EGRESS), PEER, protocol, value, bits)


# Who may answer


_Part = tuple[Side, int, float]
"""What matters of a rule: its destination, what it demands, and until when."""


def _answers(found: _Openings, workloads: Iterable[int]) -> dict[PolicyKey, _Answers]:
    """Who may answer the TCP openings of workloads."""
    widths = sorted({key.port_bits for key in found.rules})
    known: dict[frozenset[_Part], _Answers] = {}
    callers, answers = frozenset(workloads), {}
    for key in found.rules:
        if key.local_identity in callers:
            parts = frozenset(map(_part, _covering(found.rules, key, widths)))
            if parts not in known:
                known[parts] = _answers_of(parts)
            answers[key] = known[parts]
    return answers


def _covering(
    rules: Mapping[PolicyKey, list[ResolvedRule]], key: PolicyKey, widths: Iterable[int]
) -> Iterator[ResolvedRule]:
    """Every rule that opens all ports of `key`."""
    for bits in widths:
        if bits <= key.port_bits:
            yield from rules.get(key._replace(port=prefix_of(key.port, bits).value, port_bits=bits), ())


def _part(found: ResolvedRule) -> _Part:
    return found.destination, demands(found.rule), float("inf") if found.deadline is None else found.deadline


def _answers_of(parts: frozenset[_Part]) -> _Answers:
    peers = sorted(frozenset[int]().union(*(side.workloads for side, _, _ in parts)))
    flags = 0
    for peer in peers:
        flags |= _demanded(parts, peer)
    return _Answers(flags, tuple(peers))


def _demanded(parts: Iterable[_Part], peer: int) -> int:
    """What its rules that last longest all ask for, as for its own entries."""
    held = [(deadline, flags) for side, flags, deadline in parts if peer in side.workloads]
    longest = max(deadline for deadline, _ in held)
    found = MTLS | REQUESTS
    for deadline, flags in held:
        found &= flags if deadline == longest else found
    return found
