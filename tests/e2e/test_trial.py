"""Nobody is locked out: a policy that is only tried goes away by itself, with the agent alive or dead."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bulkhead.control import client
from bulkhead.errors import BulkheadError
from lab.host import PYTHON, Host, joined
from lab.policies import policy, repository
from lab.sshd import Sshd

FAR4, NEAR4 = "10.77.0.2", "10.77.0.1"
WORKLOADS = {
    "sshd": "{match: {cgroup: /ssh}, mode: enforce}",
    "api": "{match: {cgroup: /api}, mode: enforce}",
    "db": "{match: {cgroup: /db}, mode: enforce}",
}
ADMINS = {"admins": "{cidr: [10.77.0.2/32]}"}


def rules(*written: str) -> dict[str, str]:
    return {"bulkhead.yaml": repository(), "t.yaml": policy(*written, workloads=WORKLOADS, externals=ADMINS)}


@pytest.fixture(scope="module")
def machines() -> Iterator[tuple[Host, Host, Sshd]]:
    """A host with a real sshd, and its administrator's machine at the other end of the wire."""
    with Host("near") as near, Host("far") as far, joined(near, far):
        near.commit(rules("admins -> sshd 22", "api -> db 5432"))
        near.start_agent()
        with Sshd(near, "ssh", NEAR4) as sshd:
            yield near, far, sshd


@pytest.fixture
def lab(machines) -> tuple[Host, Host, Sshd]:
    """The administrator may log in, `api` may reach `db`, and no policy is tried."""
    calm(machines[0])
    return machines


def calm(near: Host) -> None:
    if near.agent is None or near.more_settings:
        near.more_settings = {}
        near.stop_agent()
        near.start_agent()
    elif near.call("status")["trial"]:
        near.bulkhead("revert", check=False)  # it may lapse right now
    git = ["git", "-C", str(near.repository), "-c", "user.name=lab", "-c", "user.email=lab@example.org"]
    subprocess.run([*git, "merge", "-q", "-s", "ours", "-m", "after a trial", commit_of(near)], check=True)
    commit = near.commit(rules("admins -> sshd 22", "api -> db 5432"))
    assert near.wait_for_commit(commit)["commit"] == commit


@dataclass(frozen=True, slots=True)
class Lapse:
    """A trial of 10 s that ended with the agent dead. Monotonic seconds."""

    asked: float
    answered: float
    """Its time began between the two."""
    meanwhile: dict[str, str]
    """What was seen while it ran, by where somebody looked."""
    turned: dict[str, tuple[float, float]]
    """Between which moments `ok` turned into a refusal, or the other way round."""

    def is_on_time(self, where: str, late_s: float = 2) -> bool:
        """It counts whole seconds, so it may be one short."""
        last, first = self.turned[where]
        return first - self.asked > 9 and last - self.answered < 10 + late_s


@pytest.fixture(scope="module")
def lapse(machines) -> Lapse:
    """For 10 s `api` may reach `db` on 5433 instead of 5432. Somebody looks at each for as long as nothing changes."""
    near, _, _ = machines
    calm(near)
    branch(near, "other", "admins -> sshd 22", "api -> db 5433")
    api, db = near.puppet("api"), near.puppet("db")
    for port in (5432, 5433):
        db.serve_tcp("0.0.0.0", port)
    asked = time.monotonic()
    near.bulkhead("try", "other", "--timeout", "10s")
    answered = time.monotonic()
    assert api.hold("c", "127.0.0.1", 5433) == "ok"
    worker = near.puppet("api/worker-1")
    looks = {
        "forbidden": lambda: api.tcp("127.0.0.1", 5432),
        "open": lambda: api.use("c"),
        "new group": lambda: worker.tcp("127.0.0.1", 5432),
    }
    meanwhile = {where: look() for where, look in looks.items()}
    near.stop_agent(9)
    turned: dict[str, tuple[float, float]] = {}
    while turned.keys() != looks.keys() and time.monotonic() - answered < 20:
        for where in looks.keys() - turned.keys():
            began = time.monotonic()
            if (looks[where]() == "ok") != (meanwhile[where] == "ok"):
                turned[where] = began, time.monotonic()
    for one in (api, db, worker):
        one.end()
    return Lapse(asked, answered, meanwhile, turned)


def branch(host: Host, name: str, *written: str) -> str:
    """Commit rules on a branch that is not enforced: in a clone, for what is checked out here is what is enforced."""
    clone = host.directory / "clone"
    shutil.rmtree(clone, ignore_errors=True)
    subprocess.run(["git", "clone", "-q", str(host.repository), str(clone)], check=True)
    for path, text in rules(*written).items():
        (clone / path).write_text(text)
    git = ["git", "-C", str(clone), "-c", "user.name=lab", "-c", "user.email=lab@example.org"]
    subprocess.run([*git, "commit", "-q", "-am", name], check=True)
    subprocess.run([*git, "push", "-q", "--force", "origin", f"HEAD:{name}"], check=True)
    return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


def bulkhead(host: Host, *arguments: str) -> str:
    """A command line for the administrator's shell, with its exit code at the end."""
    return f"{PYTHON} -m bulkhead.cli.main {' '.join(arguments)} --run-dir {host.run_dir} 2>&1; echo exit $?"


def commit_of(host: Host) -> str:
    return str(host.call("status")["commit"])


@pytest.mark.parametrize("agent_dies", [False, True])
def test_an_administrator_who_locks_himself_out_gets_back_in(lab, agent_dies: bool) -> None:
    near, far, sshd = lab
    before = commit_of(near)
    branch(near, "bad", "api -> db 5432")
    with sshd.login(far) as session:
        assert session.run("echo here") == "here"
        began = time.monotonic()
        session.send(bulkhead(near, "try", "bad", "--timeout", "10s"))
        assert session.is_cut(within_s=5), "the connection of the one who tries is judged by the tried policy too"
    assert not sshd.can_login(far, timeout_s=2)
    if agent_dies:
        near.stop_agent(9)
    while not sshd.can_login(far, timeout_s=1):
        assert time.monotonic() - began < 20, near.log()
    assert time.monotonic() - began > 9
    if agent_dies:
        near.start_agent()
    assert commit_of(near) == before


def test_the_operators_lifeline_is_not_for_a_commit_to_cut(lab) -> None:
    """Not by saying nothing of it, by forbidding it, or by a test that wants it closed."""
    near, far, sshd = lab
    near.stop_agent()
    near.more_settings = {"lifeline": [{"from": "10.77.0.2/32", "port": 22}]}
    near.start_agent()
    text = rules("api -> db 5432")
    text["t.yaml"] += (
        "never:\n  - {name: closed, from: admins, to: sshd, why: nobody logs in}\n"
        'tests:\n  - {from: admins, deny: ["sshd:22"]}\n'
    )
    commit = near.commit(text)
    assert near.wait_for_commit(commit)["commit"] == commit
    assert sshd.can_login(far, timeout_s=5)
    (rule,) = [one for one in near.ask("rules", "ls")["rules"] if one["kind"] == "operator"]
    assert (rule["name"], rule["source"].partition("@")[0]) == ("agent.toml/lifeline-1", "agent.toml:1")


def test_a_confirmed_policy_stays_and_so_does_an_old_one_not(lab, puppets) -> None:
    near, far, sshd = lab
    good = branch(near, "good", "admins -> sshd 22")
    api, db = puppets(near, "api"), puppets(near, "db")
    db.serve_tcp("0.0.0.0", 5432)
    assert api.tcp("127.0.0.1", 5432) == "ok"
    with sshd.login(far) as first:
        assert first.run(bulkhead(near, "try", "good", "--timeout", "30s")).endswith("exit 0")
        assert api.tcp("127.0.0.1", 5432) == "EPERM"
        refused = first.run(bulkhead(near, "confirm"))
        assert "older than the trial" in refused
        assert refused.endswith("exit 3")
        trick = first.run(f"setsid -w sh -c '{bulkhead(near, 'confirm')}'")
        assert "older than the trial" in trick
        with sshd.login(far) as second:
            assert second.run(bulkhead(near, "confirm")).endswith("exit 0")
    status = near.call("status")
    assert (status["commit"], status["trial"], status["policy"]["error"]) == (good, None, None)
    near.stop_agent()
    near.start_agent()
    assert commit_of(near) == good
    assert api.tcp("127.0.0.1", 5432) == "EPERM"


def test_a_login_from_the_machine_itself_does_not_confirm(lab) -> None:
    near, far, sshd = lab
    branch(near, "good", "admins -> sshd 22", "sshd -> sshd 22", "host -> sshd 22")
    near.bulkhead("try", "good", "--timeout", "30s")
    with sshd.login(near) as inside:
        assert "from this machine itself" in inside.run(bulkhead(near, "confirm"))
    near.bulkhead("revert")
    assert near.call("status")["trial"] is None
    assert sshd.can_login(far, timeout_s=5)


def test_a_trial_reverts_in_the_kernel_on_time_with_the_agent_dead(lapse) -> None:
    assert lapse.meanwhile["forbidden"] == "EPERM"
    assert lapse.is_on_time("forbidden"), lapse


def test_what_a_trial_opened_is_closed_when_it_lapses_with_the_agent_dead(lapse) -> None:
    """An open conversation that only the tried policy allows ends with it, though its verdict is cached."""
    assert lapse.meanwhile["open"] == "ok"
    assert lapse.is_on_time("open"), lapse


def test_control_groups_made_during_a_trial_are_known_when_it_has_lapsed(lapse) -> None:
    assert lapse.meanwhile["new group"] == "EPERM"
    assert lapse.is_on_time("new group", late_s=3), lapse


def test_an_agent_that_starts_during_a_trial_goes_back_at_once(lab) -> None:
    near, _, _ = lab
    before = commit_of(near)
    branch(near, "closed", "admins -> sshd 22")
    near.bulkhead("try", "closed", "--timeout", "600s")
    near.stop_agent(9)
    near.start_agent()
    status = near.call("status")
    assert (status["commit"], status["trial"]) == (before, None)


def test_commits_made_during_a_trial_wait_for_its_end(lab) -> None:
    near, _, _ = lab
    branch(near, "closed", "admins -> sshd 22")
    near.bulkhead("try", "closed", "--timeout", "60s")
    latest = near.commit(rules("admins -> sshd 22", "api -> db 5434"), "meanwhile")
    tried = near.call("status")
    assert tried["trial"]["commit"] == tried["commit"] != latest
    near.bulkhead("revert")
    assert near.wait_for_commit(latest)["commit"] == latest


def test_a_quarantine_during_a_trial_outlives_its_end(lab, puppets) -> None:
    near, _, _ = lab
    branch(near, "closed", "admins -> sshd 22")
    api, db = puppets(near, "api"), puppets(near, "db")
    db.serve_tcp("0.0.0.0", 5432)
    near.bulkhead("try", "closed", "--timeout", "600s")
    near.bulkhead("quarantine", "api", "--reason", "drill")
    near.bulkhead("revert")
    assert api.tcp("127.0.0.1", 5432) == "EPERM"
    near.bulkhead("release", "api")
    assert api.tcp("127.0.0.1", 5432) == "ok"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("try", "nothing", "--timeout", "60s"), "`nothing` names no commit"),
        (("try", "main", "--timeout", "5s"), "a trial lasts 10 to 3600 seconds"),
        (("try", "main", "--timeout", "86400s"), "a trial lasts 10 to 3600 seconds"),
        (("confirm",), "no policy is being tried"),
        (("revert",), "no policy is being tried"),
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(lab, arguments, complaint: str) -> None:
    near, _, _ = lab
    before = commit_of(near)
    done = near.bulkhead(*arguments, check=False)
    assert done.returncode in (2, 3)
    assert complaint in done.stderr
    assert commit_of(near) == before


def test_a_broken_policy_is_not_even_tried(lab) -> None:
    near, _, _ = lab
    branch(near, "broken", "api -> nobody 22")
    done = near.bulkhead("try", "broken", check=False)
    assert done.returncode == 2
    assert "nobody" in done.stderr
    assert near.call("status")["trial"] is None


def test_only_one_trial_runs_at_a_time(lab) -> None:
    near, _, _ = lab
    branch(near, "closed", "admins -> sshd 22")
    near.bulkhead("try", "closed", "--timeout", "60s")
    with pytest.raises(BulkheadError, match="a policy is being tried"):
        client.call(near.run_dir / "control.sock", "try", {"revision": "main", "seconds": 60})


@pytest.fixture(autouse=True)
def needs_sshd() -> None:
    if shutil.which("sshd", path="/usr/sbin:/usr/bin") is None:
        pytest.fail("openssh-server is not installed: run tools/setup.sh")
    assert Path("/run").is_dir()
