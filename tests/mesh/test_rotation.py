"""Certificates, authorities and proxies are replaced under load, and no request notices."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bulkhead.dataplane.mesh import HBONE_PORT
from bulkhead.proxy.statistics import STATISTICS_PATH, statistics
from lab.fleet import Fleet
from lab.hbone import StolenAuthority, StolenNode, administration
from lab.host import Host
from lab.meshed import is_served, mesh, proxies_serve, serve_http
from lab.nodes import authority_file
from lab.puppet import Puppet
from lab.wired import until

PORT, PATH = 8090, "/v1/items"
ROTATIONS = 2


@pytest.fixture
def load(fleet: Fleet, puppets) -> Iterator[Puppet]:
    """Requests from web to app over IPv4, from before the test's first line to behind its last; none may fail."""
    server = serve_http(fleet["app"], "app", PORT)
    one = puppets("web")
    one.do(f"import sys; sys.path[:] = {sys.path!r}")
    one.do("from lab import load")
    assert one.do(f"load.once({fleet.address('app')!r}, {PORT}, {PATH!r}, 1)") == []
    one.do(f"load.begin({fleet.address('app')!r}, {PORT}, {PATH!r})")
    goes_on(one)
    yield one
    goes_on(one)
    assert one.do("load.end()") == []
    server.kill()
    server.wait()


def goes_on(load: Puppet) -> None:
    """Block until there have been more requests of both kinds, none of which failed."""
    before = load.do("load.so_far()")
    until(lambda: all(n > before[kind] + 5 for kind, n in load.do("load.so_far()").items()), "requests go on")
    assert load.do("load.failures()") == []


def serials(host: Host) -> set[str]:
    """Serial numbers of the SVIDs that the host's proxy shows from now on."""
    found = json.loads(administration(host, "/certs"))["certificates"]
    return {chain["serial_number"] for one in found for chain in one["cert_chain"][:1]}


def handshakes(fleet: Fleet) -> list[str]:
    """New tunnels between web and app, over IPv6, with what the proxies show now; what went wrong."""
    for name in ("web", "app"):
        fleet[name].run("operator", ["ss", "--kill", "--no-header", "-6", "dport", "=", str(HBONE_PORT)])
    before = _handshakes(fleet["app"])
    caller = fleet["web"].puppet("web")
    caller.do(f"import sys; sys.path[:] = {sys.path!r}")
    caller.do("from lab import load")
    found: list[str] = caller.do(f"load.once({fleet.address('app', 6)!r}, {PORT}, {PATH!r}, 5)")
    caller.end()
    assert _handshakes(fleet["app"]) > before
    return found


def _handshakes(host: Host) -> int:
    return statistics(administration(host, STATISTICS_PATH)).handshakes


def svids(host: Host) -> dict[str, Any]:
    return dict(host.call("status")["svids"])


def until_other_svids(host: Host, before: set[str]) -> None:
    """Block until the host's proxy shows SVIDs, and none of those."""

    def are_other() -> bool:
        with suppress(TimeoutError):  # it is busy with them
            return bool(fresh := serials(host)) and not fresh & before
        return False

    until(are_other, f"the proxy of {host.name} shows other SVIDs", 30.0)


def test_every_svid_is_replaced_time_and_again_and_no_request_fails(fleet: Fleet, load: Puppet) -> None:
    """A node's identity process that is started again makes everything anew: SVIDs, and what signs them."""
    for _ in range(ROTATIONS):
        shown = {host.name: serials(host) for host in fleet.guarded}
        for host in fleet.guarded:
            os.kill(svids(host)["process"], signal.SIGKILL)
        for host in fleet.guarded:
            until_other_svids(host, shown[host.name])
        assert handshakes(fleet) == []
        goes_on(load)


def test_a_node_s_authority_is_replaced_with_an_overlap_and_no_handshake_fails(
    fleet: Fleet, load: Puppet, tmp_path: Path
) -> None:
    web, old = fleet["web"], fleet.authority("web")
    failed = {host.name: mesh(host)["proxy"]["failures"] for host in fleet.guarded}
    new = authority_file(tmp_path_for(web), "web")
    both = fleet.records({"web": {"ca": [old.text, new.text]}})
    fleet.wait_for_commit(fleet.commit({"nodes.yaml": both}))
    proxies_serve(fleet)
    shown = serials(web)
    web.stop_agent()
    fleet.replace_authority("web", new)
    web.start_agent()
    until_other_svids(web, shown)
    assert handshakes(fleet) == []
    fleet.wait_for_commit(fleet.commit({}))
    proxies_serve(fleet)
    assert handshakes(fleet) == []
    goes_on(load)
    assert {host.name: mesh(host)["proxy"]["failures"] for host in fleet.guarded} == failed
    thief, there = StolenNode(fleet["db"], tmp_path), fleet.address("app")
    svid = StolenAuthority(old).issue("spiffe://example.org/t/web")
    headers = [(":method", "CONNECT"), (":authority", f"{there}:{PORT}")]
    name = f"{PORT}.hbone.bulkhead"
    until(lambda: thief.attempt(there, svid, headers, b"", name).status == 0, "the old one is believed no more")
    thief.end()


def tmp_path_for(host: Host) -> Path:
    """A directory that lasts as long as the host."""
    made = host.directory / "new-authority"
    made.mkdir()
    return made


def test_an_envoy_that_is_replaced_hands_over_its_listeners_and_keeps_its_conversations(
    fleet: Fleet, load: Puppet
) -> None:
    """An operator has upgraded the binary, and sends SIGHUP to bulkhead-proxy."""
    hosts = (fleet["web"], fleet["app"])
    before = {host.name: mesh(host)["proxy"]["pid"] for host in hosts}
    for host in hosts:
        assert host.proxy is not None
        host.proxy.send_signal(signal.SIGHUP)
    for host in hosts:
        until_another_proxy(host, before[host.name])
        assert Path(f"/proc/{before[host.name]}").exists(), "the old one keeps its conversations to their end"
    goes_on(load)
    assert handshakes(fleet) == []


def until_another_proxy(host: Host, before: int) -> None:
    """Block until the host's proxy is another process than that, and serves."""
    until(lambda: is_served(host) and mesh(host)["proxy"]["pid"] != before, f"another Envoy on {host.name}", 20.0)
