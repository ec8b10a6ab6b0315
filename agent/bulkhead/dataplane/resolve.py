"""Rules with names replaced by who they stand for: workload identities, the host, and address classes.

Everything that can be an end of a conversation becomes one number. `any` is then all workloads, an external all classes
whose addresses it contains, `world` all classes there are; two peers overlap exactly if they share a number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from bulkhead.abi import Capacity, Identity
from bulkhead.dataplane.addresses import WORLD_MEMBERS, address_classes, name_classes, prefix_count
from bulkhead.dataplane.hosting import check_host_sets
from bulkhead.dataplane.istio import with_opened
from bulkhead.dataplane.istio_settle import settle
from bulkhead.dataplane.names import DnsName, number_names
from bulkhead.errors import Diagnostic, PolicyError
from bulkhead.identity.registry import Members, assign_classes, assign_workloads
from bulkhead.identity.selectors import can_be_on
from bulkhead.policy.model import Entity, Network, Peer, PolicySet, PortSpec, QualifiedName, Rule
from bulkhead.policy.ports import ports_overlap

HOST = int(Identity.HOST)
WORLD = int(Identity.WORLD)
LEGACY = int(Identity.LEGACY)
"""Registered nodes without an agent. Judged at the other end alone, as addresses are."""
PEER = int(Identity.PEER)
"""Whichever workload a node will answer with. In the kernel's tables alone: no rule is about it."""
PROXY = int(Identity.PROXY)
"""A node's proxy. No rule of a repository is about it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the kernel's maps are sized for. A commit beyond them is refused before anything is expanded."""

    policy_entries: int = 1_000_000
    prefixes: int = 200_000
    """Of each address family."""
    names: int = 65_536
    """DNS names that externals list."""
    node_prefixes: int = int(Capacity.NODES)
    """Addresses of registered nodes."""
    memberships: int = 5_000_000
    """Externals counted once for each prefix within them at which the set of externals changes."""


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """One side of a rule. Peers of the same members share the object."""

    members: frozenset[int]
    """Identities: workloads, the host, address classes."""
    local: tuple[int, ...]
    """Those that an endpoint of this host can have."""
    workloads: frozenset[int] = frozenset()
    """The workloads among the members."""


@dataclass(frozen=True, slots=True, eq=False)
class ResolvedRule:
    """A rule in force."""

    rule: Rule
    source: Side
    destination: Side
    deadline: float | None
    """Unix seconds; None: never."""


@dataclass(frozen=True, slots=True, eq=False)
class Directory:
    """Who is who in one commit, as seen from one host."""

    workloads: Mapping[QualifiedName, int]
    local: frozenset[int]
    """Identities that endpoints of this host can have, the host itself included."""
    classes: Mapping[Members, int]
    classes4: Mapping[Network, int]
    classes6: Mapping[Network, int]
    named: Mapping[int, DnsName]
    """DNS names that externals list, by number."""
    world: frozenset[int]
    """Every class that some address has."""
    names: Mapping[int, str]
    """What to call an identity in a message."""
    _classes_of: Mapping[QualifiedName, frozenset[int]]
    _sides: dict[tuple[object, ...], Side] = field(default_factory=dict)

    def side(self, peer: Peer) -> Side:
        """The members of a peer."""
        key = (peer.workloads, peer.externals, peer.entities)
        side = self._sides.get(key)
        if side is None:
            members = frozenset(self._members(peer))
            workloads = frozenset(self._workloads_of(peer))
            side = self._sides[key] = Side(members, tuple(sorted(members & self.local)), workloads)
        return side

    def _workloads_of(self, peer: Peer) -> Iterable[int]:
        if Entity.ANY in peer.entities:
            return self.workloads.values()
        return (self.workloads[name] for name in peer.workloads)

    def _members(self, peer: Peer) -> Iterable[int]:
        yield from self._workloads_of(peer)
        for name in peer.externals:
            yield from self._classes_of.get(name, ())
        if Entity.HOST in peer.entities:
            yield HOST
        if Entity.WORLD in peer.entities:
            yield from self.world
        if Entity.LEGACY in peer.entities:
            yield LEGACY


@dataclass(frozen=True, slots=True, eq=False)
class Resolved:
    """A commit as one host sees it at one time."""

    policy_set: PolicySet
    """With the rules that Istio's policies become."""
    host: str | None
    """None: every host at once, so that each workload counts as local."""
    now: datetime
    directory: Directory
    rules: tuple[ResolvedRule, ...]
    """Those in force: an exception that has expired is not among them. What Istio's policies divide is there in parts
    that have nothing in common."""


def resolve(policy_set: PolicySet, host: str | None, now: datetime, limits: Limits | None = None) -> Resolved:
    """Rules and peers with their members. `now` is timezone-aware.

    Raises PolicyError when identities collide or are reserved (BH0602), and when there are more prefixes than
    the limits allow (BH0701), or when different `host` globs share a number (BH0603), or when Istio's policies would
    have to judge requests that come through no proxy (BH1308).
    """
    directory = _directory(policy_set, host, limits or Limits())
    if policy_set.istio:
        policy_set = with_opened(policy_set)
    rules = (
        ResolvedRule(
            rule,
            directory.side(rule.source),
            directory.side(rule.destination),
            rule.expires.timestamp() if rule.expires else None,
        )
        for rule in policy_set.rules
        if rule.expires is None or rule.expires > now
    )
    in_force = settle(policy_set, directory, rules) if policy_set.istio else tuple(rules)
    return Resolved(policy_set, host, now, directory, in_force)


def _directory(policy_set: PolicySet, host: str | None, limits: Limits) -> Directory:
    workloads = assign_workloads(policy_set.trust_domain, policy_set.workloads)
    check_host_sets(policy_set.workloads)
    local = {workloads[w.qualified] for w in policy_set.workloads if can_be_on(w.match, host)}
    _refuse_too_many_prefixes(policy_set, limits)
    _refuse_too_many_names(policy_set, limits)
    _refuse_too_many_nodes(policy_set, limits)
    families = [address_classes(policy_set.externals, version, limits.memberships) for version in (4, 6)]
    # A DNS name is a class without prefixes: rules about it are judged, and no packet is of it until it is learned.
    sets = {members for family in families for members in family.prefixes.values()}
    sets |= set(name_classes(policy_set.externals).values())
    locs = {external.qualified: external.loc for external in policy_set.externals}
    classes = assign_classes(sets | {WORLD_MEMBERS}, locs)
    classes4, classes6 = ({n: classes[members] for n, members in family.prefixes.items()} for family in families)
    return Directory(
        workloads,
        frozenset({HOST, *local}),
        classes,
        classes4,
        classes6,
        number_names(policy_set.externals, classes),
        frozenset(classes.values()) - (frozenset() if any(f.world_left for f in families) else {WORLD}),
        _names(workloads, classes),
        _classes_of(classes),
    )


def _names(workloads: Mapping[QualifiedName, int], classes: Mapping[Members, int]) -> dict[int, str]:
    names: dict[int, str] = {number: name for name, number in workloads.items()}
    names.update((number, " + ".join(sorted(members))) for members, number in classes.items())
    return names | {HOST: Entity.HOST.value, WORLD: Entity.WORLD.value, LEGACY: Entity.LEGACY.value}


def _classes_of(classes: Mapping[Members, int]) -> dict[QualifiedName, frozenset[int]]:
    found: dict[QualifiedName, set[int]] = {}
    for members, number in classes.items():
        for name in members:
            found.setdefault(name, set()).add(number)
    return {name: frozenset(numbers) for name, numbers in found.items()}


def _refuse_too_many_prefixes(policy_set: PolicySet, limits: Limits) -> None:
    for version in (4, 6):
        count = prefix_count(policy_set.externals, version)
        if count > limits.prefixes:
            largest = max(policy_set.externals, key=lambda e: prefix_count([e], version))
            problem = f"{count:,} IPv{version} prefixes are more than the {limits.prefixes:,} that fit"
            hint = f"the largest external is `{largest.qualified}` with {prefix_count([largest], version):,}"
            raise PolicyError([Diagnostic("BH0701", problem, largest.loc, hint=hint)])


def _refuse_too_many_names(policy_set: PolicySet, limits: Limits) -> None:
    count = len({name for external in policy_set.externals for name in external.fqdn})
    if count > limits.names:
        largest = max(policy_set.externals, key=lambda external: len(external.fqdn))
        problem = f"{count:,} DNS names are more than the {limits.names:,} that fit"
        hint = f"the largest external is `{largest.qualified}` with {len(largest.fqdn):,}; a wildcard is one name"
        raise PolicyError([Diagnostic("BH0701", problem, largest.loc, hint=hint)])


def _refuse_too_many_nodes(policy_set: PolicySet, limits: Limits) -> None:
    standing = [node for node in policy_set.nodes if not node.revoked]
    count = sum(len(node.addresses) for node in standing)
    if count > limits.node_prefixes:
        largest = max(standing, key=lambda node: len(node.addresses))
        problem = f"{count:,} addresses of nodes are more than the {limits.node_prefixes:,} that fit"
        hint = f"the most has `{largest.name}` with {len(largest.addresses):,}; a prefix is one address"
        commit = policy_set.sources.abbreviated if policy_set.sources else ""
        raise PolicyError([Diagnostic("BH0701", problem, largest.place(commit), hint=hint)])


class RuleIndex:
    """Rules by who is on either side; finds those that could matter for two sides without walking all of them."""

    def __init__(self, rules: Sequence[ResolvedRule]) -> None:
        self._by_source: _SideIndex = _SideIndex((rule.source, rule) for rule in rules)
        self._by_destination: _SideIndex = _SideIndex((rule.destination, rule) for rule in rules)

    def between(self, source: Side, destination: Side, ports: Iterable[PortSpec] | None) -> list[ResolvedRule]:
        """Rules that let a member of one reach a member of the other on one of the ports (None: any), by rule id."""
        outgoing, incoming = self._by_source.touching(source), self._by_destination.touching(destination)
        candidates = outgoing if len(outgoing) <= len(incoming) else incoming
        wanted = None if ports is None else tuple(ports)
        return [
            found
            for found in candidates
            if not found.source.members.isdisjoint(source.members)
            and not found.destination.members.isdisjoint(destination.members)
            and (wanted is None or ports_overlap(found.rule.ports, wanted))
        ]


class _SideIndex:
    """Rules by the members of one of their sides."""

    def __init__(self, rules: Iterable[tuple[Side, ResolvedRule]]) -> None:
        self._rules: dict[Side, list[ResolvedRule]] = {}
        for side, rule in rules:
            self._rules.setdefault(side, []).append(rule)
        self._sides: dict[int, list[Side]] = {}
        for side in self._rules:
            for member in side.members:
                self._sides.setdefault(member, []).append(side)
        self._touching: dict[Side, list[ResolvedRule]] = {}

    def touching(self, side: Side) -> list[ResolvedRule]:
        """Rules that share a member with a side, by rule id."""
        found = self._touching.get(side)
        if found is None:
            near = {other for member in side.members for other in self._sides.get(member, ())}
            rules = [rule for other in near for rule in self._rules[other]]
            found = self._touching[side] = sorted(rules, key=lambda rule: rule.rule.rule_id)
        return found
