"""The oracle of requests: what an authorization means for one of them, by the shortest way from its definition.

It shares nothing with what is written for the proxy but the vocabulary; tests hold the proxy's answers against it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Any

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
    Method,
    Not,
    Path,
    PathTemplate,
    Port,
    RequestPrincipal,
    ServerName,
    Text,
)

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Request:
    """One request, its path normalised already, and the connection that carries it."""

    caller: str
    """SPIFFE ID of the certificate."""
    port: int
    method: str = ""
    """Empty, and all of HTTP with it: the conversation is no HTTP."""
    path: str = ""
    """With its query, if it has one."""
    host: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    caller_address: Address | None = None
    forwarded_address: Address | None = None
    called_address: Address | None = None
    server_name: str = ""
    jwt: Mapping[str, Any] = field(default_factory=dict)
    """The payload of a JWT that was verified; empty: there is none."""


Asked = Callable[[Clause, Request], bool]
"""What another authority says."""


def judge(
    authorization: Authorization, request: Request, now: float = 0.0, asked: Asked = lambda _clause, _request: True
) -> tuple[bool, Clause | None]:
    """Whether a request passes, and the clause that decides; None: none does. `now` is in Unix seconds."""
    counted = [
        clause
        for clause in authorization.clauses
        if not clause.dry_run and (clause.deadline is None or now < clause.deadline)
    ]
    held = [clause for clause in counted if holds(clause.condition, request)]
    for clause in held:
        if clause.effect is Effect.CUSTOM and not asked(clause, request):
            return False, clause
    for clause in held:
        if clause.effect is Effect.DENY:
            return False, clause
    for clause in held:
        if clause.effect is Effect.ALLOW:
            return True, clause
    return authorization.open, None


def holds(condition: Condition, request: Request) -> bool:
    """Whether a condition is true of a request."""
    match condition:
        case Always():
            return True
        case All(parts):
            return all(holds(part, request) for part in parts)
        case AnyOf(parts):
            return any(holds(part, request) for part in parts)
        case Not(part):
            return not holds(part, request)
        case Caller(text):
            return _is(text, request.caller)
        case CallerAddress(networks, forwarded):
            address = request.forwarded_address if forwarded else request.caller_address
            return address is not None and any(address in network for network in networks)
        case Port(first, last):
            return first <= request.port <= last
        case CalledAddress(networks):
            return request.called_address is not None and any(request.called_address in one for one in networks)
        case ServerName(text):
            return _is(text, request.server_name)
    return bool(request.method) and _holds_of_http(condition, request)


def _holds_of_http(condition: Condition, request: Request) -> bool:
    path = re.split("[?#]", request.path, maxsplit=1)[0]
    match condition:
        case Method(text):
            return _is(text, request.method)
        case Path(text):
            return _is(text, path)
        case PathTemplate(template):
            return _fits(template.split("/"), path.split("/"))
        case Host(text):
            return _is(Text(text.how, text.value, ignore_case=True), request.host)
        case Header(name, text):
            values = [value for key, value in request.headers if key.lower() == name.lower()]
            return bool(values) and _is(text, ",".join(values))
        case RequestPrincipal(text):
            return bool(request.jwt) and _is(text, f"{request.jwt.get('iss', '')}/{request.jwt.get('sub', '')}")
        case Claim(names, text):
            return any(_is(text, value) for value in _claimed(request.jwt, names))
    raise ValueError(f"no condition: {condition!r}")


def _is(text: Text, value: str) -> bool:
    wanted = text.value
    if text.how is How.REGEX:
        return re.fullmatch(wanted, value, re.IGNORECASE if text.ignore_case else 0) is not None
    if text.ignore_case:
        wanted, value = wanted.lower(), value.lower()
    match text.how:
        case How.EXACT:
            return value == wanted
        case How.PREFIX:
            return value.startswith(wanted)
        case How.SUFFIX:
            return value.endswith(wanted)
    return value != ""


def _fits(template: list[str], segments: list[str]) -> bool:
    """Whether the segments are those of a template, from the first on."""
    if not template or not segments:
        return not template and not segments
    first, *rest = template
    if first in ("**", "{**}"):
        return any(any(segments[:end]) and _fits(rest, segments[end:]) for end in range(1, len(segments) + 1))
    fits = segments[0] != "" if first in ("*", "{*}") else segments[0] == first
    return fits and _fits(rest, segments[1:])


def _claimed(payload: Any, names: tuple[str, ...]) -> list[str]:
    """The texts at the end of a path of claims."""
    for name in names:
        payload = payload.get(name) if isinstance(payload, Mapping) else None
    values = payload if isinstance(payload, list) else [payload]
    return [value for value in values if isinstance(value, str)]


def concerns(condition: Condition, caller: str) -> bool:
    """Whether a condition could hold for some request of this caller, as far as it names callers at all."""
    if isinstance(condition, Caller):
        return _is(condition.spiffe_id, caller)
    if isinstance(condition, All):
        return all(concerns(part, caller) for part in condition.parts)
    if isinstance(condition, AnyOf):
        return any(concerns(part, caller) for part in condition.parts)
    return True
