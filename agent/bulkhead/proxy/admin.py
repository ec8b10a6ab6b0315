"""Envoy's administration, on its Unix socket."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path
from typing import Final

_ANSWER_S: Final = 5.0


def ask(admin: Path, path: str, most: int) -> bytes:
    """The first `most` bytes of what it answers. Raises OSError and HTTPException."""
    connection = http.client.HTTPConnection("localhost", timeout=_ANSWER_S)
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.settimeout(_ANSWER_S)
        connection.sock.connect(str(admin))
        connection.request("GET", path)
        return connection.getresponse().read(most)
    finally:
        connection.close()
