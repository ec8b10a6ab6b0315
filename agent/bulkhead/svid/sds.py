"""Envoy's secret discovery, version 3: a stream for each name, or for a few."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError

from bulkhead.svid.callers import Caller
from bulkhead.svid.endpoint import MESSAGE_BYTES_MAX, unimplemented
from bulkhead.svid.secrets import Secrets, Sources
from bulkhead.svid.subscription import Subscription

SERVICE: Final = "/envoy.service.secret.v3.SecretDiscoveryService/"


class SecretDiscovery:
    """The service."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets

    def __mapping__(self) -> Mapping[str, Handler]:
        """Methods, as grpclib wants them. Delta discovery is not offered."""
        streaming, unary = Cardinality.STREAM_STREAM, Cardinality.UNARY_UNARY
        return {
            f"{SERVICE}DeltaSecrets": unimplemented(streaming),
            f"{SERVICE}StreamSecrets": Handler(self._stream_secrets, streaming, *self._secrets.kinds()),
            f"{SERVICE}FetchSecrets": Handler(self._fetch_secrets, unary, *self._secrets.kinds()),
        }

    async def _fetch_secrets(self, stream: Any) -> None:
        self._secrets.served.counts.calls["FetchSecrets"] += 1
        async with self._secrets.callers.admit(stream) as caller:
            request = await self._secrets.receive(stream)
            if request is None:
                raise GRPCError(Status.INVALID_ARGUMENT, "the request has no message")
            sources = _sources(self._secrets, caller, request.resource_names)
            if missing := [name for name in request.resource_names if name not in sources]:
                raise self._secrets.callers.refusal(Status.NOT_FOUND, "no-secret", f"there is no secret `{missing[0]}`")
            await stream.send_message(self._secrets.response(sources, ""))

    async def _stream_secrets(self, stream: Any) -> None:
        self._secrets.served.counts.calls["StreamSecrets"] += 1
        async with self._secrets.callers.admit(stream) as caller:
            await _Stream(self._secrets, stream, caller, MESSAGE_BYTES_MAX).serve()


class _Stream(Subscription):
    """Which names it follows, and what it was told last."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._names: tuple[str, ...] | None = None
        """None: it has not asked yet."""
        self._said: Sources = {}
        self._nonce = 0

    def _hear(self, request: Any) -> None:
        if request.response_nonce and request.response_nonce != str(self._nonce):
            return  # an answer to what has been replaced since
        if request.HasField("error_detail"):
            self._secrets.refused(request.resource_names, request.error_detail.message)
        names = tuple(request.resource_names)
        if names != self._names:
            self._names = names
            self._said = {}

    async def _say(self) -> None:
        """All that it follows, when any of it is different. What is refused is not sent again before it changes."""
        if self._names is None:
            return
        sources = _sources(self._secrets, self._caller, self._names)
        if not sources or _same(sources, self._said):
            return
        self._said = sources
        self._nonce += 1
        await self._stream.send_message(self._secrets.response(sources, str(self._nonce)))


def _same(one: Sources, other: Sources) -> bool:
    return one.keys() == other.keys() and all(one[name] is other[name] for name in one)


def _sources(secrets: Secrets, caller: Caller, names: Iterable[str]) -> Sources:
    """Those that there are of the named ones; without names, of all that the caller may have.

    Raises GRPCError for a name that is another workload's.
    """
    attested = caller.attested
    for name in names:
        if secrets.is_anothers(attested, name):
            raise secrets.refusal(name)
    return secrets.sources(attested, names or secrets.every_name(attested))
