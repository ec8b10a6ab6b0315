"""The example policy as a git repository of a test's own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

POLICIES = Path(__file__).parents[2] / "policies"

Change = Callable[[str, str], None]
"""Replaces a text by another."""


def git(directory: Path, *arguments: str) -> None:
    """Run git there, as somebody."""
    settings = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main")
    subprocess.run(["git", *settings, *arguments], cwd=directory, check=True, capture_output=True)


def example_repository(directory: Path) -> Path:
    """Make `directory` a repository that holds the example policy, committed."""
    directory.mkdir()
    git(directory, "init", "-q")
    for path in POLICIES.glob("*.yaml"):
        (directory / path.name).write_text(path.read_text())
    git(directory, "add", ".")
    git(directory, "commit", "-qm", "shop")
    return directory
