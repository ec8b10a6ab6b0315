"""The `tests` of a policy: what must reach and what must not, judged as if every mode were enforce."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bulkhead.dataplane.resolve import Resolved, ResolvedRule, RuleIndex, Side
from bulkhead.errors import Diagnostic, Loc
from bulkhead.policy.codes import presentable
from bulkhead.policy.model import Expectation, Peer, PolicyTest, PortSpec


def check_tests(resolved: Resolved, index: RuleIndex) -> list[Diagnostic]:
    """A finding (BH0502) for each expectation that does not hold, naming a pair for which it does not.

    A peer without members would make anything hold, so it fails what is expected of it.
    """
    return [finding for test in resolved.policy_set.tests for finding in _check(resolved, index, test)]


def _check(resolved: Resolved, index: RuleIndex, test: PolicyTest) -> Iterator[Diagnostic]:
    side = resolved.directory.side
    source = side(test.source)
    for expectation in (*test.accept, *test.deny):
        destination = side(expectation.destination)
        for empty in _empty((test.source, source), (expectation.destination, destination)):
            yield failure(expectation, f"tests nothing: `{presentable(empty.text)}` has no members")
    for expectation in test.accept:
        yield from _check_accept(resolved, index, test, expectation)
    for expectation in test.deny:
        yield from _check_deny(resolved, index, test, expectation)


def _empty(*peers: tuple[Peer, Side]) -> list[Peer]:
    return [peer for peer, side in peers if not side.members]


def _check_accept(resolved: Resolved, index: RuleIndex, test: PolicyTest, wanted: Expectation) -> Iterator[Diagnostic]:
    source, destination = resolved.directory.side(test.source), resolved.directory.side(wanted.destination)
    refused = next(_refused_pairs(index, source, destination, wanted.port), None)
    if refused is not None:
        names = resolved.directory.names
        text = f"`{names[refused[0]]}` does not reach `{names[refused[1]]}` on `{wanted.port.text}`"
        yield failure(wanted, f"`{presentable(test.source.text)}` should reach `{wanted.text}`, but {text}")


def _check_deny(resolved: Resolved, index: RuleIndex, test: PolicyTest, wanted: Expectation) -> Iterator[Diagnostic]:
    source, destination = resolved.directory.side(test.source), resolved.directory.side(wanted.destination)
    for found in index.between(source, destination, (wanted.port,))[:1]:
        names = resolved.directory.names
        opener = min(names[member] for member in source.members & found.source.members)
        opened = min(names[member] for member in destination.members & found.destination.members)
        text = f"`{opener}` reaches `{opened}` by rule `{found.rule.qualified}`"
        related = ((found.rule.loc, f"`{found.rule.qualified}` is here"),)
        yield failure(
            wanted, f"`{presentable(test.source.text)}` should not reach `{wanted.text}`, but {text}", related
        )


def failure(wanted: Expectation, text: str, related: tuple[tuple[Loc, str], ...] = ()) -> Diagnostic:
    """A finding (BH0502): an expectation does not hold."""
    return Diagnostic("BH0502", f"test fails: {text}", wanted.loc, related=related)


def _refused_pairs(index: RuleIndex, source: Side, destination: Side, port: PortSpec) -> Iterator[tuple[int, int]]:
    """Pairs of members of which the first does not reach the second on every port asked for."""
    rules = index.between(source, destination, (port,))
    for opener in sorted(source.members):
        own = [found for found in rules if opener in found.source.members]
        open_questions = set(destination.members)
        for found in own:
            if covers([found], port):
                open_questions -= found.destination.members
        for opened in sorted(open_questions):
            if not covers([found for found in own if opened in found.destination.members], port):
                yield opener, opened


def covers(rules: Sequence[ResolvedRule], port: PortSpec) -> bool:
    """Whether the rules together allow every port that `port` spans."""
    spans = sorted((s.first, s.last) for found in rules for s in found.rule.ports if s.protocol == port.protocol)
    reached = port.first
    for first, last in spans:
        if first > reached:
            break
        reached = max(reached, last + 1)
    return reached > port.last
