"""The example policy as a repository that a test may change, and the command line against a fake agent."""

from __future__ import annotations

from pathlib import Path

import pytest

from bulkhead.cli.main import run
from lab.repository import Change, example_repository
from unit.cli.fake_agent import FakeAgent, Ran


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The example policy, committed."""
    return example_repository(tmp_path / "repository")


@pytest.fixture
def change(repository: Path) -> Change:
    """Replaces a text of the example that stands there once."""

    def replace(old: str, new: str) -> None:
        path = repository / "shop.yaml"
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))

    return replace


@pytest.fixture
def ran(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Ran:
    """Runs a command line against an agent; gives exit code, standard output and standard error."""

    def go(agent: FakeAgent, *arguments: str) -> tuple[int, str, str]:
        with agent.running(tmp_path):
            code = run([*arguments, "--run-dir", str(tmp_path)])
        out, err = capfd.readouterr()
        assert all(len(line) <= 100 for line in out.splitlines() if not line.startswith(("{", " ", "}"))), out
        return code, out, err

    return go
