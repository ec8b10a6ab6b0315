"""`bulkhead plan` on real repositories, with what an agent would say."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bulkhead.cli.main import run
from bulkhead.cli.plan.markdown import COMMENT_MAX
from lab.repository import Change, git
from unit.cli.fake_agent import LOST, FakeAgent, record

Captured = pytest.CaptureFixture[str]
Plan = Callable[..., str]


def test_a_plan_of_nothing_is_empty(repository: Path, capfd: Captured) -> None:
    assert run(["plan", str(repository)]) == 0
    assert capfd.readouterr().out == "Plan: no changes\n"
    assert run(["plan", "HEAD..HEAD", "--repository", str(repository), "--detailed-exitcode"]) == 0


def test_a_plan_shows_reach_with_rule_and_line(repository: Path, change: Change, capfd: Captured) -> None:
    change("to: cache, ports: [6379]", "to: cache, ports: [6379, 6380]")
    change("from: users, to: web, ports: [8080]", "from: users, to: web, ports: [any/tcp]")
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
    change("mode: enforce}  # redis", "mode: observe}")
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
    (row,) = [line for line in out.splitlines() if "&#64;everybody" in line]
    assert "&#96;&#124;&#60;/details&#62; &#64;everybody" in row
    assert "@everybody" not in out
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


# What was recorded


def seen(source: str, destination: str, port: int, **more: Any) -> dict[str, Any]:
    """A record of two workloads of the example; the process is known at the source."""
    names = {"source": f"shop/{source}", "destination": f"shop/{destination}", "cgroup": f"/shop/{source}"}
    now = time.time()
    times = {"first_seen": now - 120, "last_seen": now - 90}
    verdict = {"verdict": "allow", "reason": "none", "process_end": "source", "commit": ""}
    return record(now, **(names | times | verdict | {"port": port, "count": 3} | more))


def log(*records: dict[str, Any], age_s: float = 86400, **more: Any) -> dict[str, Any]:
    """The answer of an agent that has kept its log for so long."""
    now = time.time()
    kept = {"host": "web-1", "at": now, "since": now - age_s, "absent_s": 0.0, "filter": "none"}
    return {"records": list(records), "totals": {}, "lost": LOST, "log": kept | more}


def end(name: str, port: int, comm: str = "", pid: int = 0, address: str = "127.0.0.1") -> dict[str, Any]:
    process = {"name": f"shop/{name}", "cgroup": f"/shop/{name}", "exe": "/bin/x", "uid": 0, "gid": 0}
    known = process | {"comm": comm, "pid": pid} if name else None
    return {"address": address, "port": port, "process": known}


def talking(*pairs: tuple[dict[str, Any], dict[str, Any]], **more: Any) -> dict[str, Any]:
    rows = [{"source": source, "destination": destination} for source, destination in pairs]
    return {"host": "web-1", "complete": True, "omitted": 0, "unattested": 0, "conversations": rows} | more


CACHED = (end("api", 40000, "python3", 812), end("cache", 6379, "redis", 99))


@pytest.fixture
def withdrawn(repository: Path, change: Change) -> Path:
    """The example, whose last commit takes the cache from the API and gives it to the web another port."""
    change("  - {name: api-cache, from: api, to: cache, ports: [6379]}\n", "")
    change('accept: ["cache:6379"], deny: ["web:8080", ', 'deny: ["web:8080", ')
    change("ports: [9000]", "ports: [9000, 9443]")
    git(repository, "commit", "-qam", "withdraw", "--author=Ann Other <ann@example.org>")
    return repository


@pytest.fixture
def plan(withdrawn: Path, tmp_path: Path, capfd: Captured) -> Plan:
    """Runs `plan` of the last commit beside an agent with these answers; its output."""

    def ask(answers: dict[str, Any], *arguments: str, status: int = 0) -> str:
        given = ["plan", "HEAD~1..HEAD", "--repository", str(withdrawn), *arguments, "--run-dir", str(tmp_path)]
        with FakeAgent(answers).running(tmp_path):
            assert run(given) == status
        return capfd.readouterr().out

    return ask


def test_a_table_tells_what_breaks_and_who_did_it(plan: Plan) -> None:
    answers = {"flows": log(seen("api", "cache", 6379)), "conversations": talking(CACHED)}
    out = plan(answers, "--replay", "1h")
    lines = out.splitlines()
    assert lines[1].startswith("!  shop/api  shop/cache  6379  BREAKS 3 flows, 1 live")
    assert "python3[812]" in out
    assert "127.0.0.1:6379" in out
    assert "last seen 2 min ago" in " ".join(out.split())
    assert "removed by Ann Other" in out
    (gained,) = [line for line in lines if line.startswith("+  shop/web")]
    assert "unused" in gained
    assert "data 1 h of 1 h on web-1, live sockets of web-1; 1 record and 1 live socket judged; complete" in " ".join(
        out.split()
    )
    assert "tests 14/14  never 1/1" in out
    assert lines[-1] == "Plan: rules 1 changed, 1 removed; reach 1 gained, 1 lost; 1 BREAKING"
    assert all(len(line) <= 100 for line in lines)


def test_json_has_edges_authors_and_sources(plan: Plan) -> None:
    answers = {"flows": log(seen("api", "cache", 6379)), "conversations": talking(CACHED)}
    data = json.loads(plan(answers, "--replay", "1h", "-o", "json"))["data"]
    (edge,) = data["recorded"]["edges"]
    assert (edge["effect"], edge["flows"]) == ("breaks", 3)
    assert edge["live_sockets"] == [{"process": "python3[812]", "peer": "127.0.0.1:6379"}]
    author = edge["rule"]["author"]
    assert (author["name"], len(author["commit"])) == ("Ann Other", 40)
    assert data["recorded"]["complete"] is True
    assert data["breaking"] == 1
    assert {one["to"]: one["traffic"]["flows"] for one in data["reach"]} == {"shop/api": 0, "shop/cache": 3}


def test_junit_fails_what_breaks(plan: Plan) -> None:
    answers = {"flows": log(seen("api", "cache", 6379)), "conversations": talking(CACHED)}
    root = ElementTree.fromstring(plan(answers, "--replay", "1h", "-o", "junit"))
    assert (root.get("tests"), root.get("failures")) == ("3", "1")
    (failed,) = [case for case in root.iter("testcase") if case.find("failure") is not None]
    assert failed.get("name") == "shop/api -> shop/cache:6379"
    assert "python3[812]" in (failed.findtext("failure") or "")


def test_github_reads_what_breaks_first(plan: Plan) -> None:
    answers = {"flows": log(seen("api", "cache", 6379)), "conversations": talking(CACHED)}
    out = plan(answers, "--replay", "1h", "-o", "github")
    heads = [line for line in out.splitlines() if line.startswith(("#", "<details>"))]
    assert heads == [
        "### Policy plan",
        "#### What breaks",
        "#### Reach",
        "<details><summary>What is written differently (2)</summary>",
    ]
    assert "`removed by Ann Other, " in out


def test_a_comment_stays_below_the_limit_of_github(repository: Path, capfd: Captured) -> None:
    many = "".join(f"  - {{name: r{n}, from: web, to: api, ports: [{n}]}}\n" for n in range(1000, 3000))
    path = repository / "shop.yaml"
    path.write_text(path.read_text().replace("allow:\n", f"allow:\n{many}"))
    assert run(["plan", str(repository), "-o", "github"]) == 0
    out = capfd.readouterr().out
    assert len(out.encode()) <= COMMENT_MAX
    assert out.rstrip().endswith("</details>")
    assert "more do not fit here" in out


@pytest.mark.parametrize(
    ("answers", "gap"),
    [
        ({"flows": log(age_s=600), "conversations": talking()}, "the log reaches back 10 min, not 1 h"),
        ({"flows": log(absent_s=40.0), "conversations": talking()}, "no agent kept it for 40 s of its time"),
        ({"flows": log() | {"lost": LOST | {"event-ring": 2}}, "conversations": talking()}, "2 events lost"),
        ({"flows": log(filter="from=web"), "conversations": talking()}, "only what matches from=web was exported"),
        ({"flows": log(), "conversations": talking(unattested=2)}, "2 sockets have no known origin"),
        ({"flows": log(), "conversations": talking(complete=False)}, "sockets changed while it was read"),
        ({"flows": log()}, "the agent does not tell what is open"),
        ({"flows": log(seen("api", "gone", 1)), "conversations": talking()}, "1 of them cannot be decided"),
    ],
)
def test_a_gap_in_the_records_is_told_and_fails_only_where_asked(plan: Plan, answers: dict[str, Any], gap: str) -> None:
    (one,) = json.loads(plan(answers, "--replay", "1h", "-o", "json"))["data"]["recorded"]["gaps"]
    assert gap in one
    plan(answers, "--replay", "1h", "--require-complete", status=4)
    plan(answers, "--replay", "1h", "--detailed-exitcode", status=2)


def test_flows_from_before_the_period_do_not_count(plan: Plan) -> None:
    answers = {"flows": log(seen("api", "cache", 6379)), "conversations": talking()}
    assert json.loads(plan(answers, "--replay", "1m", "-o", "json"))["data"]["recorded"]["records"] == 0


def test_what_other_reasons_refuse_is_no_matter_of_policy(plan: Plan) -> None:
    refused = seen("web", "api", 9443, verdict="deny", reason="fragment")
    answers = {
        "flows": log(refused, seen("web", "api", 9443, verdict="deny", reason="policy")),
        "conversations": talking(),
    }
    found = json.loads(plan(answers, "--replay", "1h", "-o", "json"))["data"]["recorded"]
    assert [(one["effect"], one["flows"]) for one in found["edges"]] == [("unblocks", 3)]
    assert found["records"] == 1


def test_an_address_outside_is_judged_by_the_externals_of_each_commit(
    repository: Path, change: Change, tmp_path: Path, capfd: Captured
) -> None:
    change("except: [10.0.0.0/8]", "except: [10.0.0.0/8, 192.0.2.0/24]")
    caller = {"source": "shop/users", "source_identity": 1 << 31, "source_address": "192.0.2.9", "direction": "ingress"}
    came = seen("users", "web", 8080, cgroup="/shop/web", process_end="destination") | caller
    answers = {"flows": log(came), "conversations": talking((end("", 5000, address="192.0.2.9"), end("web", 8080)))}
    with FakeAgent(answers).running(tmp_path):
        assert run(["plan", str(repository), "--replay", "1h", "--run-dir", str(tmp_path), "-o", "json"]) == 0
    data = json.loads(capfd.readouterr().out)["data"]
    (edge,) = data["recorded"]["edges"]
    assert (edge["from"], edge["from_elsewhere"], edge["addresses"]) == ("shop/users", "world", ["192.0.2.9"])
    assert len(edge["live_sockets"]) == 1
    assert data["recorded"]["sources"][0]["notes"] == ["of 1 edges from outside the last address only is recorded"]


def test_an_export_needs_no_agent(withdrawn: Path, tmp_path: Path, capfd: Captured) -> None:
    export = tmp_path / "flows.json"
    export.write_text(
        json.dumps({"apiVersion": "bulkhead/v1", "kind": "Flows", "data": log(seen("api", "cache", 6379))})
    )
    given = ["plan", "HEAD~1..HEAD", "--repository", str(withdrawn), "--flows", str(export), "--run-dir", str(tmp_path)]
    assert run(given) == 2
    assert "`--flows` goes with `--replay PERIOD`" in capfd.readouterr().err
    assert run([*given, "--replay", "1h", "-o", "json"]) == 0
    assert json.loads(capfd.readouterr().out)["data"]["breaking"] == 1
    assert run([*given, "--replay", "1h", "--live"]) == 3


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"kind": "Status", "data": {}}', '{"kind": "Flows", "data": {"log": 1}}']
)
def test_what_is_no_export_is_refused(withdrawn: Path, tmp_path: Path, capfd: Captured, text: str) -> None:
    export = tmp_path / "flows.json"
    export.write_text(text)
    given = ["plan", "HEAD~1..HEAD", "--repository", str(withdrawn), "--flows", str(export), "--replay", "1h"]
    assert run(given) == 2
    assert capfd.readouterr().out == ""


def test_a_replay_without_an_agent_says_so(withdrawn: Path, tmp_path: Path, capfd: Captured) -> None:
    given = ["plan", "HEAD~1..HEAD", "--repository", str(withdrawn), "--run-dir", str(tmp_path)]
    assert run([*given, "--replay", "1h"]) == 3
    assert "no agent answers" in capfd.readouterr().err
    assert run(given) == 0


def test_authors_can_be_left_out(plan: Plan) -> None:
    assert "Ann Other" in plan({})
    assert "Ann Other" not in plan({}, "--no-authors")
