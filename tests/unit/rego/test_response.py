"""What `allow` comes to, as Envoy's answer."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from bulkhead.rego.outcome import Outcome, Tally
from bulkhead.rego.response import DecisionError, refusal, response


def answer(decision: Any) -> tuple[Outcome, dict[str, Any]]:
    outcome, made = response("shop", decision)
    return outcome, MessageToDict(made)


def told(outcome: str, **more: Any) -> dict[str, Any]:
    return {"dynamicMetadata": {"bulkhead": {"package": "shop", "outcome": outcome}, **more}}


def header(name: str, value: str, *, append: bool = False) -> dict[str, Any]:
    return {"header": {"key": name, "value": value}, "append": append}


@pytest.mark.parametrize(
    "decision, outcome, expected",
    [
        (True, Outcome.ALLOWED, {"status": {}, "okResponse": {}, **told("allowed")}),
        (False, Outcome.DENIED, {"status": {"code": 7}, "deniedResponse": {"status": {"code": 403}}, **told("denied")}),
        (
            {
                "allowed": True,
                "headers": {"X-User": "ann"},
                "response_headers_to_add": [{"x-a": ["1", "2"]}, {"x-b": "3"}],
                "request_headers_to_remove": ["authorization"],
                "query_parameters_to_set": {"q": "1"},
                "query_parameters_to_remove": ["p"],
                "dynamic_metadata": {"team": "shop"},
                "http_status": "of no matter",
            },
            Outcome.ALLOWED,
            {
                "status": {},
                "okResponse": {
                    "headers": [header("x-user", "ann")],
                    "headersToRemove": ["authorization"],
                    "responseHeadersToAdd": [
                        header("x-a", "1"),
                        header("x-a", "2", append=True),
                        header("x-b", "3"),
                    ],
                    "queryParametersToSet": [{"key": "q", "value": "1"}],
                    "queryParametersToRemove": ["p"],
                },
                **told("allowed", team="shop"),
            },
        ),
        (
            {"allowed": False, "http_status": 302, "headers": {"location": "/login"}, "body": "see there"},
            Outcome.DENIED,
            {
                "status": {"code": 7},
                "deniedResponse": {
                    "status": {"code": 302},
                    "headers": [header("location", "/login")],
                    "body": "see there",
                },
                **told("denied"),
            },
        ),
        ({"allowed": True, "dynamic_metadata": {"bulkhead": "mine"}}, Outcome.ALLOWED, None),
    ],
)
def test_decision_is_answered_as_it_says(decision: Any, outcome: Outcome, expected: dict[str, Any] | None) -> None:
    expected = expected or {"status": {}, "okResponse": {}, **told("allowed")}
    assert answer(decision) == (outcome, expected)


@pytest.mark.parametrize(
    "decision",
    [
        None, "true", 1, [], {}, {"allowed": "true"}, {"allowed": 1}, {"allow": True},
        {"allowed": True, "headers": "x"},
        {"allowed": True, "headers": {"x": 1}},
        {"allowed": True, "headers": {"x y": "1"}},
        {"allowed": True, "headers": {"x": "1\r\ny: 2"}},
        {"allowed": True, "headers": {":path": "/admin"}},
        {"allowed": True, "headers": {"Host": "elsewhere"}},
        {"allowed": True, "headers": {"content-length": "0"}},
        {"allowed": True, "request_headers_to_remove": "x"},
        {"allowed": True, "request_headers_to_remove": ["transfer-encoding"]},
        {"allowed": True, "query_parameters_to_remove": [1]},
        {"allowed": True, "dynamic_metadata": [1]},
        {"allowed": False, "http_status": 99},
        {"allowed": False, "http_status": True},
        {"allowed": False, "http_status": "403"},
        {"allowed": False, "body": {}},
        {"allowed": False, "body": "x" * 70_000},
    ],
)  # fmt: skip
def test_refuse_what_is_no_decision(decision: Any) -> None:
    with pytest.raises(DecisionError):
        response("shop", decision)


@pytest.mark.parametrize("outcome", [one for one in Outcome if one is not Outcome.ALLOWED])
def test_refusal_without_a_decision_is_403_and_says_why(outcome: Outcome) -> None:
    made = MessageToDict(refusal("shop", outcome))
    assert made == {"status": {"code": 7}, "deniedResponse": {"status": {"code": 403}}, **told(outcome.value)}


def test_tally_counts_by_package_and_keeps_unknown_names_out() -> None:
    tally = Tally()
    for milliseconds in range(1, 101):
        tally.add("shop", Outcome.ALLOWED, milliseconds / 1000)
    for package in ("one", "two"):
        tally.add(package, Outcome.UNKNOWN, 0.0)
    assert tally.status() == {
        "decisions": [["", "unknown", 2], ["shop", "allowed", 100]],
        "latency": {"": {"p50_ms": 0.0, "p99_ms": 0.0}, "shop": {"p50_ms": 51.0, "p99_ms": 100.0}},
    }
