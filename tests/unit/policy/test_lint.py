from __future__ import annotations

from datetime import UTC, datetime

import pytest

from bulkhead.policy.check import check
from bulkhead.policy.lint import lint

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
    body = (
        SHOP + rule("more", "web", "api", "22") + "exceptions:\n" + rule("debug", "web", "api", "22, 8443", exception)
    )
    assert linted(body) == []
    body = SHOP + "exceptions:\n" + rule("debug", "web", "api", "8443", exception)
    assert linted(body) == [("BH1001", 13)]


@pytest.mark.parametrize(
    ("external", "warned"),
    [
        ("cidr: [10.0.0.0/8]", True),
        ("cidr: [192.168.0.0/16]", True),
        ("cidr: [172.0.0.0/8]", True),
        ('cidr: ["fc00::/7"]', True),
        ("cidr: [0.0.0.0/1]", True),
        ("cidr: [10.9.0.0/24]", False),
        ('cidr: [0.0.0.0/0, "::/0"]', False),
        ("cidr: [172.0.0.0/8], except: [172.16.0.0/12]", False),
        ("cidr: [172.0.0.0/8], except: [172.16.0.0/16]", True),
    ],
)
def test_warn_when_a_private_network_is_trusted_whole(external, warned, linted):
    body = SHOP.replace("cidr: [198.51.100.0/24]", external)
    assert [code for code, _ in linted(body)] == (["BH1002"] if warned else [])


@pytest.mark.parametrize(
    ("ends", "ports", "warned"),
    [
        ("web, to: api", "any", True),
        ("any, to: any", "1-65535/udp", True),
        ("web, to: api", "icmp", False),
        ("users, to: web", "any", False),
        ("web, to: api", "1-1024", False),
    ],
)
def test_warn_when_every_port_is_opened_between_workloads(ends, ports, warned, linted):
    body = SHOP.split("allow:")[0] + f"allow:\n  - {{name: a, from: {ends}, ports: [{ports}]}}\n"
    assert ("BH1003" in {code for code, _ in linted(body)}) is warned


def test_an_expired_exception_is_an_error_and_one_that_lasts_is_not(parsed):
    def findings(expires: str):
        notes = f", expires: {expires}, owner: a, ticket: b"
        body = SHOP + "exceptions:\n" + rule("debug", "api", "web", "22", notes)
        return [(each.code, each.severity) for each in lint(parsed(body), NOW)]

    assert findings("2026-06-01T00:00:00Z") == [("BH1004", "error")]
    assert findings("2026-06-01T02:00:00+02:00") == [("BH1004", "error")]
    assert findings("2026-06-01T00:00:01Z") == []


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
