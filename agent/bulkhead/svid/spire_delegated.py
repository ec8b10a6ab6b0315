"""SPIRE's Delegated Identity API: what its agent knows, asked by selectors or by process, over its admin socket.

The admin socket authenticates nobody by itself: SPIRE attests whoever connects as it attests any workload, and lets in
those whose SPIFFE ID is among its `authorized_delegates`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from bulkhead.svid.messages import message
from bulkhead.svid.spiffe_id import SCHEME
from bulkhead.svid.spire_calls import Call, Caller
from bulkhead.svid.spire_offers import Offer, Token
from bulkhead.svid.spire_source import Connection
from bulkhead.svid.svids import Workload

T = TypeVar("T")

_PACKAGE: Final = "spire.api.agent.delegatedidentity.v1"
_SERVICE: Final = f"/{_PACKAGE}.DelegatedIdentity"


class Delegated:
    """The API at one socket."""

    name = "spire-delegated"

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncGenerator[Connection, None]:
        """A connection, which never grows old."""
        with contextlib.closing(Caller(self._socket, {})) as caller:
            yield Connection(caller, _nothing)

    def can_ask(self, workload: Workload) -> bool:
        """Whether there is anything to ask with."""
        return bool(workload.selectors or workload.pid)

    def process_of(self, workload: Workload) -> int:
        """The process by which the workload is asked for; 0: by selectors."""
        return 0 if workload.selectors else workload.pid

    def svids(self, workload: Workload) -> Call[Sequence[Offer]]:
        """Subscription: the SVIDs of a workload."""
        question = _question("SubscribeToX509SVIDsRequest", workload)
        return _call("SubscribeToX509SVIDs", question, _offers)

    def x509_bundles(self) -> Call[Mapping[str, bytes]]:
        """Subscription: concatenated certificates, by trust domain."""
        question = _message("SubscribeToX509BundlesRequest")()
        return _call("SubscribeToX509Bundles", question, lambda answer: dict(answer.ca_certificates))

    def jwt_bundles(self) -> Call[Mapping[str, bytes]]:
        """Subscription: JWKS, by trust domain."""
        question = _message("SubscribeToJWTBundlesRequest")()
        return _call("SubscribeToJWTBundles", question, lambda answer: dict(answer.bundles))

    def tokens(self, workload: Workload, audiences: Sequence[str]) -> Call[Sequence[Token]]:
        """JWT-SVIDs of a workload."""
        question = _question("FetchJWTSVIDsRequest", workload)
        question.audience.extend(audiences)
        return _call("FetchJWTSVIDs", question, _tokens)


async def _nothing() -> None:
    pass


def _call(method: str, question: Any, read: Callable[[Any], T]) -> Call[T]:
    return Call(f"{_SERVICE}/{method}", question, _message(f"{method}Response"), read)


def _offers(answer: Any) -> Sequence[Offer]:
    return [
        Offer(_spiffe_id(one.x509_svid.id), tuple(one.x509_svid.cert_chain), one.x509_svid_key)
        for one in answer.x509_svids
    ]


def _tokens(answer: Any) -> Sequence[Token]:
    return [Token(_spiffe_id(one.id), one.token) for one in answer.svids]


def _message(name: str) -> Any:
    return message(f"{_PACKAGE}.{name}")


def _question(name: str, workload: Workload) -> Any:
    """By selectors or by process: SPIRE takes no question with both."""
    question = _message(name)()
    if not workload.selectors:
        question.pid = workload.pid
    for kind, value in workload.selectors:
        question.selectors.add(type=kind, value=value)
    return question


def _spiffe_id(found: Any) -> str:
    return f"{SCHEME}{found.trust_domain}{found.path}"
