"""One etcd for all tests that leave it alone, each below a prefix of its own; one's own for those that do not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulkhead.config import Etcd
from lab.etcd import EtcdServer


@pytest.fixture(scope="session")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture
def etcd(shared_etcd: EtcdServer, request: pytest.FixtureRequest) -> Etcd:
    """Settings for a place that no other test uses."""
    return shared_etcd.settings(prefix=f"/{re.sub('[^a-z0-9]+', '-', request.node.name.lower())}/")


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    directory = tmp_path / "etcd"
    directory.mkdir()
    with EtcdServer(directory) as server:
        yield server
