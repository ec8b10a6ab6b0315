"""A commit as guardrails see it: everything it says, in the words of the policy language, each with its place."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import Enum
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from bulkhead.errors import Loc
from bulkhead.policy.model import (
    Expectation,
    External,
    Match,
    Never,
    Peer,
    Policy,
    PolicySet,
    PolicyTest,
    PortSpec,
    Requirement,
    Rule,
    Workload,
)


def repository_document(policy_set: PolicySet) -> str:
    """The input document of `bulkhead.lint`, as JSON. docs/rego.md describes it."""
    return json.dumps(
        {
            "commit": policy_set.commit,
            "trust_domain": policy_set.trust_domain,
            "host_mode": policy_set.host_mode.value,
            "policies": [_policy(one) for one in policy_set.policies],
            "workloads": [_workload(one) for one in policy_set.workloads],
            "externals": [_external(one) for one in policy_set.externals],
            "rules": [_rule(one) for one in policy_set.rules],
            "nevers": [_never(one) for one in policy_set.nevers],
            "tests": [_test(one) for one in policy_set.tests],
            "nodes": [_plain(one) | _place(one.place(policy_set.commit)) for one in policy_set.nodes],
            "cluster_policies": [_plain(one) for one in policy_set.cluster_policies],
            "istio": [_plain(one) for one in policy_set.istio],
            "files": list(policy_set.files),
        }
    )


def _place(loc: Loc) -> dict[str, Any]:
    return {"file": loc.file, "line": loc.line}


def _policy(one: Policy) -> dict[str, Any]:
    return {"name": one.name, "level": one.level.value, "owner": one.owner, **_place(one.loc)}


def _workload(one: Workload) -> dict[str, Any]:
    return {
        "name": one.qualified,
        "policy": one.policy,
        "match": _match(one.match),
        "mode": one.mode.value,
        "labels": dict(one.labels),
        "posture": _posture(one.posture),
        **_place(one.loc),
    }


def _match(match: Match) -> dict[str, Any]:
    written: dict[str, Any] = {
        key: list(getattr(match, key)) for key in ("host", "cgroup", "unit", "exe", "user", "group", "namespace")
    }
    written |= {"serviceAccount": list(match.service_account), "labels": dict(match.labels)}
    return {key: value for key, value in written.items() if value} | ({"all": True} if match.everything else {})


def _posture(required: Iterable[Requirement]) -> dict[str, list[str]]:
    return {one.term: list(one.expected) for one in required}


def _external(one: External) -> dict[str, Any]:
    return {
        "name": one.qualified,
        "policy": one.policy,
        "cidr": [str(network) for network in one.cidr],
        "except": [str(network) for network in one.excluded],
        "fqdn": list(one.fqdn),
        **_place(one.loc),
    }


def _rule(one: Rule) -> dict[str, Any]:
    return {
        "name": one.qualified,
        **_ends(one),
        "kind": one.kind,
        "expires": one.expires.isoformat() if one.expires else None,
        "owner": one.owner,
        "ticket": one.ticket,
        "why": one.why,
        "mtls": "required" if one.mtls else "off",
        "l7": _plain(one.l7),
        "authz": {"rego": one.authz} if one.authz else None,
        **_place(one.loc),
    }


def _never(one: Never) -> dict[str, Any]:
    return {"name": f"{one.policy}/{one.name}", **_ends(one), "why": one.why, **_place(one.loc)}


def _ends(one: Rule | Never) -> dict[str, Any]:
    return {
        "policy": one.policy,
        "from": _peer(one.source),
        "to": _peer(one.destination),
        "ports": [_port(spec) for spec in one.ports],
    }


def _peer(peer: Peer) -> dict[str, Any]:
    return {
        "workloads": list(peer.workloads),
        "externals": list(peer.externals),
        "entities": [one.value for one in peer.entities],
        "text": peer.text,
    }


def _port(spec: PortSpec) -> dict[str, Any]:
    return {"protocol": spec.protocol, "first": spec.first, "last": spec.last, "text": spec.text}


def _test(one: PolicyTest) -> dict[str, Any]:
    return {
        "policy": one.policy,
        "from": _peer(one.source),
        "accept": [_expectation(each) for each in one.accept],
        "deny": [_expectation(each) for each in one.deny],
        **_place(one.loc),
    }


def _expectation(one: Expectation) -> dict[str, Any]:
    return {"to": _peer(one.destination), "port": _port(one.port), "text": one.text, **_place(one.loc)}


def _plain(value: Any) -> Any:
    """A value of the model by the names of its fields, for what has many and changes with its standard."""
    if isinstance(value, Loc):
        return _place(value)
    if isinstance(value, Enum):
        return value.name.lower() if isinstance(value.value, int) else value.value
    if is_dataclass(value):
        found = {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
        return found | found.pop("loc", {})
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, tuple | list | set | frozenset):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, IPv4Network | IPv6Network) else value
