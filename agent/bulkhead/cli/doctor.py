"""`bulkhead doctor`: can this host be enforced on, and is it?"""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import click

from bulkhead.cli.options import View, view_options
from bulkhead.cli.output import show, show_json
from bulkhead.errors import BulkheadError, ExitCode

KERNEL_MIN: Final = (5, 15)
_TCX: Final = (6, 6)
_CAPABILITIES: Final = {"NET_ADMIN": 12, "PERFMON": 38, "BPF": 39}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. `result` is `ok`, `warn` or `fail`."""

    result: str
    text: str


@click.command()
@view_options()
def doctor(view: View) -> ExitCode:
    """Check kernel, control groups, BPF file system, rights and agent. Exits with 1 when something is missing."""
    found = [*_host_checks(), *_agent_checks(view)]
    if view.as_json:
        show_json("Doctor", [asdict(check) for check in found])
    else:
        from bulkhead.cli import render
        from bulkhead.cli.output import cell

        made = render.table("", "")
        made.show_header = False
        styles = {"ok": "green", "warn": "yellow", "fail": "red"}
        for check in found:
            made.add_row(cell(check.result, styles[check.result]), cell(check.text))
        show(view, made)
    return ExitCode.NO if any(check.result == "fail" for check in found) else ExitCode.OK


def _host_checks() -> Iterator[Check]:
    yield kernel_check(platform.release())
    yield _present(
        Path("/sys/kernel/btf/vmlinux"), "BTF", "the kernel carries no type information (CONFIG_DEBUG_INFO_BTF)"
    )
    yield _cgroup_check()
    yield bpffs_check(Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace"))
    yield capability_check(Path("/proc/self/status").read_text(encoding="utf-8"))
    yield _program("git", "policy is read from a git repository")
    yield _bcc_check()


def kernel_check(release: str) -> Check:
    """Whether a kernel is recent enough."""
    numbers = re.match(r"(\d+)\.(\d+)", release)
    version = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    if version < KERNEL_MIN:
        return Check("fail", f"kernel {release}: at least {KERNEL_MIN[0]}.{KERNEL_MIN[1]} is needed")
    hooks = "tcx" if version >= _TCX else "clsact"
    return Check("ok", f"kernel {release}, devices are hooked by {hooks}")


def _present(path: Path, what: str, otherwise: str) -> Check:
    return Check("ok", f"{what} at {path}") if path.exists() else Check("fail", otherwise)


def _cgroup_check() -> Check:
    from bulkhead.identity.cgroups import find_mount

    try:
        return Check("ok", f"cgroup2 at {find_mount().mount_point}")
    except BulkheadError as error:
        return Check("fail", str(error))


def bpffs_check(mountinfo: str) -> Check:
    """Whether a BPF file system is mounted, as /proc/self/mountinfo tells."""
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.split(" ", 1)[0] == "bpf":
            return Check("ok", f"BPF file system at {fields.split()[4]}")
    return Check("fail", "no BPF file system is mounted: `mount -t bpf bpf /sys/fs/bpf`")


def capability_check(status: str) -> Check:
    """Whether this process may load programs, as /proc/self/status tells."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    effective = int(found[1], 16) if found else 0
    missing = [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]
    if missing:
        return Check("warn", f"this shell lacks CAP_{', CAP_'.join(missing)}: run as root to load programs")
    return Check("ok", "rights to load programs")


def _program(name: str, use: str) -> Check:
    path = shutil.which(name)
    return Check("ok", f"{name} at {path}") if path else Check("fail", f"`{name}` is not installed: {use}")


def _bcc_check() -> Check:
    import importlib.util

    if importlib.util.find_spec("bcc") is None:
        return Check("fail", "bcc is not installed for this Python: `apt install python3-bpfcc`")
    return Check("ok", "bcc to compile the kernel programs")


def _agent_checks(view: View) -> Iterator[Check]:
    from bulkhead.control import client

    try:
        status = client.call(view.socket, "status")
    except BulkheadError as error:
        yield Check("warn" if os.geteuid() == 0 else "fail", str(error))
        return
    yield Check("ok", f"agent {status['version']} answers at {view.socket}")
    yield _is(bool(status["policy"]["ok"]), "the latest commit is in force", str(status["policy"]["error"]))
    yield _is(bool(status["git_equals_kernel"]), "the kernel equals git", "the kernel differs from git")
    for device in status["kernel"]["devices"]:
        hooked = bool(device["ingress"] and device["egress"])
        yield _is(hooked, f"{device['name']} is hooked in both directions", f"{device['name']} is not hooked")


def _is(well: bool, good: str, bad: str) -> Check:
    return Check("ok", good) if well else Check("fail", bad)
