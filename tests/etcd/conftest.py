"""One etcd for all tests that leave it alone, each below a prefix of its own; one's own for those that do not."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulkhead.config import Etcd
from lab.etcd import EtcdServer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before Python 3.12 asyncio loses the socket of a connection that is given up while TLS is being negotiated; here
    connections are given up on purpose. It is closed, and tells of that, when it is collected."""
    ignored = pytest.mark.filterwarnings(
        "ignore:Exception ignored in.*(socket|_SelectorTransport):pytest.PytestUnraisableExceptionWarning"
    )
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(ignored)


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What a test leaves to be collected is collected in it."""
    yield
    gc.collect()


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
