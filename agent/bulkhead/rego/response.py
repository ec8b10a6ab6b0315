"""What `allow` came to, as Envoy's answer: true or false, or an object as the OPA Envoy plugin has it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from google.protobuf.json_format import ParseDict, ParseError

from bulkhead.rego.messages import message
from bulkhead.rego.outcome import Outcome

METADATA: Final = "bulkhead"
"""Of the dynamic metadata in Envoy's namespace `envoy.filters.http.ext_authz`: who decided, and what."""

_OK, _PERMISSION_DENIED, _FORBIDDEN = 0, 7, 403
_STATUSES: Final = frozenset(
    {*range(200, 209), 226, *range(300, 306), 307, 308, *range(400, 418), 421, 422, 423, 424, 426, 428, 429, 431}
    | {*range(500, 509), 510, 511}
)
"""Those that Envoy knows."""
_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FRAMING: Final = frozenset({"host", "content-length", "transfer-encoding", "connection", "upgrade", "te"})
_BODY_MAX: Final = 64 << 10


class DecisionError(Exception):
    """`allow` came to what is no decision."""


def response(package: str, decision: Any) -> tuple[Outcome, Any]:
    """The outcome and the CheckResponse of a decision. Raises DecisionError."""
    if isinstance(decision, bool):
        decision = {"allowed": decision}
    if not isinstance(decision, dict) or not isinstance(decision.get("allowed"), bool):
        raise DecisionError("`allow` is neither true nor false, nor an object with `allowed`")
    outcome = Outcome.ALLOWED if decision["allowed"] else Outcome.DENIED
    answer = _answer(package, outcome, decision.get("dynamic_metadata", {}))
    if outcome is Outcome.ALLOWED:
        _allow(answer.ok_response, decision)
    else:
        _deny(answer.denied_response, decision)
    return outcome, answer


def refusal(package: str, outcome: Outcome) -> Any:
    """The CheckResponse that refuses, where no decision was come to."""
    answer = _answer(package, outcome, {})
    answer.denied_response.status.code = _FORBIDDEN
    return answer


def _answer(package: str, outcome: Outcome, metadata: Any) -> Any:
    if not isinstance(metadata, dict):
        raise DecisionError("`dynamic_metadata` is no object")
    answer = message("CheckResponse")()
    answer.status.code = _OK if outcome is Outcome.ALLOWED else _PERMISSION_DENIED
    told = {**metadata, METADATA: {"package": package, "outcome": outcome.value}}
    try:
        ParseDict(told, answer.dynamic_metadata)
    except (ParseError, ValueError) as error:
        raise DecisionError(f"`dynamic_metadata` cannot be passed on: {error}") from None
    return answer


def _allow(allowed: Any, decision: dict[str, Any]) -> None:
    allowed.headers.extend(_headers(decision, "headers"))
    allowed.response_headers_to_add.extend(_headers(decision, "response_headers_to_add"))
    allowed.headers_to_remove.extend(_checked_name(name) for name in _texts(decision, "request_headers_to_remove"))
    allowed.query_parameters_to_remove.extend(_texts(decision, "query_parameters_to_remove"))
    parameters = decision.get("query_parameters_to_set", {})
    for key, value in _pairs(parameters, "query_parameters_to_set"):
        allowed.query_parameters_to_set.add(key=key, value=value)


def _deny(denied: Any, decision: dict[str, Any]) -> None:
    status = decision.get("http_status", _FORBIDDEN)
    if isinstance(status, bool) or status not in _STATUSES:
        raise DecisionError(f"`http_status` is no status that there is: {status!r}")
    body = decision.get("body", "")
    if not isinstance(body, str) or len(body) > _BODY_MAX:
        raise DecisionError(f"`body` is no text of at most {_BODY_MAX} characters")
    denied.status.code = int(status)
    denied.body = body
    denied.headers.extend(_headers(decision, "headers"))
    denied.headers.extend(_headers(decision, "response_headers_to_add"))


def _headers(decision: dict[str, Any], key: str) -> Iterator[Any]:
    """The first of a name takes the place of what the request has; more of it are added."""
    given = decision.get(key, {})
    seen: set[str] = set()
    for one in given if isinstance(given, list) else [given]:
        for name, value in _pairs(one, key):
            header = message("HeaderValueOption")()
            header.header.key, header.header.value = _checked_name(name), _checked_value(value)
            header.append.value = name.lower() in seen
            seen.add(name.lower())
            yield header


def _pairs(given: Any, key: str) -> Iterator[tuple[str, str]]:
    if not isinstance(given, dict):
        raise DecisionError(f"`{key}` is no object")
    for name, value in given.items():
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, str):
                raise DecisionError(f"`{key}` holds what is no text")
            yield name, one


def _texts(decision: dict[str, Any], key: str) -> Iterable[str]:
    given = decision.get(key, [])
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise DecisionError(f"`{key}` is no list of texts")
    return given


def _checked_name(name: str) -> str:
    """Of a header that may be set: what routes or frames a request was judged already."""
    if not _NAME.fullmatch(name) or name.lower() in _FRAMING:
        raise DecisionError(f"`{name[:80]}` is no header that a decision may change")
    return name.lower()


def _checked_value(value: str) -> str:
    if any(character in value for character in "\r\n\0"):
        raise DecisionError("the value of a header has a line end in it")
    return value
