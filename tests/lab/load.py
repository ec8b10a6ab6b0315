"""Requests without a pause, in a puppet, and what became of them: over new conversations, and over one that is kept."""

from __future__ import annotations

import http.client
import threading
import time
from contextlib import suppress

_ANSWER_S = 10.0
_PAUSE_S = 0.005
_counts = {"new": 0, "kept": 0}
_failures: list[str] = []
_stop = threading.Event()
_threads: list[threading.Thread] = []


def begin(address: str, port: int, path: str) -> None:
    """Ask on and on."""
    for kind in _counts:
        one = threading.Thread(target=_ask_on, args=(kind, address, port, path), daemon=True)
        _threads.append(one)
        one.start()


def so_far() -> dict[str, int]:
    """How many were answered with 200, by kind of conversation."""
    return dict(_counts)


def failures() -> list[str]:
    """What went wrong until now: nothing is tried again."""
    return list(_failures)


def end() -> list[str]:
    """Ask no more; what went wrong in all."""
    _stop.set()
    for one in _threads:
        one.join(_ANSWER_S)
    return failures()


def once(address: str, port: int, path: str, times: int) -> list[str]:
    """That many requests, each in a conversation of its own; what went wrong."""
    return [error for _ in range(times) if (error := _ask(_connected(address, port), path))]


def _connected(address: str, port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(address, port, timeout=_ANSWER_S)


def _ask_on(kind: str, address: str, port: int, path: str) -> None:
    conversation = _connected(address, port)
    while not _stop.is_set():
        if kind == "new":
            conversation.close()
        elif conversation.sock is None and _counts[kind]:
            _failures.append("the kept conversation was closed")
        if error := _ask(conversation, path):
            _failures.append(f"{kind}, at {time.time():.3f}: {error}")
        else:
            _counts[kind] += 1
        _stop.wait(_PAUSE_S)
    conversation.close()


def _ask(conversation: http.client.HTTPConnection, path: str) -> str:
    try:
        conversation.request("GET", path)
        answer = conversation.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException) as error:
        with suppress(OSError):
            conversation.close()
        return f"{type(error).__name__}: {error}"
    return "" if answer.status == http.client.OK else f"status {answer.status}"
