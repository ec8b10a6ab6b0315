"""The reach that a plan changes, in rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

from bulkhead.cli.plan.cluster import end_texts, ports_text
from bulkhead.cli.plan.plan import Plan
from bulkhead.cli.plan.words import author_of, few, span_text, traffic_text
from bulkhead.dataplane.compile import RuleInfo
from bulkhead.dataplane.difference import Kind, Reach


class Row(NamedTuple):
    """Reach that changes alike: every source with every destination."""

    kind: Kind
    sources: tuple[str, ...]
    destinations: tuple[str, ...]
    ports: str
    rules: tuple[RuleInfo, ...]
    traffic: str
    """What was recorded of it; empty when nothing was asked."""


def rows(plan: Plan) -> list[Row]:
    """The reach that changes, in as few rows as say it exactly, new reach first. That of pods is last of its kind."""
    inside = (
        Row(one.kind, end_texts(one.sources), end_texts(one.destinations), ports_text(one), one.rules, "")
        for one in (plan.cluster.reach if plan.cluster else ())
    )
    return sorted((*_native_rows(plan), *inside), key=lambda row: list(Kind).index(row.kind))


def _native_rows(plan: Plan) -> list[Row]:
    ports: dict[tuple[Any, ...], dict[str, list[int]]] = defaultdict(dict)
    for at, one in enumerate(plan.found.reach):
        key = (one.kind, _end(one.source, one), _end(one.destination, one), one.rules)
        for span in one.ports:
            ports[key].setdefault(span_text(one.protocol, span), []).append(at)
    sources: dict[tuple[Any, ...], list[tuple[str, set[int]]]] = defaultdict(list)
    for (kind, source, destination, rules), texts in ports.items():
        within = {at for found in texts.values() for at in found}
        sources[kind, destination, ", ".join(texts), rules].append((source, within))
    destinations: dict[tuple[Any, ...], list[tuple[str, set[int]]]] = defaultdict(list)
    for (kind, destination, text, rules), named in sources.items():
        within = set().union(*(found for _, found in named))
        destinations[kind, tuple(name for name, _ in named), text, rules].append((destination, within))
    made = (
        Row(kind, names, tuple(name for name, _ in ends), text, rules, _traffic(plan, kind, ends))
        for (kind, names, text, rules), ends in destinations.items()
    )
    return sorted(made, key=lambda row: (list(Kind).index(row.kind), row.sources, row.destinations, row.ports))


def _end(name: str, one: Reach) -> str:
    if name.startswith("within "):
        return f"{name} ({few([str(network) for network in one.addresses])})"
    return name


def _traffic(plan: Plan, kind: Kind, ends: list[tuple[str, set[int]]]) -> str:
    if plan.replay is None or kind is Kind.RETIMED:
        return ""
    within = sorted(set().union(*(found for _, found in ends)))
    edges = {id(edge): edge for at in within for edge in plan.traffic.get(at, ())}
    return traffic_text(edges.values()) or ("unused" if kind is Kind.GAINED else "no flows")


def address_rows(plan: Plan) -> Iterator[tuple[str, str, str, str]]:
    """Mark, external, the addresses it gains or loses, and who wrote that."""
    by = {one.name: author_of(plan, one) for one in plan.found.altered if one.kind == "external"}
    for change in plan.found.addresses:
        for mark, networks in (("+", change.gained), ("-", change.lost)):
            if networks:
                texts = few([str(network) for network in networks])
                yield mark, change.external, texts, by.get(change.external, "")
