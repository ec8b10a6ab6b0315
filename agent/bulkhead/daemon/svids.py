"""The agent's end of bulkhead-svids: starts it, tells it whom to serve, and answers who a caller is."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bulkhead.config import Settings, dump
from bulkhead.daemon.child import Child, Kind
from bulkhead.errors import RefusedError, UnreachableError
from bulkhead.observe.logs import Log
from bulkhead.svid.svids import Attested, Workload

log = Log()

_ANSWER_S: Final = 10.0
_BACKLOG: Final = 512
_KIND: Final = Kind("the identity process", "bulkhead.svidd", body_bytes_max=64 << 20, options=("-B",))


@dataclass(frozen=True, slots=True)
class OwnAnchor:
    """The certificate of this node's authority, which other nodes need in its record."""

    certificate: bytes
    """DER."""
    ephemeral: bool
    """It was made for this run of the process, and ends with it."""
    locked: bool
    """Keys cannot be swapped out."""


@dataclass(frozen=True, slots=True)
class Identities:
    """What bulkhead-svids serves."""

    trust_domain: str
    workloads: Sequence[Workload]
    """Of this node."""
    anchors: Mapping[str, Sequence[bytes]]
    """DER certificates of the authorities of all nodes that count, by their names."""
    federated: Mapping[str, str]
    """SPIFFE bundle documents by trust domain, as policy has them."""
    lifetime_s: float
    """Of an X.509-SVID."""

    def dump(self) -> bytes:
        """As the process takes it."""
        fields = {
            "trust_domain": self.trust_domain,
            "workloads": [
                {"spiffe_id": one.spiffe_id, "name": one.name, "pid": one.pid, "selectors": one.selectors}
                for one in self.workloads
            ],
            "anchors": {name: [base64.b64encode(one).decode() for one in own] for name, own in self.anchors.items()},
            "federated": dict(self.federated),
            "lifetime_s": self.lifetime_s,
        }
        return json.dumps(fields).encode()


class SvidProcess:
    """Keeps one bulkhead-svids process running, behind a socket that outlives it.

    `attest` says who a process is, by its number in the agent's pid namespace. It raises nothing.
    """

    def __init__(self, settings: Settings, attest: Callable[[int], Attested]) -> None:
        self.on_change: Callable[[], None] = lambda: None
        """Called when there is an own anchor, another one, or a reason why there is none."""
        self.on_status: Callable[[], None] = lambda: None
        """Called when `status` is different."""
        self.own: OwnAnchor | None = None
        """None: not known yet. Stays while the process is restarted."""
        self.error = ""
        """Why it cannot be asked now."""
        self._settings = settings
        self._attest = attest
        self._listener: socket.socket | None = None
        self._child: Child | None = None
        self._identities = b""
        self._status: dict[str, Any] = {}
        self._answers: dict[int, asyncio.Future[bytes]] = {}
        self._asked = 0
        self._is_awake = False

    @property
    def pid(self) -> int:
        """0: it does not run."""
        return self._child.pid if self._child is not None else 0

    @property
    def restarts(self) -> int:
        """How often it had to be started again."""
        return self._child.restarts if self._child is not None else 0

    def start(self, *, at_once: bool = True) -> None:
        """Open the socket, and start the process `at_once` or when somebody calls. Raises RefusedError without one."""
        self._listener = _listen(str(self._settings.workload_socket))
        number = self._listener.fileno()
        self._child = Child(
            _KIND,
            lambda: (str(number), dump(self._settings)),
            self._hear,
            self._ended,
            self.attest_again,
            descriptors=(number,),
        )
        if at_once:
            self.wake()
        else:
            asyncio.get_running_loop().add_reader(number, self.wake)

    def wake(self) -> None:
        """Start the process, unless it was started: somebody needs identities."""
        if self._child is not None and self._listener is not None and not self._is_awake:
            self._is_awake = True
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._child.start()

    async def stop(self) -> None:
        """End the process, and close the socket."""
        if self._child is not None:
            await self._child.stop()
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
            self._settings.workload_socket.unlink(missing_ok=True)

    def publish(self, identities: Identities) -> None:
        """What is to be served from now on, by every process to come too."""
        text = identities.dump()
        if text != self._identities:
            self._identities = text
            self.attest_again()

    def attest_again(self) -> None:
        """Have it ask anew who each of its subscribers is: somebody is another now, or nobody."""
        if self._identities and self._child is not None and self._child.is_running:
            self._child.send({"op": "state"}, self._identities)

    def status(self) -> dict[str, Any]:
        """What the process said last of itself, and of how it runs; times in Unix seconds."""
        return self._status | {
            "process": self.pid or None,
            "restarts": self.restarts,
            "problem": self.error or self._status.get("error", ""),
            "socket": str(self._settings.workload_socket),
            "authority": self._authority(),
        }

    def _authority(self) -> dict[str, Any] | None:
        if self.own is None:
            return None
        return {
            "certificate": base64.b64encode(self.own.certificate).decode(),
            "ephemeral": self.own.ephemeral,
            "locked": self.own.locked,
        }

    async def bundles(self) -> dict[str, str]:
        """SPIFFE bundle documents of all trust domains that count. Raises UnreachableError."""
        if self._child is None or not self._child.is_running:
            raise UnreachableError(self.error or "the identity process has not started yet")
        self._asked += 1
        number = self._asked
        answer = self._answers[number] = self._child.promise()
        try:
            self._child.send({"op": "bundles", "id": number})
            return dict(json.loads(await self._child.kept(answer, _ANSWER_S)))
        finally:
            del self._answers[number]

    async def _hear(self, head: dict[str, Any], body: bytes) -> None:
        kind = head.get("kind")
        if kind == "attest":
            self._answer_who(head["id"], head["pid"])
        elif kind == "status":
            before, self._status = self._status.get("error", ""), json.loads(body)
            if self._status["error"] not in ("", before):
                log.error("identities cannot be had where they come from", cause=str(self._status["error"]))
            self.on_status()
        elif kind == "own":
            self.error = ""
            self._own(OwnAnchor(body, head["ephemeral"] is True, head["locked"] is True))
        elif kind == "refused":
            log.error("the proxy refused secrets", names=str(head["names"]), cause=str(head["error"]))
        elif kind == "failed":
            self._fail(str(head["error"]))
        elif kind == "bundles" and (answer := self._answers.get(head["id"])) is not None and not answer.done():
            answer.set_result(body)

    def _answer_who(self, number: int, pid: int) -> None:
        attested = self._attest(pid)
        answer = {"op": "attested", "id": number, "workloads": attested.workloads, "proxy": attested.proxy}
        if self._child is not None and self._child.is_running:
            self._child.send(answer)

    def _own(self, own: OwnAnchor) -> None:
        if not own.certificate:
            return
        if self.own is None or own.certificate != self.own.certificate:
            log.info("the node's authority is there", ephemeral=own.ephemeral)
        self.own = own
        self.on_change()

    def _ended(self, why: str) -> None:
        self._fail(self.error or why)

    def _fail(self, why: str) -> None:
        """Tell of it once: what it refuses is refused again at each restart."""
        if why != self.error:
            log.error("no identities are handed out; what was handed out stays valid until it expires", cause=why)
            self.error = why
        self.on_change()


def _listen(path: str) -> socket.socket:
    """A Unix socket that everybody may connect to: who may have what is decided by who calls."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if os.path.exists(path):
            os.unlink(path)
        made.bind(path)
        os.chmod(path, 0o666)
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        raise RefusedError(f"cannot open the socket of the Workload API `{path}`: {error.strerror}") from error
    return made
