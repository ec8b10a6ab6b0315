"""The API of the three-tier shop: keeps orders in Redis, and knows nothing of whatever is between it and anybody.

`python shop_api.py PORT REDIS_IPV4 REDIS_IPV6`. An order that comes over one family is kept over the same.
"""

from __future__ import annotations

import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer

PORT = 6379
_ANSWER_S = 5.0


def ask(address: str, *words: bytes) -> list[bytes]:
    """Put one command to Redis. Raises OSError."""
    command = b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
    with socket.create_connection((address, PORT), timeout=_ANSWER_S) as conversation:
        conversation.sendall(command)
        with conversation.makefile("rb") as answer:
            return _read(answer)


def _read(answer) -> list[bytes]:  # type: ignore[no-untyped-def]
    kind, said = (line := answer.readline())[:1], line[1:].strip()
    if kind == b"*":
        return [word for _ in range(int(said)) for word in _read(answer)]
    if kind == b"$":
        return [answer.read(int(said) + 2)[:-2]]
    if kind in (b":", b"+"):
        return [said]
    raise OSError(f"redis says {line!r}")


class Handler(BaseHTTPRequestHandler):
    """POST adds an order, GET lists them, whatever the path."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """All orders, one a line."""
        self._answer(b"LRANGE", b"orders", b"0", b"-1")

    def do_POST(self) -> None:
        """One more; how many there are then."""
        order = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(b"RPUSH", b"orders", order)

    def _answer(self, *command: bytes) -> None:
        is_four = self.client_address[0].startswith("::ffff:")
        try:
            status, body = 200, b"\n".join(ask(sys.argv[2 if is_four else 3], *command))
        except OSError as error:
            status, body = 502, str(error).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Seen-From", self.client_address[0])
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
        """Nothing."""


class Server(ThreadingHTTPServer):
    """For both families."""

    address_family = socket.AF_INET6
    daemon_threads = True

    def server_bind(self) -> None:
        """Without asking the DNS for the own name."""
        TCPServer.server_bind(self)


if __name__ == "__main__":
    with Server(("::", int(sys.argv[1])), Handler) as server:
        print("ready", flush=True)
        server.serve_forever()
