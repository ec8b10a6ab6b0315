"""What one commit changes about another in a cluster: which pods reach what from now on, and no longer.

Each commit divides the pods into parties of its own, so that what is compared is a pair of groups: pods of one
controller that are one party before and one party after, in each address family. Addresses outside are compared on
regions that are of one class before and of one after. Ports are points of one line, compared as intervals.

What always is the same is left out: a pod and itself, a pod and its own node. Modes play no part.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, product
from typing import Final, NamedTuple

from bulkhead.abi import Direction
from bulkhead.dataplane import points
from bulkhead.dataplane.addresses import WORLD_MEMBERS
from bulkhead.dataplane.cluster import Allowance, Grant, ResolvedCluster
from bulkhead.dataplane.compile import RuleInfo
from bulkhead.dataplane.difference import FOREVER, REFUSED, Kind, Span, changed_spans
from bulkhead.dataplane.parties import FAMILIES, Parties, Party, Standing, peer_key
from bulkhead.dataplane.points import Line
from bulkhead.dataplane.stretches import Stretch, flattened, joined, overlaid, prefixes
from bulkhead.identity.registry import Members
from bulkhead.policy.cluster import ClusterPolicy, Tier
from bulkhead.policy.model import Network, QualifiedName, RuleId, Workload
from bulkhead.policy.ports import ICMP, ICMPV6, PORT_MAX

SELECTS: Final = "selects"
"""The kind of what is shown as a rule and is none: a policy that selects a pod, so that nothing else is let through."""
REFUSING: Final = frozenset({"deny", SELECTS})
"""Kinds of rules that refuse."""

_WORLD: Final = "world"
_WIDTHS: Final = {4: 32, 6: 128}
_FOREIGN: Final = {4: ICMPV6, 6: ICMP}
"""The protocol that an address family does not carry."""

_SUFFIX: Final = "[bcdfghjklmnpqrstvwxz2456789]"
"""What Kubernetes makes generated parts of names of."""
_POD_NAME: Final = re.compile(rf"(.+?)(?:-[0-9]+|(?:-(?:{_SUFFIX}{{6,10}}|[0-9]{{8,}}))?-{_SUFFIX}{{5}})")
"""Of a StatefulSet; of a Deployment or CronJob; of a DaemonSet or Job."""


@dataclass(frozen=True, slots=True)
class End:
    """Who stands at one end of a change."""

    standing: Standing
    name: str
    """`shop/web (3 pods)`, `shop/* (9 pods)`, `node:NAME`, `5 nodes`; `world`, or `addresses` for some of them."""
    members: tuple[str, ...]
    """Pods as `NAMESPACE/POD`, nodes by name; empty for addresses."""
    networks: tuple[Network, ...] = ()
    """All addresses, where that is what they are."""


@dataclass(frozen=True, slots=True)
class ClusterReach:
    """One change of who reaches what: the same for every source with every destination."""

    kind: Kind
    sources: tuple[End, ...]
    destinations: tuple[End, ...]
    family: int
    """0: every address family in which the ends can meet."""
    ports: tuple[Span, ...]
    """Intervals of points, as `points` has them; all of one kind."""
    rules: tuple[RuleInfo, ...]
    """GAINED, RETIMED: those of the commit after that allow it. LOST: those of the commit before that allowed it.

    Then, of the other commit, those that refuse it: for what is lost, and for what is gained by nobody's rule.
    """


def cluster_difference(before: ResolvedCluster, after: ResolvedCluster) -> tuple[ClusterReach, ...]:
    """What `after` changes, new reach first. Both are of the same cluster at the same time."""
    judge = _Judge((before, after))
    changes: dict[_Change, dict[_Group, list[_Group]]] = defaultdict(lambda: defaultdict(list))
    groups = _Groups((before.parties, after.parties), before)
    for source, destination in groups.pairs():
        for change in _in_families(judge, source, destination):
            changes[change][source].append(destination)
    found = [
        ClusterReach(change.kind, groups.ends(sources), groups.ends(destinations), change.family, change.ports, rules)
        for change, pairs in changes.items()
        for rules in (judge.rules(change),)
        for sources, destinations in _rectangles(pairs)
    ]
    return tuple(sorted(found, key=_order))


def _order(one: ClusterReach) -> tuple[object, ...]:
    names = ([end.name for end in ends] for ends in (one.sources, one.destinations))
    return list(Kind).index(one.kind), *names, one.family, one.ports


# Who is told apart


_Sides = tuple[Party, Party]
"""A party of the commit before, and one of the commit after."""


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Ends that are alike in both commits."""

    standing: Standing
    families: Mapping[int, _Sides]
    label: str
    members: tuple[str, ...] = ()
    nodes: frozenset[str] = frozenset()
    """Those that pods run on; of nodes, their own names."""
    ranges: tuple[tuple[int, int], ...] = ()
    """Addresses of its one family."""

    @property
    def is_lonely(self) -> bool:
        """Whether it has nobody to talk to within itself."""
        return self.standing is Standing.POD and len(self.members) == 1


class _Groups:
    """Everybody in the cluster and all addresses, divided by what both commits tell apart."""

    def __init__(self, parties: tuple[Parties, Parties], resolved: ResolvedCluster) -> None:
        self._parties = parties
        self._cluster = resolved.cluster
        self._sizes = Counter(pod.namespace for pod in self._cluster.pods if not pod.host_network)
        self._pods = [*self._pod_groups()]
        self._others = [*self._node_groups(), *chain.from_iterable(map(self._regions, FAMILIES))]

    def pairs(self) -> Iterator[tuple[_Group, _Group]]:
        """Sources and destinations between which policies decide: one at least is of pods."""
        for source, destination in chain(
            product(self._pods, self._pods), product(self._pods, self._others), product(self._others, self._pods)
        ):
            alone = source is destination and source.is_lonely
            if not alone and not _always_meet(source, destination):
                yield source, destination

    def ends(self, groups: Sequence[_Group]) -> tuple[End, ...]:
        """Groups as they are shown, all addresses as one."""
        listed = {standing: [one for one in groups if one.standing is standing] for standing in Standing}
        found = sorted(self._pod_ends(listed[Standing.POD]), key=lambda end: end.name)
        nodes = (End(Standing.NODE, one.label, one.members) for one in listed[Standing.NODE])
        found += sorted(nodes, key=lambda end: end.members)
        outside = listed[Standing.ADDRESS]
        return tuple([*found, _addresses(outside)] if outside else found)

    def _pod_ends(self, groups: Iterable[_Group]) -> Iterator[End]:
        """Groups of pods; those that are a whole namespace as one."""
        within: dict[str, list[_Group]] = defaultdict(list)
        for one in groups:
            within[one.label.partition("/")[0]].append(one)
        for namespace, found in within.items():
            members = tuple(sorted(member for one in found for member in one.members))
            if len(found) > 1 and len(members) == self._sizes[namespace]:
                yield End(Standing.POD, f"{namespace}/* ({len(members)} pods)", members)
            else:
                yield from (End(Standing.POD, one.label, one.members) for one in found)

    def _sides(self, of: str, name: str, families: Iterable[int]) -> dict[int, _Sides]:
        before, after = (getattr(parties, of) for parties in self._parties)
        return {family: (before[name, family], after[name, family]) for family in sorted(families)}

    def _pod_groups(self) -> Iterator[_Group]:
        pods = [pod for pod in self._cluster.pods if not pod.host_network]
        stems = {pod.qualified: f"{pod.namespace}/{_stem(pod.name)}" for pod in pods}
        totals = Counter(stems.values())
        alike = defaultdict(list)
        for pod in pods:
            sides = self._sides("pods", pod.qualified, pod.families)
            alike[stems[pod.qualified], tuple(sides.items())].append(pod)
        for (stem, alike_in), found in alike.items():
            members = tuple(sorted(pod.qualified for pod in found))
            label = _label(members, stem, totals[stem])
            yield _Group(Standing.POD, dict(alike_in), label, members, frozenset(pod.node for pod in found))

    def _node_groups(self) -> Iterator[_Group]:
        alike = defaultdict(list)
        for node in self._cluster.nodes:
            alike[tuple(self._sides("nodes", node.name, node.families).items())].append(node.name)
        for sides, names in alike.items():
            members = tuple(sorted(names))
            label = f"node:{members[0] or '?'}" if len(members) == 1 else f"{len(members)} nodes"
            yield _Group(Standing.NODE, dict(sides), label, members, frozenset(members))

    def _regions(self, family: int) -> Iterator[_Group]:
        """All addresses of a family, by their class before and after."""
        known: list[Members] = [WORLD_MEMBERS]
        numbers = {WORLD_MEMBERS: 0}
        for parties in self._parties:
            for members in parties.networks[family].prefixes.values():
                if numbers.setdefault(members, len(known)) == len(known):
                    known.append(members)
        found: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        before, after = (_cut(parties, family, numbers) for parties in self._parties)
        for first, last, one, other in overlaid(before, after, 0):
            found[one, other].append((first, last))
        old, new = self._parties
        for (one, other), ranges in found.items():
            sides = old.classes[known[one]], new.classes[known[other]]
            yield _Group(Standing.ADDRESS, {family: sides}, _WORLD, ranges=tuple(ranges))


def _cut(parties: Parties, family: int, numbers: Mapping[Members, int]) -> list[Stretch[int]]:
    """The class of every address of a family, in stretches."""
    nested = [
        (int(network[0]), int(network[-1]), numbers[members])
        for network, members in parties.networks[family].prefixes.items()
    ]
    # First, so that a network of all addresses, which comes after it, is further in.
    return flattened([(0, (1 << _WIDTHS[family]) - 1, 0), *nested])


def _stem(name: str) -> str:
    """What a controller that made a pod is most likely called; the pod's own name for one without."""
    found = _POD_NAME.fullmatch(name)
    return found[1] if found else name


def _label(members: Sequence[str], stem: str, total: int) -> str:
    if members == (stem,):
        return stem
    if len(members) == 1 < total:
        return members[0]
    part = "" if len(members) == total else f"{len(members)} of "
    return f"{stem} ({part}{total} pod{'' if total == 1 else 's'})"


def _addresses(groups: Sequence[_Group]) -> End:
    networks: list[Network] = []
    for family in FAMILIES:
        ranges = sorted(bounds for group in groups if family in group.families for bounds in group.ranges)
        networks += (network for first, last in joined(ranges) for network in prefixes(family, first, last))
    is_all = len(networks) == len(FAMILIES) and not any(network.prefixlen for network in networks)
    return End(Standing.ADDRESS, _WORLD if is_all else "addresses", (), tuple(networks))


def _always_meet(source: _Group, destination: _Group) -> bool:
    """Pods of one node, and that node."""
    standings = {source.standing, destination.standing}
    is_one = source.nodes == destination.nodes and len(source.nodes) == 1 and "" not in source.nodes
    return standings == {Standing.POD, Standing.NODE} and is_one


# What becomes of a pair


class _Credit(NamedTuple):
    """A rule of one of the commits, or something that selects pods."""

    refuses: bool
    side: int
    number: int
    """Of a rule; negative for what selects."""


class _Change(NamedTuple):
    """What becomes of some ports."""

    kind: Kind
    family: int
    ports: tuple[Span, ...]
    credits: tuple[_Credit, ...]


class _Shut(NamedTuple):
    """An end of a commit that lets nothing through but what a rule of NetworkPolicy's tier allows."""

    side: int
    direction: Direction


class _Outcome(NamedTuple):
    """What four answers come to, whoever gave them."""

    kind: Kind
    ports: tuple[Span, ...]
    credits: frozenset[_Credit]
    shut: frozenset[_Shut]


_ENDS: Final = (Direction.EGRESS, Direction.INGRESS)
"""The directions in which the source and the destination judge."""

_Answers = tuple[tuple[Allowance | None, Allowance | None], tuple[Allowance | None, Allowance | None]]
"""For each commit, what the source and the destination allow; None: that end is not judged."""


def _in_families(judge: _Judge, source: _Group, destination: _Group) -> Iterator[_Change]:
    """The changes between two groups, said once where they are the same in every family."""
    common = [family for family in source.families if family in destination.families]
    found = {family: judge.changes(source.families[family], destination.families[family]) for family in common}
    if len(set(found.values())) == 1:
        yield from (change for change in found[common[0]] if any(_is_carried(change.ports, one) for one in common))
        return
    for family, changes in found.items():
        yield from (change._replace(family=family) for change in changes if _is_carried(change.ports, family))


def _is_carried(ports: Iterable[Span], family: int) -> bool:
    """Whether a family has any of the ports at all."""
    foreign = points.line([(_FOREIGN[family], 0, PORT_MAX)])
    return bool(points.without(_line(ports), foreign))


class _Judge:
    """Holds two commits against each other, pair of parties by pair of parties."""

    def __init__(self, sides: tuple[ResolvedCluster, ResolvedCluster]) -> None:
        self._sides = sides
        self._selecting = tuple(map(_Selecting, sides))
        self._outcomes: dict[_Answers, tuple[_Outcome, ...]] = {}
        self._defaults = frozenset(_Credit(False, 1, number) for number in sides[1].defaults.values())

    def changes(self, source: _Sides, destination: _Sides) -> tuple[_Change, ...]:
        """What changes between two parties in one family."""
        answers = self._answers(0, source, destination), self._answers(1, source, destination)
        outcomes = self._outcomes.get(answers)
        if outcomes is None:
            outcomes = self._outcomes[answers] = tuple(_outcomes(answers, self._defaults))
        return tuple(_Change(one.kind, 0, one.ports, self._credits(one, source, destination)) for one in outcomes)

    def rules(self, change: _Change) -> tuple[RuleInfo, ...]:
        """Those that are credited, what allows first."""
        return tuple(
            self._sides[one.side].rules[RuleId(one.number)]
            if one.number >= 0
            else self._selecting[one.side].infos[-one.number - 1]
            for one in change.credits
        )

    def _answers(self, side: int, source: _Sides, destination: _Sides) -> tuple[Allowance | None, Allowance | None]:
        resolved, one, other = self._sides[side], source[side], destination[side]
        return (
            resolved.allowance(one, Direction.EGRESS, other) if one.standing is Standing.POD else None,
            resolved.allowance(other, Direction.INGRESS, one) if other.standing is Standing.POD else None,
        )

    def _credits(self, outcome: _Outcome, source: _Sides, destination: _Sides) -> tuple[_Credit, ...]:
        selecting = {
            _Credit(True, side, -1 - at)
            for side, direction in outcome.shut
            for local in ((source if direction is Direction.EGRESS else destination)[side],)
            for at in self._selecting[side].of(local, direction)
        }
        return tuple(sorted(outcome.credits | selecting, key=lambda one: (one.refuses, one.number < 0, one)))


class _Selecting:
    """What selects pods in NetworkPolicy's tier, as it is shown."""

    def __init__(self, resolved: ResolvedCluster) -> None:
        self._resolved = resolved
        self._known: dict[tuple[Party, Direction], tuple[int, ...]] = {}

    @cached_property
    def infos(self) -> list[RuleInfo]:
        """Policies, then workloads."""
        found = [_selecting(QualifiedName(policy.qualified), policy) for policy in self._policies]
        return found + [_selecting(one.qualified, one) for one in self._resolved.policy_set.workloads]

    def of(self, party: Party, direction: Direction) -> tuple[int, ...]:
        """The positions of those that select a party for a direction."""
        if (party, direction) not in self._known:
            self._known[party, direction] = tuple(self._find(party, direction))
        return self._known[party, direction]

    def _find(self, party: Party, direction: Direction) -> Iterator[int]:
        for at, policy in enumerate(self._policies):
            rules = policy.egress if direction is Direction.EGRESS else policy.ingress
            if rules is not None and party.peers >> self._bits[at] & 1:
                yield at
        for at, workload in enumerate(self._resolved.policy_set.workloads, len(self._policies)):
            if workload.qualified == party.workload:
                yield at

    @cached_property
    def _policies(self) -> list[ClusterPolicy]:
        return [one for one in self._resolved.policy_set.cluster_policies if one.tier is Tier.NAMESPACE]

    @cached_property
    def _bits(self) -> list[int]:
        return [self._resolved.parties.peers[peer_key(policy, policy.subject)] for policy in self._policies]


def _selecting(name: QualifiedName, one: ClusterPolicy | Workload) -> RuleInfo:
    return RuleInfo(RuleId(0), name, SELECTS, one.loc, "", "", "")


# Four answers


def _outcomes(answers: _Answers, defaults: frozenset[_Credit]) -> Iterator[_Outcome]:
    """One for each kind of change there is."""
    spans = changed_spans(*(_open(*ends) for ends in answers))
    for kind in Kind:
        chosen = tuple(span for span in spans if span.kind is kind)
        if chosen:
            credits_, shut = set[_Credit](), set[_Shut]()
            for direction, before, after in zip(_ENDS, *answers, strict=True):
                if before is not None and after is not None:
                    found, is_shut = _reasons(before, after, chosen, defaults)
                    credits_ |= found
                    shut |= {_Shut(0 if kind is Kind.GAINED else 1, direction)} if is_shut else set()
            yield _Outcome(kind, chosen, frozenset(credits_), frozenset(shut))


def _open(leaving: Allowance | None, arriving: Allowance | None) -> list[Stretch[float]]:
    """The points on which both ends allow it, and until when."""
    if leaving is None or arriving is None:
        return _stretches(leaving or arriving)
    both = overlaid(_stretches(leaving), _stretches(arriving), REFUSED)
    return [(first, last, min(one, other)) for first, last, one, other in both if REFUSED not in (one, other)]


def _stretches(allowance: Allowance | None) -> list[Stretch[float]]:
    grants = allowance.grants if allowance else ()
    return [(grant.first, grant.last, _until(grant)) for grant in grants]


def _until(grant: Grant) -> float:
    return FOREVER if grant.deadline is None else grant.deadline


def _reasons(
    before: Allowance, after: Allowance, spans: Sequence[Span], defaults: frozenset[_Credit]
) -> tuple[set[_Credit], bool]:
    """The rules of one end that bring a change, and those that refuse it in the other commit.

    True with them: some of it is refused there by no rule, but because none lets it through. Spans are of one kind.
    """
    line, kind = _line(spans), spans[0].kind
    if kind is Kind.RETIMED:
        ends = {span.after for span in spans}
        return _at([grant for grant in after.grants if _until(grant) in ends], line, 1), False
    side = 0 if kind is Kind.LOST else 1
    allowing, refusing = (before, after) if kind is Kind.LOST else (after, before)
    turned = points.without(line, _granted(refusing.grants))
    found = _at(allowing.grants, turned, side)
    # What a rule allows now needs no other reason; what is allowed by nobody has one in the commit before.
    unsaid = found & defaults if kind is Kind.GAINED else found
    asked = [grant for grant in allowing.grants if _Credit(False, side, grant.rule_id) in unsaid]
    turned = points.common(turned, _granted(asked))
    refused = {one._replace(refuses=True) for one in _at(refusing.denials, turned, 1 - side)}
    return found | refused, bool(points.without(turned, _granted(refusing.denials)))


def _at(grants: Iterable[Grant], line: Line, side: int) -> set[_Credit]:
    """The rules of a commit that decide any of some points."""
    return {_Credit(False, side, one.rule_id) for one in grants if points.common(line, ((one.first, one.last),))}


def _granted(grants: Iterable[Grant]) -> Line:
    return points.joined((grant.first, grant.last) for grant in grants)


def _line(ports: Iterable[Span]) -> Line:
    return points.joined((span.first, span.last) for span in ports)


# Rows


_Rectangle = tuple[Sequence[_Group], Sequence[_Group]]
"""Sources and destinations: every one with every other."""


def _rectangles(pairs: Mapping[_Group, Sequence[_Group]]) -> Sequence[_Rectangle]:
    """Pairs in few rectangles: of the sources that have the same destinations, or the other way round."""
    turned: dict[_Group, list[_Group]] = defaultdict(list)
    for source, destinations in pairs.items():
        for destination in destinations:
            turned[destination].append(source)
    one, other = _alike(pairs), _alike(turned)
    return one if len(one) <= len(other) else [(sources, destinations) for destinations, sources in other]


def _alike(pairs: Mapping[_Group, Sequence[_Group]]) -> Sequence[_Rectangle]:
    """Those that are paired with the same others.

    A pod by itself is never paired with itself, and counts as if it were where that makes it like the rest.
    """
    found: dict[frozenset[_Group], list[_Group]] = defaultdict(list)
    for one, others in pairs.items():
        found[frozenset(others)].append(one)
    closed: dict[frozenset[_Group], list[frozenset[_Group]]] = defaultdict(list)
    for reached, ones in found.items():
        if len(ones) == 1 and ones[0].is_lonely:
            closed[reached.union(ones)].append(reached)
    for whole, parts in closed.items():
        if len(parts) > 1 or whole in found:
            found[whole] += [one for part in parts for one in found.pop(part)]
    return [(ones, [*reached]) for reached, ones in found.items()]
