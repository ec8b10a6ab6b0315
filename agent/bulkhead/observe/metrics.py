"""Metrics for Prometheus, made from one measurement per scrape. Counters are the kernel's own and exact.

Labels hold only names that are written in git: `src` and `dst` of an edge are `other` for everything else, never an
address, a process or a DNS name. Each family has at most SERIES_MAX series; what comes later is summed up under
`_overflow`. A series that was shown once stays, so that no counter ever runs backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from bulkhead.errors import BulkheadError
from bulkhead.observe.families import Labels, counter, gauge
from bulkhead.observe.mesh_metrics import MeshMeasurements, mesh_families

if TYPE_CHECKING:
    from aiohttp import web

SERIES_MAX: Final = 1000
OVERFLOW: Final = "_overflow"
OTHER: Final = "other"
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class ExceptionExpiry:
    """An exception of the commit in force; `expires` in Unix seconds."""

    name: str
    owner: str
    expires: float


@dataclass(frozen=True, slots=True)
class MapFill:
    """How full one of the kernel's maps is."""

    name: str
    entries: int
    max_entries: int


@dataclass(frozen=True, slots=True)
class Measurements:
    """Everything that is exported, at one moment. Counters count since the maps were made; times are Unix seconds."""

    drops: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """By (reason, direction)."""
    would_denies: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """By (reason, direction)."""
    edges: Mapping[tuple[str, str, str, str], int] = field(default_factory=dict)
    """By (verdict, direction, source name, destination name)."""
    names: Collection[str] = frozenset()
    """Names present in git, entities included; `edges` may hold others."""
    rule_hits: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """By (policy, rule)."""
    rule_last_hits: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """By (policy, rule); rules never hit are absent."""
    events_lost: Mapping[str, int] = field(default_factory=dict)
    """By source."""
    commit: str = ""
    """Empty: no policy is in force."""
    generation: int = 0
    last_load_success: float = 0.0
    last_load_ok: bool = False
    refused: Mapping[str, int] = field(default_factory=dict)
    """Commits since the agent started, by the code of the first finding."""
    source_up: bool = False
    source_last_success: float = 0.0
    modes: Mapping[str, str] = field(default_factory=dict)
    """Mode of each workload and of `host`."""
    exceptions: tuple[ExceptionExpiry, ...] = ()
    maps: tuple[MapFill, ...] = ()
    attested_cgroups: int = 0
    control_packets: Mapping[str, int] = field(default_factory=dict)
    """Passed without a rule, by kind."""
    dns_answers: Mapping[str, int] = field(default_factory=dict)
    """DNS answers about names that policy knows, by what became of them."""
    wire: Mapping[str, int] = field(default_factory=dict)
    """What identity on the wire has come to, by outcome."""
    wire_nodes: int = 0
    wire_refused_nodes: Mapping[str, int] = field(default_factory=dict)
    """Records of nodes that do not count, by reason."""
    wire_keys_until: float | None = None
    """When the first node can no longer be told apart unless keys are derived meanwhile; None: there are no keys."""
    drifts: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """What was found not to be as git says, by kind and `repaired` or `standing`; since the agent's start."""
    kernel_equals_git: bool = False
    looked: float = 0.0
    """When the kernel was last compared with what git says (Unix seconds)."""
    isolated: Collection[str] = ()
    """Workloads that an operator has isolated."""
    postures: Mapping[str, bool] = field(default_factory=dict)
    """Whether each workload with a posture is as required."""
    mesh: MeshMeasurements = field(default_factory=MeshMeasurements)


class _Limited:
    """Keeps one family within its series: the first to come keep their labels, the rest share one series."""

    def __init__(self, overflow: Labels, limit: int = SERIES_MAX) -> None:
        self._overflow = overflow
        self._limit = limit
        self._shown: set[Labels] = set()

    def fold(self, values: Iterable[tuple[Labels, float]]) -> tuple[dict[Labels, float], int]:
        """Values by labels, and how many different labels went into the overflow."""
        summed: dict[Labels, float] = {}
        for labels, value in values:
            summed[labels] = summed.get(labels, 0.0) + value
        self._shown &= summed.keys()
        folded: dict[Labels, float] = {}
        overflowed = 0
        for labels in sorted(summed, key=lambda one: (one not in self._shown, one)):
            shown = labels in self._shown or len(self._shown) < self._limit
            if shown:
                self._shown.add(labels)
            overflowed += not shown
            target = labels if shown else self._overflow
            folded[target] = folded.get(target, 0.0) + summed[labels]
        return folded, overflowed


class BulkheadCollector(Collector):
    """Asks `measure` at every scrape."""

    def __init__(self, measure: Callable[[], Measurements], limit: int = SERIES_MAX) -> None:
        self._measure = measure
        self._edges = _Limited((OVERFLOW,) * 4, limit)
        self._rules = _Limited((OVERFLOW,) * 2, limit)
        self._last_hits = _Limited((OVERFLOW,) * 2, limit)

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering does not measure."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families. Raises what `measure` raises."""
        now = self._measure()
        yield from _refusals(now)
        yield from self._verdicts(now)
        yield from self._rule_hits(now)
        yield from _policy(now)
        yield from _workloads(now)
        yield from _kernel(now)
        yield from _wire(now)
        yield from _upkeep(now)
        yield from mesh_families(now.mesh)

    def _verdicts(self, now: Measurements) -> Iterator[Metric]:
        known = set(now.names)
        named = (
            ((verdict, direction, *(name if name in known else OTHER for name in (source, destination))), float(count))
            for (verdict, direction, source, destination), count in now.edges.items()
        )
        series, overflowed = self._edges.fold(named)
        text = "Verdicts by edge, counted in the kernel."
        labels = ("verdict", "direction", "src", "dst")
        yield counter("bulkhead_policy_verdicts", text, labels, series)
        text = "Edges that share the `_overflow` series."
        yield gauge("bulkhead_policy_verdicts_overflow_edges", text, (), {(): float(overflowed)})

    def _rule_hits(self, now: Measurements) -> Iterator[Metric]:
        labels = ("policy", "rule")
        series, _ = self._rules.fold((key, float(count)) for key, count in now.rule_hits.items())
        yield counter("bulkhead_rule_hits", "Conversations allowed by a rule.", labels, series)
        shown, _ = self._last_hits.fold(now.rule_last_hits.items())
        shown.pop((OVERFLOW, OVERFLOW), None)
        yield gauge("bulkhead_rule_last_hit_timestamp_seconds", "When a rule last allowed something.", labels, shown)


def _refusals(now: Measurements) -> Iterator[Metric]:
    labels = ("reason", "direction")
    yield counter("bulkhead_drops", "Packets and calls refused, counted in the kernel.", labels, now.drops)
    text = "Packets passed in observe mode that enforce mode would refuse, counted in the kernel."
    yield counter("bulkhead_would_denies", text, labels, now.would_denies)
    text = "What user space was not told or could not remember, by what lost it."
    lost = {(source,): count for source, count in now.events_lost.items()}
    yield counter("bulkhead_events_lost", text, ("source",), lost)


def _policy(now: Measurements) -> Iterator[Metric]:
    info = {(now.commit, str(now.generation)): 1.0} if now.commit or now.generation else {}
    yield gauge("bulkhead_policy_revision_info", "The commit in force.", ("sha", "generation"), info)
    text = "When a commit was last put into force."
    name = "bulkhead_policy_last_load_success_timestamp_seconds"
    yield gauge(name, text, (), {(): now.last_load_success})
    text = "1 when the latest commit is in force, 0 when it was refused and an earlier one is."
    yield gauge("bulkhead_policy_last_load_ok", text, (), {(): float(now.last_load_ok)})
    text = "Commits refused since the agent started, by the code of the first finding."
    refused = {(code,): count for code, count in now.refused.items()}
    yield counter("bulkhead_policy_refused", text, ("code",), refused)
    text = "1 when the policy repository answered the last time it was asked."
    yield gauge("bulkhead_policy_source_up", text, (), {(): float(now.source_up)})
    text = "When the policy repository last answered."
    name = "bulkhead_policy_source_last_success_timestamp_seconds"
    yield gauge(name, text, (), {(): now.source_last_success})
    expiries = {(one.name, one.owner): one.expires for one in now.exceptions}
    name = "bulkhead_exception_expiry_timestamp_seconds"
    yield gauge(name, "When an exception lapses.", ("exception", "owner"), expiries)


def _workloads(now: Measurements) -> Iterator[Metric]:
    modes = dict.fromkeys(now.modes.items(), 1.0)
    yield gauge("bulkhead_workload_mode", "1 for the mode a workload is in.", ("workload", "mode"), modes)
    text = "1 for a workload that is as its posture requires, 0 for one whose identity is withheld."
    postures = {(name,): float(ok) for name, ok in now.postures.items()}
    yield gauge("bulkhead_workload_posture_ok", text, ("workload",), postures)
    text = "Control groups with an identity in the kernel."
    yield gauge("bulkhead_attested_cgroups", text, (), {(): float(now.attested_cgroups)})


def _kernel(now: Measurements) -> Iterator[Metric]:
    entries = {(one.name,): float(one.entries) for one in now.maps}
    yield gauge("bulkhead_map_entries", "Entries of a kernel map.", ("map",), entries)
    sizes = {(one.name,): float(one.max_entries) for one in now.maps}
    yield gauge("bulkhead_map_max_entries", "Entries that a kernel map can hold.", ("map",), sizes)
    text = "Packets of the kernel passed without a rule, by kind."
    passed = {(kind,): count for kind, count in now.control_packets.items()}
    yield counter("bulkhead_control_packets", text, ("kind",), passed)
    text = "DNS answers about names that policy knows, by what became of them."
    answered = {(outcome,): count for outcome, count in now.dns_answers.items()}
    yield counter("bulkhead_dns_answers", text, ("outcome",), answered)


def _wire(now: Measurements) -> Iterator[Metric]:
    text = "What identity on the wire has come to, counted in the kernel."
    yield counter("bulkhead_wire", text, ("outcome",), {(outcome,): count for outcome, count in now.wire.items()})
    text = "Nodes whose records count."
    yield gauge("bulkhead_wire_nodes", text, (), {(): float(now.wire_nodes)})
    text = "Records of nodes that do not count, by reason."
    refused = {(reason,): float(count) for reason, count in now.wire_refused_nodes.items()}
    yield gauge("bulkhead_wire_refused_nodes", text, ("reason",), refused)
    text = "When the first node can no longer be told apart, unless keys are derived meanwhile."
    until = {} if now.wire_keys_until is None else {(): now.wire_keys_until}
    yield gauge("bulkhead_wire_keys_until_timestamp_seconds", text, (), until)


def _upkeep(now: Measurements) -> Iterator[Metric]:
    text = "Differences found between the kernel and what git says, by what became of them."
    yield counter("bulkhead_drift", text, ("kind", "outcome"), now.drifts)
    text = "1 when the kernel holds what the commit in force says, 0 when something could not be repaired."
    yield gauge("bulkhead_kernel_equals_git", text, (), {(): float(now.kernel_equals_git)})
    text = "When the kernel was last compared with what git says."
    yield gauge("bulkhead_kernel_compared_timestamp_seconds", text, (), {(): now.looked})
    text = "1 for a workload that an operator has isolated."
    isolated = {(name,): 1.0 for name in now.isolated}
    yield gauge("bulkhead_workload_isolated", text, ("workload",), isolated)


def exposition(collector: Collector) -> bytes:
    """All metrics in Prometheus' text format. Raises what the collector raises."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return generate_latest(registry)


async def serve(collector: Collector, host: str = "127.0.0.1", port: int = 9464) -> web.AppRunner:
    """Serves `/metrics` until the runner is cleaned up. Port 0 takes a free one.

    Raises BulkheadError when the address cannot be listened on.
    """
    # Imported here: it costs 17 MB, which an agent without the endpoint need not hold.
    from aiohttp import web

    async def metrics(_: web.Request) -> web.Response:
        try:
            body = exposition(collector)
        except BulkheadError as error:
            return web.Response(status=503, text=f"cannot measure: {error}\n")
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE, "X-Content-Type-Options": "nosniff"})

    app = web.Application(client_max_size=1024)
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, keepalive_timeout=30.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise BulkheadError(f"cannot serve metrics at {host}:{port}: {error.strerror}") from error
    return runner
