"""Port ranges as prefixes, since the kernel looks ports up by their longest prefix."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

PORT_BITS = 16


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
