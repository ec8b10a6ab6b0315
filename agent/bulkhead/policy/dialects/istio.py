"""All of Istio's policies together: each name taken once, rules numbered behind those of the other languages."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from bulkhead.policy.findings import Findings
from bulkhead.policy.istio import AuthorizationPolicy, IstioPolicy
from bulkhead.policy.model import RuleId
from bulkhead.policy.yaml_nodes import Spot

OneOf = TypeVar("OneOf", bound=IstioPolicy)


def istio_rule_count(policies: Iterable[IstioPolicy]) -> int:
    """How many rules they have."""
    return sum(len(policy.rules) for policy in policies if isinstance(policy, AuthorizationPolicy))


def assemble_istio(
    policies: Iterable[IstioPolicy], last: int, findings_of: Callable[[str], Findings]
) -> tuple[IstioPolicy, ...]:
    """The policies of all files, in their order, with places at the commit and rules numbered from `last` + 1."""
    first: dict[str, IstioPolicy] = {}
    assembled: list[IstioPolicy] = []
    for policy in policies:
        findings = findings_of(policy.loc.file)
        placed = _placed(policy, findings.commit)
        if isinstance(placed, AuthorizationPolicy):
            placed = _numbered(placed, last, findings.commit)
            last += len(placed.rules)
        other = first.setdefault(placed.qualified, placed)
        if other is not placed:
            spot = Spot(policy.loc.line, policy.loc.column, len(policy.name))
            name = f"{policy.namespace}/{policy.name}"
            what = type(policy).__name__
            findings.add("BH0401", spot, related=((other.loc, f"`{name}` is here"),), what=what, name=name)
        assembled.append(placed)
    return tuple(assembled)


def _placed(policy: OneOf, commit: str) -> OneOf:
    return replace(policy, loc=replace(policy.loc, commit=commit))


def _numbered(policy: AuthorizationPolicy, last: int, commit: str) -> AuthorizationPolicy:
    rules = (
        replace(rule, rule_id=RuleId(number), loc=replace(rule.loc, commit=commit))
        for number, rule in enumerate(policy.rules, last + 1)
    )
    return replace(policy, rules=tuple(rules))
