"""Mutual TLS between nodes as the commit in force says: who has SVIDs, what the proxy does, what is steered to it.

A commit that names new lanes is prepared before the kernel takes it up: SVIDs are there and the proxy listens on the
new lanes beside the old. Only then are they the only ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, Final

from bulkhead.config import Settings
from bulkhead.daemon.attesting import Attesting, spiffe_ids
from bulkhead.daemon.listeners import identities_by_port
from bulkhead.daemon.proxy import Proxy
from bulkhead.daemon.rego import RegoProcess
from bulkhead.daemon.requests import RequestLog
from bulkhead.daemon.svids import Identities, SvidProcess
from bulkhead.daemon.wire import WireIdentity
from bulkhead.dataplane.bundle import Bundle
from bulkhead.dataplane.mesh import LANE_PORT, Mesh
from bulkhead.dataplane.mesh_union import both
from bulkhead.errors import BulkheadError, UnreachableError
from bulkhead.identity.cgroups import CgroupTree
from bulkhead.kernel.addresses import own_addresses
from bulkhead.kernel.attestation import Attestation
from bulkhead.kernel.diag import SocketDiag, SocketState
from bulkhead.kernel.maps import KernelMaps
from bulkhead.kernel.steering import End, Steered, Steering
from bulkhead.observe.logs import Log
from bulkhead.policy.nodes import Roster
from bulkhead.proxy.node import INBOUND_BINDS, ProxyNode
from bulkhead.proxy.running import PROXY_ID
from bulkhead.proxy.statistics import ProxyStatistics
from bulkhead.svid.spire_selectors import selectors_of
from bulkhead.svid.svids import Attested, Workload

log = Log()

Json = dict[str, Any]

_BEAT_S: Final = 1.0
"""How often what tells nobody that it changes is looked at: addresses, listeners, counters."""
_LANES_S: Final = 5.0
"""How long a commit waits for the proxy to listen on its lanes; then it is enforced without, and says so."""
_LANES_POLL_S: Final = 0.02
_PREPARED_S: Final = 30.0
"""How long what a commit needs is left alone while the commit is on its way into force."""


class MeshKeeper:
    """Has the proxy, the SVIDs and the kernel's steering follow the commit in force. For the event loop's thread."""

    def __init__(
        self,
        settings: Settings,
        maps: KernelMaps,
        tree: CgroupTree,
        attestation: Attestation,
        steering: Steering,
        wire: WireIdentity,
        svids: SvidProcess,
        isolated: Callable[[], Collection[str]],
        catch_up: Callable[[], None],
    ) -> None:
        self.requests = RequestLog(catch_up)
        self.proxy = Proxy(settings, self.requests.take)
        self.rego = RegoProcess(settings.run_dir / "rego.sock", PROXY_ID)
        self.problem = ""
        """Why something is not as the commit asks."""
        self.statistics = ProxyStatistics()
        """As Envoy told them last."""
        self._settings = settings
        self._maps = maps
        self._attestation = attestation
        self._steering = steering
        self._wire = wire
        self._svids = svids
        self._attesting = Attesting(
            tree, lambda: attestation.plan, attestation.named_executable, isolated, settings.proxy_cgroup
        )
        self._group = settings.proxy_directory(tree.root)
        self._bundle: Bundle | None = None
        self._beside: Bundle | None = None
        self._mesh = Mesh()
        """Of the commit in force."""
        self._addresses: tuple[str, ...] = ()
        self._hinted = asyncio.Event()
        self._publishing = asyncio.Lock()
        self._prepared_until = 0.0
        """Until then (monotonic) there is more than the commit in force needs: that of one to come."""
        svids.on_change = self._on_svids

    # What is to be

    async def prepare(self, bundle: Bundle) -> None:
        """Before a bundle comes into force: what it needs of the proxy is there beside what is in force.

        A proxy that does not follow keeps no commit out: what needs it is refused by the kernel until it does.
        """
        fresh = self._needed(bundle)
        if fresh.is_empty or fresh == self._mesh:
            return
        self._prepared_until = time.monotonic() + _PREPARED_S
        self._attach()
        self._svids.wake()
        self._publish_identities(bundle)
        try:
            await self._publish(bundle, both(self._mesh, fresh))
            if self._is_kept():
                await self._until_listening(fresh)
        except BulkheadError as error:
            self._fail(str(error))

    def settle(self, bundle: Bundle, beside: Bundle | None = None) -> None:
        """After it has come into force: these are, `bundle` now and `beside` when a trial ends."""
        self._bundle, self._beside = bundle, beside
        self._prepared_until = 0.0
        self._mesh = self._in_force()
        self._steering.want(not self._mesh.is_empty)
        if not self._mesh.is_empty or self._settings.spire is not None:
            self._svids.wake()
        self._attach()
        self.rego.publish(bundle.commit, bundle.modules() if self._mesh.authorizations else ())
        self.requests.name(bundle)
        self.hint()

    def _in_force(self) -> Mesh:
        needed = self._needed(self._bundle) if self._bundle is not None else Mesh()
        return needed if self._beside is None else both(self._needed(self._beside), needed)

    def hint(self) -> None:
        """Something has changed: look now."""
        self._hinted.set()

    def _needed(self, bundle: Bundle) -> Mesh:
        """What of a commit's mesh concerns this node: nothing between nodes where it has no other to speak with."""
        mesh, roster = bundle.mesh(), self._wire.roster or Roster()
        others = any(node.key is not None and node.name != self._settings.host for node in roster)
        if self._settings.speaks and others:
            return mesh
        if not mesh.authorizations:
            return Mesh()
        judged = {one.destination for one in mesh.authorizations}
        lanes = tuple(lane for lane in mesh.lanes if judged.intersection(lane.peers))
        return replace(mesh, lanes=lanes, calls=tuple(call for call in mesh.calls if call.destination in judged))

    def _attach(self) -> None:
        for change in self._steering.attach_proxy(self._group):
            log.info("attached", hook=change)

    # Identities

    def _publish_identities(self, bundle: Bundle) -> None:
        """Whom the identity process serves. Every local workload, whether a proxy is needed or not."""
        names = self._attesting.spiffe_ids = spiffe_ids(bundle, self._settings.host)
        asked = self._settings.spire is not None
        running = self._attesting.processes() if asked else {}
        words = {one.qualified: selectors_of(one.match) for one in bundle.workloads() if asked and one.local}
        self._svids.publish(
            Identities(
                trust_domain=bundle.trust_domain,
                workloads=[
                    Workload(one, name, running.get(name, 0), words.get(name, ())) for name, one in names.items()
                ],
                anchors={node.name: node.ca for node in self._wire.roster or () if node.ca},
                federated={one.trust_domain: one.document for one in bundle.trust_bundles()},
                lifetime_s=self._settings.svid_minutes * 60.0,
            )
        )

    def attest(self, pid: int) -> Attested:
        """Who a process is: whom the Workload API gives SVIDs."""
        return self._attesting.attest(pid)

    def _node(self, bundle: Bundle) -> ProxyNode:
        settings = self._settings
        binds = tuple(one for one in INBOUND_BINDS if ":" not in one or one in self._addresses)  # IPv6 may be off
        return ProxyNode(
            settings.host,
            bundle.trust_domain,
            self._addresses,
            settings.run_dir,
            binds,
            settings.svid_minutes,
        )

    # The proxy

    async def _publish(self, bundle: Bundle, mesh: Mesh) -> None:
        async with self._publishing:
            self._addresses = await asyncio.to_thread(own_addresses)
            listeners = await asyncio.to_thread(self._listeners, mesh)
            self.proxy.publish(mesh, self._node(bundle), listeners)

    def _listeners(self, mesh: Mesh) -> dict[int, int]:
        """Who listens where, as far as it decides who is called."""
        called = {call.destination for call in mesh.calls}
        return identities_by_port(self._maps, self._attestation, called) if len(called) > 1 else {}

    def _is_kept(self) -> bool:
        """Whether somebody runs in the proxy's control group, who will start it if it does not run."""
        try:
            return bool((self._group / "cgroup.procs").read_text())
        except OSError:
            return False

    async def _until_listening(self, mesh: Mesh) -> None:
        """Until the proxy listens on every lane. Raises UnreachableError when it takes too long."""
        wanted = {lane.address for lane in mesh.lanes}
        try:
            async with asyncio.timeout(_LANES_S):
                while wanted - await asyncio.to_thread(_lanes_open):
                    await asyncio.sleep(_LANES_POLL_S)
        except TimeoutError:
            raise UnreachableError(self.proxy.error or "the proxy does not listen on the commit's lanes yet") from None

    def _on_svids(self) -> None:
        own = self._svids.own
        self._wire.authority = (own.certificate,) if own is not None else ()
        self.hint()

    def _on_ready(self, pid: int) -> None:
        """An Envoy serves: what comes for port 15008 is for its sockets from now on."""
        try:
            if not self._steering.set_listeners(pid):
                self.hint()
        except (BulkheadError, ProcessLookupError) as error:
            self._fail(f"the proxy's listeners cannot be taken: {error}")

    def _fail(self, why: str) -> None:
        if why != self.problem:
            log.error("conversations that need the proxy may be refused", cause=why)
        self.problem = why

    # Life

    async def run(self) -> None:
        """Follow what changes without a commit: nodes, addresses, listeners, and what the proxy has counted."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_BEAT_S):
                    await self._hinted.wait()
            self._hinted.clear()
            await self._look()

    async def _look(self) -> None:
        if self._bundle is None or time.monotonic() < self._prepared_until:
            return
        needed = self._in_force()
        if needed != self._mesh:  # another node has come, or the last one has gone
            self.settle(self._bundle, self._beside)
        self._attach()
        self._publish_identities(self._bundle)
        try:
            if not needed.is_empty or self.proxy.pid:
                await self._publish(self._bundle, needed)
                await self._follow()
            self.problem = self.proxy.error
        except UnreachableError as error:
            self._fail(str(error))

    async def _follow(self) -> None:
        pid = self.proxy.pid
        if pid and self._mesh.calls and not self._steering.serves(pid):
            self._on_ready(pid)
        if pid:
            self.statistics = await asyncio.to_thread(self.proxy.statistics)

    async def stop(self) -> None:
        """Let go; the proxy goes on."""
        await self.rego.stop()
        self.proxy.stop()
        self._steering.close()

    # What there is to tell

    def lane_call(self, source: End, destination: End) -> Steered | None:
        """What a conversation on a lane stands for; see `Steering.lane_call`."""
        return self._steering.lane_call(source, destination)

    def status(self) -> Json:
        """For `status`."""
        return {
            "wanted": not self._mesh.is_empty,
            "lanes": len(self._mesh.lanes),
            "calls": len(self._mesh.calls),
            "judged_by_request": len(self._mesh.authorizations),
            "problem": self.problem or None,
            "proxy": {
                "pid": self.proxy.pid or None,
                "binary": str(self.proxy.binary) if self.proxy.binary is not None else None,
                "restarts": self.proxy.running.restarts,
                "error": self.proxy.error or None,
                "handshakes": self.statistics.handshakes,
                "failures": dict(self.statistics.failures),
                "rejected": self.statistics.rejected,
            },
            "records": self.requests.counts(),
            "records_passed_over": self.proxy.records.passed_over,
            "conversations": {f"{one} {two}": n for (one, two), n in sorted(self.requests.conversations().items())},
            "rego": self.rego.status(),
        }

    @property
    def is_up(self) -> bool | None:
        """Whether the proxy serves what the commit needs it for; None: for nothing."""
        return None if self._mesh.is_empty else bool(self.proxy.pid) and not self.problem

    def svids(self) -> Json:
        """For `status`: how the identity process is, and what it serves."""
        return self._svids.status()

    async def bundles(self) -> dict[str, str]:
        """What vouches for each trust domain. Raises UnreachableError."""
        self._svids.wake()
        return await self._svids.bundles()

    def attest_again(self) -> None:
        """Who is isolated or withheld has changed: whoever has a stream of SVIDs is asked for anew."""
        self._svids.attest_again()


def _lanes_open() -> frozenset[str]:
    """The loopback addresses on which somebody listens for lanes."""
    with SocketDiag() as diag:
        dump = diag.dump(states=frozenset({SocketState.LISTEN}))
    return frozenset(str(one.socket_id.source) for one in dump.sockets if one.socket_id.source_port == LANE_PORT)
