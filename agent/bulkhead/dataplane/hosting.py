"""Which nodes may host which workloads: the `host` globs of each, under one number.

A node says on the wire whom it hosts. Whoever receives that holds it against these globs, which are the same for many
workloads: the kernel knows them by a number, a hash, so that every commit on every host gives them the same one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from bulkhead.errors import Diagnostic, PolicyError
from bulkhead.policy.codes import message
from bulkhead.policy.model import Match, Workload

ANYWHERE: Final = 0
"""The number of no globs: any node."""

HostSet = tuple[str, ...]
"""Globs, sorted and each once, of which one must match the node's name."""


def host_set(match: Match) -> HostSet:
    """The globs of a selector of processes; none: any node."""
    return tuple(sorted(set(match.host)))


@lru_cache(maxsize=65536)
def host_set_id(globs: HostSet) -> int:
    """The number of some globs."""
    if not globs:
        return ANYWHERE
    return int.from_bytes(hashlib.sha256("\0".join(globs).encode()).digest()[:4], "big")


def hosting(workloads: Iterable[tuple[int, Match]]) -> dict[int, int]:
    """The number of the globs of each identity. A pod is on no node."""
    return {identity: host_set_id(host_set(match)) for identity, match in workloads if not match.of_pods}


def host_sets(matches: Iterable[Match]) -> dict[int, HostSet]:
    """Globs by their number; that of any node is not among them."""
    found = {host_set_id(globs): globs for match in matches if not match.of_pods and (globs := host_set(match))}
    return dict(sorted(found.items()))


def check_host_sets(workloads: Iterable[Workload]) -> None:
    """Raises PolicyError (BH0603) when different globs share a number."""
    owners: dict[int, Workload] = {}
    findings: list[Diagnostic] = []
    for workload in workloads:
        if workload.match.of_pods:
            continue
        globs = host_set(workload.match)
        owner = owners.setdefault(host_set_id(globs), workload)
        if (host_set_id(globs) == ANYWHERE and globs) or host_set(owner.match) != globs:
            text = message("BH0603", one=workload.qualified, other=owner.qualified)
            related = ((owner.loc, f"`{owner.qualified}` is here"),)
            findings.append(Diagnostic("BH0603", text, workload.loc, related=related))
    if findings:
        raise PolicyError(findings)
