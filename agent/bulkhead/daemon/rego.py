"""The agent's end of bulkhead-regod: the socket that Envoy asks at, the modules in force, and what came of requests."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from bulkhead.daemon.child import Child, Kind
from bulkhead.errors import UnreachableError
from bulkhead.observe.logs import Log
from bulkhead.policy.rego_modules import RegoModule

log = Log()

_REGOD: Final = Kind("the Rego process", "bulkhead.regod", body_bytes_max=0, options=("-B",))
_BACKLOG: Final = 128


class RegoProcess:
    """Keeps one bulkhead-regod running from the first commit with Rego on; Envoy's requests are refused without it.

    The socket is the agent's, so that it is there whatever becomes of the process: who asks meanwhile waits.
    """

    def __init__(self, path: Path, group: int = 0) -> None:
        """`path` is Envoy's end; `group` is who may ask at it, as which Envoy runs."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when `status` has changed."""
        self.commit = ""
        """Of the modules that are in force."""
        self.packages: tuple[str, ...] = ()
        self.error = ""
        """Why nothing is judged."""
        self._path = path
        self._group = group
        self._listening: socket.socket | None = None
        self._child: Child | None = None
        self._wanted: tuple[str, tuple[RegoModule, ...]] = ("", ())
        self._told: dict[str, Any] = {}

    @property
    def pid(self) -> int:
        """0: it does not run."""
        return self._child.pid if self._child else 0

    def publish(self, commit: str, modules: Sequence[RegoModule]) -> None:
        """Judge by these from now on. The process starts with the first, and goes on without any.

        What goes wrong is in `error`, and every request that needs Rego refused.
        """
        self._wanted = (commit, tuple(modules))
        if self._child is None and modules:
            self._start()
        elif self._child is not None and self._child.is_running:
            self._give()

    async def stop(self) -> None:
        """End the process, and take the socket away."""
        if self._child is not None:
            await self._child.stop()
            self._child = None
        if self._listening is not None:
            self._listening.close()
            self._listening = None
            self._path.unlink(missing_ok=True)

    def status(self) -> dict[str, Any]:
        """As JSON: whether it runs, what is in force, `decisions` and `latency` since the process started."""
        return {
            "running": bool(self.pid),
            "restarts": self._child.restarts if self._child else 0,
            "commit": self.commit,
            "packages": list(self.packages),
            "error": self.error or self._told.get("error", ""),
            "decisions": self._told.get("decisions", []),
            "latency": self._told.get("latency", {}),
            "ended": self._told.get("ended", 0),
        }

    def _start(self) -> None:
        try:
            self._listening = _listen(self._path, self._group)
        except OSError as error:
            self._fail(f"no socket for Envoy at `{self._path}`: {error.strerror or error}")
            return
        number = self._listening.fileno()
        self._child = Child(_REGOD, lambda: [str(number)], self._hear, self._ended, descriptors=(number,))
        self._child.start()

    def _give(self) -> None:
        commit, modules = self._wanted
        body = json.dumps([[module.path, module.text] for module in modules]).encode()
        if self._child is not None:
            try:
                self._child.send({"op": "modules", "commit": commit}, body)
            except UnreachableError as error:
                self.error = str(error)  # it asks again when it has been restarted

    async def _hear(self, head: dict[str, Any], _: bytes) -> None:
        kind = head.get("kind")
        if kind == "ready":
            self._give()
        elif kind == "loaded":
            self.commit, self.packages, self.error = head["commit"], tuple(head["packages"]), ""
            log.info("Rego is in force", commit=self.commit, packages=len(self.packages))
            self.on_change()
        elif kind == "failed":
            self._fail(str(head["error"]))
        elif kind == "status":
            self._told = head
            self.on_change()

    def _ended(self, why: str) -> None:
        self._told = {}
        self._fail(why)

    def _fail(self, why: str) -> None:
        if why != self.error:
            log.error("Rego cannot be judged; requests that need it are refused", cause=why)
        self.commit, self.packages, self.error = "", (), why
        self.on_change()


def _listen(path: Path, group: int) -> socket.socket:
    """A Unix socket that `group` and root may connect to."""
    path.unlink(missing_ok=True)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o117)
    try:
        made.bind(str(path))
        os.chown(path, -1, group)
        made.listen(_BACKLOG)
    except BaseException:
        made.close()
        raise
    finally:
        os.umask(before)
    return made
