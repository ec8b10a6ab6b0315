"""The `tests` of a policy: what must reach and what must not, judged as if every mode were enforce."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import product

from bulkhead.dataplane.authorizations import Authorizations
from bulkhead.dataplane.requests import Authorization
from bulkhead.dataplane.requests_reference import Request, judge
from bulkhead.dataplane.resolve import Resolved, ResolvedRule, RuleIndex, Side
from bulkhead.errors import Diagnostic, Loc
from bulkhead.identity.registry import svid_template
from bulkhead.policy.codes import presentable
from bulkhead.policy.model import Expectation, Peer, PolicyTest, PortSpec
from bulkhead.policy.spiffe import HOST


def check_tests(resolved: Resolved, index: RuleIndex) -> list[Diagnostic]:
    """A finding (BH0502) for each expectation that does not hold, naming a pair for which it does not.

    A peer without members would make anything hold, so it fails what is expected of it.
    """
    requests = _Requests(resolved)
    return [finding for test in resolved.policy_set.tests for finding in _check(resolved, index, requests, test)]


def _check(resolved: Resolved, index: RuleIndex, requests: _Requests, test: PolicyTest) -> Iterator[Diagnostic]:
    side = resolved.directory.side
    source = side(test.source)
    for expectation in (*test.accept, *test.deny):
        destination = side(expectation.destination)
        for empty in _empty((test.source, source), (expectation.destination, destination)):
            yield failure(expectation, f"tests nothing: `{presentable(empty.text)}` has no members")
    for expectation in test.accept:
        yield from _check_accept(resolved, index, test, expectation)
        if expectation.method:
            yield from requests.check_accept(test, expectation)
    for expectation in test.deny:
        if expectation.method:
            yield from requests.check_deny(index, test, expectation)
        else:
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


class _Requests:
    """Expectations of one request. What is asked of Rego is taken as allowed: its answer is not in the rules."""

    def __init__(self, resolved: Resolved) -> None:
        self._resolved = resolved
        self._names = resolved.directory.names
        self._known: dict[int, Authorization] = {}

    def check_accept(self, test: PolicyTest, wanted: Expectation) -> Iterator[Diagnostic]:
        """A finding for a pair of which the first may not request it."""
        for source, destination in self._pairs(test, wanted):
            if not self._passes(source, destination, wanted):
                text = f"of `{self._names[destination]}` it is refused to `{self._names[source]}`"
                yield failure(wanted, f"`{presentable(test.source.text)}` should get `{wanted.text}`, but {text}")
                return

    def check_deny(self, index: RuleIndex, test: PolicyTest, wanted: Expectation) -> Iterator[Diagnostic]:
        """A finding for a pair of which the first reaches the second and may request it."""
        side = self._resolved.directory.side
        rules = index.between(side(test.source), side(wanted.destination), (wanted.port,))
        for source, destination in self._pairs(test, wanted):
            reaching = [one for one in rules if source in one.source.members and destination in one.destination.members]
            if reaching and self._passes(source, destination, wanted):
                text = f"`{self._names[source]}` gets it of `{self._names[destination]}`"
                related = ((reaching[0].rule.loc, f"`{reaching[0].rule.qualified}` is here"),)
                yield failure(
                    wanted, f"`{presentable(test.source.text)}` should not get `{wanted.text}`, but {text}", related
                )
                return

    def _pairs(self, test: PolicyTest, wanted: Expectation) -> Iterator[tuple[int, int]]:
        side = self._resolved.directory.side
        return product(sorted(side(test.source).members), sorted(side(wanted.destination).members))

    def _passes(self, source: int, destination: int, wanted: Expectation) -> bool:
        """Whether a request that reaches its workload is let through. Nobody looks at those of strangers."""
        if source not in self._callers or destination not in self._callers:
            return True
        if destination not in self._known:
            self._known[destination] = self._authorizations.of(destination)
        judged = self._known[destination]
        if not any(first <= wanted.port.first <= last for first, last in judged.ports):
            return True
        request = Request(self._callers[source], wanted.port.first, wanted.method, wanted.path)
        return judge(judged, request, self._resolved.now.timestamp())[0]

    @cached_property
    def _authorizations(self) -> Authorizations:
        return Authorizations(self._resolved)

    @cached_property
    def _callers(self) -> dict[int, str]:
        """A SPIFFE ID of each workload, on some node."""
        policy_set, numbers = self._resolved.policy_set, self._resolved.directory.workloads
        templates = ((one, svid_template(policy_set.trust_domain, one)) for one in policy_set.workloads)
        return {numbers[one.qualified]: template.replace(HOST, "node") for one, template in templates}


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
