"""Recorded conversations held against the rules of a policy: which rules are used, and what no rule declares. Pure.

A record is a sample and tells of one host, so that silence proves little: a rule counts as unused only where an exact
counter says so, or where nothing that could have shown its use is missing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from bulkhead.policy.model import Entity


@dataclass(frozen=True, slots=True)
class Flow:
    """One recorded conversation, as one end judged it."""

    verdict: str
    """`allow`, `deny` or `would-deny`."""
    because: str
    """Why it was refused; empty for an allow."""
    direction: str
    source: str
    """`shop/web`, `host`, `world`, `unknown`, or the externals that an address belongs to, joined by ` + `."""
    destination: str
    port: str
    """As policy writes it: `443`, `53/udp`."""
    count: int
    last_seen: float
    """Unix seconds."""
    rule: str
    """`policy/name` of the rule that allowed it; empty when none did, or when it is no longer known."""
    process: str
    """The local process; empty when it is not known."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What was recorded, and what is known to be missing from it."""

    origin: str
    """Where the records come from, in words."""
    flows: tuple[Flow, ...] = ()
    host: str | None = None
    """Whose records these are; None: not known."""
    since: float | None = None
    """Unix seconds between which records were made; None: not known."""
    until: float | None = None
    hits: Mapping[str, int] | None = None
    """Conversations that each rule in force allowed, counted exactly by the kernel; None: not known."""
    complete: bool = True
    """False: a conversation that a rule allowed may be without a record."""
    missing: tuple[str, ...] = ()
    """What is not in the data, or not certain about it: a sentence each."""


class State(StrEnum):
    """Whether a rule is used."""

    USED = "used"
    UNUSED = "unused"
    UNKNOWN = "unknown"
    """It was not seen, and the data cannot tell whether it was used."""


@dataclass(frozen=True, slots=True)
class Usage:
    """How a rule was used in the time that the records cover."""

    state: State
    seen: int = 0
    """Events recorded, which are samples."""
    hits: int | None = None
    """Conversations allowed, exactly; None: not known."""
    last_seen: float | None = None
    """Unix seconds; None: not seen, or only counted."""
    note: str = ""
    """Why the state is unknown."""


@dataclass(frozen=True, slots=True)
class Undeclared:
    """A conversation that no rule of the policy declares, or an end of which is no workload."""

    verdict: str
    source: str
    destination: str
    port: str
    count: int
    last_seen: float
    processes: tuple[str, ...]
    because: str


_ORDER: Final = ("deny", "would-deny", "allow")
"""Of what is not declared: the worst first."""


class _Edge(NamedTuple):
    verdict: str
    source: str
    destination: str
    port: str
    rule: str


class _Sum:
    """The records of one edge. Both ends may have recorded the same conversation, so that the larger count holds."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = defaultdict(int)
        self.last_seen = 0.0
        self.processes: dict[str, None] = {}
        self.because = ""

    def add(self, flow: Flow) -> None:
        self._counts[flow.direction] += flow.count
        if flow.last_seen >= self.last_seen:
            self.last_seen, self.because = flow.last_seen, flow.because
        if flow.process:
            self.processes[flow.process] = None

    @property
    def count(self) -> int:
        return max(self._counts.values())


class Ledger:
    """Records by edge, for questions about rules."""

    def __init__(self, observed: Observed) -> None:
        self._observed = observed
        self._edges: dict[_Edge, _Sum] = defaultdict(_Sum)
        for flow in observed.flows:
            self._edges[_Edge(flow.verdict, flow.source, flow.destination, flow.port, flow.rule)].add(flow)
        self._by_rule: dict[str, list[_Sum]] = defaultdict(list)
        for edge, found in self._edges.items():
            if edge.verdict == "allow" and edge.rule:
                self._by_rule[edge.rule].append(found)

    def usage(self, rule: str, *, local: bool) -> Usage:
        """How a rule was used. `local`: an end of it can be on the host that the records are from."""
        edges = self._by_rule.get(rule, [])
        seen = sum(edge.count for edge in edges)
        last_seen = max((edge.last_seen for edge in edges), default=None)
        hits = self._observed.hits.get(rule) if self._observed.hits is not None else None
        if seen or hits:
            return Usage(State.USED, seen, hits, last_seen)
        doubt = self._doubt(hits, local=local)
        return Usage(State.UNKNOWN if doubt else State.UNUSED, hits=hits, note=doubt)

    def _doubt(self, hits: int | None, *, local: bool) -> str:
        if not local:
            return f"no end of it can be on {self._observed.host}"
        if hits is not None:
            return ""
        if self._observed.hits is not None:
            return f"not in force on {self._observed.host}"
        return "" if self._observed.complete else "not seen, but the data is incomplete"

    def undeclared(self, rules: AbstractSet[str]) -> tuple[Undeclared, ...]:
        """Refused conversations, those that no rule among `rules` allowed, and those of the host entity."""
        found = [
            Undeclared(
                edge.verdict,
                edge.source,
                edge.destination,
                edge.port,
                total.count,
                total.last_seen,
                tuple(total.processes),
                because,
            )
            for edge, total in self._edges.items()
            if (because := _because(edge, total, rules))
        ]
        return tuple(sorted(found, key=lambda one: (_ORDER.index(one.verdict), -one.count, one.source, one.port)))


def _because(edge: _Edge, total: _Sum, rules: AbstractSet[str]) -> str:
    """Why an edge is not declared; empty when it is."""
    if edge.verdict != "allow":
        return total.because
    if not edge.rule:
        return "allowed by a rule that is no longer known"
    if edge.rule not in rules:
        return f"allowed by {edge.rule}, which this policy does not have"
    if Entity.HOST in (edge.source, edge.destination):
        return f"allowed by {edge.rule}, to or from what no workload selects"
    return ""
