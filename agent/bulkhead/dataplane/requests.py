"""What a request has to be for a rule to speak of it: one vocabulary for every dialect.

A condition is a formula over one HTTP request and the connection that carries it. Native rules and Istio's policies
become conditions; `proxy` writes them as Envoy's own RBAC, `dataplane.requests_reference` evaluates them, and a bundle
carries them as JSON. Nothing here knows how a policy was written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from ipaddress import ip_network
from typing import Any, Final, TypeAlias

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


DEPTH_MAX: Final = 32
NODES_MAX: Final = 10_000
"""Of one condition that is read back."""
TEXT_MAX: Final = 4096
"""Characters of one text in it."""


def condition_of(record: object) -> Condition:
    """The condition that `condition_record` made this of. Raises ValueError for anything else, or beyond the limits."""
    return _Reader().condition(record, 0)


class _Reader:
    """Reads one condition; counts what it has read."""

    def __init__(self) -> None:
        self._nodes = 0
        self._readers: Mapping[type, tuple[Callable[[object, int], Any], ...]] = {
            Always: (),
            All: (self._conditions,),
            AnyOf: (self._conditions,),
            Not: (self.condition,),
            Caller: (_text,),
            CallerAddress: (_networks, _flag),
            Port: (_port, _port),
            CalledAddress: (_networks,),
            Method: (_text,),
            Path: (_text,),
            PathTemplate: (_word,),
            Host: (_text,),
            Header: (_word, _text),
            ServerName: (_text,),
            RequestPrincipal: (_text,),
            Claim: (_words, _text),
        }

    def condition(self, record: object, depth: int) -> Condition:
        """A condition that lies `depth` others deep."""
        self._nodes += 1
        if depth > DEPTH_MAX or self._nodes > NODES_MAX:
            raise ValueError(f"a condition is deeper than {DEPTH_MAX} or has more than {NODES_MAX:,} parts")
        if not isinstance(record, list) or not record or not isinstance(record[0], str):
            raise ValueError("a condition is not a list that begins with its kind")
        kind = _CONDITIONS.get(record[0])
        if kind is None or len(record) - 1 != len(self._readers[kind]):
            raise ValueError(f"a condition is of the unknown kind `{record[0][:64]}`, or has not its parts")
        parts = (read(value, depth + 1) for read, value in zip(self._readers[kind], record[1:], strict=True))
        found: Condition = kind(*parts)
        if isinstance(found, Port) and found.first > found.last:
            raise ValueError(f"the ports {found.first} to {found.last} do not ascend")
        return found

    def _conditions(self, value: object, depth: int) -> tuple[Condition, ...]:
        return tuple(self.condition(one, depth) for one in _list(value))


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("a part of a condition is not a list")
    return value


def _word(value: object, _depth: int = 0) -> str:
    if not isinstance(value, str) or len(value) > TEXT_MAX:
        raise ValueError(f"a part of a condition is not a text of at most {TEXT_MAX} characters")
    value.encode()
    return value


def _words(value: object, _depth: int) -> tuple[str, ...]:
    return tuple(map(_word, _list(value)))


def _flag(value: object, _depth: int = 0) -> bool:
    if not isinstance(value, bool):
        raise ValueError("a part of a condition is neither true nor false")
    return value


def _port(value: object, _depth: int) -> int:
    if type(value) is not int or not 0 <= value <= 0xFFFF:
        raise ValueError("a part of a condition is not a port")
    return value


def _text(value: object, _depth: int) -> Text:
    parts = _list(value)
    if len(parts) != 3:
        raise ValueError("a pattern of a condition has not three parts")
    return Text(How(_word(parts[0])), _word(parts[1]), _flag(parts[2]))


def _networks(value: object, _depth: int) -> tuple[Network, ...]:
    return tuple(ip_network(_word(one)) for one in _list(value))
