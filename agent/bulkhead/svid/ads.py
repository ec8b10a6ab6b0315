"""Envoy's aggregated discovery, version 3, of secrets alone: one stream for all names.

Each stream takes some 300 KB of the proxy's memory. By state of the world: each request names all that
is wanted; of secrets a response needs to hold only those that are new.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any, Final

from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError

from bulkhead.svid.endpoint import MESSAGE_BYTES_MAX, unimplemented
from bulkhead.svid.secrets import Secrets
from bulkhead.svid.subscription import Subscription

SERVICE: Final = "/envoy.service.discovery.v3.AggregatedDiscoveryService/"
_PROXY_BYTES_MAX: Final = 8 << 20
"""Of one request of the node's proxy, which names every local workload: NAMES_MAX of the longest SPIFFE IDs."""
_LOT: Final = 32
"""Secrets in one response: the proxy makes TLS contexts of all of them before it does anything else."""


class AggregatedDiscovery:
    """The service."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets

    def __mapping__(self) -> Mapping[str, Handler]:
        """Methods, as grpclib wants them. Delta discovery is not offered."""
        streaming = Cardinality.STREAM_STREAM
        return {
            f"{SERVICE}DeltaAggregatedResources": unimplemented(streaming),
            f"{SERVICE}StreamAggregatedResources": Handler(self._stream_resources, streaming, *self._secrets.kinds()),
        }

    async def _stream_resources(self, stream: Any) -> None:
        self._secrets.served.counts.calls["StreamAggregatedResources"] += 1
        async with self._secrets.callers.admit(stream) as caller:
            bytes_max = _PROXY_BYTES_MAX if caller.attested.proxy else MESSAGE_BYTES_MAX
            await _Stream(self._secrets, stream, caller, bytes_max).serve()


class _Stream(Subscription):
    """Which names it follows, and what it was told of each. It is told more once it has answered the last.

    A client refuses a response whole, and Envoy leaves what comes after the first secret that it cannot use: all is
    sent again in halves, until what cannot be used stands alone, or the client takes no notice of it any more. A name
    that is not there, or not the caller's, holds up no other.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._names: dict[str, None] = {}
        self._said: dict[str, object] = {}
        self._nonce = 0
        self._unanswered: tuple[str, ...] = ()
        """Names of the last response, until it is answered."""
        self._again: list[tuple[str, ...]] = []
        """Parts of refused responses."""

    def _hear(self, request: Any) -> None:
        if not request.type_url:
            raise GRPCError(Status.INVALID_ARGUMENT, "the request names no type of resources")
        if self._nonce and request.response_nonce not in ("", str(self._nonce)):
            return  # an answer to what has been replaced since
        names = dict.fromkeys(request.resource_names)
        if self._unanswered:
            if request.response_nonce:
                self._answered(request)
        elif names.keys() == self._names.keys():
            self._said = {}  # somebody in the client has come to want what others in it have had
        self._follow(names)

    def _answered(self, request: Any) -> None:
        names, self._unanswered = self._unanswered, ()
        if not request.HasField("error_detail"):
            return
        self._secrets.refused(names, request.error_detail.message)
        if len(names) > 1:
            half = len(names) // 2
            self._again += [names[:half], names[half:]]

    def _follow(self, names: dict[str, None]) -> None:
        for name in names.keys() - self._names.keys():
            if self._secrets.is_anothers(self._caller.attested, name):
                self._secrets.refusal(name)  # only counted: the stream goes on
        self._names = names

    async def _say(self) -> None:
        """What is new. What is refused is not sent again before it changes."""
        if self._unanswered:
            return
        sources = self._secrets.sources(self._caller.attested, self._names)
        self._said = {name: self._said[name] for name in sources if name in self._said}
        lot = self._lot(sources)
        if not lot:
            return
        self._said |= lot
        self._unanswered = tuple(lot)
        self._nonce += 1
        await self._stream.send_message(self._secrets.response(lot, str(self._nonce)))

    def _lot(self, sources: dict[str, object]) -> dict[str, object]:
        while self._again:
            names = self._again.pop()
            if lot := {name: sources[name] for name in names if name in sources}:
                return lot
        new = ((name, source) for name, source in sources.items() if self._said.get(name) is not source)
        return dict(islice(new, _LOT))
