"""`bulkhead verify` and `rollback`, and what `status` says of the source."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from bulkhead.cli.main import run
from lab.signing import SignedRepository, roots_file, ssh_signer
from unit.cli import fake_agent
from unit.cli.fake_agent import FakeAgent

BULKHEAD = "apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: example.org\n"
Captured = pytest.CaptureFixture[str]


class Signed:
    """A repository with two commits by one signer, and the operator's file that names him."""

    def __init__(self, directory: Path) -> None:
        self.signer = ssh_signer(directory, "ann")
        self.repository = SignedRepository(directory / "r")
        self.repository.commit({"bulkhead.yaml": BULKHEAD}, self.signer)
        self.second = self.repository.commit({"README.md": "x"}, self.signer)
        self.roots = roots_file(directory / "signers.toml", (self.signer, "guardrail"))

    def verify(self, commits: str, *arguments: str) -> int:
        return run(["verify", commits, "--repository", str(self.repository.path), *arguments])


@pytest.fixture
def signed(tmp_path: Path) -> Signed:
    return Signed(tmp_path)


def test_verify_lists_who_signed_what(signed: Signed, capfd: Captured) -> None:
    assert signed.verify("HEAD~1..HEAD", "--signers", str(signed.roots)) == 0
    out, err = capfd.readouterr()
    head, row = out.splitlines()
    assert head.split() == ["COMMIT", "SIGNER", "LEVEL", "KEY"]
    assert row.split()[:3] == [signed.second[:7], "ann", "guardrail"]
    assert err == ""


def test_verify_writes_json(signed: Signed, capfd: Captured) -> None:
    assert signed.verify("main", "--signers", str(signed.roots), "-o", "json") == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["kind"] == "Verified"
    assert [one["commit"] for one in answer["data"]] == [signed.second]


@pytest.mark.parametrize("output", ["table", "json"])
def test_verify_exits_with_one_and_says_why_a_commit_may_not_follow(
    signed: Signed, capfd: Captured, output: str
) -> None:
    signed.repository.commit({"README.md": "y"})
    assert signed.verify("HEAD~1..HEAD", "--signers", str(signed.roots), "-o", output) == 1
    out, err = capfd.readouterr()
    assert "BH1101" in (out if output == "json" else err)


def test_verify_by_the_signers_of_the_repository_alone(signed: Signed, capfd: Captured) -> None:
    named = BULKHEAD + f'signers:\n  - {{name: ann, level: guardrail, key: "{signed.signer.written}"}}\n'
    signed.repository.commit({"bulkhead.yaml": named})
    signed.repository.commit({"README.md": "y"}, signed.signer)
    assert signed.verify("HEAD~1..HEAD") == 0
    capfd.readouterr()


@pytest.mark.parametrize(
    ("commits", "code", "says"),
    [
        ("HEAD~1..HEAD", 2, "nobody has to sign"),
        ("main", 2, "nobody has to sign"),
        ("nothing..HEAD", 3, "names no commit"),
        ("--all", 2, "No such option"),
    ],
)
def test_verify_cannot_judge(signed: Signed, capfd: Captured, commits: str, code: int, says: str) -> None:
    assert signed.verify(commits) == code
    assert says in capfd.readouterr().err


def test_rollback_asks_the_agent_and_says_what_is_held_off(tmp_path: Path, capfd: Captured) -> None:
    answer = {"origin": "b" * 40, "target": "a" * 40, "held_off": "b" * 40, "generation": 8, "reason": "x", "uid": 0}
    agent = FakeAgent({"rollback": answer})
    with agent.running(tmp_path):
        assert run(["rollback", "aaaa", "--reason", "it broke", "--run-dir", str(tmp_path)]) == 0
        assert run(["rollback", "aaaa", "--run-dir", str(tmp_path)]) == 2
    assert agent.asked == [("rollback", {"commit": "aaaa", "reason": "it broke"})]
    assert "enforcing aaaaaaa in generation 8; bbbbbbb is held off" in capfd.readouterr().err


def test_status_says_since_when_the_source_is_silent_and_exits_with_one(tmp_path: Path, capfd: Captured) -> None:
    now = time.time()
    source = {
        "ok": False,
        "error": "error[BH1110]: cannot fetch from `ssh://h/p`: no route",
        "error_since": now - 200,
        "last_success": now - 3700,
        "held_off": None,
    }
    with FakeAgent({"status": fake_agent.status(now, source=source)}).running(tmp_path):
        assert run(["status", "--run-dir", str(tmp_path)]) == 1
    out = capfd.readouterr().out
    assert "source     unreachable for 3m, enforcing 3f2c1ab (generation 7), fetched 1h ago" in out
    assert "BH1110" in out
