"""Secret discovery, on streams of their own and aggregated, as the real proxy uses it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import envoy
from spiffe import WorkloadApiClient

from bulkhead.svid import bundle
from bulkhead.svid.bundle import Bundle
from bulkhead.svid.pem import pem
from bulkhead.svid.svids import Attested
from bulkhead.svid.x509 import Signer
from svid.serving import DB, DOMAIN, WEB, Node, running, workload
from unit.svid.authorities import Leaf, anchor, uri, usage

FILTERS = "type.googleapis.com/envoy.extensions.filters"
ENVOY = Path(envoy.__file__).parent / "_bin" / "envoy"
LIFETIME_S = 4.0
LATE = workload("shop/late")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


SERVICE = {"api_type": "GRPC", "transport_api_version": "V3"} | {
    "grpc_services": [{"envoy_grpc": {"cluster_name": "sds"}}]
}
ALONE: dict[str, object] = {"api_config_source": SERVICE, "resource_api_version": "V3"}
"""Each secret by a stream of its own."""
AGGREGATED: dict[str, object] = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0.5s"}


def listener(port: int, name: str, validation: str, source: dict[str, object]) -> dict[str, object]:
    """Presents one SVID, wants one of its callers, and says `ok`."""
    tls = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3"},
            "tls_certificate_sds_secret_configs": [{"name": name, "sds_config": source}],
            "validation_context_sds_secret_config": {"name": validation, "sds_config": source},
        },
    }
    manager = {
        "@type": f"{FILTERS}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}],
                }
            ]
        },
        "http_filters": [
            {
                "name": "router",
                "typed_config": {"@type": f"{FILTERS}.http.router.v3.Router"},
            }
        ],
    }
    return {
        "name": f"in-{port}",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [
            {
                "transport_socket": {"name": "tls", "typed_config": tls},
                "filters": [{"name": "http", "typed_config": manager}],
            }
        ],
    }


def bootstrap(sds: Path, *listeners: dict[str, object]) -> dict[str, object]:
    """These listeners, and where secrets come from."""
    kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    http2 = {"explicit_http_config": {"http2_protocol_options": {}}}
    options = {kind: {"@type": f"type.googleapis.com/{kind}"} | http2}
    cluster = {
        "name": "sds",
        "type": "STATIC",
        "typed_extension_protocol_options": options,
        "load_assignment": {
            "cluster_name": "sds",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": str(sds)}}}}]}],
        },
    }
    return {
        "node": {"id": "n", "cluster": "c"},
        "dynamic_resources": {"ads_config": SERVICE},
        "static_resources": {"listeners": listeners, "clusters": [cluster]},
    }


@contextlib.asynccontextmanager
async def proxy(node: Node, directory: Path, name: str, validation: str = f"spiffe://{DOMAIN}") -> AsyncIterator[int]:
    """The port of a proxy that presents the SVID of that name, and believes what that validation context does."""
    port = free_port()
    async with started(node, directory, listener(port, name, validation, ALONE)):
        yield port


@contextlib.asynccontextmanager
async def started(node: Node, directory: Path, *listeners: dict[str, object]) -> AsyncIterator[None]:
    """The proxy with those listeners."""
    file = directory / "envoy.json"
    file.write_text(json.dumps(bootstrap(node.settings.workload_socket, *listeners)))
    with (directory / "envoy.log").open("wb") as log:
        arguments = ("-c", file, "--concurrency", "1", "--disable-hot-restart", "-l", "warning")
        process = await asyncio.create_subprocess_exec(ENVOY, *map(str, arguments), stdout=log, stderr=log)
    node.people[process.pid] = Attested(proxy=True)
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


def client(node: Node, directory: Path) -> ssl.SSLContext:
    """A context that presents the test's own SVID."""
    with WorkloadApiClient(node.address) as api:
        context = api.fetch_x509_context()
    svid = context.default_svid
    file = directory / "svid.pem"
    pems = [_pem(one) for one in svid.cert_chain]
    file.write_bytes(b"".join(pems) + _key(svid.private_key))
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.load_cert_chain(file)
    bundle = context.x509_bundle_set.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
    made.load_verify_locations(cadata=b"".join(map(_pem, bundle.x509_authorities)).decode())
    return made


def _pem(certificate: object) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)  # type: ignore[attr-defined, no-any-return]


def _key(key: object) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())  # type: ignore[attr-defined, no-any-return]


async def ask(port: int, context: ssl.SSLContext) -> tuple[str, int]:
    """Who answered, by serial number of the certificate, over a handshake of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        certificate = writer.get_extra_info("peercert")
        return dict(certificate["subjectAltName"])["URI"], int(certificate["serialNumber"], 16)
    finally:
        writer.close()


async def answers(port: int, context: ssl.SSLContext) -> None:
    """Wait until the proxy has what it needs."""
    async with asyncio.timeout(15):
        while True:
            try:
                await ask(port, context)
            except OSError:
                await asyncio.sleep(0.05)  # nothing tells when its listener is there
            else:
                return


async def load(port: int, context: ssl.SSLContext, times: int, expected: str = DB.spiffe_id) -> list[int]:
    """The serial numbers seen in so many handshakes, one after the other."""
    seen = []
    for _ in range(times):
        name, serial = await ask(port, context)
        assert name == expected
        seen.append(serial)
    return seen


def test_the_proxy_takes_up_each_new_svid_without_a_failed_handshake(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path) as node:
            await node.serve(WEB, DB, lifetime_s=LIFETIME_S)
            async with proxy(node, tmp_path, DB.spiffe_id) as port:
                await answers(port, await asyncio.to_thread(client, node, tmp_path))
                seen: list[int] = []
                async with asyncio.timeout(30):
                    while len(set(seen)) < 3:
                        context = await asyncio.to_thread(client, node, tmp_path)
                        for serials in await asyncio.gather(*(load(port, context, 8) for _ in range(4))):
                            seen += serials

    asyncio.run(main())


def test_over_one_aggregated_stream_every_svid_rotates_and_what_cannot_be_used_spoils_no_other(tmp_path: Path) -> None:
    names = (WEB.spiffe_id, DB.spiffe_id)
    ports = tuple(free_port() for _ in names)
    later, spoilt = free_port(), free_port()
    wanted = {**dict(zip(ports, names, strict=True)), later: LATE.spiffe_id, spoilt: f"spiffe://{DOMAIN}"}
    listeners = [listener(port, name, "ALL", AGGREGATED) for port, name in wanted.items()]

    async def main() -> None:
        async with running(tmp_path) as node:
            await node.serve(WEB, DB, lifetime_s=LIFETIME_S)
            async with started(node, tmp_path, *listeners):
                context = await asyncio.to_thread(client, node, tmp_path)
                for port in ports:
                    await answers(port, context)
                seen: dict[str, set[int]] = {name: set() for name in names}
                async with asyncio.timeout(30):
                    while min(map(len, seen.values())) < 3:
                        context = await asyncio.to_thread(client, node, tmp_path)
                        for port, name in zip(ports, names, strict=True):
                            seen[name].update(await load(port, context, 4, name))
                node.publish(WEB, DB, LATE, lifetime_s=LIFETIME_S)
                await answers(later, await asyncio.to_thread(client, node, tmp_path))
                status = await node.status(lambda status: status["refusals"])
                assert status["refusals"].keys() == {"nack"}
                assert (status["calls"]["StreamAggregatedResources"], "StreamSecrets" in status["calls"]) == (1, False)

    asyncio.run(main())


def hostile(ours: Signer, theirs: Signer) -> dict[str, tuple[Leaf, Signer]]:
    """Certificates that nobody must get in with, and who signs each."""
    own, now = [uri(WEB.spiffe_id)], time.time()
    return {
        "an unknown authority": (Leaf(names=own), anchor(name="node-1")),
        "an authority of another trust domain": (Leaf(names=own), theirs),
        "the right path in an unknown trust domain": (Leaf(names=[uri("spiffe://evil.example/shop/web")]), ours),
        "the right path in a trust domain of others": (Leaf(names=[uri("spiffe://partner.example/shop/web")]), ours),
        "expired": (Leaf(names=own, begins=now - 7200, ends=now - 3600), ours),
        "not valid yet": (Leaf(names=own, begins=now + 3600, ends=now + 7200), ours),
        "an authority itself": (Leaf(names=own, is_authority=True, usage=usage("key_cert_sign")), ours),
        "no SPIFFE ID": (Leaf(names=[uri("https://example.org/shop/web")]), ours),
        "no name": (Leaf(names=()), ours),
    }


def context_of(directory: Path, leaf: Leaf, signer: Signer) -> ssl.SSLContext:
    """A client that presents such a certificate, and believes everybody."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    file = directory / "hostile.pem"
    file.write_bytes(pem("CERTIFICATE", leaf.sign(signer)) + _key(leaf.key))
    made.load_cert_chain(file)
    return made


async def gets_in(port: int, context: ssl.SSLContext) -> bool:
    """Whether a request is answered. In TLS 1.3 a client learns only afterwards that it was refused."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        return (await reader.read(12)).startswith(b"HTTP/1.1 200")
    except OSError:
        return False
    finally:
        writer.close()


def test_the_validation_context_lets_nobody_in_who_is_not_vouched_for(tmp_path: Path) -> None:
    ours, theirs = anchor(DOMAIN), anchor("partner.example")
    federated = {"partner.example": bundle.write(Bundle("partner.example").with_anchors([theirs.der])).decode()}

    async def main() -> None:
        async with running(tmp_path) as node:
            await node.serve(WEB, DB, anchors={"node-2": [ours.der]}, federated=federated)
            async with proxy(node, tmp_path, DB.spiffe_id, "ALL") as port:
                good = context_of(tmp_path, Leaf(names=[uri(WEB.spiffe_id)]), ours)
                await answers(port, await asyncio.to_thread(client, node, tmp_path))
                assert await gets_in(port, good)
                partner = Leaf(names=[uri("spiffe://partner.example/web")])
                assert await gets_in(port, context_of(tmp_path, partner, theirs))
                for what, (leaf, signer) in hostile(ours, theirs).items():
                    assert not await gets_in(port, context_of(tmp_path, leaf, signer)), what

    asyncio.run(main())
