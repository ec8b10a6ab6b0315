"""What a commit changes about another: exact, by name, with the rules that do it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_address, ip_network
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from bulkhead.abi import Direction
from bulkhead.dataplane import reference
from bulkhead.dataplane.difference import FOREVER, REFUSED, Difference, Kind, Reach, difference
from bulkhead.dataplane.reference import Answer, Identified, Remote, Standing
from bulkhead.errors import PolicyError
from bulkhead.policy.l7 import L7, HttpMatch
from bulkhead.policy.model import Match, Mode, PolicySet
from property import strategies
from property.strategies import Opening, Probes
from unit.dataplane.build import NOW, external, loc, shop, workload


def told(one: Reach) -> tuple[str, str, str, list[tuple[int, int]]]:
    return one.kind.value, one.source, one.destination, [(span.first, span.last) for span in one.ports]


def between(before: PolicySet, after: PolicySet) -> Difference:
    return difference(before, after, NOW)


def test_no_difference_between_a_commit_and_itself() -> None:
    policy_set = shop("web -> api 443", externals=[external("users", ["0.0.0.0/0"])])
    assert not between(policy_set, policy_set)


def test_ports_gained_and_lost_are_those_that_changed() -> None:
    found = between(shop("web -> api 8000-8100"), shop("web -> api 8050-8200"))
    assert [told(one) for one in found.reach] == [
        ("gained", "shop/web", "shop/api", [(8101, 8200)]),
        ("lost", "shop/web", "shop/api", [(8000, 8049)]),
    ]
    gained, lost = found.reach
    assert [str(rule.name) for rule in (*gained.rules, *lost.rules)] == ["shop/rule-1", "shop/rule-1"]
    assert gained.rules[0].ports == "8050-8200"
    assert lost.rules[0].ports == "8000-8100"


def test_a_rule_written_in_another_way_changes_nothing() -> None:
    found = between(shop("web -> api 80-81"), shop("web -> api 80,81"))
    assert found.reach == ()
    assert [(one.name, one.what, one.effect) for one in found.altered] == [("shop/rule-1", "changed", False)]


def test_a_removed_rule_that_another_covers_is_without_effect() -> None:
    found = between(shop("any -> api any/tcp", "web -> api 443"), shop("any -> api any/tcp"))
    assert found.reach == ()
    assert [(one.name, one.what, one.effect) for one in found.altered] == [("shop/rule-2", "removed", False)]


def test_what_a_rule_asks_of_conversations_is_a_change_without_reach() -> None:
    def requests(*paths: str) -> PolicySet:
        written = shop("web -> api 443")
        l7 = L7(loc(1), tuple(HttpMatch(loc(1), paths=(path,)) for path in paths), text="same")
        return replace(written, rules=tuple(replace(rule, l7=l7) for rule in written.rules))

    for before, after, field, how in (
        (shop("web -> api 443"), shop("web -> api 443 off"), "mtls", ""),
        (shop("web -> api 443"), requests("/v1/*"), "l7", "narrowed"),
        (requests("/v1/*"), shop("web -> api 443"), "l7", "widened"),
        (requests("/v1/*", "/v2"), requests("/v1/*"), "l7", "narrowed"),
        (requests("/v1/*"), requests("/v1/*", "/v2"), "l7", "widened"),
        (requests("/v1/*", "/v2"), requests("/v1/*", "/v3"), "l7", "changed"),
    ):
        found = between(before, after)
        (altered,) = found.altered
        assert altered.requests == how
        assert (found.reach, [detail.field for detail in altered.details], altered.effect) == ((), [field], True)


def test_every_rule_that_brings_a_port_is_named() -> None:
    found = between(shop(), shop("web -> api 443", "any -> api 443"))
    rules = {one.source: [str(rule.name) for rule in one.rules] for one in found.reach}
    assert rules["shop/web"] == ["shop/rule-1", "shop/rule-2"]
    assert rules["shop/db"] == ["shop/rule-2"]
    assert all(one.effect for one in found.altered)


def test_a_workload_that_comes_brings_the_reach_of_its_rules() -> None:
    found = between(shop("web -> any 443", workloads=["web"]), shop("web -> any 443", workloads=["web", "api"]))
    assert [told(one) for one in found.reach] == [("gained", "shop/web", "shop/api", [(443, 443)])]
    assert [(one.kind, one.name, one.what) for one in found.altered] == [("workload", "shop/api", "added")]


def test_mode_changes_are_told() -> None:
    before = shop(workloads=[replace(workload("web"), mode=Mode.OBSERVE)])
    found = between(before, replace(shop(workloads=["web"]), host_mode=Mode.ENFORCE))
    assert [(one.kind, *one.details[0]) for one in found.altered] == [
        ("repository", "hosts.mode", "observe", "enforce"),
        ("workload", "mode", "observe", "enforce"),
    ]


def test_an_external_that_is_only_named_anew_changes_no_reach() -> None:
    users = external("users", ["0.0.0.0/0"])
    before = shop("users -> web 443", externals=[users])
    after = shop("users -> web 443", externals=[users, external("admins", ["10.9.0.0/24"])])
    found = between(before, after)
    assert found.reach == ()
    assert [(str(one.external), one.gained, one.lost) for one in found.addresses] == [
        ("shop/admins", (ip_network("10.9.0.0/24"),), ())
    ]


def test_addresses_gained_and_lost_are_exact_prefixes() -> None:
    before = shop("users -> web 443", externals=[external("users", ["10.0.0.0/8"])])
    after = shop("users -> web 443", externals=[external("users", ["10.0.0.0/8", "192.0.2.0/24"], ["10.128.0.0/9"])])
    found = between(before, after)
    assert [(one.gained, one.lost) for one in found.addresses] == [
        ((ip_network("192.0.2.0/24"),), (ip_network("10.128.0.0/9"),))
    ]
    assert [(one.kind.value, one.source, one.addresses) for one in found.reach] == [
        ("gained", "within shop/users", (ip_network("192.0.2.0/24"),)),
        ("lost", "within shop/users", (ip_network("10.128.0.0/9"),)),
    ]


def test_peers_outside_are_called_what_the_author_calls_them() -> None:
    outside = [external("users", ["0.0.0.0/0", "::/0"]), external("admins", ["10.9.0.0/24"])]
    after = shop("users -> web 443", "admins -> api 22", "web -> world 53/udp", externals=outside)
    found = between(shop(externals=outside), after)
    assert [(one.source, one.destination) for one in found.reach] == [
        ("shop/admins", "shop/api"),
        ("shop/web", "world"),
        ("world", "shop/web"),
    ]


def test_icmp_of_the_other_family_is_no_reach() -> None:
    outside = [external("users", ["10.0.0.0/8"])]
    found = between(shop(externals=outside), shop("users -> web icmp", externals=outside))
    assert [one.protocol for one in found.reach] == [1]


def test_an_exception_that_lasts_longer_is_retimed() -> None:
    soon, later = NOW + timedelta(hours=1), NOW + timedelta(hours=2)
    found = between(shop(("web -> api 22", soon)), shop(("web -> api 22", later)))
    (one,) = found.reach
    assert (one.kind, one.ports[0].before, one.ports[0].after) == (Kind.RETIMED, soon.timestamp(), later.timestamp())
    assert between(shop(("web -> api 22", soon)), shop("web -> api 22")).reach[0].ports[0].after == FOREVER
    assert between(shop(), shop(("web -> api 22", soon))).reach[0].ports[0].before == REFUSED


def test_an_expired_exception_is_without_effect() -> None:
    found = between(shop(), shop(("web -> api 22", NOW - timedelta(seconds=1))))
    assert found.reach == ()
    assert [(one.kind, one.effect) for one in found.altered] == [("exception", False)]


def test_another_trust_domain_keeps_names_and_reach() -> None:
    before = shop("web -> api 443", "web -> db 5432")
    after = replace(shop("web -> api 443"), trust_domain="example.com")
    found = between(before, after)
    assert [told(one) for one in found.reach] == [("lost", "shop/web", "shop/db", [(5432, 5432)])]
    assert found.altered[0].details[0] == ("trustDomain", "example.org", "example.com")


def test_a_never_that_goes_is_told() -> None:
    found = between(shop(nevers=["web -> db"]), shop())
    assert [(one.kind, one.name, one.what) for one in found.altered] == [("never", "shop/not-that", "removed")]


def test_a_commit_that_would_be_refused_has_no_difference() -> None:
    broken = shop("web -> db 5432", nevers=["web -> db"])
    with pytest.raises(PolicyError):
        between(shop(), broken)
    assert [told(one)[0] for one in between(broken, shop()).reach] == ["lost"]


def test_reach_to_a_dns_name_is_called_by_its_external() -> None:
    outside = [replace(external("s3", []), fqdn=("shop.s3.example.com",)), external("users", ["10.0.0.0/8"])]
    found = between(shop("web -> s3 80", externals=outside), shop("web -> s3 443", externals=outside))
    assert [told(one) for one in found.reach] == [
        ("gained", "shop/web", "shop/s3", [(443, 443)]),
        ("lost", "shop/web", "shop/s3", [(80, 80)]),
    ]
    assert [[str(rule.name) for rule in one.rules] for one in found.reach] == [["shop/rule-1"], ["shop/rule-1"]]


# Any two commits


def free(policy_set: PolicySet) -> PolicySet:
    """The same with every workload able to be on every host, since a difference is about all hosts at once."""
    anywhere = tuple(
        replace(w, match=Match(exe=(f"/usr/bin/{w.policy}-{w.name}",)), mode=w.mode) for w in policy_set.workloads
    )
    return replace(policy_set, workloads=anywhere)


def same_end(name: str, one: Reach, end: Remote) -> bool:
    if not isinstance(end, Identified):
        return any(end in network for network in one.addresses)
    if end.standing in (Standing.HOST, Standing.LEGACY):
        return name == end.standing.value
    return end.standing is Standing.WORKLOAD and name == end.workloads[0]


def claimed(found: Difference, opening: Opening) -> tuple[float, float] | None:
    """What a difference says of one opening; None when it says that nothing changed."""
    ends: tuple[Remote, Remote] = (opening.local, opening.remote)
    source, destination = ends if opening.direction is Direction.EGRESS else ends[::-1]
    spans = [
        (span.before, span.after)
        for one in found.reach
        if one.protocol == opening.protocol
        and same_end(one.source, one, source)
        and same_end(one.destination, one, destination)
        for span in one.ports
        if span.first <= opening.port <= span.last
    ]
    assert len(spans) <= 1, spans
    return spans[0] if spans else None


def allowed_until(answer: Answer) -> float:
    if not answer.allowed:
        return REFUSED
    return FOREVER if answer.expires is None else answer.expires.timestamp()


def asked(policy_set: PolicySet, opening: Opening) -> float:
    if isinstance(opening.remote, Identified):
        # `any` would be anybody: the oracle is not asked about workloads that a commit does not know.
        known = {workload.qualified for workload in policy_set.workloads}
        if not known.issuperset(opening.remote.workloads):
            return REFUSED
    at = (opening.host, opening.local, opening.direction, opening.remote, opening.protocol, opening.port)
    return allowed_until(reference.judge(policy_set, *at, strategies.NOW))


def possible(opening: Opening) -> bool:
    """No packet has the ICMP of the other family, and no conversation two ends outside."""
    version = {strategies.ICMP: 4, strategies.ICMP6: 6}.get(opening.protocol)
    return isinstance(opening.remote, Identified) or version in (None, opening.remote.version)


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(strategies.policy_sets(), strategies.policy_sets(), st.booleans(), st.integers(0, 2**32 - 1))
def test_a_difference_says_what_both_oracles_say(one: PolicySet, other: PolicySet, near: bool, seed: int) -> None:
    rng = Random(seed)
    before, after = free(one), free(other)
    if near:
        kept = tuple(rule for rule in before.rules if rng.random() < 0.7)
        outside = tuple(replace(e, excluded=()) if rng.random() < 0.5 else e for e in before.externals)
        after = replace(before, rules=kept, externals=outside)
    found = difference(before, after, strategies.NOW)
    changed = 0
    for policy_set in (before, after):
        probes = Probes.of(policy_set, "web-1")
        for _ in range(strategies.OPENINGS):
            opening = probes.opening(rng)
            if not possible(opening):
                continue
            expected = (asked(before, opening), asked(after, opening))
            assert (claimed(found, opening) or (expected if expected[0] == expected[1] else None)) == expected, opening
            assert claimed(found, opening) is None or expected[0] != expected[1]
            changed += expected[0] != expected[1]
    event(f"changed: {min(changed, 3)}")


def test_stray_addresses_are_in_no_family_but_their_own() -> None:
    outside = [external("users", ["10.0.0.0/8"]), external("six", ["2001:db8::/32"])]
    found = between(shop(externals=outside), shop("users+six -> web 443", externals=outside))
    (one,) = found.reach
    assert one.source == "shop/six, shop/users"
    assert [ip_address("10.1.1.1") in network for network in one.addresses] == [True, False]
