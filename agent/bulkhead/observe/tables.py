"""The tables of one commit as questions are asked of them, whether they are values or the bytes of a bundle."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_address
from struct import Struct
from typing import Final, Protocol

from bulkhead.abi import Identity
from bulkhead.dataplane import compile as compiler
from bulkhead.dataplane.addresses import Address
from bulkhead.dataplane.bundle import Bundle
from bulkhead.dataplane.compile import Compiled, PolicyEntry, RuleInfo, WorkloadInfo
from bulkhead.dataplane.ports import PORT_BITS, prefix_of
from bulkhead.policy.model import Mode, QualifiedName, RuleId

_FIXED_BITS: Final = 80
_KEY: Final = Struct("<IIIBB")
_ENTRY: Final = Struct("<III")
_U32: Final = Struct("<I")


class Tables(Protocol):
    """What one host, or all of them, enforces for a commit."""

    @property
    def commit(self) -> str: ...
    @property
    def host(self) -> str | None:
        """None: every host at once."""

    @property
    def host_mode(self) -> Mode: ...
    def lookup(self, local: int, direction: int, remote: int, protocol: int, port: int) -> PolicyEntry | None:
        """The entry that the kernel finds; None: nothing allows it. For openings to nodes, `remote` is PEER."""

    def class_of(self, address: Address) -> int:
        """The identity of an address outside this machine."""

    def classes(self) -> dict[int, tuple[QualifiedName, ...]]:
        """Every address class that some address has, with its externals; none for the world."""

    def rule(self, rule_id: int) -> RuleInfo | None: ...
    def rules(self) -> Iterator[RuleInfo]: ...
    def workload(self, identity: int) -> WorkloadInfo | None: ...
    def workloads(self) -> Iterator[WorkloadInfo]: ...
    def identity_name(self, identity: int) -> str | None:
        """What to call an identity; None when the commit does not know it."""


def tables_of(source: Compiled | Bundle) -> Tables:
    """The tables of either form."""
    return CompiledTables(source) if isinstance(source, Compiled) else BundleTables(source)


class CompiledTables:
    """Tables held as values."""

    def __init__(self, compiled: Compiled) -> None:
        self._compiled = compiled
        self._openings = replace(compiled, entries=compiled.openings)
        self._workloads = {workload.identity: workload for workload in compiled.workloads}
        self.commit = compiled.commit
        self.host = compiled.host
        self.host_mode = compiled.host_mode

    def lookup(self, local: int, direction: int, remote: int, protocol: int, port: int) -> PolicyEntry | None:
        compiled = self._openings if remote == Identity.PEER else self._compiled
        return compiler.lookup(compiled, local, direction, remote, protocol, port)

    def class_of(self, address: Address) -> int:
        return compiler.class_of(self._compiled, address)

    def classes(self) -> dict[int, tuple[QualifiedName, ...]]:
        used = {*self._compiled.classes4.values(), *self._compiled.classes6.values()}
        if _world_left(self._compiled.classes4) or _world_left(self._compiled.classes6):
            used.add(int(Identity.WORLD))
        return {identity: self._compiled.classes.get(identity, ()) for identity in sorted(used)}

    def rule(self, rule_id: int) -> RuleInfo | None:
        return self._compiled.rules.get(RuleId(rule_id))

    def rules(self) -> Iterator[RuleInfo]:
        yield from self._compiled.rules.values()

    def workload(self, identity: int) -> WorkloadInfo | None:
        return self._workloads.get(identity)

    def workloads(self) -> Iterator[WorkloadInfo]:
        yield from self._compiled.workloads

    def identity_name(self, identity: int) -> str | None:
        return compiler.identity_name(self._compiled, identity)


class BundleTables:
    """Tables left as the bytes they came in: a question costs a few binary searches and no memory."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self.commit = bundle.commit
        self.host = bundle.host
        self.host_mode = bundle.host_mode

    def lookup(self, local: int, direction: int, remote: int, protocol: int, port: int) -> PolicyEntry | None:
        for bits in range(PORT_BITS, -1, -1):
            value = prefix_of(port, bits).value
            key = _KEY.pack(_FIXED_BITS + bits, local, remote, direction, protocol) + value.to_bytes(2, "big")
            at = _find(self._bundle.policy_keys, key)
            if at is not None:
                rule_id, _, deadline = _ENTRY.unpack_from(self._bundle.policy_entries, at * 16)
                return PolicyEntry(RuleId(rule_id), float(deadline) if deadline else None)
        return None

    def class_of(self, address: Address) -> int:
        keys, identities = self._prefixes(address.version)
        width = address.max_prefixlen
        for bits in range(width, -1, -1):
            masked = int(address) >> (width - bits) << (width - bits)
            at = _find(keys, _U32.pack(bits) + masked.to_bytes(width // 8, "big"))
            if at is not None:
                return int(_U32.unpack_from(identities, at * 4)[0])
        return int(Identity.WORLD)

    def classes(self) -> dict[int, tuple[QualifiedName, ...]]:
        families = [dict(self._bundle.prefixes(version)) for version in (4, 6)]
        used = {identity for family in families for identity in family.values()}
        if any(_world_left(family) for family in families):
            used.add(int(Identity.WORLD))
        return {identity: self._bundle.class_members(identity) or () for identity in sorted(used)}

    def rule(self, rule_id: int) -> RuleInfo | None:
        return self._bundle.rule(rule_id)

    def rules(self) -> Iterator[RuleInfo]:
        return self._bundle.rules()

    def workload(self, identity: int) -> WorkloadInfo | None:
        return self._bundle.workload(identity)

    def workloads(self) -> Iterator[WorkloadInfo]:
        return self._bundle.workloads()

    def identity_name(self, identity: int) -> str | None:
        return self._bundle.identity_name(identity)

    def _prefixes(self, version: int) -> tuple[bytes, bytes]:
        bundle = self._bundle
        return (bundle.keys4, bundle.identities4) if version == 4 else (bundle.keys6, bundle.identities6)


def _find(keys: bytes, key: bytes) -> int | None:
    """The position of a key among ascending ones of its size."""
    size = len(key)
    at = bisect_left(range(len(keys) // size), key, key=lambda index: keys[index * size : (index + 1) * size])
    return at if keys[at * size : (at + 1) * size] == key else None


def _world_left(prefixes: Iterable[IPv4Network | IPv6Network]) -> bool:
    """Whether any address of a family is in none of the prefixes."""
    networks = list(prefixes)
    if any(network.prefixlen == 0 for network in networks):
        return False
    four = [network for network in networks if isinstance(network, IPv4Network)]
    six = [network for network in networks if isinstance(network, IPv6Network)]
    whole4, whole6 = collapse_addresses(four), collapse_addresses(six)
    return all(network.prefixlen for network in whole4) and all(network.prefixlen for network in whole6)


def parse_address(text: str) -> Address | None:
    """An address, with IPv4-mapped ones as IPv4; None for anything else."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped if mapped is not None else address
