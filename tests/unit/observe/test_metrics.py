"""Metrics: names, labels, exactness, and how many series there can be."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bulkhead.errors import BulkheadError, KernelError
from bulkhead.observe.metrics import (
    BulkheadCollector,
    ExceptionExpiry,
    MapFill,
    Measurements,
    exposition,
    serve,
)

FULL = Measurements(
    drops={("policy", "egress"): 2**53 + 1, ("raw-socket", "egress"): 3},
    would_denies={("policy", "ingress"): 7},
    edges={("deny", "egress", "shop/web", "shop/db"): 41, ("deny", "egress", "shop/web", "10.0.0.7"): 2},
    names={"shop/web", "shop/db"},
    rule_hits={("shop", "web-api"): 5},
    rule_last_hits={("shop", "web-api"): 1000.0},
    events_lost={"event-ring": 4},
    commit="3f2c1ab",
    generation=7,
    last_load_success=123.0,
    last_load_ok=True,
    refused={"BH1101": 2},
    source_up=True,
    source_last_success=122.0,
    modes={"shop/web": "enforce", "host": "observe"},
    exceptions=(ExceptionExpiry("shop/debug", "dba", 1783000000.0),),
    maps=(MapFill("policy", 10, 100),),
    attested_cgroups=12,
    control_packets={"arp": 9},
    wire={"verified": 6},
    wire_nodes=3,
    wire_refused_nodes={"key": 2},
    wire_keys_until=4096.0,
    drifts={("hook", "repaired"): 3},
    kernel_equals_git=True,
    looked=124.0,
    isolated=("shop/web",),
)


def samples(measured: Measurements) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return scraped(BulkheadCollector(lambda: measured))


def scraped(collector: BulkheadCollector) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(exposition(collector).decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_every_measurement_is_exported_under_its_name_and_labels() -> None:
    assert samples(FULL) == {
        ("bulkhead_drops_total", (("direction", "egress"), ("reason", "policy"))): float(2**53 + 1),
        ("bulkhead_drops_total", (("direction", "egress"), ("reason", "raw-socket"))): 3.0,
        ("bulkhead_would_denies_total", (("direction", "ingress"), ("reason", "policy"))): 7.0,
        (
            "bulkhead_policy_verdicts_total",
            (("direction", "egress"), ("dst", "shop/db"), ("src", "shop/web"), ("verdict", "deny")),
        ): 41.0,
        (
            "bulkhead_policy_verdicts_total",
            (("direction", "egress"), ("dst", "other"), ("src", "shop/web"), ("verdict", "deny")),
        ): 2.0,
        ("bulkhead_policy_verdicts_overflow_edges", ()): 0.0,
        ("bulkhead_rule_hits_total", (("policy", "shop"), ("rule", "web-api"))): 5.0,
        ("bulkhead_rule_last_hit_timestamp_seconds", (("policy", "shop"), ("rule", "web-api"))): 1000.0,
        ("bulkhead_events_lost_total", (("source", "event-ring"),)): 4.0,
        ("bulkhead_policy_revision_info", (("generation", "7"), ("sha", "3f2c1ab"))): 1.0,
        ("bulkhead_policy_last_load_success_timestamp_seconds", ()): 123.0,
        ("bulkhead_policy_last_load_ok", ()): 1.0,
        ("bulkhead_policy_refused_total", (("code", "BH1101"),)): 2.0,
        ("bulkhead_policy_source_up", ()): 1.0,
        ("bulkhead_policy_source_last_success_timestamp_seconds", ()): 122.0,
        ("bulkhead_exception_expiry_timestamp_seconds", (("exception", "shop/debug"), ("owner", "dba"))): 1783000000.0,
        ("bulkhead_workload_mode", (("mode", "enforce"), ("workload", "shop/web"))): 1.0,
        ("bulkhead_workload_mode", (("mode", "observe"), ("workload", "host"))): 1.0,
        ("bulkhead_attested_cgroups", ()): 12.0,
        ("bulkhead_map_entries", (("map", "policy"),)): 10.0,
        ("bulkhead_map_max_entries", (("map", "policy"),)): 100.0,
        ("bulkhead_control_packets_total", (("kind", "arp"),)): 9.0,
        ("bulkhead_wire_total", (("outcome", "verified"),)): 6.0,
        ("bulkhead_wire_nodes", ()): 3.0,
        ("bulkhead_wire_refused_nodes", (("reason", "key"),)): 2.0,
        ("bulkhead_wire_keys_until_timestamp_seconds", ()): 4096.0,
        ("bulkhead_drift_total", (("kind", "hook"), ("outcome", "repaired"))): 3.0,
        ("bulkhead_kernel_equals_git", ()): 1.0,
        ("bulkhead_kernel_compared_timestamp_seconds", ()): 124.0,
        ("bulkhead_workload_isolated", (("workload", "shop/web"),)): 1.0,
        ("bulkhead_proxy_restarts_total", ()): 0.0,
        ("bulkhead_tls_handshakes_total", ()): 0.0,
        ("bulkhead_access_records_malformed_total", ()): 0.0,
    }


def test_a_refused_commit_shows_while_the_last_good_one_stays() -> None:
    found = samples(replace(FULL, last_load_ok=False))
    assert found["bulkhead_policy_last_load_ok", ()] == 0.0
    assert ("bulkhead_policy_revision_info", (("generation", "7"), ("sha", "3f2c1ab"))) in found


def test_nothing_measured_is_still_an_answer() -> None:
    assert samples(Measurements())["bulkhead_policy_last_load_ok", ()] == 0.0


def edges(count: int) -> dict[tuple[str, str, str, str], int]:
    return {("deny", "egress", f"w{number:05}", "db"): 1 for number in range(count)}


def names(count: int) -> set[str]:
    return {"db", *(f"w{number:05}" for number in range(count))}


def verdicts(found: dict[tuple[str, tuple[tuple[str, str], ...]], float]) -> dict[str, float]:
    return {dict(labels)["src"]: value for (name, labels), value in found.items() if name.endswith("verdicts_total")}


def test_edges_beyond_the_limit_share_one_series() -> None:
    found = samples(Measurements(edges=edges(1500), names=names(1500)))
    by_source = verdicts(found)
    assert len(by_source) == 1001
    assert by_source["_overflow"] == 500.0
    assert found["bulkhead_policy_verdicts_overflow_edges", ()] == 500.0
    assert sum(by_source.values()) == 1500.0


def test_a_series_once_shown_stays_when_earlier_names_appear() -> None:
    now = Measurements(edges={("deny", "egress", "w2", "db"): 5}, names={"w1", "w2", "db"})
    collector = BulkheadCollector(lambda: now, limit=1)
    assert verdicts(scraped(collector)) == {"w2": 5.0}
    now = replace(now, edges={**now.edges, ("deny", "egress", "w1", "db"): 3})
    assert verdicts(scraped(collector)) == {"w2": 5.0, "_overflow": 3.0}


def test_a_series_goes_with_its_workload_and_makes_room() -> None:
    now = Measurements(edges=edges(2), names=names(2))
    collector = BulkheadCollector(lambda: now, limit=1)
    assert set(verdicts(scraped(collector))) == {"w00000", "_overflow"}
    now = replace(now, edges={("deny", "egress", "w00001", "db"): 1})
    assert set(verdicts(scraped(collector))) == {"w00001"}


def test_rules_beyond_the_limit_share_one_series_and_no_last_hit() -> None:
    rules = {("shop", f"r{number:05}"): 1 for number in range(1200)}
    found = samples(Measurements(rule_hits=rules, rule_last_hits=dict.fromkeys(rules, 1.0)))
    hits = {labels: value for (name, labels), value in found.items() if name == "bulkhead_rule_hits_total"}
    assert len(hits) == 1001
    assert hits[("policy", "_overflow"), ("rule", "_overflow")] == 200.0
    last = [labels for name, labels in found if name == "bulkhead_rule_last_hit_timestamp_seconds"]
    assert len(last) == 1000


def test_a_label_cannot_break_the_format() -> None:
    name = 'a"b\\c\nbulkhead_drops_total 9'
    found = samples(Measurements(edges={("deny", "egress", name, name): 1}, names={name}))
    assert verdicts(found) == {name: 1.0}


def fetch(url: str) -> tuple[int, str, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status, response.read().decode(), response.headers["Content-Type"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers["Content-Type"]


async def served(collector: BulkheadCollector, path: str) -> tuple[int, str, str]:
    runner = await serve(collector, port=0)
    try:
        host, port = runner.addresses[0][:2]
        assert host == "127.0.0.1"
        return await asyncio.to_thread(fetch, f"http://{host}:{port}{path}")
    finally:
        await runner.cleanup()


def test_metrics_are_served_on_loopback() -> None:
    status, body, kind = asyncio.run(served(BulkheadCollector(lambda: FULL), "/metrics"))
    assert status == 200
    assert "bulkhead_attested_cgroups 12.0" in body
    assert kind == "text/plain; version=0.0.4; charset=utf-8"


def test_nothing_else_is_served() -> None:
    assert asyncio.run(served(BulkheadCollector(lambda: FULL), "/"))[0] == 404


def test_a_kernel_that_does_not_answer_is_no_empty_scrape() -> None:
    def fail() -> Measurements:
        raise KernelError("cannot read the map `refusals`")

    status, body, _ = asyncio.run(served(BulkheadCollector(fail), "/metrics"))
    assert (status, body) == (503, "cannot measure: cannot read the map `refusals`\n")


def test_an_address_in_use_is_an_error_in_words() -> None:
    async def twice() -> None:
        runner = await serve(BulkheadCollector(lambda: FULL), port=0)
        try:
            await serve(BulkheadCollector(lambda: FULL), port=runner.addresses[0][1])
        finally:
            await runner.cleanup()

    with pytest.raises(BulkheadError, match="cannot serve metrics at"):
        asyncio.run(twice())
