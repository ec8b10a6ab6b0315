"""`bulkhead suggest`: where it takes records from, and where it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bulkhead.cli.main import run
from unit.cli.fake_agent import FakeAgent
from unit.observe.flow_records import NOW, answer, flow

Captured = pytest.CaptureFixture[str]
RECORDS = (flow("@nginx", "10.0.0.8", 443), flow("@backup", "10.0.0.9", 22, count=1, last_seen=NOW - 7200))


@pytest.fixture
def export(tmp_path: Path) -> Path:
    path = tmp_path / "flows.json"
    path.write_text(json.dumps({"apiVersion": "bulkhead/v1", "kind": "Flows", "data": answer(RECORDS)}))
    return path


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    directory = tmp_path / "empty"
    directory.mkdir()
    return directory


def test_an_agent_and_its_export_suggest_the_same(tmp_path: Path, empty: Path, export: Path, capfd: Captured) -> None:
    arguments = ["suggest", "--directory", str(empty)]
    with FakeAgent({"flows": answer(RECORDS)}).running(tmp_path):
        assert run([*arguments, "--run-dir", str(tmp_path)]) == 0
    told, err = capfd.readouterr()
    assert "2 rules from 2 edges, recorded in 2 d on web-1" in err
    assert "LOW confidence: backup -> backup-to-22 22 (seen once)" in err
    assert run([*arguments, "--flows", str(export)]) == 0
    assert capfd.readouterr().out.partition("\n")[2] == told.partition("\n")[2]


def test_a_file_is_written_once_and_never_over_another(empty: Path, export: Path, capfd: Captured) -> None:
    target = empty / "new.yaml"
    arguments = ["suggest", "--directory", str(empty), "--flows", str(export), "-o", str(target)]
    assert run(arguments) == 0
    out, err = capfd.readouterr()
    assert (out, target.read_text().count("\n  - {name: ")) == ("", 2)
    assert f"wrote {target}" in err
    assert run(arguments) == 2
    assert "exists" in capfd.readouterr().err
    (empty / "bulkhead.yaml").write_text("apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: example.org\n")
    for check in ("lint", "test"):
        assert run([check, str(empty)]) == 0
    assert run(["fmt", "--check", str(empty)]) == 0
    assert run(["suggest", "--directory", str(empty), "--flows", str(export)]) == 0
    assert "nothing to suggest" in capfd.readouterr().err


def test_only_the_period_that_is_asked_about_counts(empty: Path, export: Path, capfd: Captured) -> None:
    assert run(["suggest", "--directory", str(empty), "--flows", str(export), "--since", "1h"]) == 0
    out = capfd.readouterr().out
    assert "nginx" in out and "backup" not in out
    assert "# Recorded: 1 h of the 1 h that were asked about" in out
    assert run(["suggest", "--directory", str(empty), "--flows", str(export), "--since", "7d"]) == 0
    assert "incomplete: the log reaches back 2 d, not 7 d" in capfd.readouterr().err


def test_a_broken_policy_and_a_broken_export_are_refused(empty: Path, export: Path, capfd: Captured) -> None:
    (empty / "x.yaml").write_text("apiVersion: bulkhead/v1alpha1\nkind: Policy\n")
    assert run(["suggest", "--directory", str(empty), "--flows", str(export)]) == 2
    export.write_text('{"kind": "Flows", "data": {"records": []}}')
    assert run(["suggest", "--directory", str(empty), "--flows", str(export)]) == 2
    assert capfd.readouterr().out == ""
