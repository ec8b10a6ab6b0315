"""The catalogue: who is told of whom, and what recorded flows say of each rule."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from bulkhead.dataplane.catalog import Catalogue, Grant, Ties, catalogue, narrowed
from bulkhead.dataplane.usage import Flow, Observed, State, Usage
from bulkhead.errors import UsageError
from bulkhead.policy.model import Level, Match, Policy, PolicySet
from unit.dataplane.build import NOW, external, loc, policy_test, shop, workload


def policy(*rules: object, **more: object) -> PolicySet:
    """As `shop`, with its policy's document."""
    made = shop(*rules, **more)
    names = dict.fromkeys(("shop", *(one.policy for one in made.workloads)))
    return replace(made, policies=tuple(Policy(name, Level.APP, "team-shop", loc(1)) for name in names))


def grant(found: Catalogue, number: int) -> Grant:
    return next(one for one in found.grants if one.rule.rule_id == number)


def ties(found: Catalogue, name: str) -> Ties:
    everybody = (*found.services, *found.outsides)
    return next(one.ties for one in everybody if one.name == name)


def names(grants: tuple[Grant, ...]) -> list[str]:
    return [one.rule.name for one in grants]


# Policy


def test_a_service_says_who_it_is() -> None:
    (web,) = catalogue(policy(workloads=["web"]), NOW).services
    assert (web.spiffe_id, web.policy.owner) == ("spiffe://example.org/shop/web", "team-shop")


def test_both_ends_of_a_rule_are_told_of_it() -> None:
    found = catalogue(policy("web -> api 443", "api -> db 5432"), NOW)
    api = ties(found, "shop/api")
    assert (names(api.callers), names(api.calls)) == (["rule-1"], ["rule-2"])
    assert ties(found, "shop/db").calls == ()


def test_any_is_every_workload_and_neither_the_host_nor_an_external() -> None:
    found = catalogue(policy("any -> users 443", "host -> web 80", externals=[external("users", ["10.0.0.0/8"])]), NOW)
    assert grant(found, 1).source.members == ("shop/web", "shop/api", "shop/db")
    assert grant(found, 1).source.selector
    assert names(ties(found, "host").calls) == ["rule-2"]
    assert names(ties(found, "shop/users").callers) == ["rule-1"]
    assert not grant(found, 2).source.selector


def test_externals_are_told_of_rules_for_addresses_that_they_share() -> None:
    outside = [external("all", ["10.0.0.0/8"]), external("part", ["10.1.0.0/16"]), external("far", ["192.0.2.0/24"])]
    found = catalogue(policy("web -> all 443", "world -> web 80", externals=outside), NOW)
    assert names(ties(found, "shop/part").callers) == ["rule-1"]
    assert names(ties(found, "shop/far").callers) == []
    assert names(ties(found, "shop/far").calls) == ["rule-2"]


def test_the_world_is_told_of_what_names_it() -> None:
    outside = [external("all", ["0.0.0.0/0", "::/0"])]
    found = catalogue(policy("web -> all 443", "web -> world 80", externals=outside), NOW)
    assert names(ties(found, "world").callers) == ["rule-2"]


def test_entities_that_no_rule_names_are_left_out() -> None:
    assert catalogue(policy("web -> api 443"), NOW).outsides == ()


def test_nodes_without_an_agent_are_listed_where_a_rule_names_them() -> None:
    found = catalogue(policy("legacy -> web 9100", "web -> world 443"), NOW)
    assert [one.name for one in found.outsides] == ["world", "legacy"]
    assert names(ties(found, "legacy").calls) == ["rule-1"]


def test_an_invariant_protects_its_destination_and_restrains_its_source() -> None:
    found = catalogue(policy(nevers=["web -> db"]), NOW)
    assert [one.name for one in ties(found, "shop/db").protected_by] == ["shop/not-that"]
    assert [one.name for one in ties(found, "shop/web").restrained_by] == ["shop/not-that"]
    assert ties(found, "shop/api").protected_by == ()


def test_a_test_covers_both_its_ends_once_for_all_protocols() -> None:
    found = catalogue(policy(tests=[policy_test("web", deny=["db:any"])]), NOW)
    for name in ("shop/web", "shop/db"):
        assert [(one.verb, one.target) for one in ties(found, name).tests] == [("deny", "db:any")]
    assert ties(found, "shop/api").tests == ()


@pytest.mark.parametrize(("after", "expired"), [(timedelta(hours=1), False), (timedelta(0), True)])
def test_an_exception_stays_listed_when_it_has_expired(after: timedelta, expired: bool) -> None:
    found = catalogue(policy(("web -> api 443", NOW + after)), NOW)
    assert grant(found, 1).expired is expired
    assert names(ties(found, "shop/api").callers) == ["rule-1"]


# One policy


def two_policies() -> PolicySet:
    """`shop`, whose web calls api, and an `audit` that nothing calls."""
    return policy("web -> api 443", workloads=[workload("web"), workload("api"), workload("log", policy="audit")])


def test_narrowed_to_a_policy_its_own_workloads_and_rules_remain() -> None:
    whole = catalogue(two_policies(), NOW, Observed("a file", (flow("deny", "audit/log", "shop/web", ""),)))
    shop_alone, audit_alone = narrowed(whole, "shop"), narrowed(whole, "audit")
    assert [one.name for one in shop_alone.services] == ["shop/web", "shop/api"]
    assert ([one.name for one in audit_alone.services], audit_alone.grants) == (["audit/log"], ())
    assert len(shop_alone.undeclared) == len(audit_alone.undeclared) == 1


def test_a_policy_that_does_not_exist_is_told_with_what_was_meant() -> None:
    with pytest.raises(UsageError, match="no policy is called `shoop`: did you mean `shop`"):
        narrowed(catalogue(two_policies(), NOW), "shoop")


# Flows


def flow(verdict: str, source: str, destination: str, rule: str, **changed: object) -> Flow:
    values = {"direction": "egress", "port": "443", "count": 1, "last_seen": 100.0, "process": "nginx", "because": ""}
    if verdict != "allow":
        values["because"] = "default deny"
    return Flow(verdict=verdict, source=source, destination=destination, rule=rule, **{**values, **changed})


def seen(*flows: Flow, rules: tuple[str, ...] = ("web -> api 443",), **observed: object) -> Catalogue:
    made = policy(*rules, workloads=[workload("web", Match(host=("web-*",), unit=("web.service",))), "api", "db"])
    return catalogue(made, NOW, Observed("a file", flows, **observed))


def usage(*flows: Flow, **observed: object) -> Usage:
    found = grant(seen(*flows, **observed), 1).usage
    assert found is not None
    return found


USED = flow("allow", "shop/web", "shop/api", "shop/rule-1", count=7)


def test_without_observation_nothing_is_said_of_use() -> None:
    found = catalogue(policy("web -> api 443"), NOW)
    assert grant(found, 1).usage is None
    assert found.undeclared == ()


def test_a_conversation_that_both_ends_recorded_counts_once() -> None:
    other_end = replace(USED, direction="ingress", count=5, last_seen=200.0)
    assert usage(USED, other_end) == Usage(State.USED, 7, None, 200.0)


def test_conversations_of_several_members_add_up() -> None:
    assert usage(USED, replace(USED, source="shop/db")).seen == 14


@pytest.mark.parametrize(
    ("observed", "state", "note"),
    [
        ({}, State.UNUSED, ""),
        ({"complete": False}, State.UNKNOWN, "incomplete"),
        ({"complete": False, "hits": {"shop/rule-1": 0}}, State.UNUSED, ""),
        ({"hits": {"shop/rule-1": 3}}, State.USED, ""),
        ({"hits": {}, "host": "web-1"}, State.UNKNOWN, "not in force on web-1"),
    ],
)
def test_unseen_is_unused_only_where_nothing_can_be_missing(observed: dict, state: State, note: str) -> None:
    found = usage(**observed)
    assert found.state is state
    assert note in found.note


def test_a_rule_of_other_hosts_is_not_called_unused() -> None:
    elsewhere = policy("web -> db 1", workloads=[workload(name, Match(host=("x-*",))) for name in ("web", "db")])
    found = grant(catalogue(elsewhere, NOW, Observed("an agent", host="web-1")), 1).usage
    assert found is not None
    assert (found.state, found.note) == (State.UNKNOWN, "no end of it can be on web-1")


def test_a_declared_conversation_is_not_undeclared() -> None:
    assert seen(USED).undeclared == ()


@pytest.mark.parametrize(
    ("one", "because"),
    [
        (flow("deny", "shop/web", "shop/db", ""), "default deny"),
        (flow("would-deny", "host", "world", ""), "default deny"),
        (flow("allow", "shop/web", "shop/api", "shop/gone"), "allowed by shop/gone, which this policy does not have"),
        (flow("allow", "shop/web", "shop/api", ""), "allowed by a rule that is no longer known"),
        (
            flow("allow", "host", "shop/api", "shop/rule-1"),
            "allowed by shop/rule-1, to or from what no workload selects",
        ),
    ],
)
def test_undeclared_is_what_no_rule_or_no_workload_accounts_for(one: Flow, because: str) -> None:
    (found,) = seen(one).undeclared
    assert (found.verdict, found.source, found.because) == (one.verdict, one.source, because)


def test_undeclared_flows_are_gathered_by_edge_the_worst_first() -> None:
    denied = flow("deny", "shop/web", "shop/db", "", count=2)
    found = seen(
        flow("would-deny", "host", "world", "", count=9),
        denied,
        replace(denied, process="curl", count=3, last_seen=300.0),
    ).undeclared
    assert [(one.verdict, one.count, one.last_seen) for one in found] == [("deny", 5, 300.0), ("would-deny", 9, 100.0)]
    assert found[0].processes == ("nginx", "curl")
