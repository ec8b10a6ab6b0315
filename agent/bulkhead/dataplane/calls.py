"""What a host's proxy takes in: who may call its workloads, on which ports, and as whom everybody proves themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bulkhead.dataplane.authorizations import authorizations, issuers
from bulkhead.dataplane.entries import demands
from bulkhead.dataplane.mesh import Call, Lane, Mesh
from bulkhead.dataplane.ports import Ports, common, joined, tcp_ports
from bulkhead.dataplane.resolve import Resolved, ResolvedRule
from bulkhead.identity.registry import svid_template


def mesh_of(resolved: Resolved, lanes: tuple[Lane, ...]) -> Mesh:
    """The mesh of the host; empty where every host is compiled at once."""
    if resolved.host is None:
        return Mesh()
    calls, judged = tuple(_calls(resolved)), authorizations(resolved)
    mentioned = {lane.source for lane in lanes} | {peer for lane in lanes for peer in lane.peers}
    mentioned |= {one for call in calls for one in (call.source, call.destination)}
    mentioned |= {one.destination for one in judged}
    names = {resolved.directory.workloads[one.qualified]: one for one in resolved.policy_set.workloads}
    trust_domain = resolved.policy_set.trust_domain
    svids = {identity: svid_template(trust_domain, names[identity]) for identity in sorted(mentioned)}
    return Mesh(lanes, calls, judged, issuers(resolved) if judged else (), svids)


def _calls(resolved: Resolved) -> Iterator[Call]:
    """Calls to local workloads, in order.

    What says `mtls: off` permits plaintext and does not demand it: a caller that goes through its proxy because of
    another rule for the same port comes that way here too.
    """
    rules = [found for found in resolved.rules if found.source.workloads and _ports([found])]
    steering = _by_source(found for found in rules if demands(found.rule))
    steered: dict[int, Ports] = {}
    known: dict[tuple[ResolvedRule, ...], Ports] = {}
    by_destination = _by_local_destination(resolved, rules)
    for destination in sorted(by_destination):
        for source, found in sorted(_by_source(by_destination[destination]).items()):
            if source not in steering:
                continue
            strict = tuple(one for one in found if demands(one.rule))
            if strict not in known:
                known[strict] = _ports(strict)
            ports = known[strict]
            if len(strict) < len(found):
                steered[source] = steered.get(source) or _ports(steering[source])
                plain = _ports(one for one in found if not demands(one.rule))
                ports = joined([*ports, *common(plain, steered[source])])
            if ports:
                yield Call(destination, source, ports)


def _by_source(rules: Iterable[ResolvedRule]) -> dict[int, list[ResolvedRule]]:
    found: dict[int, list[ResolvedRule]] = {}
    for one in rules:
        for source in one.source.workloads:
            found.setdefault(source, []).append(one)
    return found


def _by_local_destination(resolved: Resolved, rules: Iterable[ResolvedRule]) -> dict[int, list[ResolvedRule]]:
    found: dict[int, list[ResolvedRule]] = {}
    for one in rules:
        for destination in one.destination.workloads & resolved.directory.local:
            found.setdefault(destination, []).append(one)
    return found


def _ports(rules: Iterable[ResolvedRule]) -> Ports:
    return tcp_ports(spec for one in rules for spec in one.rule.ports)
