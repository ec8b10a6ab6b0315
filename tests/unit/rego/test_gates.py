"""Where the Rego of a repository is looked at: before the agent takes a commit, by `lint`, and by `test`."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from bulkhead.cli.main import run
from bulkhead.config import Settings
from bulkhead.errors import ExitCode
from bulkhead.policy.parse import ParseCache
from bulkhead.policyd import Compiler, LocalSource
from lab.repository import example_repository, git

DENY = 'package bulkhead.lint\n\ndeny contains "not on a Friday" if count(input.rules) > 0\n'
WARN = 'package bulkhead.lint\n\nwarn contains "it is Friday" if count(input.rules) > 0\n'


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The example policy, whose commits are taken as they are."""
    return example_repository(tmp_path / "policy")


def commit(repository: Path, text: str) -> None:
    (repository / "guardrails.rego").write_text(text)
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "guardrails")


def delivered(repository: Path, state: Path) -> list[dict[str, object]]:
    """What the policy process tells the agent of the newest commit."""
    settings = Settings(host="web-1", repository=str(repository), state_dir=state)
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    with ours, theirs:
        Compiler(settings, theirs, LocalSource(settings), ParseCache()).refresh()
        theirs.shutdown(socket.SHUT_WR)
        heads = []
        with ours.makefile("rb") as messages:
            while line := messages.readline():
                heads.append(json.loads(line))
                messages.read(heads[-1]["bytes"])
        return heads


def test_a_commit_that_breaks_a_guardrail_is_refused_whole(repository: Path, tmp_path: Path) -> None:
    commit(repository, DENY)
    refused = delivered(repository, tmp_path)[-1]
    assert (refused["kind"], refused["code"]) == ("refused", "BH1405")
    assert "not on a Friday" in str(refused["error"])
    assert "guardrails.rego:1" in str(refused["error"])


def test_a_commit_that_a_guardrail_only_warns_of_is_taken(repository: Path, tmp_path: Path) -> None:
    commit(repository, WARN)
    assert delivered(repository, tmp_path)[-1]["kind"] == "bundle"


@pytest.mark.parametrize(
    "command, text, code, said",
    [
        ("lint", DENY, ExitCode.INVALID, "error[BH1405]: not on a Friday"),
        ("lint", WARN, ExitCode.OK, "warning[BH1406]: it is Friday"),
        ("test", DENY, ExitCode.INVALID, "error[BH1405]: not on a Friday"),
        ("test", WARN, ExitCode.OK, ""),
        ("lint", "package p\nallow if {\n", ExitCode.INVALID, "guardrails.rego:3:1"),
    ],
)
def test_lint_and_test_say_what_the_guardrails_say(
    repository: Path, capsys: pytest.CaptureFixture[str], command: str, text: str, code: ExitCode, said: str
) -> None:
    (repository / "guardrails.rego").write_text(text)
    assert run([command, str(repository)]) == code
    assert said in capsys.readouterr().out
