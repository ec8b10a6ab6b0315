"""`never`: no rule may let any member of one peer reach any member of another. Checked exactly, at compile time."""

from __future__ import annotations

from bulkhead.dataplane.resolve import Resolved, ResolvedRule, RuleIndex
from bulkhead.errors import Diagnostic, Loc
from bulkhead.policy.codes import presentable
from bulkhead.policy.model import Never, QualifiedName


def check_nevers(resolved: Resolved, index: RuleIndex) -> list[Diagnostic]:
    """A finding (BH0501) at each rule that breaks a `never`, with the place of the `never` related to it.

    Exceptions count like any rule while they last. Externals meet where they share an address.
    """
    side = resolved.directory.side
    return [
        _finding(resolved, never, found)
        for never in resolved.policy_set.nevers
        for found in index.between(side(never.source), side(never.destination), never.ports or None)
    ]


def _finding(resolved: Resolved, never: Never, found: ResolvedRule) -> Diagnostic:
    side, names = resolved.directory.side, resolved.directory.names
    source = min(names[member] for member in found.source.members & side(never.source).members)
    destination = min(names[member] for member in found.destination.members & side(never.destination).members)
    return violation(never, found.rule.qualified, found.rule.loc, source, destination)


def violation(never: Never, rule: QualifiedName, loc: Loc, source: str, destination: str) -> Diagnostic:
    """A finding (BH0501): a rule lets one reach the other."""
    forbidden = f"`{never.policy}/{never.name}`"
    text = f"rule `{rule}` lets {_named(source)} reach {_named(destination)}, which {forbidden} forbids"
    label = f"{forbidden} is here" + (f": {presentable(never.why)}" if never.why else "")
    return Diagnostic("BH0501", text, loc, related=((never.loc, label),))


def _named(name: str) -> str:
    return f"`{presentable(name)}`"
