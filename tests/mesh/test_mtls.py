"""Rules between workloads mean mutual TLS between nodes, unnoticed by the programs; what goes past it is refused."""

from __future__ import annotations

import os
import signal
import time

import pytest

from lab.fleet import Fleet
from lab.meshed import PEERS, mesh, proxies_serve, requests, shop
from lab.wired import counting, until

FAMILIES = pytest.mark.parametrize("family", (4, 6))
HANDSHAKE, APPLICATION_DATA = 22, 23


@FAMILIES
def test_what_crosses_the_wire_is_tls_1_3_and_nothing_of_it_can_be_read(fleet: Fleet, puppets, family: int) -> None:
    web, app = puppets("web"), puppets("app")
    app.serve_tcp("::", 8080)
    with fleet.router.capture("app") as wires:
        web.do(f"hold('one', {fleet.address('app', family)!r}, 8080)")
        web.do("_held['one'].sendall(b'CARD 4111-1111-1111-1111')")
        assert web.do("_held['one'].recv(99).decode()") == "CARD 4111-1111-1111-1111"
    packets = [one.packet for one in wires.packets() if one.packet.protocol == 6]
    assert {8080} & {port for packet in packets for port in packet.ports} == set()
    assert all(15008 in packet.ports for packet in packets)
    assert not any(b"4111" in packet.payload or b"CARD" in packet.payload for packet in packets)
    assert any(packet.payload[:1] == bytes([APPLICATION_DATA]) for packet in packets)


@FAMILIES
def test_both_programs_see_each_other_as_if_nothing_stood_between(fleet: Fleet, puppets, family: int) -> None:
    web, app = puppets("web"), puppets("app")
    app.do(PEERS)
    app.do("serve_and_tell(8080)")
    there, here = fleet.address("app", family), fleet.address("web", family)
    assert web.tcp(there, 8080, quiet_s=3) == "ok"
    mapped = "::ffff:" if family == 4 else ""
    ((accepted, peer, own),) = app.do("seen")
    assert (accepted, peer, own) == (f"{mapped}{here}", f"{mapped}{here}", [f"{mapped}{there}", 8080])
    assert web.do(f"hold('two', {there!r}, 8080)") == "ok"
    assert web.do("_held['two'].getpeername()[:2]") == [there, 8080]


def test_one_record_tells_of_process_svid_rule_and_verdict(fleet: Fleet, puppets) -> None:
    web, app = puppets("web"), puppets("app")
    app.serve_tcp("::", 8080)
    assert web.tcp(fleet.address("app"), 8080, quiet_s=3) == "ok"

    def of_this(one: dict) -> bool:
        return one["process"]["pid"] == web.pid

    until(lambda: bool(requests(fleet["web"], of_this)), "a record of the caller's process")
    (found,) = requests(fleet["web"], of_this)
    record = found["record"]
    assert (record["caller"], record["called"]) == ("spiffe://example.org/t/web", "spiffe://example.org/t/app")
    assert (found["verdict"], found["rules"], found["process"]["cgroup"]) == ("allow", ["t/r1"], "/web")
    assert found["places"][0].startswith("t.yaml:")


def test_on_one_host_nothing_goes_through_the_proxy(fleet: Fleet, puppets) -> None:
    web, app = puppets("app", "web"), puppets("app")
    app.serve_tcp("::", 8080)
    before = mesh(fleet["app"])["records"]
    assert web.tcp(fleet.address("app"), 8080) == "ok"
    assert mesh(fleet["app"])["records"] == before


def test_a_rule_that_says_off_stays_in_plaintext_and_off_the_proxy(fleet: Fleet, puppets) -> None:
    ops, db = puppets("web", "ops"), puppets("db")
    db.serve_tcp("::", 22)
    with fleet.router.capture("db") as wires:
        assert ops.tcp(fleet.address("db"), 22) == "ok"
    assert {packet.ports[1] for packet in wires.arriving("db") if packet.protocol == 6} == {22}


def test_nobody_but_the_proxy_reaches_the_port_of_the_tunnels(fleet: Fleet, puppets) -> None:
    for host, group in (("web", "web"), ("web", "elsewhere"), ("mallory", "mallory")):
        with counting(fleet["app"]) as there:
            outcome = puppets(host, group).tcp(fleet.address("app"), 15008)
        assert outcome in ("EPERM", "ECONNREFUSED", "timeout"), (host, group)
        assert not any(verdict == "allow" for _, _, verdict in there.refusals)


def test_mallory_reaches_no_application_port(fleet: Fleet, puppets) -> None:
    puppets("app").serve_tcp("::", 8080)
    with counting(fleet["app"]) as there:
        assert puppets("mallory").tcp(fleet.address("app"), 8080) == "timeout"
    assert there.refusals == {("policy", "ingress", "deny"): 1}


def test_a_rule_that_is_removed_cuts_the_application_and_spares_the_tunnel(fleet: Fleet, puppets) -> None:
    web, ops, app = puppets("web"), puppets("web", "ops"), puppets("app")
    app.serve_tcp("::", 8080)
    there = fleet.address("app")
    assert web.hold("kept", there, 8080) == "ok"
    assert web.use("kept", quiet_s=3) == "ok"
    assert ops.hold("kept", there, 8080) == "ok"
    assert ops.use("kept", quiet_s=3) == "ok"
    fleet.enforce(shop("app -> db 5432", "ops -> app 8080"))
    begun = time.monotonic()
    until(lambda: web.use("kept") != "ok", "the conversation is cut")
    assert time.monotonic() - begun < 2
    assert ops.use("kept", quiet_s=3) == "ok"
    fleet.enforce(shop())


def test_while_the_proxy_is_down_what_needs_it_is_refused_and_all_else_goes_on(fleet: Fleet, puppets) -> None:
    web, ops, app, db = puppets("web"), puppets("web", "ops"), puppets("app"), puppets("db")
    app.serve_tcp("::", 8080)
    db.serve_tcp("::", 22)
    assert web.tcp(fleet.address("app"), 8080, quiet_s=3) == "ok"
    pid = mesh(fleet["web"])["proxy"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        assert web.tcp(fleet.address("app"), 8080) == "timeout"
        assert ops.tcp(fleet.address("db"), 22) == "ok"
    finally:
        os.kill(pid, signal.SIGCONT)
    os.kill(pid, signal.SIGKILL)
    until(lambda: mesh(fleet["web"])["proxy"]["pid"] not in (pid, None), "the proxy is started again", 15.0)
    proxies_serve(fleet)
    until(lambda: web.tcp(fleet.address("app"), 8080, quiet_s=2) == "ok", "what needs it works again", 10.0)


def test_with_all_agents_dead_conversations_go_on_and_new_ones_begin(fleet: Fleet, puppets) -> None:
    web, app = puppets("web"), puppets("app")
    app.serve_tcp("::", 8080)
    assert web.hold("kept", fleet.address("app"), 8080) == "ok"
    assert web.use("kept", quiet_s=3) == "ok"
    pids = {host.name: mesh(host)["proxy"]["pid"] for host in fleet.guarded}
    for host in fleet.guarded:
        host.stop_agent(signal.SIGKILL)
    try:
        assert web.use("kept", quiet_s=3) == "ok"
        assert web.tcp(fleet.address("app"), 8080, quiet_s=3) == "ok"
        assert web.tcp(fleet.address("db"), 5432) in ("EPERM", "timeout")
    finally:
        fleet.start_agents()
    proxies_serve(fleet)
    assert {host.name: mesh(host)["proxy"]["pid"] for host in fleet.guarded} == pids, "each was taken over again"
    assert web.use("kept", quiet_s=3) == "ok"
