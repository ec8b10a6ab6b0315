"""A deny is not evaded by sending a header twice."""

from __future__ import annotations

import pytest

from bulkhead.dataplane.repeated import for_deny
from bulkhead.dataplane.requests import All, AnyOf, Condition, Header, How, Not, Text
from bulkhead.dataplane.requests_reference import Request, holds

EXACT = Header("x-team", Text(How.EXACT, "a.b"))
PREFIX = Header("x-team", Text(How.PREFIX, "a."))
SUFFIX = Header("x-team", Text(How.SUFFIX, ".b"))


def asked(*values: str) -> Request:
    return Request(caller="", port=80, method="GET", path="/", headers=tuple(("x-team", value) for value in values))


@pytest.mark.parametrize("condition", (EXACT, PREFIX, SUFFIX, AnyOf((EXACT,)), All((PREFIX, SUFFIX)), Not(Not(EXACT))))
@pytest.mark.parametrize(
    "values", (("a.b",), ("a.b", "c"), ("c", "a.b"), ("c", "a.b", "d"), ("c, a.b",), ("c,a.b ,d",))
)
def test_one_value_among_others_is_denied(condition: Condition, values: tuple[str, ...]) -> None:
    assert holds(for_deny(condition), asked(*values))


@pytest.mark.parametrize("condition", (EXACT, PREFIX, SUFFIX))
@pytest.mark.parametrize("values", ((), ("axb",), ("c", "axb"), ("a-b,c",)))
def test_other_values_are_not(condition: Condition, values: tuple[str, ...]) -> None:
    assert not holds(for_deny(condition), asked(*values))


def test_what_is_denied_unless_a_header_says_so_needs_exactly_that() -> None:
    unless = for_deny(Not(EXACT))
    assert not holds(unless, asked("a.b"))
    assert holds(unless, asked("a.b", "c"))
