"""What the policies of a commit mean in one cluster: for each pair of parties, the ports that each end allows.

Tiers, priorities, Deny and Pass are gone by the time anybody asks: what is left of them is, for a local party, a
direction and a remote party, a list of ports that do not overlap, each with the rule that allows it. Clauses are rules
of one direction in the order in which they are asked; which of them speak of a pair is the intersection of two bit
sets, and pairs of which the same clauses speak share one answer.

Native rules allow in the tier of NetworkPolicy, and a pod that a native workload selects is selected in that tier.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, NamedTuple

from bulkhead.abi import Direction
from bulkhead.dataplane import points
from bulkhead.dataplane.cluster_inventory import Cluster, NamedPort
from bulkhead.dataplane.compile import RuleInfo, rule_info
from bulkhead.dataplane.parties import Parties, Party, Standing, find_parties, peer_key, place
from bulkhead.dataplane.points import EVERYTHING, NOTHING, Line
from bulkhead.policy.cluster import Action, ClusterPeer, ClusterPolicy, ClusterPort, ClusterRule, Tier
from bulkhead.policy.model import Entity, Peer, PolicySet, QualifiedName, Rule, RuleId

DIRECTIONS: Final = tuple(Direction)

DEFAULTS: Final = {
    "not-selected": "no policy decides: everything is allowed",
    "same-node": "a pod and the node it runs on always reach each other",
    "self": "a pod always reaches itself",
    "node": "nodes are not judged, nor what nodes do among themselves",
}
"""What is allowed without a rule of anybody's, by the name of the rule that says so, in `kubernetes/`."""


class Grant(NamedTuple):
    """Points that one rule decides."""

    first: int
    last: int
    rule_id: RuleId
    deadline: float | None


class Allowance:
    """What one end allows of conversations with another: grants that do not overlap, in order.

    What is neither granted nor among `denials` is refused because no rule of NetworkPolicy's tier lets it through.
    Equal to nothing but itself: pairs with the same answer share the object.
    """

    def __init__(self, grants: Iterable[Grant], denials: Iterable[Grant] = ()) -> None:
        self.grants = tuple(sorted(grants))
        self.denials = tuple(sorted(denials))
        self._starts = [grant.first for grant in self.grants]

    def at(self, protocol: int, port: int) -> Grant | None:
        """The grant of a port; None: it is refused."""
        wanted = points.point(protocol, port)
        index = bisect_right(self._starts, wanted) - 1
        return self.grants[index] if index >= 0 and wanted <= self.grants[index].last else None


@dataclass(frozen=True, slots=True)
class _Clause:
    """A rule of one direction, with whom it governs and whom it speaks of."""

    tier: Tier
    action: Action
    rule_id: RuleId
    deadline: float | None
    ports: tuple[ClusterPort, ...] | None
    subject: Callable[[Party], bool]
    peer: Callable[[Party], bool]


class ResolvedCluster:
    """A commit in one cluster at one time."""

    def __init__(self, policy_set: PolicySet, cluster: Cluster, now: datetime) -> None:
        """Raises PolicyError when identities collide (BH0602)."""
        self.policy_set = policy_set
        self.cluster = cluster
        self.now = now
        self.parties: Parties = find_parties(policy_set, cluster)
        self.rules: Mapping[RuleId, RuleInfo] = _rule_infos(policy_set)
        """Every rule that can decide something, the defaults included."""
        self.defaults: Mapping[str, RuleId] = {
            rule.name.partition("/")[2]: number for number, rule in self.rules.items() if rule.kind == "default"
        }
        self.own_node = _whole(self.defaults["same-node"])
        """What a pod allows of its own node, in both directions."""
        self._halves = tuple(_Half(self, direction) for direction in DIRECTIONS)

    def allowance(self, local: Party, direction: Direction, remote: Party) -> Allowance:
        """What a pod allows of conversations with another end, as if its mode were enforce.

        Of its own node, and of itself, it allows everything, which is not asked here.
        """
        return self._halves[direction].allowance(local, remote)


def resolve_cluster(policy_set: PolicySet, cluster: Cluster, now: datetime) -> ResolvedCluster:
    """A commit in a cluster. `now` is timezone-aware and decides which exceptions have expired.

    Raises PolicyError when identities collide (BH0602).
    """
    return ResolvedCluster(policy_set, cluster, now)


class _Half:
    """One direction."""

    def __init__(self, resolved: ResolvedCluster, direction: Direction) -> None:
        self._direction = direction
        self._default = resolved.defaults["not-selected"]
        self._clauses = tuple(_clauses(resolved, direction))
        everyone = resolved.parties.all
        pods = [party for party in everyone if party.standing is Standing.POD]
        self._governing = {p.identity: _bits(clause.subject(p) for clause in self._clauses) for p in pods}
        self._speaking = {p.identity: _bits(clause.peer(p) for clause in self._clauses) for p in everyone}
        self._isolated = _isolated(resolved, direction, pods)
        self._lines: dict[tuple[int, frozenset[NamedPort]], Line] = {}
        self._answers: dict[tuple[int, bool, frozenset[NamedPort]], Allowance] = {}

    def allowance(self, local: Party, remote: Party) -> Allowance:
        receiver = remote if self._direction is Direction.EGRESS else local
        relevant = self._governing[local.identity] & self._speaking[remote.identity]
        key = relevant, local.identity in self._isolated, receiver.ports
        answer = self._answers.get(key)
        if answer is None:
            answer = self._answers[key] = self._settle(*key)
        return answer

    def _settle(self, relevant: int, is_isolated: bool, named: frozenset[NamedPort]) -> Allowance:
        """Asks the clauses in order what becomes of each port."""
        asked: dict[Tier, list[tuple[_Clause, Line]]] = {tier: [] for tier in Tier}
        while relevant:
            number = (relevant & -relevant).bit_length() - 1
            clause = self._clauses[number]
            asked[clause.tier].append((clause, self._line(number, named)))
            relevant &= relevant - 1
        grants: list[Grant] = []
        denials: list[Grant] = []
        left = EVERYTHING
        for tier in Tier:
            left = _through(asked[tier], left, grants, denials)
            if tier is Tier.NAMESPACE and is_isolated:
                return Allowance(grants, denials)
        grants += (Grant(first, last, self._default, None) for first, last in left)
        return Allowance(grants, denials)

    def _line(self, number: int, named: frozenset[NamedPort]) -> Line:
        """The ports of a clause, at a receiver with these names."""
        key = number, named
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _line(self._clauses[number].ports, named)
        return line


def _through(clauses: Sequence[tuple[_Clause, Line]], asked: Line, grants: list[Grant], denials: list[Grant]) -> Line:
    """Puts ports to the clauses of a tier, notes what they decide, and returns what they leave to the next."""
    passed = NOTHING
    for clause, line in clauses:
        decided = points.common(asked, line)
        asked = points.without(asked, decided)
        if clause.action is Action.PASS:
            passed = points.joined((*passed, *decided))
        else:
            noted = grants if clause.action is Action.ACCEPT else denials
            noted += (Grant(first, last, clause.rule_id, clause.deadline) for first, last in decided)
    return points.joined((*passed, *asked))


def _line(ports: tuple[ClusterPort, ...] | None, named: frozenset[NamedPort]) -> Line:
    """The points of ports, where names stand for what the receiver calls so."""
    if ports is None:
        return EVERYTHING
    return points.line(span for port in ports for span in _spans(port, named))


def _spans(port: ClusterPort, named: frozenset[NamedPort]) -> Iterator[tuple[int, int, int]]:
    if not port.name:
        if port.protocol is not None:
            yield port.protocol, port.first, port.last
        return
    for known in named:
        if known.name == port.name and port.protocol in (None, known.protocol):
            yield known.protocol, known.port, known.port


def _whole(rule_id: RuleId) -> Allowance:
    return Allowance(Grant(first, last, rule_id, None) for first, last in EVERYTHING)


def _bits(flags: Iterable[bool]) -> int:
    return int("".join("1" if flag else "0" for flag in flags)[::-1] or "0", 2)


# Clauses, in the order in which they are asked


def _clauses(resolved: ResolvedCluster, direction: Direction) -> Iterator[_Clause]:
    for tier in Tier:
        policies = [policy for policy in resolved.policy_set.cluster_policies if policy.tier is tier]
        # The specification leaves equal priorities open: the one that comes first in the repository is asked first.
        for policy in sorted(policies, key=lambda policy: policy.priority):
            for rule in _rules(policy, direction) or ():
                yield _dialect_clause(resolved.parties, policy, rule)
        if tier is Tier.NAMESPACE:
            yield from _native_clauses(resolved, direction)


def _rules(policy: ClusterPolicy, direction: Direction) -> tuple[ClusterRule, ...] | None:
    return policy.egress if direction is Direction.EGRESS else policy.ingress


def _dialect_clause(parties: Parties, policy: ClusterPolicy, rule: ClusterRule) -> _Clause:
    subject = _membership(parties, policy, (policy.subject,))
    peer = _anybody if rule.peers is None else _membership(parties, policy, rule.peers)
    return _Clause(policy.tier, rule.action, rule.rule_id, None, rule.ports, subject, peer)


def _membership(parties: Parties, policy: ClusterPolicy, peers: Iterable[ClusterPeer]) -> Callable[[Party], bool]:
    """Whether a party is a member of one of the peers."""
    wanted = 0
    for peer in peers:
        wanted |= 1 << parties.peers[peer_key(policy, peer)]
    return lambda party: bool(party.peers & wanted)


def _anybody(_party: Party) -> bool:
    return True


def _native_clauses(resolved: ResolvedCluster, direction: Direction) -> Iterator[_Clause]:
    """Permanent rules before passing ones, of which the longest-lived first: none is shortened by another."""
    workloads = {party.workload for party in resolved.parties.pods.values()} - {None}
    timed = [(rule.expires.timestamp() if rule.expires else None, rule) for rule in resolved.policy_set.rules]
    for deadline, rule in sorted(timed, key=lambda pair: (pair[0] is not None, -(pair[0] or 0), pair[1].rule_id)):
        local, remote = (rule.source, rule.destination) if direction is Direction.EGRESS else _turned(rule)
        concerns = Entity.ANY in local.entities or not workloads.isdisjoint(local.workloads)
        if concerns and (deadline is None or deadline > resolved.now.timestamp()):
            ports = tuple(ClusterPort(spec.protocol, spec.first, spec.last) for spec in rule.ports)
            yield _Clause(
                Tier.NAMESPACE,
                Action.ACCEPT,
                rule.rule_id,
                deadline,
                ports,
                _workloads_of(local),
                native_members(remote),
            )


def _turned(rule: Rule) -> tuple[Peer, Peer]:
    return rule.destination, rule.source


def _workloads_of(peer: Peer) -> Callable[[Party], bool]:
    """Whether a party's workload is one of a native peer."""
    names, everybody = frozenset(peer.workloads), Entity.ANY in peer.entities
    return lambda party: party.workload is not None and (everybody or party.workload in names)


def native_members(peer: Peer) -> Callable[[Party], bool]:
    """Whether a party is a member of a native peer. Who has no workload is but an address, in a cluster too."""
    is_workload, externals = _workloads_of(peer), frozenset(peer.externals)
    whole_world = Entity.WORLD in peer.entities

    def is_member(party: Party) -> bool:
        if party.workload is not None or party.is_ambiguous:
            return is_workload(party)
        return whole_world or not externals.isdisjoint(party.externals)

    return is_member


def _isolated(resolved: ResolvedCluster, direction: Direction, pods: Iterable[Party]) -> frozenset[int]:
    """Pods that the tier of NetworkPolicy selects: what nothing there allows is refused."""
    parties = resolved.parties
    selecting = [
        _membership(parties, policy, (policy.subject,))
        for policy in resolved.policy_set.cluster_policies
        if policy.tier is Tier.NAMESPACE and _rules(policy, direction) is not None
    ]
    return frozenset(
        party.identity
        for party in pods
        if party.workload is not None or party.is_ambiguous or any(selects(party) for selects in selecting)
    )


# Rules as they are shown


def _rule_infos(policy_set: PolicySet) -> dict[RuleId, RuleInfo]:
    found = {rule.rule_id: rule_info(rule) for rule in policy_set.rules}
    for policy in policy_set.cluster_policies:
        for rule in policy.ingress or ():
            found[rule.rule_id] = replace(
                _dialect_info(policy, rule), source=rule.peers_text, destination=_subject(policy)
            )
        for rule in policy.egress or ():
            found[rule.rule_id] = replace(
                _dialect_info(policy, rule), source=_subject(policy), destination=rule.peers_text
            )
    last = max(found, default=0)
    for number, (name, why) in enumerate(DEFAULTS.items(), last + 1):
        qualified = QualifiedName(f"kubernetes/{name}")
        rule_id = RuleId(number)
        found[rule_id] = RuleInfo(rule_id, qualified, "default", place(policy_set), "any", "any", "any", why=why)
    return found


def _dialect_info(policy: ClusterPolicy, rule: ClusterRule) -> RuleInfo:
    name = QualifiedName(f"{policy.qualified}/{rule.name}")
    return RuleInfo(rule.rule_id, name, rule.action.lower(), rule.loc, "", "", rule.ports_text)


def _subject(policy: ClusterPolicy) -> str:
    return f"the pods of {policy.qualified}"
