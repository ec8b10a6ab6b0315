"""Workloads that an operator has isolated: who, since when, why and by whom. Kept over restarts and reboots."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bulkhead.abi import Capacity
from bulkhead.errors import RefusedError, UsageError

REASON_MAX = 500
"""Longest reason, in characters."""


@dataclass(frozen=True, slots=True)
class Isolation:
    """One isolated workload."""

    workload: str
    """`policy/name`."""
    identity: int
    since: float
    """Unix seconds."""
    reason: str
    uid: int
    """User who asked."""


class Quarantine:
    """The isolations in force, as a file holds them. What the kernel does with them is the enforcer's business.

    A file that cannot be understood is a `problem`, not the end: policy is enforced all the same, the kernel keeps what
    it isolates, and nobody is isolated or released until the file is mended, as guessing could release someone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._isolated: dict[str, Isolation] = {}
        self.problem = ""
        """Why the list is not known; empty when it is."""
        if path.exists():
            try:
                found = [_isolation(one) for one in json.loads(path.read_text())]
                self._isolated = {one.workload: one for one in found}
            except (OSError, ValueError, TypeError, AttributeError):
                self.problem = f"the list of isolated workloads `{path}` cannot be read: mend or remove it, and restart"

    def __iter__(self) -> Iterator[Isolation]:
        return iter(self._isolated.values())

    def __contains__(self, workload: str) -> bool:
        return workload in self._isolated

    def __len__(self) -> int:
        return len(self._isolated)

    def add(self, isolation: Isolation) -> None:
        """Isolate; a second time changes nothing. Raises UsageError for a reason that nobody would read."""
        self._check()
        if not isolation.reason.strip() or len(isolation.reason) > REASON_MAX or not isolation.reason.isprintable():
            raise UsageError(f"a reason is one line of 1 to {REASON_MAX} characters")
        if len(self._isolated) >= Capacity.QUARANTINED and isolation.workload not in self._isolated:
            raise UsageError(f"no more than {Capacity.QUARANTINED.value} workloads can be isolated: release some first")
        self._isolated.setdefault(isolation.workload, isolation)
        self._write()

    def remove(self, workload: str) -> Isolation:
        """End an isolation. Raises UsageError when there is none."""
        self._check()
        if workload not in self._isolated:
            raise UsageError(f"`{workload}` is not isolated")
        gone = self._isolated.pop(workload)
        self._write()
        return gone

    def _check(self) -> None:
        if self.problem:
            raise RefusedError(self.problem)

    def _write(self) -> None:
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps([asdict(one) for one in self]))
        fresh.replace(self._path)


def _isolation(value: Any) -> Isolation:
    """One entry of the file. Raises TypeError or ValueError for anything else."""
    kinds = {"workload": str, "identity": int, "since": float, "reason": str, "uid": int}
    if value.keys() != kinds.keys() or any(not isinstance(value[key], kind) for key, kind in kinds.items()):
        raise TypeError("an isolation has other fields")
    return Isolation(**value)
