"""What a careful reviewer would ask about: allowed by the language, and most likely not meant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from ipaddress import ip_network

from bulkhead.errors import Diagnostic, Loc
from bulkhead.policy.check import check, finding
from bulkhead.policy.model import (
    Entity,
    External,
    Mode,
    Network,
    Peer,
    PolicySet,
    PortSpec,
    Rule,
)
from bulkhead.policy.ports import PORT_MAX, PROTOCOLS
from bulkhead.policy.read import REPOSITORY_FILE

PRIVATE = tuple(ip_network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"))

_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}


def lint(policy_set: PolicySet, now: datetime) -> tuple[Diagnostic, ...]:
    """All findings about a commit, warnings of `check` included, in the order of files and lines.

    `now` is timezone-aware. Only an expired exception is an error.
    """
    found = [
        *check(policy_set),
        *_redundant(policy_set),
        *_private_networks(policy_set),
        *_every_port(policy_set),
        *_expired(policy_set, now),
        *_unused(policy_set),
        *_no_lifeline(policy_set),
        *_idle_excepts(policy_set),
    ]
    return tuple(sorted(found, key=lambda each: (each.loc, each.code)))


# --- rules that add nothing


def _redundant(policy_set: PolicySet) -> Iterator[Diagnostic]:
    """Rules that another allows whole. Of two equal ones, the later."""
    by_source: dict[str, list[Rule]] = {}
    by_destination: dict[str, list[Rule]] = {}
    for rule in policy_set.rules:
        for name in members(rule.source):
            by_source.setdefault(name, []).append(rule)
        for name in members(rule.destination):
            by_destination.setdefault(name, []).append(rule)
    for rule in policy_set.rules:
        other = _covering(rule, by_source, by_destination)
        if other is not None:
            related = ((other.loc, f"`{other.qualified}` is here"),)
            yield finding(policy_set, "BH1001", rule.loc, related=related, rule=rule.qualified, other=other.qualified)


def _covering(rule: Rule, by_source: dict[str, list[Rule]], by_destination: dict[str, list[Rule]]) -> Rule | None:
    sources, destinations = members(rule.source), members(rule.destination)
    if not sources or not destinations:
        return None
    candidates = min(_sharing(sources, by_source), _sharing(destinations, by_destination), key=len)
    for other in candidates:
        if other is not rule and _covers(other, rule) and (other.rule_id < rule.rule_id or not _covers(rule, other)):
            return other
    return None


def _sharing(names: frozenset[str], rules: dict[str, list[Rule]]) -> list[Rule]:
    """Rules that can contain all of `names`: those with the first of them, itself or under a wider name."""
    first = min(names)
    return [rule for name in (first, _wider(first)) for rule in rules.get(name, ())]


def _covers(wide: Rule, narrow: Rule) -> bool:
    return (
        _contains(wide.destination, narrow.destination)
        and _contains(wide.source, narrow.source)
        and _outlasts(wide, narrow)
        and all(_port_within(port, wide.ports) for port in narrow.ports)
    )


def _outlasts(wide: Rule, narrow: Rule) -> bool:
    return wide.expires is None or (narrow.expires is not None and narrow.expires <= wide.expires)


def _contains(wide: Peer, narrow: Peer) -> bool:
    held = members(wide)
    return all(name in held or _wider(name) in held for name in members(narrow))


def members(peer: Peer) -> frozenset[str]:
    """Everything a peer names. Entities keep their bare names, all others are qualified."""
    return frozenset((*(f"+{name}" for name in peer.workloads), *peer.externals, *peer.entities))


def _wider(name: str) -> str:
    """The entity that a member belongs to."""
    if name.startswith("+"):
        return Entity.ANY
    return Entity.WORLD if "/" in name else name


def _port_within(port: PortSpec, wide: Iterable[PortSpec]) -> bool:
    """True when the ports of `wide` together contain `port`."""
    first = port.first
    for other in sorted((each for each in wide if each.protocol == port.protocol), key=lambda each: each.first):
        if other.first <= first <= other.last:
            first = other.last + 1
    return first > port.last


# --- rules that are too wide


def _private_networks(policy_set: PolicySet) -> Iterator[Diagnostic]:
    externals = {external.qualified: external for external in policy_set.externals}
    trusted = {name: list(_trusted_networks(external)) for name, external in externals.items()}
    for rule in policy_set.rules:
        for name in (*rule.source.externals, *rule.destination.externals):
            for network in trusted[name]:
                related = ((externals[name].loc, f"`{name}` is here"),)
                yield finding(policy_set, "BH1002", rule.loc, related=related, rule=rule.qualified, network=network)


def _trusted_networks(external: External) -> Iterator[Network]:
    """Prefixes that hold a private network whole. The default route is no place, it is everybody."""
    for network in external.cidr:
        held = [private for private in PRIVATE if _within(private, network)]
        if network.prefixlen and any(not any(_within(one, each) for each in external.excluded) for one in held):
            yield network


def _within(narrow: Network, wide: Network) -> bool:
    return narrow.version == wide.version and narrow.prefixlen >= wide.prefixlen and narrow.network_address in wide


def _every_port(policy_set: PolicySet) -> Iterator[Diagnostic]:
    for rule in policy_set.rules:
        if not (_has_workloads(rule.source) and _has_workloads(rule.destination)):
            continue
        names = [_PROTOCOL_NAMES[port.protocol] for port in rule.ports if _is_every(port)]
        if names:
            yield finding(
                policy_set, "BH1003", rule.loc, rule=rule.qualified, protocol=" and ".join(dict.fromkeys(names))
            )


def _has_workloads(peer: Peer) -> bool:
    return bool(peer.workloads) or Entity.ANY in peer.entities


def _is_every(port: PortSpec) -> bool:
    return port.protocol in _PROTOCOL_NAMES and port.first <= 1 and port.last == PORT_MAX


# --- what does nothing


def _expired(policy_set: PolicySet, now: datetime) -> Iterator[Diagnostic]:
    for rule in policy_set.rules:
        if rule.expires is not None and rule.expires <= now:
            expires = rule.expires.isoformat()
            yield finding(policy_set, "BH1004", rule.loc, hint="remove it", rule=rule.qualified, expires=expires)


def _unused(policy_set: PolicySet) -> Iterator[Diagnostic]:
    ruled = [peer for rule in policy_set.rules for peer in (rule.source, rule.destination)]
    named = [*ruled, *(peer for never in policy_set.nevers for peer in (never.source, never.destination))]
    for test in policy_set.tests:
        named += [test.source, *(each.destination for each in (*test.accept, *test.deny))]
    workloads = {name for peer in ruled for name in peer.workloads}
    externals = {name for peer in named for name in peer.externals}
    if not any(Entity.ANY in peer.entities for peer in ruled):
        for workload in policy_set.workloads:
            if workload.qualified not in workloads:
                yield finding(policy_set, "BH1005", workload.loc, name=workload.qualified)
    for external in policy_set.externals:
        if external.qualified not in externals:
            yield finding(policy_set, "BH1006", external.loc, name=external.qualified)


def _no_lifeline(policy_set: PolicySet) -> Iterator[Diagnostic]:
    lifelines = any(rule.kind == "lifeline" for rule in policy_set.rules)
    if policy_set.host_mode is Mode.ENFORCE and not lifelines:
        commit = policy_set.sources.abbreviated if policy_set.sources else ""
        hint = 'add `lifeline: [{from: admins, to: "host:22"}]` under `hosts`'
        yield finding(policy_set, "BH1007", Loc(REPOSITORY_FILE, 1, commit=commit), hint=hint)


def _idle_excepts(policy_set: PolicySet) -> Iterator[Diagnostic]:
    for external in policy_set.externals:
        for network in external.excluded:
            if not any(_within(network, each) or _within(each, network) for each in external.cidr):
                yield finding(policy_set, "BH1008", external.loc, network=network, name=external.qualified)
