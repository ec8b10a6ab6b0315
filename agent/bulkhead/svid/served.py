"""What is handed out now: the SVIDs of the upstream, and the bundles of every trust domain that counts."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from bulkhead.svid.bundle import Bundle
from bulkhead.svid.svids import Workload, X509Svid


@dataclass(frozen=True, slots=True)
class State:
    """What policy and the records of nodes say."""

    trust_domain: str
    workloads: tuple[Workload, ...] = ()
    """Of this node."""
    anchors: tuple[bytes, ...] = ()
    """Certificates (DER) of the authorities of all nodes that count, this one's among them where it has a record."""
    federated: tuple[Bundle, ...] = ()
    unusable: tuple[str, ...] = ()
    """What was said and cannot be used, a sentence each."""


@dataclass(slots=True)
class Counts:
    """What was asked, and what was not given."""

    calls: Counter[str] = field(default_factory=Counter)
    """By method."""
    refusals: Counter[str] = field(default_factory=Counter)
    """By reason."""


class Served:
    """Holds what callers get, and tells them when it changes."""

    def __init__(self) -> None:
        self.state: State | None = None
        """None: not said yet, and nobody is served."""
        self.svids: Mapping[str, X509Svid] = {}
        """By SPIFFE ID."""
        self.bundles: Mapping[str, Bundle] = {}
        """By trust domain. Another object whenever it is different, and so is each bundle."""
        self.states = 0
        """How often policy or the nodes have changed: callers are attested again."""
        self.version = 0
        """How often anything has changed."""
        self.counts = Counts()
        self._workloads: Mapping[str, Workload] = {}
        self._changed = asyncio.Event()

    @property
    def is_ready(self) -> bool:
        """Whether there is anything to say: policy, and what vouches for the own trust domain."""
        return self.state is not None and self.state.trust_domain in self.bundles

    def workload(self, spiffe_id: str) -> Workload | None:
        """The local workload of that SPIFFE ID."""
        return self._workloads.get(spiffe_id)

    def replace_state(self, state: State) -> None:
        """Policy or the nodes have changed. `replace_held` makes it known."""
        self.state = state
        self.states += 1
        self._workloads = {one.spiffe_id: one for one in state.workloads}

    def replace_held(self, svids: Mapping[str, X509Svid], bundles: Mapping[str, Bundle]) -> None:
        """The upstream holds these now."""
        known = self._workloads
        self.svids = {key: svid for key, svid in svids.items() if key in known}
        merged = self._merge(bundles)
        if merged != self.bundles:
            before = self.bundles
            self.bundles = {name: before[name] if before.get(name) == one else one for name, one in merged.items()}
        self.version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    def _merge(self, bundles: Mapping[str, Bundle]) -> dict[str, Bundle]:
        """A document of policy stands above what an upstream says of a foreign domain; of the own one nobody's does."""
        if self.state is None or self.state.trust_domain not in bundles:
            return {}
        own = self.state.trust_domain
        named = {one.trust_domain: one for one in self.state.federated}
        return {**bundles, **named, own: bundles[own].with_anchors(self.state.anchors)}

    async def change(self, seen: int) -> None:
        """Wait until `version` is another than `seen`."""
        while self.version == seen:
            await self._changed.wait()

    def foreign(self) -> Iterable[Bundle]:
        """The bundles of all other trust domains."""
        own = self.state.trust_domain if self.state is not None else ""
        return (bundle for domain, bundle in self.bundles.items() if domain != own)

    def own_bundle(self) -> Bundle:
        """The bundle of the own trust domain. Raises KeyError before `is_ready`."""
        return self.bundles[self.state.trust_domain if self.state is not None else ""]
