"""From nothing to an enforced host by what was recorded: the same traffic passes, and no other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from lab.bpf import can_attach
from lab.host import Host, joined
from lab.policies import policy, repository
from lab.puppet import Puppet

LOCAL, FAR4, NEAR4 = "127.0.0.1", "10.77.0.2", "10.77.0.1"
SHOP = {"web": "{match: {cgroup: /web}}", "db": "{match: {cgroup: /db}}"}


@pytest.fixture
def fresh() -> Iterator[Host]:
    """A host whose policy names two workloads, allows nothing and enforces nothing, with a machine at its wire."""
    if not can_attach():
        pytest.skip("needs root and a mounted BPF file system")
    with Host("near") as near, Host("far") as far, joined(near, far):
        near.far = far
        near.commit({"bulkhead.yaml": repository(default="observe"), "t.yaml": policy(workloads=SHOP)})
        near.start_agent()
        yield near


class Shop:
    """Programs that talk: `web` and a service without a workload of its own to `db`, `web` out to the far machine."""

    def __init__(self, host: Host, puppets) -> None:
        assert host.far is not None
        self.web, self.db = puppets(host, "web"), puppets(host, "db")
        self.job = puppets(host, "system.slice/job.service")
        self.other: Puppet = puppets(host, "other")
        outside = puppets(host.far, "outside")
        self.db.serve_tcp("0.0.0.0", 5432)
        self.db.serve_tcp("0.0.0.0", 5433)
        self.db.serve_udp("127.0.0.1", 5353)
        self.job.serve_tcp("0.0.0.0", 7000)
        for port in (443, 444):
            outside.serve_tcp("0.0.0.0", port)

    def usual(self) -> set[str]:
        """What happens to the usual traffic."""
        return {
            self.web.tcp(LOCAL, 5432),
            self.web.tcp(FAR4, 443),
            self.web.udp(LOCAL, 5353),
            self.job.tcp(LOCAL, 5432),
            self.web.tcp(LOCAL, 7000),
        }

    def unusual(self) -> set[str]:
        """What happens to traffic that differs in one respect: the port, the address, the program."""
        return {
            self.web.tcp(LOCAL, 5433),
            self.web.tcp(FAR4, 444),
            self.web.tcp(NEAR4, 443),
            self.job.tcp(LOCAL, 5433),
            self.job.tcp(FAR4, 443),
            self.db.tcp(LOCAL, 7000),
            self.other.tcp(LOCAL, 5432),
        }


def verdicts(host: Host, name: str) -> dict[str, int]:
    (one,) = [one for one in host.call("workloads")["workloads"] if one["name"] == name]
    return dict(one["verdicts"])


def around(host: Host, commit: str, *arguments: str) -> Any:
    """What is reported of a change."""
    done = host.bulkhead("report", "before-after", "--at", commit, *arguments, "-o", "json", check=False)
    data = json.loads(done.stdout)["data"]
    worse = any(one["finding"] == "worse" for one in (data["total"], *data["edges"]))
    assert done.returncode == (1 if worse else 4), done.stderr
    assert data["incomplete"]  # a host that has just begun
    return data


def test_what_is_suggested_and_enforced_lets_the_same_traffic_pass_and_no_other(fresh: Host, puppets) -> None:
    shop = Shop(fresh, puppets)
    assert shop.usual() == {"ok"}
    before = verdicts(fresh, "t/web")
    assert (before["would_deny"] >= 3, before["deny"], before["would_deny_edges"] >= 2) == (True, 0, True)
    assert before["last_would_deny"] is not None
    assert "would-deny" in fresh.bulkhead("workloads", "-o", "wide").stdout

    target = fresh.repository / "suggested.yaml"
    said = fresh.bulkhead("suggest", "--directory", str(fresh.repository), "-o", str(target))
    text = target.read_text()
    assert "unit: job.service" in text, text + said.stderr
    assert f"cidr: [{FAR4}/32]" in text
    assert "from: t/web, to: job, ports: [7000]" in text
    assert fresh.bulkhead("test", str(fresh.repository)).returncode == 0
    assert fresh.bulkhead("lint", str(fresh.repository)).returncode == 0
    fresh.wait_for_commit(fresh.commit({}, "suggested"))
    assert shop.usual() == {"ok"}

    enforce = ("enforce", "web", "db", "job", "--directory", str(fresh.repository))
    refused = fresh.bulkhead(*enforce)
    assert refused.returncode == 1
    assert "the log reaches back" in refused.stderr and "breaks" not in refused.stderr, refused.stderr
    done = fresh.bulkhead(*enforce, "--accept-incomplete", "a lab that has just begun")
    assert done.returncode == 0, done.stderr
    assert "t/web: observe -> enforce" in done.stdout
    commit = fresh.commit({}, "enforce")
    assert not fresh.wait_for_commit(commit)["policy"]["error"]

    assert shop.usual() == {"ok"}
    assert "ok" not in shop.unusual()
    assert verdicts(fresh, "t/web")["deny"] >= 3
    total = around(fresh, commit)["total"]
    assert (total["before"]["refused"], total["after"]["refused"] >= 6) == (0, True)


def test_a_change_that_breaks_nothing_is_reported_as_such_and_one_that_does_as_worse(fresh: Host, puppets) -> None:
    fresh.enforce(policy("web -> db 5432, 5433", workloads={k: v[:-1] + ", mode: enforce}" for k, v in SHOP.items()}))
    shop = Shop(fresh, puppets)
    for _ in range(8):
        assert (shop.web.tcp(LOCAL, 5432), shop.web.tcp(LOCAL, 5433)) == ("ok", "ok")
    commit = fresh.enforce(
        policy("web -> db 5432", workloads={k: v[:-1] + ", mode: enforce}" for k, v in SHOP.items()})
    )
    for _ in range(8):
        assert (shop.web.tcp(LOCAL, 5432), shop.web.tcp(LOCAL, 5433)) == ("ok", "EPERM")
    found = around(fresh, commit, "--from", "web")
    edges = {edge["port"]: edge for edge in found["edges"]}
    assert edges[5432]["finding"] == "no difference that the counts show"
    assert (edges[5433]["finding"], edges[5433]["before"]["allowed"], edges[5433]["after"]["refused"]) == (
        "worse",
        8,
        8,
    )
    assert edges[5433]["before"]["failed_share_bounds"][1] < edges[5433]["after"]["failed_share_bounds"][0]
