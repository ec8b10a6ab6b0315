"""Real Envoys on loopback addresses of a private network namespace, under the configuration of `bulkhead.proxy`.

Two things in it are replaced, in a copy: SVIDs come from files instead of a Unix socket, and a lane learns where a
conversation was to go from a PROXY header, since no kernel program is there to tell it.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import envoy
import h2.connection
import h2.events
import h2.exceptions
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bulkhead.dataplane.mesh import LANE_PORT, Lane, Mesh
from bulkhead.observe.requests import RecordReader, RequestRecord
from bulkhead.proxy.bootstrap import bootstrap
from bulkhead.proxy.files import publish, render
from bulkhead.proxy.node import ProxyNode

ENVOY = Path(envoy.__file__).parent / "_bin" / "envoy"
_PEM = serialization.Encoding.PEM
_STARTED_S = 10.0


class SpiffeAuthority:
    """A trust domain's certificate authority, which signs whatever it is asked for."""

    def __init__(self, trust_domain: str) -> None:
        self.trust_domain = trust_domain
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain)])
        basics = x509.BasicConstraints(ca=True, path_length=None)
        now = datetime.now(UTC)
        builder = _builder(self._name, self._name, now - timedelta(hours=1), now + timedelta(hours=1))
        builder = builder.public_key(self._key.public_key()).add_extension(basics, critical=True)
        self.certificate = builder.sign(self._key, hashes.SHA256()).public_bytes(_PEM)

    def issue(self, *uris: str, ca: bool = False, begins: float = -3600, lasts: float = 3600) -> tuple[bytes, bytes]:
        """A certificate with those URI names, and its key, in PEM; `begins` and `lasts`: seconds from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        builder = _builder(x509.Name([]), self._name, now + timedelta(seconds=begins), now + timedelta(seconds=lasts))
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        usage = dict.fromkeys(_USAGES, False) | {"digital_signature": True, "key_cert_sign": ca}
        builder = builder.public_key(key.public_key()).add_extension(names, critical=True)
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        builder = builder.add_extension(x509.KeyUsage(**usage), critical=True)
        certificate = builder.sign(self._key, hashes.SHA256()).public_bytes(_PEM)
        pkcs8, clear = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        return certificate, key.private_bytes(_PEM, pkcs8, clear)


_USAGES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


def _builder(subject: x509.Name, issuer: x509.Name, since: datetime, until: datetime) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer)
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(since).not_valid_after(until)


def certificate_secret(name: str, certificate: bytes, key: bytes) -> dict[str, Any]:
    """An SVID as SDS gives it."""
    chain, private = ({"inline_bytes": base64.b64encode(one).decode()} for one in (certificate, key))
    return {"name": name, "tls_certificate": {"certificate_chain": chain, "private_key": private}}


def bundle_secret(name: str, *authorities: SpiffeAuthority) -> dict[str, Any]:
    """A trust bundle as SDS gives it."""
    domains = [
        {"name": one.trust_domain, "trust_bundle": {"inline_bytes": base64.b64encode(one.certificate).decode()}}
        for one in authorities
    ]
    config = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig",
        "trust_domains": domains,
    }
    validator = {"name": "envoy.tls.cert_validator.spiffe", "typed_config": config}
    return {"name": name, "validation_context": {"custom_validator_config": validator}}


class Proxy:
    """One node's Envoy. Start it with `running`."""

    def __init__(self, node: ProxyNode, authority: SpiffeAuthority, *federated: SpiffeAuthority) -> None:
        self.node = node
        self.authority = authority
        self.process: subprocess.Popen[bytes] | None = None
        self._secrets = node.directory / "secrets"
        self._reader = RecordReader()
        for directory in (node.configuration, node.private, self._secrets):
            directory.mkdir(parents=True, exist_ok=True)
        os.mkfifo(node.access)
        self._access = os.open(node.access, os.O_RDWR | os.O_NONBLOCK)
        self.give(bundle_secret(f"spiffe://{authority.trust_domain}", authority))
        self.give(bundle_secret("ALL", authority, *federated))

    def give(self, secret: Mapping[str, Any]) -> None:
        """From now on the secret of that name is this."""
        kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
        path = self._secret_path(secret["name"])
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps({"resources": [{"@type": kind, **secret}]}))
        fresh.replace(path)

    def give_svid(self, spiffe_id: str) -> None:
        """A certificate for that name, of the proxy's own authority."""
        self.give(certificate_secret(spiffe_id, *self.authority.issue(spiffe_id)))

    def publish(self, mesh: Mesh, listeners: Mapping[int, int] | None = None, now: float | None = None) -> None:
        """Bring that mesh into force."""
        files = render(mesh, self.node, listeners or {}, time.time() if now is None else now)
        adapted = {name: json.dumps(self._adapted(json.loads(content))).encode() for name, content in files.items()}
        publish(self.node.configuration, adapted)

    def _adapted(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._adapted(one) for one in value]
        if not isinstance(value, dict):
            return value
        if "sds_config" in value:
            path = {"path": str(self._secret_path(value["name"]))}
            return value | {"sds_config": {"resource_api_version": "V3", "path_config_source": path}}
        if str(value.get("name", "")).startswith("lane-") and "listener_filters" in value:
            kind = "type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol"
            told = {"name": "envoy.filters.listener.proxy_protocol", "typed_config": {"@type": kind}}
            value = value | {"listener_filters": [told]}
        return {key: self._adapted(one) for key, one in value.items()}

    def _secret_path(self, name: str) -> Path:
        return self._secrets / f"{name.replace('/', '_')}.json"

    def start(self) -> None:
        """Start Envoy and wait until it serves."""
        config = self.node.directory / "bootstrap.json"
        config.write_text(json.dumps(bootstrap(self.node)))
        log = self.node.private / "envoy.log"
        command = [str(ENVOY), "-c", str(config), "--concurrency", "1", "--disable-hot-restart"]
        command += ["--file-flush-interval-msec", "20"]
        command += ["--log-path", str(log), "-l", os.environ.get("ENVOY_LOG", "warning"), "--drain-time-s", "1"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.wait_for(lambda: self.admin("/ready").strip() == "LIVE")

    def wait_for(self, condition: Any) -> None:
        """Until `condition` holds; an AssertionError with Envoy's log when it does not come true."""
        deadline = time.monotonic() + _STARTED_S
        while True:
            with suppress(OSError, http.client.HTTPException):
                if condition():
                    return
            assert self.process is not None
            assert self.process.poll() is None, f"Envoy ended: {self.log()}"
            assert time.monotonic() < deadline, f"it does not come true: {self.log()}"
            time.sleep(0.01)

    def log(self) -> str:
        """What Envoy complained of."""
        return (self.node.private / "envoy.log").read_text()[-3000:]

    def admin(self, path: str, method: str = "GET") -> str:
        """An answer of Envoy's administration."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        with connection.sock:
            connection.sock.connect(str(self.node.admin))
            connection.request(method, path)
            return connection.getresponse().read().decode()

    def records(self) -> list[RequestRecord]:
        """Access records since the last time; Envoy writes them about every tenth of a second."""
        found: list[RequestRecord] = []
        with suppress(BlockingIOError):
            while chunk := os.read(self._access, 65536):
                found += self._reader.feed(chunk)
        assert self._reader.malformed == 0
        return found

    def stop(self) -> None:
        """End Envoy."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        os.close(self._access)


@contextmanager
def running(proxy: Proxy) -> Iterator[Proxy]:
    """The proxy, started, and ended whatever happens."""
    try:
        proxy.start()
        yield proxy
    finally:
        proxy.stop()


def through(lane: Lane, address: str, port: int, source: str = "127.0.0.1") -> socket.socket:
    """A conversation through the lane, as if the kernel had steered one to `address`:`port` into it."""
    conversation = socket.create_connection((lane.address, LANE_PORT), timeout=10)
    conversation.sendall(f"PROXY TCP4 {source} {address} 1 {port}\r\n".encode())
    return conversation


def client_context(directory: Path, certificate: bytes = b"", key: bytes = b"") -> ssl.SSLContext:
    """A TLS client with that certificate, or none, which takes any server's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if certificate:
        (directory / "client.pem").write_bytes(certificate + key)
        context.load_cert_chain(directory / "client.pem")
    return context


def ask_tunnel(
    context: ssl.SSLContext,
    server: tuple[str, int],
    headers: Sequence[tuple[str, str]],
    data: bytes = b"",
    server_name: str = "8080.hbone.bulkhead",
) -> tuple[int, bytes]:
    """Status and body of one request over HTTP/2 to a proxy's port for tunnels; 0: there was no answer."""
    client = h2.connection.H2Connection()
    with (
        suppress(OSError, h2.exceptions.ProtocolError),
        socket.create_connection(server, timeout=5) as plain,
        context.wrap_socket(plain, server_hostname=server_name) as conversation,
    ):
        client.initiate_connection()
        client.send_headers(1, headers, end_stream=False)
        if data:
            client.send_data(1, data)
        conversation.sendall(client.data_to_send())
        return _answer(client, conversation, expected=data)
    return 0, b""


def _answer(client: Any, conversation: ssl.SSLSocket, expected: bytes) -> tuple[int, bytes]:
    """Until the stream ends, or what was expected as an echo has come."""
    status, body = 0, b""
    while chunk := conversation.recv(65536):
        for event in client.receive_data(chunk):
            if isinstance(event, h2.events.ResponseReceived):
                status = int(dict(event.headers)[b":status"])
                if status == 200 and not expected:
                    return status, body
            elif isinstance(event, h2.events.DataReceived):
                body += event.data
                client.acknowledge_received_data(event.flow_controlled_length, 1)
                if expected and expected in body:
                    return status, body
            elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset | h2.events.ConnectionTerminated):
                return status, body
        conversation.sendall(client.data_to_send())
    return status, body


def connect_headers(authority: str, *more: tuple[str, str]) -> list[tuple[str, str]]:
    """A CONNECT to that address and port."""
    return [(":method", "CONNECT"), (":authority", authority), *more]


class Http1:
    """A client of one HTTP/1.1 conversation, byte for byte."""

    def __init__(self, conversation: socket.socket) -> None:
        self.socket = conversation
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def request(self, method: str, path: str, headers: Sequence[tuple[str, str]] = ()) -> Answer:
        """Send one request without a body; its answer."""
        given = headers if any(name.lower() == "host" for name, _ in headers) else [("Host", "api"), *headers]
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given)]
        return self.raw("\r\n".join(lines).encode() + b"\r\n\r\n", bodiless=method == "HEAD")

    def raw(self, message: bytes, *, bodiless: bool = False) -> Answer:
        """Send these bytes; the answer to them. Status 0: the conversation was closed without one."""
        try:
            self.socket.sendall(message)
            while b"\r\n\r\n" not in self._rest:
                self._more()
            head, _, self._rest = self._rest.partition(b"\r\n\r\n")
            first, *lines = head.decode().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            length = 0 if bodiless else int(headers.get("content-length", "0"))
            while len(self._rest) < length:
                self._more()
        except ConnectionError:
            return Answer(0, {}, b"")
        body, self._rest = self._rest[:length], self._rest[length:]
        return Answer(int(first.split()[1]), headers, body)

    def _more(self) -> None:
        chunk = self.socket.recv(65536)
        if not chunk:
            raise ConnectionResetError
        self._rest += chunk


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes


class Origin:
    """A workload: on each port it answers HTTP with what it got, as JSON, and echoes what is not HTTP."""

    def __init__(self, address: str, ports: Sequence[int]) -> None:
        self.address = address
        self._servers = []
        for port in ports:
            server = socketserver.ThreadingTCPServer((address, port), _Echo, bind_and_activate=False)
            server.allow_reuse_address = server.daemon_threads = True
            server.server_bind()
            server.server_activate()
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
            self._servers.append(server)

    def close(self) -> None:
        """Stop listening."""
        for server in self._servers:
            server.shutdown()
            server.server_close()


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        rest = b""
        with suppress(ConnectionError):
            while chunk := self.request.recv(65536):
                rest += chunk
                if b"HTTP/" not in rest:
                    self.request.sendall(rest)
                    rest = b""
                while b"\r\n\r\n" in rest:
                    head, _, rest = rest.partition(b"\r\n\r\n")
                    self._answer(head.decode())

    def _answer(self, head: str) -> None:
        first, *lines = head.split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if headers.get("upgrade", "").lower() == "websocket":
            self.request.sendall(b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
            return
        told = {"request": first, "headers": headers, "peer": self.client_address[0]}
        body = json.dumps(told).encode()
        self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
