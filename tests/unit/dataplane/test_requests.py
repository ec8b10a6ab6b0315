"""Requests: what rules become for the proxy, what that means for one request, and how it is carried."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from bulkhead.dataplane.authorizations import REGO, authorizations
from bulkhead.dataplane.bundle import BundleError, pack, read
from bulkhead.dataplane.compile import compile_commit
from bulkhead.dataplane.requests import (
    NODES_MAX,
    TEXT_MAX,
    All,
    Always,
    AnyOf,
    Authorization,
    CalledAddress,
    Caller,
    CallerAddress,
    Claim,
    Clause,
    Condition,
    Effect,
    Header,
    Host,
    How,
    Method,
    Not,
    Path,
    PathTemplate,
    Port,
    RequestPrincipal,
    ServerName,
    Text,
    condition_of,
    condition_record,
)
from bulkhead.dataplane.requests_reference import Request, holds, judge
from bulkhead.dataplane.resolve import resolve
from bulkhead.policy.l7 import L7, HeaderMatch, HttpMatch, Issuer, JwtMatch
from bulkhead.policy.model import Match, PolicySet, RuleId
from unit.dataplane.build import NOW, external, loc, shop, workload
from unit.dataplane.test_mesh import API, DB

WEB_ID, JOB_ID = "spiffe://example.org/shop/web", "spiffe://example.org/shop/job"
GET = Request(WEB_ID, 8443, "GET", "/v1/items?all", "api.example.org:8443")


def text(value: str, how: How = How.EXACT) -> Text:
    return Text(how, value)


def http(**more: Any) -> L7:
    return L7(loc(1), (HttpMatch(loc(1), **more),))


def with_l7(policy_set: PolicySet, written: dict[int, L7], authz: dict[int, str] | None = None) -> PolicySet:
    asked = authz or {}
    rules = (replace(r, l7=written.get(r.rule_id), authz=asked.get(r.rule_id, "")) for r in policy_set.rules)
    issuer = Issuer("corp", "https://id.example.org", ("api",), '{"keys":[]}', loc(1))
    return replace(policy_set, rules=tuple(rules), issuers=(issuer,))


def judged(policy_set: PolicySet, destination: int = API) -> Authorization:
    found = {one.destination: one for one in authorizations(resolve(policy_set, "web-1", NOW))}
    return found[destination]


def passes(l7: L7, request: Request) -> bool:
    return judge(judged(with_l7(shop("web -> api 8443"), {1: l7})), request)[0]


# Conditions


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (Always(), True),
        (All(()), True),
        (AnyOf(()), False),
        (Not(Always()), False),
        (All((Always(), Not(Always()))), False),
        (AnyOf((Always(), Not(Always()))), True),
        (Caller(text(WEB_ID)), True),
        (Caller(text("spiffe://example.org/", How.PREFIX)), True),
        (Caller(text("example.org", How.SUFFIX)), False),
        (Caller(text("spiffe://[^/]+/shop/web", How.REGEX)), True),
        (Caller(text("web", How.REGEX)), False),
        (Caller(text("", How.PRESENT)), True),
        (Port(8000, 8443), True),
        (Port(1, 8442), False),
        (Method(text("GET")), True),
        (Method(text("get")), False),
        (Path(text("/v1/items")), True),
        (Path(text("?all", How.SUFFIX)), False),
        (PathTemplate("/v1/{*}"), True),
        (PathTemplate("/{**}"), True),
        (PathTemplate("/v1/items/{**}"), False),
        (PathTemplate("/{*}"), False),
        (PathTemplate("/{**}/items"), True),
        (Host(text("API.example.org:8443")), True),
        (Host(text("api.example.org")), False),
        (Header("X-A", text("1,2")), True),
        (Header("x-a", text("1")), False),
        (Header("x-b", text("", How.PRESENT)), False),
        (Header("x-c", text("")), False),
        (Not(Header("x-c", text("", How.PREFIX))), True),
        (CallerAddress((ip_network("10.0.0.0/8"),)), True),
        (CallerAddress((ip_network("10.0.0.0/8"),), True), False),
        (CallerAddress((ip_network("192.0.2.0/24"),), True), True),
        (CalledAddress((ip_network("10.0.0.2/32"),)), True),
        (ServerName(text(".example.org", How.SUFFIX)), True),
        (RequestPrincipal(text("https://id.example.org/ann")), True),
        (Claim(("aud",), text("api")), True),
        (Claim(("realm", "roles"), text("admin")), True),
        (Claim(("realm", "name"), text("a")), False),
        (Claim(("level",), text("1")), False),
    ],
)
def test_conditions_of_a_request(condition: Condition, expected: bool) -> None:
    request = replace(
        GET,
        headers=(("x-a", "1"), ("X-a", "2"), ("x-b", "")),
        caller_address=ip_address("10.0.0.1"),
        forwarded_address=ip_address("192.0.2.7"),
        called_address=ip_address("10.0.0.2"),
        server_name="db.example.org",
        jwt={"iss": "https://id.example.org", "sub": "ann", "aud": ["api"], "realm": {"roles": ["admin"]}, "level": 1},
    )
    assert holds(condition, request) is expected
    assert condition_of(json.loads(json.dumps(condition_record(condition)))) == condition


def test_what_is_no_http_has_neither_path_nor_headers() -> None:
    raw = Request(WEB_ID, 8443)
    assert not any(
        holds(one, raw) for one in (Path(text("", How.PREFIX)), Header("x", text("")), PathTemplate("/{**}"))
    )
    assert holds(Caller(text(WEB_ID)), raw)


@pytest.mark.parametrize(
    "record",
    [None, [], "Always", ["Sometimes"], ["Always", 1], ["All"], ["All", 1], ["All", [1]], ["Not", ["Not"]],
     ["Caller", "a"], ["Caller", ["exact", "a"]], ["Caller", ["like", "a", False]], ["Caller", ["exact", 1, False]],
     ["Caller", ["exact", "a", 0]], ["Port", 1, 65536], ["Port", 2, 1], ["Port", True, 1], ["Port", 1.0, 2],
     ["CallerAddress", ["10.0.0.1/8"], False], ["CallerAddress", ["10.0.0.0/8"], 1], ["CalledAddress", "10.0.0.0/8"],
     ["Claim", "aud", ["exact", "a", False]], ["Header", 1, ["exact", "a", False]], [["Always"]],
     ["PathTemplate", "a" * (TEXT_MAX + 1)], ["AnyOf", [["Always"]] * NODES_MAX], ["PathTemplate", "\ud800"]],
)  # fmt: skip
def test_refuse_a_record_that_is_no_condition(record: object) -> None:
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        condition_of(record)


def test_refuse_a_condition_that_is_too_deep() -> None:
    deep: list[Any] = ["Always"]
    for _ in range(40):
        deep = ["Not", deep]
    with pytest.raises(ValueError, match="deeper than 32"):
        condition_of(deep)


# The order of clauses


def test_another_authority_and_denials_come_before_what_allows() -> None:
    clauses = {effect: Clause(RuleId(at), effect, Always(), "rego:a") for at, effect in enumerate(Effect, 1)}
    allow, deny, custom = clauses[Effect.ALLOW], clauses[Effect.DENY], clauses[Effect.CUSTOM]
    whole = Authorization(API, ((1, 2),), (allow, clauses[Effect.AUDIT], deny, custom))
    assert judge(whole, GET) == (False, deny)
    assert judge(whole, GET, asked=lambda *_: False) == (False, custom)
    assert judge(replace(whole, clauses=(allow, custom)), GET) == (True, allow)
    assert judge(replace(whole, clauses=(replace(deny, dry_run=True), allow)), GET) == (True, allow)
    assert judge(replace(whole, clauses=(replace(allow, deadline=10.0),)), GET, now=10.0) == (False, None)
    assert judge(replace(whole, clauses=()), GET) == (False, None)
    assert judge(replace(whole, clauses=(), open=True), GET) == (True, None)


# Rules


@pytest.mark.parametrize(
    ("l7", "request_", "expected"),
    [
        (http(methods=("GET",)), GET, True),
        (http(methods=("POST", "PUT")), GET, False),
        (http(methods=("GET",), paths=("/v2/*", "/v1/*")), GET, True),
        (http(methods=("POST",), paths=("/v1/*",)), GET, False),
        (http(paths=("/v1/*",)), replace(GET, path="/v1"), False),
        (http(paths=("/v1/*",)), replace(GET, path="/v1/a/b"), True),
        (http(paths=("/v1/{*}/x",)), replace(GET, path="/v1/a/x"), True),
        (http(paths=("/v1/{*}/x",)), replace(GET, path="/v1/a/b/x"), False),
        (http(hosts=("api.example.org",)), GET, True),
        (http(hosts=("api.example.org:80",)), GET, False),
        (http(hosts=("*.example.org",)), GET, True),
        (http(hosts=("*.example.org",)), replace(GET, host="example.org"), False),
        (http(hosts=("*.example.org",)), replace(GET, host="evil.org:1.example.org"), False),
        (http(hosts=("api.example.org",)), replace(GET, host="api.example.orgy"), False),
        (http(headers=(HeaderMatch("x-a", "exact", "1"),)), GET, False),
        (http(headers=(HeaderMatch("x-a", "present"),)), replace(GET, headers=(("X-A", "1"),)), True),
        (http(jwt=JwtMatch("corp")), GET, False),
        (http(jwt=JwtMatch("corp")), replace(GET, jwt={"iss": "https://id.example.org", "sub": "a"}), True),
        (http(jwt=JwtMatch("corp")), replace(GET, jwt={"iss": "https://id.example.org.evil", "sub": "a"}), False),
        (http(jwt=JwtMatch("corp", ("b",))), replace(GET, jwt={"iss": "https://id.example.org", "sub": "a"}), False),
        (http(jwt=JwtMatch("corp", claims=((("g",), ("x", "y")),))),
         replace(GET, jwt={"iss": "https://id.example.org", "sub": "a", "g": ["y"]}), True),
        (http(methods=("GET",)), replace(GET, caller=JOB_ID), False),
        (http(methods=("GET",)), replace(GET, port=8444), False),
        (L7(loc(1), sni=("db.example.org", "*.shop.example")), replace(GET, server_name="a.shop.example"), True),
        (L7(loc(1), sni=("db.example.org",)), replace(GET, server_name="a.db.example.org"), False),
    ],
)  # fmt: skip
def test_a_rule_allows_the_requests_that_it_says(l7: L7, request_: Request, expected: bool) -> None:
    assert passes(l7, request_) is expected


def test_every_rule_for_the_port_has_its_part() -> None:
    users = external("users", ["192.0.2.0/24"])
    found = with_l7(
        shop("web -> api 8443", "job -> api 8000-9000", "web -> api 80", ("db -> api 8443", NOW + timedelta(hours=1)),
             "users -> api 8443", workloads=("web", "api", "db", "job"), externals=[users]),
        {1: http(methods=("GET",))},
    )  # fmt: skip
    one = judged(found)
    assert one.ports == ((8443, 8443),)
    assert [(clause.rule_id, clause.deadline is None) for clause in one.clauses] == [(1, True), (2, True), (4, False)]
    assert judge(one, replace(GET, method="POST", caller=JOB_ID))[0]
    assert not judge(one, replace(GET, method="POST"))[0]


def test_who_else_is_asked_is_asked_about_what_the_rule_is_about() -> None:
    found = with_l7(shop("web -> api 8443"), {1: http(methods=("GET",))}, {1: "shop.orders"})
    custom, allow = judged(found).clauses
    assert (custom.effect, custom.provider, custom.condition) == (Effect.CUSTOM, f"{REGO}shop.orders", allow.condition)
    asked_alone = judged(with_l7(shop("web -> api 8443"), {}, {1: "shop.orders"}))
    assert judge(asked_alone, replace(GET, method="DELETE"))[0]
    assert not judge(asked_alone, GET, asked=lambda *_: False)[0]


def test_anybody_is_anybody_of_the_trust_domain() -> None:
    one = judged(with_l7(shop("any -> api 8443"), {1: http(methods=("GET",))}))
    assert judge(one, replace(GET, caller=JOB_ID))[0]
    assert not judge(one, replace(GET, caller="spiffe://example.org.evil/shop/web"))[0]


def test_a_template_is_one_segment_and_no_list() -> None:
    named = replace(workload("web"), spiffe="/host/{host}/web.1")
    one = judged(with_l7(shop("web -> api 8443", workloads=[named, "api"]), {1: http(methods=("GET",))}))
    callers = [f"spiffe://example.org/host/{host}/web{dot}1" for host in ("n1", "a/b", "a,b") for dot in (".", "x")]
    assert [judge(one, replace(GET, caller=caller))[0] for caller in callers] == [True, *[False] * 5]


def test_authorizations_are_of_local_workloads_that_some_rule_is_about() -> None:
    away = workload("db", Match(host=("db-*",), unit=("db.service",)))
    found = with_l7(shop("web -> api 1", "web -> db 2", "api -> web 3", workloads=["web", "api", away]),
                    {1: http(methods=("GET",)), 2: http(methods=("GET",))})  # fmt: skip
    assert [one.destination for one in authorizations(resolve(found, "web-1", NOW))] == [API]
    assert {one.destination for one in authorizations(resolve(found, "db-1", NOW))} == {API, DB}
    assert authorizations(resolve(shop("web -> api 1"), "web-1", NOW)) == ()


# In a bundle

WHOLE = compile_commit(
    with_l7(shop("web -> api 8443", ("any -> api 8443", NOW + timedelta(hours=1))),
            {1: http(methods=("GET",), jwt=JwtMatch("corp"))}, {1: "shop.orders"}), "web-1", NOW,
)  # fmt: skip
JUDGED = WHOLE.mesh.authorizations[0]
CLAUSE = JUDGED.clauses[0]


def test_authorizations_and_issuers_come_back_as_they_were() -> None:
    assert len(JUDGED.clauses) == 3
    assert len(WHOLE.mesh.issuers) == 1
    assert read(pack(WHOLE)).mesh() == WHOLE.mesh


@pytest.mark.parametrize(
    "wrong",
    [
        replace(JUDGED, destination=4711),
        replace(JUDGED, ports=()),
        replace(JUDGED, ports=((3, 2),)),
        replace(JUDGED, open=1),  # type: ignore[arg-type]
        replace(JUDGED, clauses=(replace(CLAUSE, rule_id=RuleId(99)),)),
        replace(JUDGED, clauses=(replace(CLAUSE, condition=Port(2, 1)),)),
        replace(JUDGED, clauses=(replace(CLAUSE, condition=Port(1, 65536)),)),
        replace(JUDGED, clauses=(replace(CLAUSE, dry_run="no"),)),  # type: ignore[arg-type]
        replace(JUDGED, clauses=(replace(CLAUSE, deadline=-1.0),)),
    ],
)
def test_an_authorization_that_no_compiler_writes_is_refused(wrong: Authorization) -> None:
    with pytest.raises(BundleError):
        read(pack(replace(WHOLE, mesh=replace(WHOLE.mesh, authorizations=(wrong,)))))
