"""Two commits with one set of numbers, so that one can be held against the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from bulkhead.dataplane.compile import (
    ENTITY_NAMES,
    Compiled,
    PolicyEntry,
    PolicyKey,
    check_size,
    compile_commit,
    compile_resolved,
)
from bulkhead.dataplane.resolve import Limits, Resolved, resolve
from bulkhead.errors import PolicyError
from bulkhead.policy.model import PolicySet, QualifiedName


@dataclass(frozen=True, slots=True, eq=False)
class Half:
    """One of the commits."""

    compiled: Compiled
    resolved: Resolved
    entries: Mapping[PolicyKey, PolicyEntry]
    renumbered: Mapping[int, int]
    """Identities that go by another number here than in the commit itself."""
    names: Mapping[int, str]

    def members(self, number: int) -> tuple[QualifiedName, ...]:
        """The externals of an address class."""
        return self.compiled.classes.get(number, ())

    def name(self, number: int) -> str:
        """What a workload, an entity, or externals of DNS names are called."""
        return self.names.get(number) or ", ".join(self.members(number))

    def number(self, identity: int) -> int:
        """The number that an identity of the commit goes by."""
        return self.renumbered.get(identity, identity)


class Halves(NamedTuple):
    """The commit before and the commit after; as a sequence, side 0 and side 1."""

    old: Half
    new: Half


def halves(before: PolicySet, after: PolicySet, now: datetime, limits: Limits | None = None) -> Halves:
    """Both commits compiled for all hosts at once. `now` is timezone-aware and decides which exceptions have expired.

    Raises PolicyError when `after` would be refused. The tests and invariants of `before` need not hold: it is history.
    """
    limits = limits or Limits()
    new = _newer(after, now, limits)
    return Halves(_older(before, new, now, limits), new)


def _newer(policy_set: PolicySet, now: datetime, limits: Limits) -> Half:
    compiled = compile_commit(policy_set, None, now, limits)
    return Half(compiled, resolve(policy_set, None, now, limits), compiled.entries, {}, _names(compiled, {}))


def _older(policy_set: PolicySet, new: Half, now: datetime, limits: Limits) -> Half:
    resolved = resolve(policy_set, None, now, limits)
    oversize = check_size(resolved, limits)
    if oversize:
        raise PolicyError(oversize)
    compiled = compile_resolved(resolved)
    renumbered = _renumbered(compiled, new.compiled)
    entries = _translated(compiled.entries, renumbered)
    return Half(compiled, resolved, entries, renumbered, _names(compiled, renumbered))


def _names(compiled: Compiled, numbers: Mapping[int, int]) -> dict[int, str]:
    return {**ENTITY_NAMES, **{numbers.get(w.identity, w.identity): w.qualified for w in compiled.workloads}}


def _renumbered(old: Compiled, new: Compiled) -> dict[int, int]:
    """Numbers for the workloads of `old`: those of `new` by name, and for what is gone one that `new` does not use.

    Empty unless the trust domain changed, or two names of two commits share a hash.
    """
    numbers = {workload.qualified: workload.identity for workload in new.workloads}
    taken = set(numbers.values())
    found: dict[int, int] = {}
    for at, workload in enumerate(old.workloads, 1):
        number = numbers.get(workload.qualified, -at if workload.identity in taken else workload.identity)
        if number != workload.identity:
            found[workload.identity] = number
    return found


def _translated(
    entries: Mapping[PolicyKey, PolicyEntry], numbers: Mapping[int, int]
) -> Mapping[PolicyKey, PolicyEntry]:
    if not numbers:
        return entries
    return {
        key._replace(
            local_identity=numbers.get(key.local_identity, key.local_identity),
            remote_identity=numbers.get(key.remote_identity, key.remote_identity),
        ): entry
        for key, entry in entries.items()
    }
