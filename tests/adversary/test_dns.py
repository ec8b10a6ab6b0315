"""Whoever wants a workload to take his address for a name that policy lets it reach."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP, UDP

from bulkhead.kernel.libbpf import Map
from lab.nameserver import answer_to, question
from lab.puppet import Puppet

from .conftest import FRIEND, OURS, STRANGER, Arena, framed, until

NAME = "api.example.org"
GOOD, EVIL = "10.81.0.1", "10.81.0.66"
PORT = 4053

POLICY = """apiVersion: bulkhead/v1alpha1
kind: Policy
metadata: {name: t}
workloads:
  web: {match: {cgroup: /t/web}, mode: enforce}
  db: {match: {cgroup: /t/db}, mode: enforce}
  rogue: {match: {cgroup: /t/rogue}, mode: enforce}
externals:
  friend: {cidr: [10.77.0.2/32]}
  stranger: {cidr: [10.77.0.3/32]}
  api: {fqdn: [api.example.org, "*.many.example.net"]}
allow:
  - {name: ask, from: [web, rogue], to: friend, ports: [53/udp]}
  - {name: chat, from: [rogue, stranger, friend], to: web, ports: [any/udp]}
  - {name: talk, from: web, to: [rogue, stranger], ports: [any/udp]}
  - {name: api, from: [web, rogue], to: api, ports: [80]}
"""


class Scene:
    """A workload that has asked the friend, who has not answered yet."""

    def __init__(self, arena: Arena, web: Puppet, server: socket.socket) -> None:
        self.arena, self.web, self.server = arena, web, server
        self.query, self.asker = b"", ("", 0)

    def ask(self, number: int = 7) -> None:
        """`web` asks from a port that everybody knows."""
        self.web.do("asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); asking.settimeout(2)")
        self.web.do(f"asking.setsockopt(1, socket.SO_REUSEADDR, 1); asking.bind(('{OURS}', {PORT}))")
        self.web.do(f"asking.sendto(bytes.fromhex('{question(NAME, number).hex()}'), ('{FRIEND}', 53))")
        self.query, self.asker = self.server.recvfrom(512)

    def answer(self, address: str = GOOD, **changed: bytes) -> bytes:
        """What the friend would say."""
        return answer_to(changed.get("query", self.query), [ip_address(address).packed])

    def hears(self, datagram: bytes) -> bool:
        """Whether `web` receives it next."""
        return bool(self.web.do("asking.recv(4096).hex()") == datagram.hex())

    def reaches(self, address: str) -> bool:
        return bool(self.web.tcp(address, 80) != "EPERM")

    @property
    def learned(self) -> Map:
        return self.arena.maps.fixed("learned")


@pytest.fixture
def scene(arena: Arena, web: Puppet) -> Iterator[Scene]:
    """Two addresses behind the peer, neither learned."""
    arena.host.ip("route", "replace", "10.81.0.0/24", "via", FRIEND)
    with arena.policy(POLICY), arena.at_peer() as server:
        server.bind((FRIEND, 53))
        made = Scene(arena, web, server)
        for key in made.learned.as_dict():
            made.learned.delete(key)
        made.ask()
        yield made
    arena.host.ip("route", "del", "10.81.0.0/24")


def test_the_server_that_was_asked_is_believed(scene: Scene) -> None:
    scene.server.sendto(scene.answer(), scene.asker)
    assert scene.hears(scene.answer())
    assert scene.reaches(GOOD)
    assert not scene.reaches(EVIL)


def test_another_machine_that_may_send_is_not_believed(scene: Scene) -> None:
    with scene.arena.at_peer() as forger:
        forger.bind((STRANGER, 53))
        forger.sendto(scene.answer(EVIL), scene.asker)
        assert scene.hears(scene.answer(EVIL))
    assert not scene.reaches(EVIL)


def test_another_port_of_the_server_is_not_believed(scene: Scene) -> None:
    with scene.arena.at_peer() as forger:
        forger.bind((FRIEND, 5353))
        forger.sendto(scene.answer(EVIL), scene.asker)
        assert scene.hears(scene.answer(EVIL))
    assert not scene.reaches(EVIL)


def test_another_workload_that_may_send_is_not_believed(scene: Scene, rogue: Puppet) -> None:
    rogue.do(f"forger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); forger.bind(('{OURS}', 53))")
    rogue.do(f"forger.sendto(bytes.fromhex('{scene.answer(EVIL).hex()}'), ('{OURS}', {PORT}))")
    assert scene.hears(scene.answer(EVIL))
    assert not scene.reaches(EVIL)
    assert rogue.tcp(EVIL, 80) == "EPERM"


def test_another_workload_cannot_send_from_the_servers_address(scene: Scene, rogue: Puppet) -> None:
    forged = IP(src=FRIEND, dst=OURS) / UDP(sport=53, dport=PORT) / scene.answer(EVIL)
    code = f"r = socket.socket(2, 3, 255); r.sendto(bytes.fromhex('{bytes(forged).hex()}'), ('{OURS}', 0))"
    with scene.arena.counting() as refused:
        rogue.do(code)
    assert refused["raw-socket", "egress", "deny"] == 1
    assert not scene.reaches(EVIL)


def test_what_a_workload_asks_itself_opens_nothing_for_another(scene: Scene, rogue: Puppet) -> None:
    rogue.do("asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); asking.settimeout(2)")
    rogue.do(f"asking.sendto(bytes.fromhex('{scene.query.hex()}'), ('{FRIEND}', 53))")
    query, asker = scene.server.recvfrom(512)
    scene.server.sendto(scene.answer(EVIL, query=query), asker)
    assert rogue.do("asking.recv(512).hex()")
    assert rogue.tcp(EVIL, 80) != "EPERM"
    assert not scene.reaches(EVIL)


def test_no_other_id_than_that_of_the_question_will_do(scene: Scene) -> None:
    forged = (number.to_bytes(2, "big") + scene.answer(EVIL)[2:] for number in range(4096) if number != 7)
    header = IP(src=FRIEND, dst=OURS) / UDP(sport=53, dport=PORT)
    scene.arena.send_frames(*(framed(scene.arena, header / one) for one in forged))
    assert not scene.learned.as_dict()
    scene.server.sendto(scene.answer(), scene.asker)
    assert until(lambda: len(scene.learned.as_dict()) == 1)
    assert scene.reaches(GOOD)
    assert not scene.reaches(EVIL)


def test_noise_of_any_size_on_loopback_is_delivered_and_teaches_nothing(scene: Scene, rogue: Puppet) -> None:
    rogue.do(f"forger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); forger.bind(('{OURS}', 53))")
    for size in (0, 1, 11, 12, 13, 28, 4095, 9000, 65507):
        noise = (scene.answer(EVIL) * (1 + size // 40))[:size].hex()
        rogue.do(f"forger.sendto(bytes.fromhex('{noise}'), ('{OURS}', {PORT}))")
        assert scene.web.do("asking.recv(65535).hex()") == noise
    assert not scene.learned.as_dict()


def test_a_source_route_does_not_carry_a_named_connection_elsewhere(scene: Scene) -> None:
    scene.arena.peer.ip("route", "replace", "local", "10.81.0.0/24", "dev", "lo")
    with scene.arena.at_peer(kind=socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((GOOD, 80))
        listener.listen()
        scene.server.sendto(scene.answer(), scene.asker)
        assert scene.hears(scene.answer())
        assert scene.web.hold("named", GOOD, 80) == "ok"
        accepted, _ = listener.accept()
        with accepted:
            hop = ip_address(EVIL).packed.hex()
            end = ip_address(GOOD).packed.hex()
            scene.web.do(f"_held['named'].setsockopt(0, 4, bytes.fromhex('01830b04{hop}{end}'))")
            # The route that the socket keeps is that of the plain address, until any route changes.
            scene.arena.host.ip("route", "add", "10.82.0.0/24", "via", FRIEND)
            scene.arena.host.ip("route", "del", "10.82.0.0/24")
            with scene.arena.counting() as refused:
                scene.web.do("_held['named'].send(b'leak')")
                accepted.settimeout(0.4)
                with pytest.raises(TimeoutError):
                    accepted.recv(9)
            assert refused["policy", "egress", "deny"]
    scene.arena.peer.ip("route", "del", "local", "10.81.0.0/24", "dev", "lo")
