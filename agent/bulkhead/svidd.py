"""bulkhead-svids: the process that holds this node's certificate authority, and hands out the SVIDs of its workloads.

It serves the SPIFFE Workload API and Envoy's secret discovery on a Unix socket that the agent gives it, and asks the
agent who each caller is. The keys stay here, as in bulkhead-keys: in memory that is locked where it may be, written to
no core file and readable by nobody who lacks CAP_SYS_PTRACE. It holds no capability and writes no file.

Messages to the agent, each a JSON line followed by `bytes` raw bytes:

    {"kind": "own", "anchor": true, "ephemeral": false, "locked": true}      body: the anchor, DER; empty: none yet
    {"kind": "failed", "error": …}                                           it cannot work so: this process ends
    {"kind": "attest", "id": …, "pid": …}                                    who is that process?
    {"kind": "refused", "names": …, "error": …}                              the proxy refused secrets
    {"kind": "status"}                                                       body: JSON, as `Desk.status` makes it
    {"kind": "bundles", "id": …}                                             body: JSON, SPIFFE bundles by trust domain

Messages from it, of the same form; when it closes its end, this process ends:

    {"op": "state"}                                                          body: JSON, as `read_state` takes it
    {"op": "attested", "id": …, "workloads": […], "proxy": false}
    {"op": "bundles", "id": …}
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import resource
import socket
import sys
from collections.abc import Coroutine
from typing import Any, Final

from bulkhead import config
from bulkhead.config import Settings
from bulkhead.confinement import confine, end_with_parent, hide_memory, lock_memory
from bulkhead.errors import UsageError
from bulkhead.svid import authority, bundle, spire
from bulkhead.svid.ads import AggregatedDiscovery
from bulkhead.svid.authority import Authority
from bulkhead.svid.bundle import Bundle, BundleError
from bulkhead.svid.callers import Callers
from bulkhead.svid.endpoint import BoundedServer
from bulkhead.svid.issuing import Embedded
from bulkhead.svid.sds import SecretDiscovery
from bulkhead.svid.secrets import Secrets
from bulkhead.svid.served import Served, State
from bulkhead.svid.svids import Attested, Workload
from bulkhead.svid.upstream import Upstream
from bulkhead.svid.workload_api import WorkloadApi
from bulkhead.svid.x509 import Signer

_MEMORY_BYTES_MAX: Final = 2 << 30
_FILES_MAX: Final = 65536
"""Two for each connection: the limit by user does not bound how many users there are."""
_HEAD_BYTES_MAX: Final = 1 << 20
_BODY_BYTES_MAX: Final = 64 << 20
_ANSWER_S: Final = 5.0
_STATUS_PAUSE_S: Final = 1.0
_NACKS_MAX: Final = 100
"""Told to the agent in one run; the count goes on."""


def read_state(text: bytes) -> tuple[State, float]:
    """What the agent says: what is to be served, and how long an SVID lives, in seconds."""
    fields = json.loads(text)
    workloads = tuple(
        Workload(one["spiffe_id"], one["name"], one["pid"], tuple((kind, value) for kind, value in one["selectors"]))
        for one in fields["workloads"]
    )
    problems: list[str] = []
    anchors, federated = _anchors(fields["anchors"], problems), _federated(fields["federated"], problems)
    return State(fields["trust_domain"], workloads, anchors, federated, tuple(problems)), float(fields["lifetime_s"])


def _anchors(texts: dict[str, list[str]], problems: list[str]) -> tuple[bytes, ...]:
    """Of all nodes; one that is none costs its node its own workloads' identities, and nobody else anything."""
    found: list[bytes] = []
    for node, own in texts.items():
        for der in map(base64.b64decode, own):
            try:
                bundle.check_anchor(der)
                found.append(der)
            except BundleError as error:
                problems.append(f"the authority in the record of node `{node}` is not believed: {error}")
    return tuple(dict.fromkeys(found))


def _federated(documents: dict[str, str], problems: list[str]) -> tuple[Bundle, ...]:
    found: list[Bundle] = []
    for trust_domain, document in documents.items():
        try:
            found.append(bundle.read(trust_domain, document.encode()))
        except BundleError as error:
            problems.append(f"the bundle of the trust domain `{trust_domain}` cannot be used: {error}")
    return tuple(found)


class Desk:
    """Everything that is behind the socket."""

    def __init__(self, channel: Channel, settings: Settings, anchor: Signer | None, *, locked: bool) -> None:
        self._channel = channel
        self._settings = settings
        self._anchor = anchor
        self._locked = locked
        self._served = Served()
        self._callers = Callers(self._served, channel.attest)
        self._upstream: Upstream | None = None
        self._upstream_of: tuple[str, float] = ("", 0.0)
        self._running: asyncio.Task[None] | None = None
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """A source of SVIDs that fails must not fail in silence: this process ends then, and is started again."""
        self._dirty = asyncio.Event()
        self._nacks = 0

    async def serve(self, listener: socket.socket) -> None:
        """Until the agent is gone."""
        api = WorkloadApi(self._served, self._callers, lambda: self._upstream)
        secrets = Secrets(self._served, self._callers, self._refused)
        server = BoundedServer([api, SecretDiscovery(secrets), AggregatedDiscovery(secrets)])
        await server.start(sock=listener)
        reporting = asyncio.create_task(self._report(), name="status")
        self._tell_own()
        hearing = asyncio.create_task(self._hear_all(), name="agent")
        try:
            done, _ = await asyncio.wait((hearing, reporting, self._failed), return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                one.result()
        finally:
            reporting.cancel()
            server.close()

    async def _hear_all(self) -> None:
        async for head, body in self._channel.messages():
            self._hear(head, body)

    def _hear(self, head: dict[str, Any], body: bytes) -> None:
        if head["op"] == "state":
            self._take(*read_state(body))
        elif head["op"] == "bundles":
            self._channel.send({"kind": "bundles", "id": head["id"]}, json.dumps(self.documents()).encode())

    def _take(self, state: State, lifetime_s: float) -> None:
        if self._upstream is None or self._upstream_of != (state.trust_domain, lifetime_s):
            self._open_upstream(state.trust_domain, lifetime_s)
        self._served.replace_state(state)
        if self._upstream is not None:
            self._upstream.want(state.workloads)
        self._changed()

    def _open_upstream(self, trust_domain: str, lifetime_s: float) -> None:
        if self._running is not None:
            self._running.cancel()
            self._running = None
        self._upstream_of = (trust_domain, lifetime_s)
        self._upstream = self._new_upstream(trust_domain, lifetime_s)
        if self._upstream is not None:
            self._running = asyncio.create_task(self._upstream.run(self._changed), name="upstream")
            self._running.add_done_callback(self._source_ended)

    def _source_ended(self, source: asyncio.Task[None]) -> None:
        if not source.cancelled() and (error := source.exception()) is not None and not self._failed.done():
            self._failed.set_exception(error)

    def _new_upstream(self, trust_domain: str, lifetime_s: float) -> Upstream | None:
        if self._settings.spire is not None:
            return spire.upstream(self._settings.spire)
        own = self._authority(trust_domain)
        return Embedded(own, lifetime_s) if own is not None else None

    def _authority(self, trust_domain: str) -> Authority | None:
        """None where the sealed one is of another trust domain: nobody would believe what it says."""
        if self._settings.authority is None:
            if self._anchor is None or authority.check_domain(self._anchor, trust_domain):
                self._anchor = authority.ephemeral(self._settings.host, trust_domain).anchor
                self._tell_own()
            return Authority(trust_domain, self._anchor, ephemeral=True)
        if self._anchor is None or authority.check_domain(self._anchor, trust_domain):
            return None
        return Authority(trust_domain, self._anchor, ephemeral=False)

    def _tell_own(self) -> None:
        own = {"kind": "own", "ephemeral": self._settings.authority is None, "locked": self._locked}
        self._channel.send(own, self._anchor.der if self._anchor is not None else b"")

    def _changed(self) -> None:
        upstream = self._upstream
        self._served.replace_held(upstream.svids() if upstream else {}, upstream.bundles() if upstream else {})
        self._dirty.set()

    def _refused(self, names: str, error: str) -> None:
        self._served.counts.refusals["nack"] += 1
        self._nacks += 1
        if self._nacks <= _NACKS_MAX:
            self._channel.send({"kind": "refused", "names": names, "error": error[:1024]})

    # What the agent is told

    async def _report(self) -> None:
        """The status, whenever it is different, once a second at most."""
        said = b""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STATUS_PAUSE_S):
                    await self._dirty.wait()
            self._dirty.clear()
            found = json.dumps(self.status()).encode()
            if found != said:
                self._channel.send({"kind": "status"}, found)
                said = found
                await asyncio.sleep(_STATUS_PAUSE_S)

    def status(self) -> dict[str, object]:
        """Ages and counts. Times in Unix seconds."""
        served, upstream = self._served, self._upstream
        return {
            "trust_domain": served.state.trust_domain if served.state is not None else "",
            "ready": served.is_ready,
            "source": upstream.name if upstream is not None else "",
            "error": self._error(),
            "unusable": list(served.state.unusable) if served.state is not None else [],
            "svids": [
                {"spiffe_id": one.spiffe_id, "name": one.hint, "issued_at": one.issued_at, "expires_at": one.expires_at}
                for one in served.svids.values()
            ],
            "missing": [
                one.spiffe_id
                for one in (served.state.workloads if served.state is not None else ())
                if one.spiffe_id not in served.svids
            ],
            "bundles": {domain: {"x509": len(one.x509), "jwt": len(one.jwt)} for domain, one in served.bundles.items()},
            "anchor_expires_at": self._anchor.expires_at if self._anchor is not None else None,
            "issued": dict(upstream.issued) if isinstance(upstream, Embedded) else {},
            "upstream_failures": dict(upstream.failures) if isinstance(upstream, spire.Spire) else {},
            "failures": dict(upstream.failures) if isinstance(upstream, spire.Spire) else {},
            "calls": dict(served.counts.calls),
            "refusals": dict(served.counts.refusals),
        }

    def _error(self) -> str:
        if self._upstream is not None:
            return self._upstream.error
        if self._served.state is None or self._anchor is None:
            return ""
        return authority.check_domain(self._anchor, self._served.state.trust_domain)

    def documents(self) -> dict[str, str]:
        """Every bundle as a SPIFFE bundle document, by trust domain."""
        return {domain: bundle.write(one).decode() for domain, one in self._served.bundles.items()}


class Channel:
    """The line to the agent."""

    def __init__(self) -> None:
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._questions: dict[int, asyncio.Future[Attested]] = {}
        self._asked = 0

    async def open(self, channel: socket.socket) -> None:
        """Take over the socket."""
        self._reader, self._writer = await asyncio.open_connection(sock=channel, limit=_HEAD_BYTES_MAX)

    def send(self, head: dict[str, object], body: bytes = b"") -> None:
        """Say something."""
        self._writer.write(json.dumps(head | {"bytes": len(body)}).encode() + b"\n" + body)

    async def attest(self, pid: int) -> Attested:
        """Who a process is. Raises ConnectionError when the agent does not answer in time."""
        self._asked += 1
        number = self._asked
        answer: asyncio.Future[Attested] = asyncio.get_running_loop().create_future()
        self._questions[number] = answer
        self.send({"kind": "attest", "id": number, "pid": pid})
        try:
            async with asyncio.timeout(_ANSWER_S):
                return await answer
        except TimeoutError as error:
            raise ConnectionError("the agent did not answer in time") from error
        finally:
            del self._questions[number]

    async def messages(self) -> Any:
        """What the agent says, answers to questions aside, until it is gone."""
        while True:
            try:
                head = json.loads(await self._reader.readuntil(b"\n"))
                body = await self._reader.readexactly(min(head["bytes"], _BODY_BYTES_MAX))
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            if head["op"] != "attested":
                yield head, body
            elif (question := self._questions.get(head["id"])) is not None and not question.done():
                question.set_result(Attested(tuple(head["workloads"]), head["proxy"]))


def _read_anchor(settings: Settings) -> Signer | None:
    if settings.authority is None or settings.authority_passphrase is None:
        return None
    return authority.read(settings.authority, settings.authority_passphrase)


async def _work(channel: socket.socket, listener: socket.socket, settings: Settings, *, locked: bool) -> None:
    line = Channel()
    await line.open(channel)
    try:
        anchor = _read_anchor(settings)
        confine(_MEMORY_BYTES_MAX, min(_FILES_MAX, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    except UsageError as error:
        line.send({"kind": "failed", "error": str(error)})
        return
    await Desk(line, settings, anchor, locked=locked).serve(listener)


def _run(work: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(ConnectionError):  # the agent is gone, and nobody is left to tell
        asyncio.run(work)


def main() -> None:
    """Entry point: `svidd CHANNEL LISTENER SETTINGS`."""
    end_with_parent()
    hide_memory()
    locked = lock_memory()
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    channel, listener = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    _run(_work(channel, listener, config.parse(sys.argv[3]), locked=locked))


if __name__ == "__main__":
    main()
