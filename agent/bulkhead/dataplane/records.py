"""JSON records of a bundle: how they are written, and how they are read by somebody who believes nothing."""

from __future__ import annotations

import json
import struct
import sys
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, Final, TypeVar

from bulkhead.errors import Diagnostic, Loc, PolicyError

RECORD_LIMIT: Final = 4 << 20
"""Bytes of the largest JSON text in it."""

_INDEX: Final = struct.Struct("<II")
_COUNT: Final = struct.Struct("<I")
_U32_MAX: Final = 0xFFFFFFFF
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, sort_keys=True, check_circular=False)

T = TypeVar("T")


class BundleError(PolicyError):
    """The bytes are no bundle that this agent can enforce: refused whole, the last good one stays in force."""

    def __init__(self, problem: str) -> None:
        super().__init__([Diagnostic("BH0901", f"not a policy bundle: {problem}", Loc("bundle", 1))])


class RecordTable:
    """JSON records under ascending numbers, kept as the bytes they came in."""

    def __init__(self, section: bytes, what: str) -> None:
        """Raises BundleError when the index and the text behind it do not fit each other."""
        if len(section) < _COUNT.size:
            raise BundleError(f"the index of {what} is cut short")
        (count,) = _COUNT.unpack_from(section)
        start = _COUNT.size + count * _INDEX.size
        if start > len(section):
            raise BundleError(f"the index of {what} is cut short")
        index = u32s(section[_COUNT.size : start])
        self._numbers, self._ends = index[0::2], index[1::2]
        self._text = section[start:]
        self._what = what
        if any(a >= b for a, b in pairwise(self._numbers)) or any(a >= b for a, b in pairwise((0, *self._ends))):
            raise BundleError(f"the index of {what} does not ascend")
        if len(self._text) != (self._ends[-1] if count else 0):
            raise BundleError(f"the text of {what} does not end with its index")

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, number: int) -> bool:
        return self._find(number) is not None

    @property
    def numbers(self) -> Iterable[int]:
        """All numbers, ascending."""
        return self._numbers

    def get(self, number: int) -> list[Any] | None:
        """The record of a number; None when there is none. Raises BundleError when it is not a JSON array."""
        at = self._find(number)
        if at is None:
            return None
        record = from_json(self._text[self._ends[at - 1] if at else 0 : self._ends[at]], self._what)
        if not isinstance(record, list):
            raise BundleError(f"a record of {self._what} is not a list")
        return record

    def _find(self, number: int) -> int | None:
        if not 0 <= number <= _U32_MAX:
            return None
        at = bisect_left(self._numbers, number)
        return at if at < len(self._numbers) and self._numbers[at] == number else None


def u32s(data: bytes) -> array[int]:
    """Words of four bytes, little endian."""
    values = array("I")
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def from_json(text: bytes, what: str) -> Any:
    """What JSON says. Raises BundleError for anything else."""
    if len(text) > RECORD_LIMIT:
        raise BundleError(f"{what} has a record of {len(text):,} bytes")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{what} has a record that is not JSON") from error


# Writing


def json_bytes(value: object) -> bytes:
    """Equal values as equal bytes."""
    return _ENCODER.encode(value).encode()


def table_bytes(records: Iterable[tuple[int, list[object]]]) -> bytes:
    """A record table of numbered records."""
    ordered = sorted(records, key=lambda record: record[0])
    texts = [json_bytes(record) for _, record in ordered]
    index, end = bytearray(_COUNT.pack(len(ordered))), 0
    for (number, _), text in zip(ordered, texts, strict=True):
        end += len(text)
        index += _INDEX.pack(number, end)
    return bytes(index) + b"".join(texts)


def loc_record(loc: Loc) -> list[object]:
    """A place as a record."""
    return [loc.file, loc.line, loc.column, loc.commit]


# Reading


def checked(build: Callable[[], T], what: str) -> T:
    """What `build` makes of a record. Raises BundleError for one that it cannot make it of."""
    try:
        return build()
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise BundleError(f"{what} has a record of another shape") from error


def as_loc(value: Any) -> Loc:
    """A place. This and all others below raise TypeError or ValueError for anything else."""
    file, line, column, commit = value
    if type(line) is not int or type(column) is not int:
        raise TypeError("not a number")
    return Loc(as_text(file), line, column, as_text(commit))


def as_text(value: Any) -> str:
    """A text."""
    if not isinstance(value, str):
        raise TypeError("not text")
    value.encode()
    return value


def as_texts(value: Any) -> tuple[str, ...]:
    """A list of texts."""
    if not isinstance(value, list):
        raise TypeError("not a list")
    return tuple(map(as_text, value))


def as_pairs(value: Any) -> tuple[tuple[str, str], ...]:
    """A list of pairs of texts."""
    return tuple((as_text(key), as_text(text)) for key, text in value)


def as_flag(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise TypeError("not a flag")
    return value


def as_seconds(value: Any) -> float:
    """Unix seconds."""
    if type(value) not in (int, float) or not 0 <= value < 1 << 40:
        raise TypeError("not a time")
    return float(value)


def as_number(value: Any, least: int, most: int) -> int:
    """A whole number between two, inclusive."""
    if type(value) is not int or not least <= value <= most:
        raise TypeError("not a number, or too small or too large")
    return value
