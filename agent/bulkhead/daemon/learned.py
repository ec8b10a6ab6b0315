"""What workloads have been told of DNS names, as the kernel remembers it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from bulkhead.abi import LearnedEntry, LearnedKey
from bulkhead.daemon.enforcer import Enforcer
from bulkhead.observe.names import Namer

Json = dict[str, Any]

_SECONDS = 0xFFFFFFFF


def learned_names(enforcer: Enforcer, namer: Namer) -> Json:
    """Addresses by workload and name with the seconds that are left to them; lapsed ones are left out.

    A name that has left the policy since is left out too: it allows nothing.
    """
    rows = [
        {"workload": namer.identity(local), "name": name.pattern, "address": address, "left_s": left}
        for local, address, number, left in _entries(enforcer)
        if enforcer.bundle is not None and (name := enforcer.bundle.name(number)) is not None
    ]
    rows.sort(key=lambda row: (row["workload"], row["name"], row["address"]))
    return {"names": rows}


class Borne:
    """Which classes an address has for a workload beside that of its prefix: those of the names it was told of it."""

    def __init__(self, enforcer: Enforcer) -> None:
        self._bundle = enforcer.bundle
        self._names: dict[tuple[int, str], list[int]] = {}
        if self._bundle is not None and next(self._bundle.names(), None) is not None:
            for local, address, number, _ in _entries(enforcer):
                self._names.setdefault((local, address), []).append(number)

    def classes(self, local: int, address: IPv4Address | IPv6Address, held: int) -> list[int]:
        """`held` is the number of the name by which a conversation was allowed before; 0 for none."""
        if self._bundle is None:
            return []
        numbers = (*self._names.get((local, str(address)), ()), held)
        names = (self._bundle.name(number) for number in numbers if number)
        return [name.identity for name in names if name is not None]


def _entries(enforcer: Enforcer) -> Iterator[tuple[int, str, int, int]]:
    """Local identity, address, number of the name, seconds left."""
    now = int(time.clock_gettime(time.CLOCK_BOOTTIME))
    for key, value in enforcer.maps.fixed("learned").as_dict().items():
        known = LearnedKey.from_buffer_copy(key)
        for word in LearnedEntry.from_buffer_copy(value).names:
            number, left = word >> 32, (word & _SECONDS) - now
            if number and left > 0:
                yield known.local_identity, _address(bytes(known.address)), number, left


def _address(packed: bytes) -> str:
    address = IPv6Address(packed)
    return str(address.ipv4_mapped or address)
