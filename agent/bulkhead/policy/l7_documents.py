"""`l7` and `authz` of a rule, as they are written."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Final, NamedTuple, TypeVar

from bulkhead.policy.fields import (
    Keys,
    expect_items,
    expect_mapping,
    read_mapping,
    read_text,
    read_written,
)
from bulkhead.policy.findings import Findings
from bulkhead.policy.l7 import L7, HeaderMatch, HttpMatch, JwtMatch, entry_text
from bulkhead.policy.yaml_nodes import Mapping, Node, Scalar, Sequence, Spot

KEYS_L7 = Keys("`l7`", (), ("http", "sni"))
KEYS_HTTP = Keys("an entry of `http`", (), ("methods", "path", "paths", "hosts", "headers", "jwt"))
KEYS_JWT = Keys("`jwt`", ("issuer",), ("subjects", "audiences", "claims"))
KEYS_AUTHZ = Keys("`authz`", ("rego",))
HEADER_KINDS: Final = ("exact", "prefix", "suffix", "regex", "present")
KEYS_HEADER = Keys("a header", (), HEADER_KINDS)

ENTRIES_MAX: Final = 64
"""Of `http` in one rule."""
VALUES_MAX: Final = 256
"""Of one list in an entry."""
TEXT_MAX: Final = 1024
"""Characters of one value."""

METHOD: Final = re.compile(r"[A-Z][A-Z-]{0,31}")
HOST: Final = re.compile(r"(\*\.)?[A-Za-z0-9_]([-A-Za-z0-9_.]{0,251}[A-Za-z0-9_])?(:[1-9][0-9]{0,4})?")
SERVER_NAME: Final = re.compile(r"(\*\.)?[A-Za-z0-9_]([-A-Za-z0-9_.]{0,251}[A-Za-z0-9_])?")
HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
PACKAGE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_SEGMENT: Final = re.compile(r"([A-Za-z0-9._~!$&'()+,=:@-]|%[0-9A-F]{2})+")
_DECODED_BY_PROXIES: Final = re.compile(r"%(2[DEF]|3[0-9]|3B|4[1-9A-F]|5[0-9AF]|5C|6[1-9A-F]|7[0-9AE]|[01][0-9A-F]|7F)")
_NOT_RE2: Final = re.compile(r"\(\?(?:[=!]|<[=!]|P?=|#|>|\()|\\[1-9]|[*+?}]\+")
_TEMPLATES: Final = frozenset({"{*}", "{**}"})

T = TypeVar("T")


class DraftL7(NamedTuple):
    """`l7` of a rule; the names of issuers are not looked up yet."""

    value: L7
    key: Spot
    issuers: tuple[Scalar, ...]


def read_l7(node: Node, findings: Findings) -> DraftL7 | None:
    """What a rule is limited to."""
    fields = _read_filled(node, KEYS_L7, findings)
    if len(fields) != 1:
        if fields:
            findings.add("BH0210", fields["sni"], hint="make two rules", key="sni", other="http")
        return None
    loc, key = findings.loc(Spot(node.line, node.column)), Spot(node.line, node.column, node.width)
    if "sni" in fields:
        names = _texts(fields["sni"], "`sni`", _read_server_name, findings)
        return DraftL7(L7(loc, sni=names, text=_short([f"sni {name}" for name in names])), key, ()) if names else None
    issuers: list[Scalar] = []
    items = expect_items(fields["http"], "`http`", findings, empty=False) or ()
    if not _fits(fields["http"], len(items), ENTRIES_MAX, "entries", findings):
        return None
    entries = tuple(entry for item in items if (entry := _read_http(item, issuers, findings)))
    if not entries or len(entries) < len(items):
        return None
    return DraftL7(L7(loc, entries, text=_short([entry_text(entry) for entry in entries])), key, tuple(issuers))


def _read_filled(node: Node, keys: Keys, findings: Findings) -> dict[str, Node]:
    """The values of a mapping that may not be empty; none where that, or all that it holds, is recorded."""
    if expect_mapping(node, keys.what, findings, empty=False) is None:
        return {}
    return read_mapping(node, keys, findings) or {}


def read_authz(node: Node, findings: Findings) -> Scalar | None:
    """The Rego package that is asked."""
    fields = read_mapping(node, KEYS_AUTHZ, findings)
    text = read_text(fields["rego"], "`rego`", findings) if fields and "rego" in fields else None
    if text is not None and not PACKAGE.fullmatch(text.text):
        findings.add("BH0347", text, hint="write it as `shop.orders`", text=text.text)
        return None
    return text


def _short(texts: list[str]) -> str:
    return texts[0] + (f", {len(texts) - 1} more" if len(texts) > 1 else "")


def _read_http(node: Node, issuers: list[Scalar], findings: Findings) -> HttpMatch | None:
    fields = _read_filled(node, KEYS_HTTP, findings)
    if not fields:
        return None
    if "path" in fields and "paths" in fields:
        findings.add("BH0210", fields["path"], hint="list it under `paths`", key="path", other="paths")
    read: dict[str, Callable[[Node], object]] = {
        "methods": lambda each: _texts(each, "`methods`", _read_method, findings),
        "path": lambda each: _one(_read_path(each, findings)),
        "paths": lambda each: _texts(each, "`paths`", _read_path, findings),
        "hosts": lambda each: _texts(each, "`hosts`", _read_host, findings),
        "headers": lambda each: _read_headers(each, findings),
        "jwt": lambda each: _read_jwt(each, issuers, findings),
    }
    values = {key: read[key](each) for key, each in fields.items()}
    if not all(values.values()):
        return None
    if "path" in values:
        values["paths"] = values.pop("path")
    return replace(HttpMatch(findings.loc(Spot(node.line, node.column))), **values)  # type: ignore[arg-type]  # by key


def _one(value: str | None) -> tuple[str, ...]:
    return (value,) if value else ()


def _texts(node: Node, what: str, read: Callable[[Node, Findings], str | None], findings: Findings) -> tuple[str, ...]:
    """A list of values, each once; empty when one is not sound, which is recorded."""
    items = expect_items(node, what, findings, empty=False) or ()
    if not _fits(node, len(items), VALUES_MAX, "values", findings):
        return ()
    values = [read(item, findings) for item in items]
    return tuple(dict.fromkeys(value for value in values if value)) if all(values) else ()


def _fits(node: Node, count: int, limit: int, what: str, findings: Findings) -> bool:
    if count > limit:
        findings.add("BH0348", Spot(node.line, node.column), count=f"{count:,}", what=what, limit=limit)
    return count <= limit


def read_value(node: Node, what: str, findings: Findings) -> Scalar | None:
    """A text as it is written, of a length that proxies take."""
    text = read_text(node, what, findings, number=True)
    if text is not None and not text.text.isascii():
        findings.add("BH0350", text, text=text.text)
        return None
    return text if text and _fits(text, len(text.text), TEXT_MAX, "characters", findings) else None


# Values


def _read_method(node: Node, findings: Findings) -> str | None:
    text = read_text(node, "a method", findings)
    if text is None:
        return None
    if not METHOD.fullmatch(text.text):
        upper = text.text.upper()
        findings.add("BH0340", text, hint=f"write `{upper}`" if METHOD.fullmatch(upper) else "", text=text.text)
        return None
    return text.text


def _read_path(node: Node, findings: Findings) -> str | None:
    text = read_value(node, "a path", findings)
    if text is None:
        return None
    problem, hint = path_problem(text.text)
    if problem:
        findings.add("BH0341", text, hint=hint, text=text.text, problem=problem)
        return None
    return text.text


def path_problem(path: str) -> tuple[str, str]:
    """Why no request ever has such a path, once proxies have normalised it, and a hint; empty when one may."""
    if not path.startswith("/"):
        return "it does not begin with `/`", f"write `/{path}`"
    segments = path[1:].split("/")
    problem, hint = _characters_problem(path)
    if problem:
        return problem, hint
    if "" in segments[:-1]:
        return "`//` is merged into `/`", "write a single `/`"
    if any(segment in (".", "..") for segment in segments):
        return "`.` and `..` are resolved", "write where it leads"
    return _wildcard_problem(segments)


def _characters_problem(path: str) -> tuple[str, str]:
    if "?" in path or "#" in path:
        return "the query and the fragment are no part of a path", "leave them out"
    if ";" in path:
        return "requests with `;` in the path are refused", "leave the parameter out"
    if "\\" in path:
        return "`\\` is turned into `/`", "write `/`"
    if "%" in path and (_DECODED_BY_PROXIES.search(path) or re.search(r"%(?![0-9A-F]{2})", path)):
        return "what is escaped is decoded, or refused", "write the character itself, and escapes in upper case"
    return "", ""


def _wildcard_problem(segments: list[str]) -> tuple[str, str]:
    *inner, last = segments
    templates = [segment for segment in segments if segment in _TEMPLATES]
    if last == "*" and templates:
        return "`*` and templates do not go together", "write `{**}` in place of `*`"
    literal = [segment for segment in (inner if last == "*" else segments) if segment not in _TEMPLATES]
    odd = next((segment for segment in literal if segment and not _SEGMENT.fullmatch(segment)), None)
    if odd is not None:
        hint = "`*` stands alone at the end, `{*}` is one segment, `{**}` several" if set(odd) & set("*{}") else ""
        return f"`{odd}` is no segment of a path", hint
    if "{**}" in templates[:-1]:
        return "`{**}` is the last of its templates, and there is one", ""
    return "", ""


def _read_host(node: Node, findings: Findings) -> str | None:
    return _read_dns(node, "a host", HOST, findings)


def _read_server_name(node: Node, findings: Findings) -> str | None:
    return _read_dns(node, "a server name", SERVER_NAME, findings)


def _read_dns(node: Node, what: str, form: re.Pattern[str], findings: Findings) -> str | None:
    text = read_text(node, what, findings)
    if text is None:
        return None
    if not form.fullmatch(text.text):
        findings.add("BH0342", text, hint="write a name, or `*.` and a domain", text=text.text, what=what)
        return None
    return text.text.lower()


def _read_headers(node: Node, findings: Findings) -> tuple[HeaderMatch, ...]:
    mapping = expect_mapping(node, "`headers`", findings, empty=False)
    if mapping is None or not _fits(node, len(mapping.entries), VALUES_MAX, "headers", findings):
        return ()
    found = [_read_header(key, value, findings) for key, value in mapping.entries]
    return tuple(header for header in found if header) if all(found) else ()


def _read_header(key: Scalar, node: Node, findings: Findings) -> HeaderMatch | None:
    name = key.text.lower()
    if name == "host" or not HEADER.fullmatch(name):
        hint = "write it under `hosts`" if name in ("host", ":authority") else ""
        findings.add("BH0343", key, hint=hint, text=key.text)
        return None
    if not isinstance(node, Mapping):
        value = read_value(node, "a header", findings)
        return HeaderMatch(name, "exact", value.text) if value else None
    fields = _read_filled(node, KEYS_HEADER, findings)
    if len(fields) != 1:
        if fields:
            findings.add("BH0349", node, hint=f"one of {', '.join(f'`{kind}`' for kind in HEADER_KINDS)}")
        return None
    ((how, written),) = fields.items()
    return _read_header_value(name, how, written, findings)


def _read_header_value(name: str, how: str, node: Node, findings: Findings) -> HeaderMatch | None:
    if how == "present":
        text = read_written(node, "`present`", findings)
        if text is not None and text.text != "true":
            findings.add("BH0306", text, hint="write `true`", text=text.text, what="`present`")
            return None
        return HeaderMatch(name, how) if text else None
    value = read_value(node, f"`{how}`", findings)
    if value is None or (how == "regex" and not check_regex(value, findings)):
        return None
    return HeaderMatch(name, how, value.text)


def check_regex(text: Scalar, findings: Findings) -> bool:
    """Whether a text is an expression that RE2 takes, judged by what is common to it and Python."""
    problem = "it looks around or back, which RE2 does not" if _NOT_RE2.search(text.text) else ""
    try:
        re.compile(text.text)
    except (re.error, OverflowError, RecursionError) as error:
        problem = str(error)
    if problem:
        findings.add("BH0344", text, text=text.text, problem=problem)
    return not problem


# JWT


def _read_jwt(node: Node, issuers: list[Scalar], findings: Findings) -> JwtMatch | None:
    fields = read_mapping(node, KEYS_JWT, findings)
    if fields is None or "issuer" not in fields:
        return None
    issuer = read_text(fields["issuer"], "`issuer`", findings)
    lists = {key: _texts(fields[key], f"`{key}`", _read_claim_value, findings) for key in fields.keys() & _JWT_LISTS}
    claims = _read_claims(fields["claims"], findings) if "claims" in fields else ()
    if issuer is None or not all(lists.values()) or ("claims" in fields and not claims):
        return None
    issuers.append(issuer)
    return JwtMatch(issuer.text, lists.get("subjects", ()), lists.get("audiences", ()), claims)


_JWT_LISTS = frozenset({"subjects", "audiences"})


def _read_claim_value(node: Node, findings: Findings) -> str | None:
    value = read_value(node, "a value of a claim", findings)
    return value.text if value else None


def _read_claims(node: Node, findings: Findings) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
    mapping = expect_mapping(node, "`claims`", findings, empty=False)
    if mapping is None or not _fits(node, len(mapping.entries), VALUES_MAX, "claims", findings):
        return ()
    found = [(claim_path(key.text), _texts_or_one(value, findings)) for key, value in mapping.entries]
    return tuple(found) if all(values for _, values in found) else ()


def _texts_or_one(node: Node, findings: Findings) -> tuple[str, ...]:
    if isinstance(node, Sequence):
        return _texts(node, "a claim", _read_claim_value, findings)
    return _one(_read_claim_value(node, findings))


def claim_path(written: str) -> tuple[str, ...]:
    """`realm.roles` is a claim in a claim; one that is called by a URL is one."""
    return (written,) if "://" in written else tuple(written.split("."))
