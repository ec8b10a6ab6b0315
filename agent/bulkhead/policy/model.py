"""What authors wrote, as typed values. Nothing here knows of the kernel.

Every value that an author can be asked about carries its `Loc`. All classes are frozen: a PolicySet is a function of
one commit and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, NewType

from bulkhead.errors import Loc
from bulkhead.policy.source import Sources

if TYPE_CHECKING:
    from bulkhead.policy.cluster import ClusterPolicy
    from bulkhead.policy.istio import IstioPolicy
    from bulkhead.policy.l7 import L7, Issuer
    from bulkhead.policy.nodes import Node
    from bulkhead.policy.rego_modules import RegoModule

RuleId = NewType("RuleId", int)
"""Ordinal of a rule in its commit, from 1, by sorted file and document order. 0: no rule matched."""

QualifiedName = NewType("QualifiedName", str)
"""`policy/name` of a workload, external or rule."""

Network = IPv4Network | IPv6Network


class Mode(StrEnum):
    """What a workload's refusals do."""

    OBSERVE = "observe"
    """They are counted and reported as would-deny; packets pass."""
    ENFORCE = "enforce"
    """They are dropped."""


class Entity(StrEnum):
    """Built-in peers."""

    ANY = "any"
    """Every workload of the trust domain; neither the host nor the world."""
    HOST = "host"
    """This machine: its kernel, and its processes that no workload selects."""
    WORLD = "world"
    """Every address outside this machine, externals included."""
    LEGACY = "legacy"
    """Every registered node that runs no agent, in place of its address; not a part of the world."""
    UNKNOWN = "unknown"
    """A peer without a proven identity. Reserved: matches nothing, and rules may not name it yet."""


class Level(StrEnum):
    """Who may write a policy; not a precedence."""

    GUARDRAIL = "guardrail"
    PLATFORM = "platform"
    APP = "app"


class Protocol(StrEnum):
    """Protocols with names of their own in the language."""

    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"
    """ICMP and ICMPv6 alike; ports are ICMP types by name."""


@dataclass(frozen=True, slots=True)
class PortSpec:
    """One entry of `ports`, exactly as wide as what was written.

    `protocols` are IP protocol numbers (TCP 6, UDP 17, ICMP 1, ICMPv6 58, or any other for `proto/N`). `first` and
    `last` bound the port, inclusive, in 0..65535; for ICMP the "port" is `type << 8 | code`, so one type is the range
    `type << 8 .. type << 8 | 255`. Protocols without ports use 0..65535.
    """

    protocol: int
    first: int
    last: int
    text: str
    """As the author wrote it."""


@dataclass(frozen=True, slots=True)
class Match:
    """The selector of a workload: keys AND, values of a list OR.

    `host`, `cgroup` and `unit` are globs (`*` matches within one path component, `?` one character, all else is
    literal). `cgroup` is anchored at the agent's control group root and covers the whole subtree below a match.
    `exe` is an absolute path after symlinks are resolved. `user` and `group` are names or numbers as text.
    `everything` is `all: true`: any attested endpoint.
    """

    host: tuple[str, ...] = ()
    cgroup: tuple[str, ...] = ()
    unit: tuple[str, ...] = ()
    exe: tuple[str, ...] = ()
    user: tuple[str, ...] = ()
    group: tuple[str, ...] = ()
    everything: bool = False
    namespace: tuple[str, ...] = ()
    """Kubernetes: globs over the pod's namespace. With any of these three, only pods match, and by them alone."""
    service_account: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    """Labels that the pod must carry, all of them."""
    cluster: str = ""
    """Of the policy's scope: limits where the pods can be. Empty: any cluster."""

    @property
    def of_pods(self) -> bool:
        """Whether it selects pods of a cluster rather than processes of a host."""
        return bool(self.namespace or self.service_account or self.labels)


@dataclass(frozen=True, slots=True)
class Requirement:
    """One thing that `posture` requires; all of a workload's must hold."""

    term: str
    """`digest`, `kernel`, `hardening.PROPERTY`, `package.NAME` or `node.NAME`."""
    expected: tuple[str, ...]
    """`digest`: any of these, `sha256:…`; `CapabilityBoundingSet`: at most these; one text otherwise."""

    @property
    def of_processes(self) -> bool:
        """Whether it is about what runs, rather than about the host."""
        return self.term.partition(".")[0] in ("digest", "hardening")


@dataclass(frozen=True, slots=True)
class Workload:
    """A named set of endpoints; has one identity."""

    policy: str
    name: str
    match: Match
    mode: Mode
    loc: Loc
    labels: tuple[tuple[str, str], ...] = ()
    posture: tuple[Requirement, ...] = ()
    """While one of these fails, the workload's identity is withheld: its endpoints match nothing."""
    spiffe: str = ""
    """Path of its SVIDs' SPIFFE ID as written; `{host}` stands for the node's name. Empty: `/POLICY/WORKLOAD`."""

    @property
    def qualified(self) -> QualifiedName:
        return QualifiedName(f"{self.policy}/{self.name}")


@dataclass(frozen=True, slots=True)
class External:
    """A named set of addresses outside the trust domain: `cidr` less `except`, or what DNS says of `fqdn`."""

    policy: str
    name: str
    cidr: tuple[Network, ...]
    excluded: tuple[Network, ...]
    loc: Loc
    fqdn: tuple[str, ...] = ()
    """DNS names, lower case, without the final dot; a first label `*` stands for one label. Excludes `cidr`."""

    @property
    def qualified(self) -> QualifiedName:
        return QualifiedName(f"{self.policy}/{self.name}")


@dataclass(frozen=True, slots=True)
class Peer:
    """One side of a rule, resolved to qualified names; the union of all its fields."""

    workloads: tuple[QualifiedName, ...] = ()
    externals: tuple[QualifiedName, ...] = ()
    entities: tuple[Entity, ...] = ()
    text: str = ""
    """As the author wrote it."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One author-written allow; an exception is a rule with `expires`."""

    rule_id: RuleId
    policy: str
    name: str
    source: Peer
    destination: Peer
    ports: tuple[PortSpec, ...]
    loc: Loc
    expires: datetime | None = None
    """Timezone-aware; None means never."""
    owner: str = ""
    ticket: str = ""
    why: str = ""
    kind: str = "allow"
    """`allow`, `exception`, `lifeline`, or `operator` for what is not from git (policy/lifeline.py)."""
    mtls_off: bool = False
    """Whether the rule itself says that its ends need not prove who they are."""
    mtls: bool = True
    """Whether TCP between its workloads needs mutual TLS: what the rule says, or else the repository's default."""
    l7: L7 | None = None
    """What requests, or server names, it is limited to. None: all."""
    authz: str = ""
    """The Rego package that is asked about each request. Empty: none."""
    requests: bool = False
    """Whether requests are judged although it limits none: Istio's policies do (dataplane/istio_settle.py)."""

    @property
    def by_request(self) -> bool:
        """Whether it is for the proxy to judge, request by request."""
        return self.l7 is not None or bool(self.authz) or self.requests

    @property
    def qualified(self) -> QualifiedName:
        return QualifiedName(f"{self.policy}/{self.name}")


@dataclass(frozen=True, slots=True)
class Never:
    """An invariant: no rule of the repository may allow anything from `source` to `destination` (on `ports`)."""

    policy: str
    name: str
    source: Peer
    destination: Peer
    ports: tuple[PortSpec, ...]
    """Empty: any port."""
    why: str
    loc: Loc


@dataclass(frozen=True, slots=True)
class Expectation:
    """`PEER:PORT` in a test, or `PEER:PORT METHOD PATH`."""

    destination: Peer
    port: PortSpec
    text: str
    loc: Loc
    method: str = ""
    """Of a request to one TCP port. Empty: the conversation is meant, whatever is requested in it."""
    path: str = ""


@dataclass(frozen=True, slots=True)
class PolicyTest:
    """`accept`: every member of `source` reaches; `deny`: none does."""

    policy: str
    source: Peer
    accept: tuple[Expectation, ...]
    deny: tuple[Expectation, ...]
    loc: Loc


@dataclass(frozen=True, slots=True)
class Policy:
    """One `kind: Policy` document's metadata. Several documents may share a file."""

    name: str
    level: Level
    owner: str
    loc: Loc
    scope: Scope | None = None


@dataclass(frozen=True, slots=True)
class Scope:
    """The part of a Kubernetes cluster that a policy speaks of. Its workloads are pods of that namespace."""

    cluster: str
    namespace: str
    """Empty: every namespace."""


@dataclass(frozen=True, slots=True)
class Signer:
    """Who may sign commits, and up to which level."""

    name: str
    """Principal of an SSH key, or the user id that is shown for an OpenPGP one."""
    level: Level
    key: str
    """`ssh-ed25519 AAAA…`, or the fingerprint of an OpenPGP key in upper case hex."""
    loc: Loc
    expires: datetime | None = None
    """Timezone-aware: what is signed from then on does not count. None: never."""


@dataclass(frozen=True, slots=True)
class TrustBundle:
    """What vouches for the workloads of another trust domain."""

    trust_domain: str
    document: str
    """A SPIFFE bundle document: JSON."""
    loc: Loc


@dataclass(frozen=True, slots=True)
class PolicySet:
    """Everything one commit says, checked and with names resolved."""

    commit: str
    """Full commit id; empty when read from a directory."""
    trust_domain: str
    host_mode: Mode
    policies: tuple[Policy, ...] = ()
    workloads: tuple[Workload, ...] = ()
    externals: tuple[External, ...] = ()
    rules: tuple[Rule, ...] = ()
    nevers: tuple[Never, ...] = ()
    tests: tuple[PolicyTest, ...] = ()
    cluster_policies: tuple[ClusterPolicy, ...] = ()
    """Those written in Kubernetes dialects, in file order."""
    istio: tuple[IstioPolicy, ...] = ()
    """Those of Istio, in file order."""
    signers: tuple[Signer, ...] = ()
    """Who may write what from the next commit on. Empty: commits need no signature."""
    nodes: tuple[Node, ...] = ()
    """The records of nodes, in file order, revoked ones included."""
    trust_bundles: tuple[TrustBundle, ...] = ()
    """What vouches for other trust domains, in file order."""
    mtls: bool = True
    """Whether rules that do not say ask for mutual TLS."""
    issuers: tuple[Issuer, ...] = ()
    """Who may sign the JWTs that rules ask for, by their names."""
    modules: tuple[RegoModule, ...] = ()
    """Rego of the repository, in file order."""
    files: tuple[str, ...] = field(default=())
    sources: Sources | None = field(default=None, repr=False, compare=False)
    """What it was read from, so that a line can be shown. Says nothing that the other fields do not."""

    @property
    def last_rule(self) -> RuleId:
        """The highest number that a rule of any language has; 0 where there is none."""
        numbers = [rule.rule_id for rule in self.rules]
        numbers += [rule.rule_id for policy in self.cluster_policies for rule in policy.rules()]
        numbers += [rule.rule_id for policy in self.istio for rule in policy.rules]
        return max(numbers, default=RuleId(0))
