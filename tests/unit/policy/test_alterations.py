"""What is written differently: each thing that an author can change is named with both of its texts."""

from __future__ import annotations

import pytest

from bulkhead.policy.alterations import alterations
from bulkhead.policy.keys import key_fingerprint
from bulkhead.policy.model import PolicySet

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
