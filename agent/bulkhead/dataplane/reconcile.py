"""What to write to make one map like another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MapDelta:
    """The difference between what a kernel map should hold and what it holds."""

    add: dict[bytes, bytes]
    """Missing entries."""
    change: dict[bytes, bytes]
    """Entries with another value, with the value they should have."""
    remove: tuple[bytes, ...]
    """Keys that should not be there."""

    def __bool__(self) -> bool:
        return bool(self.add or self.change or self.remove)

    @property
    def size(self) -> int:
        """How many writes it takes."""
        return len(self.add) + len(self.change) + len(self.remove)


def reconcile(desired: Mapping[bytes, bytes], actual: Mapping[bytes, bytes]) -> MapDelta:
    """The delta that turns `actual` into `desired`."""
    add: dict[bytes, bytes] = {}
    change: dict[bytes, bytes] = {}
    for key, value in desired.items():
        present = actual.get(key)
        if present is None:
            add[key] = value
        elif present != value:
            change[key] = value
    return MapDelta(add, change, tuple(key for key in actual if key not in desired))
