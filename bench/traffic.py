"""Runs traffic.c and http.c: the servers and clients whose conversations are timed."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab.netns import Namespace

_SOURCES = Path(__file__).parent
_ANSWER_S = 120


@dataclass(frozen=True, slots=True)
class Traffic:
    """The compiled program, and the CPU on which everything it does is done; a negative one is any."""

    program: Path
    cpu: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process of the benchmark runs; `cgroup` None: where the benchmark itself is."""

    namespace: Namespace
    cgroup: Path | None


class Session:
    """A client or server that is running, spoken to line by line."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def read(self) -> list[int]:
        """The numbers of its next line; none for `ready`. Raises RuntimeError when it ended or fell silent."""
        output = self._process.stdout
        if output is None or not select.select([output], [], [], _ANSWER_S)[0]:
            raise RuntimeError("the traffic program does not answer")
        line = output.readline()
        if not line:
            raise RuntimeError(f"the traffic program ended with status {self._process.wait()}")
        return [] if line == b"ready\n" else [int(number) for number in line.split()]

    def ask(self, number: int) -> list[int]:
        """Have it do so much, and its answer."""
        if self._process.stdin is None:
            raise RuntimeError("the traffic program was started without an input")
        self._process.stdin.write(f"{number}\n".encode())
        self._process.stdin.flush()
        return self.read()


def build(directory: Path, name: str = "traffic") -> Traffic:
    """Compile, for the last CPU of those that we may use."""
    program, source = directory / name, _SOURCES / f"{name}.c"
    subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-o", str(program), str(source)], check=True)
    return Traffic(program, max(os.sched_getaffinity(0)))


@contextmanager
def start(traffic: Traffic, place: Place, command: str, address: str, port: int, number: int = 0) -> Iterator[Session]:
    """A server, or a client that takes orders; ready when the block is entered, ended when it is left."""
    with place.namespace.entered():
        process = subprocess.Popen(
            _arguments(traffic, place, command, address, port, number), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
    session = Session(process)
    try:
        yield session
    finally:
        process.kill()
        process.communicate()


@contextmanager
def ready(traffic: Traffic, place: Place, command: str, address: str, port: int, number: int = 0) -> Iterator[Session]:
    """As `start`, and it has said that it is ready."""
    with start(traffic, place, command, address, port, number) as session:
        session.read()
        yield session


def run(traffic: Traffic, place: Place, command: str, address: str, port: int, number: int) -> list[int]:
    """A client that does so much and ends: the numbers it prints."""
    with start(traffic, place, command, address, port, number) as session:
        return session.read()


def _arguments(traffic: Traffic, place: Place, command: str, address: str, port: int, number: int) -> list[str]:
    procs = str(place.cgroup / "cgroup.procs") if place.cgroup else ""
    return [str(traffic.program), str(traffic.cpu), procs, command, address, str(port), str(number)]
