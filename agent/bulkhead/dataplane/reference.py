"""The oracle: what a PolicySet means for one conversation, by the shortest way from the words of docs/policy.md.

It exists to disagree with the compiler. It therefore shares nothing with it but the model and its words: it walks
every rule for every question, has its own glob matching and its own specificity, and knows no identity numbers in its
judgement, no prefixes and no address classes. Slow on purpose; nothing on a host runs it.

Whoever changes the language changes this file from the text of docs/policy.md, never from the compiler.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address

from bulkhead.abi import Direction, Verdict
from bulkhead.policy.model import (
    Entity,
    External,
    Match,
    Mode,
    Peer,
    PolicySet,
    PortSpec,
    QualifiedName,
    Rule,
    RuleId,
    Workload,
)
from bulkhead.policy.nodes import Node, Unknown

Address = IPv4Address | IPv6Address

UNIT_SUFFIXES = (".service", ".scope", ".socket", ".mount", ".swap")

Specificity = tuple[int, bool, bool, bool, bool, bool, int, int]
"""Keys beside `host`; has exe, unit, cgroup, user, group; keys matched without wildcard; literal characters."""


class Standing(StrEnum):
    """What an endpoint turned out to be."""

    WORKLOAD = "workload"
    """Exactly one workload selects it best."""
    HOST = "host"
    """Attested, and no workload selects it."""
    AMBIGUOUS = "ambiguous"
    """Several workloads select it with equal right."""
    UNKNOWN = "unknown"
    """Not attested yet; on another node: it did not prove who it is."""
    LEGACY = "legacy"
    """On a registered node that runs no agent."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The facts that the kernel attests about a process at the time it opened its socket."""

    cgroup: str
    """Control group path, absolute from the agent's root: `/`, or `/a/b` without trailing slash."""
    exe: str
    """Absolute path with all symlinks resolved."""
    user: str
    """Name of the effective user; empty when the number has no name."""
    uid: int
    group: str
    """Name of the primary group; empty when the number has no name."""
    gid: int
    attested: bool = True


@dataclass(frozen=True, slots=True)
class Identified:
    """Who an endpoint is. `workloads` has one member for a workload, those that tie, sorted, when ambiguous."""

    standing: Standing
    workloads: tuple[QualifiedName, ...] = ()


@dataclass(frozen=True, slots=True)
class End:
    """One end of a conversation between managed hosts."""

    host: str
    address: Address
    endpoint: Endpoint


DnsName = str

Remote = Identified | Address | DnsName
"""The other end as one end sees it: on this machine, proven on the wire, or neither (`seen_from_afar`). The standing
`host` means this machine, `legacy` a node that cannot say who is talking. An address lies outside, and a name stands
for an address outside that is known by that name and nothing else."""


@dataclass(frozen=True, slots=True)
class Pod:
    """The facts that the API server of a cluster attests about a pod."""

    cluster: str
    namespace: str
    service_account: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """One end's judgement, before its mode."""

    allowed: bool
    rules: tuple[RuleId, ...] = ()
    """Every rule that allows it now, permanent or not yet expired, in rule order."""
    expires: datetime | None = None
    """The latest deadline among `rules`; None when one of them is permanent, or when there is none."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a conversation that is allowed has to bring with it."""

    mtls: bool = False
    """Between nodes: mutual TLS, through the proxies."""
    requests: bool = False
    """A proxy that judges each request, on one host too."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Both ends' verdicts on one conversation."""

    egress: Verdict
    ingress: Verdict

    @property
    def verdict(self) -> Verdict:
        """The stricter of both: each end applies its own mode, and both must allow."""
        for strict in (Verdict.DENY, Verdict.WOULD_DENY):
            if strict in (self.egress, self.ingress):
                return strict
        return Verdict.ALLOW


# Who is this?


def identify(policy_set: PolicySet, host: str, endpoint: Endpoint) -> Identified:
    """The one workload of an endpoint on `host`, or why it has none."""
    if not endpoint.attested:
        return Identified(Standing.UNKNOWN)
    candidates: list[tuple[Specificity, QualifiedName]] = []
    for workload in policy_set.workloads:
        specificity = _specificity(workload.match, host, endpoint)
        if specificity is not None:
            candidates.append((specificity, workload.qualified))
    if not candidates:
        return Identified(Standing.HOST)
    best = max(specificity for specificity, _ in candidates)
    winners = tuple(sorted(name for specificity, name in candidates if specificity == best))
    return Identified(Standing.WORKLOAD if len(winners) == 1 else Standing.AMBIGUOUS, winners)


def identify_pod(policy_set: PolicySet, pod: Pod) -> Identified:
    """The one workload of a pod, or why it has none: the standing `unknown`, since a pod is never the host."""
    found = [(_pod_specificity(w.match, pod), w.qualified) for w in policy_set.workloads]
    candidates = [(specificity, name) for specificity, name in found if specificity is not None]
    if not candidates:
        return Identified(Standing.UNKNOWN)
    best = max(specificity for specificity, _ in candidates)
    winners = tuple(sorted(name for specificity, name in candidates if specificity == best))
    return Identified(Standing.WORKLOAD if len(winners) == 1 else Standing.AMBIGUOUS, winners)


def can_be_on(workload: Workload, host: str) -> bool:
    """Whether the `host` key lets the workload be attested on a host of this name."""
    return not workload.match.host or any(glob_matches(pattern, host) for pattern in workload.match.host)


def glob_matches(pattern: str, text: str) -> bool:
    """Whether a glob covers the whole of a text: `*` any run and `?` any one character, all else itself."""
    reached = {0}
    for char in pattern:
        if char == "*":
            reached = {end for start in reached for end in range(start, len(text) + 1)}
        else:
            reached = {at + 1 for at in reached if at < len(text) and char in ("?", text[at])}
    return len(text) in reached


def unit_of(cgroup: str) -> str:
    """The systemd unit that a control group path belongs to; empty when it belongs to none.

    Slices are passed over; what comes first after them is a unit or the path has none, so that a container's inner
    systemd, or a directory made by a user, cannot pose as a unit of the host.
    """
    for component in _components(cgroup):
        if not component.endswith(".slice"):
            return component if component.endswith(UNIT_SUFFIXES) else ""
    return ""


def identity_number(trust_domain: str, name: QualifiedName) -> int:
    """The number of a workload: SHA-256 of its SPIFFE ID, first four bytes, big endian, bit 31 cleared."""
    digest = hashlib.sha256(f"spiffe://{trust_domain}/{name}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % 2**31


def _specificity(match: Match, host: str, endpoint: Endpoint) -> Specificity | None:
    """How closely a selector describes an endpoint; None when it does not select it."""
    if match == Match() or match.of_pods:
        return None
    matched = {
        "host": [p for p in match.host if glob_matches(p, host)],
        "exe": [p for p in match.exe if p == endpoint.exe],
        "unit": [p for p in match.unit if unit_of(endpoint.cgroup) and glob_matches(p, unit_of(endpoint.cgroup))],
        "cgroup": [p for p in match.cgroup if _covers_subtree(p, endpoint.cgroup)],
        "user": [p for p in match.user if p in _names(endpoint.user, endpoint.uid)],
        "group": [p for p in match.group if p in _names(endpoint.group, endpoint.gid)],
    }
    written = {key: bool(getattr(match, key)) for key in matched}
    if any(written[key] and not matched[key] for key in matched):
        return None
    closeness = [max(_closeness(key, p) for p in patterns) for key, patterns in matched.items() if patterns]
    return (
        sum(written.values()) - written["host"],
        written["exe"],
        written["unit"],
        written["cgroup"],
        written["user"],
        written["group"],
        sum(exact for exact, _ in closeness),
        sum(literals for _, literals in closeness),
    )


def _pod_specificity(match: Match, pod: Pod) -> tuple[int, bool, int, bool, int, int] | None:
    """How closely a selector describes a pod; None when it does not select it."""
    spaces = [p for p in match.namespace if glob_matches(p, pod.namespace)]
    accounts = [p for p in match.service_account if glob_matches(p, pod.service_account)]
    carried = all(pod.labels.get(key) == value for key, value in match.labels)
    if not spaces or (match.service_account and not accounts) or not carried:
        return None
    if match.cluster not in ("", pod.cluster):
        return None
    closeness = [max(_closeness("unit", p) for p in patterns) for patterns in (spaces, accounts) if patterns]
    return (
        bool(accounts) + bool(match.labels),
        bool(accounts),
        len(match.labels),
        match.cluster != "",
        sum(exact for exact, _ in closeness),
        sum(literals for _, literals in closeness),
    )


def _closeness(key: str, pattern: str) -> tuple[int, int]:
    """Whether one pattern is without wildcard (1 or 0), and its literal characters. Only three keys know wildcards."""
    wildcards = pattern.count("*") + pattern.count("?") if key in ("host", "unit", "cgroup") else 0
    return int(wildcards == 0), len(pattern) - wildcards


def _covers_subtree(pattern: str, cgroup: str) -> bool:
    """Whether a control group path lies at or below a path that the pattern matches, component by component."""
    wanted, found = _components(pattern), _components(cgroup)
    return len(wanted) <= len(found) and all(map(glob_matches, wanted, found))


def _components(path: str) -> list[str]:
    return [component for component in path.split("/") if component]


def _names(name: str, number: int) -> set[str]:
    return {name, str(number)} - {""}


# May it?


def judge(
    policy_set: PolicySet,
    host: str,
    local: Identified,
    direction: Direction,
    remote: Remote,
    protocol: int,
    port: int,
    now: datetime,
) -> Answer:
    """What the end on `host` says to a conversation, all modes aside.

    `protocol` is an IP protocol number; `port` that of the destination, for ICMP `type << 8 | code`, for protocols
    without ports 0. `now` is timezone-aware. A workload that cannot be on `host` is allowed nothing there.
    """
    if not _lives_on(policy_set, host, local):
        return Answer(False)
    source, destination = (local, remote) if direction is Direction.EGRESS else (remote, local)
    rules = [
        rule
        for rule in policy_set.rules
        if in_force(rule, now)
        and opens_port(rule.ports, protocol, port)
        and is_member(policy_set, rule.source, source)
        and is_member(policy_set, rule.destination, destination)
    ]
    return Answer(bool(rules), tuple(sorted(rule.rule_id for rule in rules)), _latest(rules))


def demanded(
    policy_set: PolicySet,
    host: str,
    local: Identified,
    direction: Direction,
    remote: Remote,
    protocol: int,
    port: int,
    now: datetime,
) -> Demand:
    """What is asked of a conversation that `judge` allows. Arguments as for it.

    Only TCP between workloads is asked for anything: of the rules that allow it, those that last longest count. It is
    asked for mutual TLS unless one of them permits plaintext, and for a judge of requests if all are about requests.
    """
    answer = judge(policy_set, host, local, direction, remote, protocol, port, now)
    between = all(isinstance(end, Identified) and end.standing is Standing.WORKLOAD for end in (local, remote))
    if not answer.allowed or not between or protocol != 6:
        return Demand()
    rules = [rule for rule in policy_set.rules if rule.rule_id in answer.rules]
    lasting = [rule for rule in rules if rule.expires == answer.expires]
    return Demand(all(rule.mtls for rule in lasting), all(rule.by_request for rule in lasting))


def answerers(
    policy_set: PolicySet, host: str, local: Identified, protocol: int, port: int, now: datetime
) -> dict[QualifiedName, Demand]:
    """The workloads that may answer an opening to a node's address, and what is asked of the conversation with each."""
    everyone = {w.qualified: Identified(Standing.WORKLOAD, (w.qualified,)) for w in policy_set.workloads}
    opening = Direction.EGRESS
    return {
        name: demanded(policy_set, host, local, opening, end, protocol, port, now)
        for name, end in everyone.items()
        if judge(policy_set, host, local, opening, end, protocol, port, now).allowed
    }


def verdict(
    policy_set: PolicySet,
    host: str,
    local: Identified,
    direction: Direction,
    remote: Remote,
    protocol: int,
    port: int,
    now: datetime,
) -> Verdict:
    """The judgement of one end with its mode applied. Arguments as for `judge`."""
    if judge(policy_set, host, local, direction, remote, protocol, port, now).allowed:
        return Verdict.ALLOW
    return Verdict.DENY if mode_of(policy_set, host, local) is Mode.ENFORCE else Verdict.WOULD_DENY


def conversation(
    policy_set: PolicySet, source: End, destination: End, protocol: int, port: int, now: datetime
) -> Conversation:
    """What becomes of a conversation between two endpoints of managed hosts, at either end."""
    opener = identify(policy_set, source.host, source.endpoint)
    opened = identify(policy_set, destination.host, destination.endpoint)
    far, near = _as_seen(source, destination, opened), _as_seen(destination, source, opener)
    return Conversation(
        verdict(policy_set, source.host, opener, Direction.EGRESS, far, protocol, port, now),
        verdict(policy_set, destination.host, opened, Direction.INGRESS, near, protocol, port, now),
    )


def mode_of(policy_set: PolicySet, host: str, local: Identified) -> Mode:
    """The mode of an endpoint on `host`. One that may be several things takes the strictest of their modes."""
    if local.standing is Standing.HOST:
        return policy_set.host_mode
    possible = [w.mode for w in policy_set.workloads if w.qualified in local.workloads]
    if local.standing is Standing.UNKNOWN:
        possible = [policy_set.host_mode, *(w.mode for w in policy_set.workloads if can_be_on(w, host))]
    return Mode.ENFORCE if Mode.ENFORCE in possible else Mode.OBSERVE


def _as_seen(viewer: End, other: End, identified: Identified) -> Remote:
    """Both machines are nodes that prove whom they host. `host` is this machine: what no workload selects on another
    machine is but an address from here."""
    if identified.standing is Standing.HOST and viewer.host != other.host:
        return other.address
    return identified


def seen_from_afar(policy_set: PolicySet, node: Node | None, said: Identified | None, address: Address) -> Remote:
    """Who the other end is, on a machine that is not this one.

    `node` is the registered node at whose address it is, or that proved to be the sender; None: no such node counts.
    `said` is who that node proved it to be; None: nothing was said.
    """
    if node is None or node.revoked:
        return address
    if node.key is None:
        return Identified(Standing.LEGACY)
    if said is None:
        return address if node.unknown is Unknown.ADDRESS else Identified(Standing.UNKNOWN)
    if said.standing is Standing.HOST:
        return address
    named = [w for w in policy_set.workloads if (w.qualified,) == said.workloads and not w.match.of_pods]
    return said if named and can_be_on(named[0], node.name) else Identified(Standing.UNKNOWN)


def may_leave(
    policy_set: PolicySet,
    host: str,
    local: Identified,
    node: Node,
    address: Address,
    port: tuple[int, int],
    now: datetime,
) -> bool:
    """Whether the first packet to a node leaves: who will answer is not known yet. `port` has its protocol before it.

    It leaves if it may be meant for some workload, or for the node's address; either proves itself with the answer.
    """
    everyone = [Identified(Standing.WORKLOAD, (workload.qualified,)) for workload in policy_set.workloads]
    remotes: list[Remote] = [Identified(Standing.LEGACY)] if node.key is None else [*everyone, address]
    return any(judge(policy_set, host, local, Direction.EGRESS, each, *port, now).allowed for each in remotes)


def _lives_on(policy_set: PolicySet, host: str, local: Identified) -> bool:
    by_name = {workload.qualified: workload for workload in policy_set.workloads}
    return all(name in by_name and can_be_on(by_name[name], host) for name in local.workloads)


def in_force(rule: Rule, now: datetime) -> bool:
    """Whether a rule is permanent or its deadline still ahead."""
    return rule.expires is None or now < rule.expires


def opens_port(ports: Iterable[PortSpec], protocol: int, port: int) -> bool:
    """Whether one of the entries of `ports` covers a protocol and port."""
    return any(spec.protocol == protocol and spec.first <= port <= spec.last for spec in ports)


def is_member(policy_set: PolicySet, peer: Peer, end: Remote) -> bool:
    """Whether one end of a conversation belongs to one side of a rule. Unknown and ambiguous belong to none."""
    if not isinstance(end, Identified):
        named = [external for external in policy_set.externals if external.qualified in peer.externals]
        return Entity.WORLD in peer.entities or any(_contains(external, end) for external in named)
    if end.standing is Standing.HOST:
        return Entity.HOST in peer.entities
    if end.standing is Standing.LEGACY:
        return Entity.LEGACY in peer.entities
    if end.standing is Standing.WORKLOAD:
        return Entity.ANY in peer.entities or end.workloads[0] in peer.workloads
    return False


def _contains(external: External, address: Address | DnsName) -> bool:
    """`cidr` less `except`; an address is never in a network of the other family. A name: `fqdn`, where a first label
    `*` is any one label."""
    if isinstance(address, str):
        wide = "*." + ".".join(address.split(".")[1:])
        return address in external.fqdn or wide in external.fqdn
    return any(address in network for network in external.cidr) and not any(
        address in network for network in external.excluded
    )


def _latest(rules: Iterable[Rule]) -> datetime | None:
    deadlines = [rule.expires for rule in rules]
    timed = [deadline for deadline in deadlines if deadline is not None]
    return max(timed) if timed and len(timed) == len(deadlines) else None
