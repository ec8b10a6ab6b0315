"""What Istio's security policies say, as typed values: AuthorizationPolicy and PeerAuthentication.

Texts are kept as they were written, checked by the readers in `policy.dialects`; what they mean for one request is
written once, in `dataplane.istio_conditions`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Final

from bulkhead.errors import Loc
from bulkhead.policy.model import Level, Network, RuleId, Workload

ROOT_NAMESPACE: Final = "istio-system"
"""Policies of this namespace are about every namespace."""

UNNUMBERED: Final = RuleId(0)
"""Of rules in a file that was read by itself."""

Texts = tuple[str, ...]
Networks = tuple[Network, ...]

ONE_SEGMENT: Final = "{*}"
ANY_SEGMENTS: Final = "{**}"
"""In a path: one segment, and any number of them."""


class Action(StrEnum):
    """What a policy does with what its rules match, in the order in which they are asked."""

    CUSTOM = "CUSTOM"
    DENY = "DENY"
    ALLOW = "ALLOW"
    AUDIT = "AUDIT"


class Mode(StrEnum):
    """What a PeerAuthentication asks of those who connect."""

    UNSET = "UNSET"
    """What the next wider scope says."""
    DISABLE = "DISABLE"
    PERMISSIVE = "PERMISSIVE"
    STRICT = "STRICT"


@dataclass(frozen=True, slots=True)
class Source:
    """One entry of `from`: all fields hold, of a field one value, of a `not` field none. Empty: anything."""

    principals: Texts = ()
    not_principals: Texts = ()
    request_principals: Texts = ()
    not_request_principals: Texts = ()
    namespaces: Texts = ()
    not_namespaces: Texts = ()
    service_accounts: Texts = ()
    not_service_accounts: Texts = ()
    trust_domains: Texts = ()
    not_trust_domains: Texts = ()
    ip_blocks: Networks = ()
    not_ip_blocks: Networks = ()
    remote_ip_blocks: Networks = ()
    not_remote_ip_blocks: Networks = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """One entry of `to`, read like a source."""

    hosts: Texts = ()
    not_hosts: Texts = ()
    ports: tuple[int, ...] = ()
    not_ports: tuple[int, ...] = ()
    methods: Texts = ()
    not_methods: Texts = ()
    paths: Texts = ()
    not_paths: Texts = ()


@dataclass(frozen=True, slots=True)
class When:
    """One entry of `when`: an attribute is one of the values, and none of the others."""

    key: str
    """Without what stands in brackets."""
    names: Texts
    """What stands in brackets: a header in lower case, or the path of a claim."""
    values: Texts = ()
    not_values: Texts = ()


@dataclass(frozen=True, slots=True)
class IstioRule:
    """One rule: one of the sources, one of the operations, and every condition. None written: anything."""

    rule_id: RuleId
    name: str
    """By its place, `rule-1`."""
    loc: Loc
    sources: tuple[Source, ...] = ()
    operations: tuple[Operation, ...] = ()
    when: tuple[When, ...] = ()

    def terms(self) -> Iterator[dict[str, tuple[object, ...]]]:
        """What is written in each source, operation and condition, by the API's names of the fields."""
        matches: tuple[Source | Operation, ...] = (*self.sources, *self.operations)
        for one in matches:
            written = ((field.name, getattr(one, field.name)) for field in fields(one))
            yield {_key(name): values for name, values in written if values}
        for when in self.when:
            key = when.key + "".join(f"[{name}]" for name in when.names)
            yield {name: values for name, values in ((key, when.values), (f"not {key}", when.not_values)) if values}


@dataclass(frozen=True, slots=True)
class AuthorizationPolicy:
    """Who may request what of the workloads that it selects."""

    name: str
    namespace: str
    labels: tuple[tuple[str, str], ...]
    """Of the workloads that it selects, sorted by key. Empty: every workload of the namespace."""
    action: Action
    provider: str
    """CUSTOM: the Rego package that is asked."""
    dry_run: bool
    rules: tuple[IstioRule, ...]
    loc: Loc

    @property
    def qualified(self) -> str:
        """`authz/NAMESPACE/NAME`: how its rules are called, before `/RULE`."""
        return f"authz/{self.namespace}/{self.name}"

    @property
    def decides(self) -> bool:
        """Whether it can change a verdict."""
        return not self.dry_run and self.action is not Action.AUDIT


@dataclass(frozen=True, slots=True)
class PeerAuthentication:
    """Whether those who connect to the workloads that it selects must prove who they are."""

    name: str
    namespace: str
    labels: tuple[tuple[str, str], ...]
    mode: Mode
    ports: tuple[tuple[int, Mode], ...]
    """Of single ports of those workloads, in place of `mode`."""
    loc: Loc
    rules: tuple[IstioRule, ...] = ()
    """It has none."""

    @property
    def qualified(self) -> str:
        """`peerauth/NAMESPACE/NAME`."""
        return f"peerauth/{self.namespace}/{self.name}"


IstioPolicy = AuthorizationPolicy | PeerAuthentication


def selects(policy: IstioPolicy, workload: Workload) -> bool:
    """Whether a workload of hosts is one that the policy is about: its namespace is the native policy's name."""
    if workload.match.of_pods or policy.namespace not in (ROOT_NAMESPACE, workload.policy):
        return False
    carried = dict(workload.labels)
    return all(carried.get(key) == value for key, value in policy.labels)


def _key(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(other.capitalize() for other in others)


def level_of(namespace: str) -> Level:
    """Who may write a policy of a namespace: what is about every namespace binds other teams."""
    return Level.GUARDRAIL if namespace == ROOT_NAMESPACE else Level.APP
