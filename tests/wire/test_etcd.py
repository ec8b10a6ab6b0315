"""A fleet that grows and shrinks by itself: agents announce themselves to a real etcd, with keys of their own run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab.bpf import can_attach
from lab.etcd import EtcdServer
from lab.fleet import Fleet
from lab.wired import described, shop, until

TTL_S = 5


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fleet, EtcdServer]]:
    """web and app with agents, and a host where etcd runs. No record of a node is in the policy repository."""
    if shutil.which("etcd") is None or not can_attach():
        pytest.skip("needs root and etcd-server")
    directory: Path = tmp_path_factory.mktemp("etcd")
    hosts: dict[str, object] = {"web": {}, "app": {}, "store": {"agent": False}}
    with ExitStack() as running:
        fleet = running.enter_context(described(hosts=hosts, wire=False))
        server = running.enter_context(EtcdServer(directory, fleet.address("store"), fleet["store"].netns))
        for host in fleet.guarded:
            running.callback(host.stop_agent)
            host.more_settings |= {
                "registry": "etcd",
                "etcd": {key: _listed(value) for key, value in server.settings(ttl_s=TTL_S)._asdict().items() if value},
                "node_addresses": list(fleet.addresses(host.name)),
            }
        fleet.start_agents()
        fleet.enforce(shop())
        yield fleet, server


def _listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def nodes(fleet: Fleet, name: str) -> set[str]:
    """Those that an agent knows."""
    return {one["name"] for one in fleet[name].ask("wire", "nodes")["nodes"]}


def test_agents_that_announce_themselves_are_known_to_each_other(grown: tuple[Fleet, EtcdServer]) -> None:
    fleet, _ = grown
    for name in ("web", "app"):
        until(lambda name=name: nodes(fleet, name) == {"web", "app"}, f"{name} knows both")
    web, app = fleet["web"].puppet("web"), fleet["app"].puppet("app")
    try:
        app.serve_tcp("::", 8080)
        until(lambda: web.tcp(fleet.address("app"), 8080) == "ok", "they talk")
        assert web.tcp(fleet.address("app", 6), 8080) == "ok"
        assert fleet["app"].ask("flows")["records"][0]["node"] == "web"
    finally:
        web.end()
        app.end()


def test_without_etcd_known_nodes_go_on_and_status_says_how_old_that_is(grown: tuple[Fleet, EtcdServer]) -> None:
    fleet, server = grown
    web, app = fleet["web"].puppet("web"), fleet["app"].puppet("app")
    try:
        app.serve_tcp("::", 8080)
        until(lambda: web.tcp(fleet.address("app"), 8080) == "ok", "they talk")
        server.kill()
        until(lambda: not fleet["web"].call("status")["wire"]["registry"]["is_fresh"], "it is noticed")
        assert nodes(fleet, "web") == {"web", "app"}
        assert web.tcp(fleet.address("app"), 8080) == "ok"
        server.start()
        until(lambda: fleet["web"].call("status")["wire"]["registry"]["is_fresh"], "it is back", 30)
        assert web.tcp(fleet.address("app"), 8080) == "ok"
    finally:
        web.end()
        app.end()


def test_a_node_that_is_gone_is_forgotten_when_its_lease_ends_and_known_again_when_it_is_back(
    grown: tuple[Fleet, EtcdServer],
) -> None:
    fleet, _ = grown
    fleet["app"].stop_agent(9)
    until(lambda: nodes(fleet, "web") == {"web"}, "its lease has ended", 4 * TTL_S)
    fleet["app"].start_agent()
    until(lambda: nodes(fleet, "web") == {"web", "app"}, "it is back")
