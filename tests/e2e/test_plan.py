"""A change judged by what really happened, before anybody enforces it: recorded flows, live sockets, authors."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from lab.host import Host
from lab.policies import policy

LOCAL = "127.0.0.1"


class Review:
    """A reviewer's clone of the host's repository: nothing that is committed there is enforced."""

    def __init__(self, host: Host, path: Path) -> None:
        self.host = host
        self.path = path
        subprocess.run(["git", "clone", "-q", str(host.repository), str(path)], check=True)

    def commit(self, who: str, text: str) -> str:
        (self.path / "t.yaml").write_text(text)
        git = ["git", "-C", str(self.path), "-c", f"user.name={who}", "-c", f"user.email={who}@example.org"]
        subprocess.run([*git, "commit", "-qam", "change"], check=True)
        return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()

    def plan(self, *arguments: str) -> Mapping[str, object]:
        done = self.text(*arguments, "-o", "json")
        return json.loads(done)["data"]

    def text(self, *arguments: str) -> str:
        return self.host.bulkhead("plan", *arguments, "--repository", str(self.path)).stdout


@pytest.fixture
def traffic(host: Host, puppets):
    """`api` talks to `db` and holds a connection open, and to the world; `web` is refused at `db`."""
    host.enforce(policy("api -> db 5432", "api -> world 81"))
    db, api, web = (puppets(host, name) for name in ("db", "api", "web"))
    db.serve_tcp("::", 5432)
    assert api.hold("c", LOCAL, 5432) == "ok"
    assert api.use("c") == "ok"
    assert web.tcp(LOCAL, 5432) == "EPERM"
    return api, web


def test_a_plan_names_the_flow_and_the_live_socket_that_it_would_cut(host: Host, traffic, tmp_path: Path) -> None:
    api, _ = traffic
    review = Review(host, tmp_path / "review")
    review.commit("ann", policy("api -> world 81", more="# the database has moved\n"))
    review.commit("bob", policy("api -> world 81", more="# the database has moved, at last\n"))
    arguments = ("HEAD~2..HEAD", "--replay", "10m")
    found = review.plan(*arguments)
    (edge,) = found["recorded"]["edges"]
    assert (edge["effect"], edge["enforced"], edge["from"], edge["to"], edge["port"]) == (
        "breaks", True, "t/api", "t/db", 5432,
    )  # fmt: skip
    assert edge["flows"] >= 1
    (socket,) = edge["live_sockets"]
    assert socket["process"].endswith(f"[{api.pid}]")
    assert socket["peer"] == f"{LOCAL}:5432"
    assert (edge["rule"]["name"], edge["rule"]["author"]["name"]) == ("t/r1", "ann")
    (lost,) = found["reach"]
    assert lost["traffic"]["live_sockets"] == 1
    assert found["breaking"] == 1
    text = review.text(*arguments)
    assert "BREAKS" in text and "1 BREAKING" in text and "removed by ann" in text
    assert api.use("c") == "ok"  # a plan changes nothing


def test_a_plan_names_what_it_would_let_through_and_who_wrote_it(host: Host, traffic, tmp_path: Path) -> None:
    review = Review(host, tmp_path / "review")
    review.commit("cyd", policy("api -> db 5432", "api -> world 81", "web -> db 5432", "web -> api 90"))
    found = review.plan("HEAD~1..HEAD", "--replay", "10m")
    (edge,) = [one for one in found["recorded"]["edges"] if one["from"] == "t/web"]
    assert (edge["effect"], edge["to"], edge["rule"]["author"]["name"]) == ("unblocks", "t/db", "cyd")
    unused = {one["to"]: one["traffic"]["flows"] for one in found["reach"]}
    assert unused["t/api"] == 0
    assert unused["t/db"] >= 1


def test_an_export_replays_what_the_agent_would(host: Host, traffic, tmp_path: Path) -> None:
    review = Review(host, tmp_path / "review")
    review.commit("ann", policy("api -> world 81"))
    export = tmp_path / "flows.json"
    export.write_text(host.bulkhead("flows", "-o", "json").stdout)
    host_alone = ("HEAD~1..HEAD", "--replay", "10m", "--flows", str(export))
    (edge,) = review.plan(*host_alone)["recorded"]["edges"]
    assert (edge["from"], edge["to"], edge["live_sockets"]) == ("t/api", "t/db", [])


def test_a_match_that_leaves_a_process_out_breaks_its_live_sockets(host: Host, traffic, tmp_path: Path) -> None:
    review = Review(host, tmp_path / "review")
    moved = {name: f"{{match: {{cgroup: /{name}}}, mode: enforce}}" for name in ("web", "db")}
    moved["api"] = "{match: {cgroup: /elsewhere}, mode: enforce}"
    review.commit("ann", policy("api -> db 5432", "api -> world 81", workloads=moved))
    found = review.plan("HEAD~1..HEAD", "--live")
    assert found["reach"] == []
    (edge,) = found["recorded"]["edges"]
    assert (edge["from"], edge["from_elsewhere"], len(edge["live_sockets"])) == ("t/api", "host", 1)


def test_conversations_with_the_world_are_told_by_address_either_way(
    host: Host, far: Host, puppets, tmp_path: Path
) -> None:
    host.enforce(policy("api -> world 81", "world -> db 5432"))
    db, api, outside = puppets(host, "db"), puppets(host, "api"), puppets(far, "any")
    db.serve_tcp("::", 5432)
    outside.serve_tcp("::", 81)
    assert api.hold("out", "10.77.0.2", 81) == "ok"
    assert outside.hold("in", "10.77.0.1", 5432) == "ok"
    review = Review(host, tmp_path / "review")
    review.commit("ann", policy("api -> world 82"))
    edges = review.plan("HEAD~1..HEAD", "--live")["recorded"]["edges"]
    found = {(one["from"], one["to"], one["port"]): (one["addresses"], one["live_sockets"]) for one in edges}
    (addresses, (going,)) = found["t/api", "world", 81]
    assert (addresses, going["peer"]) == (["10.77.0.2"], "10.77.0.2:81")
    (addresses, (coming,)) = found["world", "t/db", 5432]
    assert addresses == ["10.77.0.2"]
    assert coming["process"].endswith(f"[{db.pid}]")
    assert coming["peer"].startswith("10.77.0.2:")
