"""`bulkhead report before-after` and `workloads -o wide`: what they print, and how they exit."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from bulkhead.cli.main import run
from unit.cli.fake_agent import LOST, WORKLOADS, FakeAgent

NOW = time.time()
COMMIT = "3f2c1ab" + "0" * 33
Captured = pytest.CaptureFixture[str]


def minutes(*cells: tuple[int, str, int], **changed: Any) -> dict[str, Any]:
    """Counts of web -> db:5432, by minutes from the change ten minutes ago."""
    change = NOW - 600
    rows = [
        [int(change // 60) + minute, "egress", "shop/web", "shop/db", "", "tcp", 5432, verdict, 7 + (minute > 0), total]
        for minute, verdict, total in cells
    ]
    switch = {"commit": COMMIT, "generation": 8, "at": change, "why": "commit"}
    values = {
        "host": "web-1", "at": NOW + 600, "absent_s": 0.0, "totals": {}, "lost": LOST, "switches": [switch],
        "minutes": {"since": NOW - 7000, "cells": rows},
    }  # fmt: skip
    return values | changed


def ran(tmp_path: Path, capfd: Captured, answer: dict[str, Any], *arguments: str) -> tuple[int, str, str]:
    with FakeAgent({"minutes": answer}).running(tmp_path):
        code = run(["report", "before-after", *arguments, "--run-dir", str(tmp_path)])
    out, err = capfd.readouterr()
    return code, out, err


def test_a_path_that_fails_more_often_is_worse_with_its_bounds(tmp_path: Path, capfd: Captured) -> None:
    answer = minutes((-3, "allow", 40), (3, "allow", 20), (3, "deny", 20))
    code, out, err = ran(tmp_path, capfd, answer, "--at", "3f2c1ab", "--window", "5m")
    assert (code, err) == (1, "")
    assert out.splitlines()[1].split() == [
        "web", "db:5432", "0", "of", "40", "0.0%", "…", "8.8%", "20", "of", "40", "35.2%", "…", "64.8%", "worse",
    ]  # fmt: skip
    assert out.splitlines()[-1] == "the change made it worse"
    assert all(len(line) <= 100 for line in out.splitlines())


def test_no_difference_exits_with_zero_and_incomplete_records_with_four(tmp_path: Path, capfd: Captured) -> None:
    answer = minutes((-3, "allow", 40), (3, "allow", 40))
    assert ran(tmp_path, capfd, answer, "--at", "3f2c1ab", "--window", "5m")[0] == 0
    code, out, err = ran(tmp_path, capfd, answer | {"lost": {**LOST, "event-ring": 3}}, "--at", "3f2c1ab")
    assert code == 4
    assert "the counts show no difference" in out
    assert "incomplete: 3 events lost" in err


def test_a_time_is_a_change_too_and_json_holds_the_counts(tmp_path: Path, capfd: Captured) -> None:
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW - 600))
    answer = minutes((-3, "allow", 40), (0, "deny", 7), (3, "would-deny", 40))
    code, out, _ = ran(tmp_path, capfd, answer, "--at", at, "--window", "5m", "--to", "db", "-o", "json")
    data = json.loads(out)["data"]
    assert (code, data["commit"], len(data["edges"])) == (0, None, 1)
    assert data["total"]["after"] | {"failed_share_bounds": 0} == {
        "allowed": 0, "would_deny": 40, "refused": 0, "failed_share": 0.0, "failed_share_bounds": 0,
    }  # fmt: skip


def test_a_filter_that_nothing_matches_leaves_nothing_to_compare(tmp_path: Path, capfd: Captured) -> None:
    answer = minutes((-3, "allow", 40), (3, "deny", 40))
    code, out, _ = ran(tmp_path, capfd, answer, "--at", "3f2c1ab", "--window", "5m", "--from", "api")
    assert code == 0
    assert out.endswith("nothing was recorded around the change\n")


@pytest.mark.parametrize("moment", ["abcdef1", "yesterday", "2027-01-31T18:00:00"])
def test_what_is_neither_a_known_commit_nor_a_time_is_refused(tmp_path: Path, capfd: Captured, moment: str) -> None:
    code, out, err = ran(tmp_path, capfd, minutes(), "--at", moment)
    assert (code, out) == (2, "")
    assert f"`{moment}`" in err


VERDICTS = {
    "counted_since": NOW - 3 * 86400 - 60, "quiet_s": 5 * 3600.0 + 60, "complete": True, "deny": 0, "would_deny": 0,
    "would_deny_edges": 0, "allow_seen": 1201, "last_would_deny": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "changed", "said"),
    [
        ("observe", {}, "no would-deny for 5h"),
        ("observe", {"would_deny": 41, "would_deny_edges": 2, "last_would_deny": NOW - 10_860}, "would-deny 3h ago"),
        ("observe", {"complete": False}, "no would-deny heard of for 5h, events were lost"),
        ("enforce", {"deny": 7}, "is enforced"),
    ],
)
def test_workloads_say_what_enforcing_them_would_refuse(
    tmp_path: Path, capfd: Captured, mode: str, changed: dict[str, Any], said: str
) -> None:
    one = WORKLOADS["workloads"][0] | {"mode": mode, "verdicts": VERDICTS | changed}
    with FakeAgent({"workloads": WORKLOADS | {"workloads": [one]}}).running(tmp_path):
        assert run(["workloads", "-o", "wide", "--run-dir", str(tmp_path)]) == 0
    header, line, *more = capfd.readouterr().out.splitlines()
    assert header.split()[:7] == ["WORKLOAD", "MODE", "ALLOW", "WOULD-DENY", "EDGES", "DENY", "SINCE"]
    values = VERDICTS | changed
    counts = [str(values[key]) for key in ("would_deny", "would_deny_edges", "deny")]
    assert line.split()[:8] == ["shop/web", mode, "≥1.2k", *counts, "3d", "ago"]
    assert " ".join([line, *more]).split()[8:] == said.split()
