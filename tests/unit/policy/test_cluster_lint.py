"""What lint says of Kubernetes policies, which needs no cluster."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from bulkhead.dataplane.lint import lint
from bulkhead.policy.parse import parse

NOW = datetime(2026, 6, 1, tzinfo=UTC)
NETPOL = (
    "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web, namespace: shop}\nspec:\n"
    "  podSelector: {matchLabels: {app: web}}\n"
)
ADMIN = (
    "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: base}\n"
    "spec:\n  tier: Admin\n  priority: 10\n  subject: {namespaces: {}}\n"
)


def rule(peer: str, ports: str = "{port: 443}", direction: str = "ingress") -> str:
    end = "from" if direction == "ingress" else "to"
    return f"{NETPOL}  {direction}:\n    - {{{end}: [{peer}], ports: [{ports}]}}\n"


def accepting(peer: str, more: str = "", action: str = "Accept", direction: str = "ingress") -> str:
    end = "from" if direction == "ingress" else "to"
    return f"{ADMIN}  {direction}:\n    - {{action: {action}, {end}: [{peer}]{more}}}\n"


def selecting(*requirements: str) -> str:
    return rule(f"{{podSelector: {{matchExpressions: [{', '.join(requirements)}]}}}}")


def asks(operator: str, *values: str) -> str:
    listed = f", values: [{', '.join(values)}]" if values else ""
    return f"{{key: tier, operator: {operator}{listed}}}"


@pytest.fixture
def linted(sources_of):
    def run(text: str) -> list[tuple[str, int]]:
        return [(each.code, each.loc.line) for each in lint(parse(sources_of({"k8s.yaml": text})), NOW)]

    return run


@pytest.mark.parametrize(
    "text",
    [
        rule("{podSelector: {}}"),
        rule("{ipBlock: {cidr: 0.0.0.0/0}}"),
        rule("{ipBlock: {cidr: 10.1.2.0/24}}", "{port: 22}"),
        rule("{ipBlock: {cidr: 0.0.0.0/0}}", "{port: ssh}"),
        rule("{ipBlock: {cidr: 0.0.0.0/0}}", "{port: 22}", "egress"),
        accepting("{namespaces: {}}", action="Deny"),
        accepting("{namespaces: {}}", action="Pass"),
        accepting("{namespaces: {matchLabels: {team: ops}}}"),
        accepting("{namespaces: {}}", ", ports: [{portNumber: {port: 53}}]"),
        accepting("{namespaces: {}}").replace("tier: Admin", "tier: Baseline"),
        selecting(asks("In", "x", "y"), asks("In", "y", "z")),
        selecting(asks("NotIn", "x"), asks("DoesNotExist")),
        selecting(asks("Exists"), asks("NotIn", "x", "y")),
    ],
)
def test_what_may_well_be_meant_is_left_alone(text, linted):
    assert linted(text) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (rule("{podSelector: {}}") + "  policyTypes: [Egress]\n", ("BH1021", 7)),
        (rule("{podSelector: {}}", direction="egress") + "  policyTypes: [Ingress]\n", ("BH1021", 7)),
        (selecting(asks("In", "x"), asks("In", "y")), ("BH1023", 7)),
        (selecting(asks("In", "x"), asks("NotIn", "x", "y")), ("BH1023", 7)),
        (selecting(asks("In", "x"), asks("DoesNotExist")), ("BH1023", 7)),
        (selecting(asks("Exists"), asks("DoesNotExist")), ("BH1023", 7)),
        (rule("{podSelector: {}}").replace("{app: web}", "{app: web}, matchExpressions: "
         "[{key: app, operator: NotIn, values: [web]}]"), ("BH1022", 3)),
        (rule("{ipBlock: {cidr: 10.0.0.0/8}}"), ("BH1002", 7)),
        (rule("{ipBlock: {cidr: 192.168.0.0/16}}", direction="egress"), ("BH1002", 7)),
        (rule("{ipBlock: {cidr: 0.0.0.0/0}}", "{port: 22}"), ("BH1012", 7)),
        (NETPOL + "  ingress:\n    - {ports: [{port: 1, endPort: 6000}]}\n", ("BH1012", 7)),
        (rule("{ipBlock: {cidr: '::/0'}}", "{protocol: UDP}"), ("BH1011", 7)),
        (NETPOL + "  ingress:\n    - {}\n", ("BH1011", 7)),
        (accepting("{namespaces: {}}"), ("BH1024", 9)),
        (accepting("{networks: [0.0.0.0/0]}", direction="egress"), ("BH1024", 9)),
    ],
)  # fmt: skip
def test_what_is_most_likely_not_meant(text, found, linted):
    assert linted(text) == [found]
