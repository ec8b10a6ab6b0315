"""Two meshes at once, for the moment in which one commit follows another."""

from __future__ import annotations

from bulkhead.dataplane.mesh import Call, Mesh
from bulkhead.dataplane.ports import joined


def both(old: Mesh, new: Mesh) -> Mesh:
    """What a proxy does that is ready for `new` and still serves `old`; what requests may be is what `new` says.

    A workload whose requests only `old` judges is judged by it until `new` is in force: nothing opens early.
    """
    lanes = {lane.number: lane for lane in (*old.lanes, *new.lanes)}
    calls: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for call in (*old.calls, *new.calls):
        calls.setdefault((call.destination, call.source), []).extend(call.ports)
    judged = {one.destination: one for one in (*old.authorizations, *new.authorizations)}
    return Mesh(
        lanes=tuple(sorted(lanes.values())),
        calls=tuple(Call(*ends, joined(ports)) for ends, ports in sorted(calls.items())),
        authorizations=tuple(judged[destination] for destination in sorted(judged)),
        issuers=new.issuers,
        svids=old.svids | new.svids,
    )
