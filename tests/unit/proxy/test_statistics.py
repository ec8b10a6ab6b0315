"""Envoy's counters in our words."""

from __future__ import annotations

import json

import pytest

from bulkhead.errors import UnreachableError
from bulkhead.proxy.statistics import ProxyStatistics, statistics


def answer(**counters: int) -> bytes:
    entries: list[dict[str, object]] = [{"name": name, "value": value} for name, value in counters.items()]
    return json.dumps({"stats": [*entries, {"histograms": {}}]}).encode()


def test_counters_are_sorted_by_what_they_say() -> None:
    counted = statistics(
        answer(
            **{
                "listener.inbound.ssl.handshake": 3,
                "cluster.lane.ssl.handshake": 4,
                "listener.inbound.ssl.fail_verify_error": 1,
                "cluster.lane.ssl.fail_verify_san": 2,
                "listener.inbound.no_filter_chain_match": 5,
                "http.requests.rbac.deny_.policy.rule-7.denied": 6,
                "http.requests.rbac.deny_.policy.rule-7.shadow_denied": 1,
                "http.requests.rbac.allow_.policy.rule-8.allowed": 9,
                "http.requests.rbac.audit_.policy.rule-9.shadow_allowed": 2,
                "listener_manager.lds.update_rejected": 1,
                "listener.lane.downstream_cx_total": 99,
            }
        )
    )
    assert counted.handshakes == 7
    assert counted.failures == {"untrusted": 1, "wrong-peer": 2, "no-workload": 5}
    assert counted.requests == {
        ("rule-7", "deny"): 6,
        ("rule-7", "would-deny"): 1,
        ("rule-8", "allow"): 9,
        ("rule-9", "audit"): 2,
    }
    assert counted.rejected == 1


def test_nothing_counted_is_nothing() -> None:
    assert statistics(answer()) == ProxyStatistics()


@pytest.mark.parametrize("text", [b"", b"[]", b'{"stats": 1}', b"{}"])
def test_what_is_no_answer_is_told(text: bytes) -> None:
    with pytest.raises(UnreachableError):
        statistics(text)
