"""The maps of identity on the wire. They outlast generations and the agent: what is in them stays in force.

Any thread may write; each method makes its map right in the order that opens nothing in between.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from bulkhead.abi import ClaimKey, NodeEntry, NodeKey, WireCount, WireKeyId, WireKeys, WireSelf, name_of
from bulkhead.dataplane.reconcile import MapDelta, reconcile
from bulkhead.kernel.clock import monotonic_offset_s
from bulkhead.kernel.libbpf import Map
from bulkhead.policy.model import Network

KEYS_BYTES: Final = len(bytes(WireKeys()))
"""Of both directions' keys for one node and epoch, as `struct wire_keys`."""
_ZERO: Final = bytes(4)
_MAPPED: Final = bytes(10) + b"\xff\xff"
_COMMIT_BYTES: Final = 8


def node_key(network: Network) -> bytes:
    """The key in `nodes` of a prefix."""
    mapped = _MAPPED if network.version == 4 else b""
    address = mapped + network.network_address.packed
    return bytes(NodeKey(prefix_bits=8 * len(mapped) + network.prefixlen, address=tuple(address)))


def node_entry(number: int, flags: int) -> bytes:
    """The value in `nodes`."""
    return bytes(NodeEntry(node=number, flags=flags))


def claim_key(number: int, host_set: int) -> bytes:
    """The key in `claims`."""
    return bytes(ClaimKey(node=number, host_set=host_set))


CLAIMED: Final = (1).to_bytes(4, "little")
"""The value in `claims`: what counts is that there is one."""


class WireMaps:
    """Borrows the maps, which `fixed` finds by name."""

    def __init__(self, fixed: Callable[[str], Map]) -> None:
        self._fixed = fixed
        self._own = self.own()

    # This node

    @property
    def node(self) -> int:
        """The number under which this node speaks; 0: it does not."""
        return self._own.node

    def own(self) -> WireSelf:
        """What the kernel holds of this node."""
        raw = self._fixed("wire_self").lookup(_ZERO)
        return WireSelf.from_buffer_copy(raw) if raw else WireSelf()

    def is_ours(self) -> bool:
        """Whether the kernel holds what was written last, or was there when the maps were opened."""
        return bytes(self.own()) == bytes(self._own)

    def write_own(self, node: int, commit: str) -> None:
        """Say who this node is (0: nobody), what is enforced, and what time it is.

        The key of the local stamps is made once in a boot: conversations that are being opened rest on it.
        """
        stamp_key = tuple(self._own.stamp_key)
        own = WireSelf(
            stamp_key=stamp_key if any(stamp_key) else struct.unpack("=2Q", os.urandom(16)),
            clock_offset_s=monotonic_offset_s(),
            node=node,
            commit=tuple(_commit_bytes(commit)),
        )
        if bytes(own) != bytes(self.own()):
            self._fixed("wire_self").update(_ZERO, bytes(own))
        self._own = own

    # Who else there is

    def sync(self, name: str, wanted: Mapping[bytes, bytes]) -> MapDelta:
        """Make `nodes` or `claims` hold exactly this, and return what differed. Additions come first."""
        opened = self._fixed(name)
        delta = reconcile(wanted, opened.as_dict())
        _write(opened, delta.add | delta.change)
        opened.delete_batch(b"".join(delta.remove), len(delta.remove))
        return delta

    def claim(self, claims: Mapping[bytes, bytes]) -> None:
        """Add to `claims`."""
        _write(self._fixed("claims"), claims)

    # Keys

    def key_epochs(self) -> dict[int, set[int]]:
        """The epochs for which there are keys, by node."""
        opened = self._fixed("wire_keys")
        keys, _ = opened.lookup_batch()
        found: dict[int, set[int]] = {}
        words = memoryview(keys).cast("I")
        for node, epoch in zip(words[::2], words[1::2], strict=True):
            found.setdefault(node, set()).add(epoch)
        return found

    def drop_keys(self, ids: Iterable[tuple[int, int]]) -> None:
        """Delete the keys of these (node, epoch)."""
        packed = [bytes(WireKeyId(node=node, epoch=epoch)) for node, epoch in ids]
        self._fixed("wire_keys").delete_batch(b"".join(packed), len(packed))

    def write_keys(self, nodes: Iterable[int], epochs: range, values: bytes) -> None:
        """Write keys: `values` has KEYS_BYTES for each node and in it for each epoch, in this order."""
        packed = [bytes(WireKeyId(node=node, epoch=epoch)) for node in nodes for epoch in epochs]
        self._fixed("wire_keys").update_batch(b"".join(packed), values, len(packed))

    # What came of it

    def counts(self) -> dict[str, int]:
        """The kernel's counters, by name."""
        counted = self._fixed("wire_counts")
        return {
            name_of(WireCount, kind): counted.sum_words(counted.lookup(int(kind).to_bytes(4, "little")) or bytes(8))[0]
            for kind in WireCount
            if kind is not WireCount.MAX
        }


def _write(opened: Map, entries: Mapping[bytes, bytes]) -> None:
    opened.update_batch(b"".join(entries), b"".join(entries.values()), len(entries))


def _commit_bytes(commit: str) -> bytes:
    try:
        return bytes.fromhex(commit[: 2 * _COMMIT_BYTES]).ljust(_COMMIT_BYTES, b"\0")
    except ValueError:
        return bytes(_COMMIT_BYTES)
