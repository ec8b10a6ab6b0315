"""All of it at once: three tiers on three hosts, moving and readdressed behind a NAT, with an attacker on the path."""

from __future__ import annotations

import pytest

from lab import description
from lab.fleet import Fleet
from lab.packet import Packet
from lab.puppet import Puppet
from lab.wired import counting, shop

POLICY = shop("web -> app 8080", "app -> db 5432")


class Attacker:
    """On the path: hears every opening, and sends each again from where he is and with ports of his own."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.sent = 0

    def replay(self, heard: list[Packet], host: str) -> None:
        """Everything that was heard on the way to a host, to it."""
        for packet in heard:
            if packet.flags == "S":
                family = 6 if ":" in packet.source else 4
                self._fleet.router.send(packet.readdressed(source=self._fleet.address("mallory", family)), host)
                self._fleet.router.send(packet.with_ports(source=packet.ports[0] ^ 1), host)
                self.sent += 2


def works(fleet: Fleet, caller: Puppet, host: str, port: int, family: int, attacker: Attacker) -> None:
    """What policy allows: at once, with one opening; and nothing that the attacker makes of it."""
    with fleet.router.capture(host) as wires:
        assert caller.tcp(fleet.address(host, family), port) == "ok"
    openings = [packet for packet in wires.arriving(host) if packet.flags == "S"]
    assert len(openings) == 1, "it was sent again"
    with counting(fleet[host]) as here:
        attacker.replay(openings, host)
        assert caller.tcp(fleet.address(host, family), port) == "ok"
    assert here.refusals == {("wire-replayed", "ingress", "deny"): 2}


@pytest.mark.parametrize("family", (4, 6))
def test_three_tiers_move_and_are_readdressed_behind_a_nat_and_nobody_else_gets_in(
    fleet: Fleet, puppets, family: int
) -> None:
    attacker, mallory = Attacker(fleet), puppets("mallory")
    web, db = puppets("web"), puppets("db")
    db.serve_tcp("::", 5432)
    commit = fleet["web"].call("status")["commit"]
    kept = [str(one) for one in fleet.router.links["web"].addresses]
    nat = description.nat({"masquerade": "web"}, fleet.description.hosts)
    try:
        with fleet.router.translating(nat):
            for home in ("app", "db", "app"):
                app = puppets(home, "app")
                app.serve_tcp("::", 8080)
                works(fleet, web, home, 8080, family, attacker)
                if home != "db":
                    works(fleet, app, "db", 5432, family, attacker)
                assert web.tcp(fleet.address("db", family), 5432) == "EPERM"
                assert mallory.tcp(fleet.address(home, family), 8080) == "timeout"
                app.end()
                fleet.readdress("web", f"10.78.9{len(home)}.9/24", f"fd78:9{len(home)}::9/64")
    finally:
        fleet.readdress("web", *kept)
    assert fleet["web"].call("status")["commit"] == commit, "policy has not changed"
    assert attacker.sent > 0
