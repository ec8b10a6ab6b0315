"""A suggestion: what it proposes, how it founds it, and what it leaves out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from bulkhead.errors import PolicyError
from bulkhead.observe.evidence import recorded
from bulkhead.observe.flows import FlowRecord
from bulkhead.observe.suggest import Suggestion, Wish, no_timers, suggest
from bulkhead.observe.timers import Timer
from bulkhead.policy.format import format_file
from bulkhead.policy.source import SourceFile, Sources
from unit.observe.flow_records import HOST, NOW, answer, flow

REPOSITORY = b"apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: example.org\n"
SHOP = """
apiVersion: bulkhead/v1alpha1
kind: Policy
metadata: {name: shop}
workloads:
  web: {match: {unit: web.service}}
  api: {match: {unit: api.service}}
  db: {match: {unit: db.service}}
externals:
  admins: {cidr: [10.9.0.1/32, 10.9.0.2/32]}
  office: {cidr: [192.0.2.0/24]}
allow:
  - {name: web-api, from: web, to: api, ports: [8443]}
"""
WEEK = Timer("backup.timer", 7 * 86400.0)


def sources(policy: str = SHOP, hosts: str = "") -> Sources:
    files = (("bulkhead.yaml", REPOSITORY + hosts.encode()), ("shop.yaml", policy.encode()))
    return Sources("", tuple(SourceFile(path, "1" * 40, content) for path, content in files))


def suggested(
    *records: FlowRecord,
    policy: Sources | None = None,
    only: Iterable[str] = (),
    timers: Mapping[str, Timer] | None = None,
    **log: Any,
) -> Suggestion:
    data = answer(records, **log)
    coverage = recorded(data, data["log"]["at"] - data["log"]["since"], "").coverage
    known = timers or {}
    wish = Wish(HOST, tuple(only), coverage, known.get if known else no_timers, datetime.fromtimestamp(NOW, UTC))
    found = suggest(policy or sources(), records, wish)
    assert found.text == format_file("x.yaml", found.text.encode()).decode()
    return found


def rules(found: Suggestion) -> set[tuple[str, str, str]]:
    return {(one.source, one.destination, one.port) for one in found.rules}


def test_what_a_rule_allows_already_is_not_suggested() -> None:
    found = suggested(flow("shop/web", "shop/api", 8443, verdict="allow"), flow("shop/web", "shop/api", 8443))
    assert (found.text, found.left_out) == ("", ())


def test_an_edge_of_two_workloads_becomes_a_rule_of_one_port() -> None:
    found = suggested(flow("shop/api", "shop/db", 5432), flow("shop/api", "shop/db", 53, protocol="udp"))
    assert rules(found) == {("shop/api", "shop/db", "5432"), ("shop/api", "shop/db", "53/udp")}


def test_addresses_that_share_their_ports_become_one_external_and_others_do_not() -> None:
    found = suggested(
        *(flow("shop/web", address, port) for address in ("10.0.0.8", "10.0.0.9") for port in (80, 443)),
        flow("shop/web", "10.0.0.8", 25),
    )
    assert "cidr: [10.0.0.8/32, 10.0.0.9/32]" in found.text
    assert "cidr: [10.0.0.8/32]}" in found.text
    assert found.text.count("cidr:") == 2
    assert "# 2 addresses seen" in found.text


def test_an_external_is_named_only_when_it_holds_nothing_but_what_was_seen() -> None:
    found = suggested(flow("shop/web", "10.9.0.1", 22), flow("shop/web", "10.9.0.2", 22))
    assert rules(found) == {("shop/web", "shop/admins", "22")}
    part = suggested(flow("shop/web", "10.9.0.1", 22), flow("shop/web", "192.0.2.7", 443))
    assert rules(part) == {("shop/web", "web-to-22", "22"), ("shop/web", "web-to-443", "443")}
    assert "all inside shop/office, which would be wider" in part.text


def test_programs_without_a_workload_get_one_that_is_not_enforced() -> None:
    found = suggested(flow("@nginx", "@/jobs/x|/opt/Job_Runner", 6379), flow("@nginx", "2001:db8::1", 443))
    assert "nginx: {match: {host: web-1, unit: nginx.service}, mode: observe}" in found.text
    assert "job-runner: {match: {host: web-1, cgroup: /jobs/x, exe: /opt/Job_Runner}, mode: observe}" in found.text
    assert rules(found) == {("nginx", "job-runner", "6379"), ("nginx", "nginx-to-443", "443")}
    assert '"2001:db8::1/128"' in found.text


def test_a_program_that_the_lifeline_lets_in_stays_the_host() -> None:
    hosts = 'hosts: {lifeline: [{from: admins, to: "host:22"}]}\n'
    found = suggested(
        flow("10.9.0.1", "@ssh", 22), flow("@ssh", "10.0.0.53", 53, protocol="udp"), policy=sources(hosts=hosts)
    )
    assert rules(found) == {("host", "host-to-53-udp", "53/udp")}
    (rule,) = found.rules
    assert rule.score.level == "LOW" and "every program that no workload selects" in rule.score.reasons[0]


def test_a_program_that_a_workload_of_the_files_selects_by_now_goes_by_its_name() -> None:
    assert rules(suggested(flow("@db", "@web", 80))) == {("shop/db", "shop/web", "80")}


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (flow("shop/old", "shop/db", 1), "the policy has no workload `shop/old`"),
        (flow("unknown", "shop/db", 1), "one end is unknown, which no rule can name"),
        (flow("shop/web", "shop/db", 13 << 8, protocol="icmp"), "no rule can say exactly icmp 3328"),
        (flow("shop/web", "shop/db", 1, reason="multicast"), "refused for another reason than policy: multicast"),
    ],
)
def test_what_no_rule_can_say_is_left_out_and_told(record: FlowRecord, why: str) -> None:
    found = suggested(record, flow("shop/api", "shop/db", 5432))
    assert found.left_out == (f"{why} (1 records)",)
    assert f"# - {why} (1 records)\n" in found.text


def test_what_an_enforced_end_refuses_is_not_opened() -> None:
    found = suggested(
        flow("shop/web", "shop/db", 5432), flow("shop/web", "shop/db", 5432, verdict="deny", direction="ingress")
    )
    assert found.text == ""
    assert found.left_out == ("shop/web -> shop/db 5432: an end that is enforced refuses it",)


@pytest.mark.parametrize(
    "guard",
    [
        "never:\n  - {name: web-not-db, from: web, to: db, why: card data}\n",
        'tests:\n  - {from: web, deny: ["db:5432"]}\n',
    ],
)
def test_a_rule_that_the_policy_forbids_is_left_out_with_the_reason(guard: str) -> None:
    found = suggested(
        flow("shop/web", "shop/db", 5432), flow("shop/api", "shop/db", 5432), policy=sources(SHOP + guard)
    )
    assert rules(found) == {("shop/api", "shop/db", "5432")}
    (told,) = found.left_out
    assert told.startswith("shop/web -> shop/db 5432: ") and "suggested-web-1/web-db-5432" in told


def test_a_policy_that_would_be_refused_as_it_is_is_not_added_to() -> None:
    with pytest.raises(PolicyError, match="BH0502"):
        suggested(flow("shop/web", "shop/db", 1), policy=sources(SHOP + 'tests:\n  - {from: web, accept: ["db:1"]}\n'))


def test_only_what_is_asked_about_is_suggested() -> None:
    records = flow("shop/api", "shop/db", 5432), flow("@nginx", "shop/web", 80)
    for name in ("nginx", "nginx.service", "web", "shop/web"):
        assert rules(suggested(*records, only=[name])) == {("nginx", "shop/web", "80")}


DAY_AGO = {"first_seen": NOW - 30 * 3600, "last_seen": NOW - 60}


@pytest.mark.parametrize(
    ("changed", "level", "reason"),
    [
        ({"count": 20}, "high", ""),
        ({"count": 2}, "medium", "seen seldom"),
        ({"first_seen": NOW - 600}, "medium", "seen within one hour only"),
        ({"count": 1}, "LOW", "seen once"),
        ({"first_seen": NOW - 90}, "LOW", "seen within one minute only"),
        ({"port": 40000}, "LOW", "the port is of the range that clients are given, and may be another next time"),
    ],
)
def test_a_rule_is_scored_by_its_evidence(changed: dict[str, Any], level: str, reason: str) -> None:
    (rule,) = suggested(flow("shop/api", "shop/db", **{"port": 5432} | DAY_AGO | changed)).rules
    assert (str(rule.score.level), "; ".join(rule.score.reasons)) == (level, reason)


def test_a_unit_that_a_timer_starts_seldom_is_scored_low() -> None:
    timers = {"backup.service": WEEK}
    (rule,) = suggested(flow("@backup", "10.0.0.8", 443), timers=timers).rules
    assert str(rule.score.level) == "LOW"
    assert rule.score.reasons == ("`backup.timer` runs weekly, and 2 d were recorded",)
    long_ago = NOW - 20 * 86400
    (rule,) = suggested(flow("@backup", "10.0.0.8", 443), timers=timers, since=long_ago).rules
    assert str(rule.score.level) == "high"


def test_callers_from_outside_are_one_address_and_that_is_said() -> None:
    (rule,) = suggested(flow("192.0.2.7", "shop/web", 443, count=500)).rules
    assert str(rule.score.level) == "LOW" and "last address" in rule.score.reasons[0]


def test_the_top_says_what_the_records_do_not_tell() -> None:
    found = suggested(flow("shop/api", "shop/db", 5432), since=NOW - 3600, absent_s=600.0)
    head = found.text.partition("apiVersion")[0]
    assert "# Recorded: 1 h of the 1 h that were asked about." in head
    assert "# INCOMPLETE: no agent kept it for 10 min of its time.\n" in head
    assert "# INCOMPLETE: less than a day was recorded" in head
    (rule,) = found.rules
    assert rule.score.reasons == ("recorded for less than a day", "the records are incomplete")


def test_names_of_others_cannot_end_a_comment_or_a_text() -> None:
    found = suggested(flow('@/jobs/a"b: #x|/opt/a\n- {name: evil}', "shop/db", 80))
    assert "evil" not in found.text
    quoted = suggested(flow('@/jobs/a"b: #x|/opt/a b', "shop/db", 80))
    assert """cgroup: '/jobs/a"b: #x'""" in quoted.text


def test_a_program_whose_control_group_holds_somebody_else_stays_the_host() -> None:
    more = "  job: {match: {cgroup: /data/job}}\nexternals:"
    found = suggested(
        flow("@/data|/usr/bin/dump", "10.0.0.8", 443),
        flow("shop/job", "10.0.0.8", 80, cgroup="/data/job", exe="/usr/bin/dump"),
        policy=sources(SHOP.replace("externals:", more, 1)),
    )
    assert {one.source for one in found.rules} == {"host", "shop/job"}
    assert "workloads:" not in found.text
