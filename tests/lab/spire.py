"""An agent of SPIRE as its published protocols describe it: Workload API, Delegated Identity API and Broker API on Unix
sockets, over entries that a test registers. It is no SPIRE; what it answers was read from SPIRE's sources."""

from __future__ import annotations

import asyncio
import functools
import json
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Server, Stream

from bulkhead.svid import jwt
from bulkhead.svid.bundle import Bundle, write
from bulkhead.svid.messages import TYPE_URL, message
from bulkhead.svid.spire import Spire
from bulkhead.svid.spire_calls import Failure
from bulkhead.svid.svids import Workload
from bulkhead.svid.x509 import make_anchor, make_intermediate, make_leaf, private_bytes

TRUST_DOMAIN = "example.org"
AGENT = f"spiffe://{TRUST_DOMAIN}/spire/agent/lab"
BROKER = f"spiffe://{TRUST_DOMAIN}/bulkhead"
WAIT_S = 20.0
LIFETIME_S = 3600.0

_DELEGATED = "spire.api.agent.delegatedidentity.v1"
_BROKER = "spiffe.broker"
_PID = f"{TYPE_URL}{_BROKER}.WorkloadPIDReference"
_OBJECT = f"{TYPE_URL}{_BROKER}.KubernetesObjectReference"


class Entry(NamedTuple):
    """A registration entry."""

    spiffe_id: str
    selectors: frozenset[tuple[str, str]] = frozenset()
    pid: int = 0
    """Stands for selectors that this process has."""


class Asked(NamedTuple):
    """One question that came."""

    method: str
    question: Any
    metadata: Mapping[str, str]


class Authority:
    """A trust domain that issues."""

    def __init__(self, trust_domain: str = TRUST_DOMAIN) -> None:
        self.trust_domain = trust_domain
        self.anchor = make_anchor("spire", trust_domain, time.time(), 86400.0)
        self._intermediate = make_intermediate(self.anchor, trust_domain, time.time(), 86400.0)

    @property
    def bundle(self) -> Bundle:
        """What vouches for it."""
        return Bundle(self.trust_domain).with_anchors([self.anchor.der])

    def issue(self, spiffe_id: str, lifetime_s: float = LIFETIME_S) -> tuple[tuple[bytes, ...], bytes]:
        """Chain and key of an X.509-SVID."""
        leaf = make_leaf(self._intermediate, spiffe_id, time.time(), lifetime_s)
        return (leaf.der, self._intermediate.der), private_bytes(leaf.key)

    def token(self, spiffe_id: str, audiences: Sequence[str]) -> str:
        """A JWT-SVID."""
        return jwt.issue(self.anchor, spiffe_id, audiences, time.time(), 300.0, "").token

    def jwks(self) -> bytes:
        """As SPIRE writes it: without what the keys are for."""
        document = json.loads(write(self.bundle, jwt_only=True))
        return json.dumps({"keys": [{k: v for k, v in key.items() if k != "use"} for key in document["keys"]]}).encode()


class SpireAgent:
    """What a test does to it, and what it was asked."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority()
        self.issuer = self.trusted = self.authority
        """Who vouches for the agent itself, and whom it lets vouch for brokers."""
        self.federated: list[Authority] = []
        self.entries: list[Entry] = []
        self.lifetime_s = LIFETIME_S
        self.asked: list[Asked] = []
        self.refuses: dict[str, tuple[Status, str]] = {}
        """What methods fail with, by their name; `*`: all."""
        self.raw: dict[str, bytes] = {}
        """What methods send in place of an answer, by their name: bytes, as they are."""
        self.edit: Callable[[str, Any], None] = lambda method, answer: None
        """Changes an answer before it leaves."""
        self._news = asyncio.Condition()
        self._version = 0
        self._cuts = 0
        self._transports: set[asyncio.Transport] = set()
        self._issued: dict[str, tuple[tuple[bytes, ...], bytes]] = {}

    @property
    def admin(self) -> Path:
        """Socket of the Delegated Identity API."""
        return self.directory / "admin.sock"

    @property
    def broker(self) -> Path:
        """Socket of the Broker API."""
        return self.directory / "broker.sock"

    @property
    def workload(self) -> Path:
        """Socket of the Workload API."""
        return self.directory / "agent.sock"

    def register(self, spiffe_id: str, *selectors: tuple[str, str], pid: int = 0) -> None:
        """An entry more; `update` tells."""
        self.entries.append(Entry(spiffe_id, frozenset(selectors), pid))

    def renew(self) -> None:
        """Every SVID anew; `update` tells."""
        self._issued.clear()

    async def update(self) -> None:
        """Every subscription gets another message."""
        async with self._news:
            self._version += 1
            self._news.notify_all()

    async def cut(self) -> None:
        """Every subscription ends with an error."""
        async with self._news:
            self._cuts += 1
            self._news.notify_all()

    async def until_asked(self, method: str, times: int = 1) -> list[Asked]:
        """The questions of one method, once there are that many."""
        async with asyncio.timeout(WAIT_S), self._news:
            await self._news.wait_for(lambda: len(self._of(method)) >= times)
        return self._of(method)

    def _of(self, method: str) -> list[Asked]:
        return [one for one in self.asked if one.method == method]

    # Serving

    @asynccontextmanager
    async def delegating(self) -> AsyncIterator[None]:
        """With the admin socket open."""
        async with self._serving(_Delegated(self), self.admin):
            yield

    @asynccontextmanager
    async def brokering(self, identity: str = AGENT) -> AsyncIterator[None]:
        """With the sockets of the Broker API and the Workload API open."""
        tls = self._tls(identity)
        async with self._serving(_Broker(self), self.broker, tls), self._serving(_Workload(self), self.workload):
            yield

    @asynccontextmanager
    async def _serving(self, service: Any, path: Path, tls: ssl.SSLContext | None = None) -> AsyncIterator[None]:
        server = Server([service])
        await server.start(path=str(path), ssl=tls)
        try:
            yield
        finally:
            server.close()
            for transport in self._transports:  # the library lets connections live on
                with suppress(AttributeError):  # of asyncio's TLS, for one that has ended
                    transport.abort()
            await server.wait_closed()
            with suppress(FileNotFoundError):
                path.unlink()

    def _tls(self, identity: str) -> ssl.SSLContext:
        chain, key = self.issuer.issue(identity)
        pem = b"".join(x509.load_der_x509_certificate(one).public_bytes(serialization.Encoding.PEM) for one in chain)
        private = serialization.load_der_private_key(key, None)
        kind = serialization.PrivateFormat.PKCS8
        file = self.directory / "server.pem"
        file.write_bytes(pem + private.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption()))
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(file)
        tls.load_verify_locations(cadata=self.trusted.anchor.der)
        tls.verify_mode = ssl.CERT_REQUIRED
        tls.set_alpn_protocols(["h2"])
        return tls

    # Answers, whatever the API

    def matching(self, selectors: Sequence[Any], pid: int) -> list[str]:
        """SPIFFE IDs of the entries that match."""
        told = {(one.type, one.value) for one in selectors}
        return [
            entry.spiffe_id
            for entry in self.entries
            if (entry.pid == pid if pid else not entry.pid and entry.selectors <= told)
        ]

    def issued(self, spiffe_id: str) -> tuple[tuple[bytes, ...], bytes]:
        """Chain and key, the same until `renew`."""
        if spiffe_id not in self._issued:
            self._issued[spiffe_id] = self.authority.issue(spiffe_id, self.lifetime_s)
        return self._issued[spiffe_id]

    def x509_bundles(self) -> dict[str, bytes]:
        """Keyed as SPIRE does it."""
        return {f"spiffe://{one.trust_domain}": b"".join(one.bundle.x509) for one in (self.authority, *self.federated)}

    def jwt_bundles(self) -> dict[str, bytes]:
        """Keyed as SPIRE does it."""
        return {f"spiffe://{one.trust_domain}": one.jwks() for one in (self.authority, *self.federated)}

    async def answer(self, stream: Stream[Any, Any], method: str, made: Callable[[Any], Any]) -> None:
        """One answer to one question."""
        question = await self._hear(stream, method)
        answer = made(question)
        self.edit(method, answer)
        await stream.send_message(answer)

    async def follow(self, stream: Stream[Any, Any], method: str, made: Callable[[Any], Any]) -> None:
        """An answer now, and after each update."""
        question = await self._hear(stream, method)
        cuts = self._cuts
        while True:
            version = self._version
            answer = made(question)
            self.edit(method, answer)
            await stream.send_message(answer)
            async with self._news:
                await self._news.wait_for(lambda before=version: self._version > before or self._cuts > cuts)
            if self._cuts > cuts:
                raise GRPCError(Status.UNAVAILABLE, "the agent is going away")

    async def _hear(self, stream: Stream[Any, Any], method: str) -> Any:
        question = await stream.recv_message()
        if stream.peer:
            self._transports.add(stream.peer._transport)
        async with self._news:
            self.asked.append(Asked(method, question, dict(stream.metadata or {})))
            self._news.notify_all()
        refusal = self.refuses.get(method) or self.refuses.get("*")
        if refusal:
            raise GRPCError(*refusal)
        if raw := self.raw.get(method):
            await stream.send_initial_metadata()
            await stream._stream.send_data(raw)
        return question


class _Service:
    prefix = ""
    package = ""
    methods: Mapping[str, Cardinality] = {}

    def __init__(self, agent: SpireAgent) -> None:
        self._agent = agent

    def __mapping__(self) -> dict[str, Handler]:
        return {f"/{self.prefix}/{name}": self._handler(name, kind) for name, kind in self.methods.items()}

    def _handler(self, name: str, kind: Cardinality) -> Handler:
        made = getattr(self, name)

        async def handle(stream: Stream[Any, Any]) -> None:
            self.admit(stream)
            serve = self._agent.follow if kind is Cardinality.UNARY_STREAM else self._agent.answer
            await serve(stream, name, made)

        return Handler(handle, kind, *self.types(name))

    def types(self, name: str) -> tuple[Any, Any]:
        return self.message(f"{name}Request"), self.message(f"{name}Response")

    def message(self, name: str) -> Any:
        return message(f"{self.package}.{name}" if self.package else name)

    def admit(self, stream: Stream[Any, Any]) -> None:
        """Whether the caller may ask at all."""


def _need(stream: Stream[Any, Any], header: str) -> None:
    if dict(stream.metadata or {}).get(header) != "true":
        raise GRPCError(Status.INVALID_ARGUMENT, "security header missing from request")


_BOTH = {
    "SubscribeToX509Bundles": Cardinality.UNARY_STREAM,
    "SubscribeToJWTBundles": Cardinality.UNARY_STREAM,
}


class _Delegated(_Service):
    prefix = f"{_DELEGATED}.DelegatedIdentity"
    package = _DELEGATED
    methods = _BOTH | {
        "SubscribeToX509SVIDs": Cardinality.UNARY_STREAM,
        "FetchJWTSVIDs": Cardinality.UNARY_UNARY,
    }

    def SubscribeToX509SVIDs(self, question: Any) -> Any:  # noqa: N802  the method's own name
        answer = self.message("SubscribeToX509SVIDsResponse")()
        for spiffe_id in self._matching(question):
            chain, key = self._agent.issued(spiffe_id)
            one = answer.x509_svids.add(x509_svid_key=key)
            one.x509_svid.cert_chain.extend(chain)
            self._name(one.x509_svid.id, spiffe_id)
        return answer

    def SubscribeToX509Bundles(self, question: Any) -> Any:  # noqa: N802
        return self.message("SubscribeToX509BundlesResponse")(ca_certificates=self._agent.x509_bundles())

    def SubscribeToJWTBundles(self, question: Any) -> Any:  # noqa: N802
        return self.message("SubscribeToJWTBundlesResponse")(bundles=self._agent.jwt_bundles())

    def FetchJWTSVIDs(self, question: Any) -> Any:  # noqa: N802
        if not question.audience:
            raise GRPCError(Status.INVALID_ARGUMENT, "audience must be specified")
        answer = self.message("FetchJWTSVIDsResponse")()
        for spiffe_id in self._matching(question):
            one = answer.svids.add(token=self._agent.authority.token(spiffe_id, question.audience))
            self._name(one.id, spiffe_id)
        if not answer.svids:
            raise GRPCError(Status.PERMISSION_DENIED, "no identity issued")
        return answer

    def _matching(self, question: Any) -> list[str]:
        if bool(question.selectors) == bool(question.pid):
            raise GRPCError(Status.INVALID_ARGUMENT, "must provide either selectors or non-zero PID, but not both")
        return self._agent.matching(question.selectors, question.pid)

    def _name(self, target: Any, spiffe_id: str) -> None:
        target.trust_domain, _, path = spiffe_id.removeprefix("spiffe://").partition("/")
        target.path = f"/{path}"


class _Broker(_Service):
    prefix = f"{_BROKER}.API"
    package = _BROKER
    methods = _BOTH | {
        "SubscribeToX509SVID": Cardinality.UNARY_STREAM,
        "FetchJWTSVID": Cardinality.UNARY_UNARY,
    }

    def admit(self, stream: Stream[Any, Any]) -> None:
        _need(stream, "broker.spiffe.io")
        names = stream.peer.cert()["subjectAltName"] if stream.peer else ()
        if names != (("URI", BROKER),):
            raise GRPCError(Status.UNAUTHENTICATED, "unable to determine caller identity")

    def SubscribeToX509SVID(self, question: Any) -> Any:  # noqa: N802
        answer = self.message("SubscribeToX509SVIDResponse")()
        bundle = b"".join(self._agent.authority.bundle.x509)
        for spiffe_id in self._matching(question):
            chain, key = self._agent.issued(spiffe_id)
            answer.svids.add(spiffe_id=spiffe_id, x509_svid=b"".join(chain), x509_svid_key=key, bundle=bundle)
        return answer

    def SubscribeToX509Bundles(self, question: Any) -> Any:  # noqa: N802
        self._matching(question)
        return self.message("SubscribeToX509BundlesResponse")(bundles=self._agent.x509_bundles())

    def SubscribeToJWTBundles(self, question: Any) -> Any:  # noqa: N802
        self._matching(question)
        return self.message("SubscribeToJWTBundlesResponse")(bundles=self._agent.jwt_bundles())

    def FetchJWTSVID(self, question: Any) -> Any:  # noqa: N802
        answer = self.message("FetchJWTSVIDResponse")()
        for spiffe_id in self._matching(question):
            if question.spiffe_id in ("", spiffe_id):
                answer.svids.add(spiffe_id=spiffe_id, svid=self._agent.authority.token(spiffe_id, question.audience))
        if not answer.svids:
            raise GRPCError(Status.PERMISSION_DENIED, "no identity issued")
        return answer

    def _matching(self, question: Any) -> list[str]:
        reference = question.reference.reference
        if reference.type_url == _PID:
            pid = self.message("WorkloadPIDReference").FromString(reference.value).pid
            if not Path(f"/proc/{pid}").exists():
                raise GRPCError(Status.NOT_FOUND, "the workload cannot be found")
            return self._agent.matching((), pid)
        if reference.type_url != _OBJECT:
            raise GRPCError(Status.INVALID_ARGUMENT, "workload reference must be provided")
        found = self.message("KubernetesObjectReference").FromString(reference.value)
        assert (found.type.plural, found.type.group) == ("serviceaccounts", "core")
        selector = message("spire.api.types.Selector")
        words = [selector(type="k8s", value=f"ns:{found.key.namespace}")]
        return self._agent.matching([*words, selector(type="k8s", value=f"sa:{found.key.name}")], 0)


class _Workload(_Service):
    prefix = "SpiffeWorkloadAPI"
    methods = {"FetchX509SVID": Cardinality.UNARY_STREAM}

    def types(self, name: str) -> tuple[Any, Any]:
        return self.message("X509SVIDRequest"), self.message("X509SVIDResponse")

    def admit(self, stream: Stream[Any, Any]) -> None:
        _need(stream, "workload.spiffe.io")

    def FetchX509SVID(self, question: Any) -> Any:  # noqa: N802
        chain, key = self._agent.issued(BROKER)
        answer = self.message("X509SVIDResponse")()
        bundle = b"".join(self._agent.authority.bundle.x509)
        answer.svids.add(spiffe_id=BROKER, x509_svid=b"".join(chain), x509_svid_key=key, bundle=bundle)
        return answer


class _Noticed(Counter[Failure]):
    """Failures, each of which is noticed, though only the first of a kind is told."""

    def __init__(self, news: asyncio.Event) -> None:
        super().__init__()
        self._news = news

    def __setitem__(self, failure: Failure, times: int) -> None:
        super().__setitem__(failure, times)
        self._news.set()


class Following:
    """An upstream at work, and what it told."""

    def __init__(self, upstream: Spire) -> None:
        self.upstream = upstream
        self.errors: list[str] = []
        """Each once: those that were told one after the other and were alike would be there twice."""
        self.told = 0
        self._news = asyncio.Event()
        upstream.failures = _Noticed(self._news)

    def hear(self) -> None:
        """What the upstream calls."""
        self.told += 1
        if not self.errors or self.errors[-1] != self.upstream.error:
            self.errors.append(self.upstream.error)
        self._news.set()

    async def until(self, true: Callable[[], object]) -> None:
        """Until something is so."""
        async with asyncio.timeout(WAIT_S):
            while not true():
                self._news.clear()
                await self._news.wait()

    async def until_svid(self, workload: Workload) -> None:
        """Until a workload has an SVID and all is well."""
        await self.until(lambda: workload.spiffe_id in self.upstream.svids() and not self.upstream.error)


@asynccontextmanager
async def following(upstream: Spire) -> AsyncIterator[Following]:
    """The upstream, run."""
    heard = Following(upstream)
    task = asyncio.create_task(upstream.run(heard.hear))
    try:
        yield heard
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is a coroutine, in a loop of its own."""

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(test(*arguments, **named))

    return run
