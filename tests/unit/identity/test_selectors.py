"""Which workload an endpoint is, and that the agent's two-step answer is the same."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bulkhead.abi import Capacity, Need
from bulkhead.errors import Loc
from bulkhead.identity.selectors import (
    OTHER,
    Ambiguous,
    Endpoint,
    Host,
    Identified,
    Narrower,
    classify,
    matches,
    narrow,
    unit_of,
)
from bulkhead.policy.model import Match, Mode, Workload

USERS = {"www": 33, "data": 33, "bob": 1000}
GROUPS = {"www": 33, "staff": 50}

NGINX = Endpoint("web-1", "/system.slice/nginx.service", "/usr/sbin/nginx", 33, ("www",), 33, ("www",))


def workload(name: str, **match: object) -> Workload:
    return Workload("shop", name, Match(**match), Mode.ENFORCE, Loc("a.yaml", 1))


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("/system.slice/nginx.service", "nginx.service"),
        ("/system.slice/system-postgresql.slice/postgresql@16-main.service", "postgresql@16-main.service"),
        ("/user.slice/user-0.slice/user@0.service/app.slice/nginx.service", "user@0.service"),
        ("/user.slice/user-0.slice/session-3.scope", "session-3.scope"),
        ("/docker/4f1c/nginx.service", None),
        ("/system.slice", None),
        ("/", None),
        ("/nginx.service/deeper", "nginx.service"),
    ],
)
def test_unit_is_what_comes_first_after_the_slices(path: str, unit: str | None) -> None:
    assert unit_of(path) == unit


@pytest.mark.parametrize(
    ("match", "selects"),
    [
        ({"unit": ("nginx.service",)}, True),
        ({"unit": ("ng*.service",)}, True),
        ({"unit": ("ng?.service",)}, False),
        ({"unit": ("nginx_service",)}, False),
        ({"unit": ("apache.service", "nginx.service")}, True),
        ({"cgroup": ("/system.slice",)}, True),
        ({"cgroup": ("/system",)}, False),
        ({"cgroup": ("/",)}, True),
        ({"cgroup": ("/*",)}, True),
        ({"cgroup": ("/*.service",)}, False),
        ({"cgroup": ("/system.slice/nginx.service/worker",)}, False),
        ({"exe": ("/usr/sbin/nginx",)}, True),
        ({"exe": ("/usr/sbin/*",)}, False),
        ({"user": ("www",)}, True),
        ({"user": ("33",)}, True),
        ({"user": ("033",)}, False),
        ({"group": ("staff",)}, False),
        ({"everything": True}, True),
        ({"everything": True, "host": ("db-*",)}, False),
        ({"unit": ("nginx.service",), "user": ("bob",)}, False),
        ({}, False),
    ],
)
def test_match_selects_what_its_keys_say(match: dict[str, object], selects: bool) -> None:
    assert (matches(Match(**match), NGINX) is not None) is selects


def test_nothing_unknown_matches_a_key_that_asks_for_it() -> None:
    bare = Endpoint("web-1", "/system.slice/nginx.service")
    assert matches(Match(exe=("",)), bare) is None
    assert matches(Match(user=("0",)), bare) is None
    assert matches(Match(unit=("*",)), Endpoint("web-1", "/")) is None


def test_account_named_like_a_number_is_not_that_number() -> None:
    assert matches(Match(user=("0",)), Endpoint("web-1", "/", uid=1000, users=("0",))) is None


def test_glob_with_many_stars_is_matched_without_backtracking() -> None:
    began = time.process_time()
    pattern = "*a" * 40 + "b.service"
    assert matches(Match(unit=(pattern,)), Endpoint("h", "/" + "a" * 200 + ".service")) is None
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("stronger", "weaker"),
    [
        ({"unit": ("*",), "user": ("www",)}, {"exe": ("/usr/sbin/nginx",)}),
        ({"exe": ("/usr/sbin/nginx",)}, {"unit": ("nginx.service",)}),
        ({"unit": ("*",)}, {"cgroup": ("/system.slice/nginx.service",)}),
        ({"cgroup": ("/",)}, {"user": ("www",)}),
        ({"user": ("33",)}, {"group": ("www",)}),
        ({"group": ("33",)}, {"everything": True}),
        ({"unit": ("nginx.service",)}, {"unit": ("nginx.servic*",)}),
        ({"unit": ("nginx.servic*",)}, {"unit": ("nginx*",)}),
        ({"unit": ("nginx.service",), "host": ("web-1",)}, {"unit": ("nginx.service",), "host": ("web-*",)}),
        ({"everything": True, "host": ("web-*",)}, {"everything": True}),
        ({"unit": ("*", "nginx.service")}, {"unit": ("nginx.*",)}),
    ],
)
def test_more_specific_selector_wins(stronger: dict[str, object], weaker: dict[str, object]) -> None:
    a, b = workload("a", **stronger), workload("b", **weaker)
    assert classify([a, b], NGINX) == classify([b, a], NGINX) == Identified(a)


def test_equal_selectors_make_an_endpoint_ambiguous() -> None:
    a, b = workload("a", unit=("ngin*.service",)), workload("b", unit=("*ginx.service",))
    assert classify([a, b], NGINX) == Ambiguous((a, b))


def test_endpoint_without_candidate_is_the_host() -> None:
    assert classify([workload("a", unit=("api.service",))], NGINX) == Host()


def test_view_needs_nothing_when_the_control_group_settles_it() -> None:
    web, bob = workload("web", unit=("nginx.service",), cgroup=("/",)), workload("bob", user=("bob",))
    view = narrow([web, bob], "web-1", NGINX.cgroup, USERS.get, GROUPS.get)
    assert view.needs == Need(0)
    assert view.table == {(OTHER, OTHER, OTHER): Identified(web)}


def test_view_names_exactly_the_values_that_decide() -> None:
    web = workload("web", unit=("nginx.service",))
    backup = workload("backup", unit=("nginx.service",), exe=("/usr/bin/backup",))
    view = narrow([web, backup], "web-1", NGINX.cgroup, USERS.get, GROUPS.get)
    assert view.needs == Need.EXECUTABLE
    assert view.table == {
        (OTHER, OTHER, OTHER): Identified(web),
        ("/usr/bin/backup", OTHER, OTHER): Identified(backup),
    }


def test_unknown_user_name_matches_nothing() -> None:
    view = narrow([workload("a", user=("nobody-here",))], "h", "/", USERS.get, GROUPS.get)
    assert view.needs == Need(0)
    assert view.decide("/bin/sh", 33, 33) == Host()


def test_table_beyond_the_kernels_is_ambiguous_as_a_whole() -> None:
    by_exe = [workload(f"e{n}", exe=(f"/bin/{n}",)) for n in range(300)]
    by_user = [workload(f"u{n}", user=(str(n),)) for n in range(300)]
    view = narrow([*by_exe, *by_user], "h", "/", USERS.get, GROUPS.get)
    assert Capacity.SUBJECTS < 301 * 301
    assert isinstance(view.decide("/bin/1", 1, 1), Ambiguous)


UNITS = st.sampled_from(["a.service", "b.service", "*.service", "a*", "?.service", "c.scope"])
PATHS = ["/", "/a.service", "/x.slice/a.service", "/x.slice/b.service/sub", "/x.slice", "/c/a.service", "/c.scope"]
CGROUPS = st.sampled_from(["/", "/x.slice", "/*/a.service", "/x.slice/*", "/c", "/?.slice/b.service/sub"])
EXES = st.sampled_from(["/bin/a", "/bin/b"])
NAMES = st.sampled_from(["www", "data", "bob", "33", "1000", "nobody-here"])


def some(values: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(values, max_size=2, unique=True).map(tuple)


MATCHES = st.builds(
    Match,
    host=some(st.sampled_from(["h1", "h*", "g"])),
    cgroup=some(CGROUPS),
    unit=some(UNITS),
    exe=some(EXES),
    user=some(NAMES),
    group=some(NAMES),
)


@settings(max_examples=150)
@given(
    st.lists(MATCHES, max_size=5),
    st.sampled_from(PATHS),
    st.sampled_from(["/bin/a", "/bin/b", "/bin/c", None]),
    st.sampled_from([33, 1000, 7]),
    st.sampled_from([33, 50, 7]),
)
def test_narrowed_answer_is_the_classified_one(
    found: list[Match], path: str, exe: str | None, uid: int, gid: int
) -> None:
    workloads = [Workload("p", f"w{n}", match, Mode.OBSERVE, Loc("a", n)) for n, match in enumerate(found)]
    users = tuple(name for name, number in USERS.items() if number == uid)
    groups = tuple(name for name, number in GROUPS.items() if number == gid)
    view = narrow(workloads, "h1", path, USERS.get, GROUPS.get)
    expected = classify(workloads, Endpoint("h1", path, exe, uid, users, gid, groups))
    assert view.decide(exe, uid, gid) == expected


def test_ten_thousand_control_groups_are_narrowed_in_a_second() -> None:
    workloads = [workload(f"w{n}", unit=(f"app-{n}@*.service",)) for n in range(800)]
    workloads += [workload(f"x{n}", cgroup=(f"/batch.slice/job-{n}-*",), user=("www",)) for n in range(200)]
    paths = [f"/system.slice/app-{n % 800}@{n}.service" for n in range(8000)]
    paths += [f"/batch.slice/job-{n % 200}-{n}/task" for n in range(2000)]
    began = time.process_time()
    narrower = Narrower(workloads, "h", USERS.get, GROUPS.get)
    views = [narrower.view(path) for path in paths]
    assert time.process_time() - began < 1
    assert views[805].decide(None, None, None) == Identified(workloads[5])
    assert views[8001].decide(None, 33, None) == Identified(workloads[801])
    assert views[1] is views[801]
