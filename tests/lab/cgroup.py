"""A private subtree of control groups for one test, removed afterwards whatever happened in it."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bulkhead.identity.cgroups import find_mount


@contextmanager
def cgroup_subtree() -> Iterator[Path]:
    """The directory of a new, empty control group. Every process still in it or below at the end is moved out."""
    home = find_mount().mount_point
    root = home / f"bulkhead-test-{secrets.token_hex(6)}"
    root.mkdir()
    inode = root.stat().st_ino
    try:
        yield root
    finally:
        if root.stat().st_ino == inode:
            _remove(root, home)


def _remove(root: Path, home: Path) -> None:
    for directory, _, _ in os.walk(root, topdown=False):
        for pid in (Path(directory) / "cgroup.procs").read_text().split():
            enter(home, int(pid))
        os.rmdir(directory)


def enter(directory: Path, pid: int) -> None:
    """Move a process into a control group. One that has ended meanwhile is no error."""
    try:
        (directory / "cgroup.procs").write_text(str(pid))
    except ProcessLookupError:
        return


@contextmanager
def child(code: str, cgroup: Path | None = None, prefix: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    """A Python child running `code`, in `cgroup` from its first instruction on. It is ended when the block is left.

    It says `ready` on a line of its own when the test may go on; lines written to its stdin let it go on.
    """
    join = f"import os; open({str(cgroup / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n" if cgroup else ""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [*prefix, sys.executable, "-c", join + code]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_line(process: subprocess.Popen[str]) -> str:
    """The next line the child says; an AssertionError when it ended instead."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"the child ended with status {process.wait()}"
    return line.strip()


def tell(process: subprocess.Popen[str], line: str = "go") -> None:
    """Let the child go on."""
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
