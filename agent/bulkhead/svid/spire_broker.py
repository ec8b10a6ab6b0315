"""The SPIFFE Broker API (incubating): the standard's way to ask for the SVIDs of others, by reference to each.

Both ends prove who they are by mutual TLS. This node's agent is itself a workload of SPIRE: its own SVID comes from the
Workload API of SPIRE's agent, as everybody's does, and whoever answers has to be a SPIRE agent of the same trust
domain, or the one that the settings name. The reference is verified by SPIRE, not believed.
"""

from __future__ import annotations

import base64
import contextlib
import os
import ssl
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from bulkhead.svid.bundle import Bundle
from bulkhead.svid.messages import message, pack
from bulkhead.svid.spiffe_id import SpiffeId, SpiffeIdError, parse
from bulkhead.svid.spire_calls import Call, Caller, CallError, Failure, PeerCertificate, shown
from bulkhead.svid.spire_offers import Offer, Token, certificates_of, take
from bulkhead.svid.spire_source import Connection
from bulkhead.svid.svids import Workload

T = TypeVar("T")

_PACKAGE: Final = "spiffe.broker"
_SERVICE: Final = f"/{_PACKAGE}.API"
_TO_BROKER_API: Final = {"broker.spiffe.io": "true"}
_TO_WORKLOAD_API: Final = {"workload.spiffe.io": "true"}
_UNLISTED: Final = "; is `{}` among SPIRE's `brokers`?"
_OWN: Final = "this node's agent"
_AGENTS: Final = "/spire/agent/"
"""What the paths of SPIRE's agents begin with, and of nobody else."""


class Identity(NamedTuple):
    """Who this node's agent is for SPIRE, and who vouches for SPIRE's."""

    spiffe_id: SpiffeId
    chain: tuple[bytes, ...]
    key: bytes
    authorities: tuple[bytes, ...]


class Broker:
    """The API at one socket."""

    name = "spire-broker"

    def __init__(self, socket: Path, workload_socket: Path, agent_id: str = "") -> None:
        self._socket = socket
        self._workload_socket = workload_socket
        self._agent_id = agent_id

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncGenerator[Connection, None]:
        """A connection as who this node's agent is now; it ends when SPIRE renews that."""
        if not self._socket.exists():
            raise CallError(Failure.ABSENT, f"there is no socket `{self._socket}`")
        async with contextlib.AsyncExitStack() as stack:
            own = stack.enter_context(contextlib.closing(Caller(self._workload_socket, _TO_WORKLOAD_API)))
            identities = await stack.enter_async_context(contextlib.aclosing(own.follow(_OWN_SVID)))
            identity = await anext(identities)
            check = partial(self._check_agent, identity.spiffe_id.trust_domain)
            caller = Caller(
                self._socket, _TO_BROKER_API, _context(identity), check, _UNLISTED.format(identity.spiffe_id)
            )
            stack.enter_context(contextlib.closing(caller))
            yield Connection(caller, partial(_watch, identities, identity))

    def can_ask(self, workload: Workload) -> bool:
        """Whether there is anything to refer to."""
        return workload.pid > 0 or _service_account(workload) is not None

    def process_of(self, workload: Workload) -> int:
        """The process by which the workload is asked for; 0: by an object of Kubernetes."""
        return workload.pid

    def svids(self, workload: Workload) -> Call[Sequence[Offer]]:
        """Subscription: the SVIDs of a workload."""
        return _call("SubscribeToX509SVID", _reference(workload), _offers)

    def x509_bundles(self) -> Call[Mapping[str, bytes]]:
        """Subscription: concatenated certificates, by trust domain, that SPIRE lets this node's agent know."""
        return _call("SubscribeToX509Bundles", _pid(os.getpid()), lambda answer: dict(answer.bundles))

    def jwt_bundles(self) -> Call[Mapping[str, bytes]]:
        """Subscription: JWKS, by trust domain, that SPIRE lets this node's agent know."""
        return _call("SubscribeToJWTBundles", _pid(os.getpid()), lambda answer: dict(answer.bundles))

    def tokens(self, workload: Workload, audiences: Sequence[str]) -> Call[Sequence[Token]]:
        """JWT-SVIDs of a workload."""
        wanted = {"spiffe_id": workload.spiffe_id, "audience": audiences}
        return _call("FetchJWTSVID", _reference(workload), _tokens, **wanted)

    def _check_agent(self, trust_domain: str, certificate: PeerCertificate) -> None:
        """TLS has seen to it that our trust domain vouches for the certificate; whose is it?"""
        names = [name for kind, name in certificate.get("subjectAltName", ()) if kind == "URI"]
        if names == [self._agent_id] or (not self._agent_id and _is_agent(names, trust_domain)):
            return
        found = shown(", ".join(names)) or "nobody"
        meant = f"`{self._agent_id}`" if self._agent_id else f"a SPIRE agent of `{trust_domain}`"
        raise CallError(Failure.IMPOSTOR, f"`{found}` answers at `{self._socket}`, not {meant}")


def _is_agent(names: Sequence[str], trust_domain: str) -> bool:
    if len(names) != 1:
        return False
    try:
        identity = parse(names[0])
    except SpiffeIdError:
        return False
    return identity.trust_domain == trust_domain and identity.path.startswith(_AGENTS)


# Questions and answers


def _message(name: str) -> Any:
    return message(f"{_PACKAGE}.{name}")


def _call(method: str, reference: Any, read: Callable[[Any], T], **fields: object) -> Call[T]:
    question = _message(f"{method}Request")(**fields)
    question.reference.reference.CopyFrom(pack(reference))
    return Call(f"{_SERVICE}/{method}", question, _message(f"{method}Response"), read)


def _offers(answer: Any) -> Sequence[Offer]:
    return [Offer(one.spiffe_id, certificates_of(one.x509_svid), one.x509_svid_key) for one in answer.svids]


def _tokens(answer: Any) -> Sequence[Token]:
    return [Token(one.spiffe_id, one.svid) for one in answer.svids]


def _reference(workload: Workload) -> Any:
    if workload.pid:
        return _pid(workload.pid)
    account = _service_account(workload)
    assert account is not None, "asked for a workload without a reference"
    kind = _message("KubernetesObjectType")(plural="serviceaccounts", group="core")
    key = _message("KubernetesObjectKey")(namespace=account[0], name=account[1])
    return _message("KubernetesObjectReference")(type=kind, key=key)


def _pid(pid: int) -> Any:
    return _message("WorkloadPIDReference")(pid=pid)


def _service_account(workload: Workload) -> tuple[str, str] | None:
    """Namespace and name, where the workload is all pods of one service account."""
    words = dict(value.split(":", 1) for kind, value in workload.selectors if kind == "k8s")
    return (words["ns"], words["sa"]) if words.keys() == {"ns", "sa"} else None


# Who we are


async def _watch(identities: AsyncGenerator[Identity, None], identity: Identity) -> None:
    """Until this node's agent has another SVID, or another bundle to check SPIRE's by: then raises CallError."""
    async for renewed in identities:
        if renewed != identity:
            raise CallError(Failure.RENEWED, f"SPIRE has renewed the SVID of {_OWN}")


def _identity(answer: Any) -> Identity:
    """Of several SVIDs the first is the default one."""
    if not answer.svids:
        raise CallError(Failure.WITHHELD, f"SPIRE has no SVID for {_OWN}: no entry of it matches")
    svid = answer.svids[0]
    try:
        spiffe_id = parse(svid.spiffe_id)
    except SpiffeIdError as error:
        raise CallError(Failure.MALFORMED, f"`{shown(svid.spiffe_id)}`, for {_OWN}, is no SPIFFE ID: {error}") from None
    authorities = certificates_of(svid.bundle)
    bundles = {spiffe_id.trust_domain: Bundle(spiffe_id.trust_domain, authorities)}
    offer = Offer(svid.spiffe_id, certificates_of(svid.x509_svid), svid.x509_svid_key)
    taken = take(Workload(svid.spiffe_id, _OWN), [offer], bundles)
    return Identity(spiffe_id, taken.chain, taken.key, authorities)


_OWN_SVID: Final = Call(
    "/SpiffeWorkloadAPI/FetchX509SVID", message("X509SVIDRequest")(), message("X509SVIDResponse"), _identity
)


def _context(identity: Identity) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False  # SVIDs name no hosts; `_check_agent` looks at whom they name
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # an authority of a bundle need not vouch for itself
    context.set_alpn_protocols(["h2"])
    context.load_verify_locations(cadata=b"".join(identity.authorities))
    chain = b"".join(_pem(one, "CERTIFICATE") for one in identity.chain)
    with _readable(chain) as certificates, _readable(_pem(identity.key, "PRIVATE KEY")) as key:
        context.load_cert_chain(certificates, key)
    return context


def _pem(der: bytes, kind: str) -> bytes:
    text = base64.encodebytes(der).decode()
    return f"-----BEGIN {kind}-----\n{text}-----END {kind}-----\n".encode()


@contextlib.contextmanager
def _readable(text: bytes) -> Iterator[str]:
    """A path from which OpenSSL reads the text, once: it takes keys from files only, and these are never in one."""
    reader, writer = os.pipe()
    try:
        try:
            os.set_blocking(writer, False)
            if os.write(writer, text) < len(text):
                raise CallError(Failure.TOO_LARGE, f"the SVID of {_OWN} does not fit into a pipe")
        finally:
            os.close(writer)
        yield f"/proc/self/fd/{reader}"
    finally:
        os.close(reader)
