"""Tunnels between two real Envoys: who gets one, who does not, and what is told of it."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
from collections.abc import Callable
from contextlib import suppress

import pytest

from bulkhead.dataplane.mesh import HBONE_PORT, Call, Lane, Mesh
from bulkhead.observe.requests import Kind, RequestRecord
from bulkhead.proxy.statistics import STATISTICS_PATH, statistics
from lab.proxies import Proxy, SpiffeAuthority, ask_tunnel, certificate_secret, client_context, connect_headers
from lab.two_nodes import (
    API,
    API_ID,
    BATCH_ID,
    CALLS,
    DOMAIN,
    FORBIDDEN_PORT,
    ONE,
    PLAIN_PORT,
    SVIDS,
    TWO,
    VAULT,
    VAULT_LANE,
    WEB,
    WEB_ID,
    WEB_LANE,
    World,
)

HBONE = (TWO, HBONE_PORT)
TARGET = f"{TWO}:{PLAIN_PORT}"


def record(proxy: Proxy, wanted: Callable[[RequestRecord], bool]) -> RequestRecord:
    """The first record of that proxy for which `wanted` holds."""
    found: list[RequestRecord] = []

    def arrived() -> bool:
        found.extend(one for one in proxy.records() if wanted(one))
        return bool(found)

    proxy.wait_for(arrived)
    return found[0]


def answers(world: World) -> bool:
    """Whether a conversation through the lane comes about."""
    with world.connect() as conversation:
        conversation.sendall(b"x")
        return conversation.recv(1) == b"x"


def failures(proxy: Proxy) -> dict[str, int]:
    return dict(statistics(proxy.admin(STATISTICS_PATH).encode()).failures)


def test_a_conversation_through_a_lane_reaches_the_workload_and_both_ends_are_on_record(world: World) -> None:
    with world.connect() as conversation:
        conversation.sendall(b"neither request nor TLS")
        assert conversation.recv(100) == b"neither request nor TLS"
    sent = record(world.caller, lambda one: one.kind is Kind.LANE)
    received = record(world.called, lambda one: one.kind is Kind.INBOUND and one.status == 200)
    assert (sent.caller, sent.called, sent.local) == (WEB_ID, API_ID, TARGET)
    assert (received.caller, received.called, received.host) == (WEB_ID, API_ID, TARGET)
    assert received.remote == sent.upstream_local
    assert received.upstream_remote == TARGET


def test_the_leg_to_the_workload_says_who_calls_whom(world: World) -> None:
    subprocess.run(
        ["nft", "-f", "-"],
        input=f"""table ip seen {{
            chain out {{
                type filter hook output priority 0
                tcp dport {PLAIN_PORT} ip daddr {TWO} meta mark {WEB} meta priority 0:{API:x} counter
            }}
        }}""",
        text=True,
        check=True,
    )
    with world.connect() as conversation:
        conversation.sendall(b"x")
        assert conversation.recv(1) == b"x"
    listed = subprocess.run(["nft", "list", "table", "ip", "seen"], capture_output=True, text=True, check=True).stdout
    subprocess.run(["nft", "delete", "table", "ip", "seen"], check=True)
    assert int(re.search(r"packets (\d+)", listed)[1]) > 0, listed


def test_the_end_of_a_caller_s_words_is_not_the_end_of_the_answer(world: World) -> None:
    with world.connect() as conversation:
        conversation.sendall(b"first")
        assert conversation.recv(5) == b"first"
        conversation.sendall(b"last words")
        conversation.shutdown(socket.SHUT_WR)
        heard = b""
        while chunk := conversation.recv(100):
            heard += chunk
    assert heard == b"last words"


@pytest.mark.parametrize(
    "uris",
    [
        pytest.param(("spiffe://evil.org/a",), id="right-authority-foreign-name"),
        pytest.param((f"spiffe://evil.org/{API_ID.split('/', 3)[3]}",), id="right-path-wrong-trust-domain"),
    ],
)
@pytest.mark.parametrize("authority", ["own", "federated"])
def test_an_svid_of_a_foreign_name_opens_nothing(world: World, uris: tuple[str, ...], authority: str) -> None:
    issuer = world.authority if authority == "own" else world.federated
    context = client_context(world.directory, *issuer.issue(*uris))
    assert ask_tunnel(context, HBONE, connect_headers(TARGET), b"x")[0] in (0, 403)


@pytest.mark.parametrize(
    "issue",
    [
        pytest.param(lambda world: SpiffeAuthority(DOMAIN).issue(WEB_ID), id="foreign-authority"),
        pytest.param(lambda world: world.federated.issue(WEB_ID), id="name-of-another-trust-domain"),
        pytest.param(lambda world: world.authority.issue(WEB_ID, begins=-7200, lasts=-60), id="expired"),
        pytest.param(lambda world: world.authority.issue(WEB_ID, begins=600), id="not-yet-valid"),
        pytest.param(lambda world: world.authority.issue(WEB_ID, ca=True), id="authority-as-leaf"),
        pytest.param(lambda world: (), id="no-certificate"),
    ],
)
def test_a_certificate_that_proves_nothing_fails_the_handshake(
    world: World, issue: Callable[[World], tuple[bytes, ...]]
) -> None:
    before = sum(failures(world.called).values())
    context = client_context(world.directory, *issue(world))
    assert ask_tunnel(context, HBONE, connect_headers(TARGET), b"x") == (0, b"")
    world.called.wait_for(lambda: sum(failures(world.called).values()) == before + 1)
    told = record(world.called, lambda one: one.kind is Kind.CONNECTION and bool(one.failure))
    assert told.server_name == "8080.hbone.bulkhead"


@pytest.mark.parametrize(
    "uris",
    [
        pytest.param(("spiffe://evil.org/a", WEB_ID), id="foreign-name-first"),
        pytest.param((f"spiffe://evil.org/a,{WEB_ID}",), id="comma-within"),
    ],
)
def test_a_certificate_with_two_names_is_neither(world: World, uris: tuple[str, ...]) -> None:
    context = client_context(world.directory, *world.federated.issue(*uris))
    assert ask_tunnel(context, HBONE, connect_headers(TARGET), b"x")[0] in (0, 403)


def test_two_names_of_the_own_trust_domain_are_neither(world: World) -> None:
    context = client_context(world.directory, *world.authority.issue(BATCH_ID, WEB_ID))
    assert ask_tunnel(context, HBONE, connect_headers(TARGET), b"x")[0] == 403


WEB_CONNECT = connect_headers(TARGET)


@pytest.mark.parametrize(
    ("spiffe_id", "headers", "status"),
    [
        pytest.param(WEB_ID, WEB_CONNECT, 200, id="allowed"),
        pytest.param(WEB_ID.replace("one", "two"), WEB_CONNECT, 200, id="the-same-workload-of-another-host"),
        pytest.param(WEB_ID + "/x", WEB_CONNECT, 403, id="longer-name"),
        pytest.param(BATCH_ID, WEB_CONNECT, 403, id="valid-but-not-on-this-port"),
        pytest.param(f"spiffe://{DOMAIN}/shop/nobody", WEB_CONNECT, 403, id="valid-but-unauthorised"),
        pytest.param(API_ID, WEB_CONNECT, 403, id="the-called-workload-itself"),
        pytest.param(WEB_ID, connect_headers(f"{TWO}:{FORBIDDEN_PORT}"), 403, id="another-port"),
        pytest.param(WEB_ID, connect_headers(f"{ONE}:{PLAIN_PORT}"), 403, id="another-address"),
        pytest.param(WEB_ID, connect_headers(f"127.0.0.1:{PLAIN_PORT}"), 403, id="loopback"),
        pytest.param(WEB_ID, connect_headers(f"localhost:{PLAIN_PORT}"), 403, id="a-name"),
        pytest.param(WEB_ID, connect_headers(f"0{TWO}:{PLAIN_PORT}"), 403, id="address-in-another-spelling"),
        pytest.param(WEB_ID, connect_headers(f"{TWO}:0{PLAIN_PORT}"), 403, id="port-in-another-spelling"),
        pytest.param(
            WEB_ID,
            [(":method", "POST"), (":scheme", "https"), (":path", "/"), (":authority", TARGET)],
            403,
            id="no-connect",
        ),
        pytest.param(
            WEB_ID,
            [*connect_headers(TARGET), (":protocol", "websocket"), (":scheme", "https"), (":path", "/")],
            0,
            id="extended-connect",
        ),
    ],
)
def test_a_tunnel_opens_for_the_caller_the_address_and_the_port_that_policy_names(
    world: World, spiffe_id: str, headers: list[tuple[str, str]], status: int
) -> None:
    context = client_context(world.directory, *world.authority.issue(spiffe_id))
    assert ask_tunnel(context, HBONE, headers, b"data after it")[0] == status


def test_headers_without_measure_are_refused(world: World) -> None:
    context = client_context(world.directory, *world.authority.issue(WEB_ID))
    huge = [(f"x-{number}", "y" * 1000) for number in range(12)]
    assert ask_tunnel(context, HBONE, connect_headers(TARGET, *huge), b"x")[0] in (0, 431)


def test_plaintext_and_old_tls_get_nothing(world: World) -> None:
    with socket.create_connection(HBONE, timeout=5) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with suppress(ConnectionResetError):
            assert plain.recv(100) == b""
    context = client_context(world.directory, *world.authority.issue(WEB_ID))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert ask_tunnel(context, HBONE, connect_headers(TARGET), b"x") == (0, b"")


def test_a_name_that_no_workload_is_called_by_gets_nothing(world: World) -> None:
    other = Call(VAULT, WEB, ((9000, 9000),))
    world.called.give_svid(SVIDS[VAULT])
    world.called.publish(Mesh(calls=(*CALLS, other), svids=SVIDS))
    context = client_context(world.directory, *world.authority.issue(WEB_ID))
    for name, status in (("8080.hbone.bulkhead", 200), ("8090.hbone.bulkhead", 0), ("elsewhere.example", 0)):
        world.called.wait_for(
            lambda name=name, status=status: ask_tunnel(context, HBONE, WEB_CONNECT, b"x", name)[0] == status
        )
    assert failures(world.called)["no-workload"] > 0
    world.judge()


@pytest.mark.parametrize(
    ("authority", "uris", "lane", "port"),  # each with a port of its own: what has a tunnel already shows nothing again
    [
        pytest.param("own", (API_ID,), VAULT_LANE, PLAIN_PORT, id="valid-but-not-in-the-lane"),
        pytest.param("federated", ("spiffe://evil.org/shop/api",), WEB_LANE, 8091, id="right-path-wrong-trust-domain"),
        pytest.param("federated", ("spiffe://evil.org/shop/api", API_ID), WEB_LANE, 8092, id="two-names"),
    ],
)
def test_a_lane_speaks_with_nobody_but_its_peers(
    world: World, authority: str, uris: tuple[str, ...], lane: Lane, port: int
) -> None:
    issuer = world.authority if authority == "own" else world.federated
    world.called.give(certificate_secret(API_ID, *issuer.issue(*uris)))
    before = sum(failures(world.caller).values())
    try:

        def refused() -> bool:
            with world.connect(lane, port) as conversation:
                conversation.sendall(b"x")
                try:
                    assert conversation.recv(1) in (b"", b"x")
                except ConnectionResetError:
                    return sum(failures(world.caller).values()) > before
                return False

        world.caller.wait_for(refused)
        told = record(world.caller, lambda one: one.kind is Kind.LANE and "CERTIFICATE_VERIFY_FAILED" in one.failure)
        assert told.called == ""
    finally:
        world.called.give_svid(API_ID)
        world.called.wait_for(lambda: answers(world))


def test_a_new_svid_is_shown_without_an_interruption(world: World) -> None:
    with world.connect() as conversation:
        conversation.sendall(b"before")
        assert conversation.recv(6) == b"before"
        world.called.give_svid(API_ID)
        world.caller.give_svid(WEB_ID)
        conversation.sendall(b"behind")
        assert conversation.recv(6) == b"behind"


def test_a_caller_that_policy_names_no_more_is_refused_and_its_tunnel_stays(world: World) -> None:
    context = client_context(world.directory, *world.authority.issue(WEB_ID))
    with world.connect() as conversation:
        conversation.sendall(b"before")
        assert conversation.recv(6) == b"before"
        world.called.publish(Mesh(calls=CALLS[1:], svids=SVIDS))
        world.called.wait_for(lambda: ask_tunnel(context, HBONE, WEB_CONNECT, b"x")[0] == 403)
        conversation.sendall(b"behind")
        assert conversation.recv(6) == b"behind"
    world.judge()
    world.called.wait_for(lambda: ask_tunnel(context, HBONE, WEB_CONNECT, b"x")[0] == 200)


def test_envoy_accepts_everything_that_is_published(world: World) -> None:
    for proxy in (world.caller, world.called):
        assert statistics(proxy.admin(STATISTICS_PATH).encode()).rejected == 0, proxy.log()
