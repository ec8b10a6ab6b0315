"""What Envoy asks about a request, as the input document that policies for the OPA Envoy plugin are written for."""

from __future__ import annotations

import json
from typing import Any, Final
from urllib.parse import unquote, unquote_plus

from google.protobuf.json_format import MessageToDict

from bulkhead.observe.requests import CALLER_HEADER

VERSION: Final = {"ext_authz": "v3", "encoding": "protojson"}
PACKAGE_KEY: Final = "package"
"""Of the context extensions: which package is asked."""


class InputError(Exception):
    """The request is none that a document can be made of without guessing; it is refused."""


def package_of(request: Any) -> str:
    """The package that a CheckRequest asks; empty when it names none."""
    return str(request.attributes.context_extensions.get(PACKAGE_KEY, ""))


def input_document(request: Any) -> dict[str, Any]:
    """The input document of a CheckRequest. Raises InputError."""
    http = request.attributes.request.http
    # Requests reach the judge from a tunnel's end, where the certificate is known as this header alone.
    source = request.attributes.source
    source.principal = source.principal or http.headers.get(CALLER_HEADER, "")
    path, _, query = http.path.partition("?")
    parsed, truncated = _body(http)
    return {
        **MessageToDict(request),
        "version": VERSION,
        "parsed_path": _decoded(path).lstrip("/").split("/"),
        "parsed_query": _pairs(query),
        "parsed_body": parsed,
        "truncated_body": truncated,
        "source_principal": source.principal,
    }


def _decoded(text: str) -> str:
    _check_escapes(text)
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise InputError("the path is no UTF-8") from None


def _pairs(text: str) -> dict[str, list[str]]:
    """`a=1&a=2&b` as `{"a": ["1", "2"], "b": [""]}`. Only `&` separates."""
    _check_escapes(text)
    found: dict[str, list[str]] = {}
    for pair in filter(None, text.split("&")):
        key, _, value = pair.partition("=")
        try:
            name, content = (unquote_plus(one, errors="strict") for one in (key, value))
        except UnicodeDecodeError:
            raise InputError("a parameter is no UTF-8") from None
        found.setdefault(name, []).append(content)
    return found


_HEX: Final = frozenset("0123456789abcdefABCDEF")


def _check_escapes(text: str) -> None:
    for piece in text.split("%")[1:]:
        if len(piece) < 2 or not _HEX.issuperset(piece[:2]):
            raise InputError("a percent sign does not begin an escape")


def _body(http: Any) -> tuple[Any, bool]:
    """What the body says, as far as its type is one that is read, and whether a part of it is missing."""
    content = http.raw_body or http.body.encode()
    headers = http.headers
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    readers = {"application/json": _json, "application/x-www-form-urlencoded": _form}
    if kind not in readers or not content:
        return None, False
    if headers.get("x-envoy-auth-partial-body") == "true" or _length(headers) > len(content):
        return None, True
    try:
        return readers[kind](content.decode()), False
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is not what its type says: {error}") from None


def _form(text: str) -> dict[str, list[str]]:
    return _pairs(text)


def _length(headers: Any) -> int:
    text = headers.get("content-length", "0")
    if not (text.isascii() and text.isdigit()):
        raise InputError("the length of the body is no number")
    return int(text[:20])


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two equal keys one reader keeps the first, another the last: who judges has to read what is acted on."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key of the body stands twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")
