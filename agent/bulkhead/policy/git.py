"""Git, run on somebody else's repository.

It may hold hooks, filters, replaced objects, promises of objects that a remote helper would fetch, grafts and caches
that tell another history. So git sees an object store only, never a work tree, with an environment of its own.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bulkhead.errors import UnreachableError
from bulkhead.policy.codes import presentable

TIMEOUT_S = 60

_CONFIG = {
    "safe.directory": "*",
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.commitGraph": "false",
    "protocol.allow": "never",
    # It would be said instead of what went wrong.
    "advice.graftFileDeprecated": "false",
}

_OBJECT_ID = re.compile(rb"[0-9a-f]{40}(?:[0-9a-f]{24})?")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run of git and everything it starts may take."""

    file_bytes: int
    memory_bytes: int
    cpu_s: int
    processes: int
    """Of the whole user; the kernel does not hold root to it."""

    def impose(self) -> None:
        """On this process, for good. A write that goes too far fails, rather than to end the one who writes."""
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        for kind, limit in (
            (resource.RLIMIT_FSIZE, self.file_bytes),
            (resource.RLIMIT_AS, self.memory_bytes),
            (resource.RLIMIT_CPU, self.cpu_s),
            (resource.RLIMIT_NPROC, self.processes),
            (resource.RLIMIT_CORE, 0),
        ):
            hard = resource.getrlimit(kind)[1]
            limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(kind, (limit, limit))


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run of git ended. `status` is negative when a signal ended it."""

    status: int
    output: bytes
    complaint: str
    """What it wrote to standard error, fit for a terminal when it goes through `presentable`."""


def git_directory(repository: Path) -> Path:
    """Where the objects are. Named outright: git's own search would climb into directories above."""
    root = repository.absolute()
    inside = root / ".git"
    if inside.exists():
        return inside
    if (root / "HEAD").is_file() and (root / "objects").is_dir():
        return root
    raise UnreachableError(f"`{presentable(str(repository))}` is not a git repository")


def resolve(directory: Path, revision: str, shown: Path | str) -> str:
    """The full id of the commit that a revision names. Raises UnreachableError when there is none in `shown`."""
    found = b""
    if revision and not revision.startswith("-") and revision.isprintable():
        found = run(directory, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}", may_fail=True).strip()
    if not _OBJECT_ID.fullmatch(found):
        raise UnreachableError(f"`{presentable(revision)}` names no commit in `{presentable(str(shown))}`")
    return found.decode()


def run(
    directory: Path,
    *arguments: str,
    stdin: bytes = b"",
    may_fail: bool = False,
    config: Mapping[str, str] | None = None,
    variables: Mapping[str, str] | None = None,
) -> bytes:
    """The output of git. Raises UnreachableError when it fails, unless it may, and when it takes too long."""
    done = attempt(directory, arguments, stdin=stdin, config=config, variables=variables)
    if done.status and not may_fail:
        reason = presentable(done.complaint) or f"status {done.status}"
        raise UnreachableError(f"git {arguments[0]} failed: {reason}")
    return done.output


def attempt(
    directory: Path,
    arguments: Sequence[str],
    *,
    stdin: bytes = b"",
    config: Mapping[str, str] | None = None,
    variables: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Outcome:
    """Run git, and end it with all its children when the time is up. Raises UnreachableError then."""
    command = ["git", "--no-optional-locks", "--no-pager", *arguments]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**environment(directory, config or {}), **(variables or {})},
            cwd="/",
            umask=0o077,
            process_group=0,
            preexec_fn=limits.impose if limits else None,
        )
    except FileNotFoundError as error:
        raise UnreachableError("git is not installed") from error
    with process:
        try:
            output, complaint = process.communicate(stdin, timeout_s)
        except subprocess.TimeoutExpired as error:
            os.killpg(process.pid, signal.SIGKILL)
            raise UnreachableError(f"git did not answer within {timeout_s:g} seconds") from error
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return Outcome(process.returncode, output, complaint.decode("utf-8", "replace").strip())


def environment(directory: Path, config: Mapping[str, str]) -> dict[str, str]:
    """All that git gets to see: nothing is inherited, so that no GIT_* of a caller redirects it."""
    settings = {**_CONFIG, **config}
    variables = {
        "PATH": os.environ.get("PATH", os.defpath),
        "LC_ALL": "C",
        "TZ": "UTC",
        "HOME": "/nonexistent",
        "GIT_DIR": str(directory),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_GRAFT_FILE": os.devnull,
        "GIT_ALLOW_PROTOCOL": "none",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_CONFIG_COUNT": str(len(settings)),
    }
    for number, (key, value) in enumerate(settings.items()):
        variables[f"GIT_CONFIG_KEY_{number}"] = key
        variables[f"GIT_CONFIG_VALUE_{number}"] = value
    return variables
