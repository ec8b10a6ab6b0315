"""Envoy's secrets: certificates by SPIFFE ID, and what checks those of others; who may have which.

The node's proxy gets every local SVID; any other caller its own. Names: a SPIFFE ID, `default` for the caller's first;
as validation context `spiffe://TRUSTDOMAIN` with the bundle of that trust domain, `ROOTCA` with that of the own one,
and `ALL` with those of all, each believed of its own names only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, cast

from google.protobuf.message import Message
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from bulkhead.svid.bundle import Bundle
from bulkhead.svid.callers import Callers
from bulkhead.svid.endpoint import MESSAGE_BYTES_MAX, receive
from bulkhead.svid.messages import TYPE_URL, message, pack
from bulkhead.svid.pem import pem
from bulkhead.svid.served import Served
from bulkhead.svid.spiffe_id import SCHEME
from bulkhead.svid.svids import Attested, X509Svid

NAMES_MAX: Final = 4096
DEFAULT: Final = "default"
OWN: Final = "ROOTCA"
EVERY: Final = "ALL"
_TLS: Final = "envoy.extensions.transport_sockets.tls.v3."
_DISCOVERY: Final = "envoy.service.discovery.v3."
_SECRET_URL: Final = f"{TYPE_URL}{_TLS}Secret"
_VALIDATOR: Final = "envoy.tls.cert_validator.spiffe"
_NACK_CHARACTERS: Final = 512

Bundles = Mapping[str, Bundle]
Sources = Mapping[str, object]
"""By name, what a secret is made of: another object whenever the secret is another."""


class Secrets:
    """What every way to ask for secrets shares. `on_nack` is told the names and the words of what a client refused."""

    def __init__(self, served: Served, callers: Callers, on_nack: Callable[[str, str], None]) -> None:
        self.served = served
        self.callers = callers
        self._on_nack = on_nack

    @staticmethod
    def kinds() -> tuple[Any, Any]:
        """The classes of requests and responses."""
        return message(_DISCOVERY + "DiscoveryRequest"), message(_DISCOVERY + "DiscoveryResponse")

    async def receive(self, stream: Any, bytes_max: int = MESSAGE_BYTES_MAX) -> Any:
        """The next request of a call; None at its end. Raises GRPCError for one that cannot be answered."""
        request = await receive(stream, self.kinds()[0], bytes_max)
        if request is None:
            return None
        if request.type_url not in ("", _SECRET_URL):
            raise GRPCError(Status.INVALID_ARGUMENT, f"resources of the type `{request.type_url[:128]}` are not here")
        if len(request.resource_names) > NAMES_MAX:
            raise GRPCError(Status.INVALID_ARGUMENT, f"more than {NAMES_MAX} names")
        return request

    def every_name(self, attested: Attested) -> tuple[str, ...]:
        """All that the caller may have, each by one name."""
        return (*self._mine(attested), OWN, EVERY)

    def sources(self, attested: Attested, names: Iterable[str]) -> dict[str, object]:
        """What the named secrets are made of: those that there are and that the caller may have."""
        found = {name: self._source(attested, name) for name in names}
        return {name: source for name, source in found.items() if source is not None}

    def is_anothers(self, attested: Attested, name: str) -> bool:
        """Whether the caller may not have it, be it there or not."""
        is_own = attested.proxy or self._is_bundle(name) or self._spiffe_id(attested, name) in attested.workloads
        return not is_own

    def refusal(self, name: str) -> GRPCError:
        """That the secret is another workload's; counted."""
        return self.callers.refusal(
            Status.PERMISSION_DENIED, "not-own", f"the secret `{name[:256]}` is not the caller's"
        )

    def refused(self, names: Iterable[str], error: str) -> None:
        """The client cannot use these."""
        self._on_nack(", ".join(names)[:_NACK_CHARACTERS], error)

    def response(self, sources: Sources, nonce: str) -> Message:
        """A message with these secrets."""
        response = self.kinds()[1](version_info=str(self.served.version), type_url=_SECRET_URL, nonce=nonce)
        for name, source in sources.items():
            response.resources.add().CopyFrom(pack(_secret(name, source)))
        return response  # type: ignore[no-any-return]

    def _mine(self, attested: Attested) -> tuple[str, ...]:
        return tuple(self.served.svids) if attested.proxy else attested.workloads

    def _source(self, attested: Attested, name: str) -> object | None:
        if self._is_bundle(name):
            return self.served.bundles if name == EVERY else self._bundle(name)
        return None if self.is_anothers(attested, name) else self.served.svids.get(self._spiffe_id(attested, name))

    def _spiffe_id(self, attested: Attested, name: str) -> str:
        return next(iter(self._mine(attested)), name) if name == DEFAULT else name

    def _is_bundle(self, name: str) -> bool:
        return name in (OWN, EVERY) or name.removeprefix(SCHEME) in self.served.bundles

    def _bundle(self, name: str) -> Bundle:
        return self.served.own_bundle() if name == OWN else self.served.bundles[name.removeprefix(SCHEME)]


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
