"""What a policy says of each workload: who may call it, whom it may call, what protects it. Pure.

Recorded conversations stand beside it, never in it: the catalogue is a function of a commit, the time, and what was
observed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from difflib import get_close_matches
from typing import Final, Generic, TypeVar

from bulkhead.dataplane.resolve import Directory, resolve
from bulkhead.dataplane.usage import Ledger, Observed, Undeclared, Usage
from bulkhead.errors import Loc, UsageError
from bulkhead.identity.registry import spiffe_id
from bulkhead.policy.model import (
    Entity,
    External,
    Mode,
    Never,
    Peer,
    Policy,
    PolicySet,
    PolicyTest,
    QualifiedName,
    Rule,
    Workload,
)

T = TypeVar("T")

_WORLD_BY_NAME: Final = -1
"""Stands for `world` where it is named, beside the address classes that it shares with every external."""


@dataclass(frozen=True, slots=True)
class Party:
    """A peer as written, and everybody that it stands for."""

    text: str
    members: tuple[str, ...]
    """Qualified names of workloads and externals, and entities other than `any`."""
    selector: bool
    """Whether `text` chooses members (labels, `any`) instead of naming them."""


@dataclass(frozen=True, slots=True)
class Grant:
    """A rule with its members."""

    rule: Rule
    source: Party
    destination: Party
    expired: bool
    usage: Usage | None = None
    """None: nothing was observed."""

    @property
    def name(self) -> QualifiedName:
        return self.rule.qualified


@dataclass(frozen=True, slots=True)
class Invariant:
    """A `never` with its members."""

    never: Never
    source: Party
    destination: Party

    @property
    def name(self) -> str:
        return f"{self.never.policy}/{self.never.name}"


@dataclass(frozen=True, slots=True)
class Expected:
    """One expectation of a policy's tests."""

    policy: str
    verb: str
    """`accept` or `deny`."""
    source: str
    """Both ends, as written."""
    target: str
    loc: Loc


@dataclass(frozen=True, slots=True)
class Ties:
    """What the policy says of somebody, in the order of its files."""

    callers: tuple[Grant, ...]
    calls: tuple[Grant, ...]
    protected_by: tuple[Invariant, ...]
    """What must never reach it."""
    restrained_by: tuple[Invariant, ...]
    """What it must never reach."""
    tests: tuple[Expected, ...]


@dataclass(frozen=True, slots=True)
class Service:
    """A workload."""

    workload: Workload
    policy: Policy
    spiffe_id: str
    ties: Ties

    @property
    def name(self) -> QualifiedName:
        return self.workload.qualified


@dataclass(frozen=True, slots=True)
class Outside:
    """An external, or an entity that some rule names."""

    name: str
    external: External | None
    """None: an entity."""
    ties: Ties


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Everything that talks, and what was seen of it."""

    commit: str
    trust_domain: str
    host_mode: Mode
    services: tuple[Service, ...]
    outsides: tuple[Outside, ...]
    grants: tuple[Grant, ...]
    invariants: tuple[Invariant, ...]
    left_out: int
    """Policies in Kubernetes dialects: they select pods by labels and stand for no workload."""
    observed: Observed | None = None
    undeclared: tuple[Undeclared, ...] = ()
    only: str = ""
    """The policy that it is narrowed to; empty: all."""


def catalogue(policy_set: PolicySet, now: datetime, observed: Observed | None = None) -> Catalogue:
    """The catalogue of a commit, with what was observed beside it. `now` is timezone-aware.

    Raises PolicyError where `resolve` does. Whether tests and invariants hold is not judged here.
    """
    resolved = resolve(policy_set, observed.host if observed else None, now)
    policy_set, directory = resolved.policy_set, resolved.directory
    ledger = Ledger(observed) if observed else None
    grants = tuple(_grant(rule, policy_set, directory, now, ledger) for rule in policy_set.rules)
    invariants = tuple(
        Invariant(one, _party(one.source, policy_set), _party(one.destination, policy_set)) for one in policy_set.nevers
    )
    index = _Index(directory, grants, invariants, policy_set.tests)
    policies = {policy.name: policy for policy in policy_set.policies}
    services = (
        Service(
            workload,
            policies[workload.policy],
            spiffe_id(policy_set.trust_domain, workload.qualified),
            index.ties(Peer(workloads=(workload.qualified,))),
        )
        for workload in policy_set.workloads
    )
    return Catalogue(
        policy_set.commit,
        policy_set.trust_domain,
        policy_set.host_mode,
        tuple(services),
        tuple(_outsides(policy_set, index)),
        grants,
        invariants,
        len(policy_set.cluster_policies),
        observed,
        ledger.undeclared({grant.name for grant in grants}) if ledger else (),
    )


def narrowed(whole: Catalogue, policy: str) -> Catalogue:
    """The part that concerns one policy: what it declares, and every rule that it wrote or that touches its members.

    Raises UsageError when there is no such policy.
    """
    known = {service.policy.name for service in whole.services} | {grant.rule.policy for grant in whole.grants}
    known |= {outside.external.policy for outside in whole.outsides if outside.external}
    if policy not in known:
        close = get_close_matches(policy, known, n=1)
        raise UsageError(f"no policy is called `{policy}`" + (f": did you mean `{close[0]}`?" if close else ""))
    own = {str(service.name) for service in whole.services if service.workload.policy == policy}
    own |= {outside.name for outside in whole.outsides if outside.external and outside.external.policy == policy}
    grants = tuple(grant for grant in whole.grants if grant.rule.policy == policy or own & _ends(grant))
    near = own.union(*map(_ends, grants))
    return replace(
        whole,
        services=tuple(service for service in whole.services if service.workload.policy == policy),
        outsides=tuple(outside for outside in whole.outsides if outside.name in near),
        grants=grants,
        invariants=tuple(
            one
            for one in whole.invariants
            if one.never.policy == policy or own & {*one.source.members, *one.destination.members}
        ),
        undeclared=tuple(
            one for one in whole.undeclared if own & {*one.source.split(" + "), *one.destination.split(" + ")}
        ),
        only=policy,
    )


def _ends(grant: Grant) -> set[str]:
    return {*grant.source.members, *grant.destination.members}


def _grant(rule: Rule, policy_set: PolicySet, directory: Directory, now: datetime, ledger: Ledger | None) -> Grant:
    local = any(directory.side(peer).local for peer in (rule.source, rule.destination))
    return Grant(
        rule,
        _party(rule.source, policy_set),
        _party(rule.destination, policy_set),
        rule.expires is not None and rule.expires <= now,
        ledger.usage(rule.qualified, local=local) if ledger else None,
    )


def _party(peer: Peer, policy_set: PolicySet) -> Party:
    names: dict[str, None] = dict.fromkeys((*peer.workloads, *peer.externals))
    if Entity.ANY in peer.entities:
        names.update(dict.fromkeys(workload.qualified for workload in policy_set.workloads))
    names.update(dict.fromkeys(str(entity) for entity in peer.entities if entity is not Entity.ANY))
    return Party(peer.text, tuple(names), peer.text.startswith("{") or Entity.ANY in peer.entities)


def _outsides(policy_set: PolicySet, index: _Index) -> Iterator[Outside]:
    for external in policy_set.externals:
        yield Outside(external.qualified, external, index.ties(Peer(externals=(external.qualified,))))
    named = {entity for rule in policy_set.rules for entity in (*rule.source.entities, *rule.destination.entities)}
    for entity in (Entity.HOST, Entity.WORLD, Entity.LEGACY):
        if entity in named:
            yield Outside(str(entity), None, index.ties(Peer(entities=(entity,))))


class _Index:
    """Who is concerned by what, through identities: externals meet where they share an address."""

    def __init__(
        self,
        directory: Directory,
        grants: Sequence[Grant],
        invariants: Sequence[Invariant],
        tests: Iterable[PolicyTest],
    ) -> None:
        self._directory = directory
        self._callers = _Concerns((self._members(one.rule.destination), one) for one in grants)
        self._calls = _Concerns((self._members(one.rule.source), one) for one in grants)
        self._protecting = _Concerns((self._members(one.never.destination), one) for one in invariants)
        self._restraining = _Concerns((self._members(one.never.source), one) for one in invariants)
        self._tests = _Concerns((self._concerned(ends), one) for one, ends in _expectations(tests))

    def ties(self, peer: Peer) -> Ties:
        """What is said of a peer. Of the world: what names it, since else every external would be meant."""
        own = frozenset({_WORLD_BY_NAME}) if Entity.WORLD in peer.entities else self._members(peer)
        return Ties(
            self._callers.of(own),
            self._calls.of(own),
            self._protecting.of(own),
            self._restraining.of(own),
            self._tests.of(own),
        )

    def _concerned(self, peers: Iterable[Peer]) -> frozenset[int]:
        return frozenset().union(*map(self._members, peers))

    def _members(self, peer: Peer) -> frozenset[int]:
        members = self._directory.side(peer).members
        return members | {_WORLD_BY_NAME} if Entity.WORLD in peer.entities else members


def _expectations(tests: Iterable[PolicyTest]) -> Iterator[tuple[Expected, tuple[Peer, Peer]]]:
    """Each expectation once: a port of several protocols is several of them at one place."""
    for test in tests:
        for verb, wanted in (("accept", test.accept), ("deny", test.deny)):
            for one in {one.loc: one for one in wanted}.values():
                expected = Expected(test.policy, verb, test.source.text, one.text, one.loc)
                yield expected, (test.source, one.destination)


class _Concerns(Generic[T]):
    """Things by the identities that they concern, in the order given."""

    def __init__(self, things: Iterable[tuple[frozenset[int], T]]) -> None:
        self._things: list[T] = []
        self._by_member: dict[int, list[int]] = {}
        for position, (members, thing) in enumerate(things):
            self._things.append(thing)
            for member in members:
                self._by_member.setdefault(member, []).append(position)

    def of(self, members: frozenset[int]) -> tuple[T, ...]:
        """Those that concern any of the members."""
        positions = {position for member in members for position in self._by_member.get(member, ())}
        return tuple(self._things[position] for position in sorted(positions))
