"""A refusal is explained at either of its ends, and a way is traced: two nodes, one without an agent, real probes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.bpf import can_attach
from lab.fleet import NODES_FILE, Fleet
from lab.host import Host
from lab.nodes import record
from lab.policies import policy
from lab.puppet import Puppet
from lab.wired import until

WORKLOADS = {
    "web": "{match: {cgroup: /web, host: near}, mode: enforce}",
    "db": '{match: {cgroup: /db, host: "f*"}, mode: enforce}',
    "ops": "{match: {cgroup: /ops}, mode: enforce}",
    "root": "{match: {cgroup: /mixed, user: root}, mode: enforce}",
    "batch": "{match: {cgroup: /batch}, mode: observe}",
}
RULES = ("web -> db 5432", "web -> printer 9100, 9100/udp", "web -> legacy 9100")
EXTERNALS = {"printer": "{cidr: [10.78.3.0/24]}"}
FAMILIES = pytest.mark.parametrize("family", (4, 6))


def shop(*more: str) -> str:
    return policy(*RULES, *more, workloads=WORKLOADS, externals=EXTERNALS)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    if not can_attach():
        pytest.skip("needs root and a mounted BPF file system")
    hosts: dict[str, object] = {"near": {}, "far": {}, "printer": {"agent": False}}
    with Fleet.described({"hosts": hosts, "wire": True, "settings": {"metrics_port": 0}}) as made:
        made.start_agents()
        made.enforce(shop())
        for host in made.guarded:
            until(
                lambda host=host: _wire(host)["speaking"] and _wire(host)["keys"]["nodes"] == 1, f"{host.name} speaks"
            )
        yield made


def _wire(host: Host) -> dict[str, Any]:
    return dict(host.call("status")["wire"])


@pytest.fixture(scope="module")
def web(fleet: Fleet) -> Puppet:
    return fleet["near"].puppet("web")


@pytest.fixture(scope="module", autouse=True)
def servers(fleet: Fleet, web: Puppet) -> None:
    """Who answers where policy lets `web` go; it runs itself, or nothing could be sent from its control group."""
    fleet["far"].puppet("db").serve_tcp("::", 5432)
    printer = fleet["printer"].puppet("any")
    printer.serve_tcp("::", 9100)
    printer.serve_udp("::", 9100)


def trace(host: Host, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = host.bulkhead("trace", *arguments, "-o", "json", check=False)
    assert done.returncode in (0, 1, 4), done.stderr
    return done.returncode, json.loads(done.stdout)["data"]


def steps(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(one["judge"], one["what"], one["verdict"]) for one in found["steps"]]


def bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@pytest.fixture
def ops(fleet: Fleet) -> Iterator[Puppet]:
    """Another workload listens on the far node, on the port that policy lets `web` use with `db`."""
    fleet.enforce(shop("web -> db 9000"))
    one = fleet["far"].puppet("ops")
    one.serve_tcp("::", 9000)
    yield one
    one.end()


# From either end


@FAMILIES
def test_a_refusal_is_explained_at_both_ends(fleet: Fleet, web: Puppet, ops: Puppet, family: int) -> None:
    target = fleet.address("far", family)
    assert web.tcp(target, 9000) == "ECONNREFUSED"
    commit = fleet["far"].call("status")["commit"]
    here = fleet["near"].ask("why", "web", f"{bracketed(target)}:9000")["explanation"]
    there = fleet["far"].ask("why", "web", "ops:9000")["explanation"]
    assert here["where"].startswith("ingress at ops on far, which said so (generation ")
    assert f"commit {commit[:7]}" in here["where"]
    assert there["where"] == "ingress at ops on far; it arrived from near, which is told why it was refused"
    assert here["because"] == there["because"] == "default deny; no rule matched"
    assert here["nearest"] == there["nearest"]
    assert here["nearest"].endswith("to: db, not ops")
    assert there["source"].startswith("web on near")


def test_both_ends_list_it_with_the_other_ends_node(fleet: Fleet, web: Puppet, ops: Puppet) -> None:
    web.tcp(fleet.address("far"), 9000)
    assert "ops:9000 on far" in (drops := fleet["near"].bulkhead("drops").stdout)
    assert "default deny, says far" in drops
    assert "web on near" in fleet["far"].bulkhead("drops").stdout


def test_quarantine_on_the_other_host_is_told_as_such(fleet: Fleet, web: Puppet) -> None:
    assert web.tcp(fleet.address("far"), 5432) == "ok"
    fleet["far"].bulkhead("quarantine", "db", "--reason", "drill")
    try:
        assert web.tcp(fleet.address("far"), 5432) == "ECONNREFUSED"
    finally:
        fleet["far"].bulkhead("release", "db")
    found = fleet["near"].ask("why", "web", "db:5432")["explanation"]
    assert found["because"] == "an operator has isolated the workload at one of the ends"
    assert found["advice"].startswith("on far: `bulkhead status` says which")


def test_what_never_left_is_found_by_the_workload_it_was_meant_for(fleet: Fleet, web: Puppet) -> None:
    assert web.tcp(fleet.address("far"), 1234) == "EPERM"
    found = fleet["near"].ask("why", "web", "db:1234")["explanation"]
    assert found["where"].endswith("the call failed with EPERM, no packet was made")
    assert found["nearest"].endswith("port: 5432, not 1234")


def test_a_refusal_by_a_commit_that_this_host_does_not_know_says_so(fleet: Fleet, web: Puppet, ops: Puppet) -> None:
    near, far, old = fleet["near"], fleet["far"], fleet["far"].call("status")["commit"]
    far.stop_agent()
    try:
        fleet.enforce(shop("web -> db 9000", "ops -> db 5432"))
        assert web.tcp(fleet.address("far"), 9000) == "ECONNREFUSED"
        known = near.ask("why", "web", "ops:9000")["explanation"]
        near.stop_agent()
        near.start_agent()
        unknown = near.ask("why", "web", "ops:9000")["explanation"]
    finally:
        far.start_agent()
    assert known["nearest"].endswith("to: db, not ops")
    assert f"@{old[:7]}" in known["nearest"]
    assert unknown["nearest"] == ""
    assert unknown["note"].startswith(f"far enforces another commit ({old[:7]}) than this host")


def test_records_keep_what_they_were_told_over_a_restart(fleet: Fleet, web: Puppet, ops: Puppet) -> None:
    web.tcp(fleet.address("far"), 9000)
    near = fleet["near"]
    near.call("drops")
    near.stop_agent()
    near.start_agent()
    latest = near.call("drops", port=[9000])["records"][0]
    assert (latest["told_by"], latest["node"], latest["destination"]) == ("far", "far", "t/ops")


# Traces


def test_the_model_names_each_judge(fleet: Fleet) -> None:
    code, found = trace(fleet["near"], "web", "db:5432")
    assert (code, found["verdict"]) == (0, "allow")
    assert steps(found) == [("web", "egress", "allow"), ("wire", "wire", "says who"), ("db", "ingress", "elsewhere")]
    assert found["steps"][2]["because"].endswith("it is judged where it runs (far)")


@FAMILIES
def test_a_probe_that_is_let_in_is_told_by_whom(fleet: Fleet, family: int) -> None:
    target = fleet.address("far", family)
    code, found = trace(fleet["near"], "web", f"{bracketed(target)}:5432", "--probe")
    assert (code, found["verdict"], found["probe"]["outcome"]) == (0, "allow", "connected")
    assert steps(found) == [("web", "egress", "allow"), ("far", "wire", "verified"), ("db on far", "ingress", "allow")]
    assert found["steps"][0]["rule"].startswith("t/r1  t.yaml:")
    assert found["steps"][2]["ms"] < 1000


def test_a_probe_that_the_other_end_refuses_is_told_so(fleet: Fleet, ops: Puppet) -> None:
    code, found = trace(fleet["near"], "web", f"{fleet.address('far')}:9000", "--probe")
    assert (code, found["verdict"], found["probe"]["outcome"]) == (1, "deny", "reset")
    assert steps(found) == [("web", "egress", "allow"), ("far", "wire", "verified"), ("ops on far", "ingress", "deny")]
    assert found["steps"][2]["because"].startswith("default deny; no rule matched (generation ")
    assert found["steps"][2]["nearest"].endswith("to: db, not ops")


def test_a_probe_that_is_not_let_out_reaches_nobody(fleet: Fleet) -> None:
    code, found = trace(fleet["near"], "web", f"{fleet.address('far')}:1234", "--probe")
    assert (code, found["probe"]["outcome"]) == (1, "refused")
    assert [verdict for *_, verdict in steps(found)] == ["deny", "not reached", "not reached"]
    assert found["steps"][0]["nearest"].endswith("port: 5432, not 1234")


def test_a_probe_of_a_port_where_nobody_listens_says_what_is_not_known(fleet: Fleet) -> None:
    fleet.enforce(shop("web -> db 7777"))
    code, found = trace(fleet["near"], "web", f"{fleet.address('far')}:7777", "--probe")
    assert (code, found["verdict"], found["probe"]["outcome"]) == (4, "unknown", "reset")
    assert [verdict for *_, verdict in steps(found)] == ["allow", "nothing", "unknown"]


@pytest.mark.parametrize(("port", "outcome"), (("9100", "connected"), ("9100/udp", "answered")))
def test_a_probe_to_a_machine_without_agent_says_that_its_address_decides(
    fleet: Fleet, port: str, outcome: str
) -> None:
    code, found = trace(fleet["near"], "web", f"{fleet.address('printer')}:{port}", "--probe")
    assert (code, found["verdict"], found["probe"]["outcome"]) == (0, "allow", outcome)
    assert [verdict for *_, verdict in steps(found)] == ["allow", "by address", "allow"]


def test_a_probe_is_known_by_its_name_and_leaves_nothing_behind(fleet: Fleet) -> None:
    near, target = fleet["near"], fleet.address("far")
    group = near.cgroup / "web" / "cgroup.procs"
    before = group.read_text()
    _, found = trace(near, "web", f"{target}:5432", "--probe")
    assert group.read_text() == before
    assert not Path(f"/proc/{found['probe']['pid']}").exists()
    records = near.call("flows", port=[5432])["records"]
    assert "bulkhead-probe" in {one["comm"] for one in records}
    assert f'a probe is sent workload=t/web cgroup=/web to="{target} 5432" uid=0' in near.log()


@pytest.mark.parametrize(
    ("source", "target", "said"),
    (
        ("ops", "192.0.2.1:80", "no process of `t/ops` runs on this host"),
        ("host", "192.0.2.1:80", "`host` is no workload"),
        ("root", "192.0.2.1:80", "told apart by executable, user or group as well"),
        ("web", "127.0.0.1:80", "which `127.0.0.1` is not"),
        ("web", "192.0.2.1:icmp/echo", "a probe goes to a TCP or UDP port"),
        ("web", "no-such-host.invalid:80", "neither an address nor the name of a host"),
    ),
)
def test_a_probe_that_would_prove_nothing_is_refused(fleet: Fleet, source: str, target: str, said: str) -> None:
    mixed = fleet["near"].puppet("mixed")
    done = fleet["near"].bulkhead("trace", source, target, "--probe", check=False)
    mixed.end()
    assert done.returncode == 2
    assert said in done.stderr


def test_a_probe_into_a_frozen_control_group_is_ended(fleet: Fleet) -> None:
    near = fleet["near"]
    batch, group = near.puppet("batch"), near.cgroup / "batch"
    before = (group / "cgroup.procs").read_text()
    (group / "cgroup.freeze").write_text("1")
    try:
        done = near.bulkhead("trace", "batch", f"{fleet.address('far')}:5432", "--probe", check=False)
    finally:
        (group / "cgroup.freeze").write_text("0")
    assert done.returncode == 3
    assert done.stderr.endswith("is it frozen, or out of memory?\n")
    assert (group / "cgroup.procs").read_text() == before
    batch.end()


def test_the_next_probe_need_not_wait_for_one_that_could_not_be_sent(fleet: Fleet, tmp_path: Path) -> None:
    near, target = fleet["near"], f"{fleet.address('far')}:5432"
    begun = near.call("probe", source="web", destination=fleet.address("far"), port=5432, protocol="tcp", timeout_s=1)
    assert near.bulkhead("trace", "web", target, "--probe", check=False).returncode == 3
    near.call("probed", token=begun["token"], outcome="not sent", ms=0, pid=0)
    assert trace(near, "web", target, "--probe")[0] == 0


# What rests on addresses


def test_what_rests_on_addresses_is_listed_until_it_does_no_more(fleet: Fleet, web: Puppet) -> None:
    near = fleet["near"]
    assert web.tcp(fleet.address("printer"), 9100) == "ok"
    paths = near.ask("flows", "--by-address")["paths"]
    kinds = {(one["kind"], one["peer"], one["port"]) for one in paths}
    assert ("not registered", fleet.address("printer"), 9100) in kinds
    assert not {one for one in kinds if one[1] == "far"}
    assert "not registered" in near.bulkhead("status").stdout


def test_a_node_without_agent_is_listed_by_its_name(fleet: Fleet, web: Puppet) -> None:
    near, target = fleet["near"], fleet.address("printer")
    records = fleet.records() + record("printer", target)
    fleet.wait_for_commit(fleet.commit({"t.yaml": shop(), NODES_FILE: records}))
    until(lambda: any(one["name"] == "printer" for one in near.call("nodes")["nodes"]), "near knows the printer")
    until(lambda: web.tcp(target, 9100) == "ok" and ("no agent", "printer") in listed(near), "it is the entity legacy")
    _, found = trace(near, "web", f"{target}:9100")
    assert found["steps"][1]["because"] == "the node runs no agent: it is the entity `legacy`"
    assert found["steps"][0]["rule"].startswith("t/r3 ")


def listed(host: Host) -> set[tuple[str, str]]:
    return {(one["kind"], one["peer"]) for one in host.ask("flows", "--by-address")["paths"]}
