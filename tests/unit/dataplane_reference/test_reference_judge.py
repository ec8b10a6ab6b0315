"""What may talk to what, case by case from docs/policy.md."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network

import pytest

from bulkhead.abi import Direction, Verdict
from bulkhead.dataplane.reference import (
    Answer,
    Conversation,
    End,
    Endpoint,
    Identified,
    Remote,
    Standing,
    conversation,
    judge,
    mode_of,
    verdict,
)
from bulkhead.errors import Loc
from bulkhead.policy.model import (
    Entity,
    External,
    Match,
    Mode,
    Peer,
    PolicySet,
    PortSpec,
    QualifiedName,
    Rule,
    RuleId,
    Workload,
)

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LOC = Loc("p.yaml", 1)
EGRESS, INGRESS = Direction.EGRESS, Direction.INGRESS
TCP, UDP, ICMP6 = 6, 17, 58

WEB, API = QualifiedName("p/web"), QualifiedName("p/api")
USERS = QualifiedName("p/users")
WEB_END = Identified(Standing.WORKLOAD, (WEB,))
API_END = Identified(Standing.WORKLOAD, (API,))
HOST_END = Identified(Standing.HOST)
UNKNOWN = Identified(Standing.UNKNOWN)
AMBIGUOUS = Identified(Standing.AMBIGUOUS, (WEB, API))
INSIDE, IN_A_HOLE, OUTSIDE = map(ip_address, ("192.0.2.7", "192.0.2.129", "198.51.100.1"))

WORKLOADS = (
    Workload("p", "web", Match(host=("web-*",), unit=("web.service",)), Mode.ENFORCE, LOC),
    Workload("p", "api", Match(unit=("api.service",)), Mode.OBSERVE, LOC),
)
EXTERNALS = (External("p", "users", (ip_network("192.0.2.0/24"),), (ip_network("192.0.2.128/25"),), LOC),)


def to(*names: QualifiedName) -> Peer:
    return Peer(workloads=names)


def entity(*entities: Entity) -> Peer:
    return Peer(entities=entities)


def external() -> Peer:
    return Peer(externals=(USERS,))


def rule(source: Peer, destination: Peer, first: int = 443, last: int = 443, protocol: int = TCP) -> Rule:
    return Rule(RuleId(1), "p", "r", source, destination, (PortSpec(protocol, first, last, ""),), LOC)


def ending(seconds: int, number: int) -> Rule:
    return replace(
        rule(to(WEB), to(API)), rule_id=RuleId(number), expires=NOW + timedelta(seconds=seconds), kind="exception"
    )


@dataclass(frozen=True)
class Asked:
    """One rule book, asked on `web-1`."""

    rules: tuple[Rule, ...]
    host_mode: Mode = Mode.OBSERVE

    @property
    def policy_set(self) -> PolicySet:
        return PolicySet("", "example.org", self.host_mode, workloads=WORKLOADS, externals=EXTERNALS, rules=self.rules)

    def answer(
        self, local: Identified, direction: Direction, remote: Remote, port: int = 443, protocol: int = TCP
    ) -> Answer:
        return judge(self.policy_set, "web-1", local, direction, remote, protocol, port, NOW)

    def allows(
        self, local: Identified, direction: Direction, remote: Remote, port: int = 443, protocol: int = TCP
    ) -> bool:
        return self.answer(local, direction, remote, port, protocol).allowed


def test_deny_when_there_is_no_policy() -> None:
    empty = PolicySet("", "example.org", Mode.ENFORCE)
    for direction in Direction:
        for remote in (HOST_END, OUTSIDE):
            assert judge(empty, "h", HOST_END, direction, remote, TCP, 443, NOW) == Answer(False)
            assert verdict(empty, "h", HOST_END, direction, remote, TCP, 443, NOW) is Verdict.DENY


def test_a_rule_opens_egress_at_from_and_ingress_at_to_and_nothing_else() -> None:
    asked = Asked((rule(to(WEB), to(API)),))
    assert asked.allows(WEB_END, EGRESS, API_END)
    assert asked.allows(API_END, INGRESS, WEB_END)
    assert not asked.allows(WEB_END, INGRESS, API_END)
    assert not asked.allows(API_END, EGRESS, WEB_END)


def test_a_workload_needs_a_rule_to_talk_to_itself() -> None:
    assert not Asked((rule(to(WEB), to(API)),)).allows(WEB_END, EGRESS, WEB_END)
    assert Asked((rule(to(WEB), to(WEB)),)).allows(WEB_END, EGRESS, WEB_END)


def test_any_is_every_workload_but_neither_the_host_nor_the_world() -> None:
    asked = Asked((rule(to(API), entity(Entity.ANY)),))
    assert asked.allows(API_END, EGRESS, WEB_END)
    assert not asked.allows(API_END, EGRESS, HOST_END)
    assert not asked.allows(API_END, EGRESS, OUTSIDE)


def test_world_is_every_address_externals_included_and_no_identity() -> None:
    asked = Asked((rule(entity(Entity.WORLD), to(API)),))
    assert asked.allows(API_END, INGRESS, OUTSIDE)
    assert asked.allows(API_END, INGRESS, INSIDE)
    assert asked.allows(API_END, INGRESS, ip_address("2001:db8::1"))
    assert not asked.allows(API_END, INGRESS, WEB_END)
    assert not asked.allows(API_END, INGRESS, HOST_END)


@pytest.mark.parametrize("nobody", [UNKNOWN, AMBIGUOUS])
def test_unknown_and_ambiguous_match_nothing_at_either_end(nobody: Identified) -> None:
    everyone = entity(Entity.ANY, Entity.HOST, Entity.WORLD)
    asked = Asked((rule(everyone, everyone),))
    for direction in Direction:
        assert not asked.allows(nobody, direction, WEB_END)
        assert not asked.allows(WEB_END, direction, nobody)


def test_an_external_is_its_prefixes_less_the_holes() -> None:
    asked = Asked((rule(external(), to(API)),))
    assert asked.allows(API_END, INGRESS, INSIDE)
    assert not asked.allows(API_END, INGRESS, IN_A_HOLE)
    assert not asked.allows(API_END, INGRESS, OUTSIDE)


@pytest.mark.parametrize(
    ("remote", "allowed"),
    [
        ("s3.example.com", True),
        ("a.example.net", True),
        ("example.net", False),
        ("a.b.example.net", False),
        ("s3.example.org", False),
        (OUTSIDE, False),
    ],
)
def test_an_external_of_names_is_those_names_with_one_label_for_a_star(remote: Remote, allowed: bool) -> None:
    named = External("p", "users", (), (), LOC, ("s3.example.com", "*.example.net"))
    policy_set = replace(Asked((rule(to(WEB), external()),)).policy_set, externals=(named,))
    assert judge(policy_set, "web-1", WEB_END, EGRESS, remote, TCP, 443, NOW).allowed is allowed


def test_address_families_never_mix() -> None:
    asked = Asked((rule(external(), to(API)),))
    assert not asked.allows(API_END, INGRESS, ip_address("::ffff:192.0.2.7"))
    assert not asked.allows(API_END, INGRESS, ip_address(int(INSIDE) << 96))


@pytest.mark.parametrize(("port", "allowed"), [(7999, False), (8000, True), (8100, True), (8101, False)])
def test_a_port_range_ends_where_it_was_written_to_end(port: int, allowed: bool) -> None:
    asked = Asked((rule(to(WEB), to(API), 8000, 8100),))
    assert asked.allows(WEB_END, EGRESS, API_END, port) is allowed
    assert not asked.allows(WEB_END, EGRESS, API_END, port, UDP)


def test_an_icmp_type_is_the_high_byte_of_the_port() -> None:
    asked = Asked((rule(to(WEB), to(API), 128 << 8, 128 << 8 | 255, ICMP6),))
    assert asked.allows(WEB_END, EGRESS, API_END, 128 << 8 | 3, ICMP6)
    assert not asked.allows(WEB_END, EGRESS, API_END, 129 << 8, ICMP6)


def test_an_exception_lapses_at_its_deadline() -> None:
    assert Asked((ending(1, 1),)).allows(WEB_END, EGRESS, API_END)
    assert not Asked((ending(0, 1),)).allows(WEB_END, EGRESS, API_END)
    assert not Asked((ending(-1, 1),)).allows(WEB_END, EGRESS, API_END)


def test_the_latest_deadline_counts_and_all_rules_in_force_are_named() -> None:
    answer = Asked((ending(5, 1), ending(60, 2), ending(-5, 3))).answer(WEB_END, EGRESS, API_END)
    assert answer == Answer(True, (RuleId(1), RuleId(2)), NOW + timedelta(seconds=60))


def test_a_permanent_allow_is_never_shortened_by_an_exception() -> None:
    answer = Asked((rule(to(WEB), to(API)), ending(60, 2))).answer(WEB_END, EGRESS, API_END)
    assert answer == Answer(True, (RuleId(1), RuleId(2)), None)


def test_a_workload_is_allowed_nothing_where_it_cannot_be() -> None:
    asked = Asked((rule(to(WEB), to(API)),))
    assert not judge(asked.policy_set, "db-1", WEB_END, EGRESS, API_END, TCP, 443, NOW).allowed
    assert judge(asked.policy_set, "db-1", API_END, INGRESS, WEB_END, TCP, 443, NOW).allowed


def test_a_refusal_is_a_deny_or_a_would_deny_by_the_mode_of_the_end() -> None:
    policy_set = Asked(()).policy_set
    ends = {WEB_END: Verdict.DENY, API_END: Verdict.WOULD_DENY, HOST_END: Verdict.WOULD_DENY}
    for local, expected in ends.items():
        assert verdict(policy_set, "web-1", local, EGRESS, OUTSIDE, TCP, 443, NOW) is expected


def test_what_may_be_several_things_takes_the_strictest_mode() -> None:
    policy_set = Asked(()).policy_set
    assert mode_of(policy_set, "web-1", AMBIGUOUS) is Mode.ENFORCE
    assert mode_of(policy_set, "web-1", UNKNOWN) is Mode.ENFORCE
    assert mode_of(policy_set, "db-1", UNKNOWN) is Mode.OBSERVE
    assert mode_of(Asked((), Mode.ENFORCE).policy_set, "db-1", UNKNOWN) is Mode.ENFORCE


def end(host: str, unit: str, address: str) -> End:
    return End(host, ip_address(address), Endpoint(f"/system.slice/{unit}", "/bin/x", "root", 0, "root", 0))


WEB_1, API_1 = end("web-1", "web.service", "10.0.0.1"), end("app-1", "api.service", "10.0.0.2")
SSHD_2, SSHD_1 = end("app-1", "sshd.service", "10.0.0.2"), end("web-1", "sshd.service", "10.0.0.1")


def test_both_ends_must_allow_and_each_applies_its_own_mode() -> None:
    allowed = Asked((rule(to(WEB), to(API)),)).policy_set
    assert conversation(allowed, WEB_1, API_1, TCP, 443, NOW).verdict is Verdict.ALLOW
    refused = conversation(allowed, WEB_1, API_1, TCP, 444, NOW)
    assert refused == Conversation(Verdict.DENY, Verdict.WOULD_DENY)
    assert refused.verdict is Verdict.DENY


def test_host_is_this_machine_and_another_machines_host_is_an_address() -> None:
    to_host = Asked((rule(to(WEB), entity(Entity.HOST)),)).policy_set
    assert conversation(to_host, WEB_1, SSHD_1, TCP, 443, NOW).verdict is Verdict.ALLOW
    assert conversation(to_host, WEB_1, SSHD_2, TCP, 443, NOW) == Conversation(Verdict.DENY, Verdict.ALLOW)
    to_world = Asked((rule(to(WEB), entity(Entity.WORLD)),)).policy_set
    assert conversation(to_world, WEB_1, SSHD_2, TCP, 443, NOW) == Conversation(Verdict.ALLOW, Verdict.WOULD_DENY)
