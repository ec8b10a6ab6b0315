"""Who may request what, as Envoy's own RBAC.

A condition becomes one `principal`: Envoy's principals and permissions can each say only half of what a condition may,
and a policy joins the two by AND, which no formula over both fits into. What only a permission knows (port, address,
server name) is therefore put into filter state, where a principal can ask for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Final

from bulkhead.dataplane.mesh import Mesh
from bulkhead.dataplane.requests import (
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
    JwtIssuer,
    Method,
    Not,
    Path,
    PathTemplate,
    Port,
    RequestPrincipal,
    ServerName,
    Text,
)
from bulkhead.policy.model import Network
from bulkhead.proxy.names import own_id, port_pattern
from bulkhead.proxy.node import ProxyNode
from bulkhead.proxy.terms import ADDRESS, CALLED, CALLER, PORT, PRINCIPAL, SERVER_NAME, Message, typed

HTTP_RBAC: Final = "extensions.filters.http.rbac.v3.RBAC"
NETWORK_RBAC: Final = "extensions.filters.network.rbac.v3.RBAC"
JWT_AUTHN: Final = "extensions.filters.http.jwt_authn.v3.JwtAuthentication"
RBAC_PER_ROUTE: Final = "extensions.filters.http.rbac.v3.RBACPerRoute"
JWT: Final = "jwt"
JWT_FILE: Final = f"{JWT}.json"
SERVER_NAMES: Final = "server-names"
SERVER_NAMES_FILE: Final = f"{SERVER_NAMES}.json"

NEVER: Final = AnyOf(())
PATH_PARAMETERS: Final = "path-parameters"
"""Name of the policy that refuses `;` in a path: to some servers it ends a segment, to others it is part of it."""
TWO_HOSTS: Final = "two-hosts"
"""Name of the policy that refuses several Host headers, which Envoy joins by a comma."""
_AMBIGUOUS: Final[dict[str, Condition]] = {
    PATH_PARAMETERS: Path(Text(How.REGEX, "(?s:.*;.*)")),
    TWO_HOSTS: Host(Text(How.REGEX, "(?s:.*,.*)")),
}
OPEN: Final = "open"
"""Name of the policy that lets everything through where nothing asks for less."""
_JWT_FILTER: Final = "envoy.filters.http.jwt_authn"
_JWT_PAYLOAD: Final = "jwt"
_SOME: Final = "(?s:.+)"
_REQUEST_ONLY: Final = (Method, Path, PathTemplate, Host, Header, RequestPrincipal, Claim)


def policy_name(clause: Clause) -> str:
    """By which Envoy's records and counters name the rule."""
    return f"rule-{clause.rule_id}"


def packages(authorization: Authorization) -> tuple[str, ...]:
    """What is asked of Rego for it, each package once."""
    providers = {clause.provider for clause in authorization.clauses if clause.effect is Effect.CUSTOM}
    return tuple(sorted(provider.removeprefix("rego:") for provider in providers))


def asking(number: int) -> str:
    """The filter that finds out whether the package of that number is asked."""
    return f"ask-{number}"


def filters_of_route(authorization: Authorization, now: float) -> dict[str, Message]:
    """What each RBAC filter does for that workload's requests, by the filter's name. `now`: against deadlines."""
    clauses = _counted(authorization, now)
    filters = {"audit": _audit(clauses), "deny": _deny(clauses), "allow": _allow(clauses, authorization.open)}
    filters |= {asking(number): _ask(clauses, number, name) for number, name in enumerate(packages(authorization))}
    return {name: typed(RBAC_PER_ROUTE, rbac=config) for name, config in filters.items()}


def jwt_filter(mesh: Mesh) -> Message:
    """Whose JWTs count on this node."""
    return _extension_config(JWT, _jwt(mesh.issuers))


def server_names_filter(mesh: Mesh, node: ProxyNode, now: float) -> Message:
    """Of a TLS conversation inside only its server name is seen: it is allowed if its requests would be, whatever they
    are, and none of them might be denied or asked about."""
    alternatives: dict[str, list[Message]] = {}
    for one in mesh.authorizations:
        here = _state(CALLED, Text(How.EXACT, own_id(mesh.svids[one.destination], node)))
        for name, condition in _inside(_counted(one, now), one.open):
            alternatives.setdefault(name, []).append(_every([here, principal(condition)]))
    policies = {name: {"permissions": [{"any": True}], "principals": some} for name, some in alternatives.items()}
    rules = {"action": "ALLOW", "policies": policies}
    # The filter records nothing of the rules in force, but which of the shadow's rules matched.
    config = typed(
        NETWORK_RBAC, stat_prefix="allow_", rules=rules, shadow_rules=rules, shadow_rules_stat_prefix="allow_"
    )
    return _extension_config(SERVER_NAMES, config)


def _counted(authorization: Authorization, now: float) -> list[Clause]:
    return [clause for clause in authorization.clauses if clause.deadline is None or clause.deadline > now]


def next_deadline(mesh: Mesh, now: float) -> float | None:
    """When the files have to be written again, Unix seconds; None: never."""
    deadlines = (clause.deadline for one in mesh.authorizations for clause in one.clauses)
    return min((one for one in deadlines if one is not None and one > now), default=None)


def _extension_config(name: str, config: Message) -> Message:
    return typed("config.core.v3.TypedExtensionConfig", name=name, typed_config=config)


def _deny(clauses: Iterable[Clause]) -> Message:
    enforced = {name: _policy(one) for name, one in _AMBIGUOUS.items()} | _policies(clauses, Effect.DENY)
    return _rbac("deny", "DENY", enforced, _policies(clauses, Effect.DENY, dry_run=True))


def _allow(clauses: Iterable[Clause], is_open: bool) -> Message:
    enforced = _policies(clauses, Effect.ALLOW) | ({OPEN: _policy(Always())} if is_open else {})
    return _rbac("allow", "ALLOW", enforced, _policies(clauses, Effect.ALLOW, dry_run=True))


def _audit(clauses: Iterable[Clause]) -> Message:
    matched = {
        name: one for dry in (False, True) for name, one in _policies(clauses, Effect.AUDIT, dry_run=dry).items()
    }
    return typed(
        HTTP_RBAC,
        shadow_rules={"action": "ALLOW", "policies": matched},
        shadow_rules_stat_prefix="audit_",
        track_per_rule_stats=True,
    )


def _ask(clauses: Iterable[Clause], number: int, package: str) -> Message:
    wanted = [one for one in clauses if one.effect is Effect.CUSTOM and one.provider == f"rego:{package}"]
    policies = {policy_name(one): _policy(one.condition, one.deadline) for one in wanted if not one.dry_run}
    return typed(
        HTTP_RBAC, shadow_rules={"action": "ALLOW", "policies": policies}, shadow_rules_stat_prefix=ask_prefix(number)
    )


def ask_prefix(number: int) -> str:
    """What the shadow rules of the package of that number write into metadata begins with."""
    return f"ask_{number}_"


def _rbac(prefix: str, action: str, enforced: Message, shadow: Message) -> Message:
    return typed(
        HTTP_RBAC,
        rules={"action": action, "policies": enforced},
        rules_stat_prefix=f"{prefix}_",
        shadow_rules={"action": action, "policies": shadow},
        shadow_rules_stat_prefix=f"{prefix}_",
        track_per_rule_stats=True,
    )


def _inside(clauses: Iterable[Clause], is_open: bool) -> Iterator[tuple[str, Condition]]:
    """What a TLS conversation inside has to be, by the rule that then allows it."""
    counted = [one for one in clauses if not one.dry_run]
    refusing = (one for one in counted if one.effect in (Effect.DENY, Effect.CUSTOM))
    refused = Not(AnyOf(tuple(bounded(one.condition, upper=True) for one in refusing)))
    for one in counted:
        if one.effect is Effect.ALLOW:
            yield policy_name(one), All((refused, bounded(one.condition, upper=False)))
    if is_open:
        yield OPEN, refused


def bounded(condition: Condition, *, upper: bool) -> Condition:
    """The condition without what only a request tells: true where it may be (`upper`), or where it must be."""
    match condition:
        case All(parts):
            return All(tuple(bounded(part, upper=upper) for part in parts))
        case AnyOf(parts):
            return AnyOf(tuple(bounded(part, upper=upper) for part in parts))
        case Not(part):
            return Not(bounded(part, upper=not upper))
    if isinstance(condition, _REQUEST_ONLY):
        return Always() if upper else NEVER
    return condition


def _policies(clauses: Iterable[Clause], effect: Effect, *, dry_run: bool = False) -> Message:
    """Clauses of one rule are one policy: any of them is the rule."""
    by_name: dict[str, list[Clause]] = {}
    for one in clauses:
        if one.effect is effect and one.dry_run is dry_run:
            by_name.setdefault(policy_name(one), []).append(one)
    return {
        name: _policy(AnyOf(tuple(one.condition for one in some)), some[0].deadline) for name, some in by_name.items()
    }


def _policy(condition: Condition, deadline: float | None = None) -> Message:
    policy: Message = {"permissions": [{"any": True}], "principals": [principal(condition)]}
    return policy if deadline is None else policy | {"condition": _before(deadline)}


def _before(deadline: float) -> Message:
    """`request.time < DEADLINE`, so that a rule ends in time while nobody writes files."""
    time = {"select_expr": {"operand": {"ident_expr": {"name": "request"}}, "field": "time"}}
    moment = {"const_expr": {"string_value": datetime.fromtimestamp(deadline, UTC).isoformat()}}
    until = {"call_expr": {"function": "timestamp", "args": [moment]}}
    return {"call_expr": {"function": "_<_", "args": [time, until]}}


def principal(condition: Condition) -> Message:
    """The condition in Envoy's words, no wider and no narrower."""
    match condition:
        case Always():
            return {"any": True}
        case All(parts):
            return {"and_ids": {"ids": [principal(part) for part in parts]}} if parts else {"any": True}
        case AnyOf(parts):
            return {"or_ids": {"ids": [principal(part) for part in parts]}} if parts else _not({"any": True})
        case Not(part):
            return _not(principal(part))
        case Caller(text):
            return _state(CALLER, text)
        case CallerAddress(networks):
            return _any_of({"remote_ip": _prefix(one)} for one in networks)
        case CalledAddress(networks):
            return _any_of([_address(networks)] if networks else [])
        case Port(first, last):
            return _state(PORT, Text(How.REGEX, port_pattern([(first, last)])))
        case ServerName(text):
            return _state(SERVER_NAME, text)
    return _of_request(condition)


def _of_request(condition: Condition) -> Message:
    match condition:
        case Method(text):
            return _header(":method", text)
        case Host(text):
            return _header(":authority", Text(text.how, text.value, ignore_case=True))
        case Header(name, text):
            return _header(":authority" if name == "host" else name, text)
        case Path(text):
            return {"url_path": {"path": _string(text)}}
        case PathTemplate(template):
            return {"url_path": {"path": _string(Text(How.REGEX, template_pattern(template)))}}
        case RequestPrincipal(text):
            return _every([_claim(("iss",), Text(How.PRESENT)), _state(PRINCIPAL, text)])
        case Claim(path, text):
            return _claim(path, text)
    raise AssertionError(f"a condition of another kind: {condition!r}")


def template_pattern(template: str) -> str:
    """The template's regular expression, over the whole path."""
    return "/".join(_SEGMENTS.get(segment) or re.escape(segment) for segment in template.split("/"))


_SEGMENTS: Final = {"*": "[^/]+", "{*}": "[^/]+", "**": _SOME, "{**}": _SOME}


def _not(inner: Message) -> Message:
    return {"not_id": inner}


def _every(inner: Iterable[Message]) -> Message:
    return {"and_ids": {"ids": list(inner)}}


def _any_of(inner: Iterable[Message]) -> Message:
    some = list(inner)
    return {"or_ids": {"ids": some}} if some else _not({"any": True})


def _state(key: str, text: Text) -> Message:
    return {"filter_state": {"key": key, "string_match": _string(text)}}


def _address(networks: Iterable[Network]) -> Message:
    return {"filter_state": {"key": ADDRESS, "address_match": {"ranges": [_prefix(one) for one in networks]}}}


def _header(name: str, text: Text) -> Message:
    return {"header": {"name": name, "string_match": _string(text)}}


def _claim(path: Iterable[str], text: Text) -> Message:
    """The claim is that text, or a list in which it is."""
    where = {"filter": _JWT_FILTER, "path": [{"key": key} for key in (_JWT_PAYLOAD, *path)]}
    one = {"string_match": _string(text)}
    return _any_of({"metadata": {**where, "value": value}} for value in (one, {"list_match": {"one_of": one}}))


def _prefix(network: Network) -> Message:
    return {"address_prefix": str(network.network_address), "prefix_len": network.prefixlen}


def _string(text: Text) -> Message:
    """Envoy's string matchers have no empty prefix, and do not heed `ignore_case` in an expression."""
    match text.how:
        case How.PRESENT:
            return {"safe_regex": {"regex": _SOME}}
        case How.REGEX:
            return {"safe_regex": {"regex": f"(?i:{text.value})" if text.ignore_case else text.value}}
        case How.PREFIX | How.SUFFIX if not text.value:
            return {"safe_regex": {"regex": "(?s:.*)"}}
    return {text.how.value: text.value, "ignore_case": text.ignore_case}


def _jwt(issuers: Iterable[JwtIssuer]) -> Message:
    """A JWT that does not verify counts as none: what asks for one is then not met."""
    providers = {one.name: _provider(one) for one in issuers}
    if not providers:
        return typed(JWT_AUTHN)
    alternatives: list[Message] = [{"provider_name": name} for name in providers]
    requirement = {"requires_any": {"requirements": [*alternatives, {"allow_missing_or_failed": {}}]}}
    return typed(JWT_AUTHN, providers=providers, rules=[{"match": {"prefix": "/"}, "requires": requirement}])


def _provider(issuer: JwtIssuer) -> Message:
    return {
        "issuer": issuer.issuer,
        "audiences": list(issuer.audiences),
        "local_jwks": {"inline_string": issuer.jwks},
        "forward": True,
        "payload_in_metadata": _JWT_PAYLOAD,
        "require_expiration": True,
    }
