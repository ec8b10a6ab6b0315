"""What rules say of requests, who may sign JWTs, and what workloads are called in their certificates."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from bulkhead.dataplane.compile import compile_commit
from bulkhead.errors import PolicyError
from bulkhead.policy.format import format_file
from bulkhead.policy.l7 import HeaderMatch, JwtMatch, in_full
from bulkhead.policy.model import PolicySet
from bulkhead.policy.parse import parse
from unit.policy.conftest import make_sources

NOW = datetime(2026, 7, 1, tzinfo=UTC)

JWKS = json.dumps({"keys": [{"kty": "RSA", "n": "x", "e": "AQAB"}]})
REPOSITORY = f"""apiVersion: bulkhead/v1alpha1
kind: Repository
trustDomain: example.org
jwt:
  corp: {{issuer: "https://id.example.org", audiences: [api], jwks: '{JWKS}'}}
"""
HEAD = """apiVersion: bulkhead/v1alpha1
kind: Policy
metadata: {name: shop}
workloads:
  web: {match: {unit: nginx.service}, spiffe: "/host/{host}/unit/nginx"}
  api: {match: {unit: api.service}}
externals:
  users: {cidr: [192.0.2.0/24]}
"""


def rule(more: str, source: str = "web", ports: str = "[8443]") -> str:
    return f"{HEAD}allow:\n  - {{name: web-api, from: {source}, to: api, ports: {ports}, {more}}}\n"


def policy_set(text: str, repository: str = REPOSITORY) -> PolicySet:
    return parse(make_sources({"bulkhead.yaml": repository, "shop.yaml": text}))


def refused(text: str, repository: str = REPOSITORY) -> list[tuple[str, str]]:
    """Codes and hints of the findings."""
    with pytest.raises(PolicyError) as error:
        policy_set(text, repository)
    return [(one.code, one.hint) for one in error.value.diagnostics]


def test_read_what_a_rule_says_of_requests() -> None:
    written = (
        "l7: {http: [{methods: [GET, POST], path: '/v1/*'}, {paths: ['/x/{*}/y', /z], hosts: [Api.example.org, "
        "'*.example.org:8443'], headers: {X-A: b, x-c: {present: true}, x-d: {regex: 'a.*'}, x-n: 7}, "
        "jwt: {issuer: corp, subjects: [a], audiences: [b], claims: {realm.roles: [v, w], 'https://a.b/c': z}}}]}"
    )
    (found,) = policy_set(rule(written)).rules
    assert found.l7 is not None
    first, second = found.l7.http
    assert (first.methods, first.paths, first.loc.file) == (("GET", "POST"), ("/v1/*",), "shop.yaml")
    assert (second.paths, second.hosts) == (("/x/{*}/y", "/z"), ("api.example.org", "*.example.org:8443"))
    assert second.headers == (
        HeaderMatch("x-a", "exact", "b"),
        HeaderMatch("x-c", "present"),
        HeaderMatch("x-d", "regex", "a.*"),
        HeaderMatch("x-n", "exact", "7"),
    )
    claims = ((("realm", "roles"), ("v", "w")), (("https://a.b/c",), ("z",)))
    assert second.jwt == JwtMatch("corp", ("a",), ("b",), claims)
    assert found.l7.text == "GET,POST /v1/*, 1 more"
    assert in_full(found.l7).endswith("jwt corp sub=a aud=b realm.roles=v|w https://a.b/c=z")


def test_read_server_names_and_who_else_is_asked() -> None:
    (found,) = policy_set(rule("l7: {sni: [Db.example.org, '*.shop.example']}, authz: {rego: shop.orders}")).rules
    assert found.l7 is not None
    assert (found.l7.sni, found.l7.http, found.authz) == (("db.example.org", "*.shop.example"), (), "shop.orders")
    assert in_full(found.l7) == "sni db.example.org, *.shop.example"


def test_issuers_keep_their_keys_in_one_form() -> None:
    (issuer,) = policy_set(HEAD).issuers
    assert (issuer.name, issuer.issuer, issuer.audiences) == ("corp", "https://id.example.org", ("api",))
    assert issuer.jwks == '{"keys":[{"e":"AQAB","kty":"RSA","n":"x"}]}'
    assert issuer.loc.line == 5


@pytest.mark.parametrize(
    ("default", "written", "expected"),
    [
        ("required", "why: a", True),
        ('"off"', "why: a", False),
        ('"off"', "mtls: required", True),
        ("required", 'mtls: "off"', False),
        ('"off"', "l7: {http: [{methods: [GET]}]}", True),
        ('"off"', "authz: {rego: a}", True),
    ],
)
def test_a_rule_needs_mutual_tls_by_its_own_word_or_the_repositorys(default: str, written: str, expected: bool) -> None:
    found = policy_set(rule(written), f"{REPOSITORY}defaults: {{mtls: {default}}}\n")
    assert found.rules[0].mtls is expected
    assert found.mtls is (default == "required")


HTTP = "l7: {http: [{%s}]}"
REFUSED = [
    (rule("l7: {http: [{methods: [GET]}]}", ports="[53/udp]"), "BH0511"),
    (rule("authz: {rego: a}", ports="[any]"), "BH0511"),
    (rule("l7: {http: [{methods: [GET]}]}", source="users"), "BH0512"),
    (rule("l7: {http: [{methods: [GET]}]}", source="host"), "BH0512"),
    (rule("l7: {http: [{methods: [GET]}]}", source="[web, world]"), "BH0512"),
    (rule('l7: {http: [{methods: [GET]}]}, mtls: "off"'), "BH0513"),
    (rule("l7: {http: [{methods: [GET]}], sni: [a.b]}"), "BH0210"),
    (rule("l7: {}"), "BH0209"),
    (rule("l7: {http: []}"), "BH0209"),
    (rule(HTTP % ""), "BH0209"),
    (rule(HTTP % "methods: [get]"), "BH0340"),
    (rule(HTTP % "method: [GET]"), "BH0205"),
    (rule(HTTP % "path: /a, paths: [/b]"), "BH0210"),
    (rule(HTTP % "hosts: ['*']"), "BH0342"),
    (rule(HTTP % "hosts: ['a.*.b']"), "BH0342"),
    (rule("l7: {sni: ['a:443']}"), "BH0342"),
    (rule(HTTP % "headers: {host: a}"), "BH0343"),
    (rule(HTTP % "headers: {':path': a}"), "BH0343"),
    (rule(HTTP % "headers: {x: {regex: '(?=a)'}}"), "BH0344"),
    (rule(HTTP % "headers: {x: {regex: '[a'}}"), "BH0344"),
    (rule(HTTP % "headers: {x: {prefix: a, suffix: b}}"), "BH0349"),
    (rule(HTTP % "headers: {x: {present: false}}"), "BH0306"),
    (rule(HTTP % "headers: {x: {like: a}}"), "BH0205"),
    (rule(HTTP % "jwt: {subjects: [a]}"), "BH0206"),
    (rule(HTTP % "jwt: {issuer: corq}"), "BH0412"),
    (rule("authz: {rego: data.shop-orders}"), "BH0347"),
    (rule(HTTP % f"path: /{'a' * 1024}"), "BH0348"),
    (rule(HTTP % "path: /café"), "BH0350"),
]


@pytest.mark.parametrize(("text", "code"), REFUSED)
def test_refuse_what_no_proxy_could_enforce(text: str, code: str) -> None:
    assert [found for found, _ in refused(text)] == [code]


def test_a_misspelt_issuer_and_key_are_guessed() -> None:
    assert refused(rule(HTTP % "jwt: {issuer: corq}")) == [("BH0412", "did you mean `corp`?")]
    assert refused(rule(HTTP % "method: [GET]")) == [("BH0205", "did you mean `methods`?")]
    assert refused(rule(HTTP % "methods: [get]")) == [("BH0340", "write `GET`")]


@pytest.mark.parametrize(
    "path",
    ["/", "/*", "/v1/*", "/a/b.c/~d", "/{*}", "/a/{**}", "/{*}/x/{**}", "/caf%C3%A9", "/a/", "/a:b@c", "/100%25"],
)  # fmt: skip
def test_take_paths_that_requests_can_have(path: str) -> None:
    assert policy_set(rule(HTTP % f"path: '{path}'")).rules[0].l7 is not None


@pytest.mark.parametrize(
    "path",
    ["v1", "/a//b", "/a/../b", "/a/.", "/a%2fb", "/a%2Fb", "/a%2e", "/%41", "/a%5Cb", "/a;b=1", "/a?b", "/a#b", "/a\\b",
     "/a/*/b", "/a*", "/{*}/*", "/{id}", "/{**}/{*}", "/{**}/{**}", "/a/{**}.json", "/a%zz", "/a%c3%a9"],
)  # fmt: skip
def test_refuse_paths_that_normalisation_would_change(path: str) -> None:
    assert [code for code, _ in refused(rule(HTTP % f"path: '{path}'"))] == ["BH0341"]


@pytest.mark.parametrize(
    "jwks",
    ["", "{", "[]", "{}", '{"keys":[]}', '{"keys":[1]}', '{"keys":[{"kty":"oct","k":"a"}]}', '{"keys":[{"n":"a"}]}',
     '{"keys":[{"kty":"EC","d":"a"}]}'],
)  # fmt: skip
def test_refuse_a_key_set_that_is_none_or_holds_secrets(jwks: str) -> None:
    repository = REPOSITORY.replace(JWKS, jwks)
    assert [code for code, _ in refused(HEAD, repository)] == ["BH0346"]


@pytest.mark.parametrize(
    "spiffe", ["shop", "/", "/shop/", "//shop", "/a/./b", "/..", "/a b", "/{host}x", "/{unit}", "/{host}/{host}",
               "spiffe://example.org/a", "/caf\u00e9", f"/{'a' * 1024}"],
)  # fmt: skip
def test_refuse_what_the_standard_takes_for_no_spiffe_id(spiffe: str) -> None:
    assert [code for code, _ in refused(HEAD.replace("/host/{host}/unit/nginx", spiffe))] == ["BH0345"]


def test_two_workloads_with_one_spiffe_id_are_refused_with_both_lines() -> None:
    text = HEAD.replace("{unit: api.service}}", '{unit: api.service}, spiffe: "/host/web-1/unit/nginx"}')
    with pytest.raises(PolicyError) as error:
        compile_commit(policy_set(text), "web-1", NOW)
    (finding,) = error.value.diagnostics
    assert (finding.code, finding.loc.line, finding.related[0][0].line) == ("BH0605", 6, 5)


def test_canonical_form_keeps_what_is_said_of_requests() -> None:
    text = rule("l7: {http: [{path: /a, methods: [GET], headers: {x-b: 1, x-a: {prefix: a}}}]}, authz: {rego: a}")
    once = format_file("shop.yaml", text.encode())
    assert b"- methods: [GET]" in once or b"{methods: [GET], path: /a" in once
    assert format_file("shop.yaml", once) == once
    assert policy_set(once.decode()).rules[0].authz == "a"


TESTED = rule(HTTP % "methods: [GET], path: '/v1/*'") + "tests:\n  - {from: web, %s: [%s]}\n"


@pytest.mark.parametrize(
    ("verb", "target", "holds"),
    [
        ("accept", "api:8443", True),
        ("accept", "api:8443 GET /v1/x", True),
        ("accept", "api:8443 GET /v1", False),
        ("accept", "api:8443 POST /v1/x", False),
        ("accept", "api:9 GET /v1/x", False),
        ("deny", "api:8443 POST /v1/x", True),
        ("deny", "api:8443 GET /v1/x", False),
        ("deny", "api:9 GET /v1/x", True),
        ("deny", "api:8443", False),
    ],
)
def test_tests_may_be_about_one_request(verb: str, target: str, holds: bool) -> None:
    found = policy_set(TESTED % (verb, f'"{target}"'))
    if holds:
        compile_commit(found, None, NOW)
        return
    with pytest.raises(PolicyError) as error:
        compile_commit(found, None, NOW)
    assert {one.code for one in error.value.diagnostics} == {"BH0502"}


@pytest.mark.parametrize(
    ("target", "code"),
    [("api:8443 GET", "BH0341"), ("api:8443 get /", "BH0314"), ("api:53/udp GET /", "BH0314"),
     ("api:1-2 GET /", "BH0314"), ("api:8443 GET /v1/*", "BH0341"), ("api:8443 GET /a//b", "BH0341")],
)  # fmt: skip
def test_refuse_a_test_of_no_request(target: str, code: str) -> None:
    assert [found for found, _ in refused(TESTED % ("accept", f'"{target}"'))] == [code]
