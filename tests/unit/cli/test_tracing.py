"""`bulkhead trace` and what rests on addresses, as they are printed at 100 columns."""

from __future__ import annotations

import time
from typing import Any

import pytest

from unit.cli import fake_agent
from unit.cli.fake_agent import LOST, FakeAgent, Ran

NOW = time.time()
KINDS = ("no agent", "says nothing", "by address", "no workload", "not registered", "internet")


def step(number: int, judge: str, what: str, verdict: str, because: str = "", **more: Any) -> dict[str, Any]:
    told = {"rule": "", "nearest": "", "ms": None} | more
    return {"step": number, "judge": judge, "what": what, "verdict": verdict, "because": because} | told


def traced(verdict: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"verdict": verdict, "steps": list(steps), "lost": LOST, "commit": "", "generation": 7}


REFUSED = traced(
    "deny",
    step(1, "web", "egress", "allow", rule="shop/web-db  shop.yaml:22@3f2c1ab"),
    step(2, "db-1", "wire", "verified", "`cache` answered, proven by db-1"),
    step(3, "cache on db-1", "ingress", "deny", "default deny", nearest="shop/web-db  to: db, not cache", ms=0.42),
)


def test_a_trace_is_a_numbered_line_for_each_judge(ran: Ran) -> None:
    agent = FakeAgent({"trace": REFUSED})
    code, out, err = ran(agent, "trace", "web", "10.0.0.2:5432")
    assert code == 1
    assert (
        out
        == """\
   JUDGE          WHAT     VERDICT   BECAUSE                              TIME
1  web            egress   allow     shop/web-db  shop.yaml:22@3f2c1ab
2  db-1           wire     verified  `cache` answered, proven by db-1
3  cache on db-1  ingress  deny      default deny                       0.4 ms
"""
    )
    assert err == "nearest: shop/web-db  to: db, not cache\n"
    assert agent.asked == [("trace", {"source": "web", "destination": "10.0.0.2", "port": 5432, "protocol": "tcp"})]


@pytest.mark.parametrize(("verdict", "code"), [("allow", 0), ("would-deny", 1), ("unknown", 4)])
def test_a_trace_exits_by_what_it_comes_to(ran: Ran, verdict: str, code: int) -> None:
    assert ran(FakeAgent({"trace": traced(verdict)}), "trace", "web", "db:5432")[0] == code


def test_a_probe_waits_for_five_seconds_at_most(ran: Ran) -> None:
    agent = FakeAgent({"trace": REFUSED})
    assert ran(agent, "trace", "web", "10.0.0.2:5432", "--probe", "--timeout", "6")[0] == 2
    assert agent.asked == []


def test_records_name_the_other_ends_node_and_who_refused(ran: Ran) -> None:
    told = fake_agent.record(NOW, node="db-1", told_by="db-1", hook="peer")
    arrived = fake_agent.record(NOW, node="web-1", direction="ingress")
    _, out, _ = ran(FakeAgent({"drops": {"records": [told, arrived], "totals": {}, "lost": LOST}}), "drops")
    assert (
        out
        == """\
COUNT  LAST  FROM          TO               VERDICT  BECAUSE
   41    3h  web nginx     db:5432 on db-1  deny     default deny, says db-1
   41    3h  web on web-1  db:5432          deny     default deny
"""
    )


def path(kind: str, peer: str, **changed: Any) -> dict[str, Any]:
    known = {"name": "shop/users", "local": "shop/web", "direction": "egress", "protocol": "tcp", "port": 443}
    return {"kind": kind, "peer": peer, "address": peer, "count": 12, "last_seen": NOW - 3660} | known | changed


def by_address(*paths: dict[str, Any], speaking: bool = True) -> dict[str, Any]:
    counts = {kind: sum(one["kind"] == kind for one in paths) for kind in KINDS}
    return {"paths": list(paths), "kinds": counts, "since": NOW - 3601, "speaking": speaking, "lost": LOST}


def test_what_rests_on_addresses_is_listed_with_the_internet_behind(ran: Ran) -> None:
    listed = by_address(
        path("internet", "1.1.1.1"),
        path("no agent", "printer", name="legacy", port=9100),
        path("not registered", "10.6.0.1", direction="ingress"),
    )
    agent = FakeAgent({"by-address": listed})
    code, out, _ = ran(agent, "flows", "--by-address")
    assert code == 0
    assert (
        out
        == """\
COUNT  LAST  WHY             FROM      TO            KNOWN AS
   12    1h  no agent        web       printer:9100  legacy
   12    1h  not registered  10.6.0.1  web:443       users
   12    1h  internet        web       1.1.1.1:443   users
"""
    )
    assert agent.asked == [("by-address", {})]


def test_a_host_that_is_silent_on_the_wire_says_why_all_of_it_does(ran: Ran) -> None:
    _, out, _ = ran(FakeAgent({"by-address": by_address(speaking=False)}), "flows", "--by-address", "--since", "2h")
    assert out.endswith("this host says nothing on the wire, so all of it rests on addresses\n")


def test_no_other_filter_goes_with_by_address(ran: Ran) -> None:
    code, _, err = ran(FakeAgent({"by-address": by_address()}), "flows", "--by-address", "--from", "web")
    assert (code, err) == (2, "error: `--by-address` goes with `--since` alone\n")


WIRE = {
    "wanted": True, "speaking": True, "mute": None, "node": "web-1", "number": 5, "problem": None,
    "registry": {"kind": "files", "nodes": 3, "keyed": 2, "problem": "", "own": "", "refused": [], "last_heard": NOW},
    "keys": {"until": NOW + 7300, "error": None},
    "clock": {"synchronised": True},
}  # fmt: skip


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        ((), "paths that rest on addresses: none; 0 to or from the internet"),
        (("no agent", "no agent", "internet"), "paths that rest on addresses: 2 no agent; 1 to or from the internet"),
    ],
)
def test_status_counts_the_paths_that_rest_on_addresses(ran: Ran, paths: tuple[str, ...], said: str) -> None:
    kinds = {kind: paths.count(kind) for kind in KINDS}
    status = fake_agent.status(NOW, wire=WIRE, by_address=kinds)
    _, out, _ = ran(FakeAgent({"status": status}), "status")
    assert said in out
    _, out, _ = ran(FakeAgent({"status": fake_agent.status(NOW, by_address=kinds)}), "status")
    assert "rest on addresses" not in out
