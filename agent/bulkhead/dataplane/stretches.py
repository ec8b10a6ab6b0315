"""Stretches: what holds between two numbers, ports and addresses alike. Exact, whatever their width."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, summarize_address_range
from itertools import pairwise
from typing import TypeVar

from bulkhead.policy.model import Network

T = TypeVar("T", int, float)
Stretch = tuple[int, int, T]
"""First, last, and what holds between them."""


def flattened(nested: Iterable[Stretch[T]]) -> list[Stretch[T]]:
    """What holds where, of stretches that are nested or apart: the innermost, of equal ones the last."""
    flat: list[Stretch[T]] = []
    around: list[tuple[int, T]] = []
    at = 0
    for first, last, value in sorted(nested, key=lambda stretch: (stretch[0], -stretch[1])):
        while around and around[-1][0] < first:
            at = _closed(flat, around, at)
        if around and at < first:
            flat.append((at, first - 1, around[-1][1]))
        at = first
        around.append((last, value))
    while around:
        at = _closed(flat, around, at)
    return flat


def _closed(flat: list[Stretch[T]], around: list[tuple[int, T]], at: int) -> int:
    """Ends the innermost open stretch; returns where the next begins."""
    last, value = around.pop()
    if at <= last:
        flat.append((at, last, value))
    return max(at, last + 1)


def overlaid(one: Sequence[Stretch[T]], other: Sequence[Stretch[T]], nothing: T) -> Iterator[tuple[int, int, T, T]]:
    """Where and how the two hold together, in order; `nothing` where only one of them does."""
    cuts = sorted({cut for first, last, _ in (*one, *other) for cut in (first, last + 1)})
    here = there = 0
    for first, following in pairwise(cuts):
        while here < len(one) and one[here][1] < first:
            here += 1
        while there < len(other) and other[there][1] < first:
            there += 1
        left = one[here][2] if here < len(one) and one[here][0] <= first else nothing
        right = other[there][2] if there < len(other) and other[there][0] <= first else nothing
        yield first, following - 1, left, right


def joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ascending ranges, with those that touch made one."""
    found: list[tuple[int, int]] = []
    for first, last in ranges:
        if found and found[-1][1] + 1 == first:
            found[-1] = (found[-1][0], last)
        else:
            found.append((first, last))
    return found


def prefixes(version: int, first: int, last: int) -> Iterator[Network]:
    """The fewest prefixes that are exactly the addresses of a family from `first` to `last`."""
    if version == 4:
        yield from summarize_address_range(IPv4Address(first), IPv4Address(last))
    else:
        yield from summarize_address_range(IPv6Address(first), IPv6Address(last))
