"""The pinned maps: what a generation consists of, and the one write that switches it in.

Each map of a generation is an inner map in one of two slots. A switch builds fresh inner maps, hangs them into the idle
slot, and then writes `control`, 8 bytes that the programs read once per packet. Nothing of the slot in force is ever
touched, except that control groups that appear are added to it.

INVARIANT: between the write of `control` and the next reuse of the slot that became idle, every program that read the
old generation has finished: replacing an inner map waits for them (`synchronize_rcu` in a map-in-map update).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
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
    NameKey,
    PolicyEntry,
    PolicyKey,
    SubjectEntry,
    SubjectKey,
    SubjectMember,
    Trial,
)
from bulkhead.errors import RefusedError
from bulkhead.kernel import libbpf
from bulkhead.kernel.libbpf import BPF_F_NO_PREALLOC, Fd, Map, MapType

_ZERO: Final = bytes(4)
_FROZEN: Final = frozenset({"policy", "classes4", "classes6", "names", "named", "hosting"})
"""Generation maps that nobody writes once they are filled: the kernel is told to refuse it."""


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
    "names": _Inner(MapType.HASH, _size(NameKey), 4),
    "named": _Inner(MapType.HASH, 4, 4),
    "hosting": _Inner(MapType.HASH, 4, 4),
}

_FIXED: Final = (
    "control",
    "setting",
    "sockets",
    "executables",
    "quarantined",
    "trial",
    "datagrams",
    "fragments",
    "echoes",
    "questions",
    "learned",
    "wire_self",
    "nodes",
    "wire_keys",
    "claims",
    "guard",
    "wire_flows",
    "steerings",
    "mesh_self",
    "legs",
    "proxy_listeners",
    "refusals",
    "edges",
    "hits",
    "losses",
    "wire_counts",
    "dns_answers",
    "buckets",
    "verdict_events",
    "lifecycle_events",
    "stages",
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


_NOTHING: Final = Table()


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
    names: Table = _NOTHING
    """Ids of DNS names, by the name on the wire."""
    named: Table = _NOTHING
    """Classes of DNS names, by id."""
    hosting: Table = _NOTHING
    """Numbers of `host` globs, by the identity of a workload of any host."""


@dataclass(frozen=True, slots=True)
class _Trial:
    """A generation with an end."""

    until_s: int
    """Boot clock, seconds."""
    base: ControlFlag
    """Flags of the generation before."""


@dataclass(frozen=True, slots=True)
class Staged:
    """A generation that is built but not in force."""

    slot: int
    flags: ControlFlag
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
        self._writing = threading.Lock()
        self._quarantined: dict[bytes, bytes] = {}
        self._control = Control()
        self._base = ControlFlag(0)
        self._trial: _Trial | None = None
        self._fallback: dict[str, Map] = {}
        try:
            for name in _SLOTTED:
                self._outer[name] = libbpf.map_open(pins / "maps" / name)
            for name in _FIXED:
                self._fixed[name] = libbpf.map_open(pins / "maps" / name)
            self._control = self.control()
            self._base = ControlFlag(self._control.flags) & ~(ControlFlag.QUARANTINE | ControlFlag.TRIAL)
            self._quarantined = self._fixed["quarantined"].as_dict()
            if self._control.generation:
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
        for opened in (*self._outer.values(), *self._fixed.values(), *self._current.values(), *self._fallback.values()):
            opened.close()
        self._current, self._fallback = {}, {}

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
        return Staged(self._control.generation + 1 & 1, tables.flags, made)

    def hang(self, staged: Staged, trial_until_s: int | None = None) -> None:
        """Hang staged maps into the idle slot and switch. Any thread may do it.

        The kernel makes every such update wait until no packet reads the map that is replaced. Made side by side, the
        updates wait for the same moment instead of one after the other. `trial_until_s` (boot clock): the kernel
        goes back by itself then, unless `confirm` comes first.
        """
        try:
            if self._trial is not None:
                raise RefusedError("a policy is being tried: confirm or revert it first")
            for name, inner in staged.maps.items():
                self._repin(name, staged.slot, inner)
            self._hang_all(staged.slot, staged.maps)
            trial = None if trial_until_s is None else _Trial(trial_until_s, self._base)
            self._write_word(1, staged.flags, trial)
        except BaseException:
            _close(staged.maps)
            raise

    def _hang_all(self, slot: int, maps: Mapping[str, Map]) -> None:
        with ThreadPoolExecutor(len(maps)) as pool:
            list(pool.map(partial(self._hang_one, slot), maps.items()))

    def _hang_one(self, slot: int, named: tuple[str, Map]) -> None:
        name, inner = named
        self._outer[name].update(slot.to_bytes(4, "little"), inner.fd.fileno().to_bytes(4, "little"))

    def adopt(self, staged: Staged) -> int:
        """From now on `current` means the generation that was switched in; returns its number."""
        old, self._current = self._current, staged.maps
        if self._trial is None:
            _close(old)
        else:
            self._fallback = old
        return self.generation

    # The word

    @property
    def generation(self) -> int:
        """The number in force, as far as user space has written it."""
        return int(self._control.generation)

    def _write_word(self, steps: int, base: ControlFlag | None = None, trial: _Trial | None = None) -> None:
        """Go on by `steps` generations: 1 changes the slot, 2 keeps it. Any thread may do it.

        `base` are the generation's own flags, None: as they are. What outlasts generations is added.
        """
        with self._writing:
            base = self._base if base is None else base
            flags = base | self._lasting()
            if trial is not None:
                returning = Trial(deadline_s=trial.until_s, flags=int(trial.base | self._lasting()))
                self._fixed["trial"].update(_ZERO, bytes(returning))
                flags |= ControlFlag.TRIAL
            word = Control(generation=self._control.generation + steps, flags=int(flags))
            self._fixed["control"].update(_ZERO, bytes(word))
            self._control, self._base, self._trial = word, base, trial

    def _lasting(self) -> ControlFlag:
        return ControlFlag.QUARANTINE | ControlFlag.ANY_ENFORCE if self._quarantined else ControlFlag(0)

    def rejudge(self) -> int:
        """Have every live conversation judged again by the tables in force: the same slot under a new number."""
        self._write_word(2, trial=self._trial)
        return self.generation

    def confirm(self) -> int:
        """A trial has succeeded: its generation stays, under a number that the kernel cannot have gone back to."""
        self._write_word(2)
        _close(self._fallback)
        self._fallback = {}
        return self.generation

    def revert(self) -> int:
        """End a trial now: the generation before it is in force again, under a new number."""
        if self._trial is None:
            raise RefusedError("no policy is being tried")
        self._write_word(1, self._trial.base)
        return self._back()

    def has_reverted(self) -> bool:
        """Whether the kernel has ended a trial by itself. True once; `current` then means what returned."""
        word, trial = self.control(), self._trial
        if trial is None or bytes(word) != bytes(self._returned(trial)):
            return False
        self._control, self._base, self._trial = word, trial.base, None
        self._back()
        return True

    def _returned(self, trial: _Trial) -> Control:
        """The word that the kernel writes when a trial's time is up."""
        return Control(generation=self._control.generation + 1, flags=int(trial.base | self._lasting()))

    def end_inherited_trial(self) -> bool:
        """End a trial that an earlier agent began, before anything is written to the slot that returns."""
        raw = self._fixed["trial"].lookup(_ZERO)
        if raw is None or not self._control.flags & ControlFlag.TRIAL:
            return False
        self._write_word(1, ControlFlag(Trial.from_buffer_copy(raw).flags) & ~ControlFlag.QUARANTINE)
        _close(self._current)
        self._open_current()
        return True

    def _back(self) -> int:
        tried, self._current, self._fallback = self._current, self._fallback, {}
        _close(tried)
        return self.generation

    def fallback(self, name: str) -> Map | None:
        """A map of the generation that returns when the trial ends; None when there is no trial."""
        return self._fallback.get(name)

    def isolate(self, identities: Mapping[int, int]) -> int:
        """Make these the identities that nothing reaches and that reach nothing, with when (boot clock, seconds).

        In force when this returns the new generation.
        """
        quarantined = self._fixed["quarantined"]
        wanted = {number.to_bytes(4, "little"): at.to_bytes(4, "little") for number, at in identities.items()}
        for key, value in wanted.items():
            quarantined.update(key, value)
        for key in quarantined.as_dict().keys() - wanted.keys():
            quarantined.delete(key)
        self._quarantined = wanted
        self._write_word(2, trial=self._trial)
        return self.generation

    def isolated(self) -> Mapping[bytes, bytes]:
        """What `quarantined` must hold."""
        return self._quarantined

    def _build(self, name: str, table: Table) -> Map:
        shape = _SLOTTED[name]
        room = max(1, table.count + int(getattr(Growth(), name, 0)))
        inner = libbpf.map_create(
            shape.map_type, f"bh_{name}", shape.key_size, shape.value_size, room, BPF_F_NO_PREALLOC
        )
        try:
            inner.update_batch(table.keys, table.values, table.count)
            if name in _FROZEN:
                inner.freeze()
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

    # What somebody else may have done

    def displaced(self) -> list[str]:
        """Generation maps in whose place, in the slot in force, hangs another map."""
        slot = (self._control.generation & 1).to_bytes(4, "little")
        return [
            name
            for name, inner in self._current.items()
            if self._outer[name].lookup(slot) != inner.info.map_id.to_bytes(4, "little")
        ]

    def put_back(self, names: Iterable[str]) -> None:
        """Hang these maps of the generation in force where they belong."""
        self._hang_all(self._control.generation & 1, {name: self._current[name] for name in names})

    def pins(self) -> Iterator[tuple[Path, Fd]]:
        """Where each map is pinned, so that the next start finds it."""
        maps, slot = self._slots.parent / "maps", self._control.generation & 1
        yield from ((maps / name, opened.fd) for name, opened in (self._outer | self._fixed).items())
        yield from ((self._slots / f"{name}_{slot}", opened.fd) for name, opened in self._current.items())

    def word_is_ours(self) -> bool:
        """Whether `control` holds what was written last, or what the kernel makes of it when a trial's time is up."""
        held, trial = bytes(self.control()), self._trial
        if trial is not None and time.clock_gettime(time.CLOCK_BOOTTIME) >= trial.until_s:
            return held in (bytes(self._control), bytes(self._returned(trial)))
        return held == bytes(self._control)

    def entries(self, name: str) -> Iterator[tuple[bytes, bytes]]:
        """Every entry of a generation map in force, as the kernel holds it."""
        opened = self._current.get(name)
        if opened is None:
            return
        yield from opened.as_dict().items()
