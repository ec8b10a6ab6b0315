"""From a bundle to a generation in force: hit counters keep their places, deadlines become kernel time."""

from __future__ import annotations

import json
import time
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from bulkhead.abi import Capacity, ControlFlag
from bulkhead.dataplane.bundle import Bundle
from bulkhead.dataplane.names import wire_key
from bulkhead.errors import Diagnostic, Loc, PolicyError
from bulkhead.kernel.attestation import Plan
from bulkhead.kernel.maps import GenerationTables, KernelMaps, Table
from bulkhead.policy.model import Mode as PolicyMode

_WORDS_PER_ENTRY: Final = 4
_RULE, _SLOT, _DEADLINE = 0, 1, 2


class HitSlots:
    """Which counter belongs to which rule, by name, so that counts go on over commits and restarts.

    Kept in a file beside the pins' life: both go with a reboot. Slot 0 is nobody's.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._slots: dict[str, int] = {}
        if path.exists():
            self._slots = {str(name): int(slot) for name, slot in json.loads(path.read_text()).items()}

    def assign(self, names: Iterable[str]) -> dict[str, int]:
        """Slots for exactly these rules; names that are gone give theirs back. Raises PolicyError for too many."""
        wanted = list(names)
        if len(wanted) >= Capacity.HIT_SLOTS:
            text = f"{len(wanted)} rules are more than the {int(Capacity.HIT_SLOTS)} that the kernel's counters hold"
            raise PolicyError([Diagnostic("BH0701", text, Loc("bulkhead.yaml", 1))])
        kept = {name: self._slots[name] for name in wanted if name in self._slots}
        used = set(kept.values())
        free = (slot for slot in range(1, int(Capacity.HIT_SLOTS)) if slot not in used)
        return {name: kept.get(name) or next(free) for name in wanted}

    def keep(self, slots: dict[str, int]) -> list[int]:
        """Make `slots` the assignment in force; returns slots that were given out anew and still hold old counts."""
        before = {slot: name for name, slot in self._slots.items()}
        reused = [slot for name, slot in slots.items() if before.get(slot, name) != name]
        self._slots = slots
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps(slots))
        fresh.replace(self._path)
        return reused

    def items(self) -> Iterable[tuple[str, int]]:
        """Rule names with their slots."""
        return self._slots.items()


def boot_offset_s() -> float:
    """Unix time at which the boot clock stood at 0. Moves when the wall clock is set."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def policy_table(bundle: Bundle, slots: dict[str, int]) -> Table:
    """The policy map's entries, with hit slots and with deadlines as seconds since boot, never earlier than 1."""
    words = array("I", bundle.policy_entries)
    by_rule = {int(info.rule_id): slots[info.name] for info in bundle.rules()}
    words[_SLOT::_WORDS_PER_ENTRY] = array("I", [by_rule[rule] for rule in words[_RULE::_WORDS_PER_ENTRY]])
    deadlines = words[_DEADLINE::_WORDS_PER_ENTRY]
    if any(deadlines):
        offset = boot_offset_s()
        converted = [max(1, int(at - offset)) if at else 0 for at in deadlines]
        words[_DEADLINE::_WORDS_PER_ENTRY] = array("I", converted)
    return Table(bundle.policy_keys, words.tobytes(), len(words) // _WORDS_PER_ENTRY)


def name_tables(bundle: Bundle) -> dict[str, Table]:
    """DNS names: `names`, the number of each as it is on the wire, and `named`, the class of each number."""
    numbers = {number.to_bytes(4, "little"): name for number, name in bundle.names()}
    return {
        "names": Table.of({wire_key(name.pattern): number for number, name in numbers.items()}),
        "named": Table.of({number: name.identity.to_bytes(4, "little") for number, name in numbers.items()}),
    }


def control_flags(bundle: Bundle, observe_only: bool) -> ControlFlag:
    """The word that goes with a generation."""
    flags = ControlFlag(0)
    required = (one for info in bundle.workloads() if info.local for one in info.posture)
    if bundle.executables or any(one.of_processes for one in required):
        flags |= ControlFlag.WATCH_EXEC
    if next(bundle.names(), None) is not None:
        flags |= ControlFlag.NAMES
    if observe_only:
        return flags
    local = [info.mode for info in bundle.workloads() if info.local]
    if bundle.host_mode is PolicyMode.ENFORCE:
        flags |= ControlFlag.HOST_ENFORCE | ControlFlag.ANY_ENFORCE
    if PolicyMode.ENFORCE in local:
        flags |= ControlFlag.ANY_ENFORCE
    return flags


def tables(bundle: Bundle, plan: Plan, surveyed: tuple[Table, Table, Table], slots: dict[str, int]) -> GenerationTables:
    """Everything the kernel needs for `bundle`."""
    cgroups, members, subjects = surveyed
    observe_only = plan.answers.observe_only
    return GenerationTables(
        policy=policy_table(bundle, slots),
        classes4=Table(bundle.keys4, bundle.identities4, len(bundle.identities4) // 4),
        classes6=Table(bundle.keys6, bundle.identities6, len(bundle.identities6) // 4),
        cgroups=cgroups,
        members=members,
        subjects=subjects,
        flags=control_flags(bundle, observe_only),
        hosting=Table(bundle.hosted, bundle.hosting, len(bundle.hosted) // 4),
        **name_tables(bundle),
    )


def zero_hits(maps: KernelMaps, slots: Iterable[int]) -> None:
    """Clear counters that pass to another rule."""
    hits = maps.fixed("hits")
    empty = bytes(len(hits.lookup(bytes(4)) or b""))
    for slot in slots:
        hits.update(slot.to_bytes(4, "little"), empty)
