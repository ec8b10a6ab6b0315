"""The published schema takes what the parser takes, and refuses keys that it does not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from bulkhead.errors import PolicyError
from bulkhead.policy.codes import CODES
from bulkhead.policy.parse import parse
from bulkhead.policy.schema import document, schema
from property import strategies
from unit.policy.conftest import make_sources
from unit.policy.test_meaning import SHOP

ROOT = Path(__file__).parents[3]
HEAD = "apiVersion: bulkhead/v1alpha1\nkind: Policy\nmetadata: {name: shop, level: app, owner: team-shop}\n"
WHOLE = f"""{HEAD}{SHOP}
allow:
  - {{name: https-in, from: users, to: web, ports: [443, "8000-8100", 53/udp, any/tcp, icmp/echo, proto/47]}}
  - {{name: by-label, from: {{zone: a}}, to: [web, api], ports: [any], why: they belong together, mtls: required}}
never:
  - {{name: web-not-db, from: web, to: db, why: card data}}
exceptions:
  - {{name: dba, from: any, to: db, ports: [5432], expires: 2027-01-31T18:00:00Z, owner: dba, ticket: OPS-1}}
tests:
  - {{from: web, accept: ["api:any", "api:443 GET /v1/x"], deny: ["db:5432", "shop/db:53/udp"]}}
"""
REQUESTS = f"""{HEAD}
workloads:
  web: {{match: {{unit: a.service}}, spiffe: "/host/{{host}}/unit/a"}}
allow:
  - name: requests
    from: web
    to: web
    ports: [443]
    l7:
      http:
        - {{methods: [GET], path: "/v1/*", hosts: ["*.example.org:80"]}}
        - {{headers: {{X-A: 1, b: {{prefix: c}}, d: {{present: true}}}}}}
        - {{paths: ["/{{*}}/x"], jwt: {{issuer: corp, subjects: [a], audiences: [b], claims: {{a.b: [c], d: e}}}}}}
    authz: {{rego: shop.orders}}
  - {{name: names, from: web, to: web, ports: [444], l7: {{sni: [a.example.org, "*.example.org"]}}}}
"""


PODS = f"""{HEAD}
scope: {{cluster: prod-eu, namespace: payments}}
workloads:
  api: {{match: {{serviceAccount: "api-*", labels: {{app.example.org/name: api, track: ""}}}}}}
  all: {{match: {{namespace: [payments]}}}}
externals:
  s3: {{fqdn: [Shop.S3.example.com, "*.example.net", xn--bcher-kva.example.]}}
"""
REPOSITORY = f"""
apiVersion: bulkhead/v1alpha1
kind: Repository
trustDomain: example.org
defaults: {{mode: observe, mtls: required}}
hosts: {{mode: observe, lifeline: [{{from: any, to: "host:22"}}]}}
jwt: {{corp: {{issuer: "https://id.example.org", audiences: [a], jwks: '{{"keys": []}}'}}}}
signers:
  - {{name: ann@example.org, level: guardrail, key: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI+/= ann@laptop}}
  - {{name: ann, level: app, key: sk-ssh-ed25519@openssh.com AAAA, expires: 2027-01-31T18:00:00Z}}
  - {{name: bob, level: platform, key: "openpgp:{"0123456789abcdef" * 4}"}}
"""
NODE = f"""
apiVersion: bulkhead/v1alpha1
kind: Node
metadata: {{name: Web-1.example.org}}
key: "{"0123456789abcdef" * 2}0123456789+="
addresses: [10.0.0.1, "fd00::1", 10.244.1.0/24]
number: 17
unknown: address
revoked: true
ca: [AAAA, BBBB]
"""

TRUST_BUNDLE = """
apiVersion: bulkhead/v1alpha1
kind: TrustBundle
metadata: {name: partner.example}
bundle: '{"keys": []}'
"""


class Loader(yaml.SafeLoader):
    """YAML as editors read it: a date is text."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}

VALIDATOR = jsonschema.Draft7Validator(schema())


def documents(text: str) -> list[Any]:
    return [found for found in yaml.load_all(text, Loader) if found is not None]


def valid(text: str) -> bool:
    return all(VALIDATOR.is_valid(found) for found in documents(text))


def test_the_published_schema_is_fresh() -> None:
    assert (ROOT / "docs/schema/v1alpha1.json").read_text() == document()


def test_the_schema_is_one() -> None:
    jsonschema.Draft7Validator.check_schema(schema())


@pytest.mark.parametrize("path", sorted((ROOT / "policies").rglob("*.yaml")), ids=lambda path: path.name)
def test_every_policy_that_is_shipped_is_valid(path: Path) -> None:
    found = documents(path.read_text())
    assert found
    for one in found:
        VALIDATOR.validate(one)


@settings(max_examples=30, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(strategies.policy_sets())
def test_whatever_the_parser_takes_is_valid(policy_set) -> None:
    for text in strategies.files_of(policy_set).values():
        for one in documents(text):
            VALIDATOR.validate(one)


@pytest.mark.parametrize(
    "text", [WHOLE, PODS, REPOSITORY, NODE, TRUST_BUNDLE], ids=["hosts", "pods", "repository", "node", "trust bundle"]
)
def test_every_part_of_the_language_is_valid(text: str) -> None:
    VALIDATOR.validate(documents(text)[0])


def test_every_key_says_what_it_is() -> None:
    definitions = schema()["definitions"]
    silent = [
        f"{name}.{key}"
        for name, definition in definitions.items()
        for key, value in definition.get("properties", {}).items()
        if not (value.get("description") or definitions[value.get("$ref", "/").rpartition("/")[2]].get("description"))
    ]
    assert silent == []


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("scope: {cluster: prod-eu, namespace: payments}", "scope: {namespace: payments}"),
        ('{serviceAccount: "api-*", ', "{unit: api.service, "),
        ("{namespace: [payments]}", "{namespace: payments, all: true}"),
        ("{namespace: [payments]}", "{namespace: payments, host: node-1}"),
        ("{namespace: [payments]}", "{labels: {}}"),
        ("{namespace: [payments]}", "{labels: {app: a/b}}"),
        ("{namespace: [payments]}", "{labels: {app: [a]}}"),
        ('"*.example.net"', '"*.net"'),
        ('"*.example.net"', '"a.*.net"'),
        ('"*.example.net"', "localhost"),
        ("{fqdn: ", "{cidr: [192.0.2.0/24], fqdn: "),
        ("{fqdn: ", "{except: [192.0.2.0/24], fqdn: "),
        ("{fqdn: [Shop.S3.example.com, ", "{except: ["),
    ],
)
def test_pods_and_names_of_another_form_are_invalid(part: str, wrong: str) -> None:
    assert part in PODS
    assert not valid(PODS.replace(part, wrong))


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("ssh-ed25519", "ssh-dss"),
        ("ssh-ed25519", "ssh-ed25519-cert"),
        ("openpgp:0123", "openpgp:"),
        ("level: guardrail", "level: root"),
        ("name: bob", "name: bob other"),
        (", level: platform", ""),
    ],
)
def test_signers_of_another_form_are_invalid(part: str, wrong: str) -> None:
    assert part in REPOSITORY
    assert not valid(REPOSITORY.replace(part, wrong))


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("name: Web-1", "name: -Web-1"),
        ("name: Web-1", "owner: shop, name: Web-1"),
        ("0123456789+=", "0123456789+"),
        ("[10.0.0.1, ", "[web-1, "),
        ("17", "16777216"),
        ("17", "0"),
        ("unknown: address", "unknown: allow"),
        ("revoked: true", 'revoked: "true"'),
        ("revoked: true", "colour: red"),
        ("metadata: {name: Web-1.example.org}", ""),
    ],
)
def test_nodes_of_another_form_are_invalid(part: str, wrong: str) -> None:
    assert part in NODE
    assert not valid(NODE.replace(part, wrong))


def test_examples_of_warnings_are_valid() -> None:
    examples = [code.example for code in CODES.values() if code.severity == "warning" and code.example.endswith("\n")]
    assert examples
    own = [text for text in examples if "bulkhead/" in text and "istio.io/" not in text]
    assert [text for text in own if _parses(text) and not valid(text)] == []


def _parses(text: str) -> bool:
    name = "bulkhead.yaml" if "kind: Repository" in text else "shop.yaml"
    try:
        parse(make_sources({name: text}))
    except PolicyError:
        return False
    return True


FORMS = (
    "BH0203",
    "BH0204",
    "BH0205",
    "BH0206",
    "BH0207",
    "BH0210",
    "BH0301",
    "BH0302",
    "BH0316",
    "BH0318",
    "BH0323",
    "BH0325",
    "BH0326",
)


@pytest.mark.parametrize("number", FORMS)
def test_what_the_parser_refuses_for_its_form_is_invalid(number: str) -> None:
    text = CODES[number].example
    assert not _parses(text)
    assert not valid(text)


PLACES: list[tuple[Any, ...]] = [
    (),
    ("metadata",),
    ("workloads", "web"),
    ("workloads", "web", "match"),
    ("externals", "users"),
    ("allow", 0),
    ("never", 0),
    ("exceptions", 0),
    ("tests", 0),
]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)) or "document")
def test_unknown_keys_are_invalid_everywhere(place: tuple[Any, ...]) -> None:
    whole = documents(WHOLE)[0]
    inner = whole
    for step in place:
        inner = inner[step]
    inner["colour"] = "red"
    assert not VALIDATOR.is_valid(whole)
