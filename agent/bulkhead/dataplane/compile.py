"""A commit as the tables of one host: who may talk to whom, by which rule, and what its proxy does for that."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from ipaddress import IPv4Network, IPv6Network, ip_address

from bulkhead.dataplane.addresses import Address
from bulkhead.dataplane.calls import mesh_of
from bulkhead.dataplane.entries import PolicyEntry as PolicyEntry
from bulkhead.dataplane.entries import PolicyKey as PolicyKey
from bulkhead.dataplane.entries import build
from bulkhead.dataplane.hosting import HostSet, host_sets, hosting
from bulkhead.dataplane.istio import silent_rules
from bulkhead.dataplane.lanes import steer
from bulkhead.dataplane.mesh import HBONE_PORT, Mesh
from bulkhead.dataplane.names import DnsName
from bulkhead.dataplane.never import check_nevers
from bulkhead.dataplane.policy_tests import check_tests
from bulkhead.dataplane.ports import PORT_BITS, port_prefixes, prefix_of
from bulkhead.dataplane.proxy_rule import KIND, NAME, proxy_entries, proxy_place, proxy_rule
from bulkhead.dataplane.resolve import (
    HOST,
    LEGACY,
    PEER,
    PROXY,
    WORLD,
    Limits,
    Resolved,
    ResolvedRule,
    RuleIndex,
    resolve,
)
from bulkhead.errors import Diagnostic, Loc, PolicyError
from bulkhead.identity.registry import spiffe_id, svid_template
from bulkhead.identity.svids import find_shared_ids
from bulkhead.identity.ties import find_ties
from bulkhead.policy.findings import excerpt
from bulkhead.policy.lifeline import OPERATOR
from bulkhead.policy.model import (
    Match,
    Mode,
    Network,
    PolicySet,
    QualifiedName,
    Requirement,
    Rule,
    RuleId,
    TrustBundle,
    Workload,
)
from bulkhead.policy.nodes import Node
from bulkhead.policy.rego_modules import RegoModule

ENTITY_NAMES = {HOST: "host", LEGACY: "legacy", PROXY: "proxy"}
"""Entities that have a number of their own in every commit, and no externals."""


@dataclass(frozen=True, slots=True)
class RuleInfo:
    """A rule as it is shown to people."""

    rule_id: RuleId
    name: QualifiedName
    kind: str
    """`allow`, `exception`, `lifeline`, `operator`, or `proxy` for what proxies say to each other."""
    loc: Loc
    source: str
    """Both peers and the ports, as written."""
    destination: str
    ports: str
    expires: float | None = None
    """Unix seconds; None: never."""
    owner: str = ""
    ticket: str = ""
    why: str = ""
    mtls: bool = False
    """Whether TCP between workloads needs mutual TLS by it."""
    l7: str = ""
    """What requests it is limited to, in short; empty: none in particular."""


@dataclass(frozen=True, slots=True)
class WorkloadInfo:
    """A workload with its identity."""

    identity: int
    qualified: QualifiedName
    spiffe_id: str
    mode: Mode
    match: Match
    labels: tuple[tuple[str, str], ...]
    loc: Loc
    local: bool
    """Whether its `host` key lets it be on this host."""
    posture: tuple[Requirement, ...] = ()
    svid: str = ""
    """Template of the SPIFFE ID that its SVIDs have; `{host}` stands for the name of the node."""

    def as_workload(self) -> Workload:
        """Back in the words of the model, for the selectors."""
        policy, _, name = self.qualified.partition("/")
        return Workload(policy, name, self.match, self.mode, self.loc, self.labels, self.posture)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much there is of what the kernel's maps must hold."""

    policy_entries: int
    prefixes4: int
    prefixes6: int
    workloads: int
    rules: int


@dataclass(frozen=True, slots=True)
class Compiled:
    """Everything one host needs to enforce one commit."""

    commit: str
    trust_domain: str
    host: str | None
    """None: compiled for every host at once."""
    host_mode: Mode
    compiled_at: float
    """Unix seconds. Exceptions that had expired by then are not among the entries."""
    entries: dict[PolicyKey, PolicyEntry]
    classes4: dict[Network, int]
    classes6: dict[Network, int]
    classes: dict[int, tuple[QualifiedName, ...]]
    """Externals of each address class, sorted."""
    workloads: tuple[WorkloadInfo, ...]
    rules: dict[RuleId, RuleInfo]
    """Every rule of the commit, expired ones included."""
    executables: tuple[str, ...]
    """Those that selectors of local workloads name."""
    names: dict[int, DnsName] = field(default_factory=dict)
    """DNS names that externals list, by number."""
    openings: dict[PolicyKey, PolicyEntry] = field(default_factory=dict)
    """Egress towards PEER: an opening to another node leaves if some workload may be meant; who it is, is judged when
    it answers. What the kernel needs beside `entries`, and nobody's reach."""
    hosting: dict[int, int] = field(default_factory=dict)
    """The number of the `host` globs of each workload's identity, those of other hosts included, pods left out."""
    host_sets: dict[int, HostSet] = field(default_factory=dict)
    """The globs behind those numbers, but for that of any node."""
    nodes: tuple[Node, ...] = ()
    """The records of nodes in the commit, revoked ones included."""
    mesh: Mesh = field(default_factory=Mesh)
    """What the host's proxy has to do. Empty where every host is compiled at once."""
    modules: tuple[RegoModule, ...] = ()
    trust_bundles: tuple[TrustBundle, ...] = ()
    """What vouches for other trust domains."""

    @property
    def sizes(self) -> Sizes:
        entries = len(self.entries) + len(self.openings)
        return Sizes(entries, len(self.classes4), len(self.classes6), len(self.workloads), len(self.rules))


def compile_commit(policy_set: PolicySet, host: str | None, now: datetime, limits: Limits | None = None) -> Compiled:
    """The tables of a host, or of all hosts at once when `host` is None, with every check made.

    Raises PolicyError with all findings: workloads that tie (BH0601) or share a SPIFFE ID (BH0605), identities that
    collide or are reserved (BH0602), rules that break a `never` (BH0501), tests that fail (BH0502), more than the maps
    hold (BH0701).
    """
    resolved, findings = examine(policy_set, host, now, limits)
    if findings:
        raise PolicyError(findings)
    return compile_resolved(resolved)


def examine(
    policy_set: PolicySet, host: str | None, now: datetime, limits: Limits | None = None
) -> tuple[Resolved, tuple[Diagnostic, ...]]:
    """What `compile_commit` would compile, and everything for which it would refuse to.

    Raises PolicyError where the findings leave nothing to compile: identities that collide, too many prefixes.
    """
    limits = limits or Limits()
    findings = find_ties(policy_set.workloads) + find_shared_ids(policy_set.workloads)
    try:
        resolved = resolve(policy_set, host, now, limits)
    except PolicyError as error:
        raise PolicyError(shown(policy_set, [*findings, *error.diagnostics])) from None
    # the operator's lifeline is not the repository's to forbid
    index = RuleIndex([found for found in resolved.rules if found.rule.kind != OPERATOR])
    findings += check_nevers(resolved, index)
    findings += check_tests(resolved, index)
    findings += check_size(resolved, limits)
    return resolved, tuple(shown(policy_set, findings))


def shown(policy_set: PolicySet, findings: Iterable[Diagnostic]) -> list[Diagnostic]:
    """In file order, each with its author's line when the policy was read from files."""
    contents = {file.path: file.content for file in policy_set.sources.files} if policy_set.sources else {}
    lined = (
        finding
        if finding.source_line
        else replace(finding, source_line=excerpt(contents.get(finding.loc.file, b""), finding.loc.line))
        for finding in findings
    )
    return sorted(lined, key=lambda finding: finding.loc)


def check_size(resolved: Resolved, limits: Limits) -> list[Diagnostic]:
    """A finding (BH0701) when the rules would expand to more entries than fit; counted without expanding them."""
    estimate = [(_entry_count(found), found) for found in resolved.rules]
    total = sum(count for count, _ in estimate)
    if total <= limits.policy_entries:
        return []
    count, largest = max(estimate, key=lambda pair: pair[0])
    place = f"host `{resolved.host}`" if resolved.host else "all hosts"
    problem = f"{total:,} entries on {place} are more than the {limits.policy_entries:,} that fit"
    hint = f"the largest rule is `{largest.rule.qualified}` with {count:,}"
    return [Diagnostic("BH0701", problem, largest.rule.loc, hint=hint)]


def _entry_count(found: ResolvedRule) -> int:
    """Entries of one rule, those that other rules give too included."""
    egress = len(found.source.local) * len(found.destination.members)
    ingress = len(found.destination.local) * len(found.source.members)
    openings = len(found.source.local) if found.destination.workloads else 0
    return (egress + ingress + openings) * sum(len(port_prefixes(spec.first, spec.last)) for spec in found.rule.ports)


def compile_resolved(resolved: Resolved) -> Compiled:
    """The tables, without any check but that they can be built.

    Raises PolicyError (BH0701) when the proxy of the host would need more lanes than it may have.
    """
    policy_set, directory = resolved.policy_set, resolved.directory
    entries = build(resolved.rules)
    openings, lanes = steer(resolved, entries)
    mesh = mesh_of(resolved, lanes)
    owners = {policy.name: policy.owner for policy in policy_set.policies}
    rules = {
        rule.rule_id: rule_info(rule, owners.get(rule.policy, ""))
        for rule in (*policy_set.rules, *silent_rules(policy_set))
    }
    if not mesh.is_empty:
        built_in = _proxy_rule(policy_set)
        rules[built_in.rule_id] = built_in
        for key, entry in proxy_entries(built_in.rule_id).items():
            (openings if key.remote_identity == PEER else entries)[key] = entry
    workloads = tuple(_workload_info(resolved, workload) for workload in policy_set.workloads)
    return Compiled(
        commit=policy_set.commit,
        trust_domain=policy_set.trust_domain,
        host=resolved.host,
        host_mode=policy_set.host_mode,
        compiled_at=resolved.now.timestamp(),
        entries=entries,
        classes4=dict(directory.classes4),
        classes6=dict(directory.classes6),
        classes={number: tuple(sorted(members)) for members, number in directory.classes.items()},
        workloads=workloads,
        rules=rules,
        executables=tuple(sorted({exe for w in workloads if w.local for exe in w.match.exe})),
        names=dict(directory.named),
        openings=openings,
        hosting=hosting((workload.identity, workload.match) for workload in workloads),
        host_sets=host_sets(workload.match for workload in workloads),
        nodes=policy_set.nodes,
        mesh=mesh,
        modules=policy_set.modules,
        trust_bundles=policy_set.trust_bundles,
    )


def _workload_info(resolved: Resolved, workload: Workload) -> WorkloadInfo:
    identity = resolved.directory.workloads[workload.qualified]
    return WorkloadInfo(
        identity,
        workload.qualified,
        spiffe_id(resolved.policy_set.trust_domain, workload.qualified),
        workload.mode,
        workload.match,
        workload.labels,
        workload.loc,
        identity in resolved.directory.local,
        workload.posture,
        svid_template(resolved.policy_set.trust_domain, workload),
    )


def rule_info(rule: Rule, owner: str = "") -> RuleInfo:
    """A rule as it is shown. `owner` is that of its policy, who answers for an opt-out without one of its own."""
    return RuleInfo(
        rule.rule_id,
        rule.qualified,
        rule.kind,
        rule.loc,
        rule.source.text,
        rule.destination.text,
        ", ".join(dict.fromkeys(spec.text for spec in rule.ports)),
        rule.expires.timestamp() if rule.expires else None,
        rule.owner or (owner if rule.mtls_off else ""),
        rule.ticket,
        rule.why,
        rule.mtls,
        rule.l7.text if rule.l7 else "",
    )


def _proxy_rule(policy_set: PolicySet) -> RuleInfo:
    ends, why = "proxy", "the tunnels between the nodes' proxies"
    rule_id, loc = proxy_rule(policy_set), proxy_place(policy_set)
    return RuleInfo(rule_id, NAME, KIND, loc, ends, ends, str(HBONE_PORT), why=why)


# What the kernel does with them


def lookup(compiled: Compiled, local: int, direction: int, remote: int, protocol: int, port: int) -> PolicyEntry | None:
    """The entry that the kernel finds: the one with the longest port prefix. None: nothing allows it."""
    for bits in range(PORT_BITS, -1, -1):
        key = PolicyKey(local, int(direction), remote, protocol, prefix_of(port, bits).value, bits)
        entry = compiled.entries.get(key)
        if entry is not None:
            return entry
    return None


def class_of(compiled: Compiled, address: Address | str) -> int:
    """The identity of an address outside this machine, as the kernel finds it."""
    wanted = ip_address(address)
    prefixes = compiled.classes4 if wanted.version == 4 else compiled.classes6
    network = IPv4Network if wanted.version == 4 else IPv6Network
    around = (network((int(wanted), bits), strict=False) for bits in range(wanted.max_prefixlen, -1, -1))
    return next((prefixes[prefix] for prefix in around if prefix in prefixes), WORLD)


def identity_name(compiled: Compiled, identity: int) -> str | None:
    """What to call an identity; None when the commit does not know it."""
    if identity in ENTITY_NAMES:
        return ENTITY_NAMES[identity]
    if identity in compiled.classes:
        return " + ".join(compiled.classes[identity]) or "world"
    return next((w.qualified for w in compiled.workloads if w.identity == identity), None)
