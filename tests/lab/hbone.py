"""What a node that was broken into can say to another node's proxy, and a client that says it.

`attempt` runs in a puppet in the control group of a node's proxy: that is all the kernel asks of who opens a tunnel.
"""

from __future__ import annotations

import socket
import ssl
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from cryptography.hazmat.primitives.serialization import Encoding

from bulkhead.dataplane.mesh import HBONE_PORT
from bulkhead.proxy.admin import ask
from bulkhead.proxy.node import PRIVATE
from bulkhead.svid import authority
from bulkhead.svid.x509 import make_intermediate
from lab.host import PROXY_GROUP, Host
from lab.nodes import AuthorityFile
from lab.proxies import SpiffeAuthority
from lab.puppet import Puppet

_ANSWER_BYTES_MAX = 16 << 20
_QUIET_S = 1.5
"""Silence for so long is an answer too."""
Headers = Sequence[tuple[str, str]]


class StolenAuthority(SpiffeAuthority):
    """A node's own authority in the wrong hands: signs whatever it is asked for, through an intermediate."""

    def __init__(self, file: AuthorityFile, trust_domain: str = "example.org") -> None:
        self.trust_domain = trust_domain
        anchor = authority.read(file.path, file.passphrase)
        intermediate = make_intermediate(anchor, trust_domain, time.time(), 3600.0)
        self._key, self._name = intermediate.key, intermediate.certificate.subject
        self.certificate = intermediate.certificate.public_bytes(Encoding.PEM)

    def issue(self, *uris: str, ca: bool = False, begins: float = -3600, lasts: float = 3600) -> tuple[bytes, bytes]:
        """As any authority does, with the intermediate behind the certificate."""
        certificate, key = super().issue(*uris, ca=ca, begins=begins, lasts=lasts)
        return certificate + self.certificate, key


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: the status of the CONNECT (0: none), what came through the tunnel, and why it ended."""

    status: int
    body: bytes
    ended: str
    source: str = ""
    """`ADDRESS:PORT` of the conversation's own end, as records have it."""


class StolenNode:
    """A process in the control group of a host's proxy."""

    def __init__(self, host: Host, directory: Path) -> None:
        self._directory = directory
        self.puppet: Puppet = host.puppet(PROXY_GROUP)
        self.puppet.do(f"import sys; sys.path[:] = {sys.path!r}")
        self.puppet.do("from lab import hbone")

    def attempt(
        self,
        address: str,
        svid: tuple[bytes, bytes] | None,
        headers: Headers,
        data: bytes = b"",
        server_name: str = "8080.hbone.bulkhead",
        **more: object,
    ) -> Answer:
        """Ask for a tunnel with that certificate, or none, send `data` at once, and listen; see `attempt` below."""
        path = ""
        if svid is not None:
            path = str(self._directory / "svid.pem")
            Path(path).write_bytes(b"".join(svid))
        given = f"{address!r}, {path!r}, {list(headers)!r}, {data!r}, {server_name!r}, **{more!r}"
        return _answer(self.puppet.do(f"hbone.attempt({given})"))

    def again(self, name: str, headers: Headers, data: bytes = b"") -> Answer:
        """One more request in a conversation that was kept."""
        return _answer(self.puppet.do(f"hbone.again({name!r}, {list(headers)!r}, {data!r})"))

    def end(self) -> None:
        """End the process."""
        self.puppet.end()


def administration(host: Host, path: str) -> bytes:
    """What the administration of a host's proxy answers."""
    return ask(host.run_dir / "proxy" / PRIVATE / "admin.sock", path, _ANSWER_BYTES_MAX)


def _answer(said: list[object]) -> Answer:
    status, body, ended, source = said
    return Answer(int(str(status)), str(body).encode("latin-1"), str(ended), str(source))


def attempt(
    address: str,
    svid: str,
    headers: list[tuple[str, str]],
    data: bytes,
    server_name: str,
    *,
    alpn: Sequence[str] = ("h2",),
    newest: str = "TLSv1_3",
    plain: bool = False,
    raw: bytes = b"",
    expect: bytes = b"",
    keep: str = "",
) -> list[object]:
    """Status, body (as Latin-1), end and source of one request; `raw` is sent in place of HTTP/2, `plain` without TLS.

    `expect`: what the body holds when it is complete, else it is as long as `data`. `keep`: a name under which the
    conversation stays open for `again`.
    """
    source = ""
    try:
        one = socket.create_connection((address, HBONE_PORT), timeout=_QUIET_S)
        source = "{}:{}".format(*one.getsockname())
        if not plain:
            one = _context(svid, alpn, newest).wrap_socket(one, server_hostname=server_name)
        client = _Client(one)
        if keep:
            _kept[keep] = client
        found = client.say(raw) if raw else client.ask(1, headers, data, expect)
        if not keep:
            one.close()
    except OSError as error:
        return [0, "", str(error), source]
    return [*found, source]


def again(name: str, headers: list[tuple[str, str]], data: bytes) -> list[object]:
    """One more request in a conversation that was kept."""
    client = _kept[name]
    return [*client.ask(client.http2.get_next_available_stream_id(), headers, data), ""]


_kept: dict[str, _Client] = {}


def _context(svid: str, alpn: Sequence[str], newest: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion[newest]
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if svid:
        context.load_cert_chain(svid)
    return context


class _Client:
    """One conversation, which says what it likes."""

    def __init__(self, conversation: socket.socket) -> None:
        settings = {"validate_outbound_headers": False, "normalize_outbound_headers": False}
        self.http2 = h2.connection.H2Connection(h2.config.H2Configuration(**settings))
        self._conversation = conversation
        self._is_new = True

    def say(self, raw: bytes) -> list[object]:
        """Bytes of any kind; what comes back is the body."""
        self._conversation.sendall(raw)
        body, ended = b"", "silence"
        with suppress(TimeoutError):
            while chunk := self._conversation.recv(65536):
                body += chunk
            ended = "closed"
        return [0, body.decode("latin-1"), ended]

    def ask(self, stream: int, headers: Headers, data: bytes, expect: bytes = b"") -> list[object]:
        """A request, with data behind it that waits for no answer."""
        if self._is_new:
            self.http2.initiate_connection()
            self._is_new = False
        self.http2.send_headers(stream, headers, end_stream=False)
        if data:
            self.http2.send_data(stream, data)
        status, body, ended = 0, b"", "silence"
        try:
            self._conversation.sendall(self.http2.data_to_send())
            while chunk := self._conversation.recv(65536):
                for event in self.http2.receive_data(chunk):
                    if isinstance(event, h2.events.ResponseReceived):
                        status = int(dict(event.headers)[b":status"])
                    elif isinstance(event, h2.events.DataReceived):
                        body += event.data
                    elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                        return [status, body.decode("latin-1"), type(event).__name__]
                    elif isinstance(event, h2.events.ConnectionTerminated):
                        return [status, body.decode("latin-1"), f"error {event.error_code}"]
                if status == 200 and (expect in body if expect else len(body) >= len(data)):
                    return [status, body.decode("latin-1"), ""]
                self._conversation.sendall(self.http2.data_to_send())
            ended = "closed"
        except TimeoutError:
            pass
        except (OSError, h2.exceptions.ProtocolError) as error:
            ended = str(error)
        return [status, body.decode("latin-1"), ended]
