"""`never`: a commit is refused for exactly those rules of which the oracle can show a forbidden conversation."""

from __future__ import annotations

from itertools import product

from hypothesis import event, given, settings

from bulkhead.dataplane.compile import compile_commit
from bulkhead.dataplane.reference import Remote, in_force, is_member, opens_port
from bulkhead.errors import Diagnostic, PolicyError
from bulkhead.policy.model import Never, Peer, PolicySet, PortSpec, Rule
from property import strategies
from property.strategies import NOW, Probes


def common_ends(policy_set: PolicySet, one: Peer, other: Peer) -> bool:
    """Whether some end belongs to both peers. Sets of prefixes that meet also meet at a boundary of one of them."""
    ends: list[Remote] = [*Probes.of(policy_set, "").remote, *strategies.dns_names(policy_set)]
    return any(is_member(policy_set, one, end) and is_member(policy_set, other, end) for end in ends)


def common_ports(opened: tuple[PortSpec, ...], forbidden: tuple[PortSpec, ...]) -> bool:
    """Whether some port is in both. Ranges that meet also meet where one of them starts."""
    return not forbidden or any(
        opens_port(opened, spec.protocol, spec.first) and opens_port(forbidden, spec.protocol, spec.first)
        for spec in (*opened, *forbidden)
    )


def breaks(policy_set: PolicySet, rule: Rule, never: Never) -> bool:
    return (
        in_force(rule, NOW)
        and common_ends(policy_set, rule.source, never.source)
        and common_ends(policy_set, rule.destination, never.destination)
        and common_ports(rule.ports, never.ports)
    )


def findings(policy_set: PolicySet) -> tuple[Diagnostic, ...]:
    try:
        compile_commit(policy_set, None, NOW)
    except PolicyError as error:
        return error.diagnostics
    return ()


@settings(max_examples=settings().max_examples // 2)
@given(strategies.forbidding_sets())
def test_a_commit_is_refused_for_exactly_the_rules_that_break_a_never(policy_set: PolicySet) -> None:
    broken = {
        (rule.loc, never.loc)
        for rule, never in product(policy_set.rules, policy_set.nevers)
        if breaks(policy_set, rule, never)
    }
    found = findings(policy_set)
    assert {diagnostic.code for diagnostic in found} <= {"BH0501"}
    assert {(diagnostic.loc, loc) for diagnostic in found for loc, _ in diagnostic.related} == broken
    event(f"breaks: {min(len(broken), 3)}")
