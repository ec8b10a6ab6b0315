"""The example policy as a repository that a test may change."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.repository import Change, example_repository


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
