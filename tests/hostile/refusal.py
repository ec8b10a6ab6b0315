"""What becomes of a hostile repository, judged by the real command in a process of its own, measured."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lab.host import PYTHON

_AGENT = Path(__file__).parents[2] / "agent"
_ADDRESS_SPACE_BYTES = 4 << 30
_TIMEOUT_S = 180


@dataclass(frozen=True, slots=True)
class Refusal:
    """How `bulkhead lint` ended, and what it took."""

    returncode: int
    codes: list[str]
    """Of all findings, in order."""
    stdout: str
    stderr: str
    cpu_s: float
    """Of the command and of the git processes it ran."""
    memory_bytes: int
    """Most that any of them held at once."""

    @property
    def refused(self) -> bool:
        """Whether it ended as one that says no on purpose."""
        said = "Traceback" not in self.stderr and "Error:" not in self.stderr
        return self.returncode in (2, 3) and said and (bool(self.codes) or bool(self.stderr))


def lint(place: Path, revision: str | None = None) -> Refusal:
    """Lint a directory, or a commit of a repository."""
    command = [PYTHON, "-m", "bulkhead.cli.main", "lint", str(place), "-o", "json"]
    command += [] if revision is None else [f"--rev={revision}"]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, preexec_fn=_limit, env=_environment()
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read())
    codes = [one["code"] for one in json.loads(texts[0])["data"]] if texts[0] else []
    spent = usage.ru_utime + usage.ru_stime
    return Refusal(process.returncode, codes, *texts, spent, usage.ru_maxrss * 1024)


def _limit() -> None:
    """A command that loses its way ends by itself."""
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE_BYTES, _ADDRESS_SPACE_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (_TIMEOUT_S, _TIMEOUT_S))


def _environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(_AGENT), "HOME": "/nonexistent"}
