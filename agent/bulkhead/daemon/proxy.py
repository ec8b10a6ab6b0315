"""What the agent has to do with the node's Envoy: tells it what to do by files, hears its records, asks its counters.

Neither starts nor ends it: that does bulkhead-proxy (proxyd.py), whose end of an agent changes nothing. Everything that
both touch is in `run_dir/proxy`, which root writes and the proxy's group reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from bulkhead.config import Settings
from bulkhead.dataplane.mesh import Mesh
from bulkhead.errors import UnreachableError
from bulkhead.observe.logs import Log
from bulkhead.observe.requests import RecordReader, RequestRecord
from bulkhead.proxy.admin import ask
from bulkhead.proxy.authorization import next_deadline
from bulkhead.proxy.bootstrap import bootstrap
from bulkhead.proxy.files import publish, render, write
from bulkhead.proxy.node import BOOTSTRAP, ProxyNode
from bulkhead.proxy.running import PROXY_ID, Running, find_envoy, read_running
from bulkhead.proxy.statistics import STATISTICS_PATH, ProxyStatistics, statistics

log = Log()

_ANSWER_BYTES_MAX: Final = 16 << 20
_CHUNK: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class _Wanted:
    mesh: Mesh
    node: ProxyNode
    listeners: Mapping[int, int]


class Proxy:
    """The node's proxy, from the first mesh that needs one on. `on_record` gets every access record."""

    def __init__(self, settings: Settings, on_record: Callable[[RequestRecord], None]) -> None:
        self.binary = find_envoy(settings)
        self.records = RecordReader()
        self._on_record = on_record
        self._directory = settings.run_dir / "proxy"
        self._wanted: _Wanted | None = None
        self._is_written = False
        """Whether the files say what is wanted."""
        self._access: int | None = None
        self._deadline: asyncio.TimerHandle | None = None

    @property
    def running(self) -> Running:
        """What its keeper says of it."""
        return read_running(self._directory / "own")

    @property
    def pid(self) -> int:
        """Of the Envoy that serves; 0: none does."""
        running = self.running
        return running.pid if running.is_alive else 0

    @property
    def error(self) -> str:
        """Why none does; empty: all is well, or nothing is wanted."""
        running = self.running
        if self._wanted is None or running.is_alive:
            return running.error
        return running.error or "bulkhead-proxy does not run: `systemctl start bulkhead-proxy`"

    def publish(self, mesh: Mesh, node: ProxyNode, listeners: Mapping[int, int]) -> None:
        """Make that what the proxy does.

        Raises UnreachableError when the files cannot be written; those before stay in force.
        """
        wanted = _Wanted(mesh, node, dict(listeners))
        if wanted != self._wanted or not self._is_written:
            self._prepare(node)
            self._wanted = wanted
            self._write()

    def stop(self) -> None:
        """The agent ends; the proxy does not."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self._access is not None:
            asyncio.get_running_loop().remove_reader(self._access)
            os.close(self._access)
            self._access = None

    def statistics(self) -> ProxyStatistics:
        """What Envoy has counted since it started. Any thread may. Raises UnreachableError."""
        try:
            return statistics(ask(self._directory / "own" / "admin.sock", STATISTICS_PATH, _ANSWER_BYTES_MAX))
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(f"the proxy does not answer: {error}") from error

    def _prepare(self, node: ProxyNode) -> None:
        """Directories, and the FIFO with its reader: without one, Envoy would wait for it when it opens the FIFO."""
        try:
            for directory, mode in ((node.directory, 0o750), (node.configuration, 0o750), (node.private, 0o770)):
                directory.mkdir(parents=True, exist_ok=True)
                os.chown(directory, -1, PROXY_ID)
                directory.chmod(mode)
            os.utime(node.directory)  # its keeper waits for all of them, and hears of this one
            if not node.access.is_fifo():
                node.access.unlink(missing_ok=True)
                os.mkfifo(node.access)
            os.chown(node.access, -1, PROXY_ID)
            node.access.chmod(0o620)
            if self._access is None:
                self._access = os.open(node.access, os.O_RDWR | os.O_NONBLOCK)
                asyncio.get_running_loop().add_reader(self._access, self._read_records)
        except OSError as error:
            raise UnreachableError(f"cannot prepare the proxy's directory `{node.directory}`: {error}") from error

    def _write(self) -> None:
        assert self._wanted is not None
        mesh, node, now = self._wanted.mesh, self._wanted.node, time.time()
        try:
            publish(node.configuration, render(mesh, node, self._wanted.listeners, now), PROXY_ID)
            write(node.directory / BOOTSTRAP, json.dumps(bootstrap(node), sort_keys=True).encode(), PROXY_ID)
        except OSError as error:
            self._is_written = False
            raise UnreachableError(f"cannot write the proxy's configuration: {error}") from error
        self._is_written = True
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if (deadline := next_deadline(mesh, now)) is not None:
            self._deadline = asyncio.get_running_loop().call_later(deadline - now, self._write_again)

    def _write_again(self) -> None:
        try:
            self._write()
        except UnreachableError as error:
            log.error("a rule has ended, and the proxy cannot be told", cause=str(error))

    def _read_records(self) -> None:
        assert self._access is not None
        with contextlib.suppress(BlockingIOError):
            for record in self.records.feed(os.read(self._access, _CHUNK)):
                self._on_record(record)


def take_down(settings: Settings) -> None:
    """Enforcement ends on this host: the proxy's files go, and its keeper ends it."""
    shutil.rmtree(settings.run_dir / "proxy", ignore_errors=True)
