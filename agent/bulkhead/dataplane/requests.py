"""What a request has to be for a rule to speak of it: one vocabulary for every dialect.

A condition is a formula over one HTTP request and the connection that carries it. Native rules and Istio's policies
become conditions; `proxy` writes them as Envoy's own RBAC, `dataplane.requests_reference` evaluates them, and a bundle
carries them as JSON. Nothing here knows how a policy was written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, TypeAlias

from bulkhead.policy.model import Network, RuleId


class How(StrEnum):
    """How a text is compared."""

    EXACT = "exact"
    PREFIX = "prefix"
    SUFFIX = "suffix"
    PRESENT = "present"
    """There is one, and it is not empty."""
    REGEX = "regex"
    """RE2, over the whole text."""


@dataclass(frozen=True, slots=True)
class Text:
    """A pattern for one text."""

    how: How
    value: str = ""
    ignore_case: bool = False


@dataclass(frozen=True, slots=True)
class Always:
    """Every request."""


@dataclass(frozen=True, slots=True)
class All:
    """Each of them holds; of none, always."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one of them holds; of none, never."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """It does not hold."""

    part: Condition


@dataclass(frozen=True, slots=True)
class Caller:
    """The SPIFFE ID that the caller's certificate proves, `spiffe://` included."""

    spiffe_id: Text


@dataclass(frozen=True, slots=True)
class CallerAddress:
    """The caller's address: of the packet, or with `forwarded` as the last trusted proxy gives it."""

    networks: tuple[Network, ...]
    forwarded: bool = False


@dataclass(frozen=True, slots=True)
class Port:
    """The port that was called, `first` to `last`, inclusive."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class CalledAddress:
    """The address that was called."""

    networks: tuple[Network, ...]


@dataclass(frozen=True, slots=True)
class Method:
    """The HTTP method, case-sensitive (RFC 9110)."""

    name: Text


@dataclass(frozen=True, slots=True)
class Path:
    """The path without query and fragment, as it is after normalisation (docs/mtls.md)."""

    path: Text


@dataclass(frozen=True, slots=True)
class PathTemplate:
    """A path by segments: `*` or `{*}` is one segment, `**` or `{**}` any number of them, at least one; others are
    literal."""

    template: str


@dataclass(frozen=True, slots=True)
class Host:
    """`:authority` or Host, without regard to case; a port that is given belongs to it."""

    name: Text


@dataclass(frozen=True, slots=True)
class Header:
    """A header by its name in lower case; of several of the name, their values joined by commas."""

    name: str
    value: Text


@dataclass(frozen=True, slots=True)
class ServerName:
    """The name in the TLS client hello of the conversation inside, if that is TLS."""

    name: Text


@dataclass(frozen=True, slots=True)
class RequestPrincipal:
    """`ISSUER/SUBJECT` of a JWT that was verified."""

    name: Text


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of a JWT that was verified, by its path (`("aud",)`, `("realm", "roles")`); of a list, one of it."""

    path: tuple[str, ...]
    value: Text


Condition: TypeAlias = (
    Always | All | AnyOf | Not | Caller | CallerAddress | Port | CalledAddress | Method | Path | PathTemplate
    | Host | Header | ServerName | RequestPrincipal | Claim
)  # fmt: skip


class Effect(StrEnum):
    """What a clause does when its condition holds, in the order in which they are asked."""

    CUSTOM = "custom"
    """Another authority is asked (`Clause.provider`), and may refuse."""
    DENY = "deny"
    ALLOW = "allow"
    AUDIT = "audit"
    """Nothing but being recorded."""


@dataclass(frozen=True, slots=True)
class Clause:
    """One rule's part in the authorisation of requests to one workload."""

    rule_id: RuleId
    effect: Effect
    condition: Condition
    provider: str = ""
    """CUSTOM: what is asked, `rego:PACKAGE`."""
    dry_run: bool = False
    """It is evaluated and recorded, and changes no verdict."""
    deadline: float | None = None
    """Unix seconds after which it does not count; None: never."""


@dataclass(frozen=True, slots=True)
class Authorization:
    """Who may request what of one workload, on the ports where requests are looked at.

    CUSTOM, then DENY, then ALLOW. A request that no ALLOW covers is refused: default deny, unless `open`, which is what
    Istio means by a workload that no ALLOW policy selects.
    """

    destination: int
    """Identity of the workload that is called."""
    ports: tuple[tuple[int, int], ...]
    """Intervals of TCP ports, disjoint and ascending; other ports of it are judged by the kernel alone."""
    clauses: tuple[Clause, ...]
    open: bool = False


@dataclass(frozen=True, slots=True)
class JwtIssuer:
    """Who may sign the JWTs of requests."""

    name: str
    issuer: str
    audiences: tuple[str, ...]
    """Empty: any."""
    jwks: str
    """JSON Web Key Set (RFC 7517)."""


_CONDITIONS: Mapping[str, type] = {
    kind.__name__: kind
    for kind in (
        *(Always, All, AnyOf, Not, Caller, CallerAddress, Port, CalledAddress, Method, Path, PathTemplate, Host),
        *(Header, ServerName, RequestPrincipal, Claim),
    )
}


def condition_record(condition: Condition) -> list[Any]:
    """A condition as JSON would carry it: the name of its kind, then its fields."""
    return [type(condition).__name__, *(_field(getattr(condition, one.name)) for one in fields(condition))]


def _field(value: object) -> Any:
    if isinstance(value, Text):
        return [str(value.how), value.value, value.ignore_case]
    if type(value) in _CONDITIONS.values():
        return condition_record(value)  # type: ignore[arg-type]  # one of the union's members, by its type
    if isinstance(value, tuple):
        return [_field(one) for one in value]
    return value if isinstance(value, str | int | bool) else str(value)
