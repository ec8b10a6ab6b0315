"""What a careful reviewer would ask about: allowed by the language, and most likely not meant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta

from bulkhead.dataplane.cluster_lint import cluster_lint
from bulkhead.dataplane.exposure import MANAGEMENT, is_public, is_within, trusted_networks
from bulkhead.dataplane.istio_lint import istio_lint
from bulkhead.dataplane.resolve import Resolved, ResolvedRule, RuleIndex, resolve
from bulkhead.dataplane.shadows import Shadow, shadows
from bulkhead.errors import Diagnostic, Loc, PolicyError
from bulkhead.policy.check import check, finding
from bulkhead.policy.model import (
    Entity,
    Level,
    Mode,
    Peer,
    PolicySet,
    PortSpec,
    QualifiedName,
    Rule,
)
from bulkhead.policy.ports import PORT_MAX, PROTOCOLS, TCP
from bulkhead.policy.source import REPOSITORY_FILE

MANY_PORTS = 10_000
"""A rule that opens this many ports of one protocol opens more than anything listens on."""

SOON = timedelta(days=7)
"""How long before its end an exception is spoken of."""

_RELATED_MAX = 3
_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}


def lint(policy_set: PolicySet, now: datetime, resolved: Resolved | None = None) -> tuple[Diagnostic, ...]:
    """All findings about a commit, warnings of `check` included, in the order of files and lines.

    `now` is timezone-aware. `resolved` is the commit for all hosts at once, where the caller has it already. A commit
    that cannot be resolved is refused for that; rules that add nothing are then not looked for. Only an expired
    exception is an error.
    """
    resolved = resolved or _resolved(policy_set, now)
    policy_set = resolved.policy_set if resolved else policy_set
    found = [
        *check(policy_set),
        *_redundant(policy_set, resolved),
        *_places(policy_set),
        *_everybody(policy_set),
        *_wide(policy_set),
        *_exceptions(policy_set, now),
        *_unused(policy_set),
        *_untested(policy_set),
        *_undocumented(policy_set),
        *_opted_out(policy_set),
        *_mixed(policy_set, resolved),
        *_no_lifeline(policy_set),
        *_idle_excepts(policy_set),
        *cluster_lint(policy_set),
        *istio_lint(policy_set, resolved),
    ]
    return tuple(sorted(found, key=lambda each: (each.loc, each.code)))


def _resolved(policy_set: PolicySet, now: datetime) -> Resolved | None:
    try:
        return resolve(policy_set, None, now)
    except PolicyError:
        return None


# --- rules that add nothing


def _redundant(policy_set: PolicySet, resolved: Resolved | None) -> Iterator[Diagnostic]:
    for shadow in shadows(resolved) if resolved else ():
        yield _shadow(policy_set, shadow)


def _shadow(policy_set: PolicySet, shadow: Shadow) -> Diagnostic:
    rule, others = shadow.rule.rule, [other.rule for other in shadow.others]
    related = tuple((other.loc, f"`{other.qualified}` is here") for other in others[:_RELATED_MAX])
    if len(others) == 1:
        other = others[0].qualified
        return finding(
            policy_set, "BH1001", rule.loc, hint="remove it", related=related, rule=rule.qualified, other=other
        )
    return finding(
        policy_set, "BH1009", rule.loc, hint="remove it", related=related, rule=rule.qualified, count=len(others)
    )


# --- rules that are too wide


def _places(policy_set: PolicySet) -> Iterator[Diagnostic]:
    externals = {external.qualified: external for external in policy_set.externals}
    trusted = {name: list(trusted_networks(each.cidr, each.excluded)) for name, each in externals.items()}
    for rule in policy_set.rules:
        for name in (*rule.source.externals, *rule.destination.externals):
            for network in trusted[name]:
                related = ((externals[name].loc, f"`{name}` is here"),)
                hint = "name the workloads, or the few addresses that are meant"
                yield finding(
                    policy_set, "BH1002", rule.loc, hint=hint, related=related, rule=rule.qualified, network=network
                )


def _everybody(policy_set: PolicySet) -> Iterator[Diagnostic]:
    """Rules that let every workload, or the whole world, through at once."""
    public = {external.qualified for external in policy_set.externals if any(map(is_public, external.cidr))}
    for rule in policy_set.rules:
        outer = [peer for peer in (rule.source, rule.destination) if _is_everybody(peer, public)]
        if Entity.ANY in rule.source.entities and Entity.ANY in rule.destination.entities and _has_services(rule):
            hint = "name the workloads that talk to each other"
            yield finding(policy_set, "BH1010", rule.loc, hint=hint, rule=rule.qualified)
        if outer and any(_is_every(rule, protocol) for protocol in _PROTOCOL_NAMES):
            yield finding(policy_set, "BH1011", rule.loc, hint="name the ports", rule=rule.qualified)
        elif _is_everybody(rule.source, public):
            yield from _management(policy_set, rule)


def _management(policy_set: PolicySet, rule: Rule) -> Iterator[Diagnostic]:
    for (protocol, port), service in MANAGEMENT.items():
        if _opens(rule, protocol, port):
            hint = "name the addresses that administrators come from"
            port_text = f"{port}/{_PROTOCOL_NAMES[protocol]}"
            yield finding(
                policy_set, "BH1012", rule.loc, hint=hint, rule=rule.qualified, port=port_text, service=service
            )
            return


def _is_everybody(peer: Peer, public: set[QualifiedName]) -> bool:
    return Entity.WORLD in peer.entities or any(name in public for name in peer.externals)


def _has_services(rule: Rule) -> bool:
    return any(spec.protocol in _PROTOCOL_NAMES for spec in rule.ports)


def _opens(rule: Rule, protocol: int, port: int) -> bool:
    return any(spec.protocol == protocol and spec.first <= port <= spec.last for spec in rule.ports)


def _wide(policy_set: PolicySet) -> Iterator[Diagnostic]:
    """Rules that open more ports than anything listens on."""
    for rule in policy_set.rules:
        every = [protocol for protocol in _PROTOCOL_NAMES if _is_every(rule, protocol)]
        if every and _has_workloads(rule.source) and _has_workloads(rule.destination):
            names = " and ".join(_PROTOCOL_NAMES[protocol] for protocol in every)
            yield finding(policy_set, "BH1003", rule.loc, hint="name the ports", rule=rule.qualified, protocol=names)
        for protocol, name in _PROTOCOL_NAMES.items():
            count = _port_count(rule.ports, protocol)
            if protocol not in every and count >= MANY_PORTS:
                yield finding(
                    policy_set, "BH1013", rule.loc, hint="name the ports", rule=rule.qualified, count=count, name=name
                )


def _is_every(rule: Rule, protocol: int) -> bool:
    """Whether all ports that can be connected to are open."""
    return _port_count(rule.ports, protocol) >= PORT_MAX


def _port_count(ports: Iterable[PortSpec], protocol: int) -> int:
    """How many different ports of a protocol are open, 0 not counted."""
    count, reached = 0, 0
    for first, last in sorted((spec.first, spec.last) for spec in ports if spec.protocol == protocol):
        count += max(0, last - max(first - 1, reached))
        reached = max(reached, last)
    return count


def _has_workloads(peer: Peer) -> bool:
    return bool(peer.workloads) or Entity.ANY in peer.entities


# --- what has an end


def _exceptions(policy_set: PolicySet, now: datetime) -> Iterator[Diagnostic]:
    for rule in policy_set.rules:
        if rule.expires is None or rule.expires > now + SOON:
            continue
        expires = rule.expires.isoformat()
        if rule.expires <= now:
            yield finding(policy_set, "BH1004", rule.loc, hint="remove it", rule=rule.qualified, expires=expires)
        else:
            hint = f"ask `{rule.owner}`: what still needs it after that needs a rule, or a new ticket"
            yield finding(policy_set, "BH1014", rule.loc, hint=hint, rule=rule.qualified, expires=expires)


# --- what does nothing


def _unused(policy_set: PolicySet) -> Iterator[Diagnostic]:
    ruled = _ruled(policy_set)
    named = [*ruled, *(peer for never in policy_set.nevers for peer in (never.source, never.destination))]
    named += _tested(policy_set)
    workloads = {name for peer in ruled for name in peer.workloads}
    externals = {name for peer in named for name in peer.externals}
    if not any(Entity.ANY in peer.entities for peer in ruled):
        for workload in policy_set.workloads:
            if workload.qualified not in workloads:
                yield finding(policy_set, "BH1005", workload.loc, name=workload.qualified)
    for external in policy_set.externals:
        if external.qualified not in externals:
            yield finding(policy_set, "BH1006", external.loc, name=external.qualified)


def _ruled(policy_set: PolicySet) -> list[Peer]:
    return [peer for rule in policy_set.rules for peer in (rule.source, rule.destination)]


def _tested(policy_set: PolicySet) -> list[Peer]:
    expected = [each.destination for test in policy_set.tests for each in (*test.accept, *test.deny)]
    return [*(test.source for test in policy_set.tests), *expected]


def _idle_excepts(policy_set: PolicySet) -> Iterator[Diagnostic]:
    for external in policy_set.externals:
        for network in external.excluded:
            if not any(is_within(network, each) or is_within(each, network) for each in external.cidr):
                yield finding(
                    policy_set, "BH1008", external.loc, hint="remove it", network=network, name=external.qualified
                )


# --- what nobody says


def _untested(policy_set: PolicySet) -> Iterator[Diagnostic]:
    """Workloads that rules name and no test does, in policies that have tests: they were most likely forgotten."""
    with_tests = {test.policy for test in policy_set.tests}
    peers = _tested(policy_set)
    if any(Entity.ANY in peer.entities for peer in peers):
        return
    tested = {name for peer in peers for name in peer.workloads}
    ruled = {name for peer in _ruled(policy_set) for name in peer.workloads}
    for workload in policy_set.workloads:
        name = workload.qualified
        if workload.policy in with_tests and name in ruled and name not in tested:
            hint = "say in `tests` what it reaches, and what must not reach it"
            yield finding(policy_set, "BH1017", workload.loc, hint=hint, name=name)


def _undocumented(policy_set: PolicySet) -> Iterator[Diagnostic]:
    for policy in policy_set.policies:
        if policy.level is not Level.APP and not policy.owner:
            hint = "add `owner` to its metadata"
            yield finding(policy_set, "BH1016", policy.loc, hint=hint, policy=policy.name, level=policy.level)
    for never in policy_set.nevers:
        if not never.why:
            name = f"{never.policy}/{never.name}"
            yield finding(policy_set, "BH1018", never.loc, hint="add `why`", never=name)


def _opted_out(policy_set: PolicySet) -> Iterator[Diagnostic]:
    owners = {policy.name: policy.owner for policy in policy_set.policies}
    for rule in policy_set.rules:
        if rule.mtls_off:
            owner = rule.owner or owners.get(rule.policy) or "nobody"
            hint = "make it an exception, which ends, or remove `mtls`"
            yield finding(policy_set, "BH1015", rule.loc, hint=hint, rule=rule.qualified, owner=owner)


def _mixed(policy_set: PolicySet, resolved: Resolved | None) -> Iterator[Diagnostic]:
    """Rules that permit plaintext where another asks for mutual TLS; one that ends first permits nothing."""
    between = [
        one for one in (resolved.rules if resolved else ()) if one.source.workloads and one.destination.workloads
    ]
    plain = [one for one in between if not one.rule.mtls]
    index = RuleIndex([one for one in between if one.rule.mtls] if plain else ())
    owners = {policy.name: policy.owner for policy in policy_set.policies}
    for one in plain:
        ports = [spec for spec in one.rule.ports if spec.protocol == TCP]
        for other in index.between(one.source, one.destination, ports):
            if _are_together(one, other):
                rule, strict = one.rule, other.rule
                yield finding(
                    policy_set,
                    "BH1019",
                    rule.loc,
                    hint=_mixed_hint(one, other),
                    related=((strict.loc, f"`{strict.qualified}` is here"),),
                    rule=rule.qualified,
                    other=strict.qualified,
                    owner=rule.owner or owners.get(rule.policy) or "nobody",
                )
                break


def _mixed_hint(plain: ResolvedRule, strict: ResolvedRule) -> str:
    ends_first = plain.deadline is not None and (strict.deadline is None or plain.deadline < strict.deadline)
    if ends_first:
        return f"it has no effect, since `{strict.rule.name}` lasts longer: say it there"
    return "let no other rule allow the same"


def _are_together(one: ResolvedRule, other: ResolvedRule) -> bool:
    """Whether some workload may reach another by both."""
    sources = one.source.workloads & other.source.workloads
    return bool(sources and one.destination.workloads & other.destination.workloads)


def _no_lifeline(policy_set: PolicySet) -> Iterator[Diagnostic]:
    lifelines = any(rule.kind == "lifeline" for rule in policy_set.rules)
    if policy_set.host_mode is Mode.ENFORCE and not lifelines:
        commit = policy_set.sources.abbreviated if policy_set.sources else ""
        hint = 'add `lifeline: [{from: admins, to: "host:22"}]` under `hosts`'
        yield finding(policy_set, "BH1007", Loc(REPOSITORY_FILE, 1, commit=commit), hint=hint)
