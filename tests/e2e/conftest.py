"""Hosts that the end-to-end tests share: starting one costs a compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from lab.bpf import can_attach
from lab.host import Host, joined
from lab.puppet import Puppet

Puppets = Callable[..., Puppet]


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    """A host with its agent running, joined by eth0 (10.77.0.1, fd77::1) to `far` (10.77.0.2, fd77::2)."""
    if not can_attach():
        pytest.skip("needs root and a mounted BPF file system")
    with Host("near") as near, Host("far") as other, joined(near, other):
        near.far = other
        near.start_agent()
        yield near


@pytest.fixture(scope="session")
def far(host: Host) -> Host:
    """The machine at the other end of `host`'s eth0: no agent there, so nothing there hides what `host` let out."""
    assert host.far is not None
    return host.far


@pytest.fixture
def puppets() -> Iterator[Puppets]:
    """Starts puppets that end with the test."""
    started: list[Puppet] = []

    def start(on: Host, group: str, **options: str) -> Puppet:
        one = on.puppet(group, **options)
        started.append(one)
        return one

    yield start
    for one in started:
        with suppress(ProcessLookupError):
            one.end()
