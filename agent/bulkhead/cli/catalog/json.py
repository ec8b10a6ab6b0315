"""A catalogue as JSON. Fields are added, never renamed or given another meaning within one `apiVersion`."""

from __future__ import annotations

from typing import Any

from bulkhead.cli.catalog import words
from bulkhead.dataplane.catalog import Catalogue, Expected, Grant, Invariant, Outside, Party, Service, Ties
from bulkhead.dataplane.usage import Observed, Undeclared

Json = dict[str, Any]


def as_json(found: Catalogue) -> Json:
    """All of it, unabridged. Times are RFC 3339; rules are named where they are cited and told of under `rules`."""
    return {
        "commit": found.commit,
        "trust_domain": found.trust_domain,
        "host_mode": str(found.host_mode),
        "policy": found.only or None,
        "services": [_service(one) for one in found.services],
        "externals": [_outside(one) for one in found.outsides],
        "rules": [_grant(one) for one in found.grants],
        "invariants": [_invariant(one) for one in found.invariants],
        "limits": list(words.limits(found)),
        "observed": _observed(found.observed) if found.observed else None,
        "undeclared": [_undeclared(one) for one in found.undeclared] if found.observed else None,
    }


def _service(one: Service) -> Json:
    return {
        "name": one.name,
        "policy": one.policy.name,
        "level": str(one.policy.level),
        "owner": one.policy.owner,
        "spiffe_id": one.spiffe_id,
        "mode": str(one.workload.mode),
        "labels": dict(one.workload.labels),
        "match": {key: list(values) for key, values in words.selectors(one.workload.match).items()},
        "source": one.workload.loc.short,
        **_ties(one.ties),
    }


def _outside(one: Outside) -> Json:
    external = one.external
    return {
        "name": one.name,
        "kind": "external" if external else "entity",
        "cidr": [str(network) for network in external.cidr] if external else [],
        "except": [str(network) for network in external.excluded] if external else [],
        "fqdn": list(external.fqdn) if external else [],
        "source": external.loc.short if external else None,
        **_ties(one.ties),
    }


def _ties(ties: Ties) -> Json:
    return {
        "called_by": words.cited(ties.callers),
        "calls": words.cited(ties.calls),
        "protected_by": [one.name for one in ties.protected_by],
        "restrained_by": [one.name for one in ties.restrained_by],
        "tests": [_expected(one) for one in ties.tests],
    }


def _expected(one: Expected) -> Json:
    return {
        "policy": one.policy,
        "expect": one.verb,
        "from": one.source,
        "to": one.target,
        "source": one.loc.short,
    }


def _grant(one: Grant) -> Json:
    rule, usage = one.rule, one.usage
    return {
        "name": one.name,
        "kind": rule.kind,
        "from": _party(one.source),
        "to": _party(one.destination),
        "ports": list(dict.fromkeys(spec.text for spec in rule.ports)),
        "source": rule.loc.short,
        "expires": words.stamp(rule.expires) if rule.expires else None,
        "expired": one.expired,
        "owner": rule.owner,
        "ticket": rule.ticket,
        "why": rule.why,
        "usage": {
            "state": str(usage.state),
            "seen": usage.seen,
            "hits": usage.hits,
            "last_seen": _time(usage.last_seen),
            "note": usage.note,
        }
        if usage
        else None,
    }


def _invariant(one: Invariant) -> Json:
    return {
        "name": one.name,
        "from": _party(one.source),
        "to": _party(one.destination),
        "ports": list(dict.fromkeys(spec.text for spec in one.never.ports)),
        "why": one.never.why,
        "source": one.never.loc.short,
    }


def _party(one: Party) -> Json:
    return {"text": one.text, "members": list(one.members)}


def _observed(one: Observed) -> Json:
    return {
        "origin": one.origin,
        "host": one.host,
        "since": _time(one.since),
        "until": _time(one.until),
        "complete": one.complete,
        "missing": list(one.missing),
    }


def _undeclared(one: Undeclared) -> Json:
    return {
        "verdict": one.verdict,
        "from": one.source,
        "to": one.destination,
        "port": one.port,
        "count": one.count,
        "last_seen": _time(one.last_seen),
        "processes": list(one.processes),
        "because": one.because,
    }


def _time(when: float | None) -> str | None:
    return None if when is None else words.stamp(when)
