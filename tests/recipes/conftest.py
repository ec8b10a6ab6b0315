"""A policy repository, and an environment in which `bulkhead` is the one under test."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from lab.repository import example_repository

ROOT = Path(__file__).parents[2]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The example policy, committed."""
    return example_repository(tmp_path / "repository")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Where the commands of this checkout are found first, and nobody's settings."""
    home = tmp_path / "home"
    home.mkdir()
    identity = {f"GIT_{role}_{key}": "t@example.org" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    return {
        "PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}",
        "HOME": str(home),
        "GIT_CONFIG_NOSYSTEM": "1",
        **identity,
    }
