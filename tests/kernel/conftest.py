"""What tests on the real kernel share: everything private, everything removed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.bpf import can_attach, pin_directory
from lab.netns import Namespace, network_namespace


@pytest.fixture
def pins() -> Iterator[Path]:
    """A private directory on the BPF file system."""
    if not can_attach():
        pytest.skip("needs root and a mounted BPF file system")
    with pin_directory() as directory:
        yield directory


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """A private network namespace, entered for the whole test."""
    if not can_attach():
        pytest.skip("needs root")
    with network_namespace() as made, made.entered():
        yield made
