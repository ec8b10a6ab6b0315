"""What a plan says of the inside of a cluster, in the words of a plan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from bulkhead.cli.plan.plan import Plan
from bulkhead.cli.plan.words import counted, few, port_text, time_text
from bulkhead.dataplane import points
from bulkhead.dataplane.cluster_difference import ClusterReach, End
from bulkhead.dataplane.difference import FOREVER, Kind, Span
from bulkhead.dataplane.parties import FAMILIES, Standing
from bulkhead.dataplane.points import EVERYTHING, Line
from bulkhead.dataplane.stretches import joined, overlaid, prefixes
from bulkhead.policy.alterations import CLUSTER_KINDS
from bulkhead.policy.model import Network
from bulkhead.policy.ports import PORT_MAX, PROTOCOL_MAX

EXCEPTIONS_MAX: Final = 4
"""Intervals that are said to be missing rather than the ones that are there."""


class Block(NamedTuple):
    """Ports of one protocol, or all ports of a run of protocols."""

    protocol: int
    last_protocol: int
    first: int
    last: int


def blocks(line: Line) -> Iterator[Block]:
    """Points as ports again."""
    for first, last in line:
        at = first
        while at <= last:
            protocol = at >> 16
            end = min(last, points.point(protocol, PORT_MAX))
            if at == points.point(protocol, 0) and end == points.point(protocol, PORT_MAX):
                whole = ((last + 1) >> 16) - 1
                yield Block(protocol, whole, 0, PORT_MAX)
                end = points.point(whole, PORT_MAX)
            else:
                yield Block(protocol, protocol, at & PORT_MAX, end & PORT_MAX)
            at = end + 1


def line_text(line: Line) -> str:
    """Ports of all protocols, in as few words as say it."""
    missing = points.without(EVERYTHING, line)
    if not missing:
        return "any"
    if len(missing) <= EXCEPTIONS_MAX and _protocols(missing) < PROTOCOL_MAX // 2:
        return f"any but {_listed(missing)}"
    return _listed(line)


def _protocols(line: Line) -> int:
    return sum(one.last_protocol - one.protocol + 1 for one in blocks(line))


def _listed(line: Line) -> str:
    return ", ".join(dict.fromkeys(map(block_text, blocks(line))))


def block_text(one: Block) -> str:
    """Ports as an author would write them."""
    if one.protocol != one.last_protocol:
        return f"proto/{one.protocol}-{one.last_protocol}"
    return port_text(one.protocol, one.first, one.last)


def ports_text(one: ClusterReach) -> str:
    """All that changes, with deadlines and the address family, where they matter."""
    texts: dict[str, list[Span]] = {}
    for span in one.ports:
        texts.setdefault(_time_text(span), []).append(span)
    family = f" (IPv{one.family})" if one.family else ""
    lines = (points.joined((span.first, span.last) for span in spans) for spans in texts.values())
    return ", ".join(line_text(line) + time for time, line in zip(texts, lines, strict=True)) + family


def _time_text(span: Span) -> str:
    if span.kind is Kind.RETIMED:
        return f" (until {time_text(span.before)} -> {time_text(span.after)})"
    until = span.after if span.kind is Kind.GAINED else span.before
    return "" if until == FOREVER else f" (until {time_text(until)})"


def end_texts(ends: Iterable[End]) -> tuple[str, ...]:
    """Who stands at one end."""
    return tuple(_addresses_text(end) if end.name == "addresses" else end.name for end in ends)


def _addresses_text(end: End) -> str:
    """Prefixes, or all but some where that is shorter."""
    by_family = ([one for one in end.networks if one.version == version] for version in FAMILIES)
    return "; ".join(_family_text(own) for own in by_family if own)


def _family_text(networks: Sequence[Network]) -> str:
    version, width = networks[0].version, networks[0].max_prefixlen
    taken = overlaid([(0, (1 << width) - 1, 1)], [(int(one[0]), int(one[-1]), 1) for one in networks], 0)
    ranges = joined((first, last) for first, last, _, is_taken in taken if not is_taken)
    missing = [str(one) for first, last in ranges for one in prefixes(version, first, last)]
    if not missing or len(missing) < len(networks):
        whole = "0.0.0.0/0" if version == 4 else "::/0"
        return f"{whole} except {few(missing)}" if missing else whole
    return few([str(network) for network in networks])


def remark(plan: Plan) -> str:
    """Whether the inside of a cluster was looked at; empty where nothing asks for it."""
    if plan.cluster is not None:
        return f"{counted(plan.cluster.pods, 'pod')} and {counted(plan.cluster.nodes, 'node')} of {plan.cluster.path}"
    if any(one.kind in CLUSTER_KINDS for one in plan.found.altered):
        return "what Kubernetes policies change between pods is not looked at: it needs `--inventory FILE`"
    return ""


def cluster_json(plan: Plan, rules: Iterable[list[dict[str, Any]]]) -> dict[str, Any] | None:
    """The data of a cluster; null when none was given. `rules` are those of each reach, in order."""
    if plan.cluster is None:
        return None
    reach = [_reach_json(one, own) for one, own in zip(plan.cluster.reach, rules, strict=True)]
    return {"inventory": str(plan.cluster.path), "pods": plan.cluster.pods, "nodes": plan.cluster.nodes, "reach": reach}


def _reach_json(one: ClusterReach, rules: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "change": one.kind.value,
        "from": [_end_json(end) for end in one.sources],
        "to": [_end_json(end) for end in one.destinations],
        "family": one.family or None,
        "text": ports_text(one),
        "ports": [each for span in one.ports for each in _span_json(span)],
        "rules": rules,
    }


def _end_json(end: End) -> dict[str, Any]:
    key = {Standing.POD: "pods", Standing.NODE: "nodes", Standing.ADDRESS: "addresses"}[end.standing]
    return {"name": end.name, key: [*end.members] or [str(network) for network in end.networks]}


def _span_json(span: Span) -> Iterator[dict[str, Any]]:
    for one in blocks(((span.first, span.last),)):
        yield {**one._asdict(), "text": block_text(one), "before": _until(span.before), "after": _until(span.after)}


def _until(until: float) -> dict[str, Any]:
    return {"allowed": until > 0, "until": time_text(until) if 0 < until < FOREVER else None}
