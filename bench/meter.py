"""The kernel's own count of how often a BPF program ran and for how long, beside an empty one on the same hook."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bulkhead.abi import Direction, DropReason
from bulkhead.kernel import libbpf
from bulkhead.kernel.libbpf import AttachType, Fd, Map, ProgramType
from lab.netns import Namespace

HOOKS = {Direction.EGRESS: AttachType.TCX_EGRESS, Direction.INGRESS: AttachType.TCX_INGRESS}
_BPF_STATS_RUN_TIME = 0
_TCX_NEXT = -1
_EMPTY = struct.pack("=BBhi", 0xB7, 0, 0, _TCX_NEXT) + struct.pack("=BBhi", 0x95, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of one program: how many, and how long altogether."""

    count: int
    total_ns: int

    def since(self, before: Runs) -> Runs:
        """What has come since."""
        return Runs(self.count - before.count, self.total_ns - before.total_ns)

    @property
    def mean_ns(self) -> float:
        """Per run; 0 when there was none."""
        return self.total_ns / self.count if self.count else 0.0


def runs(program: Fd) -> Runs:
    """What the kernel has counted for a program while counting was on."""
    text = Path(f"/proc/self/fdinfo/{program.fileno()}").read_text()
    fields = dict(line.split(":", 1) for line in text.splitlines())
    return Runs(int(fields["run_cnt"]), int(fields["run_time_ns"]))


@contextmanager
def counting() -> Iterator[None]:
    """Have the kernel count; two clock readings are then part of every run, an empty program's as well."""
    with Fd(_enable_stats()):
        yield


def _enable_stats() -> int:
    number = int(libbpf.library().bpf_enable_stats(_BPF_STATS_RUN_TIME))
    if number < 0:
        raise OSError(-number, f"cannot have the kernel count program runs: {os.strerror(-number)}")
    return number


def empty_program() -> Fd:
    """A classifier that lets every packet go on to the next one."""
    return libbpf.prog_load(ProgramType.SCHED_CLS, "bench_empty", _EMPTY)


@dataclass(frozen=True, slots=True)
class HookMeter:
    """Our program on one hook of one device, and the empty one that sees every packet just before it."""

    name: str
    ours: Fd
    empty: Fd

    def read(self) -> tuple[Runs, Runs]:
        """Ours, then the empty one's."""
        return runs(self.ours), runs(self.empty)


@contextmanager
def hook_meters(name: str, namespace: Namespace, device: str, pins: Path) -> Iterator[dict[Direction, HookMeter]]:
    """Meters on both hooks of an Ethernet device that an agent enforces on."""
    with ExitStack() as stack:
        with namespace.entered():
            index = socket.if_nametoindex(device)
        meters: dict[Direction, HookMeter] = {}
        for direction, hook in HOOKS.items():
            word = direction.name.lower()
            ours = stack.enter_context(libbpf.obj_get(pins / "programs" / f"tc_{word}"))
            empty = stack.enter_context(empty_program())
            with namespace.entered():
                stack.enter_context(libbpf.link_create(empty, index, hook, libbpf.BPF_F_BEFORE))
            meters[direction] = HookMeter(f"{name} {word}", ours, empty)
        yield meters


def refused_by_policy(refusals: Map, direction: Direction) -> int:
    """Packets and calls that no rule allowed, as the kernel has counted them."""
    index = DropReason.POLICY * 4 + direction * 2
    return refusals.sum_words(refusals.lookup(int(index).to_bytes(4, "little")) or b"")[0]
