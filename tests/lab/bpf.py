"""A private directory of pins, and programs small enough to write as instructions."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

from bulkhead.kernel.libbpf import AttachType, Fd, Map, ProgramType, prog_load

TC_ACT_UNSPEC = -1
TC_ACT_SHOT = 2


def bpf_mount() -> Path | None:
    """Where a BPF file system is mounted, if any."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.split()[0] == "bpf":
            return Path(fields.split()[4])
    return None


@contextlib.contextmanager
def pin_directory() -> Iterator[Path]:
    """A new directory on the BPF file system, removed with all pins in it."""
    mount = bpf_mount()
    if mount is None:
        raise RuntimeError("no BPF file system is mounted")
    directory = mount / f"bulkhead-test-{secrets.token_hex(6)}"
    directory.mkdir(mode=0o700)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def can_attach() -> bool:
    """Root, with a BPF file system at hand."""
    return os.geteuid() == 0 and bpf_mount() is not None


def instruction(opcode: int, dst: int = 0, src: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    """One BPF instruction."""
    return struct.pack("=BBhi", opcode, dst | src << 4, offset, immediate)


def returning(value: int) -> bytes:
    """The tail of every program: `return value`."""
    return instruction(0xB7, immediate=value) + instruction(0x95)


def device_program(value: int, name: str = "test_tc") -> Fd:
    """A classifier that gives the same answer to every packet."""
    return prog_load(ProgramType.SCHED_CLS, name, returning(value))


def address_program(hook: AttachType, value: int, name: str = "test_addr") -> Fd:
    """A socket address program: 1 permits, 0 refuses with EPERM."""
    return prog_load(ProgramType.CGROUP_SOCK_ADDR, name, returning(value), hook)


def tracepoint_program(name: str = "test_tp") -> Fd:
    return prog_load(ProgramType.RAW_TRACEPOINT, name, returning(0))


def _load_map(register: int, target: Map) -> bytes:
    return instruction(0x18, register, 1, 0, target.fd.fileno()) + instruction(0)


def ring_writer(ring: Map) -> Fd:
    """A classifier that writes the packet's length into the ring as 8 bytes, without waking anyone."""
    code = (
        instruction(0x61, 6, 1)  # r6 = skb->len
        + instruction(0x7B, 10, 6, -8)
        + _load_map(1, ring)
        + instruction(0xBF, 2, 10)
        + instruction(0x07, 2, immediate=-8)
        + instruction(0xB7, 3, immediate=8)
        + instruction(0xB7, 4, immediate=1)
        + instruction(0x85, immediate=130)  # bpf_ringbuf_output
        + returning(0)
    )
    return prog_load(ProgramType.SCHED_CLS, "ring_writer", code)


def ring_discarder(ring: Map) -> Fd:
    """A classifier that reserves 8 bytes of the ring and gives them up."""
    code = (
        _load_map(1, ring)
        + instruction(0xB7, 2, immediate=8)
        + instruction(0xB7, 3)
        + instruction(0x85, immediate=131)  # bpf_ringbuf_reserve
        + instruction(0x15, 0, 0, 3)  # null: return
        + instruction(0xBF, 1)
        + instruction(0xB7, 2)
        + instruction(0x85, immediate=133)  # bpf_ringbuf_discard
        + returning(0)
    )
    return prog_load(ProgramType.SCHED_CLS, "ring_discarder", code)
