"""What can be said of a glob as it is written: `*` is any run of characters, `?` one character, all else is literal.

Whether a glob matches, and how closely, is the business of the identity room.
"""

from __future__ import annotations

WILDCARDS = frozenset("*?")


def has_wildcard(pattern: str) -> bool:
    """True when the pattern can match more than one text."""
    return not WILDCARDS.isdisjoint(pattern)


def can_end_in(pattern: str, suffix: str) -> bool:
    """True when some text longer than `suffix` matches the pattern and ends in `suffix`."""
    for position in range(1, len(suffix) + 1):
        if position > len(pattern):
            return False
        token = pattern[-position]
        if token == "*":
            return True
        if token not in ("?", suffix[-position]):
            return False
    return len(pattern) > len(suffix)
