"""Metrics of mutual TLS: SVIDs and their ends, handshakes, requests by rule, and how much goes through the proxy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import Metric

from bulkhead.observe.families import counter, gauge


@dataclass(frozen=True, slots=True)
class MeshMeasurements:
    """What is exported of it at one moment. Times are Unix seconds."""

    svid_issued: Mapping[str, float] = field(default_factory=dict)
    """When the SVID of each workload was made."""
    svid_expires: Mapping[str, float] = field(default_factory=dict)
    issued: Mapping[str, int] = field(default_factory=dict)
    """Certificates and tokens since the identity process started, by kind."""
    refused_callers: Mapping[str, int] = field(default_factory=dict)
    """Callers of the Workload API, by reason."""
    handshakes: int = 0
    handshake_failures: Mapping[str, int] = field(default_factory=dict)
    """By reason."""
    requests: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Judged by the proxy, by (rule, outcome)."""
    conversations: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """With workloads of other nodes, by (`mtls` or `plaintext`, verdict); from events, which are samples."""
    records: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Access records, by (kind, verdict)."""
    records_malformed: int = 0
    proxy_up: bool | None = None
    """None: nothing needs it."""
    proxy_restarts: int = 0
    rego: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Decisions by (package, outcome)."""


def mesh_families(now: MeshMeasurements) -> Iterator[Metric]:
    """All families."""
    yield from _svids(now)
    yield from _proxy(now)
    text = "Decisions of Rego packages about requests."
    yield counter("bulkhead_rego_decisions", text, ("package", "outcome"), now.rego)


def _svids(now: MeshMeasurements) -> Iterator[Metric]:
    issued = {(name,): at for name, at in now.svid_issued.items()}
    name = "bulkhead_svid_issued_timestamp_seconds"
    yield gauge(name, "When the SVID of a workload was made.", ("workload",), issued)
    expires = {(name,): at for name, at in now.svid_expires.items()}
    name = "bulkhead_svid_expiry_timestamp_seconds"
    yield gauge(name, "When the SVID of a workload expires, unless it is made anew.", ("workload",), expires)
    made = {(kind,): count for kind, count in now.issued.items()}
    yield counter("bulkhead_svids_issued", "Certificates and tokens made, by kind.", ("kind",), made)
    text = "Callers of the Workload API that got nothing, by reason."
    refused = {(reason,): count for reason, count in now.refused_callers.items()}
    yield counter("bulkhead_workload_api_refusals", text, ("reason",), refused)


def _proxy(now: MeshMeasurements) -> Iterator[Metric]:
    up = {} if now.proxy_up is None else {(): float(now.proxy_up)}
    yield gauge("bulkhead_proxy_up", "1 while the proxy serves what the commit needs it for.", (), up)
    yield counter("bulkhead_proxy_restarts", "Times the proxy had to be started again.", (), {(): now.proxy_restarts})
    yield counter("bulkhead_tls_handshakes", "TLS handshakes with other proxies.", (), {(): now.handshakes})
    failures = {(reason,): count for reason, count in now.handshake_failures.items()}
    text = "TLS handshakes with other proxies that failed, by reason."
    yield counter("bulkhead_tls_handshake_failures", text, ("reason",), failures)
    text = "Requests judged by the proxy, by rule and outcome."
    yield counter("bulkhead_requests", text, ("rule", "outcome"), now.requests)
    text = "Conversations with workloads of other nodes that were heard of, by transport; samples."
    yield counter("bulkhead_conversations", text, ("transport", "verdict"), now.conversations)
    text = "Access records of the proxy, by kind and verdict."
    yield counter("bulkhead_access_records", text, ("kind", "verdict"), now.records)
    text = "Access records that could not be read."
    yield counter("bulkhead_access_records_malformed", text, (), {(): now.records_malformed})
