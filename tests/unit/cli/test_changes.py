"""`bulkhead test` and `schema` on real repositories."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bulkhead.cli.main import run
from bulkhead.policy.schema import schema
from lab.repository import POLICIES, Change

Captured = pytest.CaptureFixture[str]


def test_the_example_passes(capfd: Captured) -> None:
    assert run(["test", str(POLICIES)]) == 0
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "15 of 15 tests hold, 1 of 1 invariants hold\n"


def test_a_failing_test_is_shown_with_its_place(repository: Path, change: Change, capfd: Captured) -> None:
    change("ports: [9000]", "ports: [9001]")
    assert run(["test", str(repository)]) == 1
    out, err = capfd.readouterr()
    assert "--> shop.yaml:27:26" in out
    assert "14 of 15 tests hold" in err
    assert run(["test", str(repository), "--rev", "HEAD"]) == 0


def test_a_broken_invariant_fails(repository: Path, change: Change, capfd: Captured) -> None:
    change("from: api, to: cache", "from: [api, web], to: cache")
    assert run(["test", str(repository), "-o", "json"]) == 1
    data = json.loads(capfd.readouterr().out)["data"]
    failed = [case["group"] for case in data if case["result"] == "failed"]
    assert failed == ["never", "tests"]


def test_a_policy_that_cannot_be_read_exits_with_two(repository: Path, change: Change, capfd: Captured) -> None:
    change("workloads:", "workload:")
    assert run(["test", str(repository)]) == 2
    assert "BH0205" in capfd.readouterr().out


def test_junit_counts_and_places_cases(repository: Path, change: Change, capfd: Captured) -> None:
    change("ports: [9000]", "ports: [9001]")
    assert run(["test", str(repository), "-o", "junit"]) == 1
    root = ElementTree.fromstring(capfd.readouterr().out)
    assert (root.get("tests"), root.get("failures"), root.get("skipped")) == ("18", "1", "0")
    (failed,) = [case for case in root.iter("testcase") if case.find("failure") is not None]
    assert failed.get("name") == "shop: web accept api:9000"
    assert (failed.get("file"), failed.get("line")) == ("shop.yaml", "27")


def test_the_schema_is_printed(capfd: Captured) -> None:
    assert run(["schema"]) == 0
    assert json.loads(capfd.readouterr().out) == schema()
