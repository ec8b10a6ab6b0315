"""What is odd about Istio's policies: allowed by them, and most likely not meant, or not known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property

from bulkhead.dataplane.istio import Meant, Selected, Workloads, in_force, meant_rules, mtls_ports
from bulkhead.dataplane.istio_truth import answers_about_strangers, asks_requests, names_ports
from bulkhead.dataplane.resolve import Resolved
from bulkhead.errors import Diagnostic
from bulkhead.policy.check import finding
from bulkhead.policy.istio import ROOT_NAMESPACE, Action, AuthorizationPolicy, IstioPolicy, PeerAuthentication
from bulkhead.policy.model import Entity, PolicySet, QualifiedName, Rule, Workload
from bulkhead.policy.ports import TCP


def istio_lint(policy_set: PolicySet, resolved: Resolved | None) -> Iterator[Diagnostic]:
    """All findings about them. Without `resolved`, a commit that is refused, those that need it are not looked for."""
    if policy_set.istio:
        yield from _Linter(policy_set, resolved).findings()


class _Linter:
    """What is known of one commit."""

    def __init__(self, policy_set: PolicySet, resolved: Resolved | None) -> None:
        self._policy_set = policy_set
        self._resolved = resolved
        self._selected = Selected(policy_set)
        self._workloads = Workloads(policy_set)

    def findings(self) -> Iterator[Diagnostic]:
        """Policy by policy, then rule by rule."""
        for policy in self._policy_set.istio:
            selected = self._selected.by(policy)
            if not selected:
                hint = "a namespace is the name of a native policy, and workloads carry the labels"
                yield self._about("BH1321", policy, hint)
            elif isinstance(policy, AuthorizationPolicy):
                yield from self._authorization(policy, selected)
            else:
                yield from self._peer_authentication(policy, selected)
        for one in meant_rules(self._policy_set):
            selected = self._selected.by(one.policy)
            if selected:
                yield from self._rule(one, selected)

    def _authorization(self, policy: AuthorizationPolicy, selected: Iterable[Workload]) -> Iterator[Diagnostic]:
        if policy.action is not Action.ALLOW and not policy.rules:
            yield self._about("BH1327", policy)
        if policy.action is Action.ALLOW and not policy.dry_run:
            if not policy.rules:
                yield from self._closing(policy, selected)
            return
        if policy.namespace == ROOT_NAMESPACE:
            return
        closed = [one for one in selected if one.qualified not in self._opening and one.qualified not in self._closed]
        if closed:
            yield self._about("BH1323", policy, "add an ALLOW policy, or a native rule", name=_named(closed))

    def _closing(self, policy: AuthorizationPolicy, selected: Iterable[Workload]) -> Iterator[Diagnostic]:
        """An ALLOW without rules is written to close."""
        opened = next((one for one in selected if one.qualified in self._opening), None)
        if opened is not None:
            rule = self._opening[opened.qualified]
            yield finding(
                self._policy_set,
                "BH1329",
                policy.loc,
                hint="write `action: DENY` and `rules: [{}]`",
                related=((rule.loc, f"`{rule.qualified}` is here"),),
                policy=policy.qualified,
                rule=rule.qualified,
                name=opened.qualified,
            )

    @cached_property
    def _opening(self) -> dict[QualifiedName, Rule]:
        """The first rule that opens TCP of a workload to anybody."""
        found: dict[QualifiedName, Rule] = {}
        for rule in self._policy_set.rules:
            if any(spec.protocol == TCP for spec in rule.ports):
                everybody = Entity.ANY in rule.destination.entities
                named = (
                    (one.qualified for one in self._policy_set.workloads) if everybody else rule.destination.workloads
                )
                for name in named:
                    found.setdefault(name, rule)
        return found

    @cached_property
    def _closed(self) -> frozenset[QualifiedName]:
        """The workloads that some ALLOW policy selects: whoever wrote it thought of who may call."""
        allowing = (
            policy
            for policy in self._policy_set.istio
            if isinstance(policy, AuthorizationPolicy) and policy.action is Action.ALLOW and not policy.dry_run
        )
        return frozenset(one.qualified for policy in allowing for one in self._selected.by(policy))

    def _peer_authentication(self, policy: PeerAuthentication, selected: Iterable[Workload]) -> Iterator[Diagnostic]:
        scopes = {one.qualified: in_force(self._policy_set, one) for one in selected}
        heard = [one for one in selected if policy in scopes[one.qualified]]
        plain = [one for one in heard if any(answer is False for _, _, answer in mtls_ports(self._policy_set, one))]
        if plain:
            owners = (one.owner for one in self._policy_set.policies if one.name == policy.namespace)
            owner = next(owners, "") or "nobody"
            yield self._about("BH1326", policy, "ask for STRICT", name=_named(plain), owner=owner)
        unheard = [one for one in selected if policy not in scopes[one.qualified]]
        if unheard:
            others = scopes[unheard[0].qualified]
            same = (
                one for one in others if (one.namespace, bool(one.labels)) == (policy.namespace, bool(policy.labels))
            )
            name, other = _named(unheard), next(same).qualified
            yield self._about("BH1328", policy, "remove one of them", name=name, other=other)

    def _rule(self, one: Meant, selected: Iterable[Workload]) -> Iterator[Diagnostic]:
        if not self._workloads.possible(one) and not _is_about_strangers(one):
            hint = "compare with the SPIFFE IDs of `bulkhead identity ls`"
            yield finding(self._policy_set, "BH1322", one.rule.loc, hint=hint, rule=one.name)
        elif one.policy.decides and asks_requests(one.condition) and not names_ports(one.condition):
            hint, name = "name the `ports` that HTTP is spoken on", _named(selected)
            yield finding(self._policy_set, "BH1324", one.rule.loc, hint=hint, rule=one.name, name=name)
        elif not one.policy.decides and self._resolved is not None:
            unseen = [each for each in selected if each.qualified not in self._looked_at]
            if unseen:
                yield finding(self._policy_set, "BH1325", one.rule.loc, rule=one.name, name=_named(unseen))

    @cached_property
    def _looked_at(self) -> frozenset[QualifiedName]:
        """The workloads some of whose requests are judged."""
        if self._resolved is None:
            return frozenset()
        judged = (found.destination.workloads for found in self._resolved.rules if found.rule.by_request)
        identities = frozenset[int]().union(*judged)
        return frozenset(
            name for name, identity in self._resolved.directory.workloads.items() if identity in identities
        )

    def _about(self, number: str, policy: IstioPolicy, hint: str = "", **values: str) -> Diagnostic:
        shown = {"policy": policy.qualified, **values}
        return finding(self._policy_set, number, policy.loc, hint=hint, related=(), **shown)


def _is_about_strangers(one: Meant) -> bool:
    """Whether it may match who has no SVID, which an ALLOW cannot open to."""
    answers = answers_about_strangers(one.condition)
    return one.policy.action is not Action.ALLOW and any(span.truth is not False for span in answers)


def _named(workloads: Iterable[Workload]) -> str:
    """The first of them, and how many more there are."""
    first, *rest = (workload.qualified for workload in workloads)
    return f"`{first}` and {len(rest)} more" if rest else f"`{first}`"
