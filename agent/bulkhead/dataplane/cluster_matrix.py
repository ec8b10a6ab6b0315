"""Who reaches whom in a cluster, worked out from a commit alone.

A conversation between pods is open when both ends allow it. Nodes are not judged, so that with one at an end the pod at
the other decides. What is judged is a pair of parties; pods that are one party share the answer, and its text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bulkhead.abi import Direction
from bulkhead.dataplane.addresses import Address
from bulkhead.dataplane.cluster import Allowance, ResolvedCluster
from bulkhead.dataplane.cluster_tables import PROTOCOLS, compile_cluster, stand_ins
from bulkhead.dataplane.compile import Compiled
from bulkhead.dataplane.inventory import Listed
from bulkhead.dataplane.matrix import Engine, in_family, port_name, protocol_name
from bulkhead.dataplane.parties import FAMILIES, Party, Standing
from bulkhead.dataplane.resolve import HOST
from bulkhead.policy.model import PortSpec

Rules = tuple[str | None, ...]
"""For each port that was asked about, the name of the rule that allows it; None: it is refused."""


class Answer(NamedTuple):
    """What a cell says beside its ends."""

    port: int | str
    protocol: str
    family: int
    rule: str | None
    """None: refused."""

    @property
    def verdict(self) -> str:
        return "deny" if self.rule is None else "allow"


class Row(NamedTuple):
    """The cells of one ordered pair of ends. Pairs that are judged alike share the answers."""

    source: str
    destination: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class ClusterMatrix:
    """Every ordered pair of pods and nodes, and the conversations of each with addresses outside."""

    endpoints: tuple[str, ...]
    outside: tuple[str, ...]
    rows: Iterator[Row]
    """Worked out while they are read, once."""

    def cells(self) -> Iterator[dict[str, object]]:
        """The cells as a matrix of hosts has them."""
        for row in self.rows:
            for answer in row.answers:
                yield {
                    "from": row.source,
                    "to": row.destination,
                    "port": answer.port,
                    "protocol": answer.protocol,
                    "family": answer.family,
                    "verdict": answer.verdict,
                    "rule": answer.rule,
                }

    def lines(self) -> Iterator[str]:
        """The matrix as a table for people, a line for each cell. There can be a million of them."""
        width = max((len(name) for name in (*self.endpoints, *self.outside)), default=0) + 2
        yield f"{'FROM':{width}}{'TO':{width}}{'PORT':18}FAMILY  VERDICT  RULE\n"
        for row in self.rows:
            for one in row.answers:
                port = f"{one.port}/{one.protocol}"
                ends = f"{row.source:{width}}{row.destination:{width}}"
                yield f"{ends}{port:18}IPv{one.family}    {one.verdict:9}{one.rule or '-'}\n"

    def json(self) -> Iterator[str]:
        """The matrix as JSON text, in pieces, one cell a line. A general encoder takes ten times as long."""
        yield f'{{\n  "endpoints": {json.dumps(self.endpoints)},\n  "cells": ['
        tails: dict[int, tuple[tuple[Answer, ...], list[str]]] = {}
        names = {name: json.dumps(name) for name in self.endpoints}
        separator = "\n"
        for row in self.rows:
            _, texts = tails.get(id(row.answers)) or tails.setdefault(
                id(row.answers), (row.answers, [_tail(answer) for answer in row.answers])
            )
            if texts:
                source = names.get(row.source) or json.dumps(row.source)
                destination = names.get(row.destination) or json.dumps(row.destination)
                head = f'    {{"from": {source}, "to": {destination}, '
                yield separator + ",\n".join([head + text for text in texts])
                separator = ",\n"
        yield "\n  ]\n}\n"


def _tail(answer: Answer) -> str:
    fields = {
        "port": answer.port,
        "protocol": answer.protocol,
        "family": answer.family,
        "verdict": answer.verdict,
        "rule": answer.rule,
    }
    return json.dumps(fields)[1:]


@dataclass(frozen=True, slots=True)
class _End:
    """A row or column."""

    name: str
    parties: Mapping[int, Party]
    """By the address family that it talks in, in order."""
    standing: Standing
    node: str = ""
    """Of pods and nodes; empty: of none."""


def cluster_matrix(
    resolved: ResolvedCluster,
    ports: Sequence[PortSpec],
    addresses: Mapping[str, Address] | None = None,
    engine: tuple[Compiled, Engine] | None = None,
) -> ClusterMatrix:
    """The verdict for every ordered pair, as if every mode were enforce.

    `ports` are single ones, as `parse_ports` gives them. An `engine` answers in place of the model, by tables that
    `tables` made for the same ports. A cell names the rule that decides at the destination; where that is a node or an
    address, at the source.
    """
    inside = [*_pods(resolved), *_nodes(resolved)]
    outside = [
        _End(f"address:{name}", {address.version: resolved.parties.address(address)}, Standing.ADDRESS)
        for name, address in (addresses or {}).items()
    ]
    drawer = _Drawer(resolved, ports, engine)
    rows = (drawer.row(source, destination) for source, destination in _pairs(inside, outside))
    return ClusterMatrix(tuple(end.name for end in inside), tuple(end.name for end in outside), rows)


def tables(resolved: ResolvedCluster, ports: Sequence[PortSpec]) -> tuple[Compiled, list[Listed]]:
    """What an engine needs to be asked about these ports: tables, and an endpoint for each group of pods."""
    return compile_cluster(resolved, PROTOCOLS | {spec.protocol for spec in ports}), stand_ins(resolved)


def _pods(resolved: ResolvedCluster) -> Iterator[_End]:
    parties = resolved.parties
    nodes = {node.name: node for node in resolved.cluster.nodes}
    for pod in resolved.cluster.pods:
        if pod.host_network:
            stands_for = nodes[pod.node]
            families = {family: parties.nodes[stands_for.name, family] for family in sorted(stands_for.families)}
        else:
            families = {family: parties.pods[pod.qualified, family] for family in sorted(pod.families)}
        yield _End(pod.qualified, families, Standing.NODE if pod.host_network else Standing.POD, pod.node)


def _nodes(resolved: ResolvedCluster) -> Iterator[_End]:
    for node in resolved.cluster.nodes:
        if node.name:
            families = {family: resolved.parties.nodes[node.name, family] for family in sorted(node.families)}
            yield _End(f"node:{node.name}", families, Standing.NODE, node.name)


def _pairs(inside: Sequence[_End], outside: Sequence[_End]) -> Iterator[tuple[_End, _End]]:
    for source in inside:
        for destination in (*inside, *outside):
            yield source, destination
    for source in outside:
        for destination in inside:
            yield source, destination


class _Judged(NamedTuple):
    """What the ends of a pair say in one address family; None: that end is not judged."""

    family: int
    outgoing: Rules | None
    incoming: Rules | None

    @property
    def rules(self) -> Rules:
        """For each port, the rule that decides when every end that is judged allows it."""
        if self.outgoing is None or self.incoming is None:
            return self.outgoing or self.incoming or ()
        both = zip(self.outgoing, self.incoming, strict=True)
        return tuple(None if ours is None else theirs for ours, theirs in both)


class _Drawer:
    """Judges pairs of parties, each once."""

    def __init__(
        self, resolved: ResolvedCluster, ports: Sequence[PortSpec], engine: tuple[Compiled, Engine] | None
    ) -> None:
        self._resolved = resolved
        self._engine = engine
        self._names = {number: str(rule.name) for number, rule in resolved.rules.items()}
        self._ports = {family: [spec for spec in ports if in_family(spec, family)] for family in FAMILIES}
        self._asked: dict[tuple[int, int, int, int], Rules] = {}
        self._read: dict[tuple[Allowance, int], Rules] = {}
        self._answers: dict[tuple[_Judged, ...], tuple[Answer, ...]] = {}
        self._cells: dict[tuple[tuple[int, Rules], ...], tuple[Answer, ...]] = {}

    def row(self, source: _End, destination: _End) -> Row:
        """The cells of one pair."""
        families = [family for family in source.parties if family in destination.parties]
        judged = tuple([self._judged(source, destination, family) for family in families])
        answers = self._answers.get(judged)
        if answers is None:
            answers = self._answers[judged] = self._spelled(tuple((one.family, one.rules) for one in judged))
        return Row(source.name, destination.name, answers)

    def _spelled(self, rules: tuple[tuple[int, Rules], ...]) -> tuple[Answer, ...]:
        """The cells of equal rules, whoever says them."""
        answers = self._cells.get(rules)
        if answers is None:
            answers = self._cells[rules] = tuple(self._port_by_port(rules))
        return answers

    def _port_by_port(self, rules: tuple[tuple[int, Rules], ...]) -> Iterator[Answer]:
        by_port: dict[PortSpec, list[Answer]] = {}
        for family, names in rules:
            for spec, rule in zip(self._ports[family], names, strict=True):
                by_port.setdefault(spec, []).append(Answer(port_name(spec), protocol_name(spec), family, rule))
        for answers in by_port.values():
            yield from answers

    def _judged(self, source: _End, destination: _End, family: int) -> _Judged:
        leaves, arrives = source.standing is Standing.POD, destination.standing is Standing.POD
        if not leaves and not arrives:
            return _Judged(family, None, self._default("node", family))
        if source is destination:
            return _Judged(family, None, self._default("self", family))
        return _Judged(
            family,
            self._half(source, Direction.EGRESS, destination, family) if leaves else None,
            self._half(destination, Direction.INGRESS, source, family) if arrives else None,
        )

    def _half(self, local: _End, direction: Direction, remote: _End, family: int) -> Rules:
        near = local.parties[family]
        is_own_node = remote.standing is Standing.NODE and local.node == remote.node and local.node != ""
        far = None if is_own_node else remote.parties[family]
        return (self._by_model if self._engine is None else self._by_engine)(near, direction, far, family)

    def _by_model(self, near: Party, direction: Direction, far: Party | None, family: int) -> Rules:
        resolved = self._resolved
        allowance = resolved.own_node if far is None else resolved.allowance(near, direction, far)
        rules = self._read.get((allowance, family))
        if rules is None:
            grants = (allowance.at(spec.protocol, spec.first) for spec in self._ports[family])
            rules = tuple(None if grant is None else self._names[grant.rule_id] for grant in grants)
            self._read[allowance, family] = rules
        return rules

    def _by_engine(self, near: Party, direction: Direction, far: Party | None, family: int) -> Rules:
        assert self._engine is not None
        compiled, engine = self._engine
        remote = HOST if far is None else far.identity
        key = near.identity, direction, remote, family
        rules = self._asked.get(key)
        if rules is None:
            questions = ((near.identity, direction, remote, spec.protocol, spec.first) for spec in self._ports[family])
            entries = (engine(compiled, *question) for question in questions)
            rules = tuple(None if entry is None else self._names[entry.rule_id] for entry in entries)
            self._asked[key] = rules
        return rules

    def _default(self, name: str, family: int) -> Rules:
        return (self._names[self._resolved.defaults[name]],) * len(self._ports[family])
