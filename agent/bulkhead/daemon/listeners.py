"""Who listens on which TCP port of this machine now, by identity."""

from __future__ import annotations

from collections.abc import Iterable

from bulkhead.abi import SockFlag, SockState
from bulkhead.kernel.attestation import Attestation
from bulkhead.kernel.diag import SocketDiag, SocketState
from bulkhead.kernel.maps import KernelMaps


def identities_by_port(maps: KernelMaps, attestation: Attestation, wanted: Iterable[int]) -> dict[int, int]:
    """Of the ports on which one of the `wanted` identities listens, and no other of them: which one."""
    identities = frozenset(wanted)
    with SocketDiag() as diag:
        dump = diag.dump(states=frozenset({SocketState.LISTEN}), storage_map_fd=maps.fixed("sockets").fd.fileno())
    found: dict[int, set[int]] = {}
    for entry in dump.sockets:
        if entry.storage is None:
            continue
        state = SockState.from_buffer_copy(entry.storage)
        if state.flags & SockFlag.ORIGIN and (identity := attestation.identity_of(state)) in identities:
            found.setdefault(entry.socket_id.source_port, set()).add(identity)
    return {port: identity for port, (identity, *others) in found.items() if not others}
