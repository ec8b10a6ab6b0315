"""A policy for what was recorded and is not allowed yet, to be reviewed: never wider than what was seen.

A rule names one source, one destination and one port. Addresses outside become host prefixes, gathered into one
external where the very same set of them was seen, so that a rule's product of addresses and port holds nothing new. An
external of the policy is named instead only if it holds exactly those addresses.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from bulkhead.abi import Direction, name_of
from bulkhead.dataplane.addresses import Address
from bulkhead.dataplane.compile import examine
from bulkhead.errors import BulkheadError, PolicyError
from bulkhead.observe.evidence import Coverage
from bulkhead.observe.flows import FlowRecord
from bulkhead.observe.names import short
from bulkhead.observe.scores import Period, Score, score
from bulkhead.observe.suggest_text import Draft, DraftExternal, DraftRule, DraftWorkload, policy_text
from bulkhead.observe.timers import Timer
from bulkhead.observe.traffic import Edge, End, Program, Seen, port_text, uncovered
from bulkhead.policy.model import Entity, PolicySet
from bulkhead.policy.parse import parse
from bulkhead.policy.source import REPOSITORY_FILE, SourceFile, Sources, blob_id

NAME_MAX: Final = 63
_ENTITIES: Final = {str(entity) for entity in Entity}
_NOT_IN_NAMES: Final = re.compile(r"[^a-z0-9]+")
_FRESH_REPOSITORY: Final = b"apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: example.org\n"

Timers = Callable[[str], Timer | None]


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for."""

    host: str
    workloads: tuple[str, ...]
    """Only edges with an end of this name; none: all."""
    coverage: Coverage
    timers: Timers
    now: datetime


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A policy to review. `text` is empty when there is nothing to suggest."""

    text: str
    rules: tuple[DraftRule, ...]
    edges: int
    """Recorded edges that the rules are for."""
    left_out: tuple[str, ...]
    """What was recorded and is not allowed by it, each with why."""


def suggest(sources: Sources, records: Iterable[FlowRecord], wish: Wish) -> Suggestion:
    """The suggestion for a repository's files, from the records of one host.

    Raises PolicyError when the files are refused as they are.
    """
    sources = _with_repository(sources)
    policy_set = parse(sources)
    _, refusals = examine(policy_set, None, wish.now)
    if refusals:
        raise PolicyError(refusals)
    traffic = uncovered(records, policy_set, wish.host, wish.now)
    names = _Names(policy_set, wish.host, [end for edge in traffic.edges for end in edge.ends])
    edges = {edge: seen for edge, seen in traffic.edges.items() if names.are_wanted(edge, wish.workloads)}
    left_out = list(traffic.left_out)
    while edges:
        draft, behind = _draft(edges, names, policy_set, wish, left_out)
        text = policy_text(draft)
        broken = _broken(sources, names.policy, text, wish.now)
        if not broken:
            return Suggestion(text, draft.rules, len(edges), tuple(left_out))
        for rule, why in broken.items():
            for edge in behind[rule]:
                del edges[edge]
                left_out.append(f"{edge}: {why}")
    return Suggestion("", (), 0, tuple(left_out))


def _with_repository(sources: Sources) -> Sources:
    """A directory without a repository file yet is judged as if it had the smallest one."""
    if any(file.path == REPOSITORY_FILE for file in sources.files):
        return sources
    fresh = SourceFile(REPOSITORY_FILE, blob_id(_FRESH_REPOSITORY), _FRESH_REPOSITORY)
    return replace(sources, files=(*sources.files, fresh))


def _broken(sources: Sources, policy: str, text: str, now: datetime) -> dict[str, str]:
    """The rules of the text for which the repository would be refused, with why."""
    path, content = f"{policy}.yaml", text.encode()
    files = sorted((*sources.files, SourceFile(path, blob_id(content), content)), key=lambda file: file.path)
    policy_set = parse(Sources("", tuple(files)))
    _, findings = examine(policy_set, None, now)
    at = {rule.loc.line: rule.name for rule in policy_set.rules if rule.loc.file == path}
    broken: dict[str, str] = {}
    for one in findings:
        places = [loc for loc in (one.loc, *(loc for loc, _ in one.related)) if loc.file == path and loc.line in at]
        if not places:
            raise BulkheadError(f"the suggestion would be refused, which is a fault of bulkhead's: {one.message}")
        broken[at[places[0].line]] = one.message
    return broken


class _Names:
    """What the new policy, its workloads and externals are called."""

    def __init__(self, policy_set: PolicySet, host: str, ends: Iterable[End]) -> None:
        taken = {one.name for one in policy_set.policies}
        self.policy = _free(f"suggested-{host}", taken)
        self._taken: set[str] = set(_ENTITIES)
        programs = sorted({end for end in ends if isinstance(end, Program)})
        self.workloads = {one: self.take(_called(one)) for one in programs}

    def take(self, wanted: str) -> str:
        """A name of a workload or an external like the one wanted."""
        name = _free(wanted, self._taken)
        self._taken.add(name)
        return name

    def fork(self) -> _Names:
        """The same names, to give more of them."""
        made = object.__new__(_Names)
        made.policy, made.workloads, made._taken = self.policy, self.workloads, set(self._taken)
        return made

    def of(self, end: End) -> str:
        """How a rule names an end that is no address."""
        return self.workloads[end] if isinstance(end, Program) else str(end)

    def are_wanted(self, edge: Edge, wanted: tuple[str, ...]) -> bool:
        """Whether an end is one of those asked about: by its name, its unit, or the name that is suggested for it."""
        if not wanted:
            return True
        called = {text for end in edge.ends for text in self._callings(end)}
        return bool(called & set(wanted))

    def _callings(self, end: End) -> tuple[str, ...]:
        if isinstance(end, Program):
            return end.unit, end.exe, self.workloads[end]
        return (end, short(end)) if isinstance(end, str) else (str(end),)


def _called(program: Program) -> str:
    return program.unit.rpartition(".")[0] if program.unit else program.exe.rpartition("/")[2]


def _free(wanted: str, taken: AbstractSet[str]) -> str:
    stem = _NOT_IN_NAMES.sub("-", wanted.lower()).strip("-")[: NAME_MAX - 4].rstrip("-") or "program"
    return next(name for n in range(1, 10_000) if (name := stem if n == 1 else f"{stem}-{n}") not in taken)


_Behind = dict[str, list[Edge]]


def _draft(
    edges: Mapping[Edge, Seen], names: _Names, policy_set: PolicySet, wish: Wish, left_out: Iterable[str]
) -> tuple[Draft, _Behind]:
    """The policy for the edges, and which of them each rule is for."""
    builder = _Builder(names.fork(), policy_set, wish)
    for group in _grouped(edges):
        builder.add({edge: edges[edge] for edge in group})
    used = {end for edge in edges for end in edge.ends if isinstance(end, Program)}
    workloads = tuple(
        DraftWorkload(names.workloads[one], wish.host, one.unit, one.cgroup, one.exe) for one in sorted(used)
    )
    draft = Draft(
        names.policy, wish.host, wish.now, wish.coverage, len(edges), workloads, tuple(builder.externals.values()),
        tuple(builder.rules), tuple(left_out), _any_is_named(policy_set) and bool(workloads),
    )  # fmt: skip
    return draft, builder.behind


def _any_is_named(policy_set: PolicySet) -> bool:
    return any(Entity.ANY in peer.entities for rule in policy_set.rules for peer in (rule.source, rule.destination))


def _grouped(edges: Iterable[Edge]) -> list[list[Edge]]:
    """Edges that one rule can say: alike but for the address outside."""
    groups: dict[tuple[str, ...], list[Edge]] = defaultdict(list)
    for edge in sorted(edges, key=str):
        local, remote, _ = _sides(edge)
        outside = "" if isinstance(remote, str | Program) else "outside"
        way = "from" if edge.destination is local else "to"
        key = (str(local), way, outside or str(remote), port_text(edge.protocol, edge.port))
        groups[key].append(edge)
    return [groups[key] for key in sorted(groups)]


def _sides(edge: Edge) -> tuple[End, End, Direction]:
    """The end on this machine, the other one, and the direction seen from the first."""
    if isinstance(edge.source, str | Program):
        return edge.source, edge.destination, Direction.EGRESS
    return edge.destination, edge.source, Direction.INGRESS


class _Builder:
    """Collects rules and the externals that they need."""

    def __init__(self, names: _Names, policy_set: PolicySet, wish: Wish) -> None:
        self._names = names
        self._wish = wish
        self._rule_names: set[str] = set()
        self._known = {
            frozenset(network.network_address for network in one.cidr): str(one.qualified)
            for one in policy_set.externals
            if one.cidr and not one.excluded and all(net.prefixlen == net.max_prefixlen for net in one.cidr)
        }
        self._wider = [one for one in policy_set.externals if one.cidr]
        complete = not wish.coverage.gaps
        self._period = Period(wish.coverage.covered_s, complete)
        self.externals: dict[frozenset[Address], DraftExternal] = {}
        self.rules: list[DraftRule] = []
        self.behind: _Behind = {}

    def add(self, edges: Mapping[Edge, Seen]) -> None:
        """One rule for edges that differ in the address outside at most."""
        edge = next(iter(edges))
        local, remote, direction = _sides(edge)
        here = self._names.of(local)
        port = port_text(edge.protocol, edge.port)
        way = "to" if direction is Direction.EGRESS else "from"
        if isinstance(remote, str | Program):
            there = self._names.of(remote)
            wanted = f"{short(here)}-{short(there)}-{port}"
        else:
            wanted = f"{short(here)}-{way}-{port}"
            there = self._external(frozenset(each for one in edges for each in _addresses(one)), wanted)
        source, destination = (here, there) if direction is Direction.EGRESS else (there, here)
        name = _free(wanted, self._rule_names)
        self._rule_names.add(name)
        seen = _together(edges.values())
        self.rules.append(DraftRule(name, source, destination, port, seen, self._score(edge, seen)))
        self.behind[name] = list(edges)

    def _external(self, addresses: frozenset[Address], wanted: str) -> str:
        if addresses in self._known:
            return self._known[addresses]
        if addresses not in self.externals:
            listed = tuple(sorted(addresses, key=lambda one: (one.version, one)))
            name = self._names.take(wanted)
            around = tuple(
                str(external.qualified)
                for external in self._wider
                if all(any(one in network for network in external.cidr) for one in listed)
                and not any(one in network for one in listed for network in external.excluded)
            )
            self.externals[addresses] = DraftExternal(name, listed, around)
        return self.externals[addresses].name

    def _score(self, edge: Edge, seen: Seen) -> Score:
        units = seen.units | {end.unit for end in edge.ends if isinstance(end, Program) and end.unit}
        timers = [timer for unit in sorted(units) if (timer := self._wish.timers(unit)) is not None]
        return score(edge, seen, self._period, timers)


def _addresses(edge: Edge) -> list[Address]:
    return [end for end in edge.ends if not isinstance(end, str | Program)]


def _together(found: Iterable[Seen]) -> Seen:
    """Several edges of one rule as one: what each was seen adds up."""
    total = Seen()
    for seen in found:
        summed = Seen()
        summed.join(seen)
        summed.counts.clear()
        summed.counts[name_of(Direction, Direction.EGRESS)] = seen.count
        total.join(summed)
    return total


def no_timers(_: str) -> Timer | None:
    """For records of another machine, whose unit files are not here."""
    return None
