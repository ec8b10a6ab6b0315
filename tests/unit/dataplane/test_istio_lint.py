"""What lint says of Istio's policies."""

from __future__ import annotations

import pytest

from bulkhead.dataplane.lint import lint
from unit.dataplane.test_istio import ALLOW, NOW, authorization, peer, policy

GET = "to: [{operation: {methods: [GET], ports: ['80']}}]"
NATIVE = ALLOW % ("db", "web", "80")
SELECTED = "selector: {matchLabels: {app: web}}"


def codes(*istio: str, native: str = NATIVE) -> list[str]:
    return [found.code for found in lint(policy(*istio, native=native), NOW) if found.code.startswith("BH13")]


@pytest.mark.parametrize(
    "document",
    [
        authorization("{rules: [{}]}"),
        authorization(f"{{{SELECTED}, action: DENY, rules: [{{{GET}}}]}}"),
        authorization(f"{{{SELECTED}, action: DENY, rules: [{{from: [{{source: {{notPrincipals: ['*']}}}}]}}]}}"),
        authorization("{selector: {matchLabels: {app: api}}}"),
        authorization("{action: DENY, rules: [{to: [{operation: {ports: ['22']}}]}]}", "istio-system"),
        peer("{mtls: {mode: STRICT}}"),
        peer("{}"),
    ],
)
def test_what_may_well_be_meant_is_left_alone(document) -> None:
    assert codes(document) == []


@pytest.mark.parametrize(
    ("document", "code"),
    [
        (authorization("{rules: [{}]}", "shoop"), "BH1321"),
        (authorization("{selector: {matchLabels: {app: wep}}, rules: [{}]}"), "BH1321"),
        (authorization("{rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]}"), "BH1322"),
        (authorization("{rules: [{from: [{source: {namespaces: [shop]}}]}]}"), "BH1322"),
        (authorization("{rules: [{from: [{source: {notPrincipals: ['*']}}]}]}"), "BH1322"),
        (authorization("{selector: {matchLabels: {app: api}}, action: DENY, rules: [{}]}"), "BH1323"),
        (authorization("{rules: [{to: [{operation: {methods: [GET]}}]}]}"), "BH1324"),
        (authorization(f"{{{SELECTED}, action: AUDIT, rules: [{{{GET}}}]}}"), "BH1325"),
        (peer("{mtls: {mode: PERMISSIVE}}"), "BH1326"),
        (peer(f"{{{SELECTED}, mtls: {{mode: STRICT}}, portLevelMtls: {{'80': {{mode: DISABLE}}}}}}"), "BH1326"),
        (authorization(f"{{{SELECTED}, action: DENY}}"), "BH1327"),
        (peer("{mtls: {mode: STRICT}}") + "---\n" + peer("{mtls: {mode: DISABLE}}", name="b"), "BH1328"),
        (authorization("{}"), "BH1329"),
    ],
)
def test_what_is_most_likely_not_meant(document, code) -> None:
    assert codes(document) == [code]


def test_what_is_recorded_by_request_where_requests_are_judged_is_left_alone() -> None:
    recorded = authorization(f"{{{SELECTED}, action: AUDIT, rules: [{{{GET}}}]}}", name="a")
    assert codes(recorded, authorization(f"{{{SELECTED}, action: DENY, rules: [{{{GET}}}]}}")) == []


def test_an_exception_from_mutual_tls_names_the_owner_of_the_namespace() -> None:
    (found,) = [each for each in lint(policy(peer("{mtls: {mode: DISABLE}}")), NOW) if each.code == "BH1326"]
    assert found.message.endswith("its owner is team-shop")
