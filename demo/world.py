"""A server somewhere on the Internet: takes whatever it is sent."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer


class Handler(BaseHTTPRequestHandler):
    """Says what it got."""

    def do_GET(self) -> None:
        """Somebody looked."""
        self._answer("hello from the world")

    def do_POST(self) -> None:
        """Somebody sent something."""
        got = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(f"the world now has: {got.decode()}")

    def _answer(self, text: str) -> None:
        body = f"{text}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
        """Nothing."""


class Server(TCPServer):
    """Plain TCPServer: HTTPServer would look its own name up in the DNS."""

    allow_reuse_address = True


if __name__ == "__main__":
    with Server(("203.0.113.10", 80), Handler) as server:
        print("ready", flush=True)
        server.serve_forever()
