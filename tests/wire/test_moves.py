"""Addresses mean nothing: processes move, hosts are readdressed, routers translate, ports pass to somebody else."""

from __future__ import annotations

import os

import pytest

from lab import description
from lab.faults import copy, when
from lab.fleet import Fleet
from lab.wired import counting, shop

FAMILIES = pytest.mark.parametrize("family", (4, 6))
OUTSIDE = {4: "198.51.100.7", 6: "2001:db8::7"}
REUSES = int(os.environ.get("BULKHEAD_WIRE_REUSES", "200"))


def registered(fleet: Fleet, **addresses: str) -> None:
    """Commit records in which these nodes are reached at other addresses, too."""
    changed = {name: {"addresses": [*fleet.addresses(name), address]} for name, address in addresses.items()}
    fleet.wait_for_commit(fleet.commit({"nodes.yaml": fleet.records(changed)}))


@FAMILIES
def test_a_translated_source_is_still_the_workload_behind_it(fleet: Fleet, puppets, family: int) -> None:
    web, app, ops = puppets("web"), puppets("app"), puppets("web", "ops")
    app.serve_tcp("::", 8080)
    for rule in ({"masquerade": "web"}, {"snat": "web", "to": OUTSIDE[family]}):
        nat = description.nat(rule, fleet.description.hosts)
        with fleet.router.translating(nat), fleet.router.capture("app") as wires:
            assert web.tcp(fleet.address("app", family), 8080) == "ok"
            assert ops.tcp(fleet.address("app", family), 8080) == "EPERM"
        assert fleet.address("web", family) not in {packet.source for packet in wires.arriving("app")}


@FAMILIES
def test_a_translated_destination_is_reached_when_it_is_registered_and_not_otherwise(
    fleet: Fleet, puppets, family: int
) -> None:
    web, app = puppets("web"), puppets("app")
    app.serve_tcp("::", 8080)
    nat = description.nat({"dnat": OUTSIDE[family], "port": 80, "to": "app", "to_port": 8080}, fleet.description.hosts)
    fleet.enforce(shop("web -> app 8080", "web -> app 80"))
    with fleet.router.translating(nat):
        assert web.tcp(OUTSIDE[family], 80) == "EPERM"
        registered(fleet, app=OUTSIDE[family])
        assert web.tcp(OUTSIDE[family], 80) == "ok"


@FAMILIES
def test_a_host_that_gets_other_addresses_is_known_by_its_key_at_once(fleet: Fleet, puppets, family: int) -> None:
    """The caller's side needs no record at all; whoever is called has to be registered where it is called."""
    web, app = puppets("web"), puppets("app")
    app.serve_tcp("::", 8080)
    kept = [str(one) for one in fleet.router.links["web"].addresses]
    fleet.readdress("web", "10.78.99.9/24", "fd78:99::9/64")
    try:
        assert web.tcp(fleet.address("app", family), 8080) == "ok"
    finally:
        fleet.readdress("web", *kept)


@FAMILIES
def test_a_process_that_moves_to_another_host_is_served_from_its_first_packet(
    fleet: Fleet, puppets, family: int
) -> None:
    """`ops` may be anywhere. Nothing is propagated: no table anywhere says where it is now."""
    db = puppets("db")
    db.serve_tcp("::", 5432)
    commits = {host.call("status")["commit"] for host in fleet.guarded}
    for name in ("web", "app", "web", "app"):
        ops = puppets(name, "ops")
        with fleet.router.capture("db") as wires:
            assert ops.tcp(fleet.address("db", family), 5432) == "ok"
        assert [packet.flags for packet in wires.arriving("db")].count("S") == 1
        ops.end()
    assert {host.call("status")["commit"] for host in fleet.guarded} == commits


def test_an_address_and_port_that_pass_to_another_workload_are_never_taken_for_the_former(
    fleet: Fleet, puppets
) -> None:
    db, ends = puppets("db"), {name: puppets("app", name) for name in ("app", "ops")}
    db.serve_tcp("::", 5432)
    db.serve_tcp("::", 22)
    code = (
        "def once(address, port):\n"
        "    with _word() as said, socket.socket() as one:\n"
        "        one.setsockopt(1, 2, 1)\n"
        "        one.setsockopt(1, 13, struct.pack('ii', 1, 0))\n"
        "        one.settimeout(2)\n"
        "        one.bind(('', 45454))\n"
        "        one.connect((address, port))\n"
        "        one.sendall(b'x'); one.recv(1)\n"
        "    return said[0]"
    )
    for end in ends.values():
        end.do(code)
    wrong = 0
    fleet.enforce(shop("app -> db 5432", "ops -> db 22", "app -> web 22", "ops -> web 5432"))
    address = fleet.address("db")
    with counting(fleet["db"]) as here:
        for turn in range(REUSES):
            who = ("app", "ops")[turn % 2]
            port, others = (5432, 22) if who == "app" else (22, 5432)
            wrong += ends[who].once(address, port) != "ok"
            wrong += ends[who].once(address, others) != "ECONNREFUSED"
    assert wrong == 0
    assert here.refusals == {("policy", "ingress", "deny"): REUSES}


def test_an_attacker_on_the_path_who_hears_everything_gets_in_nowhere(fleet: Fleet, puppets) -> None:
    """He replays what he has heard from his own machine, and from the caller's address with ports of his own."""
    web, app = puppets("web"), puppets("app")
    app.serve_tcp("::", 8080)
    with (
        fleet.router.capture("web") as wires,
        fleet.router.fault("web", copy(fleet.router.towards("mallory")), when("tcp")),
    ):
        for _ in range(20):
            assert web.tcp(fleet.address("app"), 8080) == "ok"
    heard = [packet for packet in wires.leaving("web") if packet.flags == "S"]
    assert len(heard) == 20
    mallory = fleet.address("mallory")
    with counting(fleet["app"]) as here:
        for packet in heard:
            fleet.router.send(packet.readdressed(source=mallory), "app")
            fleet.router.send(packet.with_ports(source=packet.ports[0] ^ 1), "app")
            fleet.router.send(packet.with_sequence(packet.sequence + 1), "app")
        assert web.tcp(fleet.address("app"), 8080) == "ok"  # by the same wire: what was sent before has been judged
    assert here.refusals == {("wire-replayed", "ingress", "deny"): 40, ("wire-forged", "ingress", "deny"): 20}
