"""What the two APIs of SPIRE have in common: the four things that can be asked, and a connection to ask them on."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

from bulkhead.svid.spire_calls import Call, Caller
from bulkhead.svid.spire_offers import Offer, Token
from bulkhead.svid.svids import Workload


class Connection(NamedTuple):
    """A way to ask, for as long as its context lasts."""

    caller: Caller
    watch: Callable[[], Coroutine[None, None, None]]
    """Returns, or raises CallError when the connection has to be made anew."""


class Source(Protocol):
    """One of SPIRE's APIs. Subscriptions give all there is each time: what is absent was taken back."""

    name: str

    def connected(self) -> AbstractAsyncContextManager[Connection]:
        """A connection. Raises CallError, `absent` when there is no such API."""

    def can_ask(self, workload: Workload) -> bool:
        """Whether there is anything to ask for this workload with."""

    def process_of(self, workload: Workload) -> int:
        """The process by which it is asked for, which has to live on meanwhile; 0: none."""

    def svids(self, workload: Workload) -> Call[Sequence[Offer]]:
        """Subscription: the SVIDs of a workload."""

    def x509_bundles(self) -> Call[Mapping[str, bytes]]:
        """Subscription: concatenated certificates, by trust domain."""

    def jwt_bundles(self) -> Call[Mapping[str, bytes]]:
        """Subscription: JWKS, by trust domain."""

    def tokens(self, workload: Workload, audiences: Sequence[str]) -> Call[Sequence[Token]]:
        """JWT-SVIDs of a workload."""
