"""What is exported as metrics, gathered at each scrape."""

from __future__ import annotations

from collections import Counter

from bulkhead.abi import Direction
from bulkhead.daemon.answers import Answers, PolicyState
from bulkhead.daemon.counters import Edge
from bulkhead.daemon.enforcer import Enforcer
from bulkhead.observe.mesh_metrics import MeshMeasurements
from bulkhead.observe.metrics import ExceptionExpiry, MapFill, Measurements
from bulkhead.observe.names import Namer
from bulkhead.policy.model import Entity


def measure(answers: Answers, namer: Namer, enforcer: Enforcer, policy: PolicyState) -> Measurements:
    """One moment's measurements, from the kernel's own counters."""
    counters, bundle = answers.counters, enforcer.bundle
    refusals = list(counters.refusals())
    rules = list(bundle.rules()) if bundle else []
    workloads = [info for info in bundle.workloads() if info.local] if bundle else []
    failing = {one.workload for one in enforcer.posture.standing}
    hits = counters.hits(dict(enforcer.hits.items()))
    return Measurements(
        drops={(one.reason, one.direction): one.total for one in refusals if one.verdict == "deny"},
        would_denies={(one.reason, one.direction): one.total for one in refusals if one.verdict == "would-deny"},
        edges=_by_name(counters.edges(), namer),
        names={*(info.qualified for info in workloads), *_externals(enforcer), *(str(entity) for entity in Entity)},
        rule_hits={_split(info.name): hits.get(info.name, 0) for info in rules},
        rule_last_hits={_split(name): at for name, at in answers.last_hits().items()},
        events_lost=counters.losses(),
        commit=bundle.commit if bundle else "",
        generation=enforcer.generation,
        last_load_success=policy.loaded,
        last_load_ok=not policy.error,
        refused=dict(policy.refusals),
        source_up=bool(policy.source.last_success) and not policy.source.error,
        source_last_success=policy.source.last_success,
        modes={info.qualified: str(info.mode) for info in workloads}
        | {"host": str(bundle.host_mode) if bundle else ""},
        exceptions=tuple(
            ExceptionExpiry(info.name, info.owner, info.expires) for info in rules if info.expires is not None
        ),
        maps=tuple(MapFill(name, entries, top) for name, (entries, top) in counters.sizes().items()),
        attested_cgroups=len(enforcer.attestation.plan.paths) if enforcer.attestation.plan else 0,
        control_packets=counters.controls(),
        dns_answers=counters.dns_answers(),
        wire=enforcer.wire.counts(),
        wire_nodes=len(enforcer.wire.roster.nodes) if enforcer.wire.roster is not None else 0,
        wire_refused_nodes=enforcer.wire.refused_by_reason(),
        wire_keys_until=enforcer.wire.keys_until(),
        drifts=answers.upkeep.outcomes(),
        kernel_equals_git=not answers.upkeep.standing,
        looked=answers.upkeep.looked,
        isolated=tuple(one.workload for one in enforcer.quarantine),
        postures={info.qualified: info.qualified not in failing for info in workloads if info.posture},
        mesh=_mesh(enforcer),
    )


def _mesh(enforcer: Enforcer) -> MeshMeasurements:
    mesh, said = enforcer.mesh, enforcer.mesh.svids()
    svids, counted = said.get("svids", []), mesh.statistics
    return MeshMeasurements(
        svid_issued={one["name"]: one["issued_at"] for one in svids},
        svid_expires={one["name"]: one["expires_at"] for one in svids},
        issued=said.get("issued", {}),
        refused_callers=said.get("refusals", {}),
        handshakes=counted.handshakes,
        handshake_failures=dict(counted.failures),
        requests={(mesh.requests.name_of(policy), outcome): n for (policy, outcome), n in counted.requests.items()},
        conversations=mesh.requests.conversations(),
        records=mesh.requests.counted(),
        records_malformed=mesh.proxy.records.malformed,
        proxy_up=mesh.is_up,
        proxy_restarts=mesh.proxy.running.restarts,
        rego={(one["package"], one["outcome"]): one["count"] for one in mesh.rego.status()["decisions"]},
    )


def _by_name(edges: list[Edge], namer: Namer) -> dict[tuple[str, str, str, str], int]:
    """Edges as source and destination: which end judged decides which is which."""
    summed: Counter[tuple[str, str, str, str]] = Counter()
    for edge in edges:
        local, remote = namer.identity(edge.local), namer.identity(edge.remote)
        ends = (local, remote) if edge.direction is Direction.EGRESS else (remote, local)
        summed[edge.verdict, edge.direction.name.lower(), *ends] += edge.total
    return dict(summed)


def _externals(enforcer: Enforcer) -> set[str]:
    """Address classes by the names they are shown under."""
    bundle = enforcer.bundle
    if bundle is None:
        return set()
    numbers = {identity for version in (4, 6) for _, identity in bundle.prefixes(version)}
    numbers |= {name.identity for _, name in bundle.names()}
    return {name for number in numbers if (name := bundle.identity_name(number)) is not None}


def _split(name: str) -> tuple[str, str]:
    policy, _, rule = name.partition("/")
    return policy, rule
