"""Two nodes with an Envoy each: `web` and `batch` on node one call `api` on node two."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bulkhead.dataplane.mesh import Call, Lane, Mesh
from bulkhead.dataplane.requests import Authorization, Clause, JwtIssuer
from bulkhead.proxy.node import ProxyNode
from lab.netns import network_namespace
from lab.proxies import Http1, Origin, Proxy, SpiffeAuthority, running, through

DOMAIN = "example.org"
WEB, API, BATCH, VAULT = 1001, 1002, 1003, 1004
SVIDS = {
    WEB: f"spiffe://{DOMAIN}/host/{{host}}/web",
    API: f"spiffe://{DOMAIN}/shop/api",
    BATCH: f"spiffe://{DOMAIN}/shop/batch",
    VAULT: f"spiffe://{DOMAIN}/shop/vault",
}
WEB_ID, API_ID, BATCH_ID = SVIDS[WEB].replace("{host}", "one"), SVIDS[API], SVIDS[BATCH]
WEB_LANE = Lane(5, WEB, (API,))
BATCH_LANE = Lane(6, BATCH, (API,))
VAULT_LANE = Lane(7, WEB, (VAULT,))
ONE, TWO = "10.77.0.1", "10.77.0.2"
FROM = TWO
"""Where conversations with node two come from: both nodes are of one network namespace."""
PLAIN_PORT, HTTP_PORT, OTHER_HTTP_PORT, FORBIDDEN_PORT = 8080, 8081, 8082, 8083
CALLS = (
    Call(API, WEB, ((PLAIN_PORT, OTHER_HTTP_PORT),)),
    Call(API, BATCH, ((HTTP_PORT, OTHER_HTTP_PORT),)),
)


@dataclass(frozen=True, slots=True)
class World:
    """Both nodes, and the authority of their trust domain and of a federated one."""

    caller: Proxy
    called: Proxy
    authority: SpiffeAuthority
    federated: SpiffeAuthority
    directory: Path

    def http(self, lane: Lane = WEB_LANE, port: int = HTTP_PORT) -> Http1:
        """An HTTP conversation through the lane."""
        return Http1(self.connect(lane, port))

    def connect(self, lane: Lane = WEB_LANE, port: int = PLAIN_PORT) -> socket.socket:
        """A conversation through the lane."""
        return through(lane, TWO, port)

    def judge(self, *clauses: Clause, issuers: tuple[JwtIssuer, ...] = ()) -> None:
        """From now on requests to `api` are judged by these."""
        self.called.publish(mesh_of_api(*clauses, issuers=issuers))


def mesh_of_api(*clauses: Clause, issuers: tuple[JwtIssuer, ...] = ()) -> Mesh:
    judged = Authorization(API, ((HTTP_PORT, OTHER_HTTP_PORT),), clauses)
    return Mesh(calls=CALLS, authorizations=(judged,), issuers=issuers, svids=SVIDS)


@contextmanager
def two_nodes(*clauses: Clause, issuers: tuple[JwtIssuer, ...] = ()) -> Iterator[World]:
    """Both of them, running."""
    authority, federated = SpiffeAuthority(DOMAIN), SpiffeAuthority("evil.org")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        namespace = stack.enter_context(network_namespace())
        for address in (ONE, TWO):
            namespace.ip(f"addr add {address}/32 dev lo")
        stack.enter_context(namespace.entered())
        caller = Proxy(_node("one", ONE, directory), authority, federated)
        called = Proxy(_node("two", TWO, directory), authority, federated)
        world = World(caller, called, authority, federated, directory)
        for spiffe_id in (WEB_ID, BATCH_ID):
            caller.give_svid(spiffe_id)
        called.give_svid(API_ID)
        caller.publish(Mesh(lanes=(WEB_LANE, BATCH_LANE, VAULT_LANE), svids=SVIDS))
        world.judge(*clauses, issuers=issuers)
        origin = Origin(TWO, (PLAIN_PORT, HTTP_PORT, OTHER_HTTP_PORT, FORBIDDEN_PORT))
        stack.callback(origin.close)
        stack.enter_context(running(caller))
        stack.enter_context(running(called))
        yield world


def _node(host: str, address: str, directory: Path) -> ProxyNode:
    return ProxyNode(host, DOMAIN, (address, "127.0.0.1"), directory / host, binds=(address,))
