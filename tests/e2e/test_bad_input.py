"""Bad input: one clear error that points at its line, and the last good policy stays in force."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from lab.host import PYTHON, Host
from lab.policies import WORKLOADS, policy, repository

LOCAL = "127.0.0.1"
GOOD = policy("api -> db 5432")


def text(body: str) -> str:
    """A policy with the usual workloads, and more."""
    return policy(more=body)


BAD = {
    "broken YAML": (text("allow: {]}\n"), "BH0101", r"t\.yaml:\d+:\d+"),
    "an unknown key": (text("alow: []\n"), "BH0205", r"t\.yaml:8:1"),
    "a duplicate key": (text("allow: []\nallow: []\n"), "BH0107", r"t\.yaml:9:1"),
    "a workload that does not exist": (policy("api -> cache 1"), "BH04", r"t\.yaml:9:\d+"),
    "an empty selector": (policy(workloads=WORKLOADS | {"x": "{match: {}}"}), "BH0", r"t\.yaml:8:\d+"),
    "overlapping selectors": (
        policy(workloads={"a": '{match: {cgroup: "/a*"}}', "b": '{match: {cgroup: "/*b"}}'}),
        "BH0601",
        r"t\.yaml:\d+:\d+",
    ),
    "a port of 70000": (policy("api -> db 70000"), "BH03", r"t\.yaml:9:\d+"),
    "a failing test": (
        policy("api -> db 1", more='tests:\n  - {from: api, accept: ["db:2"]}\n'),
        "BH0",
        r"t\.yaml:\d+:\d+",
    ),
    "a broken invariant": (
        policy("api -> db 1", more="never:\n  - {name: n, from: api, to: db, why: no}\n"),
        "BH0",
        r"t\.yaml:\d+:\d+",
    ),
    "an anchor": (text("exceptions: &a []\n"), "BH0104", r"t\.yaml:8:\d+"),
    "a tag": (text("tests: !!python/object:os.system []\n"), "BH0105", r"t\.yaml:8:\d+"),
}


@pytest.fixture
def good(host: Host, puppets):
    """A good policy in force, and who shows that it is."""
    commit = host.enforce(GOOD)
    db, api, web = puppets(host, "db"), puppets(host, "api"), puppets(host, "web")
    db.serve_tcp(LOCAL, 5432)

    def assert_in_force() -> None:
        assert api.tcp(LOCAL, 5432) == "ok"
        assert web.tcp(LOCAL, 5432) == "EPERM"
        assert host.call("status")["commit"] == commit

    yield assert_in_force
    host.enforce(GOOD)


def metric(host: Host, name: str) -> float:
    got = host.run("tool", ["curl", "-s", "http://127.0.0.1:9464/metrics"]).stdout
    return float(re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", got, re.MULTILINE)[0])


@pytest.mark.parametrize("what", BAD)
def test_the_last_good_policy_stays_in_force_over(host: Host, good, what: str) -> None:
    bad, code, place = BAD[what]
    commit = host.commit({"t.yaml": bad})
    status = host.wait_for_commit(commit)
    error = status["policy"]["error"]
    assert status["policy"]["refused_commit"] == commit
    assert not status["policy"]["ok"]
    assert f"error[{code}" in error
    assert re.search(place + rf"@{commit[:7]}", error), error
    assert "^" in error, "no caret"
    good()


def test_metric_and_status_tell_of_a_refusal_until_it_is_mended(host: Host, good) -> None:
    assert metric(host, "bulkhead_policy_last_load_ok") == 1
    host.wait_for_commit(host.commit({"t.yaml": BAD["a port of 70000"][0]}))
    assert metric(host, "bulkhead_policy_last_load_ok") == 0
    shown = host.bulkhead("status", check=False).stdout
    assert "REFUSED" in shown
    assert "70000" in shown
    good()
    host.commit({"t.yaml": GOOD})
    until = time.monotonic() + 5
    while host.call("status")["policy"]["error"] and time.monotonic() < until:
        continue
    assert metric(host, "bulkhead_policy_last_load_ok") == 1


def test_a_map_that_would_overflow_is_refused_before_anything_is_written(host: Host, good) -> None:
    everybody = {f"w{number}": f"{{match: {{cgroup: /w{number}}}}}" for number in range(300)}
    ends, ports = f"[{', '.join(everybody)}]", ", ".join(str(port) for port in range(1, 41, 2))
    bad = policy(f"{ends} -> {ends.replace(' ', '')} {ports}", workloads=everybody)
    before = host.call("status")["generation"]
    status = host.wait_for_commit(host.commit({"t.yaml": bad}), timeout_s=60)
    assert "error[BH07" in (status["policy"]["error"] or "")
    assert status["generation"] == before
    good()


def test_a_missing_commit_is_refused(host: Host, good) -> None:
    """The reference names an object that is not there."""
    reference = host.repository / ".git" / "refs" / "heads" / "main"
    right = reference.read_text()
    reference.write_text("0123456789" * 4 + "\n")
    try:
        until = time.monotonic() + 10
        while not host.call("status")["policy"]["error"] and time.monotonic() < until:
            continue
        assert "names no commit" in host.call("status")["policy"]["error"]
        good()
    finally:
        reference.write_text(right)


def test_a_repository_without_its_first_file_is_refused(host: Host, good) -> None:
    (host.repository / "bulkhead.yaml").unlink()
    try:
        status = host.wait_for_commit(host.commit({}))
        assert "bulkhead.yaml" in status["policy"]["error"]
        good()
    finally:
        host.commit({"bulkhead.yaml": repository()})


def test_a_change_that_is_not_committed_changes_nothing(host: Host, good) -> None:
    (host.repository / "t.yaml").write_text(policy("web -> db 5432"))
    host.call("reload")
    good()
    assert not host.call("status")["policy"]["error"]


@pytest.mark.parametrize("what", BAD)
def test_lint_exits_with_two_and_points_at_the_place(host: Host, tmp_path: Path, what: str) -> None:
    bad, code, place = BAD[what]
    (tmp_path / "bulkhead.yaml").write_text(repository())
    (tmp_path / "t.yaml").write_text(bad)
    done = host.run("tool", [PYTHON, "-m", "bulkhead.cli.main", "lint", str(tmp_path)])
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"error[{code}" in done.stdout + done.stderr
    assert re.search(place, done.stdout + done.stderr)
    assert "Traceback" not in done.stderr


def test_a_good_policy_lints_clean(host: Host, tmp_path: Path) -> None:
    (tmp_path / "bulkhead.yaml").write_text(repository())
    (tmp_path / "t.yaml").write_text(GOOD)
    done = host.run("tool", [PYTHON, "-m", "bulkhead.cli.main", "lint", str(tmp_path)])
    assert done.returncode == 0, done.stdout + done.stderr
