"""How the demo looks: acts, commands as somebody would type them, and what they really printed."""

from __future__ import annotations

import os
import pty
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

READING_S = 1.3
"""A pause for whoever watches; there is none when nobody does."""
PACED_S = 42.0
"""From here on the show hurries, so that it stays under a minute on a slow machine."""
WIDTH = 100
INTRODUCTION = """\
One host: nginx -> a Python HTTP API -> Redis, and a rogue process, each in a control group of its own.
It is a network namespace and a control group subtree; nothing else on this machine is touched.
The prompt tells in which control group a command runs; the operator's `bulkhead` is told this host's --run-dir."""


class Stage:
    """Writes to standard output; in colour and at reading pace on a terminal only."""

    def __init__(self) -> None:
        self.is_live = os.isatty(1)
        self._console = Console(
            width=None if self.is_live else WIDTH, highlight=False, markup=False, emoji=False, soft_wrap=True
        )
        self._started = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Since the show began."""
        return time.monotonic() - self._started

    def begin(self) -> None:
        """What is about to be seen."""
        self._console.print(Text(INTRODUCTION))

    def act(self, title: str) -> None:
        """Begin a part."""
        self._console.print()
        self._console.print(Rule(Text(title, style="bold"), align="left", style="cyan"))

    def say(self, text: str) -> None:
        """A sentence to whoever watches."""
        self._console.print()
        self._console.print(Text(text, style="italic"))
        self._pause()

    def typed(self, who: str, command: str) -> None:
        """A command line, and in which control group it runs."""
        sign = "#" if who == "operator" else "$"
        self._console.print(Text.assemble((f"{who}{sign} ", "cyan"), (command, "bold")))

    def printed(self, lines: Iterable[str]) -> None:
        """What a program printed, as it is, a little to the right."""
        for line in lines:
            self._console.print(Text("  ") + Text.from_ansi(line.rstrip()))

    def shown(self, who: str, command: str, done: subprocess.CompletedProcess[str]) -> str:
        """A command and its output, which is returned."""
        self.typed(who, command)
        self.printed((done.stdout + (done.stderr or "")).splitlines())
        self._pause()
        return done.stdout

    def run(self, argv: list[str], cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, on a terminal if we are on one, so that it shows its colours."""
        env = env | {"COLUMNS": str(self._console.width - 2)}
        if not self.is_live:
            return subprocess.run(argv, capture_output=True, text=True, cwd=cwd, env=env, timeout=30)
        ours, theirs = pty.openpty()
        with subprocess.Popen(argv, stdout=theirs, stderr=theirs, cwd=cwd, env=env) as process:
            os.close(theirs)
            written = _read_all(ours)
        return subprocess.CompletedProcess(argv, process.returncode, written, "")

    def _pause(self) -> None:
        if self.is_live and self.elapsed_s < PACED_S:
            time.sleep(READING_S)


def _read_all(terminal: int) -> str:
    """Everything written to a terminal until its last user closes it, which the kernel reports as an error."""
    chunks: list[bytes] = []
    with open(terminal, "rb", buffering=0) as reader:
        while True:
            try:
                chunk = reader.read(65536)
            except OSError:
                break
            if not chunk:
                break
            chunks.append(chunk)
    return b"".join(chunks).decode(errors="replace").replace("\r\n", "\n")
