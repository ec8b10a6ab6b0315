"""A real Prometheus, as Debian packages it, scrapes the real exporter and answers queries about what it found."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bulkhead.observe.metrics import BulkheadCollector, ExceptionExpiry, MapFill, Measurements, serve

PROMETHEUS = shutil.which("prometheus")
PROMTOOL = shutil.which("promtool")
DEADLINE_S = 60

pytestmark = pytest.mark.skipif(PROMETHEUS is None, reason="Debian's package `prometheus` is not installed")


class Source:
    """What the exporter measures; changed by the test."""

    def __init__(self) -> None:
        self.now = Measurements(
            drops={("policy", "egress"): 23, ("raw-socket", "egress"): 5},
            would_denies={("policy", "ingress"): 7},
            edges={("deny", "egress", "shop/web", "shop/db"): 23, ("deny", "egress", "shop/web", "10.9.9.9"): 2}
            | {("would-deny", "egress", f"shop/w{number}", "shop/db"): 1 for number in range(1500)},
            names={"shop/web", "shop/db", *(f"shop/w{number}" for number in range(1500))},
            rule_hits={("shop", "web-api"): 91},
            events_lost={"event-ring": 0},
            commit="3f2c1ab",
            generation=7,
            last_load_success=time.time(),
            last_load_ok=True,
            modes={"shop/web": "enforce"},
            exceptions=(ExceptionExpiry("shop/debug", "dba", 1783000000.0),),
            maps=(MapFill("policy", 10, 100),),
            control_packets={"arp": 3},
        )
        self.scrapes = 0

    def measure(self) -> Measurements:
        self.scrapes += 1
        return self.now


@contextmanager
def exporting(source: Source) -> Iterator[int]:
    """The exporter's port, while it serves from a thread of its own."""
    loop, stop, ports = asyncio.new_event_loop(), asyncio.Event(), []
    started = threading.Event()

    async def main() -> None:
        runner = await serve(BulkheadCollector(source.measure), port=0)
        ports.append(runner.addresses[0][1])
        started.set()
        await stop.wait()
        await runner.cleanup()

    def run() -> None:
        loop.run_until_complete(main())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(10)
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def prometheus(directory: Path, exporter: int) -> Iterator[str]:
    """The address of a Prometheus that scrapes the exporter twice a second."""
    config = directory / "prometheus.yml"
    scrape = {"job_name": "bulkhead", "static_configs": [{"targets": [f"127.0.0.1:{exporter}"]}]}
    config.write_text(json.dumps({"global": {"scrape_interval": "500ms"}, "scrape_configs": [scrape]}))
    port = free_port()
    arguments = (f"--config.file={config}", f"--storage.tsdb.path={directory}/data")
    listen = f"--web.listen-address=127.0.0.1:{port}"
    assert PROMETHEUS is not None
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([PROMETHEUS, *arguments, listen], stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def query(base: str, text: str) -> list[dict[str, Any]]:
    """The series that a query gives; none while Prometheus is not up yet."""
    url = f"{base}/api/v1/query?{urllib.parse.urlencode({'query': text})}"
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            found: list[dict[str, Any]] = json.load(response)["data"]["result"]
            return found
    except urllib.error.HTTPError as error:
        error.close()
        return []
    except (urllib.error.URLError, ConnectionError):
        return []


def value(base: str, text: str, expected: float) -> float:
    """The one value of a query, once it is as expected; the last one seen when it never is."""
    deadline, last = time.monotonic() + DEADLINE_S, float("nan")
    pause = threading.Event()
    while time.monotonic() < deadline:
        found = query(base, text)
        if found:
            last = float(found[0]["value"][1])
            if last == expected:
                return last
        pause.wait(0.1)
    return last


def test_prometheus_reads_every_counter_exactly_and_within_bounds(tmp_path: Path) -> None:
    source = Source()
    with exporting(source) as port, prometheus(tmp_path, port) as base:
        expected = {
            'up{job="bulkhead"}': 1,
            'bulkhead_drops_total{reason="policy",direction="egress"}': 23,
            'bulkhead_drops_total{reason="raw-socket",direction="egress"}': 5,
            "sum(bulkhead_drops_total)": 28,
            "sum(bulkhead_would_denies_total)": 7,
            'bulkhead_policy_verdicts_total{verdict="deny",direction="egress",src="shop/web",dst="shop/db"}': 23,
            'bulkhead_policy_verdicts_total{src="shop/web",dst="other"}': 2,
            "count(bulkhead_policy_verdicts_total)": 1001,
            "sum(bulkhead_policy_verdicts_total)": 1525,
            'bulkhead_rule_hits_total{policy="shop",rule="web-api"}': 91,
            'bulkhead_policy_revision_info{sha="3f2c1ab",generation="7"}': 1,
            "bulkhead_policy_last_load_ok": 1,
            'bulkhead_workload_mode{workload="shop/web",mode="enforce"}': 1,
            'bulkhead_exception_expiry_timestamp_seconds{exception="shop/debug",owner="dba"}': 1783000000,
            'bulkhead_map_entries{map="policy"} / bulkhead_map_max_entries{map="policy"}': 0.1,
            'bulkhead_control_packets_total{kind="arp"}': 3,
            'bulkhead_events_lost_total{source="event-ring"}': 0,
        }
        assert {text: value(base, text, wanted) for text, wanted in expected.items()} == expected
        source.now = replace(source.now, drops={**source.now.drops, ("policy", "egress"): 2**40 + 1})
        text = 'bulkhead_drops_total{reason="policy",direction="egress"}'
        assert value(base, text, 2**40 + 1) == 2**40 + 1
        assert value(base, f"resets({text}[1m])", 0) == 0
    assert source.scrapes > 1


@pytest.mark.skipif(PROMTOOL is None, reason="`promtool` is not installed")
def test_promtool_finds_nothing_to_improve_in_the_metrics() -> None:
    with exporting(Source()) as port:
        body = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read()
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, "check", "metrics"], input=body, capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
