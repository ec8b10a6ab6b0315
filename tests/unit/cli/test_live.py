"""Commands that ask the agent: what they print at 100 columns, what they send, how they exit."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from bulkhead.cli.main import run
from bulkhead.dataplane.inventory import parse_inventory
from unit.cli import fake_agent
from unit.cli.fake_agent import LOST, FakeAgent, Ran

NOW = time.time()


def records(*found: dict[str, Any], lost: dict[str, int] | None = None) -> dict[str, Any]:
    return {"records": list(found), "totals": {"deny": 1}, "lost": lost or LOST}


def test_status_fits_one_screen(ran: Ran) -> None:
    code, out, err = ran(FakeAgent({"status": fake_agent.status(NOW)}), "status")
    assert (code, err) == (0, "")
    assert (
        out
        == """\
agent      0.1.0 on web-1, pid 812, up 3d
policy     3f2c1ab (generation 7)  /etc/bulkhead/policy HEAD, loaded 2h ago
kernel     equals git
hooks      tcx on lo, eth0; /sys/fs/cgroup
workloads  3 enforce, 1 observe; host in observe
attested   62 control groups, 4 executables
verdicts   1201 allow, 23 deny, 7 would-deny
adopted    31 sockets adopted
lost       nothing
maps       fullest policy at 10%
"""
    )


def test_status_says_that_a_commit_was_refused_and_exits_with_one(ran: Ran) -> None:
    refused = {
        "ok": False,
        "error": "error[BH0412]: unknown\n  --> a.yaml:1\x1b",
        "error_since": NOW - 7260,
        "loaded": NOW - 90000,
    }
    code, out, _ = ran(FakeAgent({"status": fake_agent.status(NOW, policy=refused)}), "status")
    assert code == 1
    said = "REFUSED since 2h, the last good one stays in force\n"
    assert f"{said}           error[BH0412]: unknown\n             --> a.yaml:1\\u{{1b}}\n" in out


def test_status_says_what_is_not_as_it_should_be(ran: Ran) -> None:
    answer = fake_agent.status(NOW, git_equals_kernel=False, lost={**LOST, "event-ring": 3})
    answer["kernel"]["devices"][1]["egress"] = False
    answer["kernel"]["errors"] = {"eth0": "another program is in the way"}
    answer["observe_only"] = True
    answer["maps"]["edges"]["entries"] = 4000
    answer["attested"]["ambiguous"] = [{"cgroup": "/x", "workloads": ["a", "b"]}]
    code, out, _ = ran(FakeAgent({"status": answer}), "status")
    assert code == 1
    for said in (
        "DIFFERS from git",
        "eth0 (NO egress)",
        "eth0: another program",
        "observe only",
        "3 event-ring lost",
        "nearly full: edges 98%",
        "ambiguous: /x",
    ):
        assert said in out


def test_drops_are_a_table(ran: Ran) -> None:
    agent = FakeAgent({"drops": records(fake_agent.record(NOW), fake_agent.outside(NOW))})
    code, out, err = ran(agent, "drops")
    assert (code, err) == (0, "")
    assert (
        out
        == """\
COUNT  LAST  FROM       TO                   VERDICT     BECAUSE
   41    3h  web nginx  db:5432              deny        default deny
  212    3h  web nginx  world 10.0.2.7:8443  would-deny  default deny
"""
    )


def test_a_process_name_cannot_reach_the_terminal(ran: Ran) -> None:
    evil = fake_agent.record(NOW, comm="\x1b[31m[red]x\n")
    code, out, _ = ran(FakeAgent({"drops": records(evil)}), "drops")
    assert code == 0
    assert "\x1b" not in out
    assert "\\u{1b}[31m[red]x\\u{a}" in out.replace("\n", "").replace(" ", "") or "\\u{1b}" in out


def test_wide_names_fold_within_the_width(ran: Ran) -> None:
    wide = fake_agent.record(
        NOW, source="p" * 63 + "/" + "w" * 63, destination="p/" + "d" * 63, reason="extension-header"
    )
    ran(FakeAgent({"drops": records(wide)}), "drops")


def test_incomplete_data_is_said_beside_the_data_and_in_the_exit_code(ran: Ran) -> None:
    agent = FakeAgent({"drops": records(fake_agent.record(NOW), lost={**LOST, "event-rate": 12})})
    code, out, err = ran(agent, "drops")
    assert code == 4
    assert "lost" not in out
    assert err == "data incomplete: 12 event-rate lost; counters are exact all the same\n"


def test_filters_are_sent_and_told_back(ran: Ran) -> None:
    agent = FakeAgent({"drops": records()})
    arguments = ("--from", "web", "--from", "api", "--verdict", "deny", "--port", "5432", "--since", "1h")
    code, out, err = ran(agent, "drops", *arguments)
    assert (code, out) == (0, "")
    assert err == "filter: (from=web OR api) AND verdict=deny AND port=5432\nnothing recorded\n"
    ((op, args),) = agent.asked
    assert op == "drops"
    assert args["from"] == ["web", "api"]
    assert (args["to"], args["verdict"], args["port"]) == ([], ["deny"], [5432])
    assert NOW - 3700 < args["since"] < NOW


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("drops", "--verdict", "allow"), "`drops` shows deny and would-deny"),
        (("flows", "--verdict", "x"), "`x` is no verdict"),
        (("drops", "--since", "x"), "`x` is no age"),
        (("drops", "-o", "yaml"), "yaml"),
        (("status", "-o", "inventory"), "inventory"),
    ],
)
def test_a_filter_that_is_none_is_a_usage_error(ran: Ran, arguments: tuple[str, ...], said: str) -> None:
    code, out, err = ran(FakeAgent({"drops": records(), "flows": records()}), *arguments)
    assert (code, out) == (2, "")
    assert said in err


def test_following_prints_a_line_for_each(ran: Ran) -> None:
    agent = FakeAgent({}, (fake_agent.record(NOW), fake_agent.outside(NOW)))
    code, out, _ = ran(agent, "drops", "-f", "--to", "db")
    assert code == 0
    assert out == (
        "   41    3h  web nginx ->  db:5432  deny        default deny\n"
        "  212    3h  web nginx ->  world 10.0.2.7:8443  would-deny  default deny\n"
    )
    assert agent.asked[0][1]["verdict"] == ["deny", "would-deny"]


def test_following_flows_asks_for_every_verdict_and_writes_json_lines(ran: Ran) -> None:
    agent = FakeAgent({}, (fake_agent.record(NOW), fake_agent.record(NOW, port=1)))
    code, out, _ = ran(agent, "flows", "-f", "-o", "json")
    assert code == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["kind"] for line in lines] == ["Flow", "Flow"]
    assert lines[1]["data"]["port"] == 1
    assert agent.asked[0][1]["verdict"] == ["allow", "deny", "would-deny"]


def test_flows_show_the_rule_that_allowed(ran: Ran) -> None:
    allowed = fake_agent.record(NOW, verdict="allow", reason="none", rule="shop/api-db", direction="ingress")
    code, out, _ = ran(FakeAgent({"flows": records(allowed)}), "flows")
    assert code == 0
    assert out.splitlines()[1] == "   41    3h  web   db:5432  allow    api-db"


def test_rules_are_listed_with_the_kernels_read_back(ran: Ran) -> None:
    code, out, _ = ran(FakeAgent({"rules": fake_agent.rules(NOW)}), "rules", "ls")
    assert code == 0
    assert (
        out
        == """\
RULE          FROM  TO   PORTS  HITS  LAST  SOURCE
shop/web-api  web   api  8443    91k    3d  shop.yaml:21@3f2c1ab
shop/backup   web   api  8443      0     -  shop.yaml:22@3f2c1ab
shop/debug    web   api  8443      4     -  shop.yaml:23@3f2c1ab (expired)

kernel read-back: 12/12 entries match 3f2c1ab (generation 7)
"""
    )


def test_a_kernel_that_differs_from_the_commit_exits_with_one(ran: Ran) -> None:
    answer = fake_agent.rules(NOW, read_back={"kernel": 11, "expected": 12, "match": False})
    code, out, _ = ran(FakeAgent({"rules": answer}), "rules", "ls")
    assert code == 1
    assert out.endswith("kernel read-back: 11 entries where 3f2c1ab (generation 7) has 12\n")


def test_one_rule_is_shown_by_its_name(ran: Ran) -> None:
    code, out, _ = ran(FakeAgent({"rules": fake_agent.rules(NOW)}), "rules", "get", "web-api")
    assert code == 0
    assert "source    shop.yaml:21@3f2c1ab" in out
    code, out, err = ran(FakeAgent({"rules": fake_agent.rules(NOW)}), "rules", "get", "web-ap")
    assert (code, out) == (2, "")
    assert err == "error: no rule is called `web-ap`: did you mean `shop/web-api`?\n"


def test_why_explains_down_to_the_line(ran: Ran) -> None:
    agent = FakeAgent({"why": fake_agent.why(NOW)})
    code, out, _ = ran(agent, "why", "web", "db:5432")
    assert code == 1
    assert (
        out
        == """\
DENIED  41x since 5d ago, last 3h ago
from     web  spiffe://example.org/shop/web  pid 8123  /usr/sbin/nginx  nginx.service  uid 33
to       db:5432  spiffe://example.org/shop/db
where    egress at web on web-1; db never saw it
because  default deny; no rule matched
nearest  shop/api-db  shop.yaml:22@3f2c1ab  from: api, not web
since    3f2c1ab  generation 7
next     if it should be allowed, add a rule to the policy and commit it
data     complete: 0 events lost
"""
    )
    assert agent.asked == [("why", {"source": "web", "destination": "db", "port": 5432, "protocol": "tcp"})]


def test_why_without_records_gives_the_models_answer(ran: Ran) -> None:
    answer = fake_agent.why(NOW, explanation=None, records=[], answer=fake_agent.answer("allow"), complete=False)
    code, out, err = ran(FakeAgent({"why": answer}), "why", "web", "db:5432")
    assert code == 4
    assert err == "nothing recorded; this is what policy says:\n"
    assert out.startswith("ALLOW  web -> db:5432\n")


def test_why_is_loud_when_kernel_and_model_disagree(ran: Ran) -> None:
    answer = fake_agent.why(NOW, mismatch="BH0900 model/kernel mismatch: x")
    _, _, err = ran(FakeAgent({"why": answer}), "why", "web", "db:5432")
    assert err == "BH0900 model/kernel mismatch: x\n"


def test_can_asks_the_agent_unless_files_are_given(ran: Ran) -> None:
    agent = FakeAgent({"can": fake_agent.answer()})
    code, out, _ = ran(agent, "can", "web", "db:5432")
    assert code == 1
    assert (
        out
        == """\
DENY  web -> db:5432
END      AT   MODE     VERDICT  BECAUSE
egress   web  enforce  deny     default deny; no rule matched
ingress  db   enforce  deny     default deny; no rule matched
nearest  shop/api-db  shop.yaml:22@3f2c1ab  from: api, not web
next     add a rule
policy 3f2c1ab as on web-1
"""
    )
    code, out, _ = ran(FakeAgent({"can": fake_agent.answer("allow")}), "can", "web", "db:5432")
    assert code == 0
    assert "allowed by shop/api-db  shop.yaml:22@3f2c1ab" in out


def test_workloads_are_listed_with_ties(ran: Ran) -> None:
    code, out, _ = ran(FakeAgent({"workloads": fake_agent.WORKLOADS}), "workloads")
    assert code == 0
    assert (
        out
        == """\
WORKLOAD    MODE     ENDPOINTS      PROCS  SPIFFE ID                        SOURCE
shop/web    enforce  nginx.service      5  spiffe://example.org/shop/web    shop.yaml:7@3f2c1ab
shop/batch  observe  -                  0  spiffe://example.org/shop/batch  shop.yaml:9@3f2c1ab

host: 61 control groups that no workload selects
ambiguous: /x is selected by shop/a, shop/b with equal right and matches nothing
"""
    )


def test_an_inventory_can_be_read_back_whatever_is_in_it(ran: Ran) -> None:
    endpoints = [
        {
            "name": "web",
            "host": "web-1",
            "cgroup": "/x",
            "unit": None,
            "exe": "/usr/sbin/nginx",
            "user": "33",
            "group": "",
        },
        {"name": "off", "host": "h", "cgroup": "/a: {b}, #c\n'\"ü", "exe": "/bin/\x1b", "addresses": ["10.0.0.1"]},
    ]
    agent = FakeAgent({"workloads": {"endpoints": endpoints}})
    code, out, _ = ran(agent, "workloads", "-o", "inventory")
    assert code == 0
    assert agent.asked == [("workloads", {"inventory": True})]
    one, other = parse_inventory(out.encode(), "inventory")
    assert (one.name, one.endpoint.host, one.endpoint.uid, one.endpoint.exe) == ("web", "web-1", 33, "/usr/sbin/nginx")
    assert (other.name, other.endpoint.cgroup) == ("off", "/a: {b}, #c\n'\"ü")


def test_an_empty_inventory_can_be_read_back(ran: Ran) -> None:
    _, out, _ = ran(FakeAgent({"workloads": {"endpoints": []}}), "workloads", "-o", "inventory")
    assert parse_inventory(out.encode(), "inventory") == ()


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (("status",), "Status"),
        (("drops",), "Drops"),
        (("flows",), "Flows"),
        (("rules", "ls"), "Rules"),
        (("rules", "get", "backup"), "Rule"),
        (("workloads",), "Workloads"),
        (("why", "web", "db:5432"), "Why"),
        (("can", "web", "db:5432"), "Answer"),
        (("reload",), "Reload"),
    ],
)
def test_json_comes_in_one_stable_envelope(ran: Ran, arguments: tuple[str, ...], kind: str) -> None:
    answers = {
        "status": fake_agent.status(NOW),
        "drops": records(fake_agent.record(NOW)),
        "flows": records(fake_agent.record(NOW)),
        "rules": fake_agent.rules(NOW),
        "workloads": fake_agent.WORKLOADS,
        "why": fake_agent.why(NOW),
        "can": fake_agent.answer(),
        "reload": {},
    }
    _, out, err = ran(FakeAgent(answers), "-o", "json", *arguments)
    found = json.loads(out)
    assert err == ""
    assert set(found) == {"apiVersion", "kind", "data"}
    assert (found["apiVersion"], found["kind"]) == ("bulkhead/v1", kind)


def test_without_an_agent_the_exit_code_is_three(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--run-dir", str(tmp_path)]) == 3
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: no agent answers at ")
    assert "systemctl start bulkhead" in err
