"""The shell of the recipes in docs/ci.md, run as it stands there, on a change of the example repository."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from lab.repository import git
from recipes.conftest import ROOT

PAGE = (ROOT / "docs/ci.md").read_text()
INSTALL = 'python3 -m pip install "$BULKHEAD"'
"""Left out: `bulkhead` is installed already."""

Environment = dict[str, str]


def block(heading: str, language: str) -> str:
    """The first block of a language below a heading of the page."""
    section = PAGE.partition(f"\n## {heading}\n")[2] if heading else PAGE
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found
    return found[1]


def revision(repository: Path) -> str:
    return (repository / ".git/refs/heads/main").read_text().strip()


def bash(script: str, directory: Path, environment: Environment) -> subprocess.CompletedProcess[str]:
    command = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", script]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def changed(repository: Path, environment: Environment) -> tuple[Path, str, str]:
    """The repository after a commit that opens a port, with the commits before and after."""
    base = revision(repository)
    path = repository / "shop.yaml"
    path.write_text(path.read_text().replace("ports: [9000]", "ports: [9000, 9001]"))
    git(repository, "commit", "-qam", "open a port")
    return repository, base, revision(repository)


def test_the_shell_by_hand_runs(repository: Path, environment: Environment) -> None:
    done = bash(block("", "sh"), repository, environment)
    assert done.returncode == 0, done.stderr


class GitHub:
    """Runs the steps of the workflow one by one."""

    def __init__(self, changed: tuple[Path, str, str], environment: Environment, tmp_path: Path) -> None:
        self.repository, base, head = changed
        self.steps: list[dict[str, Any]] = yaml.safe_load(block("GitHub Actions", "yaml"))["jobs"]["policy"]["steps"]
        self.summary, self.said = tmp_path / "summary.md", tmp_path / "comment"
        # The forge's own client talks to the forge; what it is told is kept.
        gh = tmp_path / "bin/gh"
        gh.parent.mkdir()
        gh.write_text(f'#!/bin/sh\nprintf "%s " "$@" > "{self.said}"\n')
        gh.chmod(0o755)
        self.environment = {
            **environment,
            "PATH": f"{gh.parent}:{environment['PATH']}",
            "BASE": base,
            "HEAD": head,
            "PULL_REQUEST": "7",
            "GITHUB_STEP_SUMMARY": str(self.summary),
        }

    def run(self) -> list[str]:
        """Runs what a runner would; returns the names of the steps that failed."""
        failed: list[str] = []
        for step in self.steps:
            if step.get("run", INSTALL) != INSTALL and not (failed and "if" not in step):
                done = bash(step["run"], self.repository, self.environment)
                failed += [step["name"]] if done.returncode else []
        return failed


@pytest.fixture
def github(changed: tuple[Path, str, str], environment: Environment, tmp_path: Path) -> GitHub:
    """A pull request on GitHub with the change."""
    return GitHub(changed, environment, tmp_path)


def test_github_tests_the_change_and_shows_its_plan(github: GitHub) -> None:
    assert github.run() == []
    plan = (github.repository / "plan.md").read_text()
    assert "9001" in plan
    assert github.summary.read_text() == plan
    assert github.said.read_text() == "pr comment 7 --body-file plan.md --edit-last --create-if-none "
    assert ElementTree.parse(github.repository / "policy-tests.xml").getroot().get("failures") == "0"


def test_github_shows_the_plan_of_a_change_that_fails(github: GitHub) -> None:
    (github.repository / "shop.yaml").write_text((github.repository / "shop.yaml").read_text().replace(": {", ":  {"))
    assert github.run() == ["Form"]
    assert "9001" in (github.repository / "plan.md").read_text()


def test_github_has_the_history_that_a_plan_needs() -> None:
    workflow = yaml.safe_load(block("GitHub Actions", "yaml"))
    checkout = workflow["jobs"]["policy"]["steps"][0]
    assert checkout["uses"].startswith("actions/checkout@")
    assert checkout["with"]["fetch-depth"] == 0


class Forge(BaseHTTPRequestHandler):
    """Takes a comment and keeps it."""

    told: list[tuple[str, str, bytes]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.told.append((self.path, self.headers["PRIVATE-TOKEN"], body))
        self.send_response(201)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def forge() -> Iterator[str]:
    """The address of a forge on this machine."""
    Forge.told.clear()
    with HTTPServer(("127.0.0.1", 0), Forge) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/api/v4"
        server.shutdown()
        thread.join()


def test_gitlab_tests_the_change_and_shows_its_plan(
    changed: tuple[Path, str, str], environment: Environment, forge: str
) -> None:
    repository, base, head = changed
    job = yaml.safe_load(block("GitLab CI", "yaml"))["policy"]
    assert job["before_script"] == [INSTALL]
    assert job["variables"]["GIT_DEPTH"] == 0
    variables = {
        "CI_MERGE_REQUEST_DIFF_BASE_SHA": base,
        "CI_COMMIT_SHA": head,
        "CI_API_V4_URL": forge,
        "CI_PROJECT_ID": "3",
        "CI_MERGE_REQUEST_IID": "7",
        "COMMENT_TOKEN": "secret",
    }
    done = bash("\n".join(job["script"]), repository, environment | variables)
    assert done.returncode == 0, done.stderr
    ((path, token, body),) = Forge.told
    assert (path, token) == ("/api/v4/projects/3/merge_requests/7/notes", "secret")
    assert (repository / "plan.md").read_bytes().strip() in body.replace(b"\r\n", b"\n")
    assert ElementTree.parse(repository / "policy-tests.xml").getroot().get("failures") == "0"
