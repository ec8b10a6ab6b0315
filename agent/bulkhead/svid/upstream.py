"""Where SVIDs come from: the node's own authority (`issuing`), or somebody who issues for it (SPIRE)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from bulkhead.svid.bundle import Bundle
from bulkhead.svid.svids import JwtSvid, Workload, X509Svid


class UpstreamError(Exception):
    """The upstream cannot give what was asked now; the message is one sentence, fit for a caller's eyes."""


class Upstream(Protocol):
    """A source of SVIDs for the workloads of one node, and of the bundles that check those of others.

    Used within one event loop. `svids` and `bundles` give what is held now and never wait; what has expired is not
    among it. An implementation never gives an SVID whose SPIFFE ID is not that of a wanted workload.
    """

    name: str
    """For status and logs: `embedded`, `spire-broker`, `spire-delegated`."""
    error: str
    """Why it has nothing new now; empty while all is well."""

    async def run(self, changed: Callable[[], None]) -> None:
        """Obtain and renew until cancelled; call `changed` after every change of `svids`, `bundles` or `error`.

        Keeps trying where the upstream is away, and keeps what it has meanwhile. Does not return by itself.
        """

    def want(self, workloads: Sequence[Workload]) -> None:
        """From now on these are the node's workloads: obtain SVIDs for the new ones, drop those of all others."""

    def svids(self) -> Mapping[str, X509Svid]:
        """The current X.509-SVIDs by SPIFFE ID."""

    def bundles(self) -> Mapping[str, Bundle]:
        """The current bundles by trust domain (without `spiffe://`), the own domain's among them.

        Empty: not known yet, and nobody is served before it is. Bundles that policy names (`kind: TrustBundle`) and
        the nodes' own anchors are no business of an upstream: whoever serves adds them.
        """

    async def jwt(self, workload: Workload, audiences: Sequence[str]) -> JwtSvid:
        """A JWT-SVID of that workload for those audiences, one at least. Raises UpstreamError."""
