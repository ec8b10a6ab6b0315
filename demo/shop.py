"""The shop: real programs in control groups of a host of their own, and a world outside that host."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lab.host import Host

HERE = Path(__file__).resolve().parent
POLICIES = HERE.parent / "policies"
PYTHON = "/usr/bin/python3"
WEB, API, CACHE = "shop/web", "shop/api", "shop/cache"

Done = subprocess.CompletedProcess[str]
Program = subprocess.Popen[str]


class Shop:
    """nginx -> a Python HTTP API -> Redis, started in the order in which they need each other."""

    def __init__(self, host: Host) -> None:
        self.host = host
        # Servers that gave up root still have to reach their own directories.
        host.directory.chmod(0o711)
        self._start_redis()
        self._start_api()
        self._nginx = self._start_nginx()

    def commit_policy(self) -> str:
        """Make the repository from `policies/`; returns the commit."""
        files = {path.name: path.read_text() for path in sorted(POLICIES.glob("*.yaml"))}
        return self.host.commit(files, "the shop: web -> api -> cache, and nothing else")

    def run(self, group: str, *argv: str) -> Done:
        """Run a program to its end in a control group, as nobody."""
        return self.host.run(group, [*_as("nobody", "nogroup"), *argv])

    def start(self, group: str, *argv: str) -> Program:
        """Start a program whose output is to be read, as nobody."""
        argv = (*_as("nobody", "nogroup"), *argv)
        return self._start(group, *argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def nginx_says(self, part: str) -> str:
        """Wait for a line with `part` in nginx's error log."""
        return wait_for_line(self._nginx.stderr, part)

    def _start_redis(self) -> None:
        place = self._directory("redis")
        shutil.chown(place, "redis")
        options = ["--bind", "127.0.0.1", "--port", "6379", "--save", "", "--appendonly", "no", "--dir", str(place)]
        redis = self._start(CACHE, *_as("redis", "redis"), "redis-server", *options, stdout=subprocess.PIPE)
        wait_for_line(redis.stdout, "Ready to accept connections")

    def _start_api(self) -> None:
        with _source("api.py") as source:
            api = self._start(API, *_as("nobody", "nogroup"), PYTHON, "-u", "-", stdin=source, stdout=subprocess.PIPE)
        wait_for_line(api.stdout, "ready")

    def _start_nginx(self) -> Program:
        argv = ["nginx", "-e", "stderr", "-p", f"{self._directory('nginx')}/", "-c", str(HERE / "nginx.conf")]
        nginx = self._start(WEB, *argv, stderr=subprocess.PIPE)
        wait_for_line(nginx.stderr, "start worker process ")
        return nginx

    def _start(self, group: str, *argv: str, **options: Any) -> Program:
        # A session of its own: a terminal's Ctrl-C is for the demo, which then ends its programs.
        program: Program = self.host.start(group, list(argv), text=True, start_new_session=True, **options)
        return program

    def _directory(self, name: str) -> Path:
        place = self.host.directory / name
        place.mkdir()
        return place


class World:
    """Another network namespace, joined to the host's by a veth: `ADDRESS` answers on port 80."""

    ADDRESS = "203.0.113.10"
    SHOP = "203.0.113.1"
    """The host's address as the world sees it."""

    def __init__(self, netns: str) -> None:
        self._enter = ["nsenter", f"--net=/run/netns/{netns}"]

    def run(self, *argv: str) -> Done:
        """Run a program out there to its end."""
        return subprocess.run([*self._enter, *argv], capture_output=True, text=True, timeout=20)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """With somebody there who answers."""
        with _source("world.py") as source:
            server = subprocess.Popen(
                [*self._enter, *_as("nobody", "nogroup"), PYTHON, "-u", "-"],
                stdin=source,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        try:
            wait_for_line(server.stdout, "ready")
            yield
        finally:
            server.kill()
            server.communicate()


@contextmanager
def world_outside(host: Host) -> Iterator[World]:
    """A world for `host`, gone afterwards."""
    netns = f"{host.netns}-world"
    _ip("netns", "add", netns)
    try:
        host.ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", netns)
        for namespace, address in ((host.netns, World.SHOP), (netns, World.ADDRESS)):
            _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", namespace, "link", "set", "eth0", "up")
        # Below 1024 for somebody who is not root.
        world = World(netns)
        world.run("sysctl", "-q", "-w", "net.ipv4.ip_unprivileged_port_start=0")
        with world.serving():
            yield world
    finally:
        _ip("netns", "del", netns)


def wait_for_line(stream: IO[str] | None, part: str) -> str:
    """Read up to a line that contains `part`, and return it. Raises RuntimeError when the stream ends before."""
    seen: list[str] = []
    for line in stream or ():
        seen.append(line)
        if part in line:
            return line.rstrip()
    raise RuntimeError(f"a program ended before it said `{part}`:\n{''.join(seen)}")


def _source(name: str) -> IO[str]:
    # Programs come from standard input: the checkout may be where only root can read.
    return (HERE / name).open(encoding="utf-8")


def _as(user: str, group: str) -> list[str]:
    return ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups"]


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)} failed: {done.stderr.strip()}")
