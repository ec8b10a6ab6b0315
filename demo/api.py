"""The shop's HTTP API: counts visits in Redis. `/export` sends customer data to where it has no business."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer

WORLD = "http://203.0.113.10/"


class Redis:
    """One connection, kept open; opened again when it was lost."""

    def __init__(self) -> None:
        self._connection: socket.socket | None = None

    def ask(self, command: str) -> str:
        """Send an inline command, return its one-line answer. Raises OSError when Redis cannot be reached."""
        connection = self._connection or socket.create_connection(("127.0.0.1", 6379), timeout=2)
        self._connection = None
        connection.sendall(f"{command}\r\n".encode())
        answer = connection.recv(4096)
        if not answer:
            raise ConnectionResetError("redis closed the connection")
        self._connection = connection
        return answer.decode().strip().removeprefix(":")


REDIS = Redis()


class Handler(BaseHTTPRequestHandler):
    """`/` counts a visit."""

    def do_GET(self) -> None:
        """Answer, or say what the kernel said."""
        try:
            self._answer(200, _export() if self.path == "/export" else f"visit {REDIS.ask('INCR visits')}")
        except OSError as error:
            self._answer(502, f"api: {error}")

    def _answer(self, status: int, text: str) -> None:
        body = f"{text}\n".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
        """Nothing: the demo shows what matters."""


def _export() -> str:
    with urllib.request.urlopen(WORLD, data=b"customers=all", timeout=2) as answer:
        return str(answer.read().decode().strip())


class Server(TCPServer):
    """Plain TCPServer: HTTPServer would look its own name up in the DNS."""

    allow_reuse_address = True


if __name__ == "__main__":
    REDIS.ask("PING")
    with Server(("127.0.0.1", 9000), Handler) as server:
        print("ready", flush=True)
        server.serve_forever()
