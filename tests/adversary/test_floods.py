"""Floods: whatever is full, late or lost, nothing passes for it and every refusal is counted."""

from __future__ import annotations

import shutil
import socket
import threading
from contextlib import suppress

from scapy.layers.inet import IP, TCP, UDP

from bulkhead.abi import ExecutableKey
from bulkhead.identity.processes import executable_at
from bulkhead.kernel.attestation import kernel_key

from .conftest import FRIEND, OURS, STRANGER, Arena, framed, got, inbox, listen, outcome, until

IN, OUT = ("policy", "ingress", "deny"), ("policy", "egress", "deny")
MANY = """apiVersion: bulkhead/v1alpha1
kind: Policy
metadata: {name: t}
workloads:
  web: {match: {cgroup: /t/web}, mode: enforce}
  db: {match: {cgroup: /t/db}, mode: enforce}
externals:
  friend: {cidr: [10.77.0.2/32]}
  crowd: {cidr: [10.88.0.0/15]}
allow:
  - {name: web-crowd, from: web, to: crowd, ports: [7000/udp]}
  - {name: db-friend, from: db, to: friend, ports: [7000/udp]}
  - {name: friend-db, from: friend, to: db, ports: [5432]}
"""


def test_every_packet_of_a_flood_is_counted_and_every_event_is_told_or_missed(arena: Arena, db) -> None:
    listen(db, 5432)
    frames = [
        framed(arena, IP(src=STRANGER, dst=OURS) / TCP(sport=1024 + number, dport=5432, flags="S"))
        for number in range(50)
    ]
    lost = arena.losses()
    with arena.counting() as refused:
        for _ in range(400):
            arena.send_frames(*frames)
    assert refused == {IN: 20_000}
    missed = {name: n - lost[name] for name, n in arena.losses().items()}
    assert missed["event-rate"] + missed["event-ring"] > 0
    assert missed["event-rate"] + missed["event-ring"] <= 20_000
    assert missed["edge"] == 0


def test_refused_calls_of_many_processes_at_once_are_counted_exactly(arena: Arena, rogue) -> None:
    with arena.counting() as refused:
        rogue.do(
            """
def hammer():
    for number in range(2000):
        one = socket.socket()
        try:
            one.connect(('127.0.0.1', 5432))
            os._exit(1)
        except PermissionError:
            one.close()
    os._exit(0)
children = []
for _ in range(6):
    pid = os.fork()
    if pid == 0:
        hammer()
    children.append(pid)
ended = [os.waitpid(pid, 0)[1] for pid in children]
"""
        )
    assert rogue.do("ended") == [0] * 6
    assert refused == {OUT: 12_000}


def test_a_flood_does_not_keep_the_socket_of_a_cut_conversation_alive(arena: Arena, db) -> None:
    listen(db, 5432)
    flood = [framed(arena, IP(src=STRANGER, dst=OURS) / TCP(sport=n, dport=5432, flags="S")) for n in range(1, 500)]
    over = threading.Event()

    def attack() -> None:
        while not over.is_set():
            arena.send_frames(*flood)

    with arena.at_peer(kind=socket.SOCK_STREAM) as peer:
        peer.bind((FRIEND, 0))
        peer.connect((OURS, 5432))
        db.do("k, _ = listener.accept()")
        attacker = threading.Thread(target=attack)
        attacker.start()
        try:
            with arena.policy(MANY.replace("ports: [5432]", "ports: [5433]")):
                assert until(lambda: outcome(db, "k.send(b'x')") in ("ECONNABORTED", "EPIPE"))
                over.set()
        finally:
            over.set()
            attacker.join()


def test_one_workloads_many_peers_take_no_answer_from_anothers_conversation(arena: Arena, db, web) -> None:
    arena.host.ip("route", "replace", "10.88.0.0/15", "via", FRIEND)
    with arena.policy(MANY), arena.at_peer() as first:
        first.bind((FRIEND, 7000))
        db.do(f"d = socket.socket(2, 2); d.bind(('{OURS}', 4000)); d.sendto(b'q', ({FRIEND!r}, 7000))")
        assert first.recv(9) == b"q"
        with arena.counting() as refused:
            web.do(
                """
f = socket.socket(2, 2)
for number in range(100000):
    f.sendto(b'', ('10.%d.%d.%d' % (88 + (number >> 16), number >> 8 & 255, number & 255), 7000))
"""
            )
            first.sendto(b"answer", (OURS, 4000))
            assert db.do("d.recv(9).decode()") == "answer"
        assert refused == {}
        assert arena.host.ask("status")["maps"]["datagrams"]["entries"] > 10_000


def test_what_a_flood_displaced_is_refused_and_never_let_in(arena: Arena, web) -> None:
    """A datagram that was never asked for stays out, however full the memory of those that were."""
    arena.host.ip("route", "replace", "10.88.0.0/15", "via", FRIEND)
    with arena.policy(MANY), arena.at_peer() as stranger:
        stranger.bind((STRANGER, 7000))
        web.do("f = socket.socket(2, 2); f.bind(('0.0.0.0', 4001))")
        web.do("for number in range(70000): f.sendto(b'', ('10.88.%d.%d' % (number >> 8 & 255, number & 255), 7000))")
        with arena.counting() as refused:
            for _ in range(50):
                stranger.sendto(b"x", (OURS, 4001))
            assert got(web, "f") == 0
        assert refused == {IN: 50}


def test_fragments_of_a_flood_open_nothing(arena: Arena, db) -> None:
    inbox(db, 5300)
    heads = [
        framed(arena, IP(src=FRIEND, dst=OURS, id=n, flags="MF") / UDP(sport=4000, dport=5300, len=4008) / bytes(8))
        for n in range(1, 400)
    ]
    tail = framed(arena, IP(src=FRIEND, dst=OURS, id=60000, frag=2, proto=17) / bytes(8))
    with arena.counting() as refused:
        for _ in range(20):
            arena.send_frames(*heads, tail)
        assert got(db) == 0
    assert refused == {("fragment", "ingress", "deny"): 20}


def test_control_packets_in_a_flood_are_limited_and_counted(arena: Arena) -> None:
    probe = framed(arena, IP(src=STRANGER, dst=OURS) / TCP(sport=9, dport=9, flags="A", seq=1))
    with arena.counting() as refused, suppress(OSError):
        for _ in range(60):
            arena.send_frames(*[probe] * 500)
    assert set(refused) <= {("control-rate", "egress", "deny")}
    assert refused[("control-rate", "egress", "deny")] < 30_000


def test_strange_executables_without_number_do_not_displace_those_that_run(arena: Arena, plain) -> None:
    found = executable_at(plain.do("os.path.realpath('/proc/self/exe')"))
    assert found is not None and found.key is not None
    running = kernel_key(found.key)
    executables = arena.maps.fixed("executables")
    size = executables.info.max_entries
    strangers = [bytes(ExecutableKey(inode=n, device=0xFFFFF, generation=n)) for n in range(1, size + 1)]
    held = executables.lookup_batch()[0]
    room = size - len(held) // executables.info.key_size
    executables.update_batch(b"".join(strangers[:room]), bytes(4 * room), room)
    newcomer = arena.host.directory / "newcomer"
    shutil.copy("/bin/true", newcomer)
    arena.host.run("plain", [str(newcomer)])
    fresh = executable_at(str(newcomer))
    assert fresh is not None and fresh.key is not None
    key = kernel_key(fresh.key)
    assert until(lambda: executables.lookup(key) is not None)
    assert executables.lookup(running) is not None
    assert executables.lookup(strangers[0]) is None
