"""A catalogue as Mermaid flowcharts, each small enough to be read and to be drawn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from bulkhead.cli.catalog import words
from bulkhead.cli.markup import mermaid_text
from bulkhead.dataplane.catalog import Catalogue, Grant, Party
from bulkhead.dataplane.usage import State
from bulkhead.policy.codes import presentable

NODES_MAX: Final = 40
EDGES_MAX: Final = 120
"""Beyond these nobody finds anything in a chart; Mermaid itself gives up at 500 edges."""

_GROUPED_FROM: Final = 4
"""Members of a peer from which on they are one node, where there is no room for each."""


class Diagram(NamedTuple):
    """One flowchart."""

    policy: str
    """What it is drawn around; empty: everything."""
    text: str
    left_out: int
    """Edges that found no room."""


class _Node(NamedTuple):
    """Somebody, or all whom a peer stands for."""

    name: str
    group: tuple[str, ...] = ()
    """Members, where it stands for several."""


class _Edge(NamedTuple):
    source: _Node
    destination: _Node
    grant: Grant


def diagrams(found: Catalogue) -> list[Diagram]:
    """One flowchart of everything when it is small enough, else one for each policy with what it touches."""
    if not found.grants:
        return []
    if found.only:
        return [_diagram(found.only, _near(found.grants, found.only))]
    if _fits(found.grants):
        return [_diagram("", found.grants)]
    policies = dict.fromkeys(policy for grant in found.grants for policy in sorted(_touched(grant)))
    return [_diagram(policy, _near(found.grants, policy)) for policy in policies]


def _near(grants: Iterable[Grant], policy: str) -> list[Grant]:
    """Rules that concern a policy, its own first: what comes last may find no room."""
    return sorted((one for one in grants if policy in _touched(one)), key=lambda one: one.rule.policy != policy)


def _touched(grant: Grant) -> set[str]:
    """Policies that a rule is of, or reaches into."""
    members = (*grant.source.members, *grant.destination.members)
    return {grant.rule.policy, *(name.partition("/")[0] for name in members if "/" in name)}


def _fits(grants: Sequence[Grant]) -> bool:
    edges = sum(len(grant.source.members) * len(grant.destination.members) for grant in grants)
    nodes = {name for grant in grants for party in (grant.source, grant.destination) for name in party.members}
    return edges <= EDGES_MAX and len(nodes) <= NODES_MAX


def _diagram(policy: str, grants: Sequence[Grant]) -> Diagram:
    whole = _fits(grants)
    nodes: dict[_Node, None] = {}
    edges: list[_Edge] = []
    left_out = 0
    for edge in _edges(grants, whole=whole):
        new = {edge.source, edge.destination} - nodes.keys()
        if len(edges) == EDGES_MAX or len(nodes) + len(new) > NODES_MAX:
            left_out += 1
            continue
        nodes.update(dict.fromkeys((edge.source, edge.destination)))
        edges.append(edge)
    return Diagram(policy, "\n".join(_lines(list(nodes), edges, _externals(grants))) + "\n", left_out)


def _externals(grants: Iterable[Grant]) -> set[str]:
    return {name for grant in grants for peer in (grant.rule.source, grant.rule.destination) for name in peer.externals}


def _edges(grants: Iterable[Grant], *, whole: bool) -> Iterator[_Edge]:
    for grant in grants:
        for source in _nodes(grant.source, whole=whole):
            for destination in _nodes(grant.destination, whole=whole):
                yield _Edge(source, destination, grant)


def _nodes(party: Party, *, whole: bool) -> list[_Node]:
    if whole or len(party.members) < _GROUPED_FROM:
        return [_Node(name) for name in party.members]
    return [_Node(party.text, party.members)]


def _lines(nodes: Sequence[_Node], edges: Iterable[_Edge], externals: set[str]) -> Iterator[str]:
    ids = {node: f"n{number}" for number, node in enumerate(nodes)}
    yield "flowchart LR"
    policies: dict[str, list[_Node]] = {}
    for node in nodes:
        policy, _, inside = node.name.partition("/")
        alone = node.group or node.name in externals or not inside
        policies.setdefault("" if alone else policy, []).append(node)
    for number, (policy, own) in enumerate(policies.items()):
        shapes = [f"{ids[node]}{_shape(node, externals)}" for node in own]
        if policy:
            yield f"  subgraph p{number}[{mermaid_text(policy)}]"
            yield from (f"    {shape}" for shape in shapes)
            yield "  end"
        else:
            yield from (f"  {shape}" for shape in shapes)
    for edge in edges:
        arrow = "-.->" if edge.grant.rule.kind == "exception" else "-->"
        yield f"  {ids[edge.source]} {arrow}|{mermaid_text(_label(edge.grant))}| {ids[edge.destination]}"


def _shape(node: _Node, externals: set[str]) -> str:
    """Workloads are boxes, groups of them stacked ones, externals rounded, entities circles."""
    if node.group:
        return f"[[{mermaid_text(f'{presentable(node.name)} ({len(node.group):,})')}]]"
    if node.name in externals:
        return f"([{mermaid_text(node.name)}])"
    name = node.name.partition("/")[2]
    return f"[{mermaid_text(name)}]" if name else f"(({mermaid_text(node.name)}))"


def _label(grant: Grant) -> str:
    parts = [f"{grant.rule.name}: {words.ports(grant.rule)}", words.deadline(grant)]
    if grant.usage and grant.usage.state is not State.USED:
        parts.append(str(grant.usage.state))
    return ", ".join(filter(None, parts))
