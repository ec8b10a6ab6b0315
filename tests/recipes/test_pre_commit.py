"""The hooks in .pre-commit-hooks.yaml, run by pre-commit on real commits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lab.repository import git
from recipes.conftest import ROOT

PRE_COMMIT = str(Path(sys.prefix) / "bin/pre-commit")
HOOKS = ROOT / ".pre-commit-hooks.yaml"

Environment = dict[str, str]


@pytest.fixture
def hooked(repository: Path, tmp_path: Path, environment: Environment) -> Path:
    """The repository with the hooks of this checkout's manifest installed.

    `language: system`: pre-commit would build an environment from package archives, which is pip's work, not ours.
    """
    source = tmp_path / "bulkhead"
    source.mkdir()
    (source / HOOKS.name).write_text(HOOKS.read_text())
    git(source, "init", "-q")
    git(source, "add", ".")
    git(source, "commit", "-qm", "hooks")
    commit = (source / ".git/refs/heads/main").read_text().strip()
    hooks = [{"id": hook["id"], "language": "system"} for hook in yaml.safe_load(HOOKS.read_text())]
    config = {"repos": [{"repo": str(source), "rev": commit, "hooks": hooks}]}
    (repository / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config))
    subprocess.run([PRE_COMMIT, "install"], cwd=repository, env=environment, check=True, capture_output=True)
    return repository


def commit(repository: Path, environment: Environment) -> subprocess.CompletedProcess[str]:
    command = ["git", "commit", "--quiet", "--all", "--message=change"]
    return subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)


def change(repository: Path, old: str, new: str) -> Path:
    path = repository / "shop.yaml"
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))
    return path


def test_the_manifest_is_valid() -> None:
    subprocess.run([PRE_COMMIT, "validate-manifest", str(HOOKS)], check=True)


def test_a_sound_change_is_committed(hooked: Path, environment: Environment) -> None:
    change(hooked, "ports: [8080]}\n", "ports: [8080, 8081]}\n")
    done = commit(hooked, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split(".")[0] for line in done.stderr.splitlines() if line.endswith("Passed")] == [
        "bulkhead fmt",
        "bulkhead lint",
        "bulkhead test",
    ]


def test_a_file_out_of_form_is_formatted_and_not_committed_yet(hooked: Path, environment: Environment) -> None:
    formed = (hooked / "shop.yaml").read_text()
    path = change(hooked, "to: api, ports", "to:   api,   ports")
    done = commit(hooked, environment)
    assert done.returncode == 1
    assert "files were modified by this hook" in done.stderr
    assert path.read_text() == formed


@pytest.mark.parametrize(
    ("old", "new", "hook", "code"),
    [
        ("ports: [9000]", "ports: [9001]", "bulkhead-test", "BH0502"),
        ("from: api, to: cache", "from: [api, web], to: cache", "bulkhead-test", "BH0501"),
        ("workloads:", "workload:", "bulkhead-lint", "BH0205"),
    ],
)
def test_a_change_that_would_be_refused_is_not_committed(
    hooked: Path, environment: Environment, old: str, new: str, hook: str, code: str
) -> None:
    change(hooked, old, new)
    done = commit(hooked, environment)
    assert done.returncode == 1
    assert f"hook id: {hook}" in done.stderr
    assert code in done.stderr


def test_files_of_others_are_not_looked_at(hooked: Path, environment: Environment) -> None:
    workflow = hooked / ".github/workflow.yaml"
    workflow.parent.mkdir()
    workflow.write_text("a:   &anchor  b\n")
    git(hooked, "add", ".github")
    done = commit(hooked, environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("(no files to check)Skipped") == 3
