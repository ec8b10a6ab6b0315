"""One judge for all tests: the programs are compiled once, and policies switched in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bulkhead.kernel.judge import Judge
from lab.bpf import can_attach


@pytest.fixture(scope="session")
def judge() -> Iterator[Judge]:
    """The real programs, waiting for questions."""
    if not can_attach():
        pytest.skip("needs root and a mounted BPF file system")
    with Judge() as loaded:
        yield loaded
