"""`bulkhead test`, `plan` and `schema` on real repositories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bulkhead.cli.main import run
from bulkhead.policy.schema import schema
from lab.repository import POLICIES, example_repository, git

Captured = pytest.CaptureFixture[str]
Change = Callable[[str, str], None]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The example policy, committed."""
    return example_repository(tmp_path / "repository")


@pytest.fixture
def change(repository: Path) -> Change:
    """Replaces a text of the example that stands there once."""

    def replace(old: str, new: str) -> None:
        path = repository / "shop.yaml"
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))

    return replace


def test_the_example_passes(capfd: Captured) -> None:
    assert run(["test", str(POLICIES)]) == 0
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "15 of 15 tests hold, 1 of 1 invariants hold\n"


def test_a_failing_test_is_shown_with_its_place(repository: Path, change: Change, capfd: Captured) -> None:
    change("ports: [9000]", "ports: [9001]")
    assert run(["test", str(repository)]) == 1
    out, err = capfd.readouterr()
    assert "--> shop.yaml:27:28" in out
    assert "14 of 15 tests hold" in err
    assert run(["test", str(repository), "--rev", "HEAD"]) == 0


def test_a_broken_invariant_fails(repository: Path, change: Change, capfd: Captured) -> None:
    change("from: api,   to: cache", "from: [api, web], to: cache")
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


def test_a_plan_of_nothing_is_empty(repository: Path, capfd: Captured) -> None:
    assert run(["plan", str(repository)]) == 0
    assert capfd.readouterr().out == "Plan: no changes\n"
    assert run(["plan", "HEAD..HEAD", "--repository", str(repository), "--detailed-exitcode"]) == 0


def test_a_plan_shows_reach_with_rule_and_line(repository: Path, change: Change, capfd: Captured) -> None:
    change("to: cache, ports: [6379]", "to: cache, ports: [6379, 6380]")
    change("from: users, to: web,   ports: [8080]", "from: users, to: web,   ports: [any/tcp]")
    git(repository, "commit", "-qam", "more")
    arguments = ["plan", "HEAD~1..HEAD", "--repository", str(repository)]
    assert run(arguments) == 0
    out = capfd.readouterr().out
    line = next(line for line in out.splitlines() if "6380" in line)
    assert line.split()[:5] == ["+", "shop/api", "shop/cache", "6380", "shop/api-cache"]
    assert "shop.yaml:19@" in line
    assert all(len(line) <= 100 for line in out.splitlines())
    assert run([*arguments, "--detailed-exitcode"]) == 2


def test_a_plan_in_json_is_complete(repository: Path, change: Change, capfd: Captured) -> None:
    change("mode: enforce}    # redis", "mode: observe}")
    change("cidr: [10.9.0.0/24]", "cidr: [10.9.0.0/25]")
    change("name: host-web", "name: local-web")
    assert run(["plan", str(repository), "-o", "json"]) == 0
    data = json.loads(capfd.readouterr().out)["data"]
    (lost,) = data["reach"]
    assert (lost["change"], lost["from"], lost["to"]) == ("lost", "within shop/admins", "host")
    assert [rule["name"] for rule in lost["rules"]] == ["hosts/lifeline-1"]
    assert data["addresses"] == [{"external": "shop/admins", "gained": [], "lost": ["10.9.0.128/25"]}]
    found = {(one["kind"], one["name"], one["what"], one["effect"]) for one in data["altered"]}
    assert ("workload", "shop/cache", "changed", True) in found
    assert ("allow", "shop/local-web", "added", False) in found
    assert ("allow", "shop/host-web", "removed", False) in found


def test_a_plan_for_github_lets_no_text_become_markup(repository: Path, change: Change, capfd: Captured) -> None:
    change("why: customer data is read by the API alone", 'why: "`|</details> @everybody"')
    assert run(["plan", str(repository), "-o", "github"]) == 0
    out = capfd.readouterr().out
    (row,) = [line for line in out.splitlines() if "@everybody" in line]
    assert "`why: customer data is read by the API alone -> '\\|</details> @everybody`" in row
    assert out.startswith("### Policy plan\n")


def test_a_commit_that_would_be_refused_has_no_plan(repository: Path, change: Change, capfd: Captured) -> None:
    change("ports: [9000]", "ports: [9001]")
    assert run(["plan", str(repository)]) == 2
    assert run(["plan", str(repository), "--detailed-exitcode"]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert "BH0502" in err


@pytest.mark.parametrize(("text", "status"), [("nowhere", 2), ("a...b", 2), ("missing..HEAD", 3)])
def test_a_range_that_names_nothing_is_refused(repository: Path, capfd: Captured, text: str, status: int) -> None:
    assert run(["plan", text, "--repository", str(repository)]) == status
    assert capfd.readouterr().out == ""


def test_the_schema_is_printed(capfd: Captured) -> None:
    assert run(["schema"]) == 0
    assert json.loads(capfd.readouterr().out) == schema()
