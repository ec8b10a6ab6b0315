"""An HTTP application that believes what it reads, and keeps every request that it got as it got it.

Started in a puppet: `serve(port)`, and `requests()` tells. It reads strictly: what could be read in two ways is kept as
`ambiguous`.
"""

from __future__ import annotations

import socket
import threading

_seen: list[str] = []
_QUIET_S = 10.0


def serve(port: int) -> None:
    """Answer 200 to every request, for ever, over both families."""
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)

    def accept() -> None:
        while True:
            one, _ = listener.accept()
            threading.Thread(target=_talk, args=(one,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def requests() -> list[str]:
    """Method and target of each request since the last time, in order."""
    found = list(_seen)
    del _seen[: len(found)]
    return found


def _talk(one: socket.socket) -> None:
    one.settimeout(_QUIET_S)
    try:
        with one, one.makefile("rb") as incoming:
            while first := incoming.readline():
                names = _headers(incoming)
                method, target, _ = first.decode("latin-1").split(" ", 2)
                lengths, encodings = names.get("content-length", []), names.get("transfer-encoding", [])
                is_clear = len(lengths) + len(encodings) <= 1 and first.endswith(b"\r\n") and "" not in names
                _seen.append(f"{method} {target}" if is_clear else f"ambiguous {first!r} {names}")
                if not is_clear:
                    return
                if encodings:
                    _skip_chunks(incoming)
                incoming.read(int(lengths[0]) if lengths else 0)
                one.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    except OSError:
        return
    except ValueError as error:
        _seen.append(f"ambiguous {error}")


def _headers(incoming) -> dict[str, list[str]]:  # type: ignore[no-untyped-def]
    """By name; under the empty name what is no header."""
    found: dict[str, list[str]] = {}
    while (line := incoming.readline()) not in (b"\r\n", b""):
        name, colon, value = line.decode("latin-1").partition(":")
        is_sound = colon and line.endswith(b"\r\n") and name == name.strip() and "\r" not in value[:-2]
        found.setdefault(name.lower() if is_sound else "", []).append(value.strip())
    return found


def _skip_chunks(incoming) -> None:  # type: ignore[no-untyped-def]
    while size := int(incoming.readline(), 16):
        incoming.read(size + 2)
    incoming.readline()
