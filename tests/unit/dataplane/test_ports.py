"""Port ranges become the fewest prefixes that cover them exactly."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.dataplane.ports import PortPrefix, port_prefixes, prefix_of

PORTS = st.integers(0, 65535)


@given(PORTS, PORTS)
def test_prefixes_cover_a_range_exactly_once(one: int, other: int) -> None:
    first, last = sorted((one, other))
    at = first
    for value, bits in port_prefixes(first, last):
        assert value == at
        assert prefix_of(value, bits) == PortPrefix(value, bits)
        at += 1 << (16 - bits)
    assert at == last + 1


@given(PORTS, PORTS)
def test_no_two_neighbours_could_be_one(one: int, other: int) -> None:
    prefixes = port_prefixes(*sorted((one, other)))
    assert len(prefixes) <= 30
    for (value, bits), (_, next_bits) in pairwise(prefixes):
        assert bits != next_bits or prefix_of(value, bits - 1).value != value


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (443, 443, [(443, 16)]),
        (0, 65535, [(0, 0)]),
        (8 << 8, 8 << 8 | 255, [(2048, 8)]),
        (8000, 8100, [(8000, 10), (8064, 11), (8096, 14), (8100, 16)]),
        (65535, 65535, [(65535, 16)]),
    ],
)
def test_prefixes_of_known_ranges(first: int, last: int, expected: list[tuple[int, int]]) -> None:
    assert list(port_prefixes(first, last)) == expected


@pytest.mark.parametrize(("first", "last"), [(2, 1), (-1, 5), (0, 65536)])
def test_what_is_no_range_is_an_error(first: int, last: int) -> None:
    with pytest.raises(ValueError, match="no port range"):
        port_prefixes(first, last)
