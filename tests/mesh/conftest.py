"""One fleet for all tests of mutual TLS: web, app and db with agents and proxies, mallory without, a router between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from lab.bpf import can_attach
from lab.fleet import Fleet
from lab.meshed import described, proxies_serve, shop
from lab.puppet import Puppet

Puppets = Callable[..., Puppet]
_in_force: dict[Fleet, tuple[str, str]] = {}


@pytest.fixture(scope="session")
def started() -> Iterator[Fleet]:
    if not can_attach():
        pytest.skip("needs root and a mounted BPF file system")
    with described() as one:
        one.start_agents()
        yield one


@pytest.fixture
def fleet(started: Fleet, request: pytest.FixtureRequest) -> Fleet:
    """With the policy of the test's module, `POLICY`, or the usual one, and with proxies that serve it."""
    text = getattr(request.module, "POLICY", shop())
    if _in_force.get(started) != (text, started["web"].call("status")["commit"]):
        _in_force[started] = (text, started.enforce(text))
    proxies_serve(started)
    return started


@pytest.fixture
def puppets(fleet: Fleet) -> Iterator[Puppets]:
    """Starts puppets on hosts by name; they end with the test."""
    running: list[Puppet] = []

    def start(host: str, group: str = "") -> Puppet:
        one = fleet[host].puppet(group or host)
        running.append(one)
        return one

    yield start
    for one in running:
        with suppress(ProcessLookupError):
            one.end()
