"""What Kubernetes policies say, whichever dialect they were written in, as typed values.

`NetworkPolicy`, `AdminNetworkPolicy`, `BaselineAdminNetworkPolicy` and `ClusterNetworkPolicy` differ in words, defaults
and precedence, not in substance: a policy has a subject, and for each direction an ordered list of rules with an
action. The readers in `policy.dialects` turn every default into what it stands for, so that nothing behind them knows
dialects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from bulkhead.errors import Loc
from bulkhead.policy.model import Level, Network, RuleId


class Tier(IntEnum):
    """Which policies are asked first; a tier that does not decide passes the question on."""

    ADMIN = 0
    """ClusterNetworkPolicy of tier Admin, AdminNetworkPolicy: by priority, the first rule that matches decides."""
    NAMESPACE = 1
    """NetworkPolicy: a pod that any of them selects is reached by what one of them allows, and by nothing else."""
    BASELINE = 2
    """ClusterNetworkPolicy of tier Baseline, BaselineAdminNetworkPolicy: like ADMIN, asked last."""


class Action(StrEnum):
    """What a rule does with what it matches."""

    ACCEPT = "Accept"
    DENY = "Deny"
    PASS = "Pass"
    """Leave the tier: the next one decides."""


class Operator(StrEnum):
    """How a requirement holds a label against its values."""

    IN = "In"
    NOT_IN = "NotIn"
    """Also when the label is absent."""
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


@dataclass(frozen=True, slots=True)
class Requirement:
    """One term of a label selector."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether labels satisfy it."""
        if self.operator is Operator.EXISTS:
            return self.key in labels
        if self.operator is Operator.DOES_NOT_EXIST:
            return self.key not in labels
        return (labels.get(self.key) in self.values) is (self.operator is Operator.IN)


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """Requirements that all must hold; `matchLabels` are requirements with `In` and one value. None: everything."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether labels satisfy every requirement."""
        return all(requirement.holds(labels) for requirement in self.requirements)


@dataclass(frozen=True, slots=True)
class PodPeer:
    """Pods by their labels, in namespaces by theirs. `namespaces` None: the namespace of the policy itself."""

    namespaces: LabelSelector | None
    pods: LabelSelector


@dataclass(frozen=True, slots=True)
class NodePeer:
    """Nodes by their labels, and pods that use their network."""

    nodes: LabelSelector


@dataclass(frozen=True, slots=True)
class NetworkPeer:
    """Addresses, whoever has them, pods and nodes included."""

    network: Network
    excluded: tuple[Network, ...] = ()


ClusterPeer = PodPeer | NodePeer | NetworkPeer


@dataclass(frozen=True, slots=True)
class ClusterPort:
    """Ports of the end that is connected to.

    `protocol` is an IP protocol number; None only with `name`, when any protocol under that name will do. `name`, when
    not empty, stands for the port that the receiving pod gives that name (with that protocol), `first` and `last` are 0
    then; a pod without it is not matched.
    """

    protocol: int | None
    first: int = 0
    last: int = 65535
    name: str = ""


@dataclass(frozen=True, slots=True)
class ClusterRule:
    """One rule of one direction. `peers` None: everybody, inside the cluster and outside. `ports` None: every port
    of every protocol. An empty tuple matches nothing."""

    rule_id: RuleId
    name: str
    """Of the rule within its policy: its own, else `ingress-1`, `egress-2`, by position."""
    action: Action
    peers: tuple[ClusterPeer, ...] | None
    ports: tuple[ClusterPort, ...] | None
    loc: Loc
    peers_text: str = ""
    """Both as they are shown to people, in a few words."""
    ports_text: str = ""


@dataclass(frozen=True, slots=True)
class ClusterPolicy:
    """One policy of one dialect."""

    kind: str
    """As written, such as `NetworkPolicy`."""
    name: str
    namespace: str
    """Empty for policies of the whole cluster."""
    tier: Tier
    priority: int
    """Lower first, in the tiers that have an order; 0 for NetworkPolicy."""
    subject: PodPeer
    """Whom it governs."""
    ingress: tuple[ClusterRule, ...] | None
    """None: it says nothing about this direction. Empty, in the tier NAMESPACE: nothing is let in."""
    egress: tuple[ClusterRule, ...] | None
    loc: Loc
    unheard: tuple[Loc, ...] = ()
    """Rules that are written for a direction which `policyTypes` leaves out: they say nothing."""

    def rules(self) -> tuple[ClusterRule, ...]:
        """Those of both directions."""
        return (*(self.ingress or ()), *(self.egress or ()))

    @property
    def qualified(self) -> str:
        """Such as `netpol/shop/web` or `cnp/lockdown`: how rules of it are called, before `/RULE`."""
        short = SHORT_NAMES[self.kind]
        return f"{short}/{self.namespace}/{self.name}" if self.namespace else f"{short}/{self.name}"

    @property
    def level(self) -> Level:
        """Who may write it."""
        return level_of(self.kind)


def level_of(kind: str) -> Level:
    """Who may write policies of a kind: those of one namespace are the application's, others bind all namespaces."""
    return Level.APP if kind == "NetworkPolicy" else Level.GUARDRAIL


SHORT_NAMES = {
    "NetworkPolicy": "netpol",
    "AdminNetworkPolicy": "anp",
    "BaselineAdminNetworkPolicy": "banp",
    "ClusterNetworkPolicy": "cnp",
}
"""The API's own abbreviations."""
