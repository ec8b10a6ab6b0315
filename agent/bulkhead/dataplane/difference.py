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
from ipaddress import IPv4Address, IPv6Address, summarize_address_range
from itertools import pairwise, product
from typing import Final, NamedTuple, TypeVar

from bulkhead.abi import Direction
from bulkhead.dataplane.compile import (
    Compiled,
    PolicyEntry,
    PolicyKey,
    RuleInfo,
    check_size,
    compile_commit,
    compile_resolved,
)
from bulkhead.dataplane.ports import PORT_BITS
from bulkhead.dataplane.resolve import HOST, WORLD, Limits, Resolved, ResolvedRule, resolve
from bulkhead.errors import PolicyError
from bulkhead.policy.alterations import Altered, alterations
from bulkhead.policy.model import Network, PolicySet, QualifiedName
from bulkhead.policy.ports import ICMP, ICMPV6

FOREVER: Final = math.inf
REFUSED: Final = 0.0

_FAMILY_OF: Final = {ICMP: 4, ICMPV6: 6}
_WIDTH: Final = {4: 32, 6: 128}
_EGRESS: Final = int(Direction.EGRESS)

T = TypeVar("T", int, float)
Stretch = tuple[int, int, T]
"""First, last, and what holds between them."""

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
    """What `after` changes. `now` is timezone-aware and decides which exceptions have expired.

    Raises PolicyError when `after` would be refused. The tests and invariants of `before` need not hold: it is history.
    """
    limits = limits or Limits()
    new = _newer(after, now, limits)
    old = _older(before, new, now, limits)
    regions = _Regions(old, new)
    reach = tuple(_reach(old, new, regions))
    altered = alterations(before, after, {(rule.kind, rule.name) for one in reach for rule in one.rules})
    return Difference(before.commit, after.commit, reach, tuple(_address_changes(regions)), altered)


# Two commits, one set of numbers


@dataclass(frozen=True, slots=True, eq=False)
class _Half:
    """One of the commits."""

    compiled: Compiled
    resolved: Resolved
    entries: Mapping[PolicyKey, PolicyEntry]
    renumbered: Mapping[int, int]
    """Identities that go by another number here than in the commit itself."""
    names: Mapping[int, str]

    def members(self, number: int) -> tuple[QualifiedName, ...]:
        """The externals of an address class."""
        return self.compiled.classes.get(number, ())

    def name(self, number: int) -> str:
        """What a workload or the host is called."""
        return self.names.get(number, "")

    def number(self, identity: int) -> int:
        return self.renumbered.get(identity, identity)


def _newer(policy_set: PolicySet, now: datetime, limits: Limits) -> _Half:
    compiled = compile_commit(policy_set, None, now, limits)
    return _Half(compiled, resolve(policy_set, None, now, limits), compiled.entries, {}, _names(compiled, {}))


def _older(policy_set: PolicySet, new: _Half, now: datetime, limits: Limits) -> _Half:
    resolved = resolve(policy_set, None, now, limits)
    oversize = check_size(resolved, limits)
    if oversize:
        raise PolicyError(oversize)
    compiled = compile_resolved(resolved)
    renumbered = _renumbered(compiled, new.compiled)
    entries = _translated(compiled.entries, renumbered)
    return _Half(compiled, resolved, entries, renumbered, _names(compiled, renumbered))


def _names(compiled: Compiled, numbers: Mapping[int, int]) -> dict[int, str]:
    return {HOST: "host", **{numbers.get(w.identity, w.identity): w.qualified for w in compiled.workloads}}


def _renumbered(old: Compiled, new: Compiled) -> dict[int, int]:
    """Numbers for the workloads of `old`: those of `new` by name, and for what is gone one that `new` does not use.

    Empty unless the trust domain changed, or two names of two commits share a hash.
    """
    numbers = {workload.qualified: workload.identity for workload in new.workloads}
    taken = set(numbers.values())
    found: dict[int, int] = {}
    for at, workload in enumerate(old.workloads, 1):
        number = numbers.get(workload.qualified, -at if workload.identity in taken else workload.identity)
        if number != workload.identity:
            found[workload.identity] = number
    return found


def _translated(
    entries: Mapping[PolicyKey, PolicyEntry], numbers: Mapping[int, int]
) -> Mapping[PolicyKey, PolicyEntry]:
    if not numbers:
        return entries
    return {
        key._replace(
            local_identity=numbers.get(key.local_identity, key.local_identity),
            remote_identity=numbers.get(key.remote_identity, key.remote_identity),
        ): entry
        for key, entry in entries.items()
    }


# Regions


class _Region(NamedTuple):
    """Addresses of one family that are of one class before and of one after."""

    before: int
    after: int
    version: int


class _Regions:
    """All addresses, divided by what both commits call them."""

    def __init__(self, old: _Half, new: _Half) -> None:
        self._halves = (old, new)
        self._ranges: dict[_Region, list[tuple[int, int]]] = defaultdict(list)
        self._of: dict[tuple[int, str, int], frozenset[_Region]] = {}
        self._labels: dict[tuple[frozenset[_Region], int, int], str] = {}
        self._networks: dict[frozenset[_Region], tuple[Network, ...]] = {}
        for version in (4, 6):
            before, after = (_cut(half.compiled, version) for half in (old, new))
            for first, last, one, other in _overlaid(before, after, WORLD):
                self._ranges[_Region(one, other, version)].append((first, last))

    def __iter__(self) -> Iterator[_Region]:
        return iter(self._ranges)

    def networks(self, regions: frozenset[_Region]) -> tuple[Network, ...]:
        """The addresses of some regions as the fewest prefixes, IPv4 first."""
        if regions not in self._networks:
            self._networks[regions] = tuple(self._listed(regions))
        return self._networks[regions]

    def _listed(self, regions: frozenset[_Region]) -> Iterator[Network]:
        for version in (4, 6):
            ranges = [bounds for region in regions if region.version == version for bounds in self._ranges[region]]
            for first, last in _joined(sorted(ranges)):
                yield from _prefixes(version, first, last)

    def externals(self) -> list[QualifiedName]:
        """Externals that have addresses in either commit."""
        return sorted({name for half in self._halves for names in half.compiled.classes.values() for name in names})

    def of(self, side: int, external: str, version: int) -> frozenset[_Region]:
        """The regions within an external before (side 0) or after (1), of one family or of both (0)."""
        key = (side, external, version)
        if key not in self._of:
            self._of[key] = frozenset(
                region
                for region in self
                if version in (0, region.version) and external in self._halves[side].members(region[side])
            )
        return self._of[key]

    def label(self, regions: frozenset[_Region], side: int, version: int) -> str:
        """Some regions in the words of a policy, `version` as for `of`."""
        key = (regions, side, version)
        if key not in self._labels:
            self._labels[key] = self._label(*key)
        return self._labels[key]

    def _label(self, regions: frozenset[_Region], side: int, version: int) -> str:
        if all(region in regions for region in self if version in (0, region.version)):
            return "world"
        around = {name for region in regions for name in self._halves[side].members(region[side])}
        inside = {name: own for name in around if (own := self.of(side, name, version)) <= regions}
        if frozenset().union(*inside.values()) == regions:
            widest = [name for name, own in inside.items() if not any(own < other for other in inside.values())]
            return ", ".join(sorted(widest))
        return f"within {', '.join(sorted(around)) or 'world'}"


def _cut(compiled: Compiled, version: int) -> list[Stretch[int]]:
    """The class of every address of a family, in stretches."""
    width = _WIDTH[version]
    prefixes = compiled.classes4 if version == 4 else compiled.classes6
    nested = [(int(network[0]), int(network[-1]), number) for network, number in prefixes.items()]
    # First, so that an external of all addresses, which is written after it, is further in.
    return _flattened([(0, (1 << width) - 1, WORLD), *nested])


def _prefixes(version: int, first: int, last: int) -> Iterator[Network]:
    if version == 4:
        yield from summarize_address_range(IPv4Address(first), IPv4Address(last))
    else:
        yield from summarize_address_range(IPv6Address(first), IPv6Address(last))


def _address_changes(regions: _Regions) -> Iterator[AddressChange]:
    for name in regions.externals():
        before, after = regions.of(0, name, 0), regions.of(1, name, 0)
        if before != after:
            yield AddressChange(QualifiedName(name), regions.networks(after - before), regions.networks(before - after))


# Intervals


def _flattened(nested: Iterable[Stretch[T]]) -> list[Stretch[T]]:
    """What holds where, of stretches that are nested or apart: the innermost, of equal ones the last."""
    flat: list[Stretch[T]] = []
    around: list[tuple[int, T]] = []
    at = 0
    for first, last, value in sorted(nested, key=lambda stretch: (stretch[0], -stretch[1])):
        while around and around[-1][0] < first:
            at = _closed(flat, around, at)
        if around and at < first:
            flat.append((at, first - 1, around[-1][1]))
        at = first
        around.append((last, value))
    while around:
        at = _closed(flat, around, at)
    return flat


def _closed(flat: list[Stretch[T]], around: list[tuple[int, T]], at: int) -> int:
    """Ends the innermost open stretch; returns where the next begins."""
    last, value = around.pop()
    if at <= last:
        flat.append((at, last, value))
    return max(at, last + 1)


def _overlaid(one: Sequence[Stretch[T]], other: Sequence[Stretch[T]], nothing: T) -> Iterator[tuple[int, int, T, T]]:
    """Where and how the two hold together, in order; `nothing` where only one of them does."""
    cuts = sorted({cut for first, last, _ in (*one, *other) for cut in (first, last + 1)})
    here = there = 0
    for first, following in pairwise(cuts):
        while here < len(one) and one[here][1] < first:
            here += 1
        while there < len(other) and other[there][1] < first:
            there += 1
        left = one[here][2] if here < len(one) and one[here][0] <= first else nothing
        right = other[there][2] if there < len(other) and other[there][0] <= first else nothing
        yield first, following - 1, left, right


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ascending ranges, with those that touch made one."""
    found: list[tuple[int, int]] = []
    for first, last in ranges:
        if found and found[-1][1] + 1 == first:
            found[-1] = (found[-1][0], last)
        else:
            found.append((first, last))
    return found


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


def _answers(old: _Half, new: _Half, regions: _Regions) -> Iterator[_Answer]:
    questions = list(_questions(old, new, regions))
    before = _reachable(old, {(q.local, q.direction, q.before) for q in questions})
    after = _reachable(new, {(q.local, q.direction, q.after) for q in questions})
    for question in questions:
        one = before.get((question.local, question.direction, question.before), {})
        other = after.get((question.local, question.direction, question.after), {})
        for protocol in sorted(one.keys() | other.keys()):
            if question.version and _FAMILY_OF.get(protocol, question.version) != question.version:
                continue
            spans = _spans(one.get(protocol, []), other.get(protocol, []))
            for kind in Kind:
                chosen = tuple(span for span in spans if span.kind is kind)
                if chosen:
                    yield _Answer(question, protocol, chosen)


def _questions(old: _Half, new: _Half, regions: _Regions) -> Iterator[_Question]:
    """Every way whose answer may have changed; far fewer than there are ways."""
    touched = _touched(old.entries, new.entries) | _touched(new.entries, old.entries)
    outside = old.compiled.classes.keys() | new.compiled.classes.keys()
    near: dict[int, set[tuple[int, int]]] = defaultdict(set)
    for local, direction, remote in touched:
        if remote in outside:
            near[remote].add((local, direction))
        elif direction == _EGRESS:
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


def _reachable(half: _Half, wanted: set[Pair]) -> dict[Pair, Reachable]:
    nested: dict[Pair, dict[int, list[Stretch[float]]]] = {}
    for key, entry in half.entries.items():
        if key[:3] in wanted:
            until = FOREVER if entry.deadline is None else entry.deadline
            last = key.port + (1 << (PORT_BITS - key.port_bits)) - 1
            nested.setdefault(key[:3], {}).setdefault(key.protocol, []).append((key.port, last, until))
    return {
        pair: {protocol: _flattened(stretches) for protocol, stretches in found.items()}
        for pair, found in nested.items()
    }


def _spans(before: Sequence[Stretch[float]], after: Sequence[Stretch[float]]) -> list[Span]:
    """Ports that change, neighbours that change alike in one."""
    found: list[Span] = []
    for span in map(Span._make, _overlaid(before, after, REFUSED)):
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


def _reach(old: _Half, new: _Half, regions: _Regions) -> list[Reach]:
    changes: dict[_Change, list[_Question]] = defaultdict(list)
    for question, protocol, spans in _answers(old, new, regions):
        managed = None if question.version else question.after
        changes[_Change(question.local, question.direction, managed, protocol, spans)].append(question)
    halves = (old, new)
    rules = [_rules_of(halves[side], _wanted(changes, side)) for side in (0, 1)]
    found = [
        _told(change, questions, halves, regions, _credited(change, questions, halves, rules))
        for change, questions in changes.items()
    ]
    return sorted(found, key=lambda one: (one.kind, one.source, one.destination, one.protocol, one.ports))


def _told(
    change: _Change,
    questions: Sequence[_Question],
    halves: tuple[_Half, _Half],
    regions: _Regions,
    rules: tuple[RuleInfo, ...],
) -> Reach:
    half = halves[change.side]
    local = half.name(change.local)
    addresses: tuple[Network, ...] = ()
    if change.managed is not None:
        remote = half.name(change.managed)
    else:
        apart = frozenset(_Region(*question[2:]) for question in questions)
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


def _rules_of(half: _Half, wanted: set[tuple[int, int]]) -> dict[tuple[int, int], list[ResolvedRule]]:
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
    halves: tuple[_Half, _Half],
    rules: Sequence[Mapping[tuple[int, int], Sequence[ResolvedRule]]],
) -> tuple[RuleInfo, ...]:
    """The rules that bring a change, in the order of the commit."""
    candidates = {
        rule.rule.rule_id: rule for one in questions for rule in rules[change.side].get(_ends(change, one), ())
    }
    chosen = sorted(number for number, rule in candidates.items() if _allows(rule, change))
    return tuple(halves[change.side].compiled.rules[number] for number in chosen)


def _allows(rule: ResolvedRule, change: _Change) -> bool:
    """Whether a rule allows any of the ports; where only the time differs, for as long as it says."""
    until = FOREVER if rule.deadline is None else rule.deadline
    return any(
        spec.protocol == change.protocol and spec.first <= span.last and span.first <= spec.last
        for spec in rule.rule.ports
        for span in change.spans
        if change.kind is not Kind.RETIMED or until == span.after
    )
