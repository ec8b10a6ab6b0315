"""Policies of Kubernetes namespaces: `scope`, and selectors of pods."""

from __future__ import annotations

import pytest

from bulkhead.policy.model import Match, Scope

WHOLE = "scope: {cluster: prod-eu, namespace: payments}\n"
CLUSTER = "scope: {cluster: prod-eu}\n"


def workload(match: str, scope: str = "") -> str:
    return f"{scope}workloads:\n  web: {{match: {match}}}\n"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (workload("{namespace: shop}"), Match(namespace=("shop",))),
        (
            workload('{namespace: [shop, "shop-*"], serviceAccount: "web-?"}'),
            Match(namespace=("shop", "shop-*"), service_account=("web-?",)),
        ),
        (
            workload('{namespace: "*", labels: {track: "", app.example.org/name: Web_1}}'),
            Match(namespace=("*",), labels=(("app.example.org/name", "Web_1"), ("track", ""))),
        ),
        (
            workload("{serviceAccount: [api, api-2]}", WHOLE),
            Match(namespace=("payments",), service_account=("api", "api-2"), cluster="prod-eu"),
        ),
        (
            workload("{namespace: payments, labels: {app: api}}", WHOLE),
            Match(namespace=("payments",), labels=(("app", "api"),), cluster="prod-eu"),
        ),
        (workload("{namespace: [a, b]}", CLUSTER), Match(namespace=("a", "b"), cluster="prod-eu")),
    ],
)
def test_pods_are_selected_within_the_scope(text, match, parsed):
    (found,) = parsed(text).workloads
    assert found.match == match
    assert found.match.of_pods


def test_the_scope_may_stand_behind_the_workloads(parsed):
    (found,) = parsed(workload("{labels: {app: api}}") + WHOLE).workloads
    assert found.match.namespace == ("payments",)


@pytest.mark.parametrize(
    ("scope", "expected"), [("", None), (CLUSTER, Scope("prod-eu", "")), (WHOLE, Scope("prod-eu", "payments"))]
)
def test_policies_keep_their_scope(scope, expected, parsed):
    assert parsed(scope).policies[0].scope == expected


def test_a_scope_binds_its_own_policy_only(parsed):
    other = "apiVersion: bulkhead/v1alpha1\nkind: Policy\nmetadata: {name: nodes}\n"
    other += "workloads:\n  kubelet: {match: {unit: kubelet.service}}\n"
    rule = "allow:\n  - {name: probes, from: nodes/kubelet, to: web, ports: [8080]}\n"
    policy_set = parsed(workload("{serviceAccount: web}", WHOLE) + rule, files={"nodes.yaml": other})
    assert [each.match.of_pods for each in policy_set.workloads] == [False, True]
    assert policy_set.rules[0].source.workloads == ("nodes/kubelet",)


def test_a_scope_that_is_not_sound_is_the_only_finding(refused):
    rule = "allow:\n  - {name: in, from: any, to: web, ports: [443]}\n"
    (found,) = refused(workload("{serviceAccount: web}", "scope: {namespace: payments}\n") + rule)
    assert found.code == "BH0206"


def test_whoever_writes_all_in_a_scope_is_told_what_to_write(refused):
    (found,) = refused(workload("{all: true}", WHOLE))
    assert (found.code, found.hint) == ("BH0508", "write `namespace: payments`")
