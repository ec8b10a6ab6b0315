"""The agent's end of bulkhead-keys: starts the process with the private key, asks it, restarts it when it dies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bulkhead.config import Settings, dump
from bulkhead.daemon.child import Child, Kind
from bulkhead.errors import UnreachableError
from bulkhead.kernel.wire import KEYS_BYTES
from bulkhead.observe.logs import Log
from bulkhead.policy.nodes import KEY_BYTES, Node

log = Log()

_ANSWER_S: Final = 10.0
_KIND: Final = Kind("the key process", "bulkhead.keyd", body_bytes_max=64 << 20, options=("-B",))


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
        self._settings = settings
        self._child = Child(_KIND, lambda: (dump(settings),), self._hear, self._child_ended)
        self._asking = asyncio.Lock()
        self._answer: asyncio.Future[tuple[dict[str, Any], bytes]] | None = None
        self._asked = 0

    @property
    def pid(self) -> int:
        """0: it does not run."""
        return self._child.pid

    @property
    def restarts(self) -> int:
        """How often it had to be started again."""
        return self._child.restarts

    def start(self) -> None:
        """Start the process and go on in the background; nothing where no key is wanted."""
        if self.is_wanted:
            self._child.start()

    async def stop(self) -> None:
        """End the process."""
        await self._child.stop()

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
        if not self._child.is_running:
            raise UnreachableError(self.error or "the key process has not started yet")
        self._asked += 1
        self._answer = self._child.promise()
        try:
            self._child.send_line(request | {"id": self._asked})
            return await self._child.kept(self._answer, _ANSWER_S)
        finally:
            self._answer = None

    async def _hear(self, head: dict[str, Any], body: bytes) -> None:
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

    def _child_ended(self, why: str) -> None:
        self._ended(self.error or why)
