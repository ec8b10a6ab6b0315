"""One file as it was read, before its names are resolved: a function of path and content alone, so that it can be kept.

Names stay nodes, for their place. A draft holds only what was sound; what was not is in `diagnostics`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

from bulkhead.errors import Diagnostic
from bulkhead.policy.cluster import ClusterPolicy
from bulkhead.policy.istio import IstioPolicy
from bulkhead.policy.l7 import Issuer
from bulkhead.policy.l7_documents import DraftL7
from bulkhead.policy.model import Level, Match, Mode, Network, PortSpec, Requirement, Scope
from bulkhead.policy.nodes import Unknown
from bulkhead.policy.yaml_nodes import Scalar, Spot


class DraftPeer(NamedTuple):
    """Names, or labels that select workloads; never both."""

    names: tuple[Scalar, ...]
    labels: tuple[tuple[str, str], ...]
    text: str
    spot: Spot


class DraftRule(NamedTuple):
    name: Scalar
    source: DraftPeer
    destination: DraftPeer
    ports: tuple[PortSpec, ...]
    spot: Spot
    kind: str = "allow"
    expires: datetime | None = None
    owner: str = ""
    ticket: str = ""
    why: str = ""
    mtls: Scalar | None = None
    l7: DraftL7 | None = None
    authz: Scalar | None = None


class DraftWorkload(NamedTuple):
    """`match` is None when it was not sound: the name is still taken."""

    name: Scalar
    match: Match | None
    mode: Mode | None
    labels: tuple[tuple[str, str], ...]
    posture: tuple[Requirement, ...] = ()
    spiffe: str = ""


class DraftExternal(NamedTuple):
    name: Scalar
    cidr: tuple[Network, ...]
    excluded: tuple[Network, ...]
    fqdn: tuple[str, ...] = ()


class DraftTarget(NamedTuple):
    """One `PEER:PORT`, or `PEER:PORT METHOD PATH`."""

    peer: DraftPeer
    ports: tuple[PortSpec, ...]
    text: str
    spot: Spot
    method: str = ""
    path: str = ""


class DraftTest(NamedTuple):
    source: DraftPeer
    accept: tuple[DraftTarget, ...]
    deny: tuple[DraftTarget, ...]
    spot: Spot


class DraftPolicy(NamedTuple):
    name: Scalar
    level: Level
    owner: str
    spot: Spot
    workloads: tuple[DraftWorkload, ...] = ()
    externals: tuple[DraftExternal, ...] = ()
    rules: tuple[DraftRule, ...] = ()
    nevers: tuple[DraftRule, ...] = ()
    tests: tuple[DraftTest, ...] = ()
    scope: Scope | None = None


class DraftSigner(NamedTuple):
    name: str
    level: Level
    key: str
    spot: Spot
    expires: datetime | None = None


class DraftRepository(NamedTuple):
    trust_domain: str
    mode: Mode
    host_mode: Mode
    lifeline: tuple[DraftRule, ...]
    signers: tuple[DraftSigner, ...] = ()
    mtls: bool = True
    """Of rules that do not say."""
    issuers: tuple[Issuer, ...] = ()


class DraftNode(NamedTuple):
    """One `kind: Node` document. A `number` of None is the default one; a `key` of None: it runs no agent."""

    name: Scalar
    number: int | None
    key: bytes | None
    addresses: tuple[Network, ...]
    unknown: Unknown
    revoked: bool
    spot: Spot
    spots: Mapping[object, Spot]
    """Where its number, its key and its addresses are written, by their values."""
    ca: tuple[bytes, ...] = ()


class DraftTrustBundle(NamedTuple):
    """One `kind: TrustBundle` document."""

    name: Scalar
    document: str
    spot: Spot


class Draft(NamedTuple):
    """One file. Not `complete` when names that others may use are missing from it."""

    path: str
    policies: tuple[DraftPolicy, ...]
    repository: DraftRepository | None
    diagnostics: tuple[Diagnostic, ...]
    dropped: int
    """Findings beyond those in `diagnostics`."""
    complete: bool
    cluster_policies: tuple[ClusterPolicy, ...] = ()
    """Those in Kubernetes dialects, their rules not numbered yet."""
    istio: tuple[IstioPolicy, ...] = ()
    """Those of Istio, likewise."""
    nodes: tuple[DraftNode, ...] = ()
    trust_bundles: tuple[DraftTrustBundle, ...] = ()
