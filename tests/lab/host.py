"""A lab host: one machine's worth of Bulkhead on this kernel.

Its own network namespace, control group subtree, pins, run and state directories, policy repository, and the real agent
as its own process. Programs run inside as they would on a host: started in a control group, judged by the hooks.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bulkhead.control import client
from bulkhead.errors import UnreachableError
from bulkhead.identity.cgroups import find_mount
from lab import puppet
from lab.policies import repository
from lab.puppet import Puppet

PYTHON = sys.executable
CACHE = Path(__file__).parents[2] / ".bulkhead_cache"
"""Of compiled programs, for all lab hosts of this checkout: what is under test is compiled once."""
AGENT_GROUP = "system.slice/bulkhead.service"
PROXY_GROUP = "system.slice/bulkhead-proxy.service"
_REPOSITORY = """apiVersion: bulkhead/v1alpha1
kind: Repository
trustDomain: example.org
defaults: {mode: enforce, mtls: "off"}
"""


class Host:
    """Use as a context manager. Everything it made is gone afterwards, processes ended by id."""

    def __init__(self, name: str = "host", netns: str | None = None, prefer: str = "tcx") -> None:
        self.name = name
        self.directory = Path(tempfile.mkdtemp(prefix=f"bulkhead-lab-{name}-"))
        self.directory.chmod(0o711)  # as /run is: what is below says itself who may
        self.tag = self.directory.name.removeprefix("bulkhead-lab-").replace("_", "-").replace(".", "-").lower()
        self.cgroup = find_mount().mount_point / f"bulkhead-{self.tag}"
        self.pins = Path("/sys/fs/bpf") / f"bh_{self.tag}".replace("-", "_")
        self.repository = self.directory / "policy"
        self.run_dir = self.directory / "run"
        self.netns = f"bh-{self.tag}"[-60:]
        self.prefer = prefer
        self.more_settings: dict[str, object] = {}
        """As in agent.toml, beside those that every lab host has."""
        self.wrap: list[str] = []
        """Command line that the agent is started through, such as `unshare -m …`."""
        self.agent: subprocess.Popen[bytes] | None = None
        self.proxy: subprocess.Popen[bytes] | None = None
        """What keeps Envoy running."""
        self.far: Host | None = None
        """The machine at the other end of eth0, where a test has set one up."""
        self._given_netns = netns
        self._programs: list[subprocess.Popen[Any]] = []

    # Life

    def __enter__(self) -> Self:
        self.cgroup.mkdir()
        _run("ip", "netns", "add", self.netns)
        self.ip("link", "set", "lo", "up")
        _run("git", "init", "-q", "-b", "main", str(self.repository))
        self.commit({"bulkhead.yaml": _REPOSITORY}, "begin")
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.stop_agent()
        if self.proxy is not None:
            self.proxy.terminate()
            self.proxy.wait(20)
        for program in self._programs:
            program.kill()
            program.wait()
            for pipe in (program.stdin, program.stdout, program.stderr):
                with suppress(BrokenPipeError):  # what was not sent has nobody to go to
                    if pipe is not None:
                        pipe.close()
        if self.pins.exists():
            self.bulkhead("detach", check=False)
        for pid in self._members():
            os.kill(pid, signal.SIGKILL)
        _remove_cgroup(self.cgroup)
        _run("ip", "netns", "del", self.netns)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _members(self) -> Iterator[int]:
        for procs in self.cgroup.rglob("cgroup.procs"):
            yield from map(int, procs.read_text().split())

    # Policy

    def commit(self, files: Mapping[str, str], message: str = "change") -> str:
        """Write files, commit them, and return the commit's id."""
        for path, text in files.items():
            target = self.repository / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        git = ["git", "-C", str(self.repository), "-c", "user.name=lab", "-c", "user.email=lab@example.org"]
        _run(*git, "add", "-A")
        _run(*git, "commit", "-q", "--allow-empty", "-m", message)
        return _run(*git, "rev-parse", "HEAD").strip()

    def enforce(self, text: str, hosts: str = "observe", default: str = "enforce") -> str:
        """Commit one policy and wait until it is in force; the commit's id. Raises RuntimeError when it is refused."""
        commit = self.commit({"bulkhead.yaml": repository(hosts, default), "t.yaml": text})
        refused = self.wait_for_commit(commit)["policy"]["error"]
        if refused:
            raise RuntimeError(f"the policy was refused: {refused}")
        return commit

    # Agent

    @property
    def settings(self) -> dict[str, object]:
        """As in agent.toml."""
        return {
            "host": self.name,
            "repository": str(self.repository),
            "cgroup_root": str(self.cgroup),
            "netns": f"/run/netns/{self.netns}",
            "pins": str(self.pins),
            "run_dir": str(self.run_dir),
            "state_dir": str(self.directory / "state"),
            "cache_dir": str(CACHE),
            "metrics_port": 9464,
            "prefer": self.prefer,
        } | self.more_settings

    @property
    def config(self) -> Path:
        """The settings file, written now."""
        path = self.directory / "agent.toml"
        path.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in self.settings.items()))
        return path

    @property
    def agent_command(self) -> list[str]:
        """The agent's command line, in the foreground."""
        return [PYTHON, "-m", "bulkhead.cli.main", "agent", "--config", str(self.config)]

    def run_agent(self, wrap: Sequence[str] = (), **settings: object) -> subprocess.CompletedProcess[str]:
        """Run an agent that is expected to refuse to start, with settings of its own, to its end."""
        path = self.directory / "refused.toml"
        given = {key: value for key, value in (self.settings | settings).items() if value is not None}
        path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in given.items()))
        argv = self.argv(AGENT_GROUP, [*wrap, *self.agent_command[:-1], str(path)])
        return subprocess.run(argv, capture_output=True, text=True, timeout=40, env=_environment())

    def start_agent(self, timeout_s: float = 30.0) -> None:
        """Start the agent and wait until it says that it is ready, as it would say to systemd."""
        path = self.directory / "notify"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(str(path))
            with (self.directory / "agent.log").open("ab") as log:
                self.agent = subprocess.Popen(
                    self.argv(AGENT_GROUP, [*self.wrap, *self.agent_command]),
                    stdout=log,
                    stderr=log,
                    env=_environment() | {"NOTIFY_SOCKET": str(path)},
                )
            self._await_ready(notify, timeout_s)

    def _await_ready(self, notify: socket.socket, timeout_s: float) -> None:
        assert self.agent is not None
        deadline = time.monotonic() + timeout_s
        notify.settimeout(0.1)
        while time.monotonic() < deadline and self.agent.poll() is None:
            try:
                if b"READY=1" in notify.recv(4096):
                    return
            except TimeoutError:
                continue
        raise RuntimeError(f"the agent did not become ready:\n{self.log()}")

    def start_proxy(self) -> None:
        """Start what keeps Envoy running, unless it runs: as its unit, it outlives the agent and waits for its word."""
        if self.proxy is not None and self.proxy.poll() is None:
            return
        (self.directory / "run").mkdir(mode=0o755, exist_ok=True)
        with (self.directory / "proxy.log").open("ab") as log:
            argv = [PYTHON, "-m", "bulkhead.cli.main", "proxy", "--config", str(self.config)]
            self.proxy = self.start(PROXY_GROUP, argv, stdout=log, stderr=log, env=_environment())

    def stop_agent(self, with_signal: int = signal.SIGTERM) -> None:
        """End the agent; enforcement goes on."""
        if self.agent is None:
            return
        self.agent.send_signal(with_signal)
        self.agent.wait(20)
        self.agent = None

    def log(self) -> str:
        """What the agent wrote."""
        path = self.directory / "agent.log"
        return path.read_text() if path.exists() else ""

    def bulkhead(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the command line against this host's agent."""
        command = [PYTHON, "-m", "bulkhead.cli.main", *arguments]
        if arguments and arguments[0] in ("detach", "loader"):
            command += ["--config", str(self.config)]
        else:
            command += ["--run-dir", str(self.run_dir)]
        env = _environment() | {"COLUMNS": "100", "NO_COLOR": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)
        if check and done.returncode not in (0, 1, 4):  # 4: an answer on incomplete data
            raise RuntimeError(f"{arguments} exited {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def call(self, op: str, **args: Any) -> Any:
        """Ask the agent itself, without the command line in between."""
        return client.call(self.run_dir / "control.sock", op, args)

    def ask(self, *arguments: str) -> Any:
        """The data of a command's JSON output."""
        return json.loads(self.bulkhead(*arguments, "-o", "json").stdout)["data"]

    def wait_for_commit(self, commit: str, timeout_s: float = 10.0) -> dict[str, Any]:
        """Block until `commit` is what the agent enforces or refuses; its status then."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            status = self._status()
            if commit in (status.get("commit"), status.get("policy", {}).get("refused_commit")):
                return status
        raise RuntimeError(f"the agent did not take notice of {commit[:7]}:\n{self.log()}")

    def _status(self) -> dict[str, Any]:
        try:
            return dict(self.call("status"))
        except UnreachableError:
            return {}

    # Programs

    def ip(self, *arguments: str) -> str:
        """Run `ip` in the host's network namespace."""
        return _run("ip", "-n", self.netns, *arguments)

    def argv(self, group: str, argv: list[str]) -> list[str]:
        """A command line that runs `argv` in a control group and the network namespace of this host."""
        inner = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
        (self.cgroup / group).mkdir(parents=True, exist_ok=True)
        return ["nsenter", f"--net=/run/netns/{self.netns}", "sh", "-c", inner, str(self.cgroup / group), *argv]

    def start(self, group: str, argv: list[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program in a control group."""
        program = subprocess.Popen(self.argv(group, argv), **options)
        self._programs.append(program)
        return program

    def run(self, group: str, argv: list[str], timeout_s: float = 20.0) -> subprocess.CompletedProcess[str]:
        """Run a program in a control group to its end."""
        return subprocess.run(self.argv(group, argv), capture_output=True, text=True, timeout=timeout_s)

    def python(self, group: str, code: str, timeout_s: float = 20.0) -> subprocess.CompletedProcess[str]:
        """Run Python code in a control group."""
        return self.run(group, [PYTHON, "-c", code], timeout_s)

    def puppet(self, group: str, python: str = PYTHON) -> Puppet:
        """Start a process in a control group that does what it is told (lab/puppet.py)."""
        argv = [python, puppet.__file__]
        return Puppet(self.start(group, argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))

    def serve(self, group: str, code: str) -> subprocess.Popen[str]:
        """Start Python code that prints a line when it is ready to serve."""
        program = self.start(group, [PYTHON, "-uc", code], stdout=subprocess.PIPE, text=True)
        assert program.stdout is not None
        if not program.stdout.readline():
            raise RuntimeError("the server did not start")
        return program


def _toml(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {_toml(one)}' for key, one in value.items())}}}"
    return json.dumps(value)


@contextmanager
def joined(first: Host, second: Host) -> Iterator[tuple[str, str]]:
    """Join two hosts by a veth; yields the interface's addresses, IPv4, first and second."""
    _run("ip", "-n", first.netns, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", second.netns)
    for host, v4, v6 in ((first, "10.77.0.1/24", "fd77::1/64"), (second, "10.77.0.2/24", "fd77::2/64")):
        host.ip("addr", "add", v4, "dev", "eth0")
        host.ip("addr", "add", v6, "dev", "eth0", "nodad")
        host.ip("link", "set", "eth0", "up")
    yield "10.77.0.1", "10.77.0.2"


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)} failed: {done.stderr.strip()}")
    return done.stdout


def _remove_cgroup(root: Path) -> None:
    """Remove a subtree whose processes have been ended; the kernel lets go of them a moment after they are reaped."""
    deadline = time.monotonic() + 5
    directories = sorted((path for path in root.rglob("*") if path.is_dir()), reverse=True)
    for directory in [*directories, root]:
        while directory.exists():
            try:
                directory.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    raise
