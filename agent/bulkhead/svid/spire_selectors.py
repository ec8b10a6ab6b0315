"""The words of policy in the words of SPIRE: what is true of every process of a workload, as SPIRE attests it.

SPIRE gives a delegate the SVIDs of every registration entry all of whose selectors it was told. So a match is said
whole or not at all: said in part, an entry that asks for the rest would not be found. A key with several values, or a
pattern, is true of no process in one way only, and control groups are nothing that SPIRE looks at. What cannot be said
is attested by SPIRE itself, by the number of a process. `host` needs no words: a SPIRE agent speaks for one host.
"""

from __future__ import annotations

from collections.abc import Iterator

from bulkhead.policy.model import Match

Selectors = tuple[tuple[str, str], ...]


def selectors_of(match: Match) -> Selectors:
    """The selectors, as pairs of a type and a value; none where SPIRE has no words for all of the match."""
    try:
        return tuple(_of_pod(match) if match.of_pods else _of_process(match))
    except _UnsayableError:
        return ()


class _UnsayableError(Exception):
    """SPIRE has no word for it."""


def _of_process(match: Match) -> Iterator[tuple[str, str]]:
    if match.cgroup or match.everything:
        raise _UnsayableError
    if match.unit:
        yield "systemd", f"id:{_only(match.unit)}"
    if match.exe:
        yield "unix", f"path:{_single(match.exe)}"
    for written, number, name in ((match.user, "uid", "user"), (match.group, "gid", "group")):
        if written:
            text = _single(written)
            yield "unix", f"{number if text.isdecimal() else name}:{text}"


def _of_pod(match: Match) -> Iterator[tuple[str, str]]:
    if match.namespace:
        yield "k8s", f"ns:{_only(match.namespace)}"
    if match.service_account:
        yield "k8s", f"sa:{_only(match.service_account)}"
    for label, value in match.labels:
        yield "k8s", f"pod-label:{label}:{value}"


def _single(written: tuple[str, ...]) -> str:
    if len(written) > 1:
        raise _UnsayableError
    return written[0]


def _only(globs: tuple[str, ...]) -> str:
    text = _single(globs)
    if "*" in text or "?" in text:
        raise _UnsayableError
    return text
