"""A repository elsewhere: one reference of it, fetched into a mirror by a git that is held on a short lead.

It speaks one protocol, to one address, asks nobody, runs no hook, and keeps no configuration of anybody's making; every
object is checked as it arrives. What one answer can take is bounded: FETCHED_BYTES_MAX on the wire and on disk (it
arrives as one file), memory, time of the processor and on the clock.
"""

from __future__ import annotations

import base64
import os
import re
import shlex
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from bulkhead.config import scheme_of
from bulkhead.errors import Diagnostic, Loc, PolicyError, UnreachableError
from bulkhead.policy import git
from bulkhead.policy.codes import message, presentable
from bulkhead.policy.git import Limits

FETCHED_BYTES_MAX: Final = 256 << 20
MIRROR_BYTES_MAX: Final = 1 << 30
PACKS_MAX: Final = 50
"""Of the mirror, before it is swept."""

FETCH_TIMEOUT_S: Final = 60.0
LOW_SPEED_BYTES: Final = 1000
LOW_SPEED_S: Final = 20
CONNECT_S: Final = 10

PROBLEM_MAX: Final = 400

TIP: Final = "refs/bulkhead/tip"
"""Of the mirror: what the remote's reference named when it was fetched last."""

_LIMITS: Final = Limits(file_bytes=FETCHED_BYTES_MAX, memory_bytes=2 << 30, cpu_s=60, processes=64)
_SWEEP: Final = Limits(file_bytes=2 * MIRROR_BYTES_MAX, memory_bytes=2 << 30, cpu_s=60, processes=64)

_CONFIG: Final = {
    "core.askPass": "",
    "credential.helper": "",
    "fetch.fsckObjects": "true",
    "fetch.recurseSubmodules": "false",
    "fetch.writeCommitGraph": "false",
    "transfer.fsckObjects": "true",
    "transfer.unpackLimit": "1",
    "fetch.unpackLimit": "1",
    "transfer.bundleURI": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "pack.threads": "1",
    "protocol.version": "2",
    "http.followRedirects": "false",
    "http.sslVerify": "true",
    "http.lowSpeedLimit": str(LOW_SPEED_BYTES),
    "http.lowSpeedTime": str(LOW_SPEED_S),
    "http.emptyAuth": "false",
}
_SSH: Final = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "GlobalKnownHostsFile": os.devnull,
    "IdentitiesOnly": "yes",
    "IdentityAgent": "none",
    "UpdateHostKeys": "no",
    "ClearAllForwardings": "yes",
    "PermitLocalCommand": "no",
    "ControlMaster": "no",
    "ControlPath": "none",
    "ConnectTimeout": str(CONNECT_S),
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
}
_UPLOAD_PACK: Final = "git -c 'safe.directory=*' upload-pack"
"""For file://, where git itself is the server, whoever the repository belongs to."""

_TOO_LARGE: Final = re.compile(r"died of signal 25|File too large|Out of memory|malloc failed")
_MALFORMED: Final = re.compile(r"fsck error|(?:error|fatal): object [0-9a-f]{40}.*: |bad object|corrupt", re.IGNORECASE)
_NO_REF: Final = re.compile(r"couldn't find remote ref|[Nn]o such ref|unborn")


class RemoteError(UnreachableError):
    """The remote did not answer as it should; a finding of code `code`."""

    def __init__(self, code: str, text: str, problem: str) -> None:
        super().__init__(f"error[{code}]: {text}: {_legible(problem)}")
        self.code = code


@dataclass(frozen=True, slots=True)
class Remote:
    """Where to fetch from, and with what."""

    url: str
    ref: str
    ssh_key: Path | None = None
    known_hosts: Path | None = None
    ca: Path | None = None
    credentials: Path | None = None

    @property
    def scheme(self) -> str:
        return scheme_of(self.url)

    @property
    def path(self) -> Path | None:
        """Of a repository on this machine, which can be watched."""
        return Path(unquote(urlsplit(self.url).path)) if self.scheme == "file" else None

    def variables(self) -> dict[str, str]:
        """For git's environment: nothing secret is ever on a command line."""
        variables = {"GIT_ALLOW_PROTOCOL": self.scheme}
        if self.scheme == "ssh":
            variables |= {"GIT_SSH_COMMAND": self._ssh(), "GIT_SSH_VARIANT": "ssh"}
        return variables

    def _ssh(self) -> str:
        options = {**_SSH, "UserKnownHostsFile": str(self.known_hosts or os.devnull)}
        options["IdentityFile"] = str(self.ssh_key or "none")
        return shlex.join(["ssh", "-F", os.devnull, *(f"-o{name}={value}" for name, value in options.items())])

    def config(self) -> dict[str, str]:
        """For git. Raises RemoteError when the credentials cannot be used."""
        config = {**_CONFIG, f"protocol.{self.scheme}.allow": "always"}
        if self.scheme == "https" and self.ca is not None:
            config["http.sslCAInfo"] = str(self.ca)
        if self.scheme == "https" and self.credentials is not None:
            token = base64.b64encode(self._read_credentials(self.credentials)).decode()
            config[f"http.{self.url}.extraHeader"] = f"Authorization: Basic {token}"
        return config

    def _read_credentials(self, path: Path) -> bytes:
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                    raise self.unreachable(f"`{path}` may be read by others than its owner")
                content = file.read(4096).strip()
        except OSError as error:
            raise self.unreachable(f"cannot read `{path}`: {error.strerror}") from error
        if content.count(b"\n") or b":" not in content:
            raise self.unreachable(f"`{path}` does not hold one line `USER:TOKEN`")
        return content

    def unreachable(self, problem: str) -> RemoteError:
        """BH1110."""
        return RemoteError("BH1110", message("BH1110", remote=self.url), problem)


class Mirror:
    """A bare repository that holds what was fetched."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def fetch(self, remote: Remote, timeout_s: float = FETCH_TIMEOUT_S) -> None:
        """Have TIP name what the remote's reference names now.

        Raises RemoteError when the remote does not answer, PolicyError when its answer cannot be accepted.
        """
        self._prepare()
        command = [
            *("fetch", "--quiet", "--force", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head"),
            *("--no-auto-maintenance", "--no-show-forced-updates", "--refmap=", f"--upload-pack={_UPLOAD_PACK}"),
            *("--", remote.url, f"+{remote.ref}:{TIP}"),
        ]
        if remote.scheme != "file":
            command.remove(f"--upload-pack={_UPLOAD_PACK}")
        config, variables = remote.config(), remote.variables()
        try:
            done = self._git(command, config, variables, _LIMITS, timeout_s)
        except RemoteError:
            raise
        except UnreachableError as error:
            self._remove_partial()
            raise remote.unreachable(str(error)) from error
        if done.status:
            self._remove_partial()
            raise _failure(remote, done.complaint)

    def tip(self) -> str:
        """The commit that was fetched last. Raises UnreachableError when there is none."""
        return git.resolve(self.directory, TIP, self.directory)

    def keep(self, commit: str) -> None:
        """Keep a commit whatever the remote does to its reference, and sweep when there is much to sweep."""
        if commit:
            self._git(["update-ref", "refs/bulkhead/accepted", commit], {}, {}, _SWEEP, FETCH_TIMEOUT_S)
        packs = list((self.directory / "objects" / "pack").glob("*.pack"))
        if len(packs) > PACKS_MAX or sum(pack.stat().st_size for pack in packs) > MIRROR_BYTES_MAX:
            self._git(["gc", "--quiet", "--prune=now"], {"gc.autoDetach": "false"}, {}, _SWEEP, FETCH_TIMEOUT_S)

    def _prepare(self) -> None:
        if (self.directory / "HEAD").is_file():
            return
        command = ["init", "--quiet", "--bare", "--template=", str(self.directory)]
        done = git.attempt(self.directory, command)
        if done.status:
            raise UnreachableError(f"cannot make the mirror `{self.directory}`: {presentable(done.complaint)}")

    def _remove_partial(self) -> None:
        """What a fetch that was cut short left behind."""
        for left in (self.directory / "objects" / "pack").glob("tmp_*"):
            left.unlink(missing_ok=True)

    def _git(
        self,
        command: list[str],
        config: Mapping[str, str],
        variables: Mapping[str, str],
        limits: Limits,
        timeout_s: float,
    ) -> git.Outcome:
        return git.attempt(
            self.directory, command, config=config, variables=variables, limits=limits, timeout_s=timeout_s
        )


def _failure(remote: Remote, complaint: str) -> PolicyError | RemoteError:
    """What went wrong, by git's words."""
    if _TOO_LARGE.search(complaint):
        return _finding("BH1111", remote, limit=FETCHED_BYTES_MAX)
    if _NO_REF.search(complaint):
        return _finding("BH1112", remote, ref=remote.ref)
    if _MALFORMED.search(complaint):
        return _finding("BH1113", remote, hint=_said(complaint))
    return remote.unreachable(_said(complaint))


def _finding(number: str, remote: Remote, hint: str = "", **values: object) -> PolicyError:
    text = message(number, remote=remote.url, **values)
    return PolicyError([Diagnostic(number, text, Loc(presentable(remote.url), 1), _legible(hint))])


def _legible(text: str) -> str:
    """Words of other programs, longer than an author's: at most PROBLEM_MAX characters, none that a terminal obeys."""
    return "".join(character if character.isprintable() else " " for character in text[:PROBLEM_MAX])


def _said(complaint: str) -> str:
    """The line that tells most: the first of ssh's, curl's or fsck's own."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip() and not line.startswith(("warning:", "@"))]
    if any("HOST IDENTIFICATION HAS CHANGED" in line for line in complaint.splitlines()):
        return "its host key is not the one in `ssh_known_hosts`"
    return lines[0].removeprefix("fatal: ").removeprefix("error: ") if lines else "git did not say why"
