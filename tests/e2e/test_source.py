"""Policy from a remote with signers: what is accepted, what is refused and why, what an unreachable host changes."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from lab.bpf import can_attach
from lab.host import Host
from lab.policies import policy, repository
from lab.signing import SignedRepository, SshSigner, roots_file, run, ssh_signer

LOCAL = "127.0.0.1"
GOOD = policy("api -> db 5432")
PUSH_TO_KERNEL_S = 3.0


class RemoteHost(Host):
    """A host whose policy comes from a `file://` remote, by signers of the operator."""

    def __init__(self, keys: Mapping[str, SshSigner], keys_directory: Path) -> None:
        super().__init__("remote")
        self.keys = keys
        self.signers = keys_directory / "signers.toml"

    @property
    def settings(self) -> dict[str, object]:
        remote = {"repository": f"file://{self.repository}", "ref": "main", "signers": str(self.signers)}
        return super().settings | remote

    @property
    def signed(self) -> SignedRepository:
        """Where the commits are made."""
        return SignedRepository(self.repository)

    def push(self, files: Mapping[str, str], signer: str = "guard") -> str:
        """Commit to the remote as somebody."""
        return self.signed.commit(files, self.keys[signer] if signer else None)

    def until(self, holds: Callable[[dict[str, Any]], object], timeout_s: float = 15.0) -> dict[str, Any]:
        """The status once it is so."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            status = dict(self.call("status"))
            if holds(status):
                return status
        raise AssertionError(f"{self.call('status')}\n{self.log()}")

    def metrics(self, name: str) -> dict[str, float]:
        """Values of a metric by its labels, as written."""
        got = self.run("tool", ["curl", "-s", "http://127.0.0.1:9464/metrics"]).stdout
        return {labels: float(value) for labels, value in re.findall(rf"^{name}(\{{.*\}})? (\S+)$", got, re.MULTILINE)}


@pytest.fixture(scope="module")
def remote(tmp_path_factory) -> Iterator[RemoteHost]:
    """A host with its agent running."""
    if not can_attach():
        pytest.skip("needs root and a mounted BPF file system")
    directory = tmp_path_factory.mktemp("keys")
    keys = {name: ssh_signer(directory, name) for name in ("guard", "app", "stranger", "old", "gone")}
    (directory / "revoked").write_text(keys["gone"].private.with_suffix(".pub").read_text())
    listed = [(keys[name], level) for name, level in (("guard", "guardrail"), ("app", "app"), ("gone", "guardrail"))]
    more = "valid_before = 2020-01-01T00:00:00Z"
    roots_file(directory / "signers.toml", *listed, (keys["old"], "guardrail"), more=more, revoked="revoked")
    with RemoteHost(keys, directory) as host:
        host.push({"bulkhead.yaml": repository(), "t.yaml": GOOD})
        host.start_agent()
        yield host


@pytest.fixture
def good(remote: RemoteHost, puppets) -> Iterator[Callable[[], None]]:
    """A good policy in force, and who shows that it is."""
    commit = remote.push({"bulkhead.yaml": repository(), "t.yaml": GOOD})
    assert not remote.wait_for_commit(commit)["policy"]["error"]
    db, api, web = puppets(remote, "db"), puppets(remote, "api"), puppets(remote, "web")
    db.serve_tcp(LOCAL, 5432)

    def assert_in_force() -> None:
        assert api.tcp(LOCAL, 5432) == "ok"
        assert web.tcp(LOCAL, 5432) == "EPERM"
        assert remote.call("status")["commit"] == commit

    assert_in_force()
    yield assert_in_force
    accepted = remote.call("status")["commit"]
    remote.signed.git("checkout", "-q", "-f", "-B", "main", accepted)
    remote.until(lambda status: not status["policy"]["error"] and not status["source"]["error"])


def crafted(remote: RemoteHost, *entries: tuple[str, bytes, str]) -> None:
    """A commit upon `main` whose tree is as given, bytes and all, signed by somebody who may write anything."""
    git = remote.signed
    listing = b"".join(mode.encode() + b" " + name + b"\0" + bytes.fromhex(number) for mode, name, number in entries)
    tree = git.git("hash-object", "-t", "tree", "-w", "--literally", "--stdin", stdin=listing)
    signer = remote.keys["guard"]
    commit = git.git("commit-tree", "-S", "-p", "HEAD", "-m", "crafted", tree, signer=signer)
    git.git("update-ref", "refs/heads/main", commit)


def blob(remote: RemoteHost, content: bytes = b"x") -> str:
    return remote.signed.git("hash-object", "-w", "--stdin", stdin=content)


def escaping(remote: RemoteHost) -> None:
    inner = b"100644 a.yaml\0" + bytes.fromhex(blob(remote))
    tree = remote.signed.git("hash-object", "-t", "tree", "-w", "--literally", "--stdin", stdin=inner)
    crafted(remote, ("40000", b"..", tree))


def forced_back(remote: RemoteHost) -> None:
    remote.signed.git("reset", "-q", "--hard", "HEAD~1")


def emptied(remote: RemoteHost) -> None:
    remote.signed.git("checkout", "-q", "--detach")
    remote.signed.git("update-ref", "-d", "refs/heads/main")


def linked(remote: RemoteHost) -> None:
    (remote.repository / "link").symlink_to("/etc")
    remote.push({})


CHANGE = {"t.yaml": policy("web -> db 5432")}
BAD: dict[str, tuple[Callable[[RemoteHost], object], str]] = {
    "unsigned": (lambda remote: remote.push(CHANGE, ""), "BH1101"),
    "signed by a stranger": (lambda remote: remote.push(CHANGE, "stranger"), "BH1102"),
    "signed with an expired key": (lambda remote: remote.push(CHANGE, "old"), "BH1103"),
    "signed with a revoked key": (lambda remote: remote.push(CHANGE, "gone"), "BH1104"),
    "signed at too low a level": (
        lambda remote: remote.push({"bulkhead.yaml": repository("enforce")}, "app"),
        "BH1106",
    ),
    "a branch forced back": (forced_back, "BH1107"),
    "no branch any more": (emptied, "BH1112"),
    "a path that leads out": (escaping, "BH1113"),
    "a symbolic link": (linked, "BH0801"),
    "a submodule": (lambda remote: crafted(remote, ("160000", b"vendor", remote.signed.head())), "BH0801"),
    "a name that is not UTF-8": (lambda remote: crafted(remote, ("100644", b"\xff.yaml", blob(remote))), "BH0802"),
    "a huge file": (
        lambda remote: crafted(remote, ("100644", b"huge.yaml", blob(remote, b"#" * (100 << 20)))),
        "BH0803",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_refused_whole_with_its_reason_while_the_last_good_one_stays(remote: RemoteHost, good, what: str) -> None:
    spoil, code = BAD[what]
    labels = f'{{code="{code}"}}'
    before = remote.metrics("bulkhead_policy_refused_total").get(labels, 0)
    spoil(remote)
    status = remote.until(lambda status: not status["policy"]["ok"])
    assert f"error[{code}]" in status["policy"]["error"]
    good()
    assert remote.metrics("bulkhead_policy_refused_total")[labels] == before + 1
    assert remote.metrics("bulkhead_policy_last_load_ok") == {"": 0}
    shown = remote.bulkhead("status", check=False)
    assert (shown.returncode, f"error[{code}]" in shown.stdout) == (1, True)


def test_a_push_is_enforced_at_once(remote: RemoteHost, good) -> None:
    """From the moment that the branch moves: fetch, verify, compile, switch."""
    git, took = remote.signed, []
    for number in range(10):
        git.write({"t.yaml": policy(f"api -> db 543{number}")})
        git.git("add", "--all")
        tree = git.git("write-tree")
        commit = git.git("commit-tree", "-S", "-p", "HEAD", "-m", "change", tree, signer=remote.keys["app"])
        started = time.monotonic()
        git.git("update-ref", "refs/heads/main", commit)
        remote.until(lambda status, commit=commit: status["commit"] == commit)
        took.append(time.monotonic() - started)
    print(f"median {statistics.median(took) * 1000:.0f} ms, worst {max(took) * 1000:.0f} ms")
    assert statistics.median(took) < PUSH_TO_KERNEL_S


def test_an_unreachable_host_changes_nothing_and_is_told_of(remote: RemoteHost, good) -> None:
    aside = remote.repository.with_name("aside")
    remote.repository.rename(aside)
    try:
        remote.call("reload")
        status = remote.until(lambda status: status["source"]["error"])
        assert status["policy"]["ok"]
        assert status["source"]["code"] == "BH1110"
        assert status["source"]["last_success"] < status["source"]["error_since"]
        good()
        assert remote.metrics("bulkhead_policy_source_up") == {"": 0}
        shown = remote.bulkhead("status", check=False)
        assert shown.returncode == 1
        assert re.search(rf"unreachable for \d+s, enforcing {status['commit'][:7]}.*, fetched \d+s ago", shown.stdout)
    finally:
        aside.rename(remote.repository)
    remote.call("reload")
    status = remote.until(lambda status: not status["source"]["error"])
    assert remote.metrics("bulkhead_policy_source_up") == {"": 1}
    (last,) = remote.metrics("bulkhead_policy_source_last_success_timestamp_seconds").values()
    assert abs(time.time() - last) < 10


def test_a_rollback_holds_until_the_branch_moves_on(remote: RemoteHost, good) -> None:
    first = remote.call("status")["commit"]
    second = remote.push(CHANGE, "app")
    assert remote.wait_for_commit(second)["commit"] == second
    done = remote.bulkhead("rollback", first[:12], "--reason", "web broke")
    assert f"enforcing {first[:7]}" in done.stderr
    good()
    assert remote.call("status")["source"]["held_off"] == second
    assert "held off" in remote.bulkhead("status", check=False).stdout
    (record,) = map(json.loads, (remote.directory / "state" / "rollbacks.jsonl").read_text().splitlines())
    assert {key: record[key] for key in ("from", "to", "reason", "uid")} == {
        "from": second,
        "to": first,
        "reason": "web broke",
        "uid": 0,
    }
    assert abs(time.time() - record["time"]) < 60
    remote.call("reload")
    remote.stop_agent()
    remote.start_agent()
    remote.call("reload")
    status = remote.until(lambda status: status["source"]["last_success"] and status["policy"]["loaded"])
    assert (status["commit"], status["source"]["held_off"], status["policy"]["ok"]) == (first, second, True)
    good()
    third = remote.push({"t.yaml": GOOD}, "app")
    status = remote.wait_for_commit(third)
    assert (status["commit"], status["source"]["held_off"]) == (third, None)


def test_a_rewritten_branch_is_accepted_by_rollback_if_it_is_vouched_for(remote: RemoteHost, good) -> None:
    first = remote.call("status")["commit"]
    git = remote.signed
    git.git("reset", "-q", "--hard", f"{first}~1")
    unsigned = remote.push({"README.md": "rewritten"}, "")
    remote.until(lambda status: status["policy"]["refused_commit"] == unsigned)
    done = remote.bulkhead("rollback", unsigned, "--reason", "rewritten", check=False)
    assert (done.returncode, "BH1101" in done.stderr) == (2, True)
    signed = remote.push({"t.yaml": GOOD}, "guard")
    remote.until(lambda status: status["policy"]["refused_commit"] == signed)
    remote.bulkhead("rollback", signed, "--reason", "rewritten")
    status = remote.until(lambda status: status["commit"] == signed)
    assert (status["policy"]["ok"], status["source"]["held_off"]) == (True, None)


def test_a_rollback_that_cannot_be_had_changes_nothing(remote: RemoteHost, good) -> None:
    done = remote.bulkhead("rollback", "no-such-commit", "--reason", "x", check=False)
    assert done.returncode == 2
    assert "names no commit" in done.stderr
    good()


def test_nothing_follows_when_what_was_accepted_is_lost_until_an_operator_names_a_commit(
    remote: RemoteHost, good
) -> None:
    before = remote.call("status")["commit"]
    remote.stop_agent()
    path = remote.directory / "state" / "accepted.json"
    path.write_text("{}")
    remote.start_agent()
    good()
    pushed = remote.push(CHANGE)
    status = remote.until(lambda status: status["policy"]["refused_commit"] == pushed)
    assert (status["commit"], status["policy"]["ok"]) == (before, False)
    assert f"`{path}` does not say which commit was accepted last" in status["policy"]["error"]
    good()
    shown = remote.bulkhead("status", check=False)
    assert "names the one to go on from" in " ".join(shown.stdout.split())
    remote.bulkhead("rollback", before, "--reason", "what was accepted is lost")
    good()
    assert json.loads(path.read_text())["commit"] == before
    following = remote.push({"t.yaml": GOOD})
    assert remote.wait_for_commit(following)["commit"] == following
    forced_back(remote)
    assert remote.until(lambda status: not status["policy"]["ok"])["commit"] == following


def test_the_policy_process_and_its_mirror_are_for_root_alone(remote: RemoteHost) -> None:
    for name in ("mirror.git", "keyring"):
        assert (remote.directory / "state" / name).stat().st_mode & 0o077 == 0
    assert run("git", "-C", str(remote.directory / "state" / "mirror.git"), "remote") == b""
