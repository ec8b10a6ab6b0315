"""A bench for single packets: what the real programs do with each, and exactly what they count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import SupportsBytes, TypeVar

from bulkhead.abi import Bucket, ControlKind, Direction, DropReason, SockState, Verdict
from bulkhead.dataplane import bundle as bundles
from bulkhead.dataplane.bundle import Bundle
from bulkhead.dataplane.compile import compile_commit
from bulkhead.identity.selectors import Endpoint
from bulkhead.kernel.judge import Entry, Judge, Ruling
from bulkhead.policy.parse import parse
from bulkhead.policy.source import read_directory

REPOSITORY = """
apiVersion: bulkhead/v1alpha1
kind: Repository
trustDomain: example.org
defaults: {mode: enforce, mtls: "off"}
hosts: {mode: enforce}
"""

K = TypeVar("K")

Refusal = tuple[DropReason, Direction, bool]
"""Reason, direction, and whether it only would have been refused."""


def bundle_of(directory: Path, policy: str, repository: str = REPOSITORY) -> Bundle:
    """A policy text, compiled for every host, as the agent is handed it."""
    (directory / "bulkhead.yaml").write_text(repository)
    (directory / "policy.yaml").write_text(policy)
    return bundles.read(bundles.pack(compile_commit(parse(read_directory(directory)), None, datetime.now(UTC))))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a packet and what was counted for it; counters that did not move are left out."""

    ruling: Ruling
    refusals: Mapping[Refusal, int]
    controls: Mapping[ControlKind, int]
    hits: int


class Bench:
    """Packets through the programs under one policy, everybody enforced or nobody."""

    def __init__(self, judge: Judge, enforced: bool) -> None:
        self.judge = judge
        self.enforced = enforced

    def arrives(self, frame: SupportsBytes, entry: Entry = Entry.INGRESS, times: int = 1, tc_index: int = 0) -> Outcome:
        """A packet comes in."""
        return self._counting(lambda: self.judge.receive(bytes(frame), entry, times, tc_index))

    def leaves(
        self,
        frame: SupportsBytes,
        sender: Endpoint | SockState | None = None,
        entry: Entry = Entry.EGRESS,
        times: int = 1,
    ) -> Outcome:
        """A packet of a socket goes out; the sender is not attested unless it is given."""
        state = sender if isinstance(sender, SockState) else self.judge.sender(sender)
        return self._counting(lambda: self.judge.send(bytes(frame), state, entry, times))

    def leaves_ownerless(
        self, frame: SupportsBytes, ingress_ifindex: int = 0, times: int = 1, tc_index: int = 0
    ) -> Outcome:
        """A packet that no socket sent goes out."""
        send = self.judge.send_ownerless
        return self._counting(lambda: send(bytes(frame), ingress_ifindex, repeat=times, tc_index=tc_index))

    def _counting(self, run: Callable[[], Ruling]) -> Outcome:
        refusals, controls, hits = self.refusals(), self.controls(), self.hits()
        ruling = run()
        return Outcome(ruling, _more(refusals, self.refusals()), _more(controls, self.controls()), self.hits() - hits)

    def refused(self, outcome: Outcome, reason: DropReason, direction: Direction, times: int = 1) -> None:
        """Check that `times` packets were refused, for this reason alone; in observe mode they pass."""
        verdict = Verdict.DENY if self.enforced else Verdict.WOULD_DENY
        assert outcome.refusals == {(reason, direction, not self.enforced): times}
        assert (outcome.ruling.verdict, outcome.ruling.reason) == (verdict, reason)
        assert outcome.ruling.passes is not self.enforced
        assert not outcome.controls
        assert not outcome.hits

    def refused_in(self, outcome: Outcome, reason: DropReason, times: int = 1) -> None:
        """Check a refusal on arrival."""
        self.refused(outcome, reason, Direction.INGRESS, times)

    def refused_out(self, outcome: Outcome, reason: DropReason, times: int = 1) -> None:
        """Check a refusal on leaving."""
        self.refused(outcome, reason, Direction.EGRESS, times)

    def refusals(self) -> dict[Refusal, int]:
        """Every refusal counter by what it counts."""
        words = self._words("refusals")
        return {
            (DropReason(index // 4), Direction(index // 2 % 2), bool(index % 2)): count
            for index, count in enumerate(words)
        }

    def controls(self) -> dict[ControlKind, int]:
        """How many control packets of each kind have passed."""
        passed = self._words("buckets", Bucket.passed.offset)
        return {ControlKind(index): count for index, count in enumerate(passed) if index < ControlKind.MAX}

    def hits(self) -> int:
        """Openings that any rule of the test policies has allowed."""
        hits = self.judge.maps.fixed("hits")
        counts = (hits.lookup(slot.to_bytes(4, "little")) or b"" for slot in range(1, 9))
        return sum(hits.sum_words(count)[0] for count in counts)

    def _words(self, name: str, offset: int = 0) -> list[int]:
        table = self.judge.maps.fixed(name)
        _, values = table.lookup_batch()
        size = len(values) // table.info.max_entries
        each = (values[start : start + size] for start in range(0, len(values), size))
        return [table.sum_words(value)[offset // 8] for value in each]


def passed(outcome: Outcome) -> None:
    """Check that a packet passed as part of a conversation: nothing counted."""
    assert outcome.ruling == Ruling(True)
    assert not outcome.refusals
    assert not outcome.controls
    assert not outcome.hits


def allowed(outcome: Outcome, times: int = 1) -> None:
    """Check that a rule allowed an opening and was counted for it."""
    assert outcome.ruling.passes
    assert outcome.ruling.verdict is Verdict.ALLOW
    assert not outcome.refusals
    assert outcome.hits == times


def passed_as(outcome: Outcome, kind: ControlKind, times: int = 1) -> None:
    """Check that a packet passed under the name of a control packet, and was counted as one."""
    assert outcome.ruling == Ruling(True)
    assert not outcome.refusals
    assert outcome.controls == {kind: times}


def _more(before: Mapping[K, int], after: Mapping[K, int]) -> dict[K, int]:
    return {key: after[key] - before[key] for key in after if after[key] != before[key]}
