"""Envoy's secret discovery, version 3: certificates by SPIFFE ID, and what checks those of others.

The node's proxy gets every local SVID; any other caller its own. Names: a SPIFFE ID, `default` for the caller's first;
as validation context `spiffe://TRUSTDOMAIN` with the bundle of that trust domain, `ROOTCA` with that of the own one,
and `ALL` with those of all, each believed of its own names only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, cast

from google.protobuf.message import Message
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError

from bulkhead.svid.bundle import Bundle
from bulkhead.svid.callers import Caller, Callers
from bulkhead.svid.endpoint import receive, unimplemented
from bulkhead.svid.messages import TYPE_URL, message, pack
from bulkhead.svid.pem import pem
from bulkhead.svid.served import Served
from bulkhead.svid.spiffe_id import SCHEME
from bulkhead.svid.svids import X509Svid

SERVICE: Final = "/envoy.service.secret.v3.SecretDiscoveryService/"
NAMES_MAX: Final = 4096
DEFAULT: Final = "default"
OWN: Final = "ROOTCA"
EVERY: Final = "ALL"
_TLS: Final = "envoy.extensions.transport_sockets.tls.v3."
_DISCOVERY: Final = "envoy.service.discovery.v3."
_REQUEST: Final = _DISCOVERY + "DiscoveryRequest"
_SECRET_URL: Final = f"{TYPE_URL}{_TLS}Secret"
_VALIDATOR: Final = "envoy.tls.cert_validator.spiffe"
_NACK_CHARACTERS: Final = 512

Bundles = Mapping[str, Bundle]
Sources = Mapping[str, object]
"""By name, what a secret is made of: another object whenever the secret is another."""


class SecretDiscovery:
    """The service. `on_nack` is told the names and the words with which a client refused what it got."""

    def __init__(self, served: Served, callers: Callers, on_nack: Callable[[str, str], None]) -> None:
        self._served = served
        self._callers = callers
        self._on_nack = on_nack

    def __mapping__(self) -> Mapping[str, Handler]:
        """Methods, as grpclib wants them. Delta discovery is not offered."""
        request, response = message(_REQUEST), message(_DISCOVERY + "DiscoveryResponse")
        streaming, unary = Cardinality.STREAM_STREAM, Cardinality.UNARY_UNARY
        return {
            f"{SERVICE}DeltaSecrets": unimplemented(streaming),
            f"{SERVICE}StreamSecrets": Handler(self._stream_secrets, streaming, request, response),
            f"{SERVICE}FetchSecrets": Handler(self._fetch_secrets, unary, request, response),
        }

    async def _fetch_secrets(self, stream: Any) -> None:
        self._served.counts.calls["FetchSecrets"] += 1
        async with self._callers.admit(stream) as caller:
            request = await self._receive(stream)
            if request is None:
                raise GRPCError(Status.INVALID_ARGUMENT, "the request has no message")
            sources = self._sources(caller, request.resource_names)
            if missing := [name for name in request.resource_names if name not in sources]:
                raise self._callers.refusal(Status.NOT_FOUND, "no-secret", f"there is no secret `{missing[0]}`")
            await stream.send_message(self._response(sources, ""))

    async def _stream_secrets(self, stream: Any) -> None:
        self._served.counts.calls["StreamSecrets"] += 1
        async with self._callers.admit(stream) as caller:
            await _Subscription(self, stream, caller).serve()

    async def _receive(self, stream: Any) -> Any:
        request = await receive(stream, message(_REQUEST))
        if request is None:
            return None
        if request.type_url not in ("", _SECRET_URL):
            raise GRPCError(Status.INVALID_ARGUMENT, f"resources of the type `{request.type_url[:128]}` are not here")
        if len(request.resource_names) > NAMES_MAX:
            raise GRPCError(Status.INVALID_ARGUMENT, f"more than {NAMES_MAX} names")
        return request

    def _sources(self, caller: Caller, names: Iterable[str]) -> Sources:
        """What the named secrets are made of, those that there are; without names, all that the caller may have.

        Raises GRPCError for a name that is another workload's.
        """
        served, attested = self._served, caller.attested
        mine = tuple(served.svids) if attested.proxy else attested.workloads
        found: dict[str, object] = {}
        for name in names or (*mine, OWN, EVERY):
            if name in (OWN, EVERY) or name.removeprefix(SCHEME) in served.bundles:
                found[name] = served.bundles if name == EVERY else self._bundle(name)
                continue
            wanted = mine[0] if name == DEFAULT and mine else name
            if wanted in served.svids and (attested.proxy or wanted in mine):
                found[name] = served.svids[wanted]
            elif not attested.proxy and wanted not in mine:
                raise self._callers.refusal(
                    Status.PERMISSION_DENIED, "not-own", f"the secret `{name[:256]}` is not the caller's"
                )
        return found

    def _bundle(self, name: str) -> Bundle:
        return self._served.own_bundle() if name == OWN else self._served.bundles[name.removeprefix(SCHEME)]

    def _response(self, sources: Sources, nonce: str) -> Message:
        response = message(_DISCOVERY + "DiscoveryResponse")(
            version_info=str(self._served.version), type_url=_SECRET_URL, nonce=nonce
        )
        for name, source in sources.items():
            response.resources.add().CopyFrom(pack(_secret(name, source)))
        return response  # type: ignore[no-any-return]


class _Subscription:
    """One stream: which names it follows, and what it was told last."""

    def __init__(self, service: SecretDiscovery, stream: Any, caller: Caller) -> None:
        self._service = service
        self._stream = stream
        self._caller = caller
        self._names: tuple[str, ...] | None = None
        """None: it has not asked yet."""
        self._said: Sources = {}
        self._nonce = 0
        self._states = service._served.states

    async def serve(self) -> None:
        """Until the client ends it."""
        hearing = asyncio.ensure_future(self._service._receive(self._stream))
        changing = asyncio.ensure_future(self._service._served.change(-1))
        try:
            while True:
                await asyncio.wait((hearing, changing), return_when=asyncio.FIRST_COMPLETED)
                if hearing.done():
                    request = hearing.result()
                    if request is None:
                        return
                    hearing = asyncio.ensure_future(self._service._receive(self._stream))
                    self._hear(request)
                if changing.done():
                    changing = asyncio.ensure_future(self._service._served.change(self._service._served.version))
                    await self._attest_again()
                await self._say()
        finally:
            hearing.cancel()
            changing.cancel()
            await asyncio.gather(hearing, changing, return_exceptions=True)

    def _hear(self, request: Any) -> None:
        if request.response_nonce and request.response_nonce != str(self._nonce):
            return  # an answer to what has been replaced since
        if request.HasField("error_detail"):
            self._service._on_nack(", ".join(request.resource_names)[:_NACK_CHARACTERS], request.error_detail.message)
        names = tuple(request.resource_names)
        if names != self._names:
            self._names = names
            self._said = {}

    async def _attest_again(self) -> None:
        served, callers = self._service._served, self._service._callers
        if served.states != self._states:
            self._states = served.states
            self._caller.attested = await callers.attest(self._caller.process)
        elif not self._caller.process.is_alive:
            raise callers.refusal(Status.PERMISSION_DENIED, "process-ended", "the calling process has ended")

    async def _say(self) -> None:
        """All that it follows, when any of it is different. What is refused is not sent again before it changes."""
        if self._names is None:
            return
        sources = self._service._sources(self._caller, self._names)
        if not sources or _same(sources, self._said):
            return
        self._said = sources
        self._nonce += 1
        await self._stream.send_message(self._service._response(sources, str(self._nonce)))


def _same(one: Sources, other: Sources) -> bool:
    return one.keys() == other.keys() and all(one[name] is other[name] for name in one)


def _secret(name: str, source: object) -> Message:
    if isinstance(source, X509Svid):
        return _certificate(name, source)
    return _validation(name, (source,) if isinstance(source, Bundle) else cast("Bundles", source).values())


def _certificate(name: str, svid: X509Svid) -> Message:
    made = message(_TLS + "Secret")(name=name)
    made.tls_certificate.certificate_chain.inline_bytes = b"".join(pem("CERTIFICATE", der) for der in svid.chain)
    made.tls_certificate.private_key.inline_bytes = pem("PRIVATE KEY", svid.key)
    return made  # type: ignore[no-any-return]


def _validation(name: str, bundles: Iterable[Bundle]) -> Message:
    validator = message(_TLS + "SPIFFECertValidatorConfig")()
    for bundle in bundles:
        if bundle.x509:  # the proxy refuses all of them for one that is empty
            text = b"".join(pem("CERTIFICATE", der) for der in bundle.x509)
            validator.trust_domains.add(name=bundle.trust_domain).trust_bundle.inline_bytes = text
    made = message(_TLS + "Secret")(name=name)
    extension = made.validation_context.custom_validator_config
    extension.name = _VALIDATOR
    extension.typed_config.CopyFrom(pack(validator))
    return made  # type: ignore[no-any-return]
