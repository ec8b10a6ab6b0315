"""A workload that is not as its policy requires is nobody, within a second, until it is."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.host import Host
from lab.policies import policy

LOCAL = "127.0.0.1"
CUT = ("timeout", "ECONNRESET", "ECONNABORTED", "ETIMEDOUT", "EPIPE", "EPERM")
LIMIT_S = 1.0
"""From what happened to what comes of it."""
NO_NEW_PRIVILEGES = "import ctypes; ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)"


@pytest.fixture
def db(host: Host, puppets):
    """A server at 127.0.0.1:5432, the workload `db`."""
    one = puppets(host, "db")
    one.serve_tcp(LOCAL, 5432)
    return one


@pytest.fixture
def healthy(host: Host):
    """The health file `healthy` of the host, as the operator's check keeps it."""
    path = host.run_dir / "health" / "healthy"
    path.parent.mkdir(exist_ok=True)
    path.write_text("ok\n")
    yield path
    shutil.rmtree(path.parent)


def require(host: Host, posture: str, match: str = "{cgroup: /api}", mode: str = "enforce") -> None:
    """Enforce that `api` may reach `db`, and be as `posture` says."""
    workloads = {
        "db": f"{{match: {{cgroup: /db}}, mode: {mode}}}",
        "api": f"{{match: {match}, mode: {mode}, posture: {posture}}}",
    }
    host.enforce(policy("api -> db 5432", workloads=workloads))


def withheld(host: Host) -> dict[str, list[str]]:
    """The terms that fail, by workload."""
    found = host.call("status")["withheld"]
    return {one["workload"]: [each["term"] for each in one["failures"]] for one in found}


def within_limit(condition: Callable[[], bool]) -> bool:
    """Whether it holds when asked within the limit. Asking may take its time: what is dropped is waited for."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        asked = time.monotonic()
        if condition():
            return True
        if asked > deadline:
            return False
        time.sleep(0.01)  # each question is a refusal, and a flood of them would be sampled


def refused(host: Host) -> list[dict[str, Any]]:
    """What was refused for posture under the commit in force."""
    commit = host.call("status")["commit"]
    return [one for one in host.call("drops")["records"] if (one["reason"], one["commit"]) == ("posture", commit)]


def digest(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    """An interpreter of our own."""
    path = tmp_path / "api"
    shutil.copy2(Path(sys.executable).resolve(), path)
    return path


def test_an_executable_that_is_replaced_costs_the_identity_and_every_conversation(
    host: Host, db, puppets, binary: Path
) -> None:
    del db
    require(host, f"{{digest: ['{digest(binary)}']}}", f"{{exe: {binary}}}")
    api = puppets(host, "x", python=str(binary))
    assert api.hold("db", LOCAL, 5432) == "ok"
    kept, other = binary.with_name("kept"), binary.with_name("other")
    os.link(binary, kept)
    other.write_bytes(binary.read_bytes() + b"\0")
    other.chmod(0o755)
    os.replace(other, binary)
    assert within_limit(lambda: withheld(host) == {"t/api": ["digest"]})
    assert (api.tcp(LOCAL, 5432), api.use("db") in CUT) == ("EPERM", True)
    assert puppets(host, "x", python=str(binary)).tcp(LOCAL, 5432) == "EPERM"
    os.replace(kept, binary)
    assert withheld(host) == {"t/api": ["digest"]}, "the process that runs the other one is still there"


def test_what_is_put_back_is_allowed_again(host: Host, db, puppets, binary: Path) -> None:
    del db
    require(host, f"{{digest: ['{digest(binary)}']}}", f"{{exe: {binary}}}")
    api = puppets(host, "x", python=str(binary))
    kept, other = binary.with_name("kept"), binary.with_name("other")
    os.link(binary, kept)
    other.write_bytes(b"#!/bin/sh\n")
    os.replace(other, binary)
    assert within_limit(lambda: api.tcp(LOCAL, 5432) == "EPERM")
    os.replace(kept, binary)
    assert within_limit(lambda: api.tcp(LOCAL, 5432) == "ok")


def test_a_process_that_runs_another_executable_costs_its_workload_the_identity(
    host: Host, db, puppets, binary: Path, tmp_path: Path
) -> None:
    del db
    other = tmp_path / "other"
    other.write_bytes(binary.read_bytes() + b"\0")
    other.chmod(0o755)
    require(host, f"{{digest: ['{digest(binary)}']}}")
    api = puppets(host, "api", python=str(binary))
    assert api.tcp(LOCAL, 5432) == "ok"
    intruder = puppets(host, "api/deeper", python=str(other))
    assert within_limit(lambda: (api.tcp(LOCAL, 5432), intruder.tcp(LOCAL, 5432)) == ("EPERM", "EPERM"))
    intruder.end()
    assert within_limit(lambda: api.tcp(LOCAL, 5432) == "ok")


def test_a_namesake_in_another_mount_namespace_costs_nobody_anything(
    host: Host, db, puppets, binary: Path, tmp_path: Path
) -> None:
    del db
    other = tmp_path / "other"
    other.write_bytes(binary.read_bytes() + b"\0")
    other.chmod(0o755)
    require(host, f"{{digest: ['{digest(binary)}']}}", f"{{exe: {binary}}}")
    api = puppets(host, "x", python=str(binary))
    script = 'mount --bind "$1" "$0" && exec "$0" -c "$2"'
    code = "import time; print(flush=True); time.sleep(1.2)"
    done = host.run("y", ["unshare", "-m", "sh", "-c", script, str(binary), str(other), code])
    assert done.stdout == "\n"
    assert (withheld(host), api.tcp(LOCAL, 5432)) == ({}, "ok")
    lines = (host.directory / "state" / "generations.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["why"] == "commit"


def test_a_health_file_that_is_gone_cuts_and_is_named_wherever_one_looks(host: Host, db, puppets, healthy) -> None:
    del db
    require(host, "{node: [healthy]}")
    api = puppets(host, "api")
    assert api.hold("db", LOCAL, 5432) == "ok"
    healthy.unlink()
    assert within_limit(lambda: api.use("db") in CUT)
    assert api.tcp(LOCAL, 5432) == "EPERM"
    text = "node.healthy has to be ok, found: there is no"
    assert text in " ".join(host.bulkhead("status").stdout.split())
    assert text in " ".join(host.bulkhead("workloads").stdout.split())
    (posture,) = (one["posture"] for one in host.call("workloads")["workloads"] if one["name"] == "t/api")
    assert (posture["ok"], time.time() - posture["since"] < 10) == (False, True)
    assert {(one["source"], one["verdict"]) for one in refused(host)} == {("t/api", "deny")}
    why = host.bulkhead("why", "api", "db:5432").stdout
    assert "not as its posture requires" in " ".join(why.split())
    assert text in " ".join(why.split())
    metrics = host.run("tool", ["curl", "-s", "http://127.0.0.1:9464/metrics"]).stdout
    assert 'bulkhead_workload_posture_ok{workload="t/api"} 0.0' in metrics
    healthy.write_text("ok\n")
    assert within_limit(lambda: api.tcp(LOCAL, 5432) == "ok")


def test_nobody_reaches_a_workload_that_is_withheld(host: Host, puppets, healthy) -> None:
    workloads = {
        "db": "{match: {cgroup: /db}, mode: enforce, posture: {node: [healthy]}}",
        "api": "{match: {cgroup: /api}, mode: observe}",
    }
    host.enforce(policy("api -> db 5432", workloads=workloads))
    db, api = puppets(host, "db"), puppets(host, "api")
    db.serve_tcp(LOCAL, 5432)
    assert api.tcp(LOCAL, 5432) == "ok"
    healthy.write_text("failing\n")
    assert within_limit(lambda: api.tcp(LOCAL, 5432) in CUT)
    assert withheld(host) == {"t/db": ["node.healthy"]}
    assert {(one["source"], one["verdict"]) for one in refused(host)} >= {("t/api", "deny")}


def test_a_workload_in_observe_mode_is_only_told_of(host: Host, db, puppets) -> None:
    del db
    require(host, "{node: [no-such-check]}", mode="observe")
    api = puppets(host, "api")
    assert api.tcp(LOCAL, 5432) == "ok"
    assert {one["verdict"] for one in refused(host)} == {"would-deny"}


@pytest.mark.parametrize(
    ("fails", "holds"),
    [
        ('{package: {dpkg: ">= 99:1"}}', '{package: {dpkg: ">= 1.0"}}'),
        ('{kernel: ">= 99"}', '{kernel: ">= 5.15"}'),
    ],
)
def test_versions_are_compared_when_the_commit_is_put_into_force(host: Host, db, puppets, fails, holds) -> None:
    del db
    api = puppets(host, "api")
    require(host, fails)
    assert api.tcp(LOCAL, 5432) == "EPERM"
    require(host, holds)
    assert api.tcp(LOCAL, 5432) == "ok"


def test_what_the_kernel_attests_of_every_process_is_what_counts(host: Host, db, puppets) -> None:
    del db
    api = puppets(host, "api")
    require(host, "{hardening: {NoNewPrivileges: true}}")
    assert (api.tcp(LOCAL, 5432), withheld(host)) == ("EPERM", {"t/api": ["hardening.NoNewPrivileges"]})
    api.do(NO_NEW_PRIVILEGES)
    assert within_limit(lambda: api.tcp(LOCAL, 5432) == "ok")


def test_posture_lost_while_the_agent_was_away_is_found_before_it_is_ready(host: Host, db, puppets, healthy) -> None:
    del db
    require(host, "{node: [healthy]}")
    api = puppets(host, "api")
    assert api.hold("db", LOCAL, 5432) == "ok"
    host.stop_agent()
    healthy.unlink()
    host.start_agent()
    assert (api.tcp(LOCAL, 5432), api.use("db") in CUT) == ("EPERM", True)
    host.stop_agent()
    assert api.tcp(LOCAL, 5432) == "EPERM", "and stays so with the agent gone"
    host.start_agent()
    assert (api.tcp(LOCAL, 5432), withheld(host)) == ("EPERM", {"t/api": ["node.healthy"]})


def test_the_policy_that_returns_after_a_trial_is_held_to_its_own_posture(host: Host, db, puppets, healthy) -> None:
    del db
    require(host, "{node: [healthy]}")
    api = puppets(host, "api")
    text = policy("api -> db 5432", workloads={name: f"{{match: {{cgroup: /{name}}}}}" for name in ("api", "db")})
    tried = host.commit({"t.yaml": text}, "branch")
    host.wait_for_commit(tried)
    require(host, "{node: [healthy]}")
    host.call("try", revision=tried, seconds=30)
    healthy.unlink()
    assert not within_limit(lambda: api.tcp(LOCAL, 5432) != "ok"), "nothing is required by what is tried"
    host.call("revert")
    assert api.tcp(LOCAL, 5432) == "EPERM"


def test_failing_on_purpose_is_no_way_out_of_isolation(host: Host, db, puppets, healthy) -> None:
    del db
    require(host, "{node: [healthy]}", mode="observe")
    api = puppets(host, "api")
    host.bulkhead("quarantine", "api", "--reason", "drill")
    try:
        healthy.unlink()
        assert within_limit(lambda: withheld(host) == {"t/api": ["node.healthy"]})
        assert api.tcp(LOCAL, 5432) == "EPERM"
    finally:
        host.bulkhead("release", "api")
    assert api.tcp(LOCAL, 5432) == "ok", "in observe mode"


def test_the_kernel_is_as_git_says_while_an_identity_is_withheld(host: Host, db, puppets) -> None:
    del db
    require(host, "{node: [no-such-check]}")
    looked = host.call("status")["drift"]["looked"]
    while host.call("status")["drift"]["looked"] == looked:
        pass
    status = host.call("status")
    assert (status["git_equals_kernel"], status["drift"]["standing"]) == (True, [])
    assert puppets(host, "api").tcp(LOCAL, 5432) == "EPERM"
