"""Each requirement, examined on real files and processes, and on what hostile ones would show."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bulkhead.identity import posture
from bulkhead.identity.posture import Examiner, Failure, hardening_problem, holds, installed, kernel_key, version_key
from bulkhead.policy.model import Requirement

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: files have to be root's")
STATUS = "Name:\tx\nNoNewPrivs:\t{nnp}\nSeccomp:\t{seccomp}\nCapBnd:\t{bounding}\n"
PAUSE = "import sys, time; print(flush=True); sys.stdin.read()"
LEADER_ENDS = """
import ctypes, threading, time
libc = ctypes.CDLL(None)
def rest():
    open('/proc/self/comm').read()
    print(flush=True)
    import sys; sys.stdin.read()
threading.Thread(target=rest).start()
libc.syscall(60, 0)
"""


def sha256(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


@pytest.fixture
def examiner(tmp_path: Path) -> Examiner:
    """Looks for health files and packages in the test's directory."""
    (tmp_path / "health").mkdir(mode=0o755)
    return Examiner(tmp_path / "health", tmp_path / "status")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """An interpreter of our own."""
    path = tmp_path / "program"
    shutil.copy2(Path(sys.executable).resolve(), path)
    return path


@pytest.fixture
def run() -> Iterator:
    """Runs Python code by an interpreter until the test ends."""
    started: list[subprocess.Popen[str]] = []

    def start(program: Path, code: str = PAUSE) -> int:
        argv = [str(program), "-c", code]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "\n"
        return process.pid

    yield start
    for process in started:
        process.kill()
        process.communicate()


def found(examiner: Examiner, term: str, *expected: str, exe: str = "", pid: int = 0) -> str:
    """What a requirement fails for; empty when it holds."""
    failures = examiner.failures([Requirement(term, expected)], [exe] if exe else [], [pid] if pid else [])
    assert all(one.term == term for one in failures)
    return failures[0].found if failures else ""


# Digests


def test_a_named_executable_has_one_of_the_digests(examiner: Examiner, program: Path) -> None:
    good, other = sha256(program), "sha256:" + "0" * 64
    assert found(examiner, "digest", other, good, exe=str(program)) == ""
    assert found(examiner, "digest", other, exe=str(program)) == f"{good} at {program}"


def test_a_failure_says_what_was_expected(examiner: Examiner, program: Path) -> None:
    wrong = ("sha256:" + "0" * 64, "sha256:" + "1" * 64)
    (failure,) = examiner.failures([Requirement("digest", wrong)], [str(program)], [])
    assert failure == Failure("digest", ", ".join(wrong), f"{sha256(program)} at {program}")


def test_a_file_that_changes_in_place_is_read_again(examiner: Examiner, program: Path) -> None:
    good = sha256(program)
    os.utime(program, ns=(0, 0))
    assert found(examiner, "digest", good, exe=str(program)) == ""
    with program.open("ab") as file:
        file.write(b"\0")
    os.utime(program, ns=(0, 0))
    assert found(examiner, "digest", good, exe=str(program)) != ""


def test_a_file_at_rest_is_read_once(examiner: Examiner, monkeypatch: pytest.MonkeyPatch) -> None:
    resting = str(Path(sys.executable).resolve())
    assert found(examiner, "digest", sha256(Path(resting)), exe=resting) == ""
    monkeypatch.setattr(posture, "_CHUNK", 0)  # nothing can be read any more
    assert found(examiner, "digest", sha256(Path(resting)), exe=resting) == ""


def test_what_runs_is_judged_by_its_own_file_wherever_its_name_leads(examiner: Examiner, program: Path, run) -> None:
    good = sha256(program)
    pid = run(program)
    program.unlink()
    program.write_text("another")
    assert found(examiner, "digest", good, pid=pid) == ""
    assert found(examiner, "digest", sha256(program), pid=pid) == f"{good} runs as process {pid}"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number of a system call")
def test_a_process_whose_first_thread_has_ended_does_not_escape(examiner: Examiner, program: Path, run) -> None:
    pid = run(program, LEADER_ENDS)
    while Path(f"/proc/{pid}/exe").exists():  # its first thread has said that it is about to end
        pass
    with pytest.raises(FileNotFoundError):
        os.readlink(f"/proc/{pid}/exe")
    assert found(examiner, "digest", "sha256:" + "0" * 64, pid=pid) == f"{sha256(program)} runs as process {pid}"


@pytest.mark.parametrize("what", ["symlink", "nothing", "symlinked-directory"])
def test_a_path_that_is_no_executable_to_the_kernel_is_none_here(
    examiner: Examiner, program: Path, tmp_path: Path, what: str
) -> None:
    path = tmp_path / what
    if what == "symlink":
        path.symlink_to(program)
    elif what == "symlinked-directory":
        path.symlink_to(tmp_path)
        path /= program.name
    assert found(examiner, "digest", "sha256:" + "0" * 64, exe=str(path)) == ""


def test_a_pipe_in_place_of_an_executable_has_failed_and_holds_nobody_up(examiner: Examiner, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is no file" in found(examiner, "digest", "sha256:" + "0" * 64, exe=str(tmp_path / "pipe"))


def test_a_process_that_is_gone_has_nothing_wrong_with_it(examiner: Examiner, program: Path, run) -> None:
    pid = run(program)
    os.kill(pid, 9)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert found(examiner, "digest", "sha256:" + "0" * 64, pid=pid) == ""
    assert found(examiner, "hardening.NoNewPrivileges", "true", pid=pid) == ""


def test_systemd_on_its_way_to_a_service_is_not_the_service_yet(tmp_path: Path, program: Path, run) -> None:
    systemd = program.rename(tmp_path / "systemd")
    executor = tmp_path / "systemd-executor"
    executor.write_bytes(systemd.read_bytes() + b"\0")
    executor.chmod(0o755)
    first, other = tmp_path / "first", tmp_path / "other"
    first.symlink_to(systemd)
    other.symlink_to(executor)
    for pid in (run(systemd), run(executor)):
        wanted = [Requirement("digest", ("sha256:" + "0" * 64,)), Requirement("hardening.NoNewPrivileges", ("true",))]
        assert Examiner(tmp_path, first=first).failures(wanted, (), [pid]) == ()
        assert len(Examiner(tmp_path, first=other).failures(wanted, (), [pid])) == 2


# Hardening


@pytest.mark.parametrize(
    ("term", "wanted", "status", "problem"),
    [
        ("NoNewPrivileges", ("true",), {"nnp": "1"}, ""),
        ("NoNewPrivileges", ("true",), {"nnp": "0"}, "NoNewPrivs is 0"),
        ("Seccomp", ("filter",), {"seccomp": "2"}, ""),
        ("Seccomp", ("filter",), {"seccomp": "1"}, "Seccomp is 1"),
        ("CapabilityBoundingSet", (), {"bounding": "0"}, ""),
        ("CapabilityBoundingSet", ("CAP_NET_BIND_SERVICE",), {"bounding": "400"}, ""),
        ("CapabilityBoundingSet", ("CAP_NET_BIND_SERVICE", "CAP_KILL"), {"bounding": "400"}, ""),
        ("CapabilityBoundingSet", ("CAP_KILL",), {"bounding": "400"}, "CAP_NET_BIND_SERVICE"),
        ("CapabilityBoundingSet", (), {"bounding": "f"},
         "CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH and more"),
        ("CapabilityBoundingSet", (), {"bounding": "8000000000000000"}, "capability 63"),
    ],
)  # fmt: skip
def test_a_thread_is_as_hard_as_the_kernel_says(term, wanted, status, problem) -> None:
    text = STATUS.format(**({"nnp": "0", "seccomp": "0", "bounding": "0"} | status))
    assert hardening_problem(term, wanted, text) == problem


@pytest.mark.parametrize(
    ("term", "problem"),
    [
        ("NoNewPrivileges", "NoNewPrivs is nothing"),
        ("Seccomp", "Seccomp is nothing"),
        ("CapabilityBoundingSet", "CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH and more"),
    ],
)
def test_a_kernel_that_does_not_say_has_not_attested_anything(term: str, problem: str) -> None:
    assert hardening_problem(term, (), "Name:\tx\n") == problem


def test_one_thread_without_it_is_enough(examiner: Examiner, program: Path, run) -> None:
    code = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        f"ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)\n{PAUSE}"
    )
    pid = run(program, code)
    assert found(examiner, "hardening.NoNewPrivileges", "true", pid=pid) == f"NoNewPrivs is 0 in process {pid}"
    alone = run(program, f"import ctypes; ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)\n{PAUSE}")
    assert found(examiner, "hardening.NoNewPrivileges", "true", pid=alone) == ""


# Versions

VERSIONS = st.from_regex(r"([0-9]{1,3}:)?[0-9][A-Za-z0-9.+~]{0,8}(-[A-Za-z0-9.+~]{1,6})?", fullmatch=True)


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="needs dpkg")
@settings(max_examples=60, deadline=None)
@given(VERSIONS, VERSIONS, st.sampled_from([("<", "lt"), ("<=", "le"), ("=", "eq"), (">=", "ge"), (">", "gt")]))
def test_versions_compare_as_dpkg_compares_them(one: str, other: str, relation: tuple[str, str]) -> None:
    told = subprocess.run(["dpkg", "--compare-versions", one, relation[1], other], check=False).returncode == 0
    assert holds(f"{relation[0]} {other}", version_key, one) is told


@given(VERSIONS, VERSIONS, VERSIONS)
def test_versions_are_in_one_order(one: str, two: str, three: str) -> None:
    first, second, third = sorted((one, two, three), key=version_key)
    assert holds(f">= {first}", version_key, second)
    assert holds(f">= {second}", version_key, third)
    assert holds(f"<= {third}", version_key, first)


@pytest.mark.parametrize(
    ("smaller", "greater"),
    [
        ("1.0~rc1", "1.0"), ("1.0", "1.0.1"), ("1.9", "1.10"), ("9", "1:0"), ("1.0-1", "1.0-1+deb12u1"),
        ("1.0a", "1.0+"), ("1.0", "1.0-1"), ("1~", "1"), ("1~~", "1~"),
    ],
)  # fmt: skip
def test_a_version_is_older_than_another(smaller: str, greater: str) -> None:
    assert version_key(smaller) < version_key(greater)


@pytest.mark.parametrize(
    ("wanted", "release", "does"),
    [
        (">= 6.1", "6.1.0-13-amd64", True), (">= 6.1", "6.0.9", False), ("= 6.1", "6.1.0", True),
        ("= 6.1", "6.1.1", False), ("< 6.2", "6.18.0", False), ("> 6.1", "6.1.0-rc1", False), (">= 6.1", "", False),
        (">= 6.1", "six", False), (">= 6", "6.18", True),
    ],
)  # fmt: skip
def test_a_kernel_is_known_by_its_numbers(wanted: str, release: str, does: bool) -> None:
    assert holds(wanted, kernel_key, release) is does


def test_the_running_kernel_is_asked(examiner: Examiner) -> None:
    assert found(examiner, "kernel", ">= 5.15") == ""
    assert found(examiner, "kernel", "< 5.15") == os.uname().release


# Packages

DPKG = """Package: nginx
Status: install ok installed
Version: 1.22.1-9
Description: server
 Version: 9

Package: gone
Status: deinstall ok config-files
Version: 2.0

Package: half
Status: install reinstreq half-installed
Version: 2.0

Package: libc6
Status: hold ok installed
Architecture: amd64
Version: 2.36-9

Package: libc6
Status: install ok installed
Architecture: i386
Version: 2.31-1
"""


def test_only_what_is_installed_counts_and_each_architecture_does() -> None:
    assert installed(DPKG.encode()) == {"nginx": ("1.22.1-9",), "libc6": ("2.36-9", "2.31-1")}


@ROOT
@pytest.mark.parametrize(
    ("package", "wanted", "problem"),
    [
        ("nginx", ">= 1.22", ""), ("nginx", ">= 1.23", "1.22.1-9"), ("gone", ">= 1", "it is not installed"),
        ("half", ">= 1", "it is not installed"), ("libc6", ">= 2.36", "2.31-1"), ("libc6", ">= 2.31-1", ""),
    ],
)  # fmt: skip
def test_a_package_has_the_version(examiner: Examiner, tmp_path: Path, package, wanted, problem) -> None:
    (tmp_path / "status").write_text(DPKG)
    assert found(examiner, f"package.{package}", wanted) == problem


@ROOT
def test_an_upgrade_is_noticed(examiner: Examiner, tmp_path: Path) -> None:
    (tmp_path / "status").write_text(DPKG)
    assert found(examiner, "package.nginx", ">= 1.23") == "1.22.1-9"
    (tmp_path / "new").write_text(DPKG.replace("1.22.1-9", "1.23"))
    os.replace(tmp_path / "new", tmp_path / "status")
    assert found(examiner, "package.nginx", ">= 1.23") == ""


@ROOT
def test_a_list_of_packages_that_cannot_be_trusted_has_failed(examiner: Examiner, tmp_path: Path) -> None:
    status = tmp_path / "status"
    assert "cannot be read" in found(examiner, "package.nginx", ">= 1")
    status.write_text(DPKG)
    status.chmod(0o666)
    assert found(examiner, "package.nginx", ">= 1") == f"others than root may write {status}"
    status.write_bytes(DPKG.encode().replace(b"1.22.1-9", b"1" * 5000))
    status.chmod(0o644)
    assert found(examiner, "package.nginx", ">= 1") == "a version of 5,000 characters"
    status.write_bytes(DPKG.encode().replace(b"1.22.1-9", "\u0661:1".encode()))
    assert "the version" in found(examiner, "package.nginx", ">= 1")
    status.unlink()
    status.symlink_to("/var/lib/dpkg/status")
    assert "cannot be read" in found(examiner, "package.nginx", ">= 1")


# Health


def _ages(path: Path, seconds: float) -> None:
    changed = path.stat().st_mtime - seconds
    os.utime(path, (changed, changed))


@ROOT
@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda path: None, ""),
        (lambda path: path.unlink(), "there is no "),
        (lambda path: path.write_text("failing\x1b[31m"), r"it says 'failing\x1b[31m'"),
        (lambda path: path.write_text(""), "it says ''"),
        (lambda path: path.chmod(0o664), "others than root may write "),
        (lambda path: os.chown(path, 4711, 0), "others than root may write "),
        (lambda path: path.parent.chmod(0o777), "others than root may write "),
        (lambda path: os.chown(path.parent, 4711, 0), "others than root may write "),
        (lambda path: _ages(path, 59), ""),
        (lambda path: _ages(path, 90), "it was written 9"),
        (lambda path: _ages(path, -90), "s in the future"),
        (lambda path: (path.rename(path.with_name("x")), path.symlink_to("x")), "it cannot be read: "),
        (lambda path: (path.unlink(), os.mkfifo(path)), "is no file"),
        (lambda path: (path.unlink(), path.mkdir()), "is no file"),
        (lambda path: shutil.rmtree(path.parent), "there is no "),
    ],
    ids=range(15),
)
def test_a_health_file_is_roots_fresh_and_says_ok(examiner: Examiner, tmp_path: Path, spoil, problem: str) -> None:
    path = tmp_path / "health" / "disk"
    path.write_text("ok\n")
    spoil(path)
    said = found(examiner, "node.disk", "ok")
    assert problem in said and bool(said) == bool(problem)


def test_a_term_that_this_version_does_not_know_has_failed(examiner: Examiner) -> None:
    assert found(examiner, "moon.phase", "full") == "this version does not know the term"
