"""A policy repository of any size, whose first rules are those that the measured traffic needs."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

PORTS_OPEN = "7000-7149"
"""Allowed out of the client and into the server."""
PORTS_OUT = "7000-7199"
"""Allowed out of the client; 7150 and up are refused at the server."""
PORT_CUT = 7010
"""Taken from the client by `withdraw`."""
_RULES_PER_FILE = 1000
_PEERS_PER_FILE = 250
_REPOSITORY = """\
apiVersion: bulkhead/v1alpha1
kind: Repository
trustDomain: bench.example
defaults: {mode: enforce, mtls: "off"}
"""
_POLICY = """\
apiVersion: bulkhead/v1alpha1
kind: Policy
metadata: {name: %s}
"""
_GIT_ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_AUTHOR_NAME": "bench",
    "GIT_AUTHOR_EMAIL": "bench@bench.example",
    "GIT_COMMITTER_NAME": "bench",
    "GIT_COMMITTER_EMAIL": "bench@bench.example",
}


@dataclass(frozen=True, slots=True)
class Repository:
    """A work tree and its repository; `left` are the client's addresses, `right` the server's."""

    path: Path
    left: tuple[str, ...]
    right: tuple[str, ...]

    def create(self, rules: int) -> None:
        """Initialise, with a first commit of that many rules."""
        self.path.mkdir()
        self._git("init", "--quiet", "--initial-branch=main")
        self.write(rules)
        self.commit()

    def write(self, rules: int, *, withdraw: bool = False, odd_port: int = 0, first_port: int = 10000) -> None:
        """Make the work tree hold `rules` rules. `odd_port` is one more port of one rule: a one-line change.

        Another `first_port` makes every line but a few another one.
        """
        for name in ("filler", "bench.yaml"):
            target = self.path / name
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        (self.path / "bulkhead.yaml").write_text(_REPOSITORY)
        (self.path / "bench.yaml").write_text(self._traffic(withdraw, odd_port))
        (self.path / "filler").mkdir()
        for number, first in enumerate(range(2, rules, _RULES_PER_FILE)):
            text = _filler(number, min(_RULES_PER_FILE, rules - first), first_port)
            (self.path / "filler" / f"filler-{number:03}.yaml").write_text(text)

    def commit(self) -> str:
        """Commit the work tree; its name."""
        self._git("add", "--all")
        self._git("commit", "--quiet", "--message", "bench")
        return self._git("rev-parse", "HEAD")

    def prepare(self) -> str:
        """As `commit`, but no reference moves yet: see `publish`."""
        self._git("add", "--all")
        return self._git("commit-tree", self._git("write-tree"), "-p", "HEAD", "-m", "bench")

    def publish(self, commit: str) -> None:
        """Move the branch."""
        self._git("update-ref", "refs/heads/main", commit)

    def _traffic(self, withdraw: bool, odd_port: int) -> str:
        out = f'"7000-{PORT_CUT - 1}", "{PORT_CUT + 1}-7199"' if withdraw else f'"{PORTS_OUT}"'
        into = f'"{PORTS_OPEN}", {odd_port}' if odd_port else f'"{PORTS_OPEN}"'
        return (
            _POLICY % "bench"
            + "workloads:\n"
            + "  client: {match: {cgroup: /client}}\n"
            + "  server: {match: {cgroup: /server}}\n"
            + f"externals:\n  left: {{cidr: [{', '.join(self.left)}]}}\n  right: {{cidr: [{', '.join(self.right)}]}}\n"
            + "allow:\n"
            + f"  - {{name: out, from: client, to: right, ports: [{out}]}}\n"
            + f"  - {{name: in, from: left, to: server, ports: [{into}]}}\n"
        )

    def _git(self, *arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(self.path), *arguments],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, **_GIT_ENVIRONMENT},
        )
        return done.stdout.strip()


def _filler(number: int, rules: int, first_port: int) -> str:
    """Rules of one file: every one of its peers may reach one port after the other."""
    peers = [
        f"  peer-{peer}: {{cidr: [100.{64 + number // 256}.{number % 256}.{peer}/32]}}\n"
        for peer in range(min(rules, _PEERS_PER_FILE))
    ]
    allows = [
        f"  - {{name: rule-{rule}, from: peer-{rule % _PEERS_PER_FILE}, to: bench/server, "
        f"ports: [{first_port + rule // _PEERS_PER_FILE}]}}\n"
        for rule in range(rules)
    ]
    return _POLICY % f"filler-{number}" + "externals:\n" + "".join(peers) + "allow:\n" + "".join(allows)
