"""Which workload a pod is: the order of the language, and ties that files show."""

from __future__ import annotations

import time

import pytest

from bulkhead.errors import Loc
from bulkhead.identity.selectors import (
    Ambiguous,
    Endpoint,
    Host,
    Identified,
    Narrower,
    Pod,
    classify,
    classify_pod,
    matches_pod,
)
from bulkhead.identity.ties import find_ties, may_tie
from bulkhead.policy.model import Match, Mode, Workload

POD = Pod("web-0", "shop", "web", {"app": "web", "track": "", "zone": "a"}, "prod")
SHOP = Match(namespace=("shop",))


def make(name: str, match: Match, line: int = 1) -> Workload:
    return Workload("shop", name, match, Mode.OBSERVE, Loc("a.yaml", line))


def pods(*namespace: str, account: str = "", cluster: str = "", **labels: str) -> Match:
    return Match(
        namespace=namespace,
        service_account=(account,) if account else (),
        labels=tuple(sorted(labels.items())),
        cluster=cluster,
    )


@pytest.mark.parametrize(
    ("match", "selected"),
    [
        (SHOP, True),
        (pods("sho?"), True),
        (pods("billing", "s*"), True),
        (pods("billing"), False),
        (pods("shop", account="web"), True),
        (pods("shop", account="we*"), True),
        (pods("shop", account="api"), False),
        (pods("shop", app="web", zone="a"), True),
        (pods("shop", track=""), True),
        (pods("shop", missing=""), False),
        (pods("shop", app="web", zone="b"), False),
        (pods("shop", app="we*"), False),
        (pods("shop", cluster="prod"), True),
        (pods("shop", cluster="lab"), False),
        (Match(everything=True), False),
        (Match(host=("*",), everything=True), False),
        (Match(), False),
    ],
)
def test_pods_are_selected_by_what_their_cluster_attests(match: Match, selected: bool) -> None:
    assert (matches_pod(match, POD) is not None) is selected


def test_a_question_about_no_cluster_in_particular_takes_every_scope() -> None:
    anywhere = Pod("web-0", "shop", "web", {})
    assert matches_pod(pods("shop", cluster="lab"), anywhere) is not None


FROM_LEAST_TO_MOST = [
    pods("*"),
    pods("sh*"),
    pods("shop"),
    pods("*", cluster="prod"),
    pods("shop", app="web"),
    pods("*", app="web", zone="a"),
    pods("*", account="w*"),
    pods("*", account="we*"),
    pods("*", account="web"),
    pods("shop", account="web"),
    pods("*", account="*", app="web"),
    pods("*", account="*", app="web", zone="a"),
    pods("*", account="*", app="web", zone="a", cluster="prod"),
]


@pytest.mark.parametrize("at", range(len(FROM_LEAST_TO_MOST) - 1))
def test_the_more_specific_selector_of_two_wins(at: int) -> None:
    less, more = (make(name, FROM_LEAST_TO_MOST[at + step]) for step, name in enumerate(("less", "more")))
    assert classify_pod([more, less], POD) == classify_pod([less, more], POD) == Identified(more)
    assert not may_tie(less.match, more.match)


def test_a_pod_is_one_workload_or_nobody() -> None:
    one, other = make("one", pods("shop", app="web")), make("other", pods("shop", zone="a"))
    assert classify_pod([one, other], POD) == Ambiguous((one, other))
    assert classify_pod([make("all", Match(everything=True))], POD) == Host()


def test_no_process_of_a_host_is_a_pod() -> None:
    workloads = [make("pods", pods("*"))]
    endpoint = Endpoint("node-1", "/kubepods.slice/web", "/bin/web", 0, ("root",), 0, ("root",))
    assert classify(workloads, endpoint) == Host()
    view = Narrower(workloads, "node-1", lambda _: None, lambda _: None).view("/kubepods.slice/web")
    assert (view.candidates, view.decide("/bin/web", 0, 0)) == ((), Host())


@pytest.mark.parametrize(
    ("first", "second", "tie"),
    [
        (SHOP, SHOP, True),
        (SHOP, pods("billing"), False),
        (pods("shop-*"), pods("*-shop"), True),
        (pods("shop*"), pods("*sho"), False),
        (pods("shop", app="web"), pods("shop", app="web"), True),
        (pods("shop", app="web"), pods("shop", app="api"), False),
        (pods("shop", app="web"), pods("shop", zone="a"), True),
        (pods("shop", app="web"), pods("shop", zone="a", track=""), False),
        (pods("shop", app="web", zone="a"), pods("shop", app="web", track=""), True),
        (pods("shop", app="web", zone="a"), pods("shop", app="api", track=""), False),
        (pods("shop", account="web"), pods("shop", account="api"), False),
        (pods("shop", account="web"), pods("shop", app="web"), False),
        (pods("shop", account="w*"), pods("shop", account="*b"), True),
        (pods("shop", cluster="prod"), pods("shop", cluster="lab"), False),
        (pods("shop", cluster="prod"), pods("shop", cluster="prod"), True),
        (pods("shop", cluster="prod"), pods("shop"), False),
        (pods("*"), Match(everything=True), False),
    ],
)
def test_ties_of_pairs(first: Match, second: Match, tie: bool) -> None:
    assert may_tie(first, second) is tie
    assert may_tie(second, first) is tie
    assert bool(find_ties([make("one", first), make("other", second, 2)])) is tie


def test_a_thousand_workloads_of_pods_are_compared_in_a_moment() -> None:
    workloads = [make(f"l{n}", pods("shop", app=f"app-{n}"), n) for n in range(500)]
    workloads += [make(f"a{n}", pods(f"ns-{n % 20}", account=f"sa-{n}"), n) for n in range(500)]
    workloads += [make(f"b{n}", pods("shop", app="web", version=f"v{n}"), n) for n in range(300)]
    began = time.process_time()
    assert find_ties(workloads) == []
    assert time.process_time() - began < 1
