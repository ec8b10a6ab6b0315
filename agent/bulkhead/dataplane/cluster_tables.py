"""What a commit means in a cluster as the tables of the kernel, for all pods at once.

The kernel knows one protocol at a time, so what is open for every protocol is open here for those that are asked for:
by default the ones that have ports or types. The own node of a pod is the machine it runs on, which tables call `host`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from bulkhead.abi import Direction
from bulkhead.dataplane import points
from bulkhead.dataplane.cluster import DIRECTIONS, Allowance, ResolvedCluster
from bulkhead.dataplane.compile import Compiled, PolicyEntry, PolicyKey, WorkloadInfo
from bulkhead.dataplane.hosting import hosting
from bulkhead.dataplane.inventory import Listed
from bulkhead.dataplane.parties import Party, Standing
from bulkhead.dataplane.ports import port_prefixes
from bulkhead.dataplane.resolve import HOST, Limits
from bulkhead.errors import Diagnostic, PolicyError
from bulkhead.identity.registry import spiffe_id
from bulkhead.identity.selectors import Endpoint
from bulkhead.policy.model import Match, Mode, QualifiedName
from bulkhead.policy.ports import ICMP, ICMPV6, SCTP, TCP, UDP

PROTOCOLS: Final = frozenset({TCP, UDP, SCTP, ICMP, ICMPV6})

_Tail = tuple[int, int, int, PolicyEntry]
"""Protocol, port and port bits of a key, with its entry."""


def compile_cluster(
    resolved: ResolvedCluster, protocols: Iterable[int] = PROTOCOLS, limits: Limits | None = None
) -> Compiled:
    """The tables. Raises PolicyError (BH0701) when there are more entries than fit."""
    entries = dict(_entries(resolved, frozenset(protocols), (limits or Limits()).policy_entries))
    policy_set, parties = resolved.policy_set, resolved.parties
    networks = {
        family: {network: parties.classes[members].identity for network, members in classes.prefixes.items()}
        for family, classes in parties.networks.items()
    }
    workloads = tuple(_stand_in(resolved, party) for party in _pods(resolved))
    return Compiled(
        commit=policy_set.commit,
        trust_domain=policy_set.trust_domain,
        host=None,
        host_mode=Mode.ENFORCE,
        compiled_at=resolved.now.timestamp(),
        entries=entries,
        classes4=networks[4],
        classes6=networks[6],
        classes={party.identity: tuple(sorted(members)) for members, party in parties.classes.items()},
        workloads=workloads,
        rules=dict(resolved.rules),
        executables=(),
        hosting=hosting((workload.identity, workload.match) for workload in workloads),
    )


def stand_ins(resolved: ResolvedCluster) -> list[Listed]:
    """An endpoint for each party of pods, which has its identity by these tables."""
    return [Listed(party.name, Endpoint("", _cgroup(party))) for party in _pods(resolved)]


def _pods(resolved: ResolvedCluster) -> Sequence[Party]:
    return [party for party in resolved.parties.all if party.standing is Standing.POD]


def _stand_in(resolved: ResolvedCluster, party: Party) -> WorkloadInfo:
    qualified = QualifiedName(f"pods/{party.identity:08x}")
    return WorkloadInfo(
        identity=party.identity,
        qualified=qualified,
        spiffe_id=spiffe_id(resolved.policy_set.trust_domain, qualified),
        mode=Mode.ENFORCE,
        match=Match(cgroup=(_cgroup(party),)),
        labels=(),
        loc=resolved.rules[resolved.defaults["not-selected"]].loc,
        local=True,
        svid=spiffe_id(resolved.policy_set.trust_domain, qualified),
    )


def _cgroup(party: Party) -> str:
    return f"/pods/{party.identity:08x}"


def _entries(
    resolved: ResolvedCluster, protocols: frozenset[int], limit: int
) -> Iterator[tuple[PolicyKey, PolicyEntry]]:
    tails: dict[Allowance, list[_Tail]] = {}
    count = 0
    for local, direction, remote, allowance in _pairs(resolved):
        found = tails.get(allowance)
        if found is None:
            found = tails[allowance] = list(_tails(allowance, protocols))
        count += len(found)
        if count > limit:
            loc = resolved.rules[resolved.defaults["not-selected"]].loc
            problem = f"more than the {limit:,} entries that fit, for {len(_pods(resolved)):,} groups of pods"
            raise PolicyError([Diagnostic("BH0701", problem, loc)])
        for protocol, port, bits, entry in found:
            yield PolicyKey(local.identity, int(direction), remote, protocol, port, bits), entry


def _pairs(resolved: ResolvedCluster) -> Iterator[tuple[Party, Direction, int, Allowance]]:
    own_node = resolved.own_node
    for local in _pods(resolved):
        for direction in DIRECTIONS:
            yield local, direction, HOST, own_node
            for remote in resolved.parties.all:
                yield local, direction, remote.identity, resolved.allowance(local, direction, remote)


def _tails(allowance: Allowance, protocols: frozenset[int]) -> Iterator[_Tail]:
    for grant in allowance.grants:
        entry = PolicyEntry(grant.rule_id, grant.deadline)
        for span in points.spans(((grant.first, grant.last),), protocols):
            for value, bits in port_prefixes(span.first, span.last):
                yield span.protocol, value, bits, entry
