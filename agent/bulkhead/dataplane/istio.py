"""Istio's policies in the terms of the rest: rules that open, clauses that judge requests, and who must prove himself.

An ALLOW opens what it may allow, as a rule of the repository would: between workloads, and never because no ALLOW
selects a workload. What of that needs a look at the request, and what a DENY takes away, is settled in
`dataplane.istio_settle`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from typing import Final, NamedTuple

from bulkhead.dataplane.istio_conditions import rule_condition
from bulkhead.dataplane.istio_truth import Callers, Known, possible_ports
from bulkhead.dataplane.ports import joined
from bulkhead.dataplane.repeated import for_deny
from bulkhead.dataplane.requests import Clause, Condition, Effect
from bulkhead.identity.registry import svid_template
from bulkhead.policy.istio import (
    ROOT_NAMESPACE,
    Action,
    AuthorizationPolicy,
    IstioPolicy,
    IstioRule,
    Mode,
    PeerAuthentication,
    selects,
)
from bulkhead.policy.model import Entity, Peer, PolicySet, PortSpec, QualifiedName, Rule, Workload
from bulkhead.policy.ports import PORT_MAX, TCP

KIND: Final = "istio"
"""Kind of the rule that an ALLOW becomes."""
SILENT: Final[Mapping[Action, str]] = {action: f"{KIND}-{action.lower()}" for action in Action}
"""Kinds of those that open nothing."""
DRY_RUN: Final = f"{KIND}-dry-run"

_PEERS_SHOWN: Final = 3


class Meant(NamedTuple):
    """One rule of an AuthorizationPolicy, with what it asks."""

    policy: AuthorizationPolicy
    rule: IstioRule
    condition: Condition

    @property
    def name(self) -> QualifiedName:
        return QualifiedName(f"{self.policy.qualified}/{self.rule.name}")


def meant_rules(policy_set: PolicySet) -> tuple[Meant, ...]:
    """Every rule, in the order of their numbers."""
    policies = [policy for policy in policy_set.istio if isinstance(policy, AuthorizationPolicy)]
    return tuple(Meant(one, rule, rule_condition(rule, one.namespace)) for one in policies for rule in one.rules)


class Selected:
    """Whom each policy selects."""

    def __init__(self, policy_set: PolicySet) -> None:
        self._everybody = policy_set.workloads
        self._within: dict[str, list[Workload]] = {}
        for workload in policy_set.workloads:
            self._within.setdefault(workload.policy, []).append(workload)
        self._by: dict[str, tuple[Workload, ...]] = {}

    def by(self, policy: IstioPolicy) -> tuple[Workload, ...]:
        """The workloads, in the order of their declaration."""
        if policy.qualified not in self._by:
            is_root = policy.namespace == ROOT_NAMESPACE
            candidates = self._everybody if is_root else self._within.get(policy.namespace, ())
            self._by[policy.qualified] = tuple(one for one in candidates if selects(policy, one))
        return self._by[policy.qualified]


class Workloads:
    """The workloads as callers."""

    def __init__(self, policy_set: PolicySet) -> None:
        self._workloads = policy_set.workloads
        self._callers = Callers({one.qualified: known(policy_set, one) for one in policy_set.workloads})

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._workloads)

    def possible(self, one: Meant) -> tuple[QualifiedName, ...]:
        """Those that a rule does not exclude as callers, whatever they ask for."""
        answers = self._callers.answers(one.condition)
        possible = [any(span.truth is not False for span in kind) for kind in answers.kinds]
        return tuple(one.qualified for one in self._workloads if possible[answers.of.get(one.qualified, 0)])


def known(policy_set: PolicySet, workload: Workload) -> Known:
    """What is known of a workload as a caller."""
    return Known(svid_template(policy_set.trust_domain, workload))


# What is opened


def with_opened(policy_set: PolicySet) -> PolicySet:
    """The policy with a rule of the kind `istio` for every ALLOW rule that may let some workload reach another."""
    selected, workloads = Selected(policy_set), Workloads(policy_set)
    opened = (rule for one in meant_rules(policy_set) if (rule := _opened(one, selected, workloads)) is not None)
    written = [rule for rule in policy_set.rules if rule.kind != KIND]
    return replace(policy_set, rules=(*written, *opened))


def silent_rules(policy_set: PolicySet) -> tuple[Rule, ...]:
    """Those that open nothing, as they are shown to people: what a request is refused or recorded by has a name."""
    opening = {rule.rule_id for rule in policy_set.rules if rule.kind == KIND}
    selected = Selected(policy_set)
    return tuple(
        _rule(one, Peer(text=_source_text(one.rule)), _destination(one.policy, selected))
        for one in meant_rules(policy_set)
        if one.rule.rule_id not in opening
    )


def _opened(one: Meant, selected: Selected, workloads: Workloads) -> Rule | None:
    if one.policy.action is not Action.ALLOW or one.policy.dry_run or not selected.by(one.policy):
        return None
    callers = workloads.possible(one)
    if not callers:
        return None
    everybody = len(callers) == workloads.count
    source = Peer(
        workloads=() if everybody else callers,
        entities=(Entity.ANY,) if everybody else (),
        text=_source_text(one.rule),
    )
    return _rule(one, source, _destination(one.policy, selected))


def _rule(one: Meant, source: Peer, destination: Peer) -> Rule:
    """A rule on all ports that are possible: sources and operations are asked apart from each other, so that which
    these are does not depend on who calls."""
    opens = one.policy.action is Action.ALLOW and not one.policy.dry_run and bool(source.workloads or source.entities)
    return Rule(
        rule_id=one.rule.rule_id,
        policy=one.policy.qualified,
        name=one.rule.name,
        source=source,
        destination=destination,
        ports=tuple(port_spec(TCP, first, last) for first, last in joined(possible_ports(one.condition))),
        loc=one.rule.loc,
        kind=KIND if opens else DRY_RUN if one.policy.dry_run else SILENT[one.policy.action],
    )


def port_spec(protocol: int, first: int, last: int) -> PortSpec:
    """Ports of a protocol, written as an author would."""
    if (first, last) == (0, PORT_MAX):
        return PortSpec(protocol, first, last, "any/tcp")
    return PortSpec(protocol, first, last, str(first) if first == last else f"{first}-{last}")


def _destination(policy: AuthorizationPolicy, selected: Selected) -> Peer:
    labels = ", ".join(f"{key}: {value}" for key, value in policy.labels)
    text = f"{policy.namespace} {{{labels}}}" if labels else policy.namespace
    return Peer(workloads=tuple(one.qualified for one in selected.by(policy)), text=text)


def _source_text(rule: IstioRule) -> str:
    """The callers in a few words."""
    texts = [text for source in rule.sources for text in (*source.principals, *source.service_accounts)]
    texts += [f"namespace {text}" for source in rule.sources for text in source.namespaces]
    if not rule.sources:
        return "any"
    more = len(texts) - _PEERS_SHOWN
    shown = ", ".join(texts[:_PEERS_SHOWN]) or "callers of its `from`"
    return f"{shown}, {more} more" if more > 0 else shown


# How requests are judged

_EFFECTS: Final[Mapping[Action, Effect]] = {action: Effect(action.lower()) for action in Action}
_ORDER: Final = {effect: place for place, effect in enumerate(Effect)}


def clauses(policy_set: PolicySet) -> dict[QualifiedName, tuple[Clause, ...]]:
    """What Istio's policies say of requests, by the workload that is called: CUSTOM, then DENY, ALLOW, AUDIT."""
    selected = Selected(policy_set)
    found: dict[QualifiedName, list[Clause]] = {}
    for one in sorted(meant_rules(policy_set), key=lambda one: _ORDER[_EFFECTS[one.policy.action]]):
        clause = _clause(one)
        for workload in selected.by(one.policy):
            found.setdefault(workload.qualified, []).append(clause)
    return {name: tuple(held) for name, held in found.items()}


def _clause(one: Meant) -> Clause:
    provider = f"rego:{one.policy.provider}" if one.policy.provider else ""
    effect = _EFFECTS[one.policy.action]
    condition = for_deny(one.condition) if effect is Effect.DENY else one.condition
    return Clause(one.rule.rule_id, effect, condition, provider, one.policy.dry_run)


# Who must prove himself


def mtls_override(policy_set: PolicySet, workload: Workload, port: int) -> bool | None:
    """Whether those who call a port of a workload must prove who they are. None: no PeerAuthentication says."""
    mode = next((mode for mode in _modes(policy_set, workload, port) if mode is not Mode.UNSET), None)
    return None if mode is None else mode is Mode.STRICT


def mtls_ports(policy_set: PolicySet, workload: Workload) -> tuple[tuple[int, int, bool | None], ...]:
    """The same for every port, 0 to 65535, as intervals in order."""
    single = {port for policy in in_force(policy_set, workload) for port, _ in policy.ports}
    begins = sorted({0, *single, *(port + 1 for port in single if port < PORT_MAX)})
    answers = [(begin, mtls_override(policy_set, workload, begin)) for begin in begins]
    found = []
    for answer, group in groupby(answers, key=lambda each: each[1]):
        found.append((next(group)[0], answer))
    ends = [*(begin - 1 for begin, _ in found[1:]), PORT_MAX]
    return tuple((begin, end, answer) for (begin, answer), end in zip(found, ends, strict=True))


def _modes(policy_set: PolicySet, workload: Workload, port: int) -> Iterator[Mode]:
    """What is said of a port, the narrower before the wider."""
    for policy in in_force(policy_set, workload):
        yield dict(policy.ports).get(port, Mode.UNSET)
        yield policy.mode


def in_force(policy_set: PolicySet, workload: Workload) -> tuple[PeerAuthentication, ...]:
    """Of each scope the first in file order: the workload's, its namespace's, and that of the mesh."""
    found = [one for one in policy_set.istio if isinstance(one, PeerAuthentication) and selects(one, workload)]
    scopes: dict[int, PeerAuthentication] = {}
    for policy in found:
        scopes.setdefault(_scope(policy), policy)
    return tuple(scopes[scope] for scope in sorted(scopes))


def _scope(policy: PeerAuthentication) -> int:
    """0: workloads, 1: a namespace, 2: the mesh."""
    return 2 if policy.namespace == ROOT_NAMESPACE else 0 if policy.labels else 1
