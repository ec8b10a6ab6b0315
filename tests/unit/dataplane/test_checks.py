"""`never` and `tests`: what refuses a commit, and what the finding says."""

from __future__ import annotations

from datetime import timedelta

import pytest

from bulkhead.dataplane.compile import compile_commit
from bulkhead.errors import Diagnostic, PolicyError
from bulkhead.policy.model import PolicySet
from unit.dataplane.build import NOW, external, loc, policy_test, shop

USERS = external("users", ["0.0.0.0/0", "::/0"], ["10.0.0.0/8"])
OFFICE = external("office", ["10.9.0.0/16"])
BRANCH = external("branch", ["10.9.8.0/24", "192.0.2.0/24"])
OUTSIDE = [USERS, OFFICE, BRANCH]
NAMES = [e.name for e in OUTSIDE]


def findings(policy_set: PolicySet) -> tuple[Diagnostic, ...]:
    try:
        compile_commit(policy_set, "any-host", NOW)
    except PolicyError as refused:
        return refused.diagnostics
    return ()


@pytest.mark.parametrize(
    ("rule", "never", "broken"),
    [
        ("web -> db 5432", "web -> db", True),
        ("web -> db 5432", "web -> db 5432", True),
        ("web -> db 5432", "web -> db 80", False),
        ("web -> db 5000-6000", "web -> db 5432", True),
        ("web -> db 5432/udp", "web -> db 5432", False),
        ("web -> db any", "web -> db 5432", True),
        ("db -> web 5432", "web -> db", False),
        ("any -> db 5432", "web -> db", True),
        ("web -> db 5432", "any -> any", True),
        ("host -> db 5432", "any -> db", False),
        ("web -> world 443", "web -> office", True),
        ("web -> office 443", "web -> world", True),
        ("web -> office 443", "web -> branch", True),
        ("web -> office 443", "web -> users", False),
        ("web -> branch 443", "web -> users", True),
        ("web -> api icmp", "web -> api icmp/echo", True),
        ("web -> api icmp/unreachable", "web -> api icmp/echo", False),
    ],
)
def test_never_is_checked_exactly(rule: str, never: str, broken: bool) -> None:
    found = findings(shop(rule, nevers=[never], externals=OUTSIDE))
    assert [finding.code for finding in found] == ["BH0501"] * broken


def test_broken_never_shows_both_lines_and_who_reaches_whom() -> None:
    (found,) = findings(shop("any -> db 5432", nevers=["web -> db"]))
    assert found.loc == loc(101)
    assert found.related[0][0] == loc(50)
    assert found.message == "rule `shop/rule-1` lets `shop/web` reach `shop/db`, which `shop/not-that` forbids"
    assert "card data" in found.render()


def test_exception_breaks_a_never_until_it_has_expired() -> None:
    assert len(findings(shop(("web -> db 22", NOW + timedelta(hours=1)), nevers=["web -> db"]))) == 1
    assert not findings(shop(("web -> db 22", NOW), nevers=["web -> db"]))


def test_except_that_takes_all_away_leaves_nothing_to_overlap() -> None:
    empty = external("empty", ["10.0.0.0/8"], ["10.0.0.0/9", "10.128.0.0/9"])
    assert not findings(shop("web -> empty 443", nevers=["web -> empty"], externals=[empty]))


@pytest.mark.parametrize(
    ("rules", "source", "accept", "deny", "fails"),
    [
        (["web -> api 8443"], "web", ["api:8443"], ["db:5432"], 0),
        (["web -> api 8443"], "web", ["api:8444"], [], 1),
        (["web -> api 8443"], "web", [], ["api:8443"], 1),
        (["web -> api 8443"], "web", [], ["api:8000-9000"], 1),
        (["web -> api 8000-8500", "web -> api 8501-9000"], "web", ["api:8000-9000"], [], 0),
        (["web -> api 8000-8500", "web -> api 8502-9000"], "web", ["api:8000-9000"], [], 1),
        (["web+api -> db 5432"], "any", ["db:5432"], [], 1),
        (["any -> db 5432"], "any", ["db:5432"], ["web:22"], 0),
        (["web -> db 5432", "api+db -> db 5432"], "any", ["db:5432"], [], 0),
        (["users -> web 443"], "users", ["web:443"], ["api:443"], 0),
        (["users -> web 443"], "world", ["web:443"], [], 1),
        (["users+office -> web 443"], "world", ["web:443"], [], 1),
        (["web -> api icmp"], "web", ["api:icmp/echo"], [], 0),
        (["web -> api icmp/echo"], "web", ["api:icmp"], [], 2),
        (["web -> api 8443/udp"], "web", [], ["api:8443"], 0),
        ([], "users", [], ["office:443"], 0),
    ],
)
def test_policy_tests_hold_or_fail(
    rules: list[str], source: str, accept: list[str], deny: list[str], fails: int
) -> None:
    found = findings(shop(*rules, tests=[policy_test(source, accept, deny, NAMES)], externals=OUTSIDE))
    assert [finding.code for finding in found] == ["BH0502"] * fails


def test_world_is_covered_by_externals_that_leave_nothing_of_it() -> None:
    everyone = external("everyone", ["0.0.0.0/0", "::/0"])
    policy_set = shop("everyone -> web 443", tests=[policy_test("world", ["web:443"])], externals=[everyone])
    assert not findings(policy_set)


def test_failing_test_names_the_member_that_fails() -> None:
    (found,) = findings(shop("web -> db 5432", tests=[policy_test("web+api", ["db:5432"])]))
    assert found.loc == loc(60)
    assert "`web+api` should reach `db:5432`, but `shop/api` does not reach `shop/db`" in found.message


def test_failing_deny_shows_the_rule_that_allows() -> None:
    (found,) = findings(shop("any -> db 5432", tests=[policy_test("web", deny=["db:5432"])]))
    assert "`shop/web` reaches `shop/db` by rule `shop/rule-1`" in found.message
    assert found.related[0][0] == loc(101)


def test_test_of_nobody_fails() -> None:
    assert len(findings(shop(tests=[policy_test("", deny=["db:5432"])]))) == 1
    assert len(findings(shop(tests=[policy_test("", accept=["db:5432"])]))) == 1
