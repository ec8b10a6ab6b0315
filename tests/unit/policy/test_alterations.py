"""What is written differently: each thing that an author can change is named with both of its texts."""

from __future__ import annotations

import pytest

from bulkhead.policy.alterations import alterations
from bulkhead.policy.keys import key_fingerprint
from bulkhead.policy.model import PolicySet
from bulkhead.policy.parse import parse

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGtra2tra2tra2tra2tra2tra2tra2tra2tra2tra2tr"
REPOSITORY = "apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: example.org\n"
WORKLOAD = "workloads:\n  web: {match: {MATCH}}\n"


def told(before: PolicySet, after: PolicySet) -> list[tuple[str, str, str, dict[str, tuple[str, str]]]]:
    return [
        (one.what, one.kind, one.name, {each.field: (each.before, each.after) for each in one.details})
        for one in alterations(before, after, ())
    ]


@pytest.mark.parametrize(
    ("one", "other", "details"),
    [
        (
            "namespace: shop",
            "namespace: shop, serviceAccount: [a, b]",
            ("namespace: shop", "namespace: shop, serviceAccount: a, b"),
        ),
        (
            "namespace: shop, labels: {app: web}",
            "namespace: shop, labels: {app: web, track: ''}",
            ("namespace: shop, labels: {app: web}", "namespace: shop, labels: {app: web, track: }"),
        ),
        ("all: true", 'namespace: "*"', ("all: true", "namespace: *")),
    ],
)
def test_selectors_of_pods(one, other, details, parsed):
    before, after = (parsed(WORKLOAD.replace("MATCH", text)) for text in (one, other))
    assert told(before, after) == [("changed", "workload", "shop/web", {"match": details})]


def test_a_scope_and_what_it_does_to_the_workloads(parsed):
    body = WORKLOAD.replace("MATCH", "namespace: shop")
    found = told(parsed(body), parsed(f"scope: {{cluster: prod, namespace: shop}}\n{body}"))
    assert found == [
        ("changed", "policy", "shop", {"scope.cluster": ("", "prod"), "scope.namespace": ("", "shop")}),
        ("changed", "workload", "shop/web", {"match": ("namespace: shop", "namespace: shop, cluster: prod")}),
    ]


def test_names_of_an_external(parsed):
    before, after = (
        parsed(f"externals:\n  s3: {{fqdn: [{names}]}}\n") for names in ("a.example", "a.example, b.example")
    )
    assert told(before, after) == [
        ("changed", "external", "shop/s3", {"fqdn": ("a.example", "a.example, b.example")}),
    ]


def test_signers_are_known_by_their_key(parsed):
    def signers(*items: str) -> PolicySet:
        lines = "".join(f"  - {{{item}}}\n" for item in items)
        return parsed(files={"bulkhead.yaml": f"{REPOSITORY}signers:\n{lines}" if items else REPOSITORY})

    name = f"ann {key_fingerprint(KEY)}"
    plain = signers(f"name: ann, level: app, key: {KEY}")
    assert told(signers(), plain) == [("added", "signer", name, {"level": ("", "app")})]
    assert told(plain, signers()) == [("removed", "signer", name, {"level": ("app", "")})]
    raised = signers(f"name: ann, level: guardrail, key: {KEY} laptop, expires: 2027-01-31T18:00:00Z")
    details = {"level": ("app", "guardrail"), "expires": ("", "2027-01-31T18:00:00+00:00")}
    assert told(plain, raised) == [("changed", "signer", name, details)]
    other = signers(f"name: ann, level: app, key: 'openpgp:{'A' * 40}'")
    assert [(what, of) for what, _, of, _ in told(plain, other)] == [("added", f"ann {'A' * 40}"), ("removed", name)]


NETPOL = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web, namespace: shop}\nspec: "
ADMIN = (
    "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: base}\n"
    "spec: {tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [RULES]}\n"
)
MANY = ", ".join(f"{{ipBlock: {{cidr: 192.0.2.{number}/32}}}}" for number in range(9))


def opened(*ports: int) -> str:
    rules = ", ".join(f"{{ports: [{{port: {port}}}]}}" for port in ports)
    return f"{NETPOL}{{ingress: [{rules}]}}\n"


def denied(*names: str) -> str:
    rules = [f"{{name: {one}, action: Deny, from: [{{namespaces: {{}}}}]}}" for one in names]
    return ADMIN.replace("RULES", ", ".join(rules))


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        ("", opened(80), [("added", "NetworkPolicy", "shop/web"), ("added", "rule", "netpol/shop/web/ingress-1")]),
        (opened(80), opened(81), [("changed", "rule", "netpol/shop/web/ingress-1")]),
        (opened(80, 81), opened(79, 80, 81), [("added", "rule", "netpol/shop/web/ingress-1")]),
        (opened(80, 81, 82), opened(80, 82), [("removed", "rule", "netpol/shop/web/ingress-2")]),
        (opened(80, 81), opened(81, 80), []),
        (opened(80), opened(80).replace("{ingress", "{policyTypes: [Ingress, Egress], ingress"), [
            ("changed", "NetworkPolicy", "shop/web")]),
        (denied("a", "b"), denied("b", "a"), [("changed", "ClusterNetworkPolicy", "base")]),
        (denied("a", "a"), denied("a"), [
            ("changed", "ClusterNetworkPolicy", "base"), ("removed", "rule", "cnp/base/a (2)")]),
        (f"{NETPOL}{{ingress: [{{from: [{MANY}]}}]}}\n",
         f"{NETPOL}{{ingress: [{{from: [{MANY.replace('.8/32', '.9/32')}]}}]}}\n",
         [("changed", "rule", "netpol/shop/web/ingress-1")]),
    ],
)  # fmt: skip
def test_kubernetes_policies_rule_by_rule(one, other, found, sources_of):
    before, after = (parse(sources_of({"k8s.yaml": text} if text else {})) for text in (one, other))
    assert [(what, kind, name) for what, kind, name, _ in told(before, after)] == found


def test_a_changed_rule_is_placed_in_both_commits(sources_of):
    before, after = (parse(sources_of({"k8s.yaml": text})) for text in (opened(80), "# moved\n" + opened(81)))
    (one,) = alterations(before, after, ())
    assert one.before is not None
    assert one.after is not None
    assert (one.before.line, one.after.line) == (4, 5)
    assert [tuple(each) for each in one.details] == [("ports", "80", "81")]
