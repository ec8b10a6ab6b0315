"""Requests judged by a real Envoy: what passes, what gets 403, and what each leaves on record."""

from __future__ import annotations

import base64
import json
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import ip_network

import h2.connection
import h2.events
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from bulkhead.dataplane.requests import (
    All,
    Always,
    Caller,
    CallerAddress,
    Claim,
    Clause,
    Effect,
    Header,
    Host,
    How,
    JwtIssuer,
    Method,
    Not,
    Path,
    Port,
    RequestPrincipal,
    ServerName,
    Text,
)
from bulkhead.observe.requests import Kind, RequestRecord
from bulkhead.proxy.statistics import STATISTICS_PATH, statistics
from lab.proxies import Http1, client_context
from lab.two_nodes import API_ID, BATCH_ID, BATCH_LANE, FROM, HTTP_PORT, OTHER_HTTP_PORT, WEB_ID, World, two_nodes

GET = Method(Text(How.EXACT, "GET"))


def below(prefix: str) -> Path:
    return Path(Text(How.PREFIX, prefix))


SIGNER = ec.generate_private_key(ec.SECP256R1())
ISSUER = "https://issuer.example"


def _jwks() -> str:
    numbers = SIGNER.public_key().public_numbers()
    x, y = (base64.urlsafe_b64encode(one.to_bytes(32, "big")).rstrip(b"=").decode() for one in (numbers.x, numbers.y))
    return json.dumps({"keys": [{"kty": "EC", "crv": "P-256", "alg": "ES256", "kid": "a", "x": x, "y": y}]})


def token(**claims: object) -> str:
    given = {"iss": ISSUER, "sub": "alice", "aud": "shop", "exp": int(time.time()) + 600} | claims
    return jwt.encode(given, SIGNER, "ES256", {"kid": "a"})


CLAUSES = (
    Clause(1, Effect.ALLOW, All((GET, below("/v1/")))),
    Clause(2, Effect.ALLOW, All((Caller(Text(How.EXACT, BATCH_ID)), Method(Text(How.EXACT, "PUT"))))),
    Clause(3, Effect.DENY, below("/v1/secret")),
    Clause(4, Effect.AUDIT, below("/v1/audited")),
    Clause(5, Effect.ALLOW, All((Host(Text(How.SUFFIX, ".shop")), below("/hosted")))),
    Clause(6, Effect.ALLOW, All((Header("x-role", Text(How.EXACT, "admin")), below("/headed")))),
    Clause(7, Effect.ALLOW, All((Port(OTHER_HTTP_PORT, OTHER_HTTP_PORT), below("/port")))),
    Clause(8, Effect.ALLOW, All((CallerAddress((ip_network(f"{FROM}/32"),)), below("/near")))),
    Clause(9, Effect.ALLOW, All((CallerAddress((ip_network("10.1.0.0/16"),)), below("/far")))),
    Clause(10, Effect.ALLOW, All((below("/ended"),)), deadline=time.time() - 1),
    Clause(11, Effect.ALLOW, All((below("/ending"),)), deadline=time.time() + 3000),
    Clause(12, Effect.DENY, below("/v1/tried"), dry_run=True),
    Clause(13, Effect.ALLOW, All((RequestPrincipal(Text(How.EXACT, f"{ISSUER}/alice")), below("/principal")))),
    Clause(14, Effect.ALLOW, All((Claim(("realm", "roles"), Text(How.EXACT, "writer")), below("/claim")))),
    Clause(15, Effect.ALLOW, All((Not(RequestPrincipal(Text(How.PRESENT))), below("/anonymous")))),
    Clause(16, Effect.ALLOW, below("/rego")),
    Clause(17, Effect.CUSTOM, below("/rego"), provider="rego:shop.authz"),
)
ISSUERS = (JwtIssuer("shop", ISSUER, ("shop",), _jwks()),)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with two_nodes(*CLAUSES, issuers=ISSUERS) as made:
        yield made


@pytest.fixture(scope="module")
def web(world: World) -> Iterator[Http1]:
    with world.http() as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/v1/x", {}, 200),
        ("GET", "/v1/x?y=/v2/", {}, 200),
        ("HEAD", "/v1/x", {}, 403),
        ("get", "/v1/x", {}, 400),
        ("POST", "/v1/x", {}, 403),
        ("PUT", "/v1/x", {}, 403),
        ("GET", "/v2/x", {}, 403),
        ("GET", "/V1/x", {}, 403),
        ("GET", "/v1/secret", {}, 403),
        ("GET", "/v1/secret/below", {}, 403),
        ("GET", "//v1//secret", {}, 403),
        ("GET", "/v1/./secret", {}, 403),
        ("GET", "/v1/x/../secret", {}, 403),
        ("GET", "/v1/%73ecret", {}, 403),
        ("GET", "/v1/x\\..\\secret", {}, 403),
        ("GET", "/v1/../v2/x", {}, 403),
        ("GET", "/v1/%2e%2e/v2/x", {}, 403),
        ("GET", "/v1/x;a=b", {}, 403),
        ("GET", "/v1/x?a;b", {}, 200),
        ("GET", "/v1/SECRET", {}, 200),
        ("GET", "/v1/a%2fb", {}, 400),
        ("GET", "/v1/a%5Cb", {}, 400),
        ("GET", "/v1/a%00b", {}, 400),
        ("GET", "/v1/x#/../secret", {}, 400),
        ("GET", "/v1/%252e%252e/secret", {}, 200),
        ("GET", "/hosted", {"Host": "a.shop"}, 200),
        ("GET", "/hosted", {"Host": "A.SHOP"}, 200),
        ("GET", "/hosted", {"Host": "a.shop:8081"}, 403),
        ("GET", "/hosted", {"Host": "shop"}, 403),
        ("GET", "/headed", {"X-Role": "admin"}, 200),
        ("GET", "/headed", {"X-Role": "Admin"}, 403),
        ("GET", "/headed", {}, 403),
        ("GET", "/headed", {"x-role": "admin", "x_role": "admin"}, 400),
        ("GET", "/port", {}, 403),
        ("GET", "/near", {}, 200),
        ("GET", "/far", {}, 403),
        ("GET", "/far", {"X-Forwarded-For": "10.1.1.1", "X-Bulkhead-Forwarded-For": "10.1.1.1"}, 403),
        ("GET", "/ended", {}, 403),
        ("GET", "/ending", {}, 200),
        ("GET", "/principal", {}, 403),
        ("GET", "/principal", {"Authorization": "Bearer " + token()}, 200),
        ("GET", "/principal", {"Authorization": "Bearer " + token(sub="alicea")}, 403),
        ("GET", "/principal", {"Authorization": "Bearer " + token(aud="elsewhere")}, 403),
        ("GET", "/principal", {"Authorization": "Bearer " + token(exp=1)}, 403),
        ("GET", "/principal", {"Authorization": "Bearer " + token(iss="https://other.example")}, 403),
        ("GET", "/principal", {"Authorization": "Bearer " + token()[:-3] + "AAA"}, 403),
        ("GET", "/claim", {"Authorization": "Bearer " + token(realm={"roles": ["reader", "writer"]})}, 200),
        ("GET", "/claim", {"Authorization": "Bearer " + token(realm={"roles": "writer"})}, 200),
        ("GET", "/claim", {"Authorization": "Bearer " + token(realm={"roles": ["reader"]})}, 403),
        ("GET", "/anonymous", {}, 200),
        ("GET", "/anonymous", {"Authorization": "Bearer of something else"}, 200),
        ("GET", "/anonymous", {"Authorization": "Bearer " + token()}, 403),
        ("GET", "/rego", {}, 403),
        ("GET", "/", {"X-Bulkhead-Caller": BATCH_ID}, 403),
        ("PUT", "/", {"X-Bulkhead-Caller": BATCH_ID}, 403),
        ("CONNECT", "elsewhere:80", {}, 403),
    ],
)
def test_a_request_gets(world: World, method: str, path: str, headers: dict[str, str], status: int) -> None:
    with world.http() as client:
        assert client.request(method, path, tuple(headers.items())).status == status


def test_the_caller_and_the_port_decide_too(world: World) -> None:
    with world.http(BATCH_LANE) as batch, world.http(port=OTHER_HTTP_PORT) as other_port:
        assert batch.request("PUT", "/anything").status == 200
        assert other_port.request("GET", "/port").status == 200


def test_a_workload_sees_the_request_as_it_was_sent_and_who_sent_it(web: Http1) -> None:
    sent = (("X-Forwarded-For", "9.9.9.9"), ("X-Forwarded-Proto", "https"), ("X-Request-Id", "mine"))
    told = json.loads(web.request("GET", "/v1/a/../b?c=d", sent).body)
    assert told["request"] == "GET /v1/b?c=d HTTP/1.1"
    assert told["headers"] == {
        "host": "api",
        "x-forwarded-for": "9.9.9.9",
        "x-forwarded-proto": "https",
        "x-request-id": "mine",
        "x-bulkhead-caller": WEB_ID,
    }


def test_a_refusal_names_the_record_that_names_the_rule(world: World, web: Http1) -> None:
    refusal = web.request("GET", "/v1/secret?token=hidden")
    reference = refusal.headers["x-bulkhead-reference"]
    assert refusal.body.decode() == f"denied by policy: bulkhead why {reference}\n"
    record = _record(world, lambda one: one.reference == reference)
    assert (record.denied, record.allowed, record.status) == ("rule-3", "", 403)
    assert (record.method, record.path, record.caller, record.called) == ("GET", "/v1/secret", WEB_ID, API_ID)


def test_what_is_tried_and_what_is_audited_is_on_record_and_counted(world: World, web: Http1) -> None:
    for path in ("/v1/tried", "/v1/audited"):
        assert web.request("GET", path).status == 200
    found: dict[str, RequestRecord] = {}

    def arrived() -> bool:
        found.update({one.path: one for one in world.called.records() if one.kind is Kind.REQUEST})
        return {"/v1/tried", "/v1/audited"} <= found.keys()

    world.called.wait_for(arrived)
    assert found["/v1/tried"].would_deny == "rule-12"
    assert (found["/v1/audited"].audited, found["/v1/audited"].allowed) == ("rule-4", "rule-1")
    counted = statistics(world.called.admin(STATISTICS_PATH).encode()).requests
    assert counted["rule-12", "would-deny"] == counted["rule-4", "audit"] == 1
    assert counted["rule-1", "allow"] >= 2


def _record(world: World, wanted: Callable[[RequestRecord], bool]) -> RequestRecord:
    found: list[RequestRecord] = []

    def arrived() -> bool:
        found.extend(one for one in world.called.records() if one.kind is Kind.REQUEST and wanted(one))
        return bool(found)

    world.called.wait_for(arrived)
    return found[0]


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(
            b"GET /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            id="two-lengths-of-two-kinds",
        ),
        pytest.param(
            b"GET /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", id="two-lengths"
        ),
        pytest.param(b"GET /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\na", id="signed-length"),
        pytest.param(b"GET /v1/x HTTP/1.1\r\nHost: a\r\nHost: b.shop\r\n\r\n", id="two-hosts"),
        pytest.param(
            b"GET /v1/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", id="unknown-encoding"
        ),
        pytest.param(b"GET /v1/x HTTP/1.1\r\nHost: a\r\nX Y: b\r\n\r\n", id="blank-in-a-header-s-name"),
        pytest.param(b"GET /v1/x HTTP/1.1\r\nHost: a\r\n x: b\r\n\r\n", id="folded-header"),
        pytest.param(b"GET /v1/x HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 70000 + b"\r\n\r\n", id="huge-header"),
        pytest.param(b"no protocol at all\r\n\r\n", id="no-http"),
    ],
)
def test_what_two_readers_could_take_for_two_things_reaches_nobody(world: World, message: bytes) -> None:
    with world.http() as client:
        assert client.raw(message).status in (0, 400, 403, 431, 501)


def test_a_websocket_opens_where_its_request_is_allowed(world: World) -> None:
    upgrade = (("Upgrade", "websocket"), ("Connection", "Upgrade"))
    with world.http() as client:
        assert client.request("GET", "/v1/socket", upgrade).status == 101
        client.socket.sendall(b"frame")
        assert client.socket.recv(5) == b"frame"
    with world.http() as client:
        assert client.request("GET", "/v2/socket", upgrade).status == 403


def test_http2_and_grpc_are_judged_request_by_request(world: World) -> None:
    with world.connect(port=HTTP_PORT) as conversation:
        client = h2.connection.H2Connection()
        client.initiate_connection()
        head = [(":scheme", "http"), (":authority", "api"), ("content-type", "application/grpc"), ("te", "trailers")]
        client.send_headers(1, [(":method", "GET"), (":path", "/v1/secret"), *head], end_stream=True)
        client.send_headers(3, [(":method", "POST"), (":path", "/shop.Orders/Place"), *head], end_stream=True)
        conversation.sendall(client.data_to_send())
        answers: dict[int, dict[bytes, bytes]] = {}
        while len(answers) < 2:
            for event in client.receive_data(conversation.recv(65536)):
                if isinstance(event, h2.events.ResponseReceived):
                    answers[event.stream_id] = dict(event.headers)
        for answer in answers.values():
            assert (answer[b":status"], answer[b"grpc-status"]) == (b"200", b"7")
            assert answer[b"x-bulkhead-reference"] in answer[b"grpc-message"]


def test_a_change_of_policy_holds_for_the_next_request_of_a_live_conversation(world: World) -> None:
    with world.http() as client:
        assert client.request("GET", "/v1/x").status == 200
        world.judge(*CLAUSES[1:], issuers=ISSUERS)
        published = time.monotonic()
        while client.request("GET", "/v1/x").status != 403:
            assert time.monotonic() - published < 0.5
        world.judge(*CLAUSES, issuers=ISSUERS)
        world.called.wait_for(lambda: client.request("GET", "/v1/x").status == 200)


@pytest.mark.parametrize(("name", "passes"), [("a.inside.example", True), ("b.outside.example", False), ("", False)])
def test_tls_inside_is_judged_by_its_server_name(world: World, name: str, passes: bool) -> None:
    inside = Clause(1, Effect.ALLOW, ServerName(Text(How.SUFFIX, ".inside.example")))
    elsewhere = Clause(2, Effect.DENY, All((Port(OTHER_HTTP_PORT, OTHER_HTTP_PORT), below("/"))))
    world.judge(inside, elsewhere)
    hello = _client_hello(world, name)
    world.called.wait_for(lambda: _echoed(world, HTTP_PORT, hello) == passes)
    allowed = "rule-1" if passes else ""
    record = _record(world, lambda one: one.server_name == name and one.allowed == allowed and one.received > 0)
    assert (record.caller, record.called) == (WEB_ID, API_ID)
    assert not _echoed(world, OTHER_HTTP_PORT, hello)
    world.judge(*CLAUSES, issuers=ISSUERS)


def _echoed(world: World, port: int, hello: bytes) -> bool:
    with world.connect(port=port) as conversation, suppress(ConnectionResetError):
        conversation.sendall(hello)
        return conversation.recv(len(hello)) != b""
    return False


def _client_hello(world: World, name: str) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = client_context(world.directory)
    wanted = context.wrap_bio(incoming, outgoing, server_hostname=name or None)
    with pytest.raises(ssl.SSLWantReadError):
        wanted.do_handshake()
    return outgoing.read()


def test_what_has_no_authorisation_at_all_is_refused(world: World) -> None:
    world.judge()
    with world.http() as client:
        world.called.wait_for(lambda: client.request("GET", "/v1/x").status == 403)
    world.judge(Clause(1, Effect.ALLOW, Always()))
    with world.http() as client:
        world.called.wait_for(lambda: client.request("GET", "/v1/x").status == 200)
    world.judge(*CLAUSES, issuers=ISSUERS)


def test_a_conversation_reset_by_its_caller_leaves_the_others(world: World, web: Http1) -> None:
    with world.http() as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        world.called.wait_for(lambda: client.request("GET", "/near").status == 200)
    world.called.wait_for(lambda: web.request("GET", "/near").status == 200)


def test_envoy_accepts_everything_that_is_published(world: World) -> None:
    assert statistics(world.called.admin(STATISTICS_PATH).encode()).rejected == 0, world.called.log()
