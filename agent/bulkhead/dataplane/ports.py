"""Ports as prefixes, since the kernel looks them up by their longest prefix, and as intervals."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from bulkhead.policy.model import PortSpec
from bulkhead.policy.ports import TCP

PORT_BITS = 16

Ports = tuple[tuple[int, int], ...]
"""Intervals of ports, disjoint, apart and ascending."""


class PortPrefix(NamedTuple):
    """The ports whose first `bits` bits are those of `value`."""

    value: int
    bits: int
    """0 (any port) to 16 (one port)."""


@lru_cache(maxsize=65536)
def port_prefixes(first: int, last: int) -> tuple[PortPrefix, ...]:
    """The fewest prefixes that cover exactly the ports `first` to `last`, in order; at most 30."""
    if not 0 <= first <= last < 1 << PORT_BITS:
        raise ValueError(f"no port range: {first} to {last}")
    prefixes = []
    while first <= last:
        aligned = (first & -first).bit_length() - 1 if first else PORT_BITS
        free = min(aligned, (last - first + 1).bit_length() - 1)
        prefixes.append(PortPrefix(first, PORT_BITS - free))
        first += 1 << free
    return tuple(prefixes)


def prefix_of(port: int, bits: int) -> PortPrefix:
    """The prefix of `bits` bits around a port."""
    free = PORT_BITS - bits
    return PortPrefix(port >> free << free, bits)


def tcp_ports(specs: Iterable[PortSpec]) -> Ports:
    """The TCP ports among some."""
    return joined((spec.first, spec.last) for spec in specs if spec.protocol == TCP)


def joined(ranges: Iterable[tuple[int, int]]) -> Ports:
    """Ranges that may overlap as intervals that do not."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return tuple(found)


def common(one: Ports, other: Ports) -> Iterator[tuple[int, int]]:
    """Where both are, ascending."""
    for first, last in one:
        for begin, end in other[bisect_left(other, first, key=lambda interval: interval[1]) :]:
            if begin > last:
                break
            yield max(first, begin), min(last, end)
