"""What judging an opening costs in the kernel, with an identity and without, and whether any forged one gets in.

The real programs, run by BPF_PROG_TEST_RUN on openings that the tests' own codec makes.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Self

from figures import Figure, at_most, context, median, spread

from bulkhead.abi import DropReason, WireCount
from bulkhead.kernel import libbpf
from bulkhead.kernel.judge import Judge
from bulkhead.kernel.libbpf import Fd, Map, ProgramType
from bulkhead.kernel.load import compile_text
from lab.verdict import Bench, bundle_of
from lab.wire import segment
from verdict import test_wire as wire

_SOURCE = Path(__file__).with_name("openings.c")
_CLASSIFIER = int(ProgramType.SCHED_CLS)
_TCP = 14 + 20
_OPTION_BYTES = 20
_ZERO = bytes(4)
_OPENINGS = 2000
_ROUNDS = 11
_STORM = 1_000_000
_AT_ONCE = 10_000
_PASS, _REFUSED = -1, 2
_UNATTESTED_PORT = 5433
_OUTSIDER = "10.77.1.9"
"""In the prefix of an external, and no node."""


def measure(judge: Judge, directory: Path) -> list[Figure]:
    """Every figure of openings that no device carries. Leaves nothing of them in the judge's maps."""
    judge.enforce(bundle_of(directory, wire.POLICY), (wire.DB_END,))
    wire.tell(judge.maps)
    try:
        with (
            judge.receiving(socket.IPPROTO_TCP, 5432, judge.sender(wire.DB_END)),
            judge.receiving(socket.IPPROTO_TCP, 7000, judge.sender(wire.DB_END)),
            judge.receiving(socket.IPPROTO_TCP, _UNATTESTED_PORT, judge.sender(None)),
        ):
            return [*_verified(judge), _said(judge), _storm(Bench(judge, enforced=True))]
    finally:
        wire.forget(judge.maps)


class _Openings:
    """The ingress program, given openings one after the other."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    def __enter__(self) -> Self:
        with ExitStack() as owned:
            module = compile_text(f"#define OPENINGS {_OPENINGS}\n{_SOURCE.read_text()}")
            owned.callback(module.cleanup)
            self._program = owned.enter_context(Fd(os.dup(module.load_func(b"next_opening", _CLASSIFIER).fd)))
            self._openings, self._turns, programs = (
                owned.enter_context(Map(Fd(os.dup(module[name].map_fd)))) for name in ("openings", "turns", "programs")
            )
            programs.update(_ZERO, self._judge.program("tc_ingress").fileno().to_bytes(4, "little"))
            self._owned = owned.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._owned.close()

    def judge(self, frame: bytes, options: Sequence[bytes], outcome: int) -> float:
        """Mean nanoseconds of the frame with each of these at its end, which are numbered by their sequence numbers.

        Raises RuntimeError when not this becomes of the last one.
        """
        option = len(frame) - _OPTION_BYTES
        entries = (struct.pack(">I", at) + said for at, said in enumerate(options))
        places = struct.pack("<II", _TCP, option)
        self._openings.update_batch(_indexes(len(options)), b"".join(places + one for one in entries), len(options))
        self._turns.update(_ZERO, _ZERO)
        with self._judge.inside():
            result = libbpf.prog_test_run(self._program, frame, repeat=len(options))
        if result.retval != outcome:
            raise RuntimeError(f"the ingress program returns {result.retval}, not {outcome}")
        return result.duration_ns


def _indexes(count: int) -> bytes:
    return struct.pack(f"<{count}I", *range(count))


def _verified(judge: Judge) -> list[Figure]:
    """Openings by a proven identity, less as many from an address outside: refused both, and let in both."""
    with _Openings(judge) as openings:
        verified, again = _compared(judge, openings, _UNATTESTED_PORT, _UNATTESTED_PORT, _REFUSED)
        let_in, _ = _compared(judge, openings, 5432, 7000, _PASS)
    method = (
        f"BPF_PROG_TEST_RUN of the ingress program on {_OPENINGS:,} different SYNs with an identity that holds, less "
        "as many of the same length from an address outside, in turn, each written into the packet by a program that "
        f"calls ours, so that the guard's bucket is in no cache; mean of a round, median of {_ROUNDS} rounds"
    )
    refused = f"{method}; all of them to a listener that is not attested yet, and therefore refused after that"
    return [
        at_most("verify, per SYN, in BPF, replay guard included", verified.more, "ns", 150, f"{refused}; {verified}"),
        context("verify, per SYN, in BPF, retransmitted", again.more, "ns", f"{refused}, a second time; {again}"),
        context(
            "let a SYN in by its identity, in BPF",
            let_in.more,
            "ns",
            f"{method}; each let in by one rule, those with an identity stamped for the accepted socket; {let_in}",
        ),
    ]


def _compared(judge: Judge, openings: _Openings, port: int, port_outside: int, outcome: int) -> tuple[_Times, _Times]:
    """First arrivals, and the same again."""
    forger = wire.under(cache(wire.FROM_ALPHA.key))
    known = [bytes(forger.option(wire.WEB, at, wire.TICK)) for at in range(_OPENINGS)]
    nothing = [b"\1" * _OPTION_BYTES] * _OPENINGS
    node, outside = wire.Opening(port=port).frame(), wire.Opening(port=port_outside, source=_OUTSIDER).frame()
    first, again = _Times([], []), _Times([], [])
    bench = Bench(judge, enforced=True)
    before = wire.counted(bench, WireCount.VERIFIED)
    for _ in range(_ROUNDS):
        wire.guard_with(judge.maps, 0)
        wire.set_clock(judge.maps)
        without = openings.judge(outside, nothing, outcome)
        for times in (first, again):
            times.without.append(without)
            times.said.append(openings.judge(node, known, outcome))
    if wire.counted(bench, WireCount.VERIFIED) - before != 2 * _ROUNDS * _OPENINGS:
        raise RuntimeError("an opening whose identity holds was not verified")
    return first, again


@dataclass(frozen=True, slots=True)
class _Times:
    """Nanoseconds of each round, with an identity and without."""

    said: list[float]
    without: list[float]

    @property
    def more(self) -> float:
        return median([one - other for one, other in zip(self.said, self.without, strict=True)])

    def __str__(self) -> str:
        return f"{median(self.said):.0f} ns ({spread(self.said, 'ns')}), without {median(self.without):.0f} ns"


def _said(judge: Judge) -> Figure:
    """An opening of the same socket to a node, and to an address outside."""
    to_node = _leaving(wire.AT_ALPHA, wire.PLACE)
    outside = _leaving(wire.PARTNER, b"\1" * len(wire.PLACE))
    judge.send(to_node, judge.sender(wire.DB_END))  # from here on the harness has the sender
    times = _Times([], [])
    for _ in range(_ROUNDS):
        wire.set_clock(judge.maps)
        times.without.append(_each(judge, outside))
        times.said.append(_each(judge, to_node))
    method = (
        f"BPF_PROG_TEST_RUN of the egress program, {_OPENINGS:,} runs, each a SYN of a new socket to a node, less as "
        f"many to an address outside, in turn; median of a round, median of {_ROUNDS} rounds"
    )
    return context("say who calls, per SYN, in BPF", times.more, "ns", f"{method}; {times}")


def _leaving(target: str, said: bytes) -> bytes:
    return wire.framed(segment(said, 1000, 8080), wire.HERE, target)


def _each(judge: Judge, frame: bytes) -> float:
    """Median nanoseconds of one run. Raises RuntimeError when it does not pass."""
    program = judge.program("harness_packet")
    with judge.inside():
        results = [libbpf.prog_test_run(program, frame) for _ in range(_OPENINGS)]
    if any(result.retval != _PASS for result in results):
        raise RuntimeError("an opening that is to leave is refused")
    return median([result.duration_ns for result in results])


def _storm(bench: Bench) -> Figure:
    """Guesses, mutations, replays from elsewhere and stripped options of an attacker on the path who has no key."""
    judge = bench.judge
    wire.guard_with(judge.maps, 0)
    wire.set_clock(judge.maps)
    known = [wire.Opening(sequence=at).frame() for at in range(1000, 1040)]
    if wire.judged(judge, known) != len(known):
        raise RuntimeError("an opening that is as it should be is refused")
    before = bench.refusals()
    passed = sum(wire.judged(judge, frames) for frames in wire.batched(wire.storm(Random(5), known, _STORM), _AT_ONCE))
    refused = {key[0]: count - before[key] for key, count in bench.refusals().items() if count != before[key]}
    if passed + sum(refused.values()) != _STORM:
        raise RuntimeError(f"{_STORM:,} openings, of which {sum(refused.values()):,} were counted as refused")
    return at_most(
        "random, mutated, replayed, stripped and cut openings accepted",
        passed,
        "openings",
        0,
        f"{_STORM:,} SYNs of an attacker who has seen {len(known)} real ones, knows the format and every node, and has "
        f"no key, BPF_PROG_TEST_RUN at ingress; refused as {_counts(refused)}",
    )


def _counts(refused: dict[DropReason, int]) -> str:
    return ", ".join(f"{reason.name.lower().replace('_', '-')} {count:,}" for reason, count in refused.items())
