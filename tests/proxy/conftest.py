"""Two nodes whose Envoys every test of a module shares."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.two_nodes import World, two_nodes


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with two_nodes() as made:
        yield made
