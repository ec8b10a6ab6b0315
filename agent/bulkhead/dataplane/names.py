"""DNS names as the kernel looks for them.

What a workload looks up is found by the whole name first, then by the wildcard one label up. Each name that somebody
wrote has a number of its own, the same in every commit: what was learned under it, and conversations that it let
through, are judged by whatever class a later commit gives it, and by none when it is gone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from bulkhead.dataplane.addresses import name_classes
from bulkhead.errors import Diagnostic, PolicyError
from bulkhead.identity.registry import Members
from bulkhead.policy.model import External

_WILDCARD = "*."
_WIRE_MAX = 255
_LABEL_MAX = 63


class DnsName(NamedTuple):
    """A name, or a wildcard, that externals list."""

    pattern: str
    identity: int
    """Of the class of names with the same externals."""


def name_id(pattern: str) -> int:
    """The number of a name, from 1; two may share one, which `number_names` refuses."""
    return int.from_bytes(hashlib.sha256(pattern.encode()).digest()[:4], "big") or 1


def wire_key(pattern: str) -> bytes:
    """A `struct name_key`. Raises ValueError for what cannot be a name on the wire."""
    is_wildcard = pattern.startswith(_WILDCARD)
    labels = [label.encode("ascii") for label in pattern.removeprefix(_WILDCARD).split(".")]
    if not all(0 < len(label) <= _LABEL_MAX for label in labels) or pattern != pattern.lower():
        raise ValueError(f"`{pattern}` is no DNS name")
    name = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    if len(name) > _WIRE_MAX:
        raise ValueError(f"`{pattern}` is too long for a DNS name")
    return name.ljust(_WIRE_MAX, b"\0") + bytes([is_wildcard])


def number_names(externals: Iterable[External], classes: Mapping[Members, int]) -> dict[int, DnsName]:
    """Every name that externals list, by number. Raises PolicyError (BH0602) when two would share a number."""
    outside = tuple(externals)
    named: dict[int, DnsName] = {}
    for pattern, members in name_classes(outside).items():
        name = DnsName(pattern, classes[members])
        other = named.setdefault(name_id(pattern), name)
        if other != name:
            external = next(external for external in outside if pattern in external.fqdn)
            problem = f"the DNS names `{pattern}` and `{other.pattern}` hash to the same number"
            hint = "write one of them through a wildcard, or leave it out"
            raise PolicyError([Diagnostic("BH0602", problem, external.loc, hint=hint)])
    return named
