"""Istio's policies against what Istio's documents say of them: every request, past the kernel and past the proxy.

Policies are made as objects, written to files, read, and settled into the rules and clauses of the rest; the oracle
reads the objects.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from ipaddress import ip_address
from random import Random
from typing import Any

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from bulkhead.dataplane import istio_truth, requests_reference
from bulkhead.dataplane.authorizations import authorizations
from bulkhead.dataplane.istio import meant_rules
from bulkhead.dataplane.requests import Authorization
from bulkhead.dataplane.requests_reference import holds, judge
from bulkhead.dataplane.resolve import Resolved, resolve
from bulkhead.policy.model import PolicySet
from bulkhead.policy.parse import ParseCache, parse
from bulkhead.policy.source import SourceFile, Sources
from property.istio_oracle import Request, Target, allows, rule_matches

NOW = datetime(2026, 7, 1, tzinfo=UTC)
DOMAIN = "example.org"
SVIDS = {
    "shop/web": "",
    "shop/api": "/ns/shop/sa/api",
    "shop/agent": "/host/{host}/unit/agent",
    "bank/db": "/ns/bank/x/sa/db.main",
    "bank/batch": "/ns/{host}/sa/batch",
}
LABELS = {
    "shop/web": {"app": "web", "tier": "front"},
    "shop/api": {"app": "api"},
    "shop/agent": {},
    "bank/db": {"app": "api", "tier": "back"},
    "bank/batch": {},
}
HOSTS = ("web-1", "ns", "bank")
PORTS = (80, 443, 8080)
NATIVE = """apiVersion: bulkhead/v1alpha1
kind: Policy
metadata: {name: shop}
workloads:
  web: {match: {unit: web.service}, labels: {app: web, tier: front}}
  api: {match: {unit: api.service}, labels: {app: api}}
  agent: {match: {unit: agent.service}}
allow:
  - {name: a, from: any, to: api, ports: [80, 400-500]}
  - {name: b, from: [web, bank/db], to: [agent, bank/db], ports: [1-8080, 53/udp]}
---
apiVersion: bulkhead/v1alpha1
kind: Policy
metadata: {name: bank}
workloads:
  db: {match: {unit: db.service}, labels: {app: api, tier: back}}
  batch: {match: {unit: batch.service}}
"""

CACHE = ParseCache()

verdicts: Counter[str] = Counter()
"""What requests came to and who decided, so that a suite that asks nothing cannot pass."""

VALUES: dict[str, tuple[str, ...]] = {
    "source.principal": (
        *("*", "example.org/*", "*/sa/api", "example.org/shop/web", "example.org/ns/*", "evil.org/*", "*/unit/agent"),
        *("example.org/host/web-1/unit/agent", "example.org/host/web-2/*", "*h"),
    ),
    "source.namespace": ("shop", "bank", "*", "b*", "*k", "sh*p", "web-1", "n*"),
    "source.serviceAccount": ("api", "shop/api", "bank/db.main", "bank/dbxmain", "batch", "web-1/batch", "ns/batch"),
    "source.trustDomain": ("example.org", "example.*", "*.org", "*", "evil.org"),
    "source.ip": ("10.0.0.0/8", "10.0.0.1/32", "0.0.0.0/0", "2001:db8::/32"),
    "remote.ip": ("192.0.2.0/24", "10.0.0.0/8"),
    "destination.ip": ("10.9.0.0/16", "10.0.0.0/16"),
    "destination.port": ("80", "443", "8080", "22"),
    "connection.sni": ("a.example", "*.example", "*"),
    "request.auth.principal": ("*", "iss/sub", "iss/*", "*/sub", "*ub", "is*", "https://i.example/sub"),
    "request.auth.audiences": ("shop", "ban*", "*"),
    "request.auth.presenter": ("cli", "*"),
    "request.auth.claims[scope]": ("read", "wri*", "*ite", "*"),
    "request.auth.claims[realm][roles]": ("admin", "*"),
    "request.headers[X-Team]": ("a", "a*", "*b", "*"),
    "hosts": ("API.example", "*.example", "api.*", "*"),
    "methods": ("GET", "POST", "P*", "*"),
    "paths": ("/a", "/a*", "*.html", "*", "/a/{*}", "/a/{**}", "/a/{*}/c.html", "/{**}/c.html", "/a+b*"),
}
SOURCE = {
    "principals": "source.principal",
    "requestPrincipals": "request.auth.principal",
    "namespaces": "source.namespace",
    "trustDomains": "source.trustDomain",
    "ipBlocks": "source.ip",
    "remoteIpBlocks": "remote.ip",
}
OPERATION = {"hosts": "hosts", "methods": "methods", "paths": "paths", "ports": "destination.port"}
WHEN = [key for key in VALUES if "." in key]


@dataclass(frozen=True, slots=True)
class Case:
    """Policies as objects and as they were read, and requests."""

    policies: tuple[Mapping[str, Any], ...]
    policy_set: PolicySet
    requests: tuple[tuple[str, str, Request], ...]
    """Caller, called, and the request."""


def cases() -> st.SearchStrategy[Case]:
    return st.integers(0, 2**64 - 1).map(lambda seed: _Maker(Random(seed)).case())


class _Maker:
    """Draws everything from one source of chance."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def case(self) -> Case:
        policies = tuple(self._policy(number) for number in range(self._rng.randint(0, 4)))
        requests = tuple(self._request() for _ in range(12))
        return Case(policies, read(policies), requests)

    def _policy(self, number: int) -> dict[str, Any]:
        action = self._rng.choice(["ALLOW", "ALLOW", "DENY", "DENY", "AUDIT", "CUSTOM"])
        spec: dict[str, Any] = {"action": action}
        if action == "CUSTOM":
            spec["provider"] = {"name": "rego/shop.orders"}
        if self._rng.random() < 0.4:
            spec["selector"] = {"matchLabels": self._rng.choice([{"app": "api"}, {"app": "web", "tier": "front"}, {}])}
        if self._rng.random() < 0.95:
            spec["rules"] = [self._rule() for _ in range(self._rng.choice([0, 1, 1, 1, 2]))]
        metadata: dict[str, Any] = {
            "name": f"p{number}",
            "namespace": self._rng.choice(["shop", "shop", "bank", "istio-system", "nowhere"]),
        }
        if self._rng.random() < 0.1:
            metadata["annotations"] = {"istio.io/dry-run": self._rng.choice(["true", "false"])}
        kind = {"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy"}
        return {**kind, "metadata": metadata, "spec": spec}

    def _rule(self) -> dict[str, Any]:
        rule: dict[str, Any] = {}
        if self._rng.random() < 0.6:
            rule["from"] = [{"source": self._source()} for _ in range(self._rng.randint(1, 2))]
        if self._rng.random() < 0.5:
            rule["to"] = [{"operation": self._fields(OPERATION)} for _ in range(self._rng.randint(1, 2))]
        if self._rng.random() < 0.4:
            rule["when"] = [self._when() for _ in range(self._rng.randint(1, 2))]
        return rule

    def _source(self) -> dict[str, Any]:
        if self._rng.random() < 0.2:
            key = self._rng.choice(["serviceAccounts", "notServiceAccounts"])
            return {key: self._values("source.serviceAccount")}
        return self._fields(SOURCE)

    def _fields(self, attributes: Mapping[str, str]) -> dict[str, Any]:
        names = self._rng.sample(sorted(attributes), self._rng.choice([1, 1, 1, 2]))
        return {
            (f"not{name[0].upper()}{name[1:]}" if self._rng.random() < 0.3 else name): self._values(attributes[name])
            for name in names
        }

    def _when(self) -> dict[str, Any]:
        key = self._rng.choice(WHEN)
        written: dict[str, Any] = {"key": key}
        if self._rng.random() < 0.7:
            written["values"] = self._values(key)
        if len(written) == 1 or self._rng.random() < 0.2:
            written["notValues"] = self._values(key)
        return written

    def _values(self, key: str) -> list[str]:
        return self._rng.sample(VALUES[key], self._rng.choice([1, 1, 2]))

    def _request(self) -> tuple[str, str, Request]:
        pick = self._rng.choice
        caller, called = pick(sorted(SVIDS)), pick(sorted(SVIDS))
        path = SVIDS[caller].replace("{host}", pick(HOSTS)) or f"/{caller}"
        return (
            caller,
            called,
            Request(
                svid=f"spiffe://{DOMAIN}{path}",
                port=pick(PORTS),
                method=pick(["GET", "POST", "get"]),
                path=pick(["/a", "/", "/a/", "/a/b", "/a/b/c.html", "/b/c.html", "/c.html", "/a+bc", "/a//c.html"]),
                host=pick(["api.example", "api.example:80", "other", ""]),
                headers=pick([{}, {"x-team": "ab"}, {"x-team": ""}]),
                token=pick([None, *_TOKENS]),
                address=pick(["10.0.0.1", "10.0.0.2", "192.0.2.1", "2001:db8::1"]),
                forwarded=pick(["192.0.2.1", "10.0.0.1"]),
                called=pick(["10.9.0.1", "10.0.0.1"]),
                sni=pick(["", "a.example"]),
            ),
        )


_TOKENS = (
    {"iss": "iss", "sub": "sub", "aud": ["bank", "shop"], "scope": "read write", "azp": "cli"},
    {"iss": "https://i.example", "sub": "sub", "aud": "banking", "realm": {"roles": ["admin"]}},
    {"iss": "is", "sub": "s/sub", "scope": "rewrite", "realm": {"roles": "user"}},
)


def read(policies: tuple[Mapping[str, Any], ...]) -> PolicySet:
    """The policies as they are read from files, with SVIDs of their workloads."""
    repository = f"apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: {DOMAIN}\n"
    texts = {"bulkhead.yaml": repository, "istio.yaml": "\n---\n".join(map(json.dumps, policies)), "shop.yaml": NATIVE}
    files = tuple(SourceFile(path, str(hash(text)), text.encode()) for path, text in texts.items())
    policy_set = parse(Sources("", files), CACHE)
    workloads = (replace(one, spiffe=SVIDS[one.qualified]) for one in policy_set.workloads)
    return replace(policy_set, workloads=tuple(workloads))


# What becomes of a request


def carried(request: Request) -> requests_reference.Request:
    """The request in the words of the reference."""
    return requests_reference.Request(
        caller=request.svid,
        port=request.port,
        method=request.method,
        path=request.path,
        host=request.host,
        headers=tuple(request.headers.items()),
        caller_address=ip_address(request.address),
        forwarded_address=ip_address(request.forwarded),
        called_address=ip_address(request.called),
        server_name=request.sni,
        jwt=request.token or {},
    )


def verdict(resolved: Resolved, proxy: Mapping[int, Authorization], caller: str, called: str, request: Request) -> bool:
    """The kernel's part: a rule that covers it; the proxy's, where no such rule leaves it to the kernel alone."""
    source, destination = (resolved.directory.workloads[name] for name in (caller, called))
    covering = [
        found.rule
        for found in resolved.rules
        if source in found.source.members
        and destination in found.destination.members
        and any(spec.protocol == 6 and spec.first <= request.port <= spec.last for spec in found.rule.ports)
    ]
    if not covering or any(not rule.by_request for rule in covering):
        verdicts[f"kernel {'allows' if covering else 'denies'}"] += 1
        return bool(covering)
    assert any(first <= request.port <= last for first, last in proxy[destination].ports)
    allowed, _ = judge(proxy[destination], carried(request), asked=lambda _clause, _request: False)
    verdicts[f"proxy {'allows' if allowed else 'denies'}"] += 1
    return allowed


def disagreements(case: Case, policy_set: PolicySet | None = None) -> list[str]:
    """Every request on which the settled policy and the oracle differ."""
    policy_set = policy_set or case.policy_set
    resolved = resolve(policy_set, None, NOW)
    proxy = {one.destination: one for one in authorizations(resolved)}
    found = []
    for caller, called, request in case.requests:
        target = Target(called.partition("/")[0], LABELS[called])
        meant = allows(case.policies, target, request, _natively(caller, called, request.port))
        if verdict(resolved, proxy, caller, called, request) is not meant:
            found.append(f"{caller} -> {called}: {request} is {'allowed' if meant else 'denied'}")
    return found


def _natively(caller: str, called: str, port: int) -> bool:
    if called == "shop/api":
        return port == 80 or 400 <= port <= 500
    return caller in ("shop/web", "bank/db") and called in ("shop/agent", "bank/db") and 1 <= port <= 8080


@given(cases())
def test_every_rule_and_every_request_come_to_what_istio_means(case: Case) -> None:
    written = [
        (rule, policy["metadata"]["namespace"]) for policy in case.policies for rule in policy["spec"].get("rules", [])
    ]
    for one, (rule, namespace) in zip(meant_rules(case.policy_set), written, strict=True):
        for _, _, request in case.requests:
            assert holds(one.condition, carried(request)) is rule_matches(rule, request, namespace), (rule, request)
    assert disagreements(case) == []


def test_both_judges_gave_both_verdicts() -> None:
    for outcome in ("kernel allows", "kernel denies", "proxy allows", "proxy denies"):
        assert verdicts[outcome] > verdicts.total() // 50, verdicts
    assert verdicts.total() > 2_000


# A property that cannot fail proves nothing: each of these commits is read wrongly in one small way.


def _rules_changed(change: Callable[[Any], Any]) -> Callable[[PolicySet], PolicySet]:
    def changed(policy_set: PolicySet) -> PolicySet:
        policies = (replace(one, rules=tuple(map(change, one.rules))) for one in policy_set.istio)
        return replace(policy_set, istio=tuple(policies))

    return changed


def _policies_changed(**fields: Any) -> Callable[[PolicySet], PolicySet]:
    def changed(policy_set: PolicySet) -> PolicySet:
        return replace(policy_set, istio=tuple(replace(one, **fields) for one in policy_set.istio))

    return changed


def _without_denies(policy_set: PolicySet) -> PolicySet:
    return replace(policy_set, istio=tuple(one for one in policy_set.istio if one.action != "DENY"))


@pytest.mark.parametrize(
    "mistake",
    [
        _without_denies,
        _policies_changed(labels=()),
        _policies_changed(dry_run=False),
        _policies_changed(namespace="shop"),
        _rules_changed(lambda rule: replace(rule, when=())),
        _rules_changed(lambda rule: replace(rule, sources=rule.sources[:1])),
        _rules_changed(lambda rule: replace(rule, operations=rule.operations[1:])),
        _rules_changed(
            lambda rule: replace(rule, operations=tuple(replace(one, methods=(), paths=()) for one in rule.operations))
        ),
        _rules_changed(
            lambda rule: replace(rule, sources=tuple(replace(one, not_principals=()) for one in rule.sources))
        ),
        lambda policy_set: replace(
            policy_set, workloads=tuple(replace(one, spiffe="") for one in policy_set.workloads)
        ),
    ],
)
def test_the_oracle_notices_a_misread_policy(mistake: Callable[[PolicySet], PolicySet]) -> None:
    quickly = settings(max_examples=1000, phases=[Phase.generate], database=None)
    found = find(cases(), lambda case: bool(disagreements(case, mistake(case.policy_set))), settings=quickly)
    assert disagreements(found, mistake(found.policy_set))


def test_a_name_of_a_node_that_is_taken_for_known_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(istio_truth, "HOST", "{none}")
    quickly = settings(max_examples=2000, phases=[Phase.generate], database=None)
    assert find(cases(), lambda case: bool(disagreements(case)), settings=quickly)
