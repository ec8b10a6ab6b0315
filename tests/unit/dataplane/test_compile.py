"""What a commit becomes: entries at both ends, folded deadlines, classes, limits."""

from __future__ import annotations

import time
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bulkhead.abi import Direction, Identity
from bulkhead.dataplane.compile import (
    Compiled,
    PolicyEntry,
    PolicyKey,
    class_of,
    compile_commit,
    identity_name,
    lookup,
)
from bulkhead.dataplane.entries import MTLS
from bulkhead.dataplane.resolve import Limits
from bulkhead.errors import PolicyError
from bulkhead.identity.registry import workload_identity
from bulkhead.policy.model import Match, PolicySet, QualifiedName
from unit.dataplane.build import NOW, TRUST_DOMAIN, external, rule, shop, workload

EGRESS, INGRESS = Direction.EGRESS, Direction.INGRESS
HOST, WORLD = int(Identity.HOST), int(Identity.WORLD)
TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58


def number(name: str) -> int:
    return workload_identity(TRUST_DOMAIN, QualifiedName(f"shop/{name}"))


WEB, API, DB = map(number, ("web", "api", "db"))


def compiled(policy_set: PolicySet, host: str | None = None) -> Compiled:
    return compile_commit(policy_set, host, NOW)


def rule_at(found: Compiled, local: int, direction: int, remote: int, port: int, protocol: int = TCP) -> int | None:
    entry = lookup(found, local, direction, remote, protocol, port)
    return None if entry is None else entry.rule_id


def later(hours: float) -> datetime:
    return NOW + timedelta(hours=hours)


def test_nothing_is_allowed_without_a_rule() -> None:
    assert compiled(shop()).entries == {}


def test_rule_opens_both_ends_and_no_other() -> None:
    found = compiled(shop("web -> api 8443"))
    assert found.entries == {
        PolicyKey(WEB, EGRESS, API, TCP, 8443, 16): PolicyEntry(1, None, MTLS),
        PolicyKey(API, INGRESS, WEB, TCP, 8443, 16): PolicyEntry(1, None, MTLS),
    }


def test_any_is_every_workload_and_not_the_host() -> None:
    found = compiled(shop("any -> db 5432"))
    assert [rule_at(found, DB, INGRESS, who, 5432) for who in (WEB, API, DB, HOST, WORLD)] == [1, 1, 1, None, None]


def test_host_is_judged_like_a_workload() -> None:
    found = compiled(shop("host -> db 5432", "web -> host 22"))
    assert rule_at(found, HOST, EGRESS, DB, 5432) == rule_at(found, DB, INGRESS, HOST, 5432) == 1
    assert rule_at(found, HOST, INGRESS, WEB, 22) == 2


def test_world_is_every_class_and_what_has_none() -> None:
    found = compiled(shop("web -> world 443", externals=[external("s3", ["192.0.2.0/24"])]))
    assert rule_at(found, WEB, EGRESS, class_of(found, "192.0.2.1"), 443) == 1
    assert rule_at(found, WEB, EGRESS, class_of(found, "198.51.100.1"), 443) == 1
    assert class_of(found, "198.51.100.1") == WORLD


def test_external_is_every_class_that_contains_it() -> None:
    users, office = external("users", ["0.0.0.0/0"], ["10.0.0.0/8"]), external("office", ["192.0.2.0/24"])
    found = compiled(shop("users -> web 443", "office -> web 22", externals=[users, office]))
    inside, outside, private = (class_of(found, text) for text in ("192.0.2.9", "198.51.100.1", "10.0.0.1"))
    assert [rule_at(found, WEB, INGRESS, who, 443) for who in (inside, outside, private)] == [1, 1, None]
    assert [rule_at(found, WEB, INGRESS, who, 22) for who in (inside, outside, private)] == [2, None, None]
    assert found.classes[inside] == ("shop/office", "shop/users")
    assert identity_name(found, inside) == "shop/office + shop/users"
    assert class_of(found, "2001:db8::1") == WORLD


def test_icmp_type_is_a_prefix_of_eight_bits_in_both_families() -> None:
    found = compiled(shop("web -> api icmp/echo"))
    assert PolicyKey(WEB, EGRESS, API, ICMP, 8 << 8, 8) in found.entries
    assert PolicyKey(WEB, EGRESS, API, ICMPV6, 128 << 8, 8) in found.entries
    assert rule_at(found, WEB, EGRESS, API, 8 << 8 | 3, ICMP) == 1
    assert rule_at(found, WEB, EGRESS, API, 0, ICMP) is None


def test_any_port_is_one_entry_for_each_of_four_protocols() -> None:
    found = compiled(shop("web -> api any"))
    assert {(key.protocol, key.port, key.port_bits) for key in found.entries} == {
        (TCP, 0, 0), (UDP, 0, 0), (ICMP, 0, 0), (ICMPV6, 0, 0),
    }  # fmt: skip
    assert rule_at(found, WEB, EGRESS, API, 0, 47) is None


def test_host_glob_decides_what_is_local() -> None:
    web = workload("web", Match(host=("web-*",), unit=("web.service",)))
    policy_set = shop("web -> db 5432", workloads=[web, "db"])
    away, here = compiled(policy_set, "db-1"), compiled(policy_set, "web-1")
    assert rule_at(away, WEB, EGRESS, DB, 5432) is None
    assert rule_at(away, DB, INGRESS, WEB, 5432) == 1
    assert rule_at(here, WEB, EGRESS, DB, 5432) == 1
    assert [w.qualified for w in away.workloads if w.local] == ["shop/db"]


def test_expired_exception_allows_nothing_and_is_still_known() -> None:
    found = compiled(shop(("web -> api 22", NOW)))
    assert found.entries == {}
    assert found.rules[1].kind == "exception"


def test_permanent_allow_is_not_shortened_by_an_exception_of_the_same_traffic() -> None:
    found = compiled(shop(("web -> api 22", later(1)), "web -> api 22"))
    assert lookup(found, WEB, EGRESS, API, TCP, 22) == PolicyEntry(2, None, MTLS)


def test_later_of_two_exceptions_holds_and_the_lower_id_among_equals() -> None:
    found = compiled(shop(("web -> api 22", later(1)), ("web -> api 22", later(2)), ("web -> api 22", later(2))))
    assert lookup(found, WEB, EGRESS, API, TCP, 22) == PolicyEntry(2, later(2).timestamp(), MTLS)


def test_narrow_exception_takes_over_the_broad_allow_that_outlives_it() -> None:
    found = compiled(shop(("web -> api 22", later(1)), "web -> api any/tcp"))
    assert lookup(found, WEB, EGRESS, API, TCP, 22) == PolicyEntry(2, None, MTLS)


def test_narrow_rule_keeps_its_name_when_it_lasts_as_long() -> None:
    found = compiled(shop("web -> api any/tcp", "web -> api 22"))
    assert rule_at(found, WEB, EGRESS, API, 22) == 2


def test_long_exception_of_one_port_outlives_a_short_one_of_all() -> None:
    found = compiled(shop(("web -> api 22", later(5)), ("web -> api any/tcp", later(1))))
    assert lookup(found, WEB, EGRESS, API, TCP, 22) == PolicyEntry(1, later(5).timestamp(), MTLS)
    assert lookup(found, WEB, EGRESS, API, TCP, 23) == PolicyEntry(2, later(1).timestamp(), MTLS)


RANGES = st.tuples(st.integers(1, 64), st.integers(0, 63)).map(lambda r: f"{r[0]}-{r[0] + r[1]}")
LIFETIMES = st.sampled_from([None, 1, 2, 3])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(RANGES, LIFETIMES), min_size=1, max_size=5))
def test_every_port_lasts_as_long_as_its_longest_lived_allow(rules: list[tuple[str, int | None]]) -> None:
    written = [f"web -> api {r}" if hours is None else (f"web -> api {r}", later(hours)) for r, hours in rules]
    policy_set = shop(*written)
    found = compiled(policy_set)
    for port in range(130):
        covering = [r for r in policy_set.rules if r.ports[0].first <= port <= r.ports[0].last]
        entry = lookup(found, WEB, EGRESS, API, TCP, port)
        ends = [r.expires.timestamp() if r.expires else None for r in covering]
        if not covering:
            assert entry is None
            continue
        assert entry is not None
        assert entry.deadline == (None if None in ends else max(end for end in ends if end is not None))
        assert (entry.rule_id, entry.deadline) in [(r.rule_id, end) for r, end in zip(covering, ends, strict=True)]


def test_too_many_entries_are_refused_with_the_figures_before_expansion() -> None:
    crowd = [workload(f"w{n}") for n in range(2000)]
    began = time.process_time()
    with pytest.raises(PolicyError, match="32,008,000 entries on all hosts are more than the 1,000,000 that fit") as no:
        compiled(shop("any -> any any", workloads=crowd))
    assert time.process_time() - began < 2
    assert no.value.diagnostics[0].code == "BH0701"
    assert no.value.diagnostics[0].loc == rule(1, "any -> any any").loc


def test_too_many_prefixes_are_refused() -> None:
    wide = external("wide", [f"10.0.{n}.0/24" for n in range(11)])
    with pytest.raises(PolicyError, match="11 IPv4 prefixes are more than the 10 that fit"):
        compile_commit(shop(externals=[wide]), None, NOW, Limits(prefixes=10))


def test_all_findings_come_at_once_in_file_order() -> None:
    twin = workload("twin", Match(unit=("web.service",)), line=9)
    policy_set = shop("web -> db 5432", workloads=["web", "api", "db", twin], nevers=["web -> db"])
    with pytest.raises(PolicyError) as refused:
        compiled(policy_set)
    assert [finding.code for finding in refused.value.diagnostics] == ["BH0601", "BH0501"]


def test_ten_thousand_rules_compile_in_a_second() -> None:
    names = [f"w{n}" for n in range(500)]
    rules = [f"{names[n % 500]} -> {names[n * 7 % 500]} {1 + n}" for n in range(10_000)]
    policy_set = shop(*rules, workloads=names, nevers=[f"{name} -> world" for name in names[:100]])
    began = time.process_time()
    assert len(compiled(policy_set).entries) == 20_000
    assert time.process_time() - began < 1


def test_compiling_is_a_function_of_its_input() -> None:
    policy_set = shop("any -> any 443", "host -> world 53/udp")
    assert compiled(policy_set, "h") == compiled(policy_set, "h")


def test_every_entry_has_its_counterpart_when_all_are_local() -> None:
    found = compiled(shop("any -> any 443", "web+host -> db+api 80-90"))
    for (local, direction, remote, *rest), entry in found.entries.items():
        assert found.entries[PolicyKey(remote, 1 - direction, local, *rest)] == entry
    assert {key.local_identity for key in found.entries} == {WEB, API, DB, HOST}
