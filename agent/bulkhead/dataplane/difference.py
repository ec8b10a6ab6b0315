"""What one commit changes about another: who reaches what from now on, and no longer; not which text differs.

Both commits are compiled for all hosts at once and compared entry by entry, on ports and addresses as intervals, so
that a rule written in another way, or covered by another rule, changes nothing. Externals of two commits cut the
addresses in different places; they are compared on regions, the addresses that have one class before and one after.

Between two managed ends every rule opens both alike, so egress is looked at there. Modes play no part in reach.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import product
from typing import Final, NamedTuple

from bulkhead.abi import Direction
from bulkhead.dataplane.compile import PolicyEntry, PolicyKey, RuleInfo
from bulkhead.dataplane.halves import Half, Halves, halves
from bulkhead.dataplane.ports import PORT_BITS
from bulkhead.dataplane.regions import Region, Regions
from bulkhead.dataplane.resolve import LEGACY, Limits, ResolvedRule
from bulkhead.dataplane.stretches import Stretch, flattened, overlaid
from bulkhead.policy.alterations import Altered, alterations
from bulkhead.policy.model import Network, PolicySet, QualifiedName
from bulkhead.policy.ports import ICMP, ICMPV6

FOREVER: Final = math.inf
REFUSED: Final = 0.0

_FAMILY_OF: Final = {ICMP: 4, ICMPV6: 6}
_EGRESS: Final = int(Direction.EGRESS)

Pair = tuple[int, int, int]
"""Local identity, direction, remote identity."""


class Kind(StrEnum):
    """What becomes of a way to reach something."""

    GAINED = "gained"
    """Refused before, allowed after."""
    LOST = "lost"
    """Allowed before, refused after."""
    RETIMED = "retimed"
    """Allowed before and after, until another time."""


class Span(NamedTuple):
    """Ports that change alike."""

    first: int
    last: int
    """Inclusive; for ICMP `type << 8 | code`."""
    before: float
    """Until when it is allowed: Unix seconds, REFUSED or FOREVER."""
    after: float

    @property
    def kind(self) -> Kind:
        if self.before == REFUSED:
            return Kind.GAINED
        return Kind.LOST if self.after == REFUSED else Kind.RETIMED


@dataclass(frozen=True, slots=True)
class Reach:
    """One change of who reaches what."""

    kind: Kind
    source: str
    """A workload, `host`, or externals by name; `within NAMES` when only some of their addresses are meant."""
    destination: str
    protocol: int
    ports: tuple[Span, ...]
    rules: tuple[RuleInfo, ...]
    """Those that bring it, of the commit after; those that allowed it, of the commit before, when it is lost."""
    addresses: tuple[Network, ...] = ()
    """Of the end that is outside; empty when none is."""


@dataclass(frozen=True, slots=True)
class AddressChange:
    """What becomes of the addresses of one external."""

    external: QualifiedName
    gained: tuple[Network, ...]
    lost: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """Everything a commit changes."""

    before: str
    """Commit ids; empty for a directory."""
    after: str
    reach: tuple[Reach, ...]
    addresses: tuple[AddressChange, ...]
    altered: tuple[Altered, ...]
    """Whatever else reads differently, in the order of kinds and names."""

    def __bool__(self) -> bool:
        return bool(self.reach or self.addresses or self.altered)


def difference(before: PolicySet, after: PolicySet, now: datetime, limits: Limits | None = None) -> Difference:
    """What `after` changes. Arguments and errors are those of `halves`."""
    return difference_of(halves(before, after, now, limits))


def difference_of(both: Halves) -> Difference:
    """The same for commits that are compiled already."""
    before, after = both.old.resolved.policy_set, both.new.resolved.policy_set
    regions = Regions(both)
    reach = tuple(_reach(both, regions))
    altered = alterations(before, after, {(rule.kind, rule.name) for one in reach for rule in one.rules})
    return Difference(before.commit, after.commit, reach, tuple(_address_changes(regions)), altered)


def _address_changes(regions: Regions) -> Iterator[AddressChange]:
    for name in regions.externals():
        before, after = regions.of(0, name, 0), regions.of(1, name, 0)
        if before != after:
            yield AddressChange(QualifiedName(name), regions.networks(after - before), regions.networks(before - after))


# Entries


class _Question(NamedTuple):
    """One way to look at: the remote's number before and after, and its family (0: it is managed)."""

    local: int
    direction: int
    before: int
    after: int
    version: int = 0


class _Answer(NamedTuple):
    question: _Question
    protocol: int
    spans: tuple[Span, ...]
    """All of one kind."""


Reachable = dict[int, list[Stretch[float]]]
"""Ports by protocol, and until when each is allowed."""


def _answers(both: Halves, regions: Regions) -> Iterator[_Answer]:
    questions = list(_questions(both, regions))
    before = _reachable(both.old, {(q.local, q.direction, q.before) for q in questions})
    after = _reachable(both.new, {(q.local, q.direction, q.after) for q in questions})
    for question in questions:
        one = before.get((question.local, question.direction, question.before), {})
        other = after.get((question.local, question.direction, question.after), {})
        for protocol in sorted(one.keys() | other.keys()):
            if question.version and _FAMILY_OF.get(protocol, question.version) != question.version:
                continue
            spans = changed_spans(one.get(protocol, []), other.get(protocol, []))
            for kind in Kind:
                chosen = tuple(span for span in spans if span.kind is kind)
                if chosen:
                    yield _Answer(question, protocol, chosen)


def _questions(both: Halves, regions: Regions) -> Iterator[_Question]:
    """Every way whose answer may have changed; far fewer than there are ways."""
    old, new = both
    touched = _touched(old.entries, new.entries) | _touched(new.entries, old.entries)
    outside = old.compiled.classes.keys() | new.compiled.classes.keys() | {LEGACY}
    near: dict[int, set[tuple[int, int]]] = defaultdict(set)
    addressed = {number for region in regions for number in region[:2]}
    for local, direction, remote in touched:
        if remote in addressed:
            near[remote].add((local, direction))
        elif direction == _EGRESS or remote in outside:
            # A class without addresses is one of DNS names; like an entity it has one number in both commits.
            yield _Question(local, direction, remote, remote)
    moved = [region for region in regions if region.before != region.after]
    before = _locals(old.entries, {region.before for region in moved})
    after = _locals(new.entries, {region.after for region in moved})
    for region in regions:
        stayed = region.before == region.after
        ends = near[region.before] if stayed else before[region.before] | after[region.after]
        for local, direction in sorted(ends):
            yield _Question(local, direction, *region)


def _touched(entries: Mapping[PolicyKey, PolicyEntry], others: Mapping[PolicyKey, PolicyEntry]) -> set[Pair]:
    """Ends of entries that the other commit does not have, or has until another time."""
    return {
        key[:3]
        for key, entry in entries.items()
        if (other := others.get(key)) is None or other.deadline != entry.deadline
    }


def _locals(entries: Iterable[PolicyKey], remotes: set[int]) -> dict[int, set[tuple[int, int]]]:
    """Local identities and directions of the entries about each of some remotes."""
    found: dict[int, set[tuple[int, int]]] = defaultdict(set)
    if remotes:
        for key in entries:
            if key.remote_identity in remotes:
                found[key.remote_identity].add((key.local_identity, key.direction))
    return found


def _reachable(half: Half, wanted: set[Pair]) -> dict[Pair, Reachable]:
    nested: dict[Pair, dict[int, list[Stretch[float]]]] = {}
    for key, entry in half.entries.items():
        if key[:3] in wanted:
            until = FOREVER if entry.deadline is None else entry.deadline
            last = key.port + (1 << (PORT_BITS - key.port_bits)) - 1
            nested.setdefault(key[:3], {}).setdefault(key.protocol, []).append((key.port, last, until))
    return {
        pair: {protocol: flattened(stretches) for protocol, stretches in found.items()}
        for pair, found in nested.items()
    }


def changed_spans(before: Sequence[Stretch[float]], after: Sequence[Stretch[float]]) -> list[Span]:
    """Ports that change, neighbours that change alike in one."""
    found: list[Span] = []
    for span in map(Span._make, overlaid(before, after, REFUSED)):
        if span.before == span.after:
            continue
        if found and found[-1].last + 1 == span.first and found[-1][2:] == span[2:]:
            found[-1] = found[-1]._replace(last=span.last)
        else:
            found.append(span)
    return found


# Reach


class _Change(NamedTuple):
    """Answers that differ in nothing but the region."""

    local: int
    direction: int
    managed: int | None
    """The remote; None: it is outside."""
    protocol: int
    spans: tuple[Span, ...]

    @property
    def kind(self) -> Kind:
        return self.spans[0].kind

    @property
    def side(self) -> int:
        """The commit whose rules and names tell of it: 0 before, 1 after."""
        return 0 if self.kind is Kind.LOST else 1


def _reach(both: Halves, regions: Regions) -> list[Reach]:
    changes: dict[_Change, list[_Question]] = defaultdict(list)
    for question, protocol, spans in _answers(both, regions):
        managed = None if question.version else question.after
        changes[_Change(question.local, question.direction, managed, protocol, spans)].append(question)
    rules = [_rules_of(both[side], _wanted(changes, side)) for side in (0, 1)]
    found = [
        _told(change, questions, both, regions, _credited(change, questions, both, rules))
        for change, questions in changes.items()
    ]
    return sorted(found, key=lambda one: (one.kind, one.source, one.destination, one.protocol, one.ports))


def _told(
    change: _Change,
    questions: Sequence[_Question],
    both: Halves,
    regions: Regions,
    rules: tuple[RuleInfo, ...],
) -> Reach:
    half = both[change.side]
    local = half.name(change.local)
    addresses: tuple[Network, ...] = ()
    if change.managed is not None:
        remote = half.name(change.managed)
    else:
        apart = frozenset(Region(*question[2:]) for question in questions)
        remote = regions.label(apart, change.side, _FAMILY_OF.get(change.protocol, 0))
        addresses = regions.networks(apart)
    source, destination = (local, remote) if change.direction == _EGRESS else (remote, local)
    return Reach(change.kind, source, destination, change.protocol, change.spans, rules, addresses)


def _ends(change: _Change, question: _Question) -> tuple[int, int]:
    """Source and destination, as the commit that tells of the change numbers them."""
    remote = question.after if change.side else question.before
    return (change.local, remote) if change.direction == _EGRESS else (remote, change.local)


def _wanted(changes: Mapping[_Change, Sequence[_Question]], side: int) -> set[tuple[int, int]]:
    return {_ends(change, one) for change, found in changes.items() if change.side == side for one in found}


def _rules_of(half: Half, wanted: set[tuple[int, int]]) -> dict[tuple[int, int], list[ResolvedRule]]:
    """The rules in force between some sources and destinations."""
    found: dict[tuple[int, int], list[ResolvedRule]] = defaultdict(list)
    sources = {source for source, _ in wanted}
    for rule in half.resolved.rules if wanted else ():
        openers = sources & {half.number(member) for member in rule.source.members}
        opened = [half.number(member) for member in rule.destination.members] if openers else []
        for pair in product(openers, opened):
            if pair in wanted:
                found[pair].append(rule)
    return found


def _credited(
    change: _Change,
    questions: Sequence[_Question],
    both: Halves,
    rules: Sequence[Mapping[tuple[int, int], Sequence[ResolvedRule]]],
) -> tuple[RuleInfo, ...]:
    """The rules that bring a change, in the order of the commit."""
    candidates = {
        rule.rule.rule_id: rule for one in questions for rule in rules[change.side].get(_ends(change, one), ())
    }
    chosen = sorted(number for number, rule in candidates.items() if _allows(rule, change))
    return tuple(both[change.side].compiled.rules[number] for number in chosen)


def _allows(rule: ResolvedRule, change: _Change) -> bool:
    """Whether a rule allows any of the ports; where only the time differs, for as long as it says."""
    until = FOREVER if rule.deadline is None else rule.deadline
    return any(
        spec.protocol == change.protocol and spec.first <= span.last and span.first <= spec.last
        for spec in rule.rule.ports
        for span in change.spans
        if change.kind is not Kind.RETIMED or until == span.after
    )
