"""What Istio's policies make of rules: what they open, what they take away, what they leave to the proxy."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

import pytest

from bulkhead.abi import Direction
from bulkhead.config import Lifeline
from bulkhead.dataplane.compile import compile_commit
from bulkhead.dataplane.difference import difference
from bulkhead.dataplane.entries import MTLS, REQUESTS
from bulkhead.dataplane.istio import clauses, mtls_override
from bulkhead.dataplane.lint import lint
from bulkhead.dataplane.requests import Effect
from bulkhead.dataplane.resolve import resolve
from bulkhead.errors import PolicyError
from bulkhead.policy.lifeline import with_lifeline
from bulkhead.policy.model import PolicySet
from bulkhead.policy.parse import parse
from bulkhead.policy.source import SourceFile, Sources

NOW = datetime(2026, 7, 1, tzinfo=UTC)
REPOSITORY = "apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: example.org\n"
SHOP = """apiVersion: bulkhead/v1alpha1
kind: Policy
metadata: {name: shop, owner: team-shop}
workloads:
  web: {match: {unit: web.service}, labels: {app: web}}
  api: {match: {unit: api.service}, labels: {app: api}}
  db: {match: {unit: db.service}}
externals:
  office: {cidr: [192.0.2.0/24]}
  users: {cidr: [0.0.0.0/0, "::/0"], except: [192.0.2.0/24]}
"""
ALLOW = "allow:\n  - {name: in, from: %s, to: %s, ports: [%s]}\n"
WEB, API, DB = "shop/web", "shop/api", "shop/db"


def authorization(spec: str, namespace: str = "shop", name: str = "p", more: str = "") -> str:
    metadata = f"{{name: {name}, namespace: {namespace}{more}}}"
    return f"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {metadata}\nspec: {spec}\n"


def peer(spec: str, namespace: str = "shop", name: str = "mtls") -> str:
    return authorization(spec, namespace, name).replace("AuthorizationPolicy", "PeerAuthentication")


def policy(*istio: str, native: str = "") -> PolicySet:
    """The shop with a native rule or more, and documents of Istio's behind it."""
    texts = {"bulkhead.yaml": REPOSITORY, "istio.yaml": "---\n".join(istio), "shop.yaml": SHOP + native}
    return parse(Sources("", tuple(SourceFile(path, "", text.encode()) for path, text in texts.items() if text)))


def opened(policy_set: PolicySet) -> set[tuple[str, str, str, str]]:
    """Every part of every rule: sources, destinations, ports, and `requests` where those are judged."""
    resolved = resolve(policy_set, None, NOW)
    names = resolved.directory.names

    def shown(members: Iterable[int]) -> str:
        return " ".join(sorted(names[member].removeprefix("shop/") for member in members))

    return {
        (
            shown(found.source.members),
            shown(found.destination.members),
            " ".join(spec.text for spec in found.rule.ports),
            "requests" if found.rule.by_request else "",
        )
        for found in resolved.rules
    }


def test_an_allow_opens_what_the_kernel_can_judge() -> None:
    rule = '[{from: [{source: {principals: [example.org/shop/web]}}], to: [{operation: {ports: ["80", "443"]}}]}]'
    assert opened(policy(authorization(f"{{selector: {{matchLabels: {{app: api}}}}, rules: {rule}}}"))) == {
        ("web", "api", "80 443", "")
    }


@pytest.mark.parametrize("spec", ["{}", "{rules: []}", "{action: DENY, rules: [{}]}", "{action: AUDIT, rules: [{}]}"])
def test_nothing_is_opened_by_the_absence_of_rules_that_match(spec) -> None:
    assert opened(policy(authorization(spec))) == set()


def test_an_empty_rule_opens_every_port_to_every_workload() -> None:
    assert opened(policy(authorization("{rules: [{}]}"))) == {("api db web", "api db web", "any/tcp", "")}


def test_one_rule_is_judged_by_request_where_its_entries_say_something_of_requests() -> None:
    to = '[{operation: {ports: ["22"]}}, {operation: {ports: ["80"], methods: [GET]}}]'
    assert opened(policy(authorization(f"{{selector: {{matchLabels: {{app: api}}}}, rules: [{{to: {to}}}]}}"))) == {
        ("api db web", "api", "22", ""),
        ("api db web", "api", "80", "requests"),
    }


def test_a_deny_takes_ports_and_callers_out_of_native_rules_exactly() -> None:
    rule = '{from: [{source: {principals: [example.org/shop/db]}}], to: [{operation: {ports: ["443"]}}]}'
    deny = authorization(f"{{action: DENY, rules: [{rule}]}}")
    assert opened(policy(deny, native=ALLOW % ("any", "web", "400-500, 53/udp"))) == {
        ("api db web", "web", "53/udp", ""),
        ("api web", "web", "400-500", ""),
        ("db", "web", "400-442 444-500", ""),
    }


def test_a_deny_of_requests_leaves_what_it_touches_to_the_proxy() -> None:
    deny = '{action: DENY, rules: [{to: [{operation: {paths: ["/admin*"], ports: ["80"]}}]}]}'
    assert opened(policy(authorization(deny), native=ALLOW % ("db", "web", "80, 81"))) == {
        ("db", "web", "80", "requests"),
        ("db", "web", "81", ""),
    }


def test_a_custom_asks_its_provider_wherever_it_matches() -> None:
    custom = "{action: CUSTOM, provider: {name: rego/shop.orders}, rules: [{from: [{source: {principals: ['*/db']}}]}]}"
    policy_set = policy(authorization(custom), native=ALLOW % ("[db, api]", "web", "80"))
    assert opened(policy_set) == {("db", "web", "80", "requests"), ("api", "web", "80", "")}
    (clause,) = clauses(policy_set)[WEB]
    assert (clause.effect, clause.provider) == (Effect.CUSTOM, "rego:shop.orders")


@pytest.mark.parametrize("more", ["", ', annotations: {"istio.io/dry-run": "true"}'])
def test_what_changes_no_verdict_changes_no_way_either(more) -> None:
    action = "DENY" if more else "AUDIT"
    spec = f"{{action: {action}, rules: [{{to: [{{operation: {{methods: [GET]}}}}]}}]}}"
    policy_set = policy(authorization(spec, more=more), native=ALLOW % ("db", "web", "80"))
    assert opened(policy_set) == {("db", "web", "80", "")}
    assert [clause.dry_run for clause in clauses(policy_set)[WEB]] == [bool(more)]


def test_clauses_come_in_the_order_in_which_they_are_asked() -> None:
    actions = ("AUDIT", "ALLOW", "DENY", "CUSTOM")
    documents = [authorization(f"{{action: {each}, rules: [{{}}]}}", name=each.lower()) for each in actions]
    documents[3] = documents[3].replace("rules", "provider: {name: rego/a}, rules")
    assert [clause.effect for clause in clauses(policy(*documents))[WEB]] == list(Effect)


# Callers that are no workloads


@pytest.mark.parametrize(
    ("source", "left"),
    [
        ("{namespaces: ['*']}", "443"),
        ("{notPrincipals: ['*']}", ""),
        ("{ipBlocks: [192.0.0.0/16]}", ""),
        ("{ipBlocks: [203.0.113.0/24]}", "443"),
    ],
)
def test_addresses_are_denied_as_far_as_a_rule_says_something_of_them(source, left) -> None:
    deny = f"{{action: DENY, rules: [{{from: [{{source: {source}}}]}}]}}"
    found = opened(policy(authorization(deny), native=ALLOW % ("office", "web", "443")))
    assert found == ({("office", "web", left, "")} if left else set())


@pytest.mark.parametrize(
    "rule",
    [
        "to: [{operation: {paths: ['/admin*']}}]",
        "from: [{source: {ipBlocks: [192.0.2.128/25]}}]",
        "from: [{source: {remoteIpBlocks: [192.0.2.0/24]}}]",
    ],
)
@pytest.mark.parametrize("action", ["action: DENY", "action: CUSTOM, provider: {name: rego/a}"])
def test_refuse_what_would_have_to_be_judged_of_callers_that_come_through_no_proxy(rule, action) -> None:
    """BH1308, at the rule of Istio, with the rule that lets them in beside it."""
    with pytest.raises(PolicyError) as error:
        resolve(
            policy(authorization(f"{{{action}, rules: [{{{rule}}}]}}"), native=ALLOW % ("office", "web", "443")),
            None,
            NOW,
        )
    (found,) = error.value.diagnostics
    assert (found.code, found.loc.file, found.loc.line) == ("BH1308", "istio.yaml", 4)
    assert [loc.file for loc, _ in found.related] == ["shop.yaml"]


def test_a_rule_that_leaves_out_who_is_no_workload_is_not_refused() -> None:
    rule = "from: [{source: {principals: ['*']}}], to: [{operation: {paths: ['/admin*']}}]"
    found = opened(
        policy(authorization(f"{{action: DENY, rules: [{{{rule}}}]}}"), native=ALLOW % ("office", "web", "443"))
    )
    assert found == {("office", "web", "443", "")}


def test_the_operators_lifeline_is_cut_by_nothing() -> None:
    policy_set = policy(authorization("{action: DENY, rules: [{}]}"), native=ALLOW % ("db", "web", "80"))
    with_way_in = with_lifeline(policy_set, [Lifeline("198.51.100.0/24", 22)])
    assert {found.rule.kind for found in resolve(with_way_in, None, NOW).rules} == {"operator"}
    assert len({rule.rule_id for rule in with_way_in.rules} | {policy_set.last_rule}) == 3


# Compiled


def flags(policy_set: PolicySet, source: str, destination: str, port: int) -> int | None:
    compiled = compile_commit(policy_set, "node-1", NOW)
    numbers = {workload.qualified: workload.identity for workload in compiled.workloads}
    key = (numbers[destination], int(Direction.INGRESS), numbers[source], 6, port, 16)
    entry = compiled.entries.get(key)  # type: ignore[call-overload]  # a key is a tuple
    return None if entry is None else entry.flags & (MTLS | REQUESTS)


def test_entries_say_what_is_left_to_the_proxy() -> None:
    deny = '{action: DENY, rules: [{to: [{operation: {methods: [GET], ports: ["80"]}}, {operation: {ports: ["81"]}}]}]}'
    policy_set = policy(authorization(deny), native=ALLOW % ("db", "web", "80, 81, 82"))
    assert [flags(policy_set, DB, WEB, port) for port in (80, 81, 82)] == [MTLS | REQUESTS, None, MTLS]


def test_every_rule_has_a_name_behind_its_number_whatever_it_does() -> None:
    actions = ("ALLOW", "DENY", "AUDIT")
    documents = [authorization(f"{{action: {each}, rules: [{{}}]}}", name=each.lower()) for each in actions]
    compiled = compile_commit(policy(*documents), "node-1", NOW)
    assert [(str(rule.name), rule.kind, rule.loc.line) for rule in compiled.rules.values() if rule.kind != "proxy"] == [
        ("authz/shop/allow/rule-1", "istio", 4),
        ("authz/shop/deny/rule-1", "istio-deny", 9),
        ("authz/shop/audit/rule-1", "istio-audit", 14),
    ]


# Who must prove who he is


MODES = {
    "mesh": peer("{mtls: {mode: PERMISSIVE}}", "istio-system"),
    "namespace": peer("{mtls: {mode: STRICT}}"),
    "workload": peer(
        "{selector: {matchLabels: {app: web}}, mtls: {mode: DISABLE},"
        ' portLevelMtls: {"80": {mode: UNSET}, "81": {mode: STRICT}, "82": {mode: PERMISSIVE}}}',
        name="web",
    ),
    "unset": peer("{selector: {matchLabels: {app: api}}}", name="api"),
    "later": peer("{mtls: {mode: PERMISSIVE}}", name="z"),
}


@pytest.mark.parametrize(
    ("scopes", "workload", "port", "meant"),
    [
        ([], "web", 80, None),
        (["mesh"], "web", 80, False),
        (["mesh", "namespace"], "web", 80, True),
        (["namespace", "later"], "web", 80, True),
        (["mesh", "namespace", "workload"], "web", 8080, False),
        (["mesh", "namespace", "workload"], "web", 80, False),
        (["mesh", "namespace", "workload"], "web", 81, True),
        (["mesh", "namespace", "workload"], "web", 82, False),
        (["mesh", "namespace", "workload"], "db", 81, True),
        (["unset"], "api", 80, None),
        (["unset", "mesh"], "api", 80, False),
        (["unset", "namespace", "mesh"], "api", 80, True),
    ],
)
def test_the_narrowest_scope_that_says_something_decides(scopes, workload, port, meant) -> None:
    policy_set = policy(*(MODES[scope] for scope in scopes))
    found = next(one for one in policy_set.workloads if one.name == workload)
    assert mtls_override(policy_set, found, port) is meant


def test_a_peer_authentication_changes_what_entries_ask_for_port_by_port() -> None:
    policy_set = policy(MODES["workload"], native=ALLOW % ("db", "web", "80, 81"))
    assert [flags(policy_set, DB, WEB, port) for port in (80, 81)] == [0, MTLS]


def test_strict_overrules_a_rule_that_opts_out() -> None:
    native = (ALLOW % ("db", "web", "80")).replace("}", ', mtls: "off"}')
    assert flags(policy(native=native), DB, WEB, 80) == 0
    assert flags(policy(MODES["namespace"], native=native), DB, WEB, 80) == MTLS


def test_requests_are_judged_where_callers_prove_who_they_are_whatever_is_permitted() -> None:
    deny = "{action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}"
    policy_set = policy(authorization(deny), MODES["mesh"], native=ALLOW % ("db", "web", "80"))
    assert flags(policy_set, DB, WEB, 80) == MTLS | REQUESTS


# Beside the rest


def test_a_plan_shows_policies_by_what_they_say_and_by_whom_they_let_in() -> None:
    before = policy(authorization("{action: DENY, rules: [{}]}"), native=ALLOW % ("db", "web", "80"))
    after = policy(
        authorization('{action: DENY, rules: [{to: [{operation: {ports: ["81"]}}]}]}'),
        peer("{mtls: {mode: STRICT}}"),
        native=ALLOW % ("db", "web", "80"),
    )
    found = difference(before, after, NOW)
    assert [(one.source, one.destination, one.kind) for one in found.reach] == [(DB, WEB, "gained")]
    assert [(one.kind, one.name, one.what) for one in found.altered] == [
        ("AuthorizationPolicy", "shop/p", "changed"),
        ("PeerAuthentication", "shop/mtls", "added"),
    ]
    assert [tuple(detail) for detail in found.altered[0].details] == [("rule-1", "everything", "ports: [81]")]


def test_a_rule_of_which_a_part_is_left_is_not_called_superfluous() -> None:
    rule = '{from: [{source: {principals: [example.org/shop/db]}}], to: [{operation: {ports: ["80"]}}]}'
    deny = authorization(f"{{action: DENY, rules: [{rule}]}}")
    native = (ALLOW % ("[db, api]", "web", "80, 81")) + "  - {name: b, from: api, to: web, ports: [80, 81]}\n"
    superfluous = [found for found in lint(policy(deny, native=native), NOW) if found.code == "BH1001"]
    assert [found.message.split("`")[1] for found in superfluous] == ["shop/b"]


def test_invariants_and_tests_are_held_against_what_is_left() -> None:
    native = (
        (ALLOW % ("db", "web", "80"))
        + "never:\n  - {name: apart, from: db, to: web, why: cards}\n"
        + 'tests:\n  - {from: db, deny: ["web:80"]}\n'
    )
    with pytest.raises(PolicyError) as error:
        compile_commit(policy(native=native), None, NOW)
    assert {found.code for found in error.value.diagnostics} == {"BH0501", "BH0502"}
    assert compile_commit(policy(authorization("{action: DENY, rules: [{}]}"), native=native), None, NOW).entries == {}
