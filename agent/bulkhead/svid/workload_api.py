"""The SPIFFE Workload API: X.509-SVIDs, JWT-SVIDs and bundles for whom the agent attests the caller as."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final

from google.protobuf.message import Message
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError

from bulkhead.svid import bundle as bundles
from bulkhead.svid import jwt
from bulkhead.svid.callers import Caller, Callers
from bulkhead.svid.endpoint import receive, unimplemented
from bulkhead.svid.messages import message
from bulkhead.svid.served import Served
from bulkhead.svid.spiffe_id import SCHEME, SpiffeIdError, parse
from bulkhead.svid.upstream import Upstream, UpstreamError

SERVICE: Final = "/SpiffeWorkloadAPI/"
HEADER: Final = ("workload.spiffe.io", "true")
AUDIENCES_MAX: Final = 16
_ISSUED_S: Final = 2.0


class WorkloadApi:
    """The service. `upstream` makes tokens; everything else is in `served`."""

    def __init__(self, served: Served, callers: Callers, upstream: Callable[[], Upstream | None]) -> None:
        self._served = served
        self._callers = callers
        self._upstream = upstream

    def __mapping__(self) -> Mapping[str, Handler]:
        """Methods, as grpclib wants them. The profile for WIT-SVIDs is not offered."""
        streaming, unary = Cardinality.UNARY_STREAM, Cardinality.UNARY_UNARY
        methods = (
            ("FetchX509SVID", self._fetch_x509_svid, streaming, "X509SVIDRequest", "X509SVIDResponse"),
            ("FetchX509Bundles", self._fetch_x509_bundles, streaming, "X509BundlesRequest", "X509BundlesResponse"),
            ("FetchJWTSVID", self._fetch_jwt_svid, unary, "JWTSVIDRequest", "JWTSVIDResponse"),
            ("FetchJWTBundles", self._fetch_jwt_bundles, streaming, "JWTBundlesRequest", "JWTBundlesResponse"),
            ("ValidateJWTSVID", self._validate_jwt_svid, unary, "ValidateJWTSVIDRequest", "ValidateJWTSVIDResponse"),
        )
        others = {f"{SERVICE}Fetch{name}": unimplemented(streaming) for name in ("WITSVID", "WITBundles")}
        return others | {SERVICE + name: Handler(do, kind, *map(message, types)) for name, do, kind, *types in methods}

    # Streams

    async def _fetch_x509_svid(self, stream: Any) -> None:
        await self._stream(stream, "X509SVIDRequest", self._x509_svids, self._issued)

    async def _fetch_x509_bundles(self, stream: Any) -> None:
        await self._stream(stream, "X509BundlesRequest", self._x509_bundles)

    async def _fetch_jwt_bundles(self, stream: Any) -> None:
        await self._stream(stream, "JWTBundlesRequest", self._jwt_bundles)

    async def _stream(
        self,
        stream: Any,
        request: str,
        answer: Callable[[Caller], Message],
        ready: Callable[[Caller], Awaitable[None]] | None = None,
    ) -> None:
        """Say what there is as soon as it is `ready`, and again whenever it is different."""
        async with self._admitted(stream, request) as (caller, _):
            if ready is not None:
                await ready(caller)
            said: Message | None = None
            async with contextlib.aclosing(self._moments(caller)) as moments:
                async for _ in moments:
                    found = answer(caller)
                    if found != said:
                        await stream.send_message(found)
                        said = found

    async def _moments(self, caller: Caller) -> AsyncGenerator[None, None]:
        """Now, and after every change; where policy has changed, for a caller that was attested again."""
        served = self._served
        states = served.states
        while True:
            version = served.version
            yield
            await served.change(version)
            if served.states != states:
                states = served.states
                caller.attested = await self._callers.attest(caller.process)
            elif not caller.process.is_alive:
                raise self._callers.refusal(Status.PERMISSION_DENIED, "process-ended", "the calling process has ended")

    async def _issued(self, caller: Caller) -> None:
        """Wait a moment for the SVID of a workload that policy has only just named."""
        served = self._served
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ISSUED_S):
                while not any(one in served.svids for one in caller.attested.workloads):
                    await served.change(served.version)

    def _x509_svids(self, caller: Caller) -> Message:
        found = [svid for one in caller.attested.workloads if (svid := self._served.svids.get(one)) is not None]
        if not found:
            raise self._callers.refusal(Status.UNAVAILABLE, "no-svid", "there is no X.509-SVID of the caller yet")
        own = b"".join(self._served.own_bundle().x509)
        response = message("X509SVIDResponse")()
        for svid in found:
            response.svids.add(
                spiffe_id=svid.spiffe_id,
                x509_svid=b"".join(svid.chain),
                x509_svid_key=svid.key,
                bundle=own,
                hint=svid.hint,
            )
        for foreign in self._served.foreign():
            response.federated_bundles[SCHEME + foreign.trust_domain] = b"".join(foreign.x509)
        return response  # type: ignore[no-any-return]

    def _x509_bundles(self, _: Caller) -> Message:
        response = message("X509BundlesResponse")()
        for domain, one in self._served.bundles.items():
            response.bundles[SCHEME + domain] = b"".join(one.x509)
        return response  # type: ignore[no-any-return]

    def _jwt_bundles(self, _: Caller) -> Message:
        response = message("JWTBundlesResponse")()
        for domain, one in self._served.bundles.items():
            response.bundles[SCHEME + domain] = bundles.write(one, jwt_only=True)
        return response  # type: ignore[no-any-return]

    # Single answers

    async def _fetch_jwt_svid(self, stream: Any) -> None:
        async with self._admitted(stream, "JWTSVIDRequest") as (caller, request):
            self._check_audiences(request.audience)
            upstream, response = self._upstream(), message("JWTSVIDResponse")()
            for spiffe_id in self._asked(caller, request.spiffe_id):
                workload = self._served.workload(spiffe_id)
                if workload is None or upstream is None:
                    raise self._callers.refusal(Status.UNAVAILABLE, "no-svid", "there is no JWT-SVID of the caller yet")
                try:
                    made = await upstream.jwt(workload, tuple(request.audience))
                except UpstreamError as error:
                    raise self._callers.refusal(Status.UNAVAILABLE, "upstream", str(error)) from error
                response.svids.add(spiffe_id=made.spiffe_id, svid=made.token, hint=made.hint)
            await stream.send_message(response)

    def _check_audiences(self, audiences: list[str]) -> None:
        if not 1 <= len(audiences) <= AUDIENCES_MAX or not all(audiences):
            text = f"a JWT-SVID is for 1 to {AUDIENCES_MAX} audiences, none of them empty"
            raise self._callers.refusal(Status.INVALID_ARGUMENT, "audience", text)

    def _asked(self, caller: Caller, wanted: str) -> tuple[str, ...]:
        """The caller's own IDs, or the one of them that it wants."""
        own = caller.attested.workloads
        if wanted:
            try:
                parse(wanted)
            except SpiffeIdError as error:
                raise self._callers.refusal(Status.INVALID_ARGUMENT, "spiffe-id", f"`spiffe_id`: {error}") from error
            if wanted not in own:
                raise self._callers.refusal(Status.PERMISSION_DENIED, "not-own", f"the caller is not `{wanted}`")
            return (wanted,)
        if not own:
            raise self._callers.refusal(Status.PERMISSION_DENIED, "no-identity", "the proxy has no identity of its own")
        return own

    async def _validate_jwt_svid(self, stream: Any) -> None:
        async with self._admitted(stream, "ValidateJWTSVIDRequest") as (_, request):
            if not request.audience:
                raise self._callers.refusal(Status.INVALID_ARGUMENT, "audience", "`audience` is missing")
            try:
                identity, claims = jwt.validate(request.svid, request.audience, self._served.bundles)
            except jwt.TokenError as error:
                raise self._callers.refusal(Status.INVALID_ARGUMENT, "token", str(error)) from error
            response = message("ValidateJWTSVIDResponse")(spiffe_id=str(identity))
            response.claims.update(claims)
            await stream.send_message(response)

    # Callers

    @contextlib.asynccontextmanager
    async def _admitted(self, stream: Any, request: str) -> AsyncIterator[tuple[Caller, Any]]:
        """The caller and what it asks, once it has shown that it means this service and who it is."""
        self._served.counts.calls[request.removesuffix("Request")] += 1
        name, value = HEADER
        if stream.metadata.getall(name, []) != [value]:
            text = f"the request lacks the metadata `{name}: {value}`"
            raise self._callers.refusal(Status.INVALID_ARGUMENT, "no-header", text)
        async with self._callers.admit(stream) as caller:
            asked = await receive(stream, message(request))
            if asked is None:
                raise GRPCError(Status.INVALID_ARGUMENT, "the request has no message")
            yield caller, asked
