"""Mounts, as /proc/PID/mountinfo tells them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo. `device` is the superblock's s_dev in kernel encoding, `major << 20 | minor`."""

    mount_id: int
    device: int
    root: str
    """The directory of the filesystem that is mounted here."""
    mount_point: Path
    filesystem: str


def parse_mounts(text: str) -> Iterator[Mount]:
    """The mounts of a mountinfo file, in its order. Lines of another shape are passed over."""
    for line in text.split("\n"):
        left, separator, right = line.partition(" - ")
        fields = left.split(" ")
        if not separator or len(fields) < 6:
            continue
        yield Mount(
            mount_id=int(fields[0]),
            device=parse_device(fields[2]),
            root=_unescape(fields[3]),
            mount_point=Path(_unescape(fields[4])),
            filesystem=right.split(" ", 1)[0],
        )


def parse_device(text: str) -> int:
    """`major:minor` in kernel encoding."""
    major, minor = text.split(":")
    return int(major) << 20 | int(minor)


def mount_device(mountinfo: bytes, mount_id: int) -> int | None:
    """The device of one mount, without parsing the others: this runs once per process of a scan."""
    found = re.search(rb"^%d \d+ (\d+:\d+) " % mount_id, mountinfo, re.MULTILINE)
    return parse_device(found[1].decode()) if found else None


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), text)
