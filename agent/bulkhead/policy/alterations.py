"""What reads differently in two commits, thing by thing: each thing is known by its kind and name."""

from __future__ import annotations

import base64
import hashlib
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from bulkhead.errors import Loc
from bulkhead.policy.cluster import SHORT_NAMES, ClusterPolicy, ClusterRule, Tier
from bulkhead.policy.dialects.peers import peer_text, peers_text
from bulkhead.policy.dialects.ports import ports_text
from bulkhead.policy.istio import IstioPolicy, IstioRule, PeerAuthentication
from bulkhead.policy.keys import key_fingerprint
from bulkhead.policy.l7 import Issuer, in_full
from bulkhead.policy.model import (
    External,
    Match,
    Never,
    Policy,
    PolicySet,
    Requirement,
    Rule,
    Signer,
    TrustBundle,
    Workload,
)
from bulkhead.policy.nodes import Node

RULE_KINDS: Final = ("allow", "exception", "lifeline")

CLUSTER_RULE: Final = "rule"
"""The kind of a rule of a Kubernetes policy."""
CLUSTER_KINDS: Final = (*SHORT_NAMES, CLUSTER_RULE)

_OWN_KINDS: Final = (
    *("repository", "signer", "node", "trust bundle"),
    *("policy", "workload", "external", *RULE_KINDS, "never"),
)
_ISTIO_KINDS: Final = ("AuthorizationPolicy", "PeerAuthentication")
_KINDS: Final = (*_OWN_KINDS, *CLUSTER_KINDS, *_ISTIO_KINDS)
"""In the order in which they are shown."""


class Detail(NamedTuple):
    """One field. An empty text: the thing has no such field on that side."""

    field: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Altered:
    """Something added, removed or changed. Where it stands in its file is not part of it."""

    kind: str
    name: str
    details: tuple[Detail, ...]
    """The fields that differ; for something added or removed, all that it has."""
    before: Loc | None
    """None: added."""
    after: Loc | None
    """None: removed."""
    effect: bool = True
    """False for a rule that changes nobody's reach, nor what is asked of anybody."""

    @property
    def what(self) -> str:
        """`added`, `removed` or `changed`."""
        if self.before is None:
            return "added"
        return "removed" if self.after is None else "changed"

    @property
    def requests(self) -> str:
        """`narrowed`, `widened` or `changed`, by what a rule says of them; empty where it says the same."""
        detail = next((one for one in self.details if one.field == "l7"), None)
        if detail is None or self.what != "changed":
            return ""
        before, after = (set(text.split("; ")) for text in (detail.before, detail.after))
        if not detail.before or (detail.after and after < before):
            return "narrowed"
        return "widened" if not detail.after or before < after else "changed"


class _Thing(NamedTuple):
    loc: Loc
    fields: dict[str, str]


Things = dict[tuple[str, str], _Thing]

DEMANDS = frozenset({"mtls", "l7", "authz"})
"""Fields of a rule that say what a conversation has to bring with it, which is no reach."""


def alterations(before: PolicySet, after: PolicySet, effective: Collection[tuple[str, str]]) -> tuple[Altered, ...]:
    """Everything that differs. `effective` are the rules that change somebody's reach, by kind and name."""
    old, new = _things(before), _things(after)
    _forget_moved(old, new)
    names = sorted(old.keys() | new.keys(), key=lambda key: (_KINDS.index(key[0]), key[1]))
    found = (_altered(key, old.get(key), new.get(key), effective) for key in names)
    return tuple(one for one in found if one is not None)


def _altered(
    key: tuple[str, str], old: _Thing | None, new: _Thing | None, effective: Collection[tuple[str, str]]
) -> Altered | None:
    one, other = old.fields if old else {}, new.fields if new else {}
    details = tuple(
        Detail(name, one.get(name, ""), other.get(name, ""))
        for name in dict.fromkeys((*one, *other))
        if one.get(name, "") != other.get(name, "")
    )
    if old is not None and new is not None and not details:
        return None
    demands = any(detail.field in DEMANDS for detail in details)
    effect = key[0] not in RULE_KINDS or key in effective or demands
    return Altered(*key, details, old.loc if old else None, new.loc if new else None, effect)


def _things(policy_set: PolicySet) -> Things:
    things: Things = {("repository", ""): _repository(policy_set)}
    things.update((("signer", f"{one.name} {key_fingerprint(one.key)}"), _signer(one)) for one in policy_set.signers)
    things.update(_node_things(policy_set))
    things.update((("trust bundle", one.trust_domain), _trust_bundle(one)) for one in policy_set.trust_bundles)
    things.update((("policy", one.name), _policy(one)) for one in policy_set.policies)
    things.update((("workload", one.qualified), _workload(one)) for one in policy_set.workloads)
    things.update((("external", one.qualified), _external(one)) for one in policy_set.externals)
    rules = (one for one in policy_set.rules if one.kind in RULE_KINDS)
    things.update(((one.kind, one.qualified), _rule(one, policy_set.mtls)) for one in rules)
    things.update((("never", f"{one.policy}/{one.name}"), _never(one)) for one in policy_set.nevers)
    for policy in policy_set.cluster_policies:
        things.update(_cluster_things(policy))
    things.update(((type(one).__name__, f"{one.namespace}/{one.name}"), _istio(one)) for one in policy_set.istio)
    return things


def _repository(policy_set: PolicySet) -> _Thing:
    loc = Loc("bulkhead.yaml", 1, commit=policy_set.sources.abbreviated if policy_set.sources else "")
    fields = {"trustDomain": policy_set.trust_domain, "hosts.mode": policy_set.host_mode.value}
    fields |= {"defaults.mtls": "required" if policy_set.mtls else "off"}
    return _Thing(loc, fields | {f"jwt.{one.name}": _issuer(one) for one in policy_set.issuers})


def _issuer(one: Issuer) -> str:
    return f"{one.issuer} for {_list(one.audiences) or 'any'}, keys {_fingerprint(one.jwks.encode())}"


def _signer(one: Signer) -> _Thing:
    """A key is known by its fingerprint, so that another key of the same name is another signer."""
    return _Thing(one.loc, {"level": one.level.value, "expires": one.expires.isoformat() if one.expires else ""})


def _node_things(policy_set: PolicySet) -> Iterator[tuple[tuple[str, str], _Thing]]:
    """Records by the name of their node, of which there may be revoked ones beside the one that counts."""
    commit = policy_set.sources.abbreviated if policy_set.sources else ""
    named: Counter[str] = Counter()
    for one in sorted(policy_set.nodes, key=lambda node: node.revoked):
        named[one.name] += 1
        again = f" ({named[one.name]})" if named[one.name] > 1 else ""
        yield ("node", f"{one.name}{again}"), _Thing(one.place(commit), _node(one))


def _node(one: Node) -> dict[str, str]:
    return {
        "number": str(one.number),
        "key": base64.b64encode(one.key).decode() if one.key else "",
        "addresses": _list(map(str, one.addresses)),
        "unknown": one.unknown.value,
        "revoked": "true" if one.revoked else "",
        "ca": _list(_fingerprint(der) for der in one.ca),
    }


def _trust_bundle(one: TrustBundle) -> _Thing:
    return _Thing(one.loc, {"bundle": _fingerprint(one.document.encode())})


def _fingerprint(content: bytes) -> str:
    """Enough to see that it is another one."""
    return hashlib.sha256(content).hexdigest()[:16]


def _policy(one: Policy) -> _Thing:
    fields = {"level": one.level.value, "owner": one.owner}
    if one.scope is not None:
        fields |= {"scope.cluster": one.scope.cluster, "scope.namespace": one.scope.namespace}
    return _Thing(one.loc, fields)


def _workload(one: Workload) -> _Thing:
    fields = {"match": _match(one.match), "mode": one.mode.value, "labels": _labels(one.labels)}
    return _Thing(one.loc, fields | {"posture": _posture(one.posture), "spiffe": one.spiffe})


def _match(match: Match) -> str:
    written: dict[str, tuple[str, ...]] = {
        **{key: getattr(match, key) for key in ("host", "unit", "cgroup", "exe", "user", "group", "namespace")},
        "serviceAccount": match.service_account,
        "all": ("true",) if match.everything else (),
        "cluster": (match.cluster,) if match.cluster else (),
    }
    parts = [f"{key}: {_list(patterns)}" for key, patterns in written.items() if patterns]
    return ", ".join([*parts, f"labels: {{{_labels(match.labels)}}}"] if match.labels else parts)


def _posture(required: Iterable[Requirement]) -> str:
    return ", ".join(f"{one.term}: {_list(one.expected) or 'none'}" for one in required)


def _labels(labels: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in labels)


def _external(one: External) -> _Thing:
    addresses = {"cidr": _list(map(str, one.cidr)), "except": _list(map(str, one.excluded))}
    return _Thing(one.loc, {**addresses, "fqdn": _list(one.fqdn)})


def _rule(one: Rule, mtls: bool) -> _Thing:
    return _Thing(one.loc, dict(_rule_fields(one, mtls)))


def _rule_fields(one: Rule, mtls: bool) -> Iterator[tuple[str, str]]:
    """`mtls` is what the repository asks of rules that do not say."""
    yield from _ends(one)
    yield "mtls", "" if one.mtls is mtls else "required" if one.mtls else "off"
    yield from (("l7", in_full(one.l7) if one.l7 else ""), ("authz", one.authz))
    yield "expires", one.expires.isoformat() if one.expires else ""
    yield from (("owner", one.owner), ("ticket", one.ticket), ("why", one.why))


def _never(one: Never) -> _Thing:
    return _Thing(one.loc, {**dict(_ends(one)), "why": one.why})


def _ends(one: Rule | Never) -> Iterator[tuple[str, str]]:
    yield "from", one.source.text
    yield "to", one.destination.text
    yield "ports", ", ".join(dict.fromkeys(spec.text for spec in one.ports))


# Kubernetes policies


def _cluster_things(one: ClusterPolicy) -> Iterator[tuple[tuple[str, str], _Thing]]:
    """A policy, and its rules each for itself."""
    name = f"{one.namespace}/{one.name}" if one.namespace else one.name
    yield (one.kind, name), _Thing(one.loc, dict(_cluster_fields(one)))
    named: Counter[str] = Counter()
    for direction, rules in (("ingress", one.ingress), ("egress", one.egress)):
        for rule in rules or ():
            named[rule.name] += 1
            # The API takes a name twice.
            again = f" ({named[rule.name]})" if named[rule.name] > 1 else ""
            key = CLUSTER_RULE, f"{one.qualified}/{rule.name}{again}"
            yield key, _Thing(rule.loc, _cluster_rule(rule, direction))


def _forget_moved(old: Things, new: Things) -> None:
    """Takes out the rules of NetworkPolicies that are called otherwise by their position alone, which says nothing."""
    places: dict[tuple[str, tuple[tuple[str, str], ...]], list[tuple[str, str]]] = defaultdict(list)
    for key, thing in old.items():
        if _is_unordered(key) and (key not in new or new[key].fields != thing.fields):
            places[_contents(key, thing)].append(key)
    for key, thing in [*new.items()]:
        if _is_unordered(key) and (key not in old or old[key].fields != thing.fields):
            same = places.get(_contents(key, thing))
            if same:
                del old[same.pop()]
                del new[key]


def _is_unordered(key: tuple[str, str]) -> bool:
    return key[0] == CLUSTER_RULE and key[1].startswith(f"{SHORT_NAMES['NetworkPolicy']}/")


def _contents(key: tuple[str, str], thing: _Thing) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The policy that a rule is of, and what it says."""
    return key[1].rpartition("/")[0], tuple(thing.fields.items())


def _cluster_fields(one: ClusterPolicy) -> Iterator[tuple[str, str]]:
    if one.tier is not Tier.NAMESPACE:
        yield "tier", one.tier.name.capitalize()
        yield "priority", str(one.priority)
    yield "subject", peer_text(one.subject, sys.maxsize)
    for direction, rules in (("ingress", one.ingress), ("egress", one.egress)):
        # Where the first rule that matches decides, their order says something.
        ordered = ", ".join(rule.name for rule in rules or ()) if one.tier is not Tier.NAMESPACE else "isolated"
        yield direction, "" if rules is None else ordered


def _cluster_rule(rule: ClusterRule, direction: str) -> dict[str, str]:
    end = "from" if direction == "ingress" else "to"
    ports = ports_text(rule.ports, sys.maxsize)
    return {"action": rule.action.value, end: peers_text(rule.peers, sys.maxsize), "ports": ports}


# Istio's policies


def _istio(one: IstioPolicy) -> _Thing:
    """A policy with its rules: they have no names, and no order that says anything."""
    fields = {"selector": _labels(one.labels)}
    if isinstance(one, PeerAuthentication):
        ports = (f"{port}: {mode}" for port, mode in one.ports)
        return _Thing(one.loc, fields | {"mtls": one.mode.value, "portLevelMtls": _list(ports)})
    fields |= {"action": one.action.value, "provider": one.provider, "dry-run": "true" if one.dry_run else ""}
    return _Thing(one.loc, fields | {rule.name: _istio_rule(rule) for rule in one.rules})


def _istio_rule(rule: IstioRule) -> str:
    texts = (", ".join(f"{key}: [{_list(map(str, values))}]" for key, values in term.items()) for term in rule.terms())
    return "; ".join(texts) or "everything"


def _list(texts: Iterable[str]) -> str:
    return ", ".join(texts)
