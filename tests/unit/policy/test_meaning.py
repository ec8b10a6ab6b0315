"""What an author writes and what is understood."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from ipaddress import ip_network

import pytest

from bulkhead.errors import PolicyError
from bulkhead.policy.model import Entity, Level, Match, Mode, Peer
from bulkhead.policy.parse import ParseCache, parse

SHOP = """\
workloads:
  web: {match: {host: "web-*", unit: [nginx.service, "nginx@*.service"]}, labels: {tier: web, zone: a}, mode: enforce}
  api: {match: {exe: /usr/bin/api, user: 1000, group: [www-data, 33]}, labels: {zone: a}}
  db: {match: {cgroup: "/shop/*/db"}}
  rest: {match: {host: "db-*", all: true}}
externals:
  users: {cidr: [0.0.0.0/0, "::/0"], except: [10.0.0.0/8]}
"""


def allow(rule: str) -> str:
    return f"{SHOP}allow:\n  - {rule}\n"


def test_a_repository_without_policies_allows_nothing(sources_of):
    policy_set = parse(sources_of({}))
    assert policy_set.rules == policy_set.workloads == ()
    assert policy_set.trust_domain == "example.org"
    assert policy_set.host_mode is Mode.OBSERVE


def test_workloads_keep_every_key_of_their_selector(parsed):
    web, api, db, rest = parsed(SHOP).workloads
    assert web.match == Match(host=("web-*",), unit=("nginx.service", "nginx@*.service"))
    assert api.match == Match(exe=("/usr/bin/api",), user=("1000",), group=("www-data", "33"))
    assert db.match == Match(cgroup=("/shop/*/db",))
    assert rest.match == Match(host=("db-*",), everything=True)
    assert (web.mode, api.mode) == (Mode.ENFORCE, Mode.OBSERVE)
    assert web.labels == (("tier", "web"), ("zone", "a"))
    assert (web.loc.line, web.loc.column) == (5, 3)


def test_a_selector_of_hosts_alone_selects_everything_there(parsed):
    (workload,) = parsed('workloads:\n  all: {match: {host: "db-*"}}\n').workloads
    assert workload.match == Match(host=("db-*",), everything=True)


def test_mode_comes_from_the_defaults_when_the_workload_has_none(parsed):
    text = 'apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: a\ndefaults: {mode: enforce, mtls: "off"}\n'
    policy_set = parsed("workloads:\n  web: {match: {unit: a.service}}\n", files={"bulkhead.yaml": text})
    assert policy_set.workloads[0].mode is Mode.ENFORCE
    assert policy_set.host_mode is Mode.OBSERVE


def test_externals_keep_families_apart(parsed):
    (users,) = parsed(SHOP).externals
    assert users.cidr == (ip_network("0.0.0.0/0"), ip_network("::/0"))
    assert users.excluded == (ip_network("10.0.0.0/8"),)


@pytest.mark.parametrize(
    ("written", "peer"),
    [
        ("web", Peer(workloads=("shop/web",), text="web")),
        ("shop/web", Peer(workloads=("shop/web",), text="shop/web")),
        ("[web, api, web]", Peer(workloads=("shop/web", "shop/api"), text="web, api, web")),
        ("any", Peer(entities=(Entity.ANY,), text="any")),
        ("[host, db]", Peer(workloads=("shop/db",), entities=(Entity.HOST,), text="host, db")),
        ("users", Peer(externals=("shop/users",), text="users")),
        ("{zone: a}", Peer(workloads=("shop/web", "shop/api"), text="{zone: a}")),
        ("{zone: a, tier: web}", Peer(workloads=("shop/web",), text="{tier: web, zone: a}")),
        ("{tier: none}", Peer(text="{tier: none}")),
    ],
)
def test_peers_resolve_to_qualified_names(written, peer, parsed):
    assert parsed(allow(f"{{name: a, from: {written}, to: db, ports: [1]}}")).rules[0].source == peer


def test_names_and_labels_reach_across_policies(parsed):
    other = "apiVersion: bulkhead/v1alpha1\nkind: Policy\nmetadata: {name: dns, level: platform, owner: team-net}\n"
    other += "workloads:\n  resolver: {match: {unit: unbound.service}, labels: {zone: a}}\n"
    other += "allow:\n  - {name: dns, from: any, to: resolver, ports: [53/udp, 53]}\n"
    policy_set = parsed(allow("{name: a, from: {zone: a}, to: dns/resolver, ports: [1]}"), files={"dns.yaml": other})
    assert policy_set.rules[1].source.workloads == ("dns/resolver", "shop/web", "shop/api")
    assert policy_set.rules[1].destination.workloads == ("dns/resolver",)
    assert [(each.name, each.level, each.owner) for each in policy_set.policies] == [
        ("dns", Level.PLATFORM, "team-net"),
        ("shop", Level.APP, ""),
    ]


def test_a_qualified_name_works_wherever_a_name_does(parsed):
    other = "apiVersion: bulkhead/v1alpha1\nkind: Policy\nmetadata: {name: net}\n"
    other += "workloads:\n  dns: {match: {unit: unbound.service}}\nexternals:\n  ops: {cidr: [192.0.2.0/24]}\n"
    repository = "apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: a\n"
    repository += 'hosts: {lifeline: [{from: net/ops, to: "host:22"}]}\n'
    body = f"""{SHOP}allow:
  - {{name: out, from: shop/web, to: net/dns, ports: [53/udp]}}
  - {{name: in, from: [net/ops, net/dns], to: shop/api, ports: [443]}}
exceptions:
  - {{name: late, from: net/ops, to: net/dns, ports: [22], expires: 2027-01-31T18:00:00Z, owner: a, ticket: b}}
never:
  - {{name: none, from: [shop/db, net/dns], to: net/ops}}
tests:
  - {{from: net/dns, accept: ["shop/api:443"], deny: ["shop/db:any/tcp", "net/ops:22"]}}
"""
    policy_set = parsed(body, files={"net.yaml": other, "bulkhead.yaml": repository})

    def named(peer: Peer) -> tuple[str, ...]:
        return (*peer.workloads, *peer.externals)

    assert {each.name: (named(each.source), named(each.destination)) for each in policy_set.rules} == {
        "lifeline-1": (("net/ops",), ()),
        "out": (("shop/web",), ("net/dns",)),
        "in": (("net/dns", "net/ops"), ("shop/api",)),
        "late": (("net/ops",), ("net/dns",)),
    }
    (never,), (test,) = policy_set.nevers, policy_set.tests
    assert (named(never.source), named(never.destination)) == (("shop/db", "net/dns"), ("net/ops",))
    assert named(test.source) == ("net/dns",)
    assert [named(each.destination) for each in (*test.accept, *test.deny)] == [
        ("shop/api",),
        ("shop/db",),
        ("net/ops",),
    ]


@pytest.mark.parametrize(
    ("source", "members"),
    [("[web, api]", ("shop/web", "shop/api")), ("{zone: a}", ("shop/web", "shop/api")), ("any", ())],
)
def test_tests_may_ask_of_lists_and_labels(source, members, parsed):
    (test,) = parsed(f'{SHOP}tests:\n  - {{from: {source}, accept: ["api:1", "db:2"], deny: ["web:3"]}}\n').tests
    assert test.source.workloads == members
    assert [each.text for each in (*test.accept, *test.deny)] == ["api:1", "db:2", "web:3"]


def test_rule_ids_follow_files_then_documents_then_allow_before_exceptions(parsed):
    def rule(name: str) -> str:
        return f"{{name: {name}, from: any, to: any, ports: [1]}}"

    def exception(name: str) -> str:
        return f'{rule(name)[:-1]}, expires: "2027-01-31T18:00:00Z", owner: me, ticket: T-1}}'

    def policy(name: str) -> str:
        head = f"apiVersion: bulkhead/v1alpha1\nkind: Policy\nmetadata: {{name: {name}}}\n"
        return f"{head}exceptions: [{exception('late')}]\nallow: [{rule('one')}, {rule('two')}]\n"

    repository = "apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: a\n"
    repository += 'hosts: {lifeline: [{from: any, to: "host:22"}, {from: world, to: "host:icmp"}]}\n'
    files = {"bulkhead.yaml": repository, "a.yaml": f"{policy('m')}---\n{policy('b')}", "Z.yaml": policy("z")}
    rules = parsed(files=files).rules
    assert [each.rule_id for each in rules] == list(range(1, 12))
    assert [each.qualified for each in rules] == [
        "z/one", "z/two", "z/late",
        "m/one", "m/two", "m/late", "b/one", "b/two", "b/late",
        "hosts/lifeline-1", "hosts/lifeline-2",
    ]  # fmt: skip
    assert [each.kind for each in rules[2:4] + rules[-1:]] == ["exception", "allow", "lifeline"]


@pytest.mark.parametrize("written", ["2027-01-31T18:00:00Z", '"2027-01-31T18:00:00Z"', "2027-01-31t19:00:00.0+01:00"])
def test_exceptions_end_at_the_written_instant(written, parsed):
    head = f"exceptions:\n  - {{name: a, from: any, to: any, ports: [22], expires: {written}, "
    rule = parsed(f"{head}owner: team-dba, ticket: OPS-4711, why: look}}\n").rules[0]
    assert rule.expires == datetime(2027, 1, 31, 18, tzinfo=UTC)
    assert rule.expires.utcoffset() in (timedelta(0), timezone(timedelta(hours=1)).utcoffset(None))
    assert (rule.kind, rule.owner, rule.ticket, rule.why) == ("exception", "team-dba", "OPS-4711", "look")


def test_ports_are_as_wide_as_written(parsed):
    rule = parsed(allow('{name: a, from: web, to: db, ports: [443, "80", 8000-8100, 53/udp, icmp/echo, 443]}')).rules[0]
    assert [(each.protocol, each.first, each.last, each.text) for each in rule.ports] == [
        (6, 443, 443, "443"),
        (6, 80, 80, "80"),
        (6, 8000, 8100, "8000-8100"),
        (17, 53, 53, "53/udp"),
        (1, 8 << 8, 8 << 8 | 255, "icmp/echo"),
        (58, 128 << 8, 128 << 8 | 255, "icmp/echo"),
    ]


def test_a_never_without_ports_means_any_port(parsed):
    rules = "  - {name: a, from: web, to: db, why: card data}\n  - {name: b, from: web, to: db, ports: [1]}\n"
    first, second = parsed(f"{SHOP}never:\n{rules}").nevers
    assert (first.ports, first.why) == ((), "card data")
    assert second.ports[0].first == 1


def test_tests_carry_their_targets(parsed):
    (test,) = parsed(f'{SHOP}tests:\n  - {{from: web, accept: ["api:8443"], deny: ["db:53/udp", users:icmp]}}\n').tests
    assert [(each.destination.text, each.port.first, each.text) for each in test.accept] == [("api", 8443, "api:8443")]
    assert [(each.destination.text, each.port.protocol) for each in test.deny] == [
        ("db", 17),
        ("users", 1),
        ("users", 58),
    ]


def test_prose_may_span_lines_and_be_folded(parsed):
    body = f"{SHOP}never:\n  - name: a\n    from: web\n    to: db\n    why: >\n      card\n      data\n"
    assert parsed(body).nevers[0].why == "card data"


def test_places_carry_the_abbreviated_commit(sources_of):
    head = "apiVersion: bulkhead/v1alpha1\nkind: Policy\nmetadata: {name: shop}\n"
    sources = replace(sources_of({"shop.yaml": head + SHOP}), commit="3f2c1ab" + "0" * 33)
    policy_set = parse(sources)
    assert policy_set.commit == sources.commit
    assert policy_set.workloads[0].loc.short == "shop.yaml:5@3f2c1ab"


def test_findings_of_a_cached_file_carry_the_commit_they_are_asked_for(sources_of):
    cache = ParseCache()
    for commit in ("3f2c1ab", "b77e31d"):
        sources = replace(sources_of({"shop.yaml": "a: 1\na: 2\n"}), commit=commit + "0" * 33)
        with pytest.raises(PolicyError) as error:
            parse(sources, cache)
        found = error.value.diagnostics[0]
        assert {found.loc.commit, *(loc.commit for loc, _ in found.related)} == {commit}
