"""A running agent whose repository turns hostile: the last good policy stays, the metric and the status say why."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

import pytest

from lab.host import Host
from lab.hostile import HOSTILE, Store
from lab.policies import policy

LOCAL = "127.0.0.1"
GOOD = policy("api -> db 5432")

REPRESENTATIVE = (
    "an alias bomb",
    "deep flow",
    "an object tag",
    "bytes that are no text",
    "a NUL",
    "a duplicate key",
    "a dialect field that cannot be enforced",
    "a file of 100 MB",
    "too many files",
    "more entries than the maps hold",
    "a symbolic link",
    "a submodule",
    "a climbing path",
    "a name that is no text",
    "an empty commit",
    "a missing blob",
    "a forged blob",
)


@pytest.fixture
def in_force(host: Host, puppets) -> Iterator[Callable[[], None]]:
    """A good policy in force, and who shows that it still is."""
    commit = host.enforce(GOOD)
    db, api, web = puppets(host, "db"), puppets(host, "api"), puppets(host, "web")
    db.serve_tcp(LOCAL, 5432)

    def check() -> None:
        assert api.tcp(LOCAL, 5432) == "ok"
        assert web.tcp(LOCAL, 5432) == "EPERM"
        assert host.call("status")["commit"] == commit

    check()
    yield check
    store = Store(host.repository)
    store.git("update-ref", "refs/heads/main", commit)
    store.git("reset", "--quiet", "--hard", commit)
    host.enforce(GOOD)


def refusal(host: Host, commit: str) -> str:
    """What the agent says of a commit, once it has."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        status = host.call("status")["policy"]
        if status["refused_commit"] == commit and status["error"]:
            return str(status["error"])
        host.run("tool", ["true"])
    raise AssertionError(f"nothing was said of {commit}: {host.call('status')['policy']}")


@pytest.mark.parametrize("what", REPRESENTATIVE)
def test_the_last_good_policy_stays_in_force(host: Host, in_force: Callable[[], None], what: str) -> None:
    hostile = HOSTILE[what]
    store = Store(host.repository, branch="staged")
    hostile.build(store)
    commit = store.git("rev-parse", "refs/heads/staged")
    store.git("update-ref", "refs/heads/main", commit)
    error = refusal(host, commit)
    assert hostile.says in error
    got = host.run("tool", ["curl", "-s", "http://127.0.0.1:9464/metrics"]).stdout
    assert re.search(r"^bulkhead_policy_last_load_ok 0(\.0)?$", got, re.MULTILINE)
    shown = host.bulkhead("status", check=False).stdout
    assert "REFUSED" in shown
    assert hostile.says in shown
    in_force()
