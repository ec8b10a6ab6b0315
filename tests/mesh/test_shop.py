"""Three tiers on three hosts, none of which knows of mutual TLS: it works, it is encrypted, and nothing else works."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from ipaddress import ip_address

import pytest

from bulkhead.dataplane.mesh import HBONE_PORT
from lab import tls
from lab.fleet import Fleet
from lab.meshed import curl, policy, requests
from lab.packet import TCP, Packet
from lab.three_tier import API, API_PORT, CACHE, FRONT, FRONT_PORT, REDIS_PORT, three_tiers
from lab.tls import APPLICATION_DATA, CHANGE_CIPHER_SPEC, HANDSHAKE, TLS_1_3
from lab.wired import counting, until

FAMILIES = pytest.mark.parametrize("family", (4, 6))
SECRET = "4111-1111-1111-1111"
READABLE = (SECRET.encode(), b"HTTP/1", b"/orders", b"RPUSH", b"LRANGE", b"nginx", b"Content-Length", b"User-Agent")
L7 = f"""  - name: front-api
    from: {FRONT}
    to: {API}
    ports: [{API_PORT}]
    l7: {{http: [{{methods: [GET, POST], path: /orders}}, {{methods: [GET], path: "/orders/*"}}]}}
"""
POLICY = policy(
    f"customers -> {FRONT} {FRONT_PORT}",
    f"{API} -> {CACHE} {REDIS_PORT}",
    workloads={name: f"{{match: {{cgroup: /{name}}}, mode: enforce}}" for name in (FRONT, API, CACHE)},
    externals={"customers": '{cidr: [10.78.4.0/24, "fd78:4::/64"]}'},
    more=L7,
)
pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("nginx", "redis-server", "curl"))),
    reason="Debian's packages nginx-light, redis-server and curl are not installed",
)


@pytest.fixture
def shop(fleet: Fleet) -> Iterator[Fleet]:
    with three_tiers(fleet):
        yield fleet


def ask(fleet: Fleet, path: str, *options: str, family: int = 4) -> tuple[int, str]:
    """A customer's request to nginx, from a host that has no agent."""
    address = fleet.address("web", family)
    host = f"[{address}]" if family == 6 else address
    return curl(fleet["mallory"], "customer", f"http://{host}:{FRONT_PORT}{path}", *options)


def end_tunnels(fleet: Fleet) -> None:
    """Have the proxies begin new ones: a capture of an old one has no handshake."""
    for host in fleet.guarded:
        host.run("operator", ["ss", "--kill", "--no-header", "dport", "=", str(HBONE_PORT)])


def between_tiers(fleet: Fleet, packets: Iterable[Packet]) -> list[Packet]:
    """Those that no customer sent or gets."""
    customer = set(fleet.addresses("mallory"))
    return [one for one in packets if not customer & {one.source, one.destination}]


@FAMILIES
def test_it_works_and_on_no_wire_between_its_hosts_is_anything_but_tls_1_3(shop: Fleet, family: int) -> None:
    end_tunnels(shop)
    with shop.router.capture() as wires:
        assert ask(shop, "/orders", "-d", f"card={SECRET}", family=family)[0] == 200
        status, body = ask(shop, "/orders", family=family)
    assert (status, f"card={SECRET}" in body) == (200, True), body
    every = [seen.packet for seen in wires.packets()]
    assert any(SECRET.encode() in one.payload for one in every), "the customer's own leg is in the clear, and captured"
    packets = between_tiers(shop, [seen.packet for seen in wires.packets() if seen.is_arriving])
    for packet in packets:
        assert (packet.protocol, HBONE_PORT in packet.ports) == (TCP, True), str(packet)
        assert not any(word in packet.raw for word in READABLE), str(packet)
    spoken = tls.streams(packets)
    ways = {(ip_address(source), ip_address(destination)) for (source, _), (destination, _) in spoken}
    web, app, db = (ip_address(shop.address(name, family)) for name in ("web", "app", "db"))
    assert ways == {(web, app), (app, web), (app, db), (db, app)}
    for flow, stream in spoken.items():
        of_tls_1_3(flow, stream)


def of_tls_1_3(flow: tls.Flow, stream: bytes) -> None:
    """A hello in the clear, and then nothing but application data; the answering end settles on TLS 1.3."""
    hello, *rest = tls.records(stream)
    (_, source), _ = flow
    assert hello.kind == HANDSHAKE
    if source == HBONE_PORT:
        assert tls.server_version(hello.body) == TLS_1_3
    else:
        assert hello.body[0] == tls.CLIENT_HELLO
    kinds = [record.kind for record in rest if record.kind != CHANGE_CIPHER_SPEC]
    assert kinds, "nothing followed"
    assert set(kinds) == {APPLICATION_DATA}


@FAMILIES
def test_a_request_that_no_rule_names_gets_403_through_nginx_and_why_names_the_line(shop: Fleet, family: int) -> None:
    status, body = ask(shop, "/admin", "-d", "drop=orders", family=family)
    assert status == 403
    reference = re.search(r"bulkhead why (\S+)", body)
    assert reference is not None, body
    until(
        lambda: bool(requests(shop["app"], lambda one: one["record"]["reference"] == reference[1])),
        "the record of the request",
    )
    said = shop["app"].bulkhead("why", reference[1]).stdout
    line = next(number for number, text in enumerate(POLICY.splitlines(), start=1) if "name: front-api" in text)
    assert f"t.yaml:{line}" in said, said
    assert "POST /admin" in said
    assert f"spiffe://example.org/t/{FRONT}" in said


REFUSED = ("EPERM", "ECONNREFUSED", "timeout")


@FAMILIES
def test_another_process_of_the_front_s_host_reaches_neither_api_nor_redis(shop: Fleet, puppets, family: int) -> None:
    intruder = puppets("web", "intruder")
    for host, port in (("app", API_PORT), ("db", REDIS_PORT), ("app", HBONE_PORT), ("db", HBONE_PORT)):
        with counting(shop[host]) as there:
            assert intruder.hold("way in", shop.address(host, family), port) in REFUSED, (host, port)
        assert {verdict for _, _, verdict in there.refusals} == {"deny"}, (host, port)


def test_the_front_itself_cannot_reach_redis(shop: Fleet, puppets) -> None:
    with counting(shop["web"]) as here:
        assert puppets("web", FRONT).hold("way in", shop.address("db"), REDIS_PORT) in REFUSED
    assert here.refusals == {("policy", "egress", "deny"): 1}
