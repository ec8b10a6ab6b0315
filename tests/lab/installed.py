"""Bulkhead installed in a systemd box as on a host: its own environment, the shipped units, a policy in git."""

from __future__ import annotations

import json
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from lab.policies import policy, repository
from lab.systemd_box import SystemdBox

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "/opt/bulkhead"
BULKHEAD = f"{PREFIX}/bin/bulkhead"
LAUNCHER = f"""#!{PREFIX}/bin/python
import sys
from bulkhead.cli.main import main
sys.exit(main())
"""
SERVICE = "[Service]\nType={type}\nNotifyAccess=all\nExecStart=/usr/bin/python3 /opt/lab/caller.py {arguments}\n"
WORKLOADS = {
    "asker": "{match: {unit: asker.service}}",
    "stranger": "{match: {unit: stranger.service}}",
    "server": "{match: {unit: server.service}}",
    "lazy": '{match: {unit: ["lazy.service", "lazy.socket"]}}',
    "passing": '{match: {unit: "passing-*.service"}}',
}
RULES = ("asker -> server 8080", "passing -> server 8080", "asker -> lazy 9000")


class Installed:
    """Bulkhead in a box, and units that talk."""

    def __init__(self, box: SystemdBox) -> None:
        self.box = box

    # Bulkhead

    def install(self) -> None:
        """What an installation puts in place. Written in the box only."""
        self.box.run(["/usr/bin/python3", "-m", "venv", "--without-pip", "--system-site-packages", PREFIX], check=True)
        (site,) = (self.box.root / PREFIX[1:]).glob("lib/python*/site-packages")
        copy_distributions("bulkhead", site)
        shutil.copytree(ROOT / "agent/bulkhead", site / "bulkhead", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "bpf", site / "bulkhead/bpf")
        self._write(BULKHEAD, LAUNCHER, mode=0o755)
        for unit in (ROOT / "systemd").glob("*.service"):
            shutil.copy(unit, self.box.root / "etc/systemd/system")
        self._write("/usr/lib/sysusers.d/bulkhead.conf", (ROOT / "systemd/bulkhead.sysusers.conf").read_text())
        self.box.run(["systemd-sysusers", "/usr/lib/sysusers.d/bulkhead.conf"], check=True)
        self._write("/opt/lab/caller.py", (ROOT / "tests/systemd/caller.py").read_text())
        self._write("/etc/bulkhead/agent.toml", (ROOT / "systemd/agent.toml").read_text())
        self.git("init", "-q", "-b", "main")
        self.commit({"bulkhead.yaml": repository(), "t.yaml": policy(*RULES, workloads=WORKLOADS)})

    def _write(self, path: str, text: str, mode: int = 0o644) -> None:
        target = self.box.root / path[1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)

    def git(self, *arguments: str) -> str:
        """Git on the policy repository."""
        author = ["-c", "user.name=lab", "-c", "user.email=lab@example.org"]
        directory = "/etc/bulkhead/policy"
        (self.box.root / directory[1:]).mkdir(parents=True, exist_ok=True)
        return self.box.run(["git", *author, "-C", directory, *arguments], check=True).stdout.strip()

    def commit(self, files: dict[str, str]) -> str:
        """Commit files; the commit's id."""
        for path, text in files.items():
            self._write(f"/etc/bulkhead/policy/{path}", text)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "change")
        return self.git("rev-parse", "HEAD")

    @contextmanager
    def drop_in(self, unit: str, text: str) -> Iterator[None]:
        """Change a unit's settings for a while; what runs keeps those that it was started with."""
        path = self.box.root / f"run/systemd/system/{unit}.d/test.conf"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"[Service]\n{text}\n")
        self.systemctl("daemon-reload")
        try:
            yield
        finally:
            path.unlink()
            self.systemctl("daemon-reload")

    def ask(self, *arguments: str) -> Any:
        """The data of a command's JSON output."""
        done = self.box.run([BULKHEAD, *arguments, "-o", "json"])
        assert done.returncode in (0, 1), done.stdout + done.stderr
        return json.loads(done.stdout)["data"]

    def attested(self) -> set[str]:
        """Workloads that have processes."""
        return {one["name"] for one in self.ask("workloads")["workloads"] if one["endpoints"]}

    # Units

    def systemctl(self, *arguments: str) -> str:
        """Run systemctl; raises BoxError unless it succeeds."""
        return self.box.run(["systemctl", *arguments], check=True, timeout_s=90).stdout.strip()

    def start(self, unit: str = "bulkhead.service") -> None:
        """Start a unit; the journals of Bulkhead are the failure's text."""
        done = self.box.run(["systemctl", "start", unit], timeout_s=90)
        assert done.returncode == 0, self.box.journal("bulkhead-loader.service") + self.box.journal("bulkhead.service")

    def until(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        """Wait for something that another process brings about."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            said = (self.box.journal(unit) for unit in ("bulkhead.service", "bulkhead-proxy.service"))
            assert time.monotonic() < deadline, "".join(said)

    def main_pid(self, unit: str = "bulkhead.service") -> int:
        """The main process of a unit, by the box's count; 0 when it has none."""
        return int(self.box.show(unit, "MainPID"))

    def order(self, unit: str, order: str) -> str:
        """Have a caller do something; what it answers."""
        with socket.socket(socket.AF_UNIX) as caller:
            caller.settimeout(10)
            caller.connect(str(self.box.root / f"run/{unit}.sock"))
            caller.sendall(order.encode())
            return caller.recv(4096).decode()

    def journal_records(self, unit: str) -> list[dict[str, Any]]:
        """What a unit itself logged, with the journal's fields."""
        self.box.run(["journalctl", "--sync"], check=True)
        command = ["journalctl", "-o", "json", "--all", f"_SYSTEMD_UNIT={unit}"]
        return [json.loads(line) for line in self.box.run(command, check=True).stdout.splitlines()]


def copy_distributions(name: str, site: Path) -> None:
    """Copy what a distribution requires, and what that requires, from this interpreter's environment."""
    waiting, done = [name], set[str]()
    while waiting:
        current = waiting.pop()
        if current in done:
            continue
        done.add(current)
        try:
            found = metadata.distribution(current)
        except metadata.PackageNotFoundError:
            continue  # required on other platforms only
        waiting += [requirement_name(line) for line in found.requires or () if "extra ==" not in line]
        copy_files(found, site)


def requirement_name(line: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", line)
    assert match
    return match[0]


def copy_files(distribution: metadata.Distribution, site: Path) -> None:
    for file in distribution.files or ():
        if ".." in file.parts or file.suffix in (".pth", ".pyc"):
            continue
        target = site / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(distribution.locate_file(file)), target)
