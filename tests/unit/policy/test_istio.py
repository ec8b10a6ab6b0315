"""Istio's policies as they are read: every field, every default, and how they stand beside the other languages."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from bulkhead.policy.istio import (
    Action,
    AuthorizationPolicy,
    Mode,
    Operation,
    PeerAuthentication,
    Source,
    When,
    selects,
)
from bulkhead.policy.levels import needed
from bulkhead.policy.model import Level

AUTHORIZATION = (
    "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: web, namespace: shop}\nspec:"
)
PEER = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: mtls, namespace: shop}\nspec:"


@pytest.fixture
def policies(parsed):
    """The policies of one file of Istio's."""

    def run(text: str) -> tuple:
        return parsed(files={"istio.yaml": text}).istio

    return run


@pytest.fixture
def rules(policies):
    """The rules of one AuthorizationPolicy of which `rules` are given."""

    def run(text: str) -> tuple:
        return policies(f"{AUTHORIZATION} {{rules: {text}}}\n")[0].rules

    return run


def test_an_empty_specification_is_an_allow_that_allows_nothing(policies):
    (policy,) = policies(f"{AUTHORIZATION} {{}}\n")
    assert isinstance(policy, AuthorizationPolicy)
    assert (policy.action, policy.rules, policy.labels) == (Action.ALLOW, (), ())
    assert (policy.qualified, policy.decides, policy.loc.line) == ("authz/shop/web", True, 3)


def test_an_empty_rule_is_about_everything(rules):
    (rule,) = rules("[{}]")
    assert (rule.sources, rule.operations, rule.when, rule.name) == ((), (), (), "rule-1")


def test_every_field_of_a_source_is_read(rules):
    names = "principals", "requestPrincipals", "namespaces", "trustDomains"
    fields = [f"{name}: [{name.lower()}/x]" for name in names[:2]] + [
        "namespaces: [shop-*]",
        "trustDomains: [example.*]",
    ]
    fields += ["notPrincipals: ['*/ns/a/sa/b']", "notRequestPrincipals: ['*']", "notNamespaces: [a, b, a]"]
    fields += ["notTrustDomains: ['*']", "ipBlocks: [192.0.2.1, 2001:db8::/32]", "notIpBlocks: [192.0.2.0/24]"]
    fields += ["remoteIpBlocks: [10.0.0.0/8]", "notRemoteIpBlocks: [10.1.0.0/16]"]
    (rule,) = rules(
        f"[{{from: [{{source: {{{', '.join(fields)}}}}}, {{source: {{serviceAccounts: [shop/web, api]}}}}]}}]"
    )
    assert rule.sources == (
        Source(
            principals=("principals/x",),
            not_principals=("*/ns/a/sa/b",),
            request_principals=("requestprincipals/x",),
            not_request_principals=("*",),
            namespaces=("shop-*",),
            not_namespaces=("a", "b"),
            trust_domains=("example.*",),
            not_trust_domains=("*",),
            ip_blocks=(ip_network("192.0.2.1"), ip_network("2001:db8::/32")),
            not_ip_blocks=(ip_network("192.0.2.0/24"),),
            remote_ip_blocks=(ip_network("10.0.0.0/8"),),
            not_remote_ip_blocks=(ip_network("10.1.0.0/16"),),
        ),
        Source(service_accounts=("shop/web", "api")),
    )


def test_every_field_of_an_operation_is_read(rules):
    fields = (
        "hosts: [a.example], notHosts: ['*.b'], methods: [GET], notMethods: [POST], ports: ['80'], notPorts: ['22']"
    )
    (rule,) = rules(f"[{{to: [{{operation: {{{fields}, paths: ['/a/{{*}}/b', '/c*'], notPaths: ['*.html']}}}}]}}]")
    assert rule.operations == (
        Operation(("a.example",), ("*.b",), (80,), (22,), ("GET",), ("POST",), ("/a/{*}/b", "/c*"), ("*.html",)),
    )


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        ("source.ip", "192.0.2.1", When("source.ip", (), ("192.0.2.1/32",))),
        ("source.serviceAccount", "shop/web", When("source.serviceAccount", (), ("shop/web",))),
        ("request.headers[X-Token]", "a*", When("request.headers", ("x-token",), ("a*",))),
        ("request.auth.claims[realm][Roles]", "b", When("request.auth.claims", ("realm", "Roles"), ("b",))),
        ("destination.port", "443", When("destination.port", (), ("443",))),
        ("connection.sni", "*.example.org", When("connection.sni", (), ("*.example.org",))),
    ],
)
def test_conditions_are_read_with_what_stands_in_brackets(key, value, read, rules):
    assert rules(f"[{{when: [{{key: '{key}', values: ['{value}']}}]}}]")[0].when == (read,)


def test_a_custom_policy_names_the_package_that_it_asks(policies):
    (policy,) = policies(f"{AUTHORIZATION} {{action: CUSTOM, provider: {{name: rego/shop.orders}}, rules: [{{}}]}}\n")
    assert (policy.action, policy.provider) == (Action.CUSTOM, "shop.orders")


@pytest.mark.parametrize(("written", "dry_run"), [('"true"', True), ('"false"', False)])
def test_a_dry_run_decides_nothing(written, dry_run, policies):
    annotated = AUTHORIZATION.replace("shop}", f'shop, annotations: {{"istio.io/dry-run": {written}, other: "1"}}}}')
    (policy,) = policies(f"{annotated} {{action: DENY, rules: [{{}}]}}\n")
    assert (policy.dry_run, policy.decides) == (dry_run, not dry_run)


def test_peer_authentication_is_read_with_single_ports(policies):
    fields = "selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: DISABLE}}"
    (policy,) = policies(f"{PEER} {{{fields}}}\n")
    assert isinstance(policy, PeerAuthentication)
    assert (policy.mode, policy.ports, policy.labels) == (Mode.STRICT, ((8080, Mode.DISABLE),), (("app", "web"),))


def test_what_is_not_written_of_peer_authentication_is_unset(policies):
    assert [
        policy.mode
        for policy in policies(f"{PEER} {{}}\n---\n{PEER.replace('name: mtls', 'name: b')} {{mtls: {{}}}}\n")
    ] == [
        Mode.UNSET,
        Mode.UNSET,
    ]


def test_lists_and_the_older_version_are_read(policies):
    items = "  - {apiVersion: security.istio.io/v1beta1, kind: AuthorizationPolicy, metadata: {name: a}, spec: {}}\n"
    assert [each.namespace for each in policies(f"apiVersion: v1\nkind: List\nitems:\n{items}")] == ["default"]
    typed = (
        "apiVersion: security.istio.io/v1\nkind: PeerAuthenticationList\nitems:\n  - {metadata: {name: a}, spec: {}}\n"
    )
    assert [each.qualified for each in policies(typed)] == ["peerauth/default/a"]


def test_rules_are_numbered_behind_those_of_other_languages(parsed):
    native = "workloads:\n  web: {match: {unit: a.service}}\nallow:\n  - {name: a, from: any, to: web, ports: [80]}\n"
    netpol = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: {ingress: [{}, {}]}\n"
    other = AUTHORIZATION.replace("web", "b")
    twice = f"{AUTHORIZATION} {{rules: [{{}}, {{}}]}}\n---\n{PEER} {{}}\n---\n{other} {{rules: [{{}}]}}\n"
    policy_set = parsed(native, files={"a-istio.yaml": twice, "z.yaml": netpol})
    assert [rule.rule_id for policy in policy_set.istio for rule in policy.rules] == [4, 5, 6]
    assert policy_set.last_rule == 6


def test_a_name_is_taken_once_for_each_kind(refused):
    same = f"{AUTHORIZATION} {{}}\n---\n{PEER.replace('mtls', 'web')} {{}}\n---\n{AUTHORIZATION} {{}}\n"
    (found,) = refused(files={"istio.yaml": same})
    assert (found.code, found.loc.line) == ("BH0401", 13)


def test_a_policy_selects_workloads_of_hosts_by_namespace_and_labels(parsed):
    body = (
        "workloads:\n  web: {match: {unit: a.service}, labels: {app: web, tier: front}}\n"
        "  api: {match: {unit: b.service}}\n  pod: {match: {namespace: shop}, labels: {app: web}}\n"
    )
    labelled = f"{AUTHORIZATION} {{selector: {{matchLabels: {{app: web}}}}}}\n"
    files = [
        labelled,
        f"{AUTHORIZATION.replace('name: web', 'name: all')} {{}}\n",
        f"{AUTHORIZATION.replace('shop', 'istio-system')} {{}}\n",
        f"{AUTHORIZATION.replace('shop', 'bank')} {{}}\n",
    ]
    policy_set = parsed(body, files={"istio.yaml": "---\n".join(files)})
    selected = [[one.name for one in policy_set.workloads if selects(policy, one)] for policy in policy_set.istio]
    assert selected == [["web"], ["web", "api"], ["web", "api"], []]


@pytest.mark.parametrize(("namespace", "level"), [("shop", Level.APP), ("istio-system", Level.GUARDRAIL)])
def test_what_is_about_every_namespace_needs_the_highest_level(namespace, level):
    text = f"{AUTHORIZATION.replace('shop', namespace)} {{}}\n".encode()
    assert needed({}, {"istio.yaml": text}).level is level
