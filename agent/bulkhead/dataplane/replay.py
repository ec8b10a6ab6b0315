"""What was recorded, judged under two commits: whom a change cuts off, and whom it lets through.

Who an end is gets derived anew from what was recorded of it, under each commit: control group, executable, user of a
process, the address of what is outside. So a changed `match` or external is seen, not only a changed rule. Where facts
leave more than one answer open, all of them are judged; an answer is given when they agree, and else the flow is
undecided. Unlike reach, what breaks depends on modes: what an end in observe mode refuses still passes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from bulkhead.abi import Direction
from bulkhead.dataplane.addresses import Address
from bulkhead.dataplane.compile import RuleInfo
from bulkhead.dataplane.difference import Difference, Kind, Reach
from bulkhead.dataplane.halves import Halves
from bulkhead.dataplane.recorded import Flow, Talk
from bulkhead.dataplane.rulings import Case, Court, Verdict
from bulkhead.policy.model import RuleId

ADDRESSES_KEPT: Final = 16
"""Of one edge, as examples."""


class Effect(StrEnum):
    """What a change does to an edge."""

    BREAKS = "breaks"
    UNBLOCKS = "unblocks"


@dataclass(frozen=True, slots=True)
class Edge:
    """Flows between the same ends that a change affects alike."""

    effect: Effect
    enforced: bool
    """False: only what is said changes (`would-deny`), since the end that refuses is in observe mode."""
    source: str
    """By the commit that allows it: the one before for what breaks."""
    destination: str
    source_elsewhere: str
    """By the other commit; empty when it is the same."""
    destination_elsewhere: str
    protocol: int
    port: int
    flows: int
    """Events recorded, which are samples: at least so many."""
    last_seen: float
    """Unix seconds; 0 when nothing was recorded."""
    talks: tuple[Talk, ...]
    addresses: tuple[Address, ...]
    """Some of those outside."""
    rule: RuleInfo | None
    """The one that allows it, in the commit that does."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What came of all flows."""

    edges: tuple[Edge, ...]
    """Those that change; what breaks first."""
    flows: int
    """Records judged."""
    talks: int
    """Open conversations judged."""
    undecided: int
    """Records and conversations that the facts do not decide."""
    by_name: int
    """Of those decided, how many had an end of which a name was recorded and nothing else."""
    contradicted: int
    """Records of the commit before whose verdict was another than policy gives now."""


def replay(both: Halves, flows: Iterable[Flow]) -> Replay:
    """Judges flows under both commits."""
    listed = list(flows)
    court = Court(both, listed)
    cases = [court.judge(flow) for flow in listed]
    decided = [case for case in cases if case is not None]
    return Replay(
        edges=tuple(sorted(_edges(court, decided), key=_order)),
        flows=sum(flow.talk is None for flow in listed),
        talks=sum(flow.talk is not None for flow in listed),
        undecided=len(cases) - len(decided),
        by_name=sum(case.by_name for case in decided),
        contradicted=sum(case.contradicted for case in decided),
    )


def edges_of_reach(found: Difference, edges: Iterable[Edge]) -> dict[int, list[Edge]]:
    """The edges that lie within each change of reach, by its position in `found.reach`."""
    near: dict[_Ends, list[Edge]] = defaultdict(list)
    for edge in sorted(edges, key=_port):
        kind = Kind.LOST if edge.effect is Effect.BREAKS else Kind.GAINED
        # An end outside is known by its addresses: a change may be about some of an external's only.
        ends = [("", edge.destination), (edge.source, "")] if edge.addresses else [(edge.source, edge.destination)]
        for source, destination in ends:
            near[_Ends(kind, source, destination, edge.protocol)].append(edge)
    within = ({id(edge): edge for edge in _within(one, near)} for one in found.reach)
    return {at: list(edges.values()) for at, edges in enumerate(within)}


class _Ends(NamedTuple):
    """What an edge and a change of reach have in common. An end outside is empty."""

    kind: Kind
    source: str
    destination: str
    protocol: int


def _within(one: Reach, near: Mapping[_Ends, list[Edge]]) -> Iterator[Edge]:
    """An edge with an end outside comes up by either end."""
    ends = [(one.source, one.destination)] if not one.addresses else [(one.source, ""), ("", one.destination)]
    for source, destination in ends:
        edges = near.get(_Ends(one.kind, source, destination, one.protocol), [])
        for span in one.ports:
            first, last = bisect_left(edges, span.first, key=_port), bisect_right(edges, span.last, key=_port)
            for edge in edges[first:last]:
                if not one.addresses or any(edge.addresses[0] in network for network in one.addresses):
                    yield edge


def _port(edge: Edge) -> int:
    return edge.port


# Edges


class _Key(NamedTuple):
    effect: Effect
    enforced: bool
    before: tuple[int, int]
    after: tuple[int, int]
    rule: RuleId | None
    protocol: int
    port: int


@dataclass(slots=True)
class _Gathered:
    """An edge in the making."""

    flows: dict[Direction, int] = field(default_factory=lambda: {Direction.EGRESS: 0, Direction.INGRESS: 0})
    last_seen: float = 0.0
    talks: list[Talk] = field(default_factory=list)
    addresses: dict[Address, None] = field(default_factory=dict)

    def add(self, flow: Flow) -> None:
        self.flows[flow.direction] += flow.count
        self.last_seen = max(self.last_seen, flow.last_seen)
        if flow.talk is not None:
            self.talks.append(flow.talk)
        for end in (flow.source, flow.destination):
            if end.address is not None and len(self.addresses) < ADDRESSES_KEPT:
                self.addresses[end.address] = None


def _edges(court: Court, cases: Iterable[Case]) -> Iterator[Edge]:
    gathered: dict[_Key, _Gathered] = defaultdict(_Gathered)
    for case in cases:
        key = _key(case)
        if key is not None:
            gathered[key].add(case.flow)
    for key, one in gathered.items():
        yield _edge(court, key, one)


def _key(case: Case) -> _Key | None:
    """What makes an edge one of its own; None when the change does nothing to a flow."""
    before, after = case.before, case.after
    if before.verdict == after.verdict:
        return None
    effect = Effect.BREAKS if after.verdict < before.verdict else Effect.UNBLOCKS
    enforced = Verdict.DENY in (before.verdict, after.verdict)
    ends = (before.source, before.destination), (after.source, after.destination)
    return _Key(effect, enforced, *ends, before.rule or after.rule, case.flow.protocol, case.flow.port)


def _edge(court: Court, key: _Key, one: _Gathered) -> Edge:
    side = 0 if key.effect is Effect.BREAKS else 1
    telling, other = court.sides[side], court.sides[1 - side]
    ends, elsewhere = (key.before, key.after) if side == 0 else (key.after, key.before)
    names = [telling.name(end) for end in ends]
    others = [other.name(end) for end in elsewhere]
    moved = [there if there != here else "" for here, there in zip(names, others, strict=True)]
    return Edge(
        effect=key.effect,
        enforced=key.enforced,
        source=names[0],
        destination=names[1],
        source_elsewhere=moved[0],
        destination_elsewhere=moved[1],
        protocol=key.protocol,
        port=key.port,
        # Two ends on one machine tell of the same conversations.
        flows=max(one.flows.values()),
        last_seen=one.last_seen,
        talks=tuple(sorted(one.talks)),
        addresses=tuple(one.addresses),
        rule=telling.rule(key.rule),
    )


def _order(edge: Edge) -> tuple[object, ...]:
    return (edge.effect, not edge.enforced, edge.source, edge.destination, edge.protocol, edge.port)
