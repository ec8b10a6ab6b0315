"""Who an endpoint is: selectors and the table that the kernel gets, against the oracle."""

from __future__ import annotations

from random import Random

from hypothesis import event, given
from hypothesis import strategies as st

from bulkhead.dataplane import reference
from bulkhead.dataplane.reference import Identified, Standing
from bulkhead.errors import Loc
from bulkhead.identity import selectors, ties
from bulkhead.policy.model import Match, Mode, PolicySet, Scope, Workload
from property import strategies
from property.strategies import Case

UIDS, GIDS = dict(strategies.USERS), dict(strategies.GROUPS)


def as_facts(host: str, endpoint: reference.Endpoint) -> selectors.Endpoint:
    return selectors.Endpoint(
        host=host,
        cgroup=endpoint.cgroup,
        exe=endpoint.exe,
        uid=endpoint.uid,
        users=(endpoint.user,) if endpoint.user else (),
        gid=endpoint.gid,
        groups=(endpoint.group,) if endpoint.group else (),
    )


def as_identified(outcome: selectors.Outcome) -> Identified:
    if isinstance(outcome, selectors.Identified):
        return Identified(Standing.WORKLOAD, (outcome.workload.qualified,))
    if isinstance(outcome, selectors.Ambiguous):
        return Identified(Standing.AMBIGUOUS, tuple(sorted(w.qualified for w in outcome.workloads)))
    return Identified(Standing.HOST)


@given(strategies.crowds())
def test_selectors_and_the_kernels_table_identify_as_the_oracle_does(case: Case) -> None:
    narrower = selectors.Narrower(case.policy_set.workloads, case.host, UIDS.get, GIDS.get)
    for endpoint in (endpoint for endpoint in case.endpoints if endpoint.attested):
        expected = reference.identify(case.policy_set, case.host, endpoint)
        classified = selectors.classify(case.policy_set.workloads, as_facts(case.host, endpoint))
        tabled = narrower.view(endpoint.cgroup).decide(endpoint.exe, endpoint.uid, endpoint.gid)
        assert as_identified(classified) == expected, endpoint
        assert as_identified(tabled) == expected, endpoint


def as_pod(pod: reference.Pod) -> selectors.Pod:
    return selectors.Pod("web-0", pod.namespace, pod.service_account, pod.labels, pod.cluster)


def as_identified_pod(outcome: selectors.Outcome) -> Identified:
    return Identified(Standing.UNKNOWN) if isinstance(outcome, selectors.Host) else as_identified(outcome)


SCOPES = st.sampled_from((None, None, Scope("prod", ""), Scope("prod", "shop"), Scope("lab", "")))
POD_MATCHES = st.one_of(
    SCOPES.flatmap(strategies.pod_matches), SCOPES.flatmap(strategies.pod_matches), strategies.matches()
)


@given(st.lists(POD_MATCHES, min_size=1, max_size=5), st.lists(strategies.pods(), min_size=5, max_size=15))
def test_pods_are_identified_as_the_oracle_does_and_no_tie_of_theirs_is_missed(
    drawn: list[Match], pods: list[reference.Pod]
) -> None:
    named = ((f"w{number}", match) for number, match in enumerate(drawn))
    workloads = tuple(Workload("p", name, match, Mode.ENFORCE, Loc("p.yaml", 1)) for name, match in named)
    policy_set = PolicySet("", "example.org", Mode.OBSERVE, workloads=workloads)
    ties_found = bool(ties.find_ties([workload for workload in workloads if workload.match.of_pods]))
    for pod in pods:
        expected = reference.identify_pod(policy_set, pod)
        event(expected.standing)
        assert as_identified_pod(selectors.classify_pod(workloads, as_pod(pod))) == expected
        assert ties_found or expected.standing is not Standing.AMBIGUOUS


@st.composite
def two_workloads(draw: st.DrawFn) -> PolicySet:
    """Two selectors that nobody has kept from tying."""
    pair = ((name, draw(strategies.matches())) for name in ("one", "two"))
    drawn = tuple(Workload("p", name, match, Mode.ENFORCE, Loc("p.yaml", 1)) for name, match in pair)
    return PolicySet("", "example.org", Mode.OBSERVE, workloads=drawn)


def _names_accounts(match: Match) -> bool:
    return bool(match.user or match.group)


@given(two_workloads(), st.integers(0, 2**32 - 1))
def test_a_tie_that_files_can_show_is_found_before_an_endpoint_shows_it(policy_set: PolicySet, seed: int) -> None:
    if ties.find_ties(policy_set.workloads):
        return
    rng = Random(seed)
    for endpoint in strategies.endpoints_of(policy_set, rng, 20):
        found = reference.identify(policy_set, rng.choice(strategies.HOSTS), endpoint)
        if found.standing is Standing.AMBIGUOUS:
            assert all(_names_accounts(workload.match) for workload in policy_set.workloads), endpoint
