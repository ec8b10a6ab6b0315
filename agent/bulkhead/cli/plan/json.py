"""A plan as programs read it: all of it, unabridged. A time of null: for ever, or never."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bulkhead.cli.plan import words
from bulkhead.cli.plan.cluster import cluster_json
from bulkhead.cli.plan.plan import Plan, stood_before
from bulkhead.dataplane.compile import RuleInfo
from bulkhead.dataplane.difference import FOREVER, REFUSED, Kind, Reach, Span
from bulkhead.dataplane.replay import Edge, Effect
from bulkhead.errors import Loc
from bulkhead.observe.evidence import Coverage
from bulkhead.policy.alterations import Altered
from bulkhead.policy.authors import Author


def plan_json(plan: Plan) -> dict[str, Any]:
    """The data of `bulkhead plan -o json`."""
    found = plan.found
    return {
        "before": found.before,
        "after": found.after,
        "summary": words.summary(plan),
        "breaking": len(plan.breaking),
        "tests": plan.tests,
        "nevers": plan.nevers,
        "reach": [_reach(plan, at, one) for at, one in enumerate(found.reach)],
        "addresses": [
            {"external": one.external, "gained": _texts(one.gained), "lost": _texts(one.lost)}
            for one in found.addresses
        ],
        "altered": [_altered(plan, one) for one in found.altered],
        "cluster": cluster_json(plan, _inside_rules(plan)),
        "authors": {"unsaid": plan.authors.unsaid or None},
        "recorded": _recorded(plan),
    }


def _reach(plan: Plan, at: int, one: Reach) -> dict[str, Any]:
    data: dict[str, Any] = {
        "change": one.kind.value,
        "from": one.source,
        "to": one.destination,
        "protocol": one.protocol,
        "ports": [_span(one.protocol, span) for span in one.ports],
        "rules": [_rule(plan, rule, one.kind) for rule in one.rules],
        "addresses": _texts(one.addresses),
    }
    if plan.replay is not None:
        edges = plan.traffic.get(at, [])
        data["traffic"] = {
            "flows": sum(edge.flows for edge in edges),
            "live_sockets": sum(len(edge.talks) for edge in edges),
        }
    return data


def _inside_rules(plan: Plan) -> list[list[dict[str, Any]]]:
    reach = plan.cluster.reach if plan.cluster else ()
    return [[_rule(plan, rule, one.kind) for rule in one.rules] for one in reach]


def _rule(plan: Plan, rule: RuleInfo, kind: Kind) -> dict[str, Any]:
    known = plan.authors.removed if stood_before(rule, kind) else plan.authors.written
    return {"name": rule.name, "kind": rule.kind, "loc": rule.loc.short, "author": _author(known.get(rule.loc))}


def _author(author: Author | None) -> dict[str, Any] | None:
    if author is None:
        return None
    return {"name": author.name, "time": words.time_text(author.time), "commit": author.commit}


def _span(protocol: int, span: Span) -> dict[str, Any]:
    found: dict[str, Any] = {
        "text": words.port_text(protocol, span.first, span.last),
        "first": span.first,
        "last": span.last,
    }
    for side, until in (("before", span.before), ("after", span.after)):
        ends = until not in (REFUSED, FOREVER)
        found[side] = {"allowed": until != REFUSED, "until": words.time_text(until) if ends else None}
    return found


def _altered(plan: Plan, one: Altered) -> dict[str, Any]:
    written = plan.authors.written.get(one.after) if one.after else None
    removed = plan.authors.removed.get(one.before) if one.before else None
    return {
        "kind": one.kind,
        "name": one.name,
        "what": one.what,
        "effect": one.effect,
        "details": [detail._asdict() for detail in one.details],
        "before": _loc(one.before),
        "after": _loc(one.after),
        "author": _author(written or removed),
    }


def _recorded(plan: Plan) -> dict[str, Any] | None:
    """What was recorded; null when nothing was asked."""
    if plan.replay is None:
        return None
    return {
        "edges": [_edge(plan, edge) for edge in plan.replay.edges],
        "records": plan.replay.flows,
        "live_sockets": plan.replay.talks,
        "undecided": plan.replay.undecided,
        "by_name": plan.replay.by_name,
        "contradicted": plan.replay.contradicted,
        "complete": not plan.gaps,
        "gaps": list(plan.gaps),
        "sources": [_coverage(one) for one in plan.coverage],
    }


def _coverage(one: Coverage) -> dict[str, Any]:
    return {
        "host": one.host,
        "asked_s": one.asked_s,
        "covered_s": one.covered_s,
        "gaps": list(one.gaps),
        "notes": list(one.notes),
    }


def _edge(plan: Plan, edge: Edge) -> dict[str, Any]:
    kind = Kind.LOST if edge.effect is Effect.BREAKS else Kind.GAINED
    return {
        "effect": edge.effect.value,
        "enforced": edge.enforced,
        "from": edge.source,
        "to": edge.destination,
        "from_elsewhere": edge.source_elsewhere or None,
        "to_elsewhere": edge.destination_elsewhere or None,
        "protocol": edge.protocol,
        "port": edge.port,
        "flows": edge.flows,
        "last_seen": words.time_text(edge.last_seen) if edge.last_seen else None,
        "live_sockets": [talk._asdict() for talk in edge.talks],
        "addresses": _texts(edge.addresses),
        "rule": _rule(plan, edge.rule, kind) if edge.rule else None,
    }


def _loc(loc: Loc | None) -> str | None:
    return loc.short if loc else None


def _texts(values: Iterable[object]) -> list[str]:
    return [str(value) for value in values]
