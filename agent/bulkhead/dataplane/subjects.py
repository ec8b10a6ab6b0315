"""From what a control group settles to the kernel's entries that say so. Pure.

Most control groups hold one workload, or none: their entry is the answer. Where executable, user or group decide, the
entry names a *group* of answers, and two small tables hold them: `members`, the values that the group tells apart, and
`subjects`, the answer to each combination.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from bulkhead.abi import (
    CgroupEntry,
    Identity,
    Mode,
    Need,
    Subject,
    SubjectEntry,
    SubjectKey,
    SubjectMember,
)
from bulkhead.identity.selectors import Ambiguous, CgroupView, Identified, Outcome
from bulkhead.policy import model
from bulkhead.policy.model import QualifiedName


def executable_id(path: str) -> int:
    """The number the kernel knows a named executable by: a 32-bit hash, never 0 nor SUBJECT_OTHER."""
    number = int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "big") & 0x7FFFFFFF
    return number or 1


@dataclass(frozen=True, slots=True)
class Answer:
    """Identity and mode of one outcome."""

    identity: int
    mode: Mode


@dataclass(frozen=True, slots=True)
class Answers:
    """How outcomes are numbered in one generation."""

    identities: Mapping[QualifiedName, int]
    host_mode: Mode
    observe_only: bool = False
    withheld: frozenset[QualifiedName] = frozenset()
    """Workloads that are not as their posture requires: nobody, in their own mode."""

    def of(self, outcome: Outcome) -> Answer:
        """A workload's identity with its mode; a tie is nobody, enforced when any of its workloads is."""
        if isinstance(outcome, Identified):
            workload = outcome.workload
            is_withheld = workload.qualified in self.withheld
            identity = Identity.WITHHELD if is_withheld else self.identities[workload.qualified]
            return Answer(identity, self._mode(workload.mode))
        if isinstance(outcome, Ambiguous):
            modes = [self._mode(workload.mode) for workload in outcome.workloads]
            return Answer(Identity.AMBIGUOUS, max(modes))
        return Answer(Identity.HOST, self.host_mode)

    def _mode(self, mode: model.Mode) -> Mode:
        enforced = mode is model.Mode.ENFORCE and not self.observe_only
        return Mode.ENFORCE if enforced else Mode.OBSERVE


@dataclass(frozen=True, slots=True)
class ViewEntries:
    """The kernel's entries for one view: the control group's value, and what its group needs."""

    entry: bytes
    members: dict[bytes, bytes]
    subjects: dict[bytes, bytes]


def view_entries(view: CgroupView, group: int, answers: Answers) -> ViewEntries:
    """Entries for a view; `group` numbers it among the views of its generation that need more than a control group."""
    if not view.needs:
        (outcome,) = view.table.values()
        answer = answers.of(outcome)
        return ViewEntries(bytes(CgroupEntry(identity=answer.identity, mode=answer.mode, needs=0)), {}, {})
    entry = CgroupEntry(identity=group, mode=Mode.OBSERVE, needs=int(view.needs))
    one = (1).to_bytes(4, "little")
    members = {
        bytes(SubjectMember(group=group, dimension=dimension, value=value)): one
        for dimension, values in (
            (Need.EXECUTABLE, map(executable_id, view.executables)),
            (Need.USER, view.uids),
            (Need.GROUP, view.gids),
        )
        for value in values
    }
    subjects = {}
    for (exe, uid, gid), outcome in view.table.items():
        key = SubjectKey(
            group=group,
            executable=Subject.OTHER if exe is None else executable_id(exe),
            uid=Subject.OTHER if uid is None else uid,
            gid=Subject.OTHER if gid is None else gid,
        )
        answer = answers.of(outcome)
        subjects[bytes(key)] = bytes(SubjectEntry(identity=answer.identity, mode=answer.mode))
    return ViewEntries(bytes(entry), members, subjects)
