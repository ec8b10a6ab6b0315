"""All dialects together: each name taken once, rules numbered behind those of the native language."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from bulkhead.policy.cluster import ClusterPolicy, ClusterRule
from bulkhead.policy.findings import Findings
from bulkhead.policy.model import RuleId
from bulkhead.policy.yaml_nodes import Spot

UNNUMBERED = RuleId(0)
"""Of rules in a file that was read by itself."""


def rule_count(policies: Iterable[ClusterPolicy]) -> int:
    """How many rules they have, both directions."""
    return sum(len(policy.ingress or ()) + len(policy.egress or ()) for policy in policies)


def assemble(
    policies: Iterable[ClusterPolicy], last: int, findings_of: Callable[[str], Findings]
) -> tuple[ClusterPolicy, ...]:
    """The policies of all files, in their order, with places at the commit and rules numbered from `last` + 1."""
    numbering = _Numbering(last)
    first: dict[tuple[str, str, str], ClusterPolicy] = {}
    assembled = []
    for policy in policies:
        findings = findings_of(policy.loc.file)
        numbered = numbering.policy(policy, findings.commit)
        other = first.setdefault((policy.kind, policy.namespace, policy.name), numbered)
        if other is not numbered:
            spot = Spot(policy.loc.line, policy.loc.column, len(policy.name))
            name = f"{policy.namespace}/{policy.name}" if policy.namespace else policy.name
            findings.add("BH0401", spot, related=((other.loc, f"`{name}` is here"),), what=policy.kind, name=name)
        assembled.append(numbered)
    return tuple(assembled)


class _Numbering:
    """Gives out rule numbers, one after the other."""

    def __init__(self, last: int) -> None:
        self._last = last

    def policy(self, policy: ClusterPolicy, commit: str) -> ClusterPolicy:
        return replace(
            policy,
            ingress=self._rules(policy.ingress, commit),
            egress=self._rules(policy.egress, commit),
            loc=replace(policy.loc, commit=commit),
            unheard=tuple(replace(loc, commit=commit) for loc in policy.unheard),
        )

    def _rules(self, rules: tuple[ClusterRule, ...] | None, commit: str) -> tuple[ClusterRule, ...] | None:
        return None if rules is None else tuple(self._rule(rule, commit) for rule in rules)

    def _rule(self, rule: ClusterRule, commit: str) -> ClusterRule:
        self._last += 1
        return replace(rule, rule_id=RuleId(self._last), loc=replace(rule.loc, commit=commit))
