"""The node's own authority as a source of SVIDs: makes them, and makes them anew at half of their life."""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from bulkhead.svid.authority import Authority
from bulkhead.svid.bundle import Bundle
from bulkhead.svid.jwt import LIFETIME_S, issue
from bulkhead.svid.svids import JwtSvid, Workload, X509Svid
from bulkhead.svid.upstream import UpstreamError
from bulkhead.svid.x509 import Signer, make_intermediate, make_leaf, private_bytes

INTERMEDIATE_S: Final = 86400.0
AUDIENCES_MAX: Final = 16
AUDIENCE_BYTES_MAX: Final = 1024
_JITTER: Final = 0.1
"""Of half a life: so much earlier at most, so that what was made at once is not renewed at once for ever."""
_AT_ONCE: Final = 32
"""SVIDs made before anybody else is served: some ten milliseconds."""

_LOOK_S: Final = 30.0


class Embedded:
    """SVIDs of this node's own authority. Is an `Upstream`."""

    name = "embedded"

    def __init__(
        self, authority: Authority, lifetime_s: float, intermediate_s: float = INTERMEDIATE_S, jitter: float = _JITTER
    ) -> None:
        self.error = ""
        self.issued = {"x509": 0, "jwt": 0, "intermediate": 0}
        """How many were made."""
        self._authority = authority
        self._lifetime_s = lifetime_s
        self._intermediate_s = intermediate_s
        self._jitter = jitter
        self._intermediate = self._new_intermediate()
        self._bundle = Bundle(authority.trust_domain).with_anchors([authority.anchor.der])
        self._wanted: dict[str, Workload] = {}
        self._svids: dict[str, X509Svid] = {}
        self._due: list[tuple[float, str]] = []
        """When to make which anew; entries of dropped ones are passed over."""
        self._asked = asyncio.Event()

    async def run(self, changed: Callable[[], None]) -> None:
        """Make and renew until cancelled."""
        while True:
            self._asked.clear()
            if self._issue_due():
                changed()
                await asyncio.sleep(0)
                continue
            await self._until_due()

    async def _until_due(self) -> None:
        try:
            async with asyncio.timeout(self._pause_s()):
                await self._asked.wait()
        except TimeoutError:
            return

    def _pause_s(self) -> float:
        """Never long: the clock that certificates live by may be set meanwhile."""
        return min(_LOOK_S, max(0.0, self._due[0][0] - time.time())) if self._due else _LOOK_S

    def _issue_due(self) -> int:
        """Make some of those that are due; returns how many. A failure to make one is nothing to go on after."""
        now, made = time.time(), 0
        if now >= self._intermediate_renewal:
            self._intermediate = self._new_intermediate()
        while self._due and self._due[0][0] <= now and made < _AT_ONCE:
            _, spiffe_id = heapq.heappop(self._due)
            workload = self._wanted.get(spiffe_id)
            if workload is not None and self._is_due(spiffe_id, now):
                self._issue(workload, now)
                made += 1
        return made

    def _is_due(self, spiffe_id: str, now: float) -> bool:
        """Whether an entry of the heap still counts: a workload that left and came back has two."""
        held = self._svids.get(spiffe_id)
        return held is None or now >= held.issued_at + (held.expires_at - held.issued_at) / 2 * (1 - self._jitter)

    def _issue(self, workload: Workload, now: float) -> None:
        leaf = make_leaf(self._intermediate, workload.spiffe_id, now, self._lifetime_s)
        self.issued["x509"] += 1
        chain = (leaf.der, self._intermediate.der)
        made = X509Svid(workload.spiffe_id, chain, private_bytes(leaf.key), now, leaf.expires_at, workload.name)
        self._svids[workload.spiffe_id] = made
        half = (made.expires_at - now) / 2
        heapq.heappush(self._due, (now + half * (1 - self._jitter * random.random()), workload.spiffe_id))

    def _new_intermediate(self) -> Signer:
        now = time.time()
        made = make_intermediate(self._authority.anchor, self._authority.trust_domain, now, self._intermediate_s)
        self.issued["intermediate"] += 1
        self._intermediate_renewal = now + (made.expires_at - now) / 2
        return made

    def want(self, workloads: Sequence[Workload]) -> None:
        """Make SVIDs for the new ones at once, drop those of all others."""
        wanted = {one.spiffe_id: one for one in workloads}
        now = time.time()
        for spiffe_id, workload in wanted.items():
            before = self._wanted.get(spiffe_id)
            if before is None or before.name != workload.name:
                self._svids.pop(spiffe_id, None)
                heapq.heappush(self._due, (now, spiffe_id))
        self._wanted = wanted
        self._svids = {key: svid for key, svid in self._svids.items() if key in wanted}
        self._asked.set()

    def svids(self) -> Mapping[str, X509Svid]:
        """The current ones by SPIFFE ID."""
        now = time.time()
        return {key: svid for key, svid in self._svids.items() if svid.expires_at > now}

    def bundles(self) -> Mapping[str, Bundle]:
        """This node's anchor; those of other nodes come from their records."""
        return {self._authority.trust_domain: self._bundle}

    async def jwt(self, workload: Workload, audiences: Sequence[str]) -> JwtSvid:
        """A token signed here and now."""
        if not 1 <= len(audiences) <= AUDIENCES_MAX or not all(0 < len(a) <= AUDIENCE_BYTES_MAX for a in audiences):
            raise UpstreamError(f"a token has 1 to {AUDIENCES_MAX} audiences of at most {AUDIENCE_BYTES_MAX} bytes")
        made = issue(self._authority.anchor, workload.spiffe_id, audiences, time.time(), LIFETIME_S, workload.name)
        self.issued["jwt"] += 1
        return made
