"""`bulkhead fmt` on real files."""

from __future__ import annotations

import io
import json
import os
import stat
import sys
from pathlib import Path

import pytest

from bulkhead.cli.main import run

HEAD = "apiVersion: bulkhead/v1alpha1\nkind: Policy\nmetadata: {name: shop}\n"
UNFORMED = HEAD + "allow:\n- {to: b, from: a,   name: x}  # why\n"
FORMED = HEAD + "allow:\n  - {name: x, from: a, to: b}  # why\n"
REFUSED = HEAD + "workloads: &all {}\n"

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A file that is not in canonical form."""
    path = tmp_path / "shop.yaml"
    path.write_text(UNFORMED)
    return path


def test_a_file_is_rewritten_and_keeps_its_mode(policy: Path, capfd: Captured) -> None:
    policy.chmod(0o640)
    assert run(["fmt", str(policy)]) == 0
    assert policy.read_text() == FORMED
    assert stat.S_IMODE(policy.stat().st_mode) == 0o640
    assert capfd.readouterr() == ("", f"{policy}: formatted\n")
    assert os.listdir(policy.parent) == ["shop.yaml"]


def test_a_file_in_form_is_not_touched(policy: Path, capfd: Captured) -> None:
    policy.write_text(FORMED)
    before = policy.stat()
    assert run(["fmt", str(policy)]) == 0
    assert (policy.stat().st_ino, policy.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert capfd.readouterr() == ("", "")


def test_a_directory_is_formatted_but_for_what_is_hidden(policy: Path) -> None:
    deeper, hidden = policy.parent / "teams/a.yml", policy.parent / ".github/workflow.yaml"
    for path in (deeper, hidden):
        path.parent.mkdir()
        path.write_text(UNFORMED)
    assert run(["fmt", str(policy.parent)]) == 0
    assert [path.read_text() == FORMED for path in (policy, deeper, hidden)] == [True, True, False]


def test_the_current_directory_is_meant_unless_another_is_named(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(policy.parent)
    assert run(["fmt"]) == 0
    assert policy.read_text() == FORMED


def test_check_writes_nothing_and_says_no(policy: Path, capfd: Captured) -> None:
    assert run(["fmt", "--check", str(policy)]) == 1
    assert policy.read_text() == UNFORMED
    assert capfd.readouterr() == ("", f"{policy}: is not in canonical form\n")
    policy.write_text(FORMED)
    assert run(["fmt", "--check", str(policy)]) == 0


def test_diff_shows_what_would_change(policy: Path, capfd: Captured) -> None:
    assert run(["fmt", "--diff", str(policy)]) == 0
    out = capfd.readouterr().out
    assert "-- {to: b, from: a,   name: x}  # why\n+  - {name: x, from: a, to: b}  # why\n" in out
    assert policy.read_text() == UNFORMED
    assert run(["fmt", "--diff", "--check", str(policy)]) == 1


def test_standard_input_goes_to_standard_output(monkeypatch: pytest.MonkeyPatch, capfd: Captured) -> None:
    for text in (UNFORMED, FORMED):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert run(["fmt", "-"]) == 0
        assert capfd.readouterr().out == FORMED


def test_a_file_that_is_refused_stays_and_the_others_are_formatted(policy: Path, capfd: Captured) -> None:
    broken = policy.parent / "broken.yaml"
    broken.write_text(REFUSED)
    assert run(["fmt", str(policy.parent)]) == 2
    assert (broken.read_text(), policy.read_text()) == (REFUSED, FORMED)
    err = capfd.readouterr().err
    assert "error[BH0104]" in err
    assert f"--> {broken}:4:12" in err


def test_a_file_that_no_repository_may_hold_is_refused(policy: Path, capfd: Captured) -> None:
    policy.write_text(UNFORMED + "#" * (1 << 20))
    assert run(["fmt", str(policy)]) == 2
    assert policy.read_text().startswith(UNFORMED)
    assert "error[BH0803]" in capfd.readouterr().err


def test_a_link_is_refused_and_stays(policy: Path, capfd: Captured) -> None:
    link = policy.parent / "link.yaml"
    link.symlink_to(policy)
    assert run(["fmt", str(link)]) == 2
    assert link.is_symlink()
    assert policy.read_text() == UNFORMED
    assert "symbolic link" in capfd.readouterr().err


def test_a_file_that_is_not_there_exits_with_three(tmp_path: Path) -> None:
    assert run(["fmt", str(tmp_path / "missing.yaml")]) == 3


def test_json_tells_what_changed(policy: Path, capfd: Captured) -> None:
    assert run(["fmt", "--check", str(policy), "-o", "json"]) == 1
    assert json.loads(capfd.readouterr().out)["data"] == [{"file": str(policy), "changed": True}]
