"""One language server for all tests: it takes a second to start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from editor.language_server import LanguageServer

ROOT = Path(__file__).parents[2]
SERVER = ROOT / ".venv/editor/node_modules/.bin/yaml-language-server"
SCHEMA = ROOT / "docs/schema/v1alpha1.json"

Open = Callable[[str], str]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LanguageServer]:
    """The server that tools/setup.sh installs, with no document open."""
    running = LanguageServer(SERVER, tmp_path_factory.mktemp("workspace"))
    yield running
    running.close()


@pytest.fixture
def open_policy(server: LanguageServer, tmp_path: Path) -> Iterator[Open]:
    """Opens a text under the modeline that names the schema, and gives its URI."""
    numbers, opened = count(), []

    def run(text: str) -> str:
        whole = f"# yaml-language-server: $schema={SCHEMA}\n{text}"
        opened.append(server.open(tmp_path / f"{next(numbers)}.yaml", whole))
        return opened[-1]

    yield run
    for uri in opened:
        server.close_document(uri)
