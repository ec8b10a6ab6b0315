"""A real OpenSSH server inside a lab host, and logins to it from another."""

from __future__ import annotations

import contextlib
import os
import pwd
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from lab.host import Host

_END = "__end__"


class Session:
    """A shell over SSH."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def send(self, command: str) -> None:
        """Run a command without waiting for what becomes of it."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n".encode())
        self._process.stdin.flush()

    def run(self, command: str, timeout_s: float = 20.0) -> str:
        """Run a command to its end; what it printed, without the last line break."""
        self.send(f"{command}; echo {_END}")
        said = self._read_until(f"{_END}\n".encode(), timeout_s)
        return said.decode().removesuffix(f"{_END}\n").removesuffix("\n")

    def _read_until(self, end: bytes, timeout_s: float) -> bytes:
        assert self._process.stdout is not None
        said, until = b"", time.monotonic() + timeout_s
        while not said.endswith(end):
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, until - time.monotonic()))
            chunk = os.read(self._process.stdout.fileno(), 65536) if ready else b""
            if not chunk:
                raise RuntimeError(f"the session ended or is silent; it said {said!r}")
            said += chunk
        return said

    def is_cut(self, within_s: float) -> bool:
        """Does nothing get through any more: no answer, or the connection is gone?"""
        with contextlib.suppress(BrokenPipeError):
            self.send("echo still")
            try:
                self._read_until(b"still\n", within_s)
            except RuntimeError:
                return True
            return False
        return True


class Sshd:
    """A server on `address`:22 in a control group of `host`. A context manager."""

    def __init__(self, host: Host, group: str, address: str) -> None:
        self._host = host
        self._group = group
        self._address = address
        self._directory = host.directory / "sshd"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._directory.mkdir(mode=0o700)
        for name in ("host", "user"):
            key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._directory / name)]
            subprocess.run(key, check=True)
        shutil.copy(self._directory / "user.pub", self._directory / "authorized")
        config = self._directory / "config"
        config.write_text(
            f"ListenAddress 0.0.0.0:22\nHostKey {self._directory}/host\n"
            f"AuthorizedKeysFile {self._directory}/authorized\nPermitRootLogin prohibit-password\nStrictModes no\n"
            "UsePAM no\nPidFile none\nUseDNS no\n"
        )
        Path("/run/sshd").mkdir(exist_ok=True)
        command = ["/usr/sbin/sshd", "-D", "-e", "-f", str(config)]
        self._process = self._host.start(self._group, command, stderr=subprocess.PIPE)
        assert self._process.stderr is not None
        while b"listening" not in (line := self._process.stderr.readline()):
            if not line:
                raise RuntimeError("sshd did not start")
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.communicate(timeout=5)

    def _command(self, timeout_s: float, *command: str) -> list[str]:
        name = pwd.getpwuid(os.getuid()).pw_name
        options = {
            "ConnectTimeout": str(int(timeout_s)),
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "BatchMode": "yes",
            "LogLevel": "ERROR",
        }
        given = [item for key, value in options.items() for item in ("-o", f"{key}={value}")]
        return ["ssh", "-F", "none", "-i", str(self._directory / "user"), *given, f"{name}@{self._address}", *command]

    @contextlib.contextmanager
    def login(self, client: Host) -> Iterator[Session]:
        """A login from another host."""
        command = self._command(10, "sh")
        process = client.start("any", command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        try:
            yield Session(process)
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def can_login(self, client: Host, timeout_s: float) -> bool:
        """Does a new login succeed?"""
        command = self._command(max(1.0, timeout_s), "true")
        try:
            return client.run("any", command, timeout_s=timeout_s + 5).returncode == 0
        except subprocess.TimeoutExpired:
            return False
