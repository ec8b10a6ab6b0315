"""Settings of the agent: where things are. Defaults are the host's; a lab gives each of its hosts its own."""

from __future__ import annotations

import socket
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from bulkhead.errors import UnreachableError, UsageError

DEFAULT_FILE = Path("/etc/bulkhead/agent.toml")
DEFAULT_RUN_DIR = Path("/run/bulkhead")


@dataclass(frozen=True, slots=True)
class Settings:
    """One agent's settings, as in `agent.toml`; every key is optional."""

    host: str = field(default_factory=socket.gethostname)
    """Name that `host:` selectors are compared with."""
    repository: Path = Path("/etc/bulkhead/policy")
    """The policy repository, bare or not. Only commits are read, never a work tree."""
    ref: str = "HEAD"
    """What to enforce: a branch, a tag or a commit."""
    cgroup_root: Path | None = None
    """Control group below which sockets are judged; None: the root of the machine's cgroup2 hierarchy."""
    netns: Path | None = None
    """Network namespace to enforce in; None: the agent's own."""
    pins: Path = Path("/sys/fs/bpf/bulkhead")
    """Directory on a BPF file system for everything that outlives the agent."""
    run_dir: Path = DEFAULT_RUN_DIR
    """For the control socket and what goes with the pins."""
    state_dir: Path = Path("/var/lib/bulkhead")
    """For what survives a reboot: the last good policy and the flow log."""
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 9464
    """0: no metrics endpoint."""
    prefer: str = "tcx"
    """`tcx` where the kernel has it, or `clsact` to force filters."""
    observe_only: bool = False
    """Never drop, whatever policy says: every workload and the host are in observe mode."""

    @property
    def control_socket(self) -> Path:
        """Where the command line finds the agent."""
        return self.run_dir / "control.sock"

    @property
    def lock(self) -> Path:
        """Held by the agent as long as it runs."""
        return self.run_dir / "agent.lock"

    @property
    def hit_slots(self) -> Path:
        """Which kernel counter belongs to which rule; goes with the pins."""
        return self.run_dir / "hits.json"

    @property
    def saved_bundle(self) -> Path:
        """The last good policy, compiled."""
        return self.state_dir / "bundle"

    @property
    def generations(self) -> Path:
        """Which commit each generation was, a JSON line each."""
        return self.state_dir / "generations.jsonl"

    @property
    def saved_flows(self) -> Path:
        """The flow log over a restart."""
        return self.state_dir / "flows.json"


def load(path: Path | None = None, **overrides: Any) -> Settings:
    """Settings from `path` (the default file may be absent), then from `overrides` that are not None.

    Raises UsageError for an unknown key or a value of the wrong type, UnreachableError for a file that is not there.
    """
    given = _read(path) if path is not None else (_read(DEFAULT_FILE) if DEFAULT_FILE.exists() else {})
    given |= {key: value for key, value in overrides.items() if value is not None}
    known = {one.name: one for one in fields(Settings)}
    for key in given:
        if key not in known:
            raise UsageError(f"unknown setting `{key}`: known are {', '.join(sorted(known))}")
    return _checked(replace(Settings(), **{key: _converted(key, value) for key, value in given.items()}))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnreachableError(f"cannot read the settings `{path}`: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"the settings `{path}` are not valid TOML: {error}") from error


_PATHS = ("repository", "cgroup_root", "netns", "pins", "run_dir", "state_dir")
_TYPES: dict[str, type] = {"metrics_port": int, "observe_only": bool}


def _converted(key: str, value: Any) -> Any:
    if key in _PATHS:
        if not isinstance(value, str | Path):
            raise UsageError(f"the setting `{key}` is a path, not `{value!r}`")
        return Path(value)
    wanted = _TYPES.get(key, str)
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise UsageError(f"the setting `{key}` takes a {wanted.__name__}, not `{value!r}`")
    return value


def _checked(settings: Settings) -> Settings:
    if settings.prefer not in ("tcx", "clsact"):
        raise UsageError(f"the setting `prefer` is `tcx` or `clsact`, not `{settings.prefer}`")
    if not 0 <= settings.metrics_port <= 65535:
        raise UsageError(f"the setting `metrics_port` is 0..65535, not `{settings.metrics_port}`")
    return settings
