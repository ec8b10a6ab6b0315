"""Externals as prefixes for a longest-prefix match: each address finds exactly the set of externals that contain it.

Externals of DNS names are divided likewise, by which of them a name belongs to.

Prefixes are either nested or apart, so they form a forest. What contains an address is known at the deepest prefix
around it: every external with a `cidr` on the way there, less those with an `except` on the way. One walk in sorted
order with a stack of open prefixes settles all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from bulkhead.errors import Diagnostic, PolicyError
from bulkhead.identity.registry import Members
from bulkhead.policy.model import External, Network, QualifiedName

Address = IPv4Address | IPv6Address

WORLD_MEMBERS: Members = frozenset()
"""An address that no external names."""


@dataclass(slots=True)
class _Prefix:
    """A prefix that somebody wrote, while the walk is on."""

    network: Network
    included: set[QualifiedName] = field(default_factory=set)
    excluded: set[QualifiedName] = field(default_factory=set)
    parent: int = -1
    members: Members = WORLD_MEMBERS
    blocked: Members = frozenset()
    """Externals that an `except` here or further out rules out."""
    covered: int = 0
    """Addresses that prefixes directly below answer for."""

    @property
    def size(self) -> int:
        return 1 << (self.network.max_prefixlen - self.network.prefixlen)

    @property
    def inhabited(self) -> bool:
        """Whether any address has it as the longest match."""
        return self.covered < self.size


class AddressClasses(NamedTuple):
    """One address family, divided by which externals contain an address."""

    prefixes: dict[Network, Members]
    """The longest match of an address is the set of externals around it. No match, or the empty set: the world."""
    world_left: bool
    """Whether any address is left that no external contains."""


MEMBERSHIPS_LIMIT = 5_000_000


def address_classes(
    externals: Iterable[External], version: int, memberships: int = MEMBERSHIPS_LIMIT
) -> AddressClasses:
    """The prefixes of one family (`version` 4 or 6) and what they answer.

    Prefixes that could never answer, or would answer what the prefix around them answers, are left out. Raises
    PolicyError (BH0701) when the sets, where they change, have more than `memberships` members in all.
    """
    by_name = {external.qualified: external for external in externals}
    prefixes = _written(by_name.values(), version)
    try:
        _settle(prefixes, memberships)
    except _TooManyError as found:
        text = f"externals overlap more than the {memberships:,} times that fit"
        raise PolicyError([Diagnostic("BH0701", text, by_name[min(found.members)].loc)]) from None
    return AddressClasses(_needed(prefixes), _is_world_left(prefixes, 32 if version == 4 else 128))


def name_classes(externals: Iterable[External]) -> dict[str, Members]:
    """Each DNS name that was written, a wildcard or not, with all externals that it belongs to."""
    owners: dict[str, set[QualifiedName]] = {}
    for external in externals:
        for name in external.fqdn:
            owners.setdefault(name, set()).add(external.qualified)
    wide = ((name, f"*.{name.partition('.')[2]}") for name in owners)
    return {name: frozenset(owners[name] | owners.get(covering, set())) for name, covering in wide}


def prefix_count(externals: Iterable[External], version: int) -> int:
    """How many distinct prefixes of a family were written: a bound of what `address_classes` gives."""
    return len({n for e in externals for n in (*e.cidr, *e.excluded) if n.version == version})


def _written(externals: Iterable[External], version: int) -> list[_Prefix]:
    """All written prefixes, outer before inner."""
    found: dict[Network, _Prefix] = {}
    for external in externals:
        for network in external.cidr:
            if network.version == version:
                found.setdefault(network, _Prefix(network)).included.add(external.qualified)
        for network in external.excluded:
            if network.version == version:
                found.setdefault(network, _Prefix(network)).excluded.add(external.qualified)
    return sorted(found.values(), key=lambda prefix: (int(prefix.network.network_address), prefix.network.prefixlen))


class _TooManyError(Exception):
    """The sets have grown beyond bounds at a prefix with these members."""

    def __init__(self, members: Members) -> None:
        super().__init__()
        self.members = members


def _settle(prefixes: Sequence[_Prefix], memberships: int) -> None:
    """Fills in parents, members and coverage."""
    around: list[tuple[int, int]] = []
    for at, prefix in enumerate(prefixes):
        start = int(prefix.network.network_address)
        while around and around[-1][1] <= start:
            around.pop()
        if around:
            prefix.parent = around[-1][0]
            prefixes[prefix.parent].covered += prefix.size
        around.append((at, start + prefix.size))
        memberships -= _inherit(prefix, prefixes[prefix.parent] if prefix.parent >= 0 else None)
        if memberships < 0:
            raise _TooManyError(prefix.members)


def _inherit(prefix: _Prefix, parent: _Prefix | None) -> int:
    """Fills in the sets from those of the prefix around; returns how many members were written anew."""
    members = parent.members if parent else WORLD_MEMBERS
    blocked = parent.blocked if parent else frozenset()
    # Sets are shared along the way down wherever a prefix adds nothing to them.
    prefix.blocked = blocked if prefix.excluded <= blocked else blocked | prefix.excluded
    added = prefix.included - prefix.blocked - members
    removed = prefix.excluded & members
    prefix.members = (members | added) - removed if added or removed else members
    written = len(prefix.members) if added or removed else 0
    return written + (0 if prefix.blocked is blocked else len(prefix.blocked))


def _needed(prefixes: Sequence[_Prefix]) -> dict[Network, Members]:
    """The prefixes that change an answer. `answers` is what each place answers when the prefix itself is left out."""
    answers: list[Members] = []
    needed: dict[Network, Members] = {}
    for prefix in prefixes:
        outer = answers[prefix.parent] if prefix.parent >= 0 else WORLD_MEMBERS
        if prefix.inhabited and prefix.members != outer:
            needed[prefix.network] = prefix.members
        answers.append(prefix.members if prefix.inhabited else outer)
    return needed


def _is_world_left(prefixes: Sequence[_Prefix], address_bits: int) -> bool:
    outermost = sum(prefix.size for prefix in prefixes if prefix.parent < 0)
    return outermost < 1 << address_bits or any(p.inhabited and not p.members for p in prefixes)
