"""Is the kernel still as we left it? Looks, puts right what is not, and says what it was.

Whoever may change BPF objects of this machine can undo enforcement; what is found here is a mistake, another tool or an
attack. Looking is cheap: the tables of a generation are frozen and known by their numbers, so only what hangs where,
and the small maps that change while they are in force, are read.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from bulkhead.abi import Direction
from bulkhead.dataplane.reconcile import reconcile
from bulkhead.errors import KernelError
from bulkhead.kernel import libbpf
from bulkhead.kernel.attach import Attachments, Programs
from bulkhead.kernel.attestation import Attestation
from bulkhead.kernel.devices import Device
from bulkhead.kernel.maps import KernelMaps
from bulkhead.kernel.programs import STAGES
from bulkhead.kernel.steering import Steering

_MOVES_MAX: Final = 3
_MOVES_WITHIN_S: Final = 60
"""How often a hook is put in front of others again: two tools that both want to be first would never end."""


@dataclass(frozen=True, slots=True)
class Drift:
    """One thing that was not as it should be."""

    kind: str
    """`hook`, `order`, `word`, `table`, `entries`, `stage`, `proxy` or `pin`."""
    what: str
    """What differed, for people."""
    repaired: bool
    problem: str = ""
    """Why it could not be repaired."""


class Auditor:
    """Compares and repairs. Borrows everything."""

    def __init__(
        self,
        pins: Path,
        maps: KernelMaps,
        programs: Programs,
        attachments: Attachments,
        attestation: Attestation,
        steering: Steering | None = None,
    ) -> None:
        self._pins = pins
        self._maps = maps
        self._programs = programs
        self._attachments = attachments
        self._attestation = attestation
        self._steering = steering
        self._moves: dict[tuple[int, Direction], deque[float]] = {}
        self._pins_seen: dict[Path, int] = {}
        """Pins that were found to be ours, by inode: opening each takes longer than all else."""

    def look(self, devices: Iterable[Device]) -> list[Drift]:
        """Everything once. What was judged by foreign tables meanwhile is judged again."""
        found = [*self._rooms(), *self._hooks(tuple(devices)), *self._tables(), *self._stages(), *self._proxy()]
        if any(one.kind in ("word", "table", "entries", "stage") for one in found):
            self._maps.rejudge()
        return [*found, *self._pinned()]

    # Hooks

    def _hooks(self, devices: tuple[Device, ...]) -> Iterator[Drift]:
        yield from (Drift("pin", f"the pin `{name}` was removed", True) for name in self._attachments.unpinned())
        attaching: list[Callable[[], list[str]]] = [
            self._attachments.attach_tracepoints,
            self._attachments.attach_cgroup,
            self._attachments.attach_netns,
            self._attachments.attach_proxy,
            *(partial(self._attachments.attach_device, device) for device in devices),
        ]
        for attach in attaching:
            try:
                yield from (Drift("hook", f"{change} was not attached", True) for change in attach())
            except KernelError as error:
                yield Drift("hook", "a hook is not attached", False, str(error))
        for device, direction in self._attachments.behind_others(devices):
            yield self._to_the_front(device, direction)

    def _to_the_front(self, device: Device, direction: Direction) -> Drift:
        what = f"another program runs before ours on {device.name} {direction.name.lower()}"
        moves, now = self._moves.setdefault((device.index, direction), deque(maxlen=_MOVES_MAX)), time.monotonic()
        if len(moves) == _MOVES_MAX and now - moves[0] < _MOVES_WITHIN_S:
            problem = f"it was put behind ours {_MOVES_MAX} times in {_MOVES_WITHIN_S} seconds, and came back"
            return Drift("order", what, False, problem)
        moves.append(now)
        try:
            self._attachments.to_the_front(device, direction)
        except KernelError as error:
            return Drift("order", what, False, str(error))
        return Drift("order", what, True)

    # Maps

    def _tables(self) -> Iterator[Drift]:
        if not self._maps.word_is_ours():
            yield Drift("word", "the word that selects the generation was written by somebody else", True)
        displaced = self._maps.displaced()
        if displaced:
            self._maps.put_back(displaced)
            yield from (Drift("table", f"the table `{name}` in force was replaced", True) for name in displaced)
        for name, wanted in self._attestation.expected().items():
            current = self._maps.current(name)
            if current is not None:
                yield from self._entries(name, current, wanted)
        yield from self._entries("quarantined", self._maps.fixed("quarantined"), self._maps.isolated())
        misnamed = self._attestation.misnamed()
        for key, value in misnamed.items():
            self._maps.fixed("executables").update(key, value)
        if misnamed:
            yield Drift("entries", f"entries of `executables`: {len(misnamed)} false", True)

    @staticmethod
    def _entries(name: str, current: libbpf.Map, wanted: Mapping[bytes, bytes]) -> Iterator[Drift]:
        held = current.as_dict()
        if held == wanted:
            return
        delta = reconcile(wanted, held)
        for key, value in (delta.add | delta.change).items():
            current.update(key, value)
        for key in delta.remove:
            current.delete(key)
        counts = f"{len(delta.add)} missing, {len(delta.change)} changed, {len(delta.remove)} foreign"
        yield Drift("entries", f"entries of `{name}`: {counts}", True)

    def _stages(self) -> Iterator[Drift]:
        stages = self._maps.fixed("stages")
        for index, name in enumerate(STAGES):
            program = self._programs.opened[name]
            key, number = index.to_bytes(4, "little"), libbpf.prog_info(program).program_id
            if stages.lookup(key) != number.to_bytes(4, "little"):
                stages.update(key, program.fileno().to_bytes(4, "little"))
                yield Drift("stage", f"the second stage `{name}` was replaced", True)

    def _proxy(self) -> Iterator[Drift]:
        changes = self._steering.put_right() if self._steering is not None else ()
        yield from (Drift("proxy", change, True) for change in changes)

    # Pins

    def _rooms(self) -> Iterator[Drift]:
        for path in (self._pins, *(self._pins / room for room in ("maps", "programs", "slots", "links"))):
            if not path.is_dir():
                path.mkdir(mode=0o700)
                yield Drift("pin", f"the directory `{path.name}` was removed", True)

    def _pinned(self) -> Iterator[Drift]:
        """A pin that is gone opens nothing now, but the next start would not find what is in force."""
        programs = ((self._pins / "programs" / name, fd) for name, fd in self._programs.opened.items())
        for path, fd in (*self._maps.pins(), *programs):
            inode = path.stat().st_ino if path.exists() else 0
            if inode and inode == self._pins_seen.get(path):
                continue
            if inode:
                with libbpf.obj_get(path) as pinned:
                    if libbpf.is_same(pinned, fd):
                        self._pins_seen[path] = inode
                        continue
                path.unlink()
            libbpf.obj_pin(fd, path)
            yield Drift("pin", f"the pin `{path.name}` was {'replaced' if inode else 'removed'}", True)
