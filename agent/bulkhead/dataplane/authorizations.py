"""Requests to local workloads: what each rule allows of them, as the proxy is told.

A workload has an authorization for the ports that some rule judged by request covers. There every rule has a clause,
for the proxy judges whatever it takes in on them: one that says nothing of requests allows all of its callers'. What
Istio's policies say is written in clauses already.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from bulkhead.dataplane.istio import KIND as ISTIO
from bulkhead.dataplane.istio import clauses as istio_clauses
from bulkhead.dataplane.ports import Ports, common, joined, tcp_ports
from bulkhead.dataplane.requests import (
    All,
    AnyOf,
    Authorization,
    Caller,
    Claim,
    Clause,
    Condition,
    Effect,
    Header,
    Host,
    How,
    JwtIssuer,
    Method,
    Path,
    PathTemplate,
    Port,
    RequestPrincipal,
    ServerName,
    Text,
)
from bulkhead.dataplane.resolve import Resolved, ResolvedRule
from bulkhead.identity.registry import svid_template
from bulkhead.policy.l7 import L7, HeaderMatch, HttpMatch, Issuer, JwtMatch
from bulkhead.policy.model import Entity
from bulkhead.policy.spiffe import HOST

REGO: Final = "rego:"
"""In front of the package, in the provider of a CUSTOM clause."""


def authorizations(resolved: Resolved) -> tuple[Authorization, ...]:
    """Those of local workloads, by identity."""
    judged = [found for found in resolved.rules if found.rule.by_request]
    called = frozenset[int]().union(*(found.destination.workloads for found in judged)) & resolved.directory.local
    if not called:
        return ()
    writer = Authorizations(resolved)
    return tuple(writer.of(destination) for destination in sorted(called))


def issuers(resolved: Resolved) -> tuple[JwtIssuer, ...]:
    """All of the repository's."""
    return tuple(JwtIssuer(one.name, one.issuer, one.audiences, one.jwks) for one in resolved.policy_set.issuers)


class Authorizations:
    """Those of one commit, written when they are asked for."""

    def __init__(self, resolved: Resolved) -> None:
        self._rules = [found for found in resolved.rules if found.source.workloads and _ports([found])]
        self._istio = istio_clauses(resolved.policy_set) if resolved.policy_set.istio else {}
        self._names = {number: name for name, number in resolved.directory.workloads.items()}
        self._trust_domain = resolved.policy_set.trust_domain
        self._issuers = {issuer.name: issuer for issuer in resolved.policy_set.issuers}
        self._callers = {
            resolved.directory.workloads[one.qualified]: caller(svid_template(self._trust_domain, one))
            for one in resolved.policy_set.workloads
        }

    def of(self, destination: int) -> Authorization:
        """What may be requested of a workload, local or not; without ports where nobody looks at requests."""
        covering = [found for found in self._rules if destination in found.destination.workloads]
        ports = _ports(found for found in covering if found.rule.by_request)
        native = [found for found in covering if found.rule.kind != ISTIO and any(common(ports, _ports([found])))]
        clauses = [clause for found in native for clause in self._clauses(found)]
        return Authorization(destination, ports, (*self._istio.get(self._names[destination], ()), *clauses))

    def _clauses(self, found: ResolvedRule) -> Iterator[Clause]:
        rule = found.rule
        condition = self._condition(found)
        if rule.authz:
            provider = f"{REGO}{rule.authz}"
            yield Clause(rule.rule_id, Effect.CUSTOM, condition, provider, deadline=found.deadline)
        yield Clause(rule.rule_id, Effect.ALLOW, condition, deadline=found.deadline)

    def _condition(self, found: ResolvedRule) -> Condition:
        parts = [self._caller(found), any_of(Port(first, last) for first, last in _ports([found]))]
        if found.rule.l7 is not None:
            parts.append(self._request(found.rule.l7))
        return All(tuple(parts))

    def _caller(self, found: ResolvedRule) -> Condition:
        if Entity.ANY in found.rule.source.entities and found.source.workloads == self._callers.keys():
            return Caller(Text(How.PREFIX, f"spiffe://{self._trust_domain}/"))
        return any_of(self._callers[source] for source in sorted(found.source.workloads))

    def _request(self, l7: L7) -> Condition:
        if l7.sni:
            return any_of(ServerName(text) for name in l7.sni for text in name_texts(name))
        return any_of(self._entry(entry) for entry in l7.http)

    def _entry(self, entry: HttpMatch) -> Condition:
        parts = [
            *([any_of(Method(Text(How.EXACT, method)) for method in entry.methods)] if entry.methods else []),
            *([any_of(map(path, entry.paths))] if entry.paths else []),
            *([any_of(Host(text) for name in entry.hosts for text in host_texts(name))] if entry.hosts else []),
            *map(_header, entry.headers),
            *([self._jwt(entry.jwt)] if entry.jwt else []),
        ]
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def _jwt(self, match: JwtMatch) -> Condition:
        issuer: Issuer = self._issuers[match.issuer]
        wanted = [Text(How.EXACT, f"{issuer.issuer}/{subject}") for subject in match.subjects]
        parts = [any_of(map(RequestPrincipal, wanted or [Text(How.PREFIX, f"{issuer.issuer}/")]))]
        claims = (*match.claims, *([(("aud",), match.audiences)] if match.audiences else []))
        parts += [any_of(Claim(name, Text(How.EXACT, value)) for value in values) for name, values in claims]
        return parts[0] if len(parts) == 1 else All(tuple(parts))


def _ports(rules: Iterable[ResolvedRule]) -> Ports:
    return joined(interval for found in rules for interval in tcp_ports(found.rule.ports))


def any_of(parts: Iterable[Condition]) -> Condition:
    """One of several, or the one."""
    found = tuple(parts)
    return found[0] if len(found) == 1 else AnyOf(found)


def caller(template: str) -> Condition:
    """Whoever has an SVID of this template."""
    if HOST not in template:
        return Caller(Text(How.EXACT, template))
    return Caller(Text(How.REGEX, "[^/,]+".join(map(re.escape, template.split(HOST)))))


def path(written: str) -> Condition:
    """A path as rules have it."""
    if "{" in written:
        return PathTemplate(written)
    return Path(Text(How.PREFIX, written[:-1]) if written.endswith("/*") else Text(How.EXACT, written))


def host_texts(name: str) -> Iterator[Text]:
    """What a host may be for a name: one without a port stands for every port."""
    if name.startswith("*."):
        port = "" if ":" in name else "(:[0-9]+)?"
        yield Text(How.REGEX, f"[^:]+{re.escape(name[1:])}{port}", ignore_case=True)
        return
    yield Text(How.EXACT, name, ignore_case=True)
    if ":" not in name:
        yield Text(How.PREFIX, f"{name}:", ignore_case=True)


def name_texts(name: str) -> Iterator[Text]:
    """What a server name may be."""
    exact = not name.startswith("*.")
    yield Text(How.EXACT if exact else How.SUFFIX, name if exact else name[1:], ignore_case=True)


def _header(match: HeaderMatch) -> Condition:
    return Header(match.name, Text(How(match.how), match.value))
