"""Ports of all protocols as points of one line, so that sets of them are intervals and nothing is ever enumerated.

The point of a port is `protocol << 16 | port`; of an ICMP type and code `protocol << 16 | type << 8 | code`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from bulkhead.policy.ports import PORT_MAX, PROTOCOL_MAX

Line = tuple[tuple[int, int], ...]
"""First and last points, inclusive, ascending, apart."""

NOTHING: Final[Line] = ()
EVERYTHING: Final[Line] = ((0, PROTOCOL_MAX << 16 | PORT_MAX),)
"""Every port of every protocol."""


class Span(NamedTuple):
    """Ports of one protocol."""

    protocol: int
    first: int
    last: int


def point(protocol: int, port: int) -> int:
    """The point of a port."""
    return protocol << 16 | port


def line(spans: Iterable[tuple[int, int, int]]) -> Line:
    """The points of spans (protocol, first and last port), which may overlap."""
    return joined((point(protocol, first), point(protocol, last)) for protocol, first, last in spans)


def joined(pieces: Iterable[tuple[int, int]]) -> Line:
    """The points of intervals in any order, which may overlap."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(pieces):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return tuple(found)


def without(one: Line, other: Line) -> Line:
    """The points of one that are not in the other."""
    found: list[tuple[int, int]] = []
    for first, last in one:
        for cut_first, cut_last in other:
            if cut_last < first:
                continue
            if cut_first > last:
                break
            if first < cut_first:
                found.append((first, cut_first - 1))
            first = cut_last + 1
        if first <= last:
            found.append((first, last))
    return tuple(found)


def common(one: Line, other: Line) -> Line:
    """The points of both."""
    if other == EVERYTHING:
        return one
    found: list[tuple[int, int]] = []
    at = 0
    for first, last in one:
        while at < len(other) and other[at][1] < first:
            at += 1
        # The interval that this one ends in may reach into the next one as well.
        for index in range(at, len(other)):
            if other[index][0] > last:
                break
            found.append((max(first, other[index][0]), min(last, other[index][1])))
    return tuple(found)


def spans(pieces: Line, protocols: Iterable[int]) -> Iterator[Span]:
    """Points as spans of these protocols; those of others are left out."""
    for protocol in sorted(set(protocols)):
        for first, last in common(pieces, ((point(protocol, 0), point(protocol, PORT_MAX)),)):
            yield Span(protocol, first & PORT_MAX, last & PORT_MAX)
