"""Ties are found exactly: none is missed, and no pair is refused that no endpoint can bear out."""

from __future__ import annotations

import time
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bulkhead.errors import Loc
from bulkhead.identity.globs import Domain, compile_glob, may_intersect, shared_closeness
from bulkhead.identity.selectors import Endpoint, matches
from bulkhead.identity.ties import find_ties, may_tie
from bulkhead.policy.model import Match, Mode, Workload

PATTERNS = st.text("ab*?", min_size=1, max_size=4)
TEXTS = ["".join(chars) for size in range(1, 7) for chars in product("abc", repeat=size)]


def best(patterns: list[str], text: str) -> tuple[int, int] | None:
    return max((compile_glob(p).closeness for p in patterns if compile_glob(p).matches(text)), default=None)


@settings(max_examples=60, deadline=None)
@given(st.lists(PATTERNS, min_size=1, max_size=2), st.lists(PATTERNS, min_size=1, max_size=2))
def test_shared_closeness_is_what_texts_bear_out(first: list[str], second: list[str]) -> None:
    assert may_intersect(first[0], second[0]) is any(best([first[0]], t) and best([second[0]], t) for t in TEXTS)
    pairs = ((best(first, text), best(second, text)) for text in TEXTS)
    assert shared_closeness(tuple(first), tuple(second), Domain()) == {
        (a, b) for a, b in pairs if a is not None and b is not None
    }


PATH_PATTERNS = st.lists(st.sampled_from(["a", "b", "*", "?", "a*"]), max_size=3).map(lambda c: "/" + "/".join(c))
PATHS = ["".join(f"/{c}" for c in parts) for size in range(4) for parts in product(["a", "b", "ab", "ca"], repeat=size)]


@settings(max_examples=60, deadline=None)
@given(PATH_PATTERNS, PATH_PATTERNS)
def test_subtrees_intersect_when_some_path_is_in_both(first: str, second: str) -> None:
    a, b = compile_glob(first, subtree=True), compile_glob(second, subtree=True)
    expected = any(a.matches(path) and b.matches(path) for path in PATHS)
    assert may_intersect(first, second, subtree=True) is expected
    assert bool(shared_closeness((first,), (second,), Domain(subtree=True))) is expected


def test_cautious_answer_is_given_beyond_the_limit() -> None:
    # Remembering which of the last twenty characters was an `a` takes a million states.
    first, second = ("*a" + "?" * 20, "ab" * 10), ("*b" + "?" * 19,)
    assert shared_closeness(first, second, Domain()) == {((0, 1), (0, 1))}


@pytest.mark.parametrize(
    ("first", "second", "tie"),
    [
        (Match(unit=("nginx.service",)), Match(unit=("nginx.service",)), True),
        (Match(unit=("nginx.service",)), Match(unit=("api.service",)), False),
        (Match(unit=("nginx*.service",)), Match(unit=("*nginx.service",)), True),
        (Match(unit=("nginx*.service",)), Match(unit=("*proxy.service",)), True),
        (Match(unit=("nginxab*.service",)), Match(unit=("*nginx.service",)), False),
        (Match(unit=("ngin?.service",)), Match(unit=("nginx.service",)), False),
        (Match(unit=("a*",)), Match(unit=("*c",)), False),
        (Match(unit=("a?", "ab")), Match(unit=("?b",)), False),
        (Match(unit=("a.service",)), Match(cgroup=("/system.slice/a.service",)), False),
        (Match(unit=("a.service",), host=("web-*",)), Match(unit=("a.service",), host=("db-*",)), False),
        (Match(unit=("a.service",), host=("web-*",)), Match(unit=("a.service",)), False),
        (Match(unit=("a.service",), host=("*",)), Match(unit=("a.service",)), True),
        (Match(unit=("a.service",), host=("w-1",)), Match(unit=("a.service",)), False),
        (Match(unit=("a.servic?",), host=("w",)), Match(unit=("a.service",)), True),
        (Match(unit=("a.servic?",), host=("ww",)), Match(unit=("a.service",)), False),
        (Match(unit=("aa*",), host=("w*",)), Match(unit=("a*",), host=("ww*",)), True),
        (Match(cgroup=("/a",)), Match(cgroup=("/a/b",)), False),
        (Match(cgroup=("/a/*",)), Match(cgroup=("/*/b",)), True),
        (Match(cgroup=("/a/*",)), Match(cgroup=("/b/*",)), False),
        (Match(exe=("/bin/a",)), Match(exe=("/bin/a", "/bin/b")), True),
        (Match(exe=("/bin/a",)), Match(exe=("/bin/b",)), False),
        (Match(user=("www",)), Match(user=("33",)), False),
        (Match(everything=True), Match(everything=True), True),
        (Match(everything=True, host=("web-*",)), Match(everything=True, host=("*-web",)), True),
        (Match(everything=True, host=("web-*",)), Match(everything=True), False),
        (Match(), Match(), False),
    ],
)
def test_ties_of_pairs(first: Match, second: Match, tie: bool) -> None:
    assert may_tie(first, second) is tie
    assert may_tie(second, first) is tie


UNITS = ["a.scope", "ab.scope", "b.scope", "ba.scope", "aab.scope"]
HOSTS = ["a", "b", "ab", "ba"]
UNIT_GLOBS = st.lists(st.sampled_from(["a*", "*b.scope", "?.scope", "a.scope", "*"]), min_size=1, max_size=2)
HOST_GLOBS = st.lists(st.sampled_from(["a", "a*", "*b", "?"]), max_size=2)
MATCHES = st.builds(lambda unit, host: Match(unit=tuple(unit), host=tuple(host)), UNIT_GLOBS, HOST_GLOBS)


@settings(max_examples=100, deadline=None)
@given(MATCHES, MATCHES)
def test_no_tie_that_an_endpoint_shows_is_missed(first: Match, second: Match) -> None:
    endpoints = [Endpoint(host, f"/{unit}") for host in HOSTS for unit in UNITS]
    scores = [(matches(first, endpoint), matches(second, endpoint)) for endpoint in endpoints]
    if any(a is not None and a == b for a, b in scores):
        assert may_tie(first, second)


def make(name: str, match: Match, line: int) -> Workload:
    return Workload("shop", name, match, Mode.OBSERVE, Loc("a.yaml", line))


def test_finding_names_both_workloads_and_both_lines() -> None:
    workloads = [make("b", Match(unit=("x*.service",)), 9), make("a", Match(unit=("*x.service",)), 4)]
    (finding,) = find_ties(workloads)
    assert finding.code == "BH0601"
    assert finding.loc.line == 9
    assert finding.related[0][0].line == 4
    assert "`shop/a`" in finding.message
    assert "`shop/b`" in finding.message


def test_thousand_workloads_are_compared_in_a_moment() -> None:
    workloads = [make(f"u{n}", Match(unit=(f"app-{n}.service",)), n) for n in range(400)]
    workloads += [make(f"t{n}", Match(unit=("db@*.service",), host=(f"db-{n}-*",)), n) for n in range(400)]
    workloads += [make(f"e{n}", Match(unit=("db@*.service",), exe=(f"/bin/{n}",)), n) for n in range(200)]
    workloads += [make(f"h{n}", Match(unit=("*.service",), host=(f"h{n}",)), n) for n in range(10)]
    began = time.process_time()
    assert find_ties(workloads) == []
    assert time.process_time() - began < 1


def test_findings_are_bounded() -> None:
    workloads = [make(f"w{n}", Match(unit=("a.service",)), n) for n in range(300)]
    assert len(find_ties(workloads)) == 50
