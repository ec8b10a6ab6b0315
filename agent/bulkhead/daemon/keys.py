"""The agent's end of bulkhead-keys: starts the process with the private key, asks it, restarts it when it dies."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bulkhead.config import Settings, dump
from bulkhead.errors import UnreachableError
from bulkhead.kernel.wire import KEYS_BYTES
from bulkhead.observe.logs import Log
from bulkhead.policy.nodes import KEY_BYTES, Node

log = Log()

_HEAD_BYTES_MAX: Final = 1 << 20
_BODY_BYTES_MAX: Final = 64 << 20
_ANSWER_S: Final = 10.0
_RESTART_S: Final = (0.2, 1.0, 5.0, 15.0)
"""Pause before each restart in a row."""


@dataclass(frozen=True, slots=True)
class OwnKey:
    """This node's key, as far as anybody but its process may know it."""

    public: bytes
    ephemeral: bool
    """It was made for this run of the process, and ends with it."""
    locked: bool
    """It cannot be swapped out."""


@dataclass(frozen=True, slots=True)
class Derived:
    """Keys of a pair of nodes for some epochs."""

    nodes: tuple[Node, ...]
    """Those that `values` has keys of, in its order."""
    values: bytes
    weak: tuple[str, ...]
    """Names of nodes with whose public key nothing secret would be shared."""


class KeyProcess:
    """Keeps one bulkhead-keys process running, where this node is to have a key at all."""

    def __init__(self, settings: Settings) -> None:
        self.is_wanted = settings.speaks
        self.on_change: Callable[[], None] = lambda: None
        """Called when there is an own key, another one, or a reason why there is none."""
        self.own: OwnKey | None = None
        """None: not known yet. Stays while the process is restarted."""
        self.error = "" if self.is_wanted else "no `node_key` is set"
        """Why it cannot be asked now."""
        self.pid = 0
        """0: it does not run."""
        self.restarts = 0
        self._settings = settings
        self._writer: asyncio.StreamWriter | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._asking = asyncio.Lock()
        self._answer: asyncio.Future[tuple[dict[str, Any], bytes]] | None = None
        self._asked = 0

    def start(self) -> None:
        """Start the process and go on in the background; nothing where no key is wanted."""
        if self.is_wanted:
            self._task = asyncio.create_task(self._keep_running(), name="key-process")

    async def stop(self) -> None:
        """End the process."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()

    async def derive(self, domain: str, own: Node, peers: Sequence[Node], epochs: range) -> Derived:
        """The keys that `own` shares with each of `peers`, all of which have a public key. Raises UnreachableError."""
        request = {
            "op": "derive",
            "domain": domain,
            "name": own.name,
            "number": own.number,
            "first": epochs.start,
            "count": len(epochs),
            "peers": [[peer.name, peer.number, (peer.key or b"").hex()] for peer in peers],
        }
        async with self._asking:
            head, values = await self._ask(request)
        weak = tuple(map(str, head.get("weak", ())))
        nodes = tuple(peer for peer in peers if peer.name not in weak)
        if len(values) != len(nodes) * len(epochs) * KEYS_BYTES:
            raise UnreachableError("the key process answered with another number of keys than were asked for")
        return Derived(nodes, values, weak)

    async def _ask(self, request: dict[str, object]) -> tuple[dict[str, Any], bytes]:
        if self._writer is None:
            raise UnreachableError(self.error or "the key process has not started yet")
        self._asked += 1
        self._answer = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(json.dumps(request | {"id": self._asked}).encode() + b"\n")
            return await asyncio.wait_for(self._answer, _ANSWER_S)
        except TimeoutError:
            raise UnreachableError("the key process did not answer in time") from None
        finally:
            self._answer = None

    async def _keep_running(self) -> None:
        failures = 0
        while True:
            try:
                reader = await self._spawn()
                while True:
                    self._hear(*await _read_message(reader))
                    failures = 0
            except (asyncio.IncompleteReadError, ConnectionError, ValueError, OSError) as error:
                self._ended(self.error or f"the key process ended: {error}")
            finally:
                self._close()
            await asyncio.sleep(_RESTART_S[min(failures, len(_RESTART_S) - 1)])
            failures += 1
            self.restarts += 1

    def _hear(self, head: dict[str, Any], body: bytes) -> None:
        kind = head.get("kind")
        if kind == "own":
            self.error = ""
            self._own(OwnKey(bytes.fromhex(head["key"]), head["ephemeral"] is True, head["locked"] is True))
        elif kind == "failed":
            self._ended(str(head.get("error", "")))
        elif kind == "keys" and self._answer is not None and not self._answer.done() and head["id"] == self._asked:
            self._answer.set_result((head, body))

    def _own(self, own: OwnKey) -> None:
        if len(own.public) != KEY_BYTES:
            raise ValueError("a public key of another length")
        if self.own is None or own.public != self.own.public:
            log.info("the node's key is there", public=own.public.hex(), ephemeral=own.ephemeral)
        self.own = own
        self.on_change()

    def _ended(self, why: str) -> None:
        """Tell of it once: what it refuses is refused again at each restart."""
        if why != self.error:
            log.error("the node's key cannot be used; what is enforced stays in force", cause=why)
            self.error = why
        self.on_change()

    async def _spawn(self) -> asyncio.StreamReader:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-B", "-m", "bulkhead.keyd", str(theirs.fileno()), dump(self._settings)),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                env={key: value for key, value in os.environ.items() if key not in ("NOTIFY_SOCKET", "WATCHDOG_USEC")},
            )
        self.pid = self._process.pid
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=_HEAD_BYTES_MAX)
        return reader

    def _close(self) -> None:
        self.pid = 0
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(UnreachableError("the key process ended"))


async def _read_message(reader: asyncio.StreamReader) -> tuple[dict[str, Any], bytes]:
    head = json.loads(await reader.readuntil(b"\n"))
    size = head.get("bytes") if isinstance(head, dict) else None
    if not isinstance(size, int) or not 0 <= size <= _BODY_BYTES_MAX:
        raise ValueError("the key process sent a message without a proper size")
    return head, await reader.readexactly(size)
