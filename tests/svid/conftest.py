"""A node that stays, for the tests of a module."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from svid.serving import Shared, running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """Its identity process is started once."""
    with asyncio.Runner() as runner:
        node = running(tmp_path_factory.mktemp("node"))
        yield Shared(runner, runner.run(node.__aenter__()))
        runner.run(node.__aexit__(None, None, None))
