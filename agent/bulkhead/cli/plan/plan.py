"""A plan in the making: two commits, what was recorded, and who wrote what changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bulkhead.cli.clusters import read_cluster
from bulkhead.control import client
from bulkhead.control.protocol import RESPONSE_MAX, RemoteError
from bulkhead.dataplane.cluster import resolve_cluster
from bulkhead.dataplane.cluster_checks import judged_cluster
from bulkhead.dataplane.cluster_difference import REFUSING, ClusterReach, cluster_difference
from bulkhead.dataplane.cluster_inventory import Cluster
from bulkhead.dataplane.compile import RuleInfo
from bulkhead.dataplane.difference import Difference, Kind, difference_of
from bulkhead.dataplane.halves import halves
from bulkhead.dataplane.replay import Edge, Effect, Replay, edges_of_reach, replay
from bulkhead.errors import UnreachableError, UsageError
from bulkhead.observe.evidence import Coverage, Evidence, open_now, recorded
from bulkhead.observe.filters import parse_age
from bulkhead.policy.authors import Authors, authors
from bulkhead.policy.model import PolicySet
from bulkhead.policy.parse import ParseCache, parse
from bulkhead.policy.source import REPOSITORY_BYTES_MAX, Sources, read_commit, read_directory


@dataclass(frozen=True, slots=True)
class Wish:
    """What a plan is asked for."""

    range_: str
    """`OLD..NEW`, or a directory to hold against its last commit."""
    repository: Path
    period: str
    """How far back to replay, such as `7d`; empty: not at all."""
    exports: tuple[Path, ...]
    """Saved flow logs to replay; none: the running agent's."""
    live: bool
    """Judge the conversations that are open now; a replay of the running agent's log does so anyway."""
    with_authors: bool
    socket: Path
    """The agent's control socket."""
    inventory: Path | None = None
    """Kubernetes objects to judge both commits by; None: the inside of clusters is not looked at."""


@dataclass(frozen=True, slots=True)
class Inside:
    """What changes in a cluster."""

    path: Path
    """Of its inventory."""
    pods: int
    nodes: int
    reach: tuple[ClusterReach, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a reviewer is told."""

    found: Difference
    replay: Replay | None
    """None: nothing recorded was asked about."""
    coverage: tuple[Coverage, ...]
    """How complete the records are, one for each source."""
    traffic: dict[int, list[Edge]]
    """Recorded edges that change with a change of reach, by its position."""
    authors: Authors
    tests: int
    """Expectations and invariants of the commit after; a plan is made only where they hold."""
    nevers: int
    cluster: Inside | None = None
    """None: no inventory was given."""

    def __bool__(self) -> bool:
        """Whether anything changes."""
        return bool(self.found or (self.cluster and self.cluster.reach))

    @property
    def gaps(self) -> tuple[str, ...]:
        """What the records do not tell, in a few words each."""
        found = [gap for one in self.coverage for gap in one.gaps]
        if self.replay is not None and self.replay.undecided:
            found.append(f"{self.replay.undecided} of them cannot be decided by what was recorded")
        if self.replay is not None and self.replay.contradicted:
            found.append(f"{self.replay.contradicted} recorded verdicts are not those that OLD gives now")
        return tuple(found)

    @property
    def breaking(self) -> tuple[Edge, ...]:
        """What would be cut off, not only reported."""
        edges = self.replay.edges if self.replay else ()
        return tuple(edge for edge in edges if edge.effect is Effect.BREAKS and edge.enforced)


def plan(wish: Wish) -> Plan:
    """Makes the plan.

    Raises UsageError, UnreachableError and PolicyError for commits, directories, exports and an agent that cannot be
    used, PolicyError when NEW would be refused, or breaks its tests and invariants in the cluster of the inventory.
    """
    evidence_of = _evidence_wanted(wish)
    listed = read_cluster(wish.inventory) if wish.inventory else None
    repository, old, new = _read(wish)
    now = datetime.now(UTC)
    both = halves(old, new, now)
    found = difference_of(both)
    evidence = tuple(evidence_of.gather(old.commit))
    replayed = replay(both, (flow for one in evidence for flow in one.flows)) if evidence else None
    inside = _inside(wish.inventory, listed, old, new, now) if wish.inventory and listed else None
    return Plan(
        found,
        replayed,
        tuple(one.coverage for one in evidence),
        edges_of_reach(found, replayed.edges if replayed else ()),
        _authors(repository, old, new, found, replayed, inside) if wish.with_authors and new.commit else Authors(),
        len({one.loc for test in new.tests for one in (*test.accept, *test.deny)}),
        len(new.nevers),
        inside,
    )


def _inside(path: Path, cluster: Cluster, old: PolicySet, new: PolicySet, now: datetime) -> Inside:
    after = judged_cluster(new, cluster, now)
    reach = cluster_difference(resolve_cluster(old, cluster, now), after)
    return Inside(path, len(cluster.pods), len(cluster.nodes), reach)


# Commits


def _read(wish: Wish) -> tuple[Path, PolicySet, PolicySet]:
    repository, *sources = _sources(wish)
    # Most files are the same in both.
    cache = ParseCache(REPOSITORY_BYTES_MAX)
    old, new = (parse(one, cache) for one in sources)
    return repository, old, new


def _sources(wish: Wish) -> tuple[Path, Sources, Sources]:
    place = Path(wish.range_)
    if place.is_dir():
        return place, read_commit(place, "HEAD"), read_directory(place)
    before, dots, after = wish.range_.partition("..")
    if not dots or after.startswith("."):
        raise UsageError(f"`{wish.range_}` is neither a directory nor two commits, such as `main..HEAD`")
    repository = wish.repository
    return repository, read_commit(repository, before or "HEAD"), read_commit(repository, after or "HEAD")


# Evidence


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Where evidence comes from."""

    period_s: float
    exports: tuple[Path, ...]
    log: bool
    """Ask the agent for its log."""
    live: bool
    """Ask the agent for what is open, whatever it is otherwise asked."""
    socket: Path

    def gather(self, before: str) -> Iterator[Evidence]:
        """All of it. `before` is the commit before the change."""
        for path in self.exports:
            yield recorded(read_export(path), self.period_s, before)
        if self.log:
            yield recorded(client.call(self.socket, "flows"), self.period_s, before)
        if self.live:
            yield open_now(client.call(self.socket, "conversations"))
        elif self.log:
            yield self._open_if_told()

    def _open_if_told(self) -> Evidence:
        try:
            return open_now(client.call(self.socket, "conversations"))
        except (RemoteError, UnreachableError) as error:
            return Evidence((), Coverage("", 0.0, 0.0, (f"the agent does not tell what is open: {error}",)))


def _evidence_wanted(wish: Wish) -> _Wanted:
    if wish.exports and not wish.period:
        raise UsageError("`--flows` goes with `--replay PERIOD`")
    period_s = parse_age(wish.period) if wish.period else 0.0
    return _Wanted(period_s, wish.exports, bool(wish.period and not wish.exports), wish.live, wish.socket)


def read_export(path: Path) -> Any:
    """The data of an answer that `bulkhead flows -o json` wrote."""
    try:
        with path.open("rb") as file:
            content = file.read(RESPONSE_MAX + 1)
    except OSError as error:
        raise UnreachableError(f"cannot read `{path}`: {error.strerror}") from error
    if len(content) > RESPONSE_MAX:
        raise UsageError(f"`{path}` is longer than {RESPONSE_MAX:,} bytes")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"`{path}` is not JSON: save it with `bulkhead flows -o json`") from error
    if not isinstance(value, dict) or value.get("kind") != "Flows":
        raise UsageError(f"`{path}` is no flow log: save it with `bulkhead flows -o json`")
    return value.get("data")


# Authors


def stood_before(rule: RuleInfo, kind: Kind) -> bool:
    """Whether a rule that is named for a change is one of the commit before, so that its removal made the change."""
    return (kind is Kind.LOST) is not (rule.kind in REFUSING)


def _authors(
    repository: Path,
    old: PolicySet,
    new: PolicySet,
    found: Difference,
    replayed: Replay | None,
    inside: Inside | None,
) -> Authors:
    written = {one.after for one in found.altered if one.after is not None}
    removed = {one.before for one in found.altered if one.before is not None}
    credited = [(rule, one.kind) for one in found.reach for rule in one.rules]
    credited += [(rule, one.kind) for one in (inside.reach if inside else ()) for rule in one.rules]
    for rule, kind in credited:
        (removed if stood_before(rule, kind) else written).add(rule.loc)
    for edge in replayed.edges if replayed else ():
        if edge.rule is not None:
            (removed if edge.effect is Effect.BREAKS else written).add(edge.rule.loc)
    return authors(repository, old, new, written, removed)
