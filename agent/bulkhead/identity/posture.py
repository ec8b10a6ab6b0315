"""Is a workload as its policy requires? Read from the kernel and from files that only root writes; nothing a process
says of itself counts, and what cannot be read has failed.
"""

from __future__ import annotations

import errno
import hashlib
import operator
import os
import re
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from bulkhead.policy.model import Requirement
from bulkhead.policy.posture import CAPABILITIES

DPKG_STATUS: Final = Path("/var/lib/dpkg/status")
FIRST_PROCESS: Final = Path("/proc/1/exe")
HEALTH_AGE_S: Final = 60
"""A health file that is older says nothing."""
DIGEST_LIMIT: Final = 1 << 30
"""Bytes of the largest executable that is read."""

_STATUS_LIMIT: Final = 64 << 20
_DIGESTS_KEPT: Final = 4096
_CHUNK: Final = 1 << 20
_REST_NS: Final = 2_000_000_000
"""A file that was changed more recently may change again without its times showing it: they count in ticks."""
_GONE: Final = (errno.ENOENT, errno.ESRCH)
_VERSION_PARTS: Final = re.compile(r"([^0-9]*)([0-9]*)")
_VERSION_MAX: Final = 256
_END: Final = ((0,), 0)


@dataclass(frozen=True, slots=True)
class Failure:
    """One requirement that does not hold."""

    term: str
    """As in `Requirement`."""
    expected: str
    found: str


class FileKey(NamedTuple):
    """A file in one state: any change of its content changes this."""

    device: int
    inode: int
    modified_ns: int
    changed_ns: int
    size: int


def file_key(found: os.stat_result) -> FileKey:
    """The state of a file."""
    return FileKey(found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)


class _UnsoundError(Exception):
    """What was found instead of something that can be judged."""


class Examiner:
    """Examines one requirement after the other. Remembers digests of files that have not changed since."""

    def __init__(self, health: Path, packages: Path = DPKG_STATUS, first: Path = FIRST_PROCESS) -> None:
        self._health = health
        self._packages = packages
        self._first = first
        self._digests: OrderedDict[FileKey, str] = OrderedDict()
        self._installed: tuple[FileKey, dict[str, tuple[str, ...]]] | None = None

    def failures(
        self, required: Iterable[Requirement], executables: Sequence[str], pids: Sequence[int]
    ) -> tuple[Failure, ...]:
        """What does not hold, for a workload of these named executables and running processes."""
        found = []
        managers = _managers(self._first)
        started = [pid for pid in pids if not _runs(pid, managers)]
        for one in required:
            problem = self._problem(one, executables, started)
            if problem:
                found.append(Failure(one.term, ", ".join(one.expected) or "none", problem))
        return tuple(found)

    def _problem(self, one: Requirement, executables: Sequence[str], pids: Sequence[int]) -> str:
        """What was found instead; empty when the requirement holds."""
        term, _, subject = one.term.partition(".")
        try:
            match term:
                case "digest":
                    return self._check_digests(one.expected, executables, pids)
                case "hardening":
                    return next(filter(None, (_check_hardening(subject, one.expected, pid) for pid in pids)), "")
                case "package":
                    return self._check_package(subject, one.expected[0])
                case "kernel":
                    return _check_kernel(one.expected[0], os.uname().release)
                case "node":
                    return _check_health(self._health, subject, time.time())
        except _UnsoundError as unsound:
            return str(unsound)
        except OSError as error:
            return f"it cannot be read: {error.strerror}"
        return "this version does not know the term"

    # Executables

    def _check_digests(self, wanted: Sequence[str], executables: Sequence[str], pids: Sequence[int]) -> str:
        for path in executables:
            digest = self._digest_at(path)
            if digest not in ("", *wanted):
                return f"{digest} at {path}"
        for pid in pids:
            digest = self._digest_of(pid)
            if digest not in ("", *wanted):
                return f"{digest} runs as process {pid}"
        return ""

    def _digest_at(self, path: str) -> str:
        """The digest of the file that the kernel takes for this executable; empty when there is none."""
        try:
            with _opened(path) as fd:
                if os.readlink(f"/proc/self/fd/{fd}") != path:
                    return ""
                return self._digest(fd, path)
        except FileNotFoundError:
            return ""
        except OSError as error:
            if error.errno == errno.ELOOP:
                return ""
            raise

    def _digest_of(self, pid: int) -> str:
        """The digest of what a process runs; empty when it has ended, and for a thread of the kernel."""
        link = running_executable(pid)
        if link is None:
            return ""
        try:
            known = self._digests.get(file_key(os.stat(link)))
            if known is not None:
                return known
            fd = os.open(link, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            if error.errno in _GONE:
                return ""
            raise
        try:
            return self._digest(fd, f"the executable of process {pid}")
        finally:
            os.close(fd)

    def _digest(self, fd: int, what: str) -> str:
        """Of the open file, whatever its name means by now."""
        before = os.fstat(fd)
        key = file_key(before)
        known = self._digests.get(key)
        if known is not None:
            return known
        if not stat.S_ISREG(before.st_mode) or before.st_size > DIGEST_LIMIT:
            raise _UnsoundError(f"{what} is no file of at most {DIGEST_LIMIT:,} bytes")
        hashed, size = hashlib.sha256(), 0
        while size <= key.size and (chunk := os.read(fd, _CHUNK)):
            hashed.update(chunk)
            size += len(chunk)
        if file_key(os.fstat(fd)) != key or size != key.size:
            raise _UnsoundError(f"{what} is being written")
        digest = f"sha256:{hashed.hexdigest()}"
        if time.time_ns() - max(key.changed_ns, key.modified_ns) > _REST_NS:
            self._digests[key] = digest
            if len(self._digests) > _DIGESTS_KEPT:
                self._digests.popitem(last=False)
        return digest

    # Packages

    def _check_package(self, name: str, wanted: str) -> str:
        versions = self._installed_packages().get(name, ())
        if not versions:
            return "it is not installed"
        return next((version for version in versions if not holds(wanted, version_key, version)), "")

    def _installed_packages(self) -> dict[str, tuple[str, ...]]:
        with _opened(str(self._packages)) as fd:
            found = os.fstat(fd)
            if found.st_size > _STATUS_LIMIT:
                raise _UnsoundError(f"{self._packages} is larger than {_STATUS_LIMIT:,} bytes")
            _check_owner(found, str(self._packages))
            if self._installed is None or self._installed[0] != file_key(found):
                with os.fdopen(os.dup(fd), "rb") as file:
                    self._installed = file_key(found), installed(file.read(_STATUS_LIMIT))
            return self._installed[1]


@contextmanager
def _opened(path: str, directory: int | None = None) -> Iterator[int]:
    """A file, opened once, for reading; no symbolic link, and nothing that would wait for a writer."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY, dir_fd=directory)
    try:
        yield fd
    finally:
        os.close(fd)


def _check_owner(found: os.stat_result, what: str) -> None:
    if found.st_uid != 0 or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _UnsoundError(f"others than root may write {what}")


# Processes


def _tasks(pid: int) -> list[str]:
    try:
        return sorted(os.listdir(f"/proc/{pid}/task"), key=int)
    except OSError as error:
        if error.errno in _GONE:
            return []
        raise


def running_executable(pid: int) -> str | None:
    """The link in /proc to what a process runs; None when it has ended, and for a thread of the kernel.

    Any thread's will do, and it has to: the first thread may end before the others, and its link then leads nowhere.
    """
    return _link(pid) or next(filter(None, map(_link, map(int, _tasks(pid)))), None)


def _link(task: int) -> str | None:
    link = f"/proc/{task}/exe"
    try:
        os.readlink(link)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    return link


def _managers(first: Path) -> frozenset[FileKey]:
    """The files of systemd: it is in a service's control group, not hardened yet, until it runs the service."""
    found: set[FileKey] = set()
    with suppress(OSError):
        path = os.readlink(first)
        if os.path.basename(path) == "systemd":
            found.add(file_key(os.stat(first)))
            found.add(file_key(os.lstat(os.path.join(os.path.dirname(path), "systemd-executor"))))
    return frozenset(found)


def _runs(pid: int, files: frozenset[FileKey]) -> bool:
    """Whether a process runs one of these files."""
    with suppress(OSError):
        link = running_executable(pid) if files else None
        return link is not None and file_key(os.stat(link)) in files
    return False


def _check_hardening(key: str, wanted: Sequence[str], pid: int) -> str:
    """Of every thread: one that lacks it is enough to do what the others may not."""
    if running_executable(pid) is None:
        return ""
    for task in _tasks(pid):
        try:
            text = Path(f"/proc/{pid}/task/{task}/status").read_text(errors="replace")
        except OSError as error:
            if error.errno in _GONE:
                continue
            raise
        problem = hardening_problem(key, wanted, text)
        if problem:
            return f"{problem} in process {pid}"
    return ""


def hardening_problem(key: str, wanted: Sequence[str], status: str) -> str:
    """What a thread's `status` in /proc says instead of what is wanted; empty when it says that."""
    fields = dict(line.split(":", 1) for line in status.split("\n") if ":" in line)
    if key == "CapabilityBoundingSet":
        bounding = int(fields.get("CapBnd", "ffffffffffffffff"), 16)
        more = [number for number in range(64) if bounding >> number & 1 and _capability(number) not in wanted]
        return f"{', '.join(map(_capability, more[:3]))}{' and more' if len(more) > 3 else ''}" if more else ""
    field, good = {"NoNewPrivileges": ("NoNewPrivs", "1"), "Seccomp": ("Seccomp", "2")}[key]
    value = fields.get(field, "nothing").strip()
    return "" if value == good else f"{field} is {value}"


def _capability(number: int) -> str:
    return CAPABILITIES[number] if number < len(CAPABILITIES) else f"capability {number}"


# Versions


def installed(status: bytes) -> dict[str, tuple[str, ...]]:
    """Versions of installed packages, by name; one for each architecture. `status` is dpkg's."""
    found: dict[str, tuple[str, ...]] = {}
    for paragraph in status.decode(errors="replace").split("\n\n"):
        pairs = (line.split(": ", 1) for line in paragraph.split("\n") if not line.startswith(" ") and ": " in line)
        fields = {key: value.strip() for key, value in pairs}
        if fields.get("Status", "").endswith(" installed") and "Package" in fields:
            name = fields["Package"]
            found[name] = (*found.get(name, ()), fields.get("Version", ""))
    return found


VersionKey = tuple[int, list[tuple[tuple[int, ...], int]], list[tuple[tuple[int, ...], int]]]


def version_key(text: str) -> VersionKey:
    """Sorts versions as Debian policy does: epoch, then upstream version, then revision."""
    if len(text) > _VERSION_MAX:
        raise _UnsoundError(f"a version of {len(text):,} characters")
    epoch, colon, rest = text.partition(":")
    upstream, hyphen, revision = (rest if colon else text).rpartition("-")
    if not hyphen:
        upstream, revision = revision, ""
    if colon and not (epoch.isascii() and epoch.isdecimal()):
        raise _UnsoundError(f"the version {text!a}")
    return int(epoch) if colon else 0, _part_key(upstream), _part_key(revision)


def _part_key(text: str) -> list[tuple[tuple[int, ...], int]]:
    """Stretches of other characters and of digits in turn. The end, which is as `0`, sorts before all but `~`."""
    parts = [((*map(_rank, other), 0), int(digits or 0)) for other, digits in _VERSION_PARTS.findall(text)]
    while parts and parts[-1] == _END:
        parts.pop()
    return [*parts, _END]


def _rank(character: str) -> int:
    if character == "~":
        return -1
    return ord(character) if character.isascii() and character.isalpha() else ord(character) + 0x110000


def kernel_key(release: str) -> tuple[int, ...]:
    """The numbers at the beginning of a kernel's release, without zeroes at their end."""
    found = re.match(r"[0-9]{1,9}(\.[0-9]{1,9})*", release)
    numbers = [int(part) for part in found[0].split(".")] if found else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def holds(wanted: str, key: Callable[[str], Any], version: str) -> bool:
    """Whether `version` is as `wanted` says, such as `>= 1.22`, in the order of `key`."""
    relation, _, bound = wanted.partition(" ")
    compare = {">=": operator.ge, ">": operator.gt, "=": operator.eq, "<": operator.lt, "<=": operator.le}[relation]
    return bool(compare(key(version), key(bound)))


def _check_kernel(wanted: str, release: str) -> str:
    return "" if holds(wanted, kernel_key, release) else release


# Health


def _check_health(directory: Path, name: str, now: float) -> str:
    """The file that the operator's own check keeps: root's, fresh, and it says `ok`."""
    try:
        place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return f"there is no {directory / name}"
    try:
        _check_owner(os.fstat(place), str(directory))
        with _opened(name, place) as fd:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                return f"{directory / name} is no file"
            _check_owner(found, str(directory / name))
            text = os.read(fd, 64).decode(errors="replace").strip()
    except FileNotFoundError:
        return f"there is no {directory / name}"
    finally:
        os.close(place)
    age = now - found.st_mtime
    if not -1 <= age <= HEALTH_AGE_S:
        return f"it was written {age:.0f} s ago" if age > 0 else f"it was written {-age:.0f} s in the future"
    return "" if text == "ok" else f"it says {text[:40]!a}"
