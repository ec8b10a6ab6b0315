"""Rules whose whole effect other rules have already: exact, by members and ports, for as long as the rule lasts.

What is found can be removed all at once without anything being refused that was allowed: of equal rules all but one are
found, and what has been found no longer counts for the others.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from bulkhead.dataplane.resolve import Resolved, ResolvedRule, Side


class Shadow(NamedTuple):
    """A rule that adds nothing, and the rules that allow all of it: one, or several that only do so together."""

    rule: ResolvedRule
    others: tuple[ResolvedRule, ...]


def shadows(resolved: Resolved) -> list[Shadow]:
    """Every rule in force that adds nothing to the others, those that one covers first.

    A lifeline is kept whatever else allows the same: that is what it is for. A rule without members on one side is no
    shadow, it is nothing. What is judged by request neither covers another rule nor is covered, and a rule of which
    Istio's policies left several parts is kept.
    """
    plain = [rule for rule in resolved.rules if not rule.rule.by_request]
    rules = [rule for rule in plain if rule.source.members and rule.destination.members]
    openings = _Openings(rules)
    parts = Counter(rule.rule.rule_id for rule in resolved.rules)
    candidates = [rule for rule in rules if rule.rule.kind != "lifeline" and parts[rule.rule.rule_id] == 1]
    found = [Shadow(rule, (other,)) for rule in candidates if (other := _covered_by_one(openings, rule)) is not None]
    dropped = {shadow.rule for shadow in found}
    for rule in reversed(candidates):
        if rule not in dropped:
            together = _covered_together(openings, rule, dropped)
            if together:
                dropped.add(rule)
                found.append(Shadow(rule, together))
    return found


def _covered_by_one(openings: _Openings, rule: ResolvedRule) -> ResolvedRule | None:
    """A rule that allows all of another; of two equal ones the first covers the second."""
    span = rule.rule.ports[0]
    for ends in openings.around(min(rule.source.members), min(rule.destination.members)):
        if rule.source.members <= ends.source.members and rule.destination.members <= ends.destination.members:
            for _, other in ends.at(span.protocol, span.first):
                if _outlasts(other, rule) and _has_ports(other, rule) and not _is_later_equal(other, rule):
                    return other
    return None


def _is_later_equal(other: ResolvedRule, rule: ResolvedRule) -> bool:
    """Whether two rules allow the same and the other is not the first of them. A lifeline comes before all."""
    if other is rule:
        return True
    if other.rule.kind == "lifeline" or other.rule.rule_id < rule.rule.rule_id:
        return False
    same_ends = (other.source.members, other.destination.members) == (rule.source.members, rule.destination.members)
    same_demands = other.rule.mtls == rule.rule.mtls
    return same_ends and same_demands and other.deadline == rule.deadline and _has_ports(rule, other)


def _outlasts(wide: ResolvedRule, narrow: ResolvedRule) -> bool:
    """Whether one rule holds for as long as another, and permits plaintext where that does."""
    if wide.rule.mtls and not narrow.rule.mtls:
        return False
    return wide.deadline is None or (narrow.deadline is not None and narrow.deadline <= wide.deadline)


def _has_ports(wide: ResolvedRule, narrow: ResolvedRule) -> bool:
    """Whether every port of one rule is among those of another."""
    if wide.rule.ports == narrow.rule.ports:
        return True
    spans = sorted(wide.rule.ports, key=lambda spec: spec.first)
    for wanted in narrow.rule.ports:
        reached = wanted.first
        for span in spans:
            if span.protocol == wanted.protocol and span.first <= reached <= span.last:
                reached = span.last + 1
        if reached <= wanted.last:
            return False
    return True


def _covered_together(openings: _Openings, rule: ResolvedRule, dropped: set[ResolvedRule]) -> tuple[ResolvedRule, ...]:
    """Rules that together allow all of another, in the order of rules; empty when they do not."""
    used: set[ResolvedRule] = set()
    for source in openings.distinct_sources(rule.source):
        for destination in openings.distinct_destinations(rule.destination):
            for spec in rule.rule.ports:
                around = openings.around(source, destination)
                reached = spec.first
                while reached <= spec.last:
                    best = _furthest(around, rule, dropped, spec.protocol, reached)
                    if best is None:
                        return ()
                    reached = best[0] + 1
                    used.add(best[1])
    return tuple(sorted(used, key=lambda other: other.rule.rule_id))


def _furthest(
    around: Iterable[_Ends], rule: ResolvedRule, dropped: set[ResolvedRule], protocol: int, port: int
) -> tuple[int, ResolvedRule] | None:
    """The rule that opens a port and the most ports after it, with the last of these; of equal ones the first."""
    open_here = (
        (last, -other.rule.rule_id, other)
        for ends in around
        for last, other in ends.at(protocol, port)
        if other is not rule and other not in dropped and _outlasts(other, rule)
    )
    best = max(open_here, default=None, key=lambda found: found[:2])
    return None if best is None else (best[0], best[2])


class _Ends:
    """All rules between the same two sides, by port."""

    def __init__(self, source: Side, destination: Side, rules: Sequence[ResolvedRule]) -> None:
        self.source = source
        self.destination = destination
        by_protocol: dict[int, list[tuple[int, int, ResolvedRule]]] = {}
        for rule in rules:
            for spec in rule.rule.ports:
                by_protocol.setdefault(spec.protocol, []).append((spec.first, spec.last, rule))
        self._spans = {protocol: _Spans(spans) for protocol, spans in by_protocol.items()}

    def at(self, protocol: int, port: int) -> Iterator[tuple[int, ResolvedRule]]:
        """Rules that open a port, each with the last port of the range that does."""
        spans = self._spans.get(protocol)
        return spans.at(port) if spans else iter(())


class _Spans:
    """Ranges of ports, ready to be asked which of them hold a port."""

    def __init__(self, spans: Iterable[tuple[int, int, ResolvedRule]]) -> None:
        self._spans = sorted(spans, key=lambda span: span[:2])
        self._firsts = [first for first, _, _ in self._spans]
        self._furthest = list(accumulate((last for _, last, _ in self._spans), max))

    def at(self, port: int) -> Iterator[tuple[int, ResolvedRule]]:
        at = bisect_right(self._firsts, port) - 1
        while at >= 0 and self._furthest[at] >= port:
            _, last, rule = self._spans[at]
            if last >= port:
                yield last, rule
            at -= 1


class _Openings:
    """Rules by their two sides, and who is on which sides."""

    def __init__(self, rules: Iterable[ResolvedRule]) -> None:
        between: dict[tuple[Side, Side], list[ResolvedRule]] = {}
        for rule in rules:
            between.setdefault((rule.source, rule.destination), []).append(rule)
        self._ends: dict[Side, list[_Ends]] = {}
        for (source, destination), same in between.items():
            self._ends.setdefault(source, []).append(_Ends(source, destination, same))
        self._sources = _sides_by_member(source for source, _ in between)
        self._destinations = _sides_by_member(destination for _, destination in between)
        self._around: dict[tuple[int, int], tuple[_Ends, ...]] = {}
        self._distinct: dict[tuple[bool, Side], tuple[int, ...]] = {}

    def around(self, source: int, destination: int) -> tuple[_Ends, ...]:
        """Where rules may let one member reach another."""
        found = self._around.get((source, destination))
        if found is None:
            found = self._around[source, destination] = tuple(
                ends
                for side in self._sources[source]
                for ends in self._ends[side]
                if destination in ends.destination.members
            )
        return found

    def distinct_sources(self, side: Side) -> tuple[int, ...]:
        """Members of a side, one of all those that every rule treats alike as sources."""
        return self._one_of_each(True, side, self._sources)

    def distinct_destinations(self, side: Side) -> tuple[int, ...]:
        """The same of destinations."""
        return self._one_of_each(False, side, self._destinations)

    def _one_of_each(self, is_source: bool, side: Side, sides: dict[int, tuple[Side, ...]]) -> tuple[int, ...]:
        found = self._distinct.get((is_source, side))
        if found is None:
            alike = {sides[member]: member for member in sorted(side.members)}
            found = self._distinct[is_source, side] = tuple(alike.values())
        return found


def _sides_by_member(sides: Iterable[Side]) -> dict[int, tuple[Side, ...]]:
    found: dict[int, list[Side]] = {}
    for side in dict.fromkeys(sides):
        for member in side.members:
            found.setdefault(member, []).append(side)
    return {member: tuple(held) for member, held in found.items()}
