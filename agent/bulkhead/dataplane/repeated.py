"""Headers that are sent several times, where a condition takes something away.

A header of several values is compared as one text, joined by commas. An allow is safe by that: `x,y` is not `x`. A deny
of `x` would be evaded by sending `y` beside it; there each of the values counts, as well as all of them together.
"""

from __future__ import annotations

import re
from typing import Final

from bulkhead.dataplane.requests import All, AnyOf, Condition, Header, How, Not, Text

_BEFORE: Final = r"(?:.*,)?[ \t]*"
_AFTER: Final = r"[ \t]*(?:,.*)?"


def for_deny(condition: Condition) -> Condition:
    """A condition that holds wherever the given one does, and where one value of a header makes it hold."""
    if isinstance(condition, All):
        return All(tuple(map(for_deny, condition.parts)))
    if isinstance(condition, AnyOf):
        return AnyOf(tuple(map(for_deny, condition.parts)))
    if isinstance(condition, Not):
        return Not(_for_allow(condition.part))
    return _of_any_value(condition) if isinstance(condition, Header) else condition


def _for_allow(condition: Condition) -> Condition:
    """What stands below a negation takes away by not holding: it stays as narrow as it is, but for a second one."""
    if isinstance(condition, All):
        return All(tuple(map(_for_allow, condition.parts)))
    if isinstance(condition, AnyOf):
        return AnyOf(tuple(map(_for_allow, condition.parts)))
    return Not(for_deny(condition.part)) if isinstance(condition, Not) else condition


def _of_any_value(header: Header) -> Header:
    value, literal = header.value, re.escape(header.value.value)
    patterns = {
        How.EXACT: f"{_BEFORE}{literal}{_AFTER}",
        How.PREFIX: f"{_BEFORE}{literal}.*",
        How.SUFFIX: f".*{literal}{_AFTER}",
    }
    pattern = patterns.get(value.how)
    return header if pattern is None else Header(header.name, Text(How.REGEX, pattern, value.ignore_case))
