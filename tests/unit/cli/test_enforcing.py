"""`bulkhead enforce | observe` on real work trees, with what an agent would say."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bulkhead.cli.main import run
from lab.repository import git
from unit.cli.fake_agent import FakeAgent, record

Captured = pytest.CaptureFixture[str]
REPOSITORY = "apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: example.org\n"
SHOP = """\
apiVersion: bulkhead/v1alpha1
kind: Policy
metadata: {name: shop}
workloads:
  web: {match: {unit: nginx.service}}  # ours
  db: {match: {host: "db-*", unit: db.service}, mode: observe}
externals:
  office: {cidr: [10.0.2.0/29]}
allow:
  - {name: web-office, from: web, to: office, ports: [443]}
  - {name: office-db, from: office, to: db, ports: [5432]}
"""
ENFORCED = SHOP.replace("nginx.service}}", "nginx.service}, mode: enforce}")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    directory = tmp_path / "policy"
    directory.mkdir()
    (directory / "bulkhead.yaml").write_text(REPOSITORY)
    (directory / "shop.yaml").write_text(SHOP)
    git(directory, "init", "-q")
    git(directory, "add", ".")
    git(directory, "commit", "-qm", "shop")
    return directory


def seen(port: int = 443, **changed: Any) -> dict[str, Any]:
    """nginx on web-1 to an address outside."""
    now = time.time()
    values = {
        "source": "shop/web", "destination": "world", "destination_identity": 3, "destination_address": "10.0.2.7",
        "verdict": "would-deny", "port": port, "process_end": "source", "last_seen": now - 190, "commit": "",
    }  # fmt: skip
    return record(now, **values | changed)


def answer(*records: dict[str, Any], lost: int = 0, age_s: float = 3 * 86400.0, **log: Any) -> dict[str, Any]:
    now = time.time()
    told = {"host": "web-1", "at": now, "since": now - age_s, "absent_s": 0.0, "filter": "none"} | log
    return {"records": list(records), "lost": {"event-ring": lost}, "totals": {"allow": 1000}, "log": told}


@contextmanager
def agent(tmp_path: Path, *records: dict[str, Any], **changed: Any) -> Iterator[list[str]]:
    """Arguments that ask an agent which recorded this."""
    with FakeAgent({"flows": answer(*records, **changed)}).running(tmp_path):
        yield ["--run-dir", str(tmp_path)]


def shop(tree: Path) -> str:
    return (tree / "shop.yaml").read_text()


def test_a_workload_that_would_lose_nothing_is_enforced(tmp_path: Path, tree: Path, capfd: Captured) -> None:
    with agent(tmp_path, seen(443)) as asked:
        assert run(["enforce", "web", "--directory", str(tree), *asked]) == 0
    assert shop(tree) == ENFORCED
    out, err = capfd.readouterr()
    head = subprocess.run(["git", "-C", str(tree), "rev-parse", "HEAD"], capture_output=True, text=True).stdout[:7]
    assert out == f"shop/web: observe -> enforce  shop.yaml:5 on {head}\n"
    assert f"git -C {tree} commit -am 'enforce shop/web'" in err
    assert "bulkhead plan HEAD~1..HEAD" in err and "bulkhead try HEAD" in err


def test_a_workload_that_would_lose_recorded_traffic_is_not(tmp_path: Path, tree: Path, capfd: Captured) -> None:
    with agent(tmp_path, seen(443), seen(80, count=212)) as asked:
        arguments = ["enforce", "shop/web", "--directory", str(tree), *asked]
        assert run(arguments) == 1
        assert run([*arguments, "--accept-incomplete", "I know"]) == 1
        assert run([*arguments, "--since", "2m"]) == 1  # nothing was recorded of it in that time
        assert run([*arguments, "--since", "2m", "--accept-incomplete", "I know"]) == 0
    err = capfd.readouterr().err
    assert "refused: breaks shop/web -> shop/office (10.0.2.7) 80/tcp: 212 events, last 3 min ago\n" in err
    assert "`bulkhead suggest` writes rules" in err


def test_a_rule_that_has_been_added_since_makes_it_ready(tmp_path: Path, tree: Path) -> None:
    path = tree / "shop.yaml"
    path.write_text(SHOP.replace("ports: [443]", "ports: [80, 443]"))
    with agent(tmp_path, seen(80)) as asked:
        assert run(["enforce", "web", "--directory", str(tree), *asked]) == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SHOP + 'tests:\n  - {from: web, accept: ["db:5432"]}\n', "BH0502"),
        (
            SHOP + "exceptions:\n  - {name: old, from: office, to: web, ports: [22], expires: 2020-01-01T00:00:00Z, "
            "owner: a, ticket: b}\n",
            "BH1004",
        ),
    ],
)
def test_a_policy_that_fails_its_checks_is_not_enforced(
    tmp_path: Path, tree: Path, capfd: Captured, text: str, said: str
) -> None:
    (tree / "shop.yaml").write_text(text)
    with agent(tmp_path, seen(443)) as asked:
        assert run(["enforce", "web", "--directory", str(tree), "--accept-incomplete", "x", *asked]) == 1
    assert said in capfd.readouterr().err
    assert shop(tree) == text


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"age_s": 3600.0}, "the log reaches back 1 h, not 24 h"),
        ({"absent_s": 600.0}, "no agent kept it for 10 min of its time"),
        ({"lost": 20}, "2.0% of events were lost"),
        ({"filter": "from=web"}, "only what matches from=web was exported"),
    ],
)
def test_incomplete_records_need_a_reason_which_is_recorded(
    tmp_path: Path, tree: Path, capfd: Captured, changed: dict[str, Any], said: str
) -> None:
    with agent(tmp_path, seen(443), **changed) as asked:
        arguments = ["enforce", "web", "--directory", str(tree), *asked]
        assert run(arguments) == 1
        assert f"refused: {said}" in capfd.readouterr().err.replace("1 d", "24 h")
        assert shop(tree) == SHOP
        assert run([*arguments, "--accept-incomplete", "a new\nhost: # no"]) == 0
    assert shop(tree) == ENFORCED.replace("  web:", "  # enforced on incomplete data: a new host: # no\n  web:")
    err = capfd.readouterr().err
    assert "--trailer 'Bulkhead-Incomplete-Data: a new host: # no'" in err
    assert f"incomplete, accepted: {said}" in err.replace("1 d", "24 h")


def test_few_lost_events_are_none(tmp_path: Path, tree: Path) -> None:
    with agent(tmp_path, seen(443), lost=10) as asked:
        assert run(["enforce", "web", "--directory", str(tree), *asked]) == 0


def test_an_agent_that_does_not_answer_is_incomplete(tmp_path: Path, tree: Path, capfd: Captured) -> None:
    arguments = ["enforce", "web", "--directory", str(tree), "--run-dir", str(tmp_path)]
    assert run(arguments) == 1
    assert "refused: the agent does not tell what it recorded" in capfd.readouterr().err
    assert run([*arguments, "--accept-incomplete", "no agent here"]) == 0
    assert shop(tree) == ENFORCED.replace("  web:", "  # enforced on incomplete data: no agent here\n  web:")


def test_a_workload_of_another_host_is_not_judged_by_this_one(tmp_path: Path, tree: Path, capfd: Captured) -> None:
    with agent(tmp_path, seen(443)) as asked:
        assert run(["enforce", "db", "--directory", str(tree), *asked]) == 1
    assert "shop/db cannot be on web-1, where the records are from" in capfd.readouterr().err


def test_what_nobody_can_name_is_not_taken_for_harmless(tmp_path: Path, tree: Path, capfd: Captured) -> None:
    nobody = seen(80, destination="unknown", destination_identity=0)
    with agent(tmp_path, seen(443), nobody) as asked:
        assert run(["enforce", "web", "--directory", str(tree), *asked]) == 1
    assert "cannot be decided" in capfd.readouterr().err


def test_observe_asks_nobody_and_json_tells_all(tmp_path: Path, tree: Path, capfd: Captured) -> None:
    (tree / "shop.yaml").write_text(ENFORCED)
    assert run(["observe", "web", "db", "--directory", str(tree), "-o", "json"]) == 0
    data = json.loads(capfd.readouterr().out)["data"]
    assert [(one["workload"], one["before"], one["after"]) for one in data["changes"]] == [
        ("shop/web", "enforce", "observe")
    ]
    assert shop(tree) == ENFORCED.replace("mode: enforce", "mode: observe")


@pytest.mark.parametrize(
    ("name", "said"),
    [("wbe", "did you mean `web`?"), ("host", "`hosts.mode` in bulkhead.yaml"), ("office", "no workload is called")],
)
def test_a_name_of_no_workload_is_refused(tree: Path, capfd: Captured, name: str, said: str) -> None:
    assert run(["observe", name, "--directory", str(tree)]) == 2
    assert said in capfd.readouterr().err
    assert shop(tree) == SHOP
