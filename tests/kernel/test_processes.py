"""Facts on processes of this machine, started for the test. /proc/PID/maps is the kernel's own word on devices."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bulkhead.errors import KernelError
from bulkhead.identity.processes import (
    ExecutableKey,
    Process,
    attest,
    executable_at,
    executable_of,
    read,
    scan,
    sockets_of,
)
from lab.cgroup import child, read_line, tell

WAIT = "print('ready', flush=True); input()"
SLEEP = shutil.which("sleep") or "/usr/bin/sleep"


def kernel_view(pid: int, path: str) -> tuple[int, int]:
    """(device, inode) of a mapped file as the kernel prints them for its inode and superblock."""
    for line in Path(f"/proc/{pid}/maps").read_text().split("\n"):
        if line.endswith(path):
            _, _, _, device, inode = line.split()[:5]
            major, minor = device.split(":")
            return int(major, 16) << 20 | int(minor, 16), int(inode)
    raise AssertionError(f"{path} is not mapped")


def facts(pid: int) -> Process:
    process = read(pid)
    assert process is not None
    return process


def key_of(pid: int) -> ExecutableKey:
    executable = executable_of(pid)
    assert executable is not None
    assert executable.key is not None
    return executable.key


def test_facts_on_a_process() -> None:
    before_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    with child(WAIT) as process:
        read_line(process)
        found = facts(process.pid)
        assert found.pid == process.pid
        assert (found.uid, found.gid) == (os.geteuid(), os.getegid())
        assert found.cgroup_path == facts(os.getpid()).cgroup_path
        # /proc tells the start to the clock tick only.
        assert before_ns - 20_000_000 <= found.started_ns <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        assert found.executable is not None
        assert found.executable.path == os.path.realpath(sys.executable)
        assert not found.executable.deleted


def test_effective_and_real_ids_are_told_apart() -> None:
    with child("import os; os.setresgid(1, 2, 1); os.setresuid(3, 4, 3); " + WAIT) as process:
        read_line(process)
        found = facts(process.pid)
        assert (found.real_uid, found.uid, found.real_gid, found.gid) == (3, 4, 1, 2)


def test_a_name_that_imitates_the_format_of_proc_is_read_whole() -> None:
    name = "a) R 1 (b"
    with child(f"open('/proc/self/comm', 'w').write({name!r}); " + WAIT) as process:
        read_line(process)
        assert facts(process.pid).comm == name


def test_a_process_that_is_gone_has_no_facts() -> None:
    with child("") as process:
        process.wait()
        assert read(process.pid) is None
        assert executable_of(process.pid) is None
        assert sockets_of(process.pid) == {}


def test_a_zombie_has_no_executable() -> None:
    pid = os.posix_spawn(SLEEP, [SLEEP, "0"], {})
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert facts(pid).executable is None
        assert not facts(pid).refused
    finally:
        os.waitpid(pid, 0)


def test_the_key_is_what_the_kernel_holds() -> None:
    with child(WAIT) as process:
        read_line(process)
        key = key_of(process.pid)
        assert (key.device, key.inode) == kernel_view(process.pid, os.path.realpath(sys.executable))


TMPFS = 'mount -t tmpfs none "$0" && mkdir "$0/u" "$0/w" && cp "$1" "$0/cat"'
OVERLAY = TMPFS + ' && mount -t overlay none -o "lowerdir=$(dirname "$1"),upperdir=$0/u,workdir=$0/w" "$0"'
COPIED_UP = OVERLAY + ' && touch "$0/cat"'


@pytest.mark.parametrize("mount", [TMPFS, OVERLAY, COPIED_UP], ids=["tmpfs", "overlay", "overlay, copied up"])
def test_the_key_is_what_the_kernel_holds_on_filesystems_of_their_own(tmp_path: Path, mount: str) -> None:
    script = f'{mount} && exec "$0/cat"'
    cat = os.path.realpath(shutil.which("cat") or "/bin/cat")
    command = ["unshare", "--mount", "sh", "-c", script, str(tmp_path), cat]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"x")
            process.stdin.flush()
            assert process.stdout.read(1) == b"x"
            key = key_of(process.pid)
            assert (key.device, key.inode) == kernel_view(process.pid, "/cat")
        finally:
            process.kill()


def test_on_tmpfs_the_generation_comes_from_the_file_handle() -> None:
    shared = Path("/dev/shm") / f"bulkhead-test-{os.getpid()}"
    if not os.path.ismount("/dev/shm"):
        pytest.skip("there is no tmpfs to put a file on")
    try:
        generations = set()
        for _ in range(3):
            shared.write_bytes(b"")
            found = executable_at(str(shared))
            assert found is not None
            assert found.key is not None
            generations.add(found.key.generation)
            shared.unlink()
        assert None not in generations
        assert len(generations) == 3
    finally:
        shared.unlink(missing_ok=True)


def test_a_mount_namespace_made_after_exec_does_not_hide_the_device() -> None:
    code = "import ctypes; assert ctypes.CDLL(None).unshare(0x20000) == 0; " + WAIT
    with child(code) as process:
        read_line(process)
        assert key_of(process.pid) == key_of(os.getpid())


def test_attest_gives_the_resolved_path() -> None:
    with child(WAIT) as process:
        read_line(process)
        assert attest(process.pid, key_of(process.pid)) == os.path.realpath(sys.executable)


def test_attest_refuses_any_key_that_differs() -> None:
    with child(WAIT) as process:
        read_line(process)
        key = key_of(process.pid)
        assert key.generation is not None
        for other in (
            replace(key, inode=key.inode + 1),
            replace(key, device=key.device + 1),
            replace(key, generation=key.generation + 1),
        ):
            assert attest(process.pid, other) is None
        assert attest(process.pid, replace(key, generation=None)) is not None


def test_attest_refuses_a_process_that_has_run_another_program_since() -> None:
    with child(f"import os; print('ready', flush=True); input(); os.execv({SLEEP!r}, ['sleep', '60'])") as process:
        read_line(process)
        key = key_of(process.pid)
        tell(process)
        while facts(process.pid).comm != "sleep":
            os.sched_yield()
        assert attest(process.pid, key) is None


def test_attest_refuses_a_process_that_is_gone() -> None:
    with child(WAIT) as process:
        read_line(process)
        key = key_of(process.pid)
        tell(process)
        process.wait()
        assert attest(process.pid, key) is None


def test_attest_refuses_a_deleted_executable(tmp_path: Path) -> None:
    copy = tmp_path / "sleep"
    shutil.copy(SLEEP, copy)
    with subprocess.Popen([copy, "60"]) as process:
        try:
            key = key_of(process.pid)
            assert attest(process.pid, key) == str(copy)
            copy.unlink()
            found = executable_of(process.pid)
            assert found is not None
            assert (found.path, found.deleted) == (str(copy), True)
            assert attest(process.pid, key) is None
            shutil.copy(SLEEP, copy)
            assert attest(process.pid, key) is None
        finally:
            process.kill()


def test_attest_refuses_a_file_mounted_over_anothers_path(tmp_path: Path) -> None:
    impostor, victim = tmp_path / "impostor", tmp_path / "victim"
    shutil.copy(shutil.which("cat") or "/bin/cat", impostor)
    shutil.copy(SLEEP, victim)
    script = 'mount --bind "$0" "$1" && exec "$1"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(impostor), str(victim)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"x")
            process.stdin.flush()
            assert process.stdout.read(1) == b"x"
            found = executable_of(process.pid)
            assert found is not None
            assert found.path == str(victim), "the process passes for the victim"
            assert attest(process.pid, key_of(process.pid)) is None
        finally:
            process.kill()


def test_executable_at_follows_symlinks_and_takes_regular_files_only(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(SLEEP)
    found = executable_at(str(link))
    assert found == executable_at(SLEEP)
    assert found is not None
    assert found.path == os.path.realpath(SLEEP)
    assert executable_at(str(tmp_path)) is None
    assert executable_at(str(tmp_path / "absent")) is None


def test_sockets_of_a_process_by_descriptor() -> None:
    with socket.socket() as one, socket.socket(socket.AF_UNIX) as other, open(os.devnull) as plain:
        found = sockets_of(os.getpid())
        assert found[one.fileno()] == os.fstat(one.fileno()).st_ino
        assert other.fileno() in found
        assert plain.fileno() not in found


def test_scan_finds_processes_oldest_first() -> None:
    with child(WAIT) as process:
        read_line(process)
        found = scan()
        assert found.complete
        pids = [one.pid for one in found.processes]
        assert pids.index(os.getpid()) < pids.index(process.pid)
        starts = [one.started_ns for one in found.processes]
        assert starts == sorted(starts)


def test_scan_says_when_its_limit_cut_it_short() -> None:
    found = scan(limit=1)
    assert len(found.processes) == 1
    assert not found.complete


def test_without_the_capability_what_is_refused_is_said_and_counted() -> None:
    code = f"""
import os
from bulkhead.errors import KernelError
from bulkhead.identity.processes import attest, read, scan, sockets_of
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
found = read({os.getpid()})
print(found.executable, found.refused, scan().refused > 0, flush=True)
try:
    sockets_of({os.getpid()})
except KernelError as error:
    print(error, flush=True)
"""
    with child(code) as process:
        assert read_line(process) == "None True True"
        assert read_line(process) == f"cannot inspect process {os.getpid()}: Permission denied"


def test_a_refusal_is_not_taken_for_an_absence() -> None:
    code = f"""
import os
from bulkhead.errors import KernelError
from bulkhead.identity.processes import ExecutableKey, attest
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
try:
    print(attest({os.getpid()}, ExecutableKey(1, 1, None)), flush=True)
except KernelError as error:
    print("refused", error.errno, flush=True)
"""
    with child(code) as process:
        assert read_line(process) == f"refused {KernelError('', 13).errno}"
