"""What a rule says of requests: the values of `l7`, and of the repository's `jwt`."""

from __future__ import annotations

from dataclasses import dataclass

from bulkhead.errors import Loc


@dataclass(frozen=True, slots=True)
class HeaderMatch:
    """What one header has to be."""

    name: str
    """In lower case."""
    how: str
    """`exact`, `prefix`, `suffix`, `regex` or `present`."""
    value: str = ""


@dataclass(frozen=True, slots=True)
class JwtMatch:
    """A JWT that the request has to carry; what is listed must all hold, one of each list."""

    issuer: str
    """By its name in the repository's `jwt`."""
    subjects: tuple[str, ...] = ()
    audiences: tuple[str, ...] = ()
    claims: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = ()
    """The path of a claim, and the values of which it must be, or hold, one."""


@dataclass(frozen=True, slots=True)
class HttpMatch:
    """One entry of `l7.http`: keys AND, the values of a list OR."""

    loc: Loc
    methods: tuple[str, ...] = ()
    """In upper case. Empty, here and below: any."""
    paths: tuple[str, ...] = ()
    """Exact, with `/*` behind it for all below it, or with `{*}` and `{**}` in place of segments."""
    hosts: tuple[str, ...] = ()
    """In lower case: exact, or `*.` and a domain for everything below that."""
    headers: tuple[HeaderMatch, ...] = ()
    jwt: JwtMatch | None = None


@dataclass(frozen=True, slots=True)
class L7:
    """`l7` of a rule: what of a conversation it allows. Of its entries, one suffices."""

    loc: Loc
    http: tuple[HttpMatch, ...] = ()
    sni: tuple[str, ...] = ()
    """Server names in lower case, exact or `*.` and a domain. Never together with `http`."""
    text: str = ""
    """As it is shown to people, in short."""


@dataclass(frozen=True, slots=True)
class Issuer:
    """Who may sign JWTs, from `jwt` of the repository."""

    name: str
    issuer: str
    """What `iss` says."""
    audiences: tuple[str, ...]
    """Of which `aud` must hold one. Empty: any."""
    jwks: str
    """JSON Web Key Set (RFC 7517)."""
    loc: Loc


def in_full(l7: L7) -> str:
    """All that it says, in one line."""
    return "; ".join([f"sni {', '.join(l7.sni)}"] if l7.sni else map(entry_text, l7.http))


def entry_text(entry: HttpMatch) -> str:
    """All that one entry says: `GET,POST api.example.org /v1/* x-team: a jwt corp`."""
    parts = [",".join(values) for values in (entry.methods, entry.hosts, entry.paths)]
    parts += [_header_text(one) for one in entry.headers]
    parts += [_jwt_text(entry.jwt)] if entry.jwt else []
    return " ".join(part for part in parts if part)


def _header_text(match: HeaderMatch) -> str:
    return f"{match.name}: {match.value if match.how == 'exact' else f'{match.how} {match.value}'.rstrip()}"


def _jwt_text(match: JwtMatch) -> str:
    claims = (("sub", match.subjects), ("aud", match.audiences), *((".".join(path), one) for path, one in match.claims))
    return " ".join(["jwt", match.issuer, *(f"{name}={'|'.join(values)}" for name, values in claims if values)])
