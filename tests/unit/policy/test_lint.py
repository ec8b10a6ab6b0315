from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from random import Random

import pytest

from bulkhead.dataplane.lint import lint
from bulkhead.dataplane.resolve import resolve
from bulkhead.dataplane.shadows import shadows
from bulkhead.policy.check import check
from bulkhead.policy.model import PolicySet

NOW = datetime(2026, 6, 1, tzinfo=UTC)
SHOP = """\
workloads:
  web: {match: {unit: nginx.service}, labels: {tier: web}}
  api: {match: {unit: api.service}, labels: {tier: app}}
externals:
  users: {cidr: [198.51.100.0/24]}
allow:
  - {name: users-web, from: users, to: web, ports: [443]}
  - {name: web-api, from: web, to: api, ports: [8443]}
"""


def rule(name: str, source: str, destination: str, ports: str, more: str = "") -> str:
    return f"  - {{name: {name}, from: {source}, to: {destination}, ports: [{ports}]{more}}}\n"


@pytest.fixture
def linted(parsed):
    def run(body: str, files=None) -> list[tuple[str, int]]:
        return [(each.code, each.loc.line) for each in lint(parsed(body, files), NOW)]

    return run


def test_a_sound_policy_has_no_findings(linted):
    assert linted(SHOP) == []


@pytest.mark.parametrize(
    ("added", "redundant"),
    [
        (rule("twin", "web", "api", "8443"), [12]),
        (rule("wider", "web", "api", "8000-9000"), [11]),
        (rule("any-any", "any", "any", "any"), [11]),
        (rule("from-all", "[api, web]", "{tier: app}", "8443, 9000"), [11]),
        (rule("world-in", "world", "web", "443"), [10]),
        (rule("two", "web", "api", "8443, 8444"), [11]),
        (rule("other-port", "web", "api", "8444"), []),
        (rule("other-protocol", "web", "api", "8443/udp"), []),
        (rule("back", "api", "web", "8443"), []),
        (rule("partly", "web", "[api, web]", "8444"), []),
    ],
)
def test_warn_when_a_rule_adds_nothing(added, redundant, linted):
    found = [line for code, line in linted(SHOP + added) if code == "BH1001"]
    assert found == redundant


def test_ports_of_several_entries_cover_together(linted):
    body = SHOP + rule("low", "web", "api", "1-100, 101-200") + rule("inside", "web", "api", "50-150")
    assert ("BH1001", 13) in linted(body)


def test_an_exception_hides_nothing_that_lasts_longer(linted):
    exception = ', expires: "2027-01-01T00:00:00Z", owner: a, ticket: b'
    assert linted(SHOP + "exceptions:\n" + rule("debug", "web", "api", "8000-9000", exception)) == []
    assert linted(SHOP + "exceptions:\n" + rule("debug", "web", "api", "8443", exception)) == [("BH1001", 13)]


LOW, HIGH = ("low", "web", "api", "8443-8500"), ("high", "web", "api", "8501-9000")
TO_WEB, TO_API = ("to-web", "[web, api]", "web", "22"), ("to-api", "[web, api]", "api", "22")


@pytest.mark.parametrize(
    ("added", "shadowed"),
    [
        ((LOW, HIGH, ("all", "web", "api", "8450-8600")), [14]),
        ((LOW, ("high", "web", "api", "8502-9000"), ("gap", "web", "api", "8450-8600")), []),
        ((TO_WEB, TO_API, ("both", "web", "[web, api]", "22")), [14]),
        ((TO_WEB, TO_API, ("more", "[web, host]", "[web, api]", "22")), []),
        ((("t", "web", "api", "20-22"), ("u", "web", "api", "50-53/udp"), ("both", "web", "api", "22, 53/udp")), [14]),
        ((("a", "web", "api", "1-20"), ("b", "web", "api", "11-30"), ("c", "web", "api", "21-40")), [13]),
        ((("a", "web", "api", "1-10"), ("b", "web", "api", "1-10"), ("c", "web", "api", "5-20")), []),
    ],
)
def test_warn_when_rules_together_allow_all_that_another_does(added, shadowed, linted):
    body = SHOP + "".join(rule(*each) for each in added)
    assert [line for code, line in linted(body) if code == "BH1009"] == shadowed


def test_overlapping_externals_cover_by_their_addresses(linted):
    nets = "  half: {cidr: [203.0.113.0/25]}\n  rest: {cidr: [203.0.113.128/25]}\n  net: {cidr: [203.0.113.0/24]}\n"
    body = SHOP.replace("allow:\n", nets + "allow:\n")
    body += rule("one", "half", "web", "22") + rule("two", "rest", "web", "22") + rule("all", "net", "web", "22")
    assert linted(body) == [("BH1001", 15), ("BH1001", 16)]
    body = body.replace("cidr: [203.0.113.0/24]", "cidr: [203.0.113.64/26, 203.0.113.128/26]")
    assert linted(body) == [("BH1009", 17)]


def test_what_lapses_covers_nothing_that_stays(linted):
    until = ', expires: "2027-01-01T00:00:00Z", owner: a, ticket: b'
    later = until.replace("2027", "2028")
    exceptions = "exceptions:\n" + rule("low", "web", "api", "1-20", until) + rule("high", "web", "api", "21-40", later)
    assert linted(SHOP + rule("both", "web", "api", "10-30") + exceptions) == []
    assert linted(SHOP + exceptions + rule("both", "web", "api", "10-30", later)) == []
    assert linted(SHOP + exceptions + rule("both", "web", "api", "10-30", until)) == [("BH1009", 15)]


def test_a_lifeline_is_kept_whatever_else_allows_it(linted):
    head = "apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: a\n"
    lifeline = head + 'hosts: {mode: enforce, lifeline: [{from: users, to: "host:22"}]}\n'
    assert linted(SHOP + rule("ssh", "users", "host", "22"), {"bulkhead.yaml": lifeline}) == [("BH1001", 12)]


def test_what_is_found_can_be_removed_at_once(parsed):
    """Nothing that was allowed is refused when every rule that adds nothing is taken out."""
    random = Random(7)
    ends = ("web", "api", "any", "users", "host", "[web, users]", "[api, host]")
    seen = 0
    for _ in range(60):
        rules = []
        for number in range(25):
            source, destination = random.choice(ends), random.choice(("web", "api", "any", "[web, api]"))
            first = random.randrange(1, 30)
            ports = f"{first}-{first + random.randrange(20)}, {random.randrange(1, 30)}/udp"
            rules.append(rule(f"r{number}", source, destination, ports))
        policy_set = parsed(SHOP + "".join(rules))
        found = {shadow.rule.rule for shadow in shadows(resolve(policy_set, None, NOW))}
        kept = replace(policy_set, rules=tuple(each for each in policy_set.rules if each not in found))
        seen += len(found)
        assert _opened(kept) == _opened(policy_set)
        assert not shadows(resolve(kept, None, NOW))
    assert seen > 60


def _opened(policy_set: PolicySet) -> set[tuple[int, int, int, int]]:
    """Everything that is open, port by port."""
    return {
        (source, destination, spec.protocol, port)
        for found in resolve(policy_set, None, NOW).rules
        for source in found.source.members
        for destination in found.destination.members
        for spec in found.rule.ports
        for port in range(spec.first, min(spec.last, 99) + 1)
    }


@pytest.mark.parametrize(
    ("external", "warned"),
    [
        ("cidr: [10.0.0.0/8]", True),
        ("cidr: [192.168.0.0/16]", True),
        ("cidr: [172.0.0.0/8]", True),
        ('cidr: ["fc00::/7"]', True),
        ("cidr: [0.0.0.0/1]", True),
        ("cidr: [10.9.0.0/16]", True),
        ("cidr: [10.9.0.0/24]", False),
        ("cidr: [100.64.0.0/10]", True),
        ("cidr: [169.254.0.0/16]", True),
        ("cidr: [169.254.169.254/32]", False),
        ('cidr: ["fe80::/10"]', True),
        ('cidr: ["fd12:3456:789a::/48"]', True),
        ('cidr: ["fd12:3456:789a:1::/64"]', False),
        ("cidr: [10.9.0.0/16], except: [10.0.0.0/8]", False),
        ("cidr: [192.0.0.0/8], except: [192.168.0.0/16]", False),
        ('cidr: [0.0.0.0/0, "::/0"]', False),
        ("cidr: [172.0.0.0/8], except: [172.16.0.0/12]", False),
        ("cidr: [172.0.0.0/8], except: [172.16.0.0/16]", True),
    ],
)
def test_warn_when_a_private_network_is_trusted_whole(external, warned, linted):
    body = SHOP.replace("cidr: [198.51.100.0/24]", external)
    assert ("BH1002" in {code for code, _ in linted(body)}) is warned


@pytest.mark.parametrize(
    ("ends", "ports", "warned"),
    [
        ("web, to: api", "any", True),
        ("any, to: any", "1-65535/udp", True),
        ("web, to: api", "icmp", False),
        ("users, to: web", "any", False),
        ("web, to: api", "1-1024", False),
        ("web, to: api", "1-1024, 1025-65535", True),
        ("web, to: api", "1-1024, 1026-65535", False),
    ],
)
def test_warn_when_every_port_is_opened_between_workloads(ends, ports, warned, linted):
    body = SHOP.split("allow:")[0] + f"allow:\n  - {{name: a, from: {ends}, ports: [{ports}]}}\n"
    assert ("BH1003" in {code for code, _ in linted(body)}) is warned


@pytest.mark.parametrize(
    ("ends", "ports", "codes"),
    [
        ("any, to: any", "443", {"BH1010"}),
        ("any, to: any", "icmp", set()),
        ("[web, any], to: [any, host]", "443", {"BH1010"}),
        ("any, to: web", "443", set()),
        ("world, to: web", "any/udp", {"BH1011"}),
        ("web, to: world", "any", {"BH1011"}),
        ("open, to: web", "1-65535", {"BH1011"}),
        ("users, to: web", "any", set()),
        ("world, to: web", "443", set()),
        ("world, to: web", "22", {"BH1012"}),
        ("six, to: web", "20-25", {"BH1012"}),
        ("open, to: host", "161/udp", {"BH1012"}),
        ("world, to: web", "161", set()),
        ("web, to: world", "22", set()),
        ("users, to: web", "22", set()),
        ("web, to: api", "1-9999", set()),
        ("web, to: api", "1-10000", {"BH1013"}),
        ("users, to: web", "1-6000, 5000-10500/udp, 5000-10500", {"BH1013"}),
        ("web, to: api", "1-6000, 2000-7000", set()),
    ],
)
def test_warn_about_rules_that_are_too_wide(ends, ports, codes, linted):
    externals = '  open: {cidr: [0.0.0.0/0], except: [10.0.0.0/8]}\n  six: {cidr: ["2000::/3"]}\n'
    body = SHOP.split("allow:")[0] + externals + f"allow:\n  - {{name: a, from: {ends}, ports: [{ports}]}}\n"
    assert {code for code, _ in linted(body) if "BH1010" <= code <= "BH1013"} == codes


def test_warn_a_week_before_an_exception_ends(parsed):
    def findings(expires: str):
        notes = f", expires: {expires}, owner: team-a, ticket: b"
        body = SHOP + "exceptions:\n" + rule("debug", "api", "web", "22", notes)
        return [(each.code, each.severity) for each in lint(parsed(body), NOW)]

    assert findings("2026-06-01T00:00:01Z") == [("BH1014", "warning")]
    assert findings("2026-06-08T00:00:00Z") == [("BH1014", "warning")]
    assert findings("2026-06-08T00:00:01Z") == []


@pytest.mark.parametrize(
    ("metadata", "warned"),
    [
        ("level: platform", True),
        ("level: guardrail", True),
        ("level: guardrail, owner: team-base", False),
        ("level: app", False),
        ("owner: team-a", False),
    ],
)
def test_warn_when_a_policy_for_others_names_no_owner(metadata, warned, linted):
    text = f"apiVersion: bulkhead/v1alpha1\nkind: Policy\nmetadata: {{name: base, {metadata}}}\n"
    assert linted(SHOP, {"base.yaml": text}) == ([("BH1016", 1)] if warned else [])


@pytest.mark.parametrize(
    ("tests", "lines"),
    [
        ('{from: users, deny: ["web:22"]}', [6]),
        ('{from: {tier: app}, deny: ["web:22"]}', []),
        ('{from: users, accept: ["web:443"], deny: ["any:22"]}', []),
    ],
)
def test_warn_about_workloads_that_the_tests_of_their_policy_leave_out(tests, lines, linted):
    assert linted(f"{SHOP}tests:\n  - {tests}\n") == [("BH1017", line) for line in lines]


def test_rules_that_opt_out_of_mutual_tls_are_listed_with_their_owner(parsed):
    until = ', expires: "2027-01-01T00:00:00Z", owner: team-b, ticket: T-1, mtls: "off"'
    body = rule("out", "web", "api", "80", ', mtls: "off"') + rule("in", "web", "api", "81", ", mtls: required")
    found = lint(parsed(SHOP + body + "exceptions:\n" + rule("late", "web", "api", "82", until)), NOW)
    assert [(each.code, each.loc.line) for each in found] == [("BH1015", 12), ("BH1015", 15)]
    assert [each.message.rpartition(" ")[2] for each in found] == ["nobody", "team-b"]


def test_warn_where_plaintext_is_permitted_beside_a_rule_that_asks_for_mutual_tls(parsed):
    body = rule("strict", "web", "api", "80") + rule("plain", "any", "api", '"1-100"', ', mtls: "off"')
    until = ', expires: "2027-01-01T00:00:00Z", owner: team-b, ticket: T-1, mtls: "off"'
    passing = "exceptions:\n" + rule("late", "web", "api", "80", until)
    found = [each for each in lint(parsed(SHOP + body + passing), NOW) if each.code == "BH1019"]
    assert [(each.loc.line, each.related[0][0].line) for each in found] == [(13, 12), (15, 12)]
    assert ["no effect" in each.hint for each in found] == [False, True]
    apart = rule("strict", "web", "api", "80") + rule("plain", "web", "api", "81", ', mtls: "off"')
    assert [each.code for each in lint(parsed(SHOP + apart), NOW)] == ["BH1015"]


def test_a_rule_that_permits_plaintext_is_not_covered_by_one_that_does_not(linted):
    strict, plain = rule("wide", "web", "api", '"1-100"'), rule("plain", "web", "api", "80", ', mtls: "off"')
    assert [code for code, _ in linted(SHOP + strict + plain) if code == "BH1001"] == []
    strict, plain = rule("one", "web", "api", "80"), rule("wide", "web", "api", '"1-100"', ', mtls: "off"')
    assert ("BH1001", 12) in linted(SHOP + strict + plain)


def test_warn_about_an_invariant_without_a_reason(linted):
    never = "never:\n  - {name: apart, from: api, to: web"
    assert linted(f"{SHOP}{never}}}\n") == [("BH1018", 13)]
    assert linted(f"{SHOP}{never}, why: they are apart}}\n") == []


def test_every_finding_has_a_place_with_its_line(parsed):
    wide = rule("mesh", "any", "any", "any") + rule("out", "web", "world", "any") + rule("in", "world", "web", "22")
    found = lint(parsed(SHOP + wide + "never:\n  - {name: apart, from: users, to: host}\n"), NOW)
    assert len({each.code for each in found}) >= 5
    assert all(each.source_line and each.loc.line for each in found)


def test_an_expired_exception_is_an_error_and_one_that_lasts_is_not(parsed):
    def findings(expires: str):
        notes = f", expires: {expires}, owner: a, ticket: b"
        body = SHOP + "exceptions:\n" + rule("debug", "api", "web", "22", notes)
        return [(each.code, each.severity) for each in lint(parsed(body), NOW)]

    assert findings("2026-06-01T00:00:00Z") == [("BH1004", "error")]
    assert findings("2026-06-01T02:00:00+02:00") == [("BH1004", "error")]
    assert findings("2026-07-01T00:00:01Z") == []


def test_warn_when_labels_select_no_workload(parsed):
    (found,) = check(parsed(SHOP + rule("web-data", "web", "{tier: data}", "5432")))
    assert (found.code, found.severity, found.loc.line) == ("BH0505", "warning", 12)
    assert found.source_line.startswith("  - {name: web-data")


def test_warn_about_what_no_rule_names(linted):
    body = SHOP.split("allow:")[0]
    assert linted(body) == [("BH1005", 5), ("BH1005", 6), ("BH1006", 8)]
    assert linted(body + "allow:\n" + rule("a", "any", "host", "53/udp")) == [("BH1006", 8)]
    assert ("BH1006", 8) not in linted(body + 'tests:\n  - {from: users, deny: ["api:1"]}\n')


def test_warn_when_hosts_are_enforced_without_a_lifeline(linted):
    text = "apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: a\nhosts: {mode: enforce"
    assert linted(SHOP, {"bulkhead.yaml": f"{text}}}\n"}) == [("BH1007", 1)]
    assert linted(SHOP, {"bulkhead.yaml": f'{text}, lifeline: [{{from: users, to: "host:22"}}]}}\n'}) == []


def test_warn_when_an_except_takes_nothing_away(linted):
    body = SHOP.replace("cidr: [198.51.100.0/24]", 'cidr: [198.51.100.0/24], except: [10.0.0.0/8, "::/0"]')
    assert linted(body) == [("BH1008", 8), ("BH1008", 8)]
