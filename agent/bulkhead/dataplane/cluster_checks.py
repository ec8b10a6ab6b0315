"""`never` and `tests` in a cluster: held against what every policy of the commit opens, by pairs of parties.

Rules of dialects open one end each, and Deny, Pass and priorities decide between them, so that no rule breaks an
invariant on its own: what is looked at is what both ends allow. Peers without pods in the cluster hold trivially; what
there is without any cluster is checked when the commit is compiled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import product

from bulkhead.abi import Direction
from bulkhead.dataplane import points
from bulkhead.dataplane.cluster import Allowance, ResolvedCluster, native_members, resolve_cluster
from bulkhead.dataplane.cluster_inventory import Cluster
from bulkhead.dataplane.compile import RuleInfo, examine, shown
from bulkhead.dataplane.never import violation
from bulkhead.dataplane.parties import FAMILIES, Party, Standing
from bulkhead.dataplane.points import EVERYTHING, Line
from bulkhead.dataplane.policy_tests import failure
from bulkhead.errors import Diagnostic, PolicyError
from bulkhead.policy.codes import presentable
from bulkhead.policy.model import Expectation, Peer, PolicySet, PolicyTest, PortSpec


def judged_cluster(policy_set: PolicySet, cluster: Cluster, now: datetime) -> ResolvedCluster:
    """A commit in a cluster, with every check made. `now` is timezone-aware.

    Raises PolicyError with all findings: those of `compile_commit`, and broken invariants (BH0501) and failing tests
    (BH0502) in this cluster.
    """
    _, refusals = examine(policy_set, None, now)
    if refusals:
        raise PolicyError(refusals)
    resolved = resolve_cluster(policy_set, cluster, now)
    findings = cluster_findings(resolved)
    if findings:
        raise PolicyError(findings)
    return resolved


def cluster_findings(resolved: ResolvedCluster) -> tuple[Diagnostic, ...]:
    """Broken invariants (BH0501) and failing tests (BH0502) in this cluster."""
    return tuple(shown(resolved.policy_set, [*_broken(resolved), *_failing(resolved)]))


def _broken(resolved: ResolvedCluster) -> Iterator[Diagnostic]:
    """A finding at each rule that lets something through that a `never` forbids."""
    for never in resolved.policy_set.nevers:
        forbidden = _line(never.ports) if never.ports else EVERYTHING
        seen: set[int] = set()
        for source, destination in _pairs(resolved, never.source, never.destination):
            for rule in _openers(resolved, source, destination, forbidden):
                if rule.rule_id not in seen:
                    seen.add(rule.rule_id)
                    yield violation(never, rule.name, rule.loc, source.name, destination.name)


def _failing(resolved: ResolvedCluster) -> Iterator[Diagnostic]:
    """A finding for each expectation that does not hold, naming a pair for which it does not."""
    for test in resolved.policy_set.tests:
        for expectation in test.accept:
            yield from _unmet(resolved, test, expectation, should_reach=True)
        for expectation in test.deny:
            yield from _unmet(resolved, test, expectation, should_reach=False)


def _unmet(
    resolved: ResolvedCluster, test: PolicyTest, wanted: Expectation, should_reach: bool
) -> Iterator[Diagnostic]:
    asked = _line((wanted.port,))
    for source, destination in _pairs(resolved, test.source, wanted.destination):
        opened = points.common(asked, _open(resolved, source, destination))
        if opened != asked if should_reach else opened:
            ends = f"{_named(source)} {'does not reach' if should_reach else 'reaches'} {_named(destination)}"
            verb = "should reach" if should_reach else "should not reach"
            text = f"`{presentable(test.source.text)}` {verb} `{wanted.text}`, but in this cluster {ends}"
            yield failure(wanted, text)
            return


def _pairs(resolved: ResolvedCluster, source: Peer, destination: Peer) -> Iterator[tuple[Party, Party]]:
    """Members of two peers that can meet, of which one at least is a pod: nodes are not judged."""
    parties = resolved.parties
    is_source, is_destination = native_members(source), native_members(destination)
    population = Counter(party.identity for _, party in {(name, party) for (name, _), party in parties.pods.items()})
    met: set[tuple[int, int]] = set()
    for family in FAMILIES:
        present = parties.of_family(family)
        destinations = [party for party in present if is_destination(party)]
        for one, other in product(filter(is_source, present), destinations):
            # A pod reaches itself whatever policies say.
            alone = one is other and population[one.identity] == 1
            if (
                Standing.POD in (one.standing, other.standing)
                and not alone
                and (one.identity, other.identity) not in met
            ):
                met.add((one.identity, other.identity))
                yield one, other


def _halves(resolved: ResolvedCluster, source: Party, destination: Party) -> list[Allowance]:
    """What each end that is judged allows."""
    found: list[Allowance] = []
    if source.standing is Standing.POD:
        found.append(resolved.allowance(source, Direction.EGRESS, destination))
    if destination.standing is Standing.POD:
        found.append(resolved.allowance(destination, Direction.INGRESS, source))
    return found


def _open(resolved: ResolvedCluster, source: Party, destination: Party) -> Line:
    """The ports on which one reaches the other."""
    left = EVERYTHING
    for half in _halves(resolved, source, destination):
        left = points.common(left, points.joined((grant.first, grant.last) for grant in half.grants))
    return left


def _openers(resolved: ResolvedCluster, source: Party, destination: Party, forbidden: Line) -> Iterator[RuleInfo]:
    """The rules at the last end that is judged by which one reaches the other on a port that is forbidden."""
    opened = points.common(forbidden, _open(resolved, source, destination))
    if opened:
        for grant in _halves(resolved, source, destination)[-1].grants:
            if points.common(opened, ((grant.first, grant.last),)):
                yield resolved.rules[grant.rule_id]


def _line(ports: Iterable[PortSpec]) -> Line:
    return points.line((spec.protocol, spec.first, spec.last) for spec in ports)


def _named(party: Party) -> str:
    return f"`{presentable(party.name)}`"
