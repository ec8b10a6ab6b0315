"""What is odd about a commit and no error: warnings that need no compiling. Errors are raised by `parse`."""

from __future__ import annotations

from collections.abc import Iterator

from bulkhead.errors import Diagnostic, Loc
from bulkhead.policy.codes import code, message
from bulkhead.policy.findings import Related, excerpt
from bulkhead.policy.model import Peer, PolicySet


def check(policy_set: PolicySet) -> tuple[Diagnostic, ...]:
    """The warnings about a commit, in the order of files and lines."""
    found = [
        finding(policy_set, "BH0505", loc, labels=peer.text)
        for peer, loc in _peers(policy_set)
        if not (peer.workloads or peer.externals or peer.entities)
    ]
    return tuple(sorted(found, key=lambda each: (each.loc, each.code)))


def finding(
    policy_set: PolicySet, number: str, loc: Loc, *, hint: str = "", related: Related = (), **values: object
) -> Diagnostic:
    """A finding at a place that a PolicySet knows, with the line if it can be shown."""
    files = policy_set.sources.files if policy_set.sources else ()
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


def _peers(policy_set: PolicySet) -> Iterator[tuple[Peer, Loc]]:
    for rule in policy_set.rules:
        yield rule.source, rule.loc
        yield rule.destination, rule.loc
    for never in policy_set.nevers:
        yield never.source, never.loc
        yield never.destination, never.loc
    for test in policy_set.tests:
        yield test.source, test.loc
