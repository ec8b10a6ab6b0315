"""Who an endpoint is, case by case from docs/policy.md."""

from __future__ import annotations

import pytest

from bulkhead.dataplane.reference import (
    Endpoint,
    Identified,
    Pod,
    Standing,
    glob_matches,
    identify,
    identify_pod,
    identity_number,
    unit_of,
)
from bulkhead.errors import Loc
from bulkhead.policy.model import Match, Mode, PolicySet, QualifiedName, Workload

NGINX = Endpoint("/system.slice/nginx.service", "/usr/sbin/nginx", "www-data", 33, "www-data", 33)


def policy_set(**matches: Match) -> PolicySet:
    workloads = tuple(Workload("p", name, match, Mode.ENFORCE, Loc("p.yaml", 1)) for name, match in matches.items())
    return PolicySet("", "example.org", Mode.OBSERVE, workloads=workloads)


def standing(endpoint: Endpoint, **matches: Match) -> Standing:
    return identify(policy_set(**matches), "web-1", endpoint).standing


def winner(endpoint: Endpoint, **matches: Match) -> str:
    found = identify(policy_set(**matches), "web-1", endpoint)
    assert found.standing is Standing.WORKLOAD
    return found.workloads[0].removeprefix("p/")


def test_endpoint_is_host_when_no_workload_selects_it() -> None:
    assert standing(NGINX) is Standing.HOST
    assert standing(NGINX, other=Match(unit=("other.service",))) is Standing.HOST


def test_endpoint_is_unknown_when_not_attested() -> None:
    stranger = Endpoint("/", "/bin/sh", "root", 0, "root", 0, attested=False)
    assert standing(stranger, everything=Match(everything=True)) is Standing.UNKNOWN


def test_an_invalid_empty_match_selects_nothing() -> None:
    assert standing(NGINX, empty=Match()) is Standing.HOST


def test_host_limits_where_a_workload_can_be() -> None:
    matches = {"web": Match(host=("web-*",), unit=("nginx.service",))}
    assert identify(policy_set(**matches), "db-1", NGINX).standing is Standing.HOST
    assert identify(policy_set(**matches), "web-1", NGINX).standing is Standing.WORKLOAD


def test_keys_must_all_match_and_a_list_needs_one() -> None:
    assert standing(NGINX, w=Match(unit=("nginx.service",), exe=("/bin/sh",))) is Standing.HOST
    assert standing(NGINX, w=Match(unit=("a.service", "nginx.service"))) is Standing.WORKLOAD


@pytest.mark.parametrize("wanted", ["33", "www-data"])
def test_users_and_groups_match_by_name_or_number(wanted: str) -> None:
    assert standing(NGINX, w=Match(user=(wanted,))) is Standing.WORKLOAD
    assert standing(NGINX, w=Match(group=(wanted,))) is Standing.WORKLOAD


def test_more_keys_win_and_all_counts_as_none() -> None:
    one, two = Match(exe=("/usr/sbin/nginx",)), Match(user=("33",), group=("33",))
    assert winner(NGINX, one=one, two=two) == "two"
    assert winner(NGINX, all=Match(everything=True), one=Match(user=("33",))) == "one"


def test_host_is_no_key_when_keys_are_counted() -> None:
    here = Match(host=("web-1",), cgroup=("/system.slice",))
    assert winner(NGINX, here=here, unit=Match(unit=("*.service",))) == "unit"


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (Match(exe=("/usr/sbin/nginx",)), Match(unit=("nginx.service",))),
        (Match(unit=("*",)), Match(cgroup=("/system.slice/nginx.service",))),
        (Match(cgroup=("/*",)), Match(user=("www-data",))),
        (Match(user=("33",)), Match(group=("www-data",))),
        (Match(unit=("nginx.service",)), Match(unit=("nginx.servic?",))),
        (Match(unit=("nginx.*",)), Match(unit=("ngin*",))),
        (Match(host=("web-1",), everything=True), Match(host=("web-?",), everything=True)),
        (Match(host=("*",), unit=("nginx.service",)), Match(host=("*",), unit=("nginx*",))),
    ],
)
def test_the_more_specific_selector_wins_whatever_the_order(better: Match, worse: Match) -> None:
    assert winner(NGINX, better=better, worse=worse) == "better"
    assert winner(NGINX, worse=worse, better=better) == "better"


def test_the_best_of_the_matching_patterns_of_a_list_counts() -> None:
    assert winner(NGINX, list=Match(unit=("*", "nginx.service")), glob=Match(unit=("nginx*",))) == "list"


def test_equal_right_is_ambiguous_and_names_all_that_tie() -> None:
    found = identify(policy_set(a=Match(user=("eric",)), b=Match(user=("1000",))), "h", eric())
    assert found == Identified(Standing.AMBIGUOUS, (QualifiedName("p/a"), QualifiedName("p/b")))


def test_a_closer_third_workload_settles_a_tie() -> None:
    matches = {"a": Match(user=("eric",)), "b": Match(user=("1000",)), "c": Match(exe=("/bin/sh",))}
    assert winner(eric(), **matches) == "c"


def eric() -> Endpoint:
    return Endpoint("/", "/bin/sh", "eric", 1000, "eric", 1000)


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("/", ""),
        ("/init.scope", "init.scope"),
        ("/system.slice/nginx.service/worker", "nginx.service"),
        ("/system.slice/system-pg.slice/pg@14.service", "pg@14.service"),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service", "user@1000.service"),
        ("/docker/c0ffee/system.slice/nginx.service", ""),
        ("/system.slice", ""),
    ],
)
def test_the_unit_is_what_comes_first_after_the_slices(cgroup: str, unit: str) -> None:
    assert unit_of(cgroup) == unit


@pytest.mark.parametrize(
    ("pattern", "cgroup", "covered"),
    [
        ("/bay/a", "/bay/a", True),
        ("/bay/a", "/bay/a/b/c", True),
        ("/bay/a", "/bay/ab", False),
        ("/bay/*/b", "/bay/a/b/c", True),
        ("/*/b", "/bay/a/b", False),
        ("/bay/?", "/bay/ab", False),
        ("/bay/[a]", "/bay/[a]", True),
        ("/bay/[a]", "/bay/a", False),
        ("/*", "/", False),
    ],
)
def test_control_group_globs_stay_in_a_component_and_cover_the_subtree(
    pattern: str, cgroup: str, covered: bool
) -> None:
    endpoint = Endpoint(cgroup, "/bin/sh", "root", 0, "root", 0)
    assert (standing(endpoint, w=Match(cgroup=(pattern,))) is Standing.WORKLOAD) is covered


def test_only_star_and_question_mark_are_special() -> None:
    assert glob_matches("a.[b]\\x2d*", "a.[b]\\x2dc")
    assert not glob_matches("a.[b]", "a.b")
    assert glob_matches("**a*", "bab")
    assert not glob_matches("a?", "a")


def test_identity_is_the_start_of_the_hash_with_the_class_bit_cleared() -> None:
    # printf spiffe://example.org/shop/web | sha256sum
    assert identity_number("example.org", QualifiedName("shop/web")) == 0x5E99C74F


POD = Pod("prod", "shop", "web", {"app": "web", "track": ""})
SHOP = ("shop",)


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        (Match(namespace=SHOP), Standing.WORKLOAD),
        (Match(namespace=("sh*",), service_account=("we?",)), Standing.WORKLOAD),
        (Match(namespace=SHOP, labels=(("track", ""),)), Standing.WORKLOAD),
        (Match(namespace=SHOP, labels=(("zone", ""),)), Standing.UNKNOWN),
        (Match(namespace=SHOP, cluster="lab"), Standing.UNKNOWN),
        (Match(everything=True), Standing.UNKNOWN),
    ],
)
def test_a_pod_is_a_workload_or_nobody(match: Match, expected: Standing) -> None:
    assert identify_pod(policy_set(one=match), POD).standing is expected


@pytest.mark.parametrize(
    ("less", "more"),
    [
        (Match(namespace=SHOP, labels=(("app", "web"),)), Match(namespace=("*",), service_account=("*",))),
        (Match(namespace=SHOP, labels=(("app", "web"),)), Match(namespace=("*",), labels=tuple(POD.labels.items()))),
        (Match(namespace=SHOP), Match(namespace=("*",), cluster="prod")),
        (Match(namespace=("sh*",)), Match(namespace=("*", "shop"))),
    ],
)
def test_the_most_specific_selector_of_a_pod_wins(less: Match, more: Match) -> None:
    assert identify_pod(policy_set(less=less, more=more), POD).workloads == ("p/more",)
    assert identify_pod(policy_set(one=more, other=more), POD).standing is Standing.AMBIGUOUS


def test_no_selector_of_pods_selects_a_process() -> None:
    assert standing(NGINX, pods=Match(namespace=("*",))) is Standing.HOST
