"""What Istio's policies leave of each rule, cut exactly: by who calls, who is called, and which port.

Between a workload and a port, a DENY that the kernel can judge takes the port away, whichever rule opened it; one that
needs a look at the request leaves it to the proxy, as a CUSTOM does and an ALLOW that says something of requests. Who
is no workload does not come through a proxy: what would have to be judged there, for such a caller, is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from bulkhead.abi import Identity
from bulkhead.dataplane.istio import KIND, Meant, Selected, known, meant_rules, mtls_ports, port_spec
from bulkhead.dataplane.istio_truth import Answers, Callers, Known, Span
from bulkhead.dataplane.ports import Ports, joined, tcp_ports
from bulkhead.errors import Diagnostic, PolicyError
from bulkhead.policy.codes import message
from bulkhead.policy.istio import Action
from bulkhead.policy.lifeline import OPERATOR
from bulkhead.policy.model import Network, PolicySet, PortSpec, QualifiedName, RuleId
from bulkhead.policy.ports import PORT_MAX, TCP

if TYPE_CHECKING:
    from bulkhead.dataplane.resolve import Directory, ResolvedRule, Side

_RELATED_MAX = 3


class _Outcome(NamedTuple):
    """What becomes of an opening."""

    requests: bool
    mtls: bool | None
    """None: what the rule says."""
    unjudged: tuple[int, ...] = ()
    """Places of the rules that would have to look at a request."""


class _Stretch(NamedTuple):
    """Ports with one outcome; None: they are taken away."""

    first: int
    last: int
    outcome: _Outcome | None


class _Treatment(NamedTuple):
    """What there is to say of those who call a workload."""

    rules: tuple[int, ...]
    """Places of the DENY and CUSTOM rules."""
    mtls: tuple[tuple[int, int, bool | None], ...]


_UNTREATED = _Treatment((), ((0, PORT_MAX, None),))


def settle(policy_set: PolicySet, directory: Directory, rules: Iterable[ResolvedRule]) -> tuple[ResolvedRule, ...]:
    """The rules in force after all of Istio's policies, in order; several may be parts of one.

    Raises PolicyError (BH1308) where a caller that is no workload would have to be judged by its requests.
    """
    settler = _Settler(policy_set, directory)
    settled = tuple(part for rule in rules for part in settler.parts(rule))
    findings = settler.findings()
    if findings:
        raise PolicyError(findings)
    return settled


class _Settler:
    """Every answer that was found before, so that each is asked for once."""

    def __init__(self, policy_set: PolicySet, directory: Directory) -> None:
        self._directory = directory
        self._meant = meant_rules(policy_set)
        self._places = {one.rule.rule_id: place for place, one in enumerate(self._meant)}
        self._treatments = _treatments(policy_set, directory, self._meant)
        self._callers = Callers(_known(policy_set, directory))
        self._answers: dict[int, Answers[int]] = {}
        self._stretches: dict[tuple[_Treatment, int | None, tuple[int, ...]], tuple[_Stretch, ...]] = {}
        self._sides: dict[frozenset[int], Side] = {}
        self._unjudged: dict[int, dict[RuleId, tuple[ResolvedRule, int]]] = {}

    def parts(self, found: ResolvedRule) -> Iterator[ResolvedRule]:
        """What is left of a rule."""
        own = self._places.get(found.rule.rule_id) if found.rule.kind == KIND else None
        groups = self._by_treatment(found.destination.members)
        if found.rule.kind == OPERATOR or (own is None and groups.keys() <= {_UNTREATED}):
            yield found
            return
        others = tuple(spec for spec in found.rule.ports if spec.protocol != TCP)
        if others:
            yield replace(found, rule=replace(found.rule, ports=others))
        tcp = tcp_ports(found.rule.ports)
        for treatment, destinations in groups.items():
            for stretches, sources in self._by_stretches(treatment, own, found.source.members).items():
                self._note(found, tcp, stretches, sources)
                sides = self._side(found, sources), self._side(found, destinations)
                for outcome, ports in _cut(tcp, tuple(map(_forgetting, stretches))).items():
                    yield _part(found, sides, outcome, ports)

    def findings(self) -> list[Diagnostic]:
        """A finding for every rule that cannot be held against somebody."""
        return [self._finding(self._meant[place], list(held.values())) for place, held in self._unjudged.items()]

    def _by_treatment(self, destinations: Iterable[int]) -> dict[_Treatment, frozenset[int]]:
        groups: dict[_Treatment, set[int]] = {}
        for destination in destinations:
            groups.setdefault(self._treatments.get(destination, _UNTREATED), set()).add(destination)
        return {treatment: frozenset(members) for treatment, members in groups.items()}

    def _by_stretches(
        self, treatment: _Treatment, own: int | None, sources: Iterable[int]
    ) -> dict[tuple[_Stretch, ...], frozenset[int]]:
        asked = [self._answer(place) for place in (*treatment.rules, *([] if own is None else [own]))]
        alike: dict[tuple[int, ...], set[int]] = {}
        for source in sources:
            alike.setdefault(tuple(answers.of.get(source, 0) for answers in asked), set()).add(source)
        groups: dict[tuple[_Stretch, ...], set[int]] = {}
        for traits, members in alike.items():
            key = (treatment, own, traits)
            if key not in self._stretches:
                self._stretches[key] = self._judge(treatment, own, min(members))
            groups.setdefault(self._stretches[key], set()).update(members)
        return {stretches: frozenset(members) for stretches, members in groups.items()}

    def _judge(self, treatment: _Treatment, own: int | None, source: int) -> tuple[_Stretch, ...]:
        judged = [(place, self._answer(place).for_caller(source)) for place in treatment.rules]
        allowed = (Span(0, PORT_MAX, True),) if own is None else self._answer(own).for_caller(source)
        begins = {span.first for _, spans in judged for span in spans} | {span.first for span in allowed}
        begins |= {first for first, _, _ in treatment.mtls}
        return tuple(
            _Stretch(first, after - 1, self._outcome(treatment, judged, allowed, first))
            for first, after in pairwise(sorted({*begins, PORT_MAX + 1}))
        )

    def _outcome(
        self,
        treatment: _Treatment,
        judged: Iterable[tuple[int, tuple[Span, ...]]],
        allowed: tuple[Span, ...],
        port: int,
    ) -> _Outcome | None:
        granted = _at(allowed, port)
        looked_at = []
        for place, spans in judged:
            truth, action = _at(spans, port), self._meant[place].policy.action
            if truth is True and action is Action.DENY:
                return None
            if truth is not False:
                looked_at.append(place)
        if granted is False:
            return None
        mtls = next(answer for first, last, answer in treatment.mtls if first <= port <= last)
        return _Outcome(granted is None or bool(looked_at), mtls, tuple(looked_at))

    def _answer(self, place: int) -> Answers[int]:
        if place not in self._answers:
            self._answers[place] = self._callers.answers(self._meant[place].condition)
        return self._answers[place]

    def _note(
        self,
        found: ResolvedRule,
        tcp: Ports,
        stretches: tuple[_Stretch, ...],
        sources: frozenset[int],
    ) -> None:
        """Remembers what cannot be judged of callers that are no workloads."""
        outsiders = sources - found.source.workloads
        if not outsiders:
            return
        for outcome in _cut(tcp, stretches):
            for place in outcome.unjudged:
                self._unjudged.setdefault(place, {}).setdefault(found.rule.rule_id, (found, min(outsiders)))

    def _finding(self, one: Meant, held: list[tuple[ResolvedRule, int]]) -> Diagnostic:
        found, outsider = held[0]
        names = {"rule": one.name, "caller": self._directory.names[outsider], "other": found.rule.qualified}
        hint = 'leave them out with `principals: ["*"]`, or say nothing of requests, addresses or providers'
        related = tuple((other.rule.loc, f"`{other.rule.qualified}` is here") for other, _ in held[:_RELATED_MAX])
        return Diagnostic("BH1308", message("BH1308", **names), one.rule.loc, hint=hint, related=related)

    def _side(self, found: ResolvedRule, members: frozenset[int]) -> Side:
        for side in (found.source, found.destination):
            if side.members == members:
                return self._sides.setdefault(members, side)
        if members not in self._sides:
            local = tuple(sorted(members & self._directory.local))
            workloads = members.intersection(self._directory.workloads.values())
            self._sides[members] = replace(found.source, members=members, local=local, workloads=workloads)
        return self._sides[members]


def _treatments(policy_set: PolicySet, directory: Directory, meant: Iterable[Meant]) -> dict[int, _Treatment]:
    """By the identity of the workload that is called; those that nothing is said of are left out."""
    selected = Selected(policy_set)
    judging: dict[QualifiedName, list[int]] = {}
    for place, one in enumerate(meant):
        if one.policy.decides and one.policy.action in (Action.DENY, Action.CUSTOM):
            for workload in selected.by(one.policy):
                judging.setdefault(workload.qualified, []).append(place)
    found = {
        directory.workloads[workload.qualified]: _Treatment(
            tuple(judging.get(workload.qualified, ())), mtls_ports(policy_set, workload)
        )
        for workload in policy_set.workloads
    }
    return {identity: treatment for identity, treatment in found.items() if treatment != _UNTREATED}


def _known(policy_set: PolicySet, directory: Directory) -> dict[int, Known]:
    """What is known of everything that can be a source."""
    networks: dict[int, list[Network]] = {}
    for classes in (directory.classes4, directory.classes6):
        for network, identity in classes.items():
            networks.setdefault(identity, []).append(network)
    callers = {identity: Known() for identity in directory.names}
    callers |= {identity: Known(networks=tuple(held)) for identity, held in networks.items()}
    # the world is whatever else there is, and who has a DNS name may have any address
    callers |= {identity: Known() for identity in (int(Identity.WORLD), *directory.named)}
    callers |= {directory.workloads[one.qualified]: known(policy_set, one) for one in policy_set.workloads}
    return callers


def _part(
    found: ResolvedRule, sides: tuple[Side, Side], outcome: _Outcome, ports: tuple[PortSpec, ...]
) -> ResolvedRule:
    """Between two sides, on some of its ports. Requests are judged where mutual TLS says whose they are."""
    by_request = outcome.requests or found.rule.by_request
    mtls = by_request or (found.rule.mtls if outcome.mtls is None else outcome.mtls)
    rule = replace(found.rule, ports=ports, mtls=mtls, requests=outcome.requests)
    return replace(found, rule=rule, source=sides[0], destination=sides[1])


def _forgetting(stretch: _Stretch) -> _Stretch:
    """A stretch without what only a finding needs."""
    return stretch if stretch.outcome is None else stretch._replace(outcome=stretch.outcome._replace(unjudged=()))


def _at(spans: Iterable[Span], port: int) -> bool | None:
    return next(span.truth for span in spans if span.first <= port <= span.last)


def _cut(tcp: Ports, stretches: tuple[_Stretch, ...]) -> Mapping[_Outcome, tuple[PortSpec, ...]]:
    """The ports that are left, by what becomes of them."""
    left: dict[_Outcome, list[tuple[int, int]]] = {}
    for first, last in tcp:
        for stretch in stretches:
            begin, end = max(first, stretch.first), min(last, stretch.last)
            if begin <= end and stretch.outcome is not None:
                left.setdefault(stretch.outcome, []).append((begin, end))
    return {outcome: tuple(port_spec(TCP, *each) for each in joined(ranges)) for outcome, ranges in left.items()}
