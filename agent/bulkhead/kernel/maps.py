"""The pinned maps: what a generation consists of, and the one write that switches it in.

Each map of a generation is an inner map in one of two slots. A switch builds fresh inner maps, hangs them into the idle
slot, and then writes `control`, 8 bytes that the programs read once per packet. Nothing of the slot in force is ever
touched, except that control groups that appear are added to it.

INVARIANT: between the write of `control` and the next reuse of the slot that became idle, every program that read the
old generation has finished: replacing an inner map waits for them (`synchronize_rcu` in a map-in-map update).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bulkhead.abi import (
    AddressKey4,
    AddressKey6,
    CgroupEntry,
    Control,
    ControlFlag,
    PolicyEntry,
    PolicyKey,
    SubjectEntry,
    SubjectKey,
    SubjectMember,
)
from bulkhead.kernel import libbpf
from bulkhead.kernel.libbpf import BPF_F_NO_PREALLOC, Map, MapType

_ZERO: Final = bytes(4)


@dataclass(frozen=True, slots=True)
class _Inner:
    """Shape of one generation map: as its template in bpf/maps.h."""

    map_type: MapType
    key_size: int
    value_size: int


def _size(kind: type) -> int:
    return len(bytes(kind()))


_SLOTTED: Final[Mapping[str, _Inner]] = {
    "policy": _Inner(MapType.LPM_TRIE, _size(PolicyKey), _size(PolicyEntry)),
    "classes4": _Inner(MapType.LPM_TRIE, _size(AddressKey4), 4),
    "classes6": _Inner(MapType.LPM_TRIE, _size(AddressKey6), 4),
    "cgroups": _Inner(MapType.HASH, 8, _size(CgroupEntry)),
    "members": _Inner(MapType.HASH, _size(SubjectMember), 4),
    "subjects": _Inner(MapType.HASH, _size(SubjectKey), _size(SubjectEntry)),
}

_FIXED: Final = (
    "control",
    "setting",
    "sockets",
    "executables",
    "datagrams",
    "fragments",
    "echoes",
    "refusals",
    "edges",
    "hits",
    "losses",
    "buckets",
    "verdict_events",
    "lifecycle_events",
)


@dataclass(frozen=True, slots=True)
class Table:
    """Entries of one map, packed: `count` keys and as many values, one after the other."""

    keys: bytes = b""
    values: bytes = b""
    count: int = 0

    @classmethod
    def of(cls, entries: Mapping[bytes, bytes]) -> Table:
        """A table from single entries."""
        return cls(b"".join(entries), b"".join(entries.values()), len(entries))


@dataclass(frozen=True, slots=True)
class Growth:
    """Room in a generation map beyond what is written at first, for entries that come while it is in force."""

    cgroups: int = 65536
    members: int = 65536
    subjects: int = 65536


@dataclass(frozen=True, slots=True)
class GenerationTables:
    """Everything one generation holds."""

    policy: Table
    classes4: Table
    classes6: Table
    cgroups: Table
    members: Table
    subjects: Table
    flags: ControlFlag


@dataclass(frozen=True, slots=True)
class Staged:
    """A generation that is built but not in force."""

    control: Control
    maps: dict[str, Map]


def _close(opened: Mapping[str, Map]) -> None:
    for one in opened.values():
        one.close()


class KernelMaps:
    """The pinned maps below one directory, opened. Close gives back descriptors; the pins stay."""

    def __init__(self, pins: Path) -> None:
        self._slots = pins / "slots"
        self._outer: dict[str, Map] = {}
        self._fixed: dict[str, Map] = {}
        self._current: dict[str, Map] = {}
        try:
            for name in _SLOTTED:
                self._outer[name] = libbpf.map_open(pins / "maps" / name)
            for name in _FIXED:
                self._fixed[name] = libbpf.map_open(pins / "maps" / name)
            if self.control().generation:
                self._open_current()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close every descriptor."""
        for opened in (*self._outer.values(), *self._fixed.values(), *self._current.values()):
            opened.close()
        self._current = {}

    def fixed(self, name: str) -> Map:
        """A map that does not belong to a generation."""
        return self._fixed[name]

    def current(self, name: str) -> Map | None:
        """A map of the generation in force; None before the first switch."""
        return self._current.get(name)

    def control(self) -> Control:
        """The word in force."""
        raw = self._fixed["control"].lookup(_ZERO)
        return Control.from_buffer_copy(raw) if raw else Control()

    def switch(self, tables: GenerationTables) -> int:
        """Put `tables` in force as the next generation, in one step, and return its number.

        Raises KernelError when a map cannot be made or filled; then the generation in force is unchanged.
        """
        staged = self.stage(tables)
        self.hang(staged)
        return self.adopt(staged)

    def stage(self, tables: GenerationTables) -> Staged:
        """Build the maps of the next generation. Nothing is in force yet."""
        made: dict[str, Map] = {}
        try:
            for name in _SLOTTED:
                made[name] = self._build(name, getattr(tables, name))
        except BaseException:
            _close(made)
            raise
        return Staged(Control(generation=self.control().generation + 1, flags=int(tables.flags)), made)

    def hang(self, staged: Staged) -> None:
        """Hang staged maps into the idle slot and switch. Any thread may do it.

        The kernel makes every such update wait until no packet reads the map that is replaced. Made side by side, the
        six updates wait for the same moment instead of one after the other.
        """
        slot = staged.control.generation & 1
        try:
            for name, inner in staged.maps.items():
                self._repin(name, slot, inner)
            with ThreadPoolExecutor(len(staged.maps)) as pool:
                list(pool.map(partial(self._hang_one, slot), staged.maps.items()))
            self._fixed["control"].update(_ZERO, bytes(staged.control))
        except BaseException:
            _close(staged.maps)
            raise

    def _hang_one(self, slot: int, named: tuple[str, Map]) -> None:
        name, inner = named
        self._outer[name].update(slot.to_bytes(4, "little"), inner.fd.fileno().to_bytes(4, "little"))

    def adopt(self, staged: Staged) -> int:
        """From now on `current` means the generation that was switched in; returns its number."""
        old, self._current = self._current, staged.maps
        _close(old)
        return int(staged.control.generation)

    def _build(self, name: str, table: Table) -> Map:
        shape = _SLOTTED[name]
        room = max(1, table.count + int(getattr(Growth(), name, 0)))
        inner = libbpf.map_create(
            shape.map_type, f"bh_{name}", shape.key_size, shape.value_size, room, BPF_F_NO_PREALLOC
        )
        try:
            inner.update_batch(table.keys, table.values, table.count)
        except BaseException:
            inner.close()
            raise
        return inner

    def _repin(self, name: str, slot: int, inner: Map) -> None:
        """Opening an inner map by its id takes CAP_SYS_ADMIN; by a pin of its own it does not."""
        fresh = self._slots / f"{name}_fresh"
        fresh.unlink(missing_ok=True)
        inner.pin(fresh)
        fresh.rename(self._slots / f"{name}_{slot}")

    def _open_current(self) -> None:
        slot = self.control().generation & 1
        for name in _SLOTTED:
            self._current[name] = libbpf.map_open(self._slots / f"{name}_{slot}")

    def entries(self, name: str) -> Iterator[tuple[bytes, bytes]]:
        """Every entry of a generation map in force, as the kernel holds it."""
        opened = self._current.get(name)
        if opened is None:
            return
        keys, values = opened.lookup_batch()
        key_size, value_size = opened.info.key_size, opened.info.value_size
        for index in range(len(keys) // key_size):
            yield (
                keys[index * key_size : (index + 1) * key_size],
                values[index * value_size : (index + 1) * value_size],
            )
