"""What is odd about a commit and no error: warnings that need no compiling. Errors are raised by `parse`."""

from __future__ import annotations

from collections.abc import Iterator

from bulkhead.errors import Diagnostic, Loc
from bulkhead.policy.codes import code, message
from bulkhead.policy.findings import Related, excerpt
from bulkhead.policy.model import Entity, External, Never, Peer, PolicySet, QualifiedName, Rule
from bulkhead.policy.ports import ports_overlap


def check(policy_set: PolicySet) -> tuple[Diagnostic, ...]:
    """The warnings about a commit, in the order of files and lines."""
    found = [
        finding(policy_set, "BH0505", loc, labels=peer.text)
        for peer, loc in _peers(policy_set)
        if not (peer.workloads or peer.externals or peer.entities)
    ]
    found += _undecided(policy_set)
    return tuple(sorted(found, key=lambda each: (each.loc, each.code)))


def finding(
    policy_set: PolicySet, number: str, loc: Loc, *, hint: str = "", related: Related = (), **values: object
) -> Diagnostic:
    """A finding at a place that a PolicySet knows, with the line if it can be shown."""
    sources = policy_set.sources
    files = (*sources.files, *sources.modules) if sources else ()
    content = next((file.content for file in files if file.path == loc.file), b"")
    return Diagnostic(
        code=number,
        message=message(number, **values),
        loc=loc,
        hint=hint,
        source_line=excerpt(content, loc.line),
        severity=code(number).severity,
        related=related,
    )


# --- names against addresses


def _undecided(policy_set: PolicySet) -> Iterator[Diagnostic]:
    """Rules that break a `never` if a DNS name of the one has an address of the other."""
    externals = {external.qualified: external for external in policy_set.externals}
    if not any(external.fqdn for external in externals.values()):
        return
    rules = [rule for rule in policy_set.rules if rule.source.externals or rule.destination.externals]
    for never in policy_set.nevers:
        if not (never.source.externals or never.destination.externals):
            continue
        for rule in rules:
            pair = _undecided_pair(never, rule, externals)
            if pair is not None:
                related = ((never.loc, f"`{never.policy}/{never.name}` is here"),)
                texts = {"rule": rule.qualified, "never": f"{never.policy}/{never.name}"}
                texts |= {"name": pair[0], "network": pair[1]}
                yield finding(policy_set, "BH0509", rule.loc, related=related, **texts)


def _undecided_pair(
    never: Never, rule: Rule, externals: dict[QualifiedName, External]
) -> tuple[QualifiedName, QualifiedName] | None:
    """The external of names and that of addresses, of which nobody can say whether they meet; None where it is sure."""
    if never.ports and not ports_overlap(rule.ports, never.ports):
        return None
    if _share(rule.source, never.source):
        return _unlike(rule.destination, never.destination, externals)
    if _share(rule.destination, never.destination):
        return _unlike(rule.source, never.source, externals)
    return None


def _unlike(
    one: Peer, other: Peer, externals: dict[QualifiedName, External]
) -> tuple[QualifiedName, QualifiedName] | None:
    if _share(one, other):
        return None
    for first in one.externals:
        for second in other.externals:
            if bool(externals[first].fqdn) is not bool(externals[second].fqdn):
                return (first, second) if externals[first].fqdn else (second, first)
    return None


def _share(one: Peer, other: Peer) -> bool:
    """Whether two peers have a member in common by what they name; addresses and names are not looked at."""
    entities = {*one.entities, *other.entities}
    return bool(
        set(one.workloads) & set(other.workloads)
        or set(one.externals) & set(other.externals)
        or set(one.entities) & set(other.entities)
        or (Entity.ANY in entities and (one.workloads or other.workloads))
        or (Entity.WORLD in entities and (one.externals or other.externals))
    )


def _peers(policy_set: PolicySet) -> Iterator[tuple[Peer, Loc]]:
    for rule in policy_set.rules:
        yield rule.source, rule.loc
        yield rule.destination, rule.loc
    for never in policy_set.nevers:
        yield never.source, never.loc
        yield never.destination, never.loc
    for test in policy_set.tests:
        yield test.source, test.loc
