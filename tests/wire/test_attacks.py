"""Attacks on identity on the wire, from the path, from a container, and from a workload that has a socket to misuse.

Each gets nowhere and is counted for exactly what it was. What the format does not defend against is here as well.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bulkhead.abi import WireSelf
from bulkhead.kernel.maps import KernelMaps
from lab import wire
from lab.bpf import can_attach
from lab.faults import rewrite, strip, when
from lab.fleet import Fleet
from lab.netns import Namespace, network_namespace
from lab.packet import Packet
from lab.puppet import Puppet
from lab.wired import WORKLOADS, counting, shop, until

pytestmark = pytest.mark.skipif(not can_attach(), reason="needs root and a mounted BPF file system")

SYN, SYN_ACK, DATA = when("tcp", "S"), when("tcp", "SA"), when("tcp", "AP")
EPOCH_S = wire.TICK_S * wire.EPOCH_TICKS
BEFORE_S, LASTS_S = 1.5, 4.0
"""How long before a change of keys a test begins, and how long it goes on."""
VERIFIED = 0xB17E
"""The mark of an opening that was verified at another device of the host."""
SAVE_SYN, SAVED_SYN, REPAIR = 27, 28, 19


@pytest.fixture
def web(puppets) -> Puppet:
    return puppets("web")


@pytest.fixture
def app(puppets) -> Puppet:
    one = puppets("app")
    one.serve_tcp("::", 8080)
    return one


def saying(at: int, fresh: bytes) -> Callable[[Packet], Packet]:
    """The identity option with other bytes from `at` on, and its code as it was."""

    def change(packet: Packet) -> Packet:
        options = packet.options
        return packet.with_options(
            [whole if kind != 253 else whole[:at] + fresh + whole[at + len(fresh) :] for kind, whole in options]
        )

    return change


# On the path


@pytest.mark.parametrize(
    ("what", "reason"),
    (("identity", "wire-forged"), ("node", "wire-forged"), ("unknown node", "wire-no-key"), ("code", "wire-forged")),
)
def test_an_opening_that_says_something_else_under_the_same_code_is_refused(
    fleet: Fleet, web, app, what: str, reason: str
) -> None:
    numbers = {"node": wire.number_of("db"), "unknown node": wire.number_of("nobody")}
    if what in numbers:
        change = saying(8, numbers[what].to_bytes(3, "big"))
    else:
        change = saying(4, b"\0\1\2\3") if what == "identity" else saying(19, b"\0\0")
    if what == "code":
        change = saying(12, bytes(8))
    with fleet.router.fault("web", rewrite(change), SYN) as fault, counting(fleet["app"]) as here:
        assert web.tcp(fleet.address("app"), 8080) == "timeout"
    assert (here.refusals, here.wire) == ({(reason, "ingress", "deny"): fault.hits}, {})
    assert fault.hits >= 1


def test_a_stripped_opening_is_counted_as_just_that(fleet: Fleet, web, app) -> None:
    with fleet.router.fault("web", strip(), SYN) as fault, counting(fleet["app"]) as here:
        assert web.tcp(fleet.address("app"), 8080) == "timeout"
    assert (here.refusals, here.wire) == ({("wire-missing", "ingress", "deny"): fault.hits}, {})


def test_under_syn_cookies_a_forged_opening_is_refused_before_the_listener(fleet: Fleet, web, app) -> None:
    fleet["app"].run("app", ["sysctl", "-qw", "net.ipv4.tcp_syncookies=2"])
    try:
        with (
            fleet.router.fault("web", rewrite(saying(12, bytes(8))), SYN) as fault,
            fleet.router.capture("app") as wires,
            counting(fleet["app"]) as here,
        ):
            assert web.tcp(fleet.address("app"), 8080) == "timeout"
    finally:
        fleet["app"].run("app", ["sysctl", "-qw", "net.ipv4.tcp_syncookies=1"])
    assert (here.refusals, here.wire) == ({("wire-forged", "ingress", "deny"): fault.hits}, {})
    assert not wires.leaving("app")


def test_what_is_put_into_an_open_stream_is_not_noticed_and_the_page_says_so(fleet: Fleet, web, app) -> None:
    assert web.hold("c", fleet.address("app"), 8080) == "ok"
    with (
        fleet.router.fault("web", rewrite(lambda packet: packet.with_payload(b"z")), DATA) as fault,
        counting(fleet["app"]) as here,
    ):
        web.do("_held['c'].sendall(b'y')")
        assert web.do("_held['c'].recv(9).decode()") == "z"
    assert fault.hits == 1
    assert (here.refusals, here.wire) == ({}, {})
    page = (Path(__file__).parents[2] / "docs" / "wire.md").read_text()
    assert "Whoever can write into the path may take over an established stream" in page


# Keys


@pytest.fixture
def unattended(fleet: Fleet) -> Iterator[Fleet]:
    """With every agent dead: nobody puts the maps right."""
    for host in fleet.guarded:
        host.stop_agent(9)
    yield fleet
    fleet.start_agents()


def advance(fleet: Fleet, seconds: float, *names: str) -> None:
    """Let the kernels of these hosts believe that it is later."""
    for name in names:
        with KernelMaps(fleet[name].pins) as maps:
            table = maps.fixed("wire_self")
            own = WireSelf.from_buffer_copy(table.lookup(bytes(4)) or b"")
            own.clock_offset_s += int(seconds)
            table.update(bytes(4), bytes(own))


def test_a_change_of_keys_under_load_loses_nothing_and_ends_the_old_ones(unattended: Fleet, web, app) -> None:
    fleet = unattended
    advance(fleet, EPOCH_S - time.time() % EPOCH_S - BEFORE_S, "web", "app", "db")
    said: list[str] = []
    with (
        fleet.router.capture("app") as wires,
        counting(fleet["web"]) as there,
        counting(fleet["app"]) as here,
    ):
        until_s = time.monotonic() + LASTS_S
        while time.monotonic() < until_s:
            said.append(web.tcp(fleet.address("app"), 8080))
    assert set(said) == {"ok"}
    assert not there.refusals and not here.refusals
    openings = [packet for packet in wires.arriving("app") if packet.flags == "S"]
    ticks = {(packet.option(253) or bytes(20))[11] for packet in openings}
    assert ticks == {255, 0}, "they were opened under either key"
    advance(fleet, (wire.TICKS_APART + 2) * wire.TICK_S, "app")
    with counting(fleet["app"]) as here, fleet.router.capture("app") as wires:
        fleet.router.send(openings[0].with_ports(source=1024), "app")
        wires.wait(lambda seen: seen.packet.ports[0] == 1024)
        assert web.tcp(fleet.address("app"), 8080) == "timeout"
    assert set(here.refusals) == {("wire-clock", "ingress", "deny")}


def test_without_keys_nothing_is_believed(unattended: Fleet, web, app) -> None:
    fleet = unattended
    with KernelMaps(fleet["app"].pins) as maps:
        table = maps.fixed("wire_keys")
        held = table.as_dict()
        table.delete_batch(b"".join(held), len(held))
    with fleet.router.capture("app") as wires, counting(fleet["app"]) as here:
        assert web.tcp(fleet.address("app"), 8080) == "timeout"
    openings = sum(packet.flags == "S" for packet in wires.arriving("app"))
    assert here.refusals == {("wire-no-key", "ingress", "deny"): openings}
    assert not here.wire["verified"]


# A workload's own sockets


_AGAIN = """
import ctypes
def again(name):
    if ctypes.CDLL(None).connect(_held[name].fileno(), bytes(16), 16): raise OSError('still connected')
"""


def test_a_socket_that_is_connected_anew_is_judged_anew(fleet: Fleet, web, app, puppets) -> None:
    puppets("db").serve_tcp("::", 5432)
    assert web.hold("c", fleet.address("app"), 8080) == "ok"
    web.do(_AGAIN)
    web.do("again('c')")
    with fleet.router.capture("db") as wires:
        assert web.do(f"_held['c'].connect_ex(({fleet.address('db')!r}, 5432))") == 1  # EPERM
    assert not wires.arriving("db")


def test_a_socket_that_is_put_together_without_an_opening_sends_nothing(fleet: Fleet, web, app, puppets) -> None:
    """TCP_REPAIR connects to another node where nobody has answered, on the verdict of a conversation before."""
    assert web.hold("c", fleet.address("app"), 8080) == "ok"
    assert web.use("c") == "ok"
    web.do(_AGAIN)
    web.do("again('c')")
    with fleet.router.capture("db") as wires, counting(fleet["web"]) as here:
        web.do(
            f"one = _held['c']; one.setsockopt(6, {REPAIR}, 1); one.connect(({fleet.address('db')!r}, 8080)); "
            f"one.setsockopt(6, {REPAIR}, 0); attempt(one, b'secret')"  # the agent may have ended it by then
        )
    assert not any(packet.payload for packet in wires.arriving("db"))
    assert ("wire-missing", "ingress", "deny") in here.refusals


def test_who_was_not_proven_while_watched_is_nobody_once_it_is_enforced(fleet: Fleet, web, app) -> None:
    """Its address is that of an external that may be called, and a registered node's: it has to say who it is."""
    rules = ("web -> app 8080", "web -> rack 8080")
    enforced = shop(*rules).replace("externals:", "externals:\n  rack: {cidr: [10.78.0.0/16]}")
    watched = enforced.replace(WORKLOADS["web"], WORKLOADS["web"].replace("enforce", "observe"))
    assert watched != enforced
    fleet.enforce(watched)
    try:
        with fleet.router.fault("app", strip(), SYN_ACK), counting(fleet["web"]) as here:
            assert web.hold("c", fleet.address("app"), 8080) == "ok"
            assert web.use("c") == "ok"
        assert here.refusals == {("wire-missing", "egress", "would-deny"): 1}
        fleet.enforce(enforced)
        assert web.use("c") != "ok"
        assert web.tcp(fleet.address("app"), 8080) == "ok"
    finally:
        fleet.enforce(shop())


def test_a_listener_that_called_before_knows_its_callers(fleet: Fleet, puppets) -> None:
    """Nothing of its own call is cloned into what it accepts."""
    web, app, db = puppets("web"), puppets("app"), puppets("db")
    db.serve_tcp("::", 5432)
    app.do(
        "one = _held['one'] = socket.socket(); one.setsockopt(1, 2, 1); one.bind(('', 8080)); one.settimeout(QUIET_S)\n"
        f"one.connect(({fleet.address('db')!r}, 5432))"
    )
    app.do(_AGAIN)
    app.do("again('one')")
    app.do("_held['one'].listen()")
    with counting(fleet["app"]) as here:
        assert web.hold("c", fleet.address("app"), 8080) == "ok"
        app.do("_held['of web'] = _held['one'].accept()[0]; _held['of web'].sendall(b'z')")
        assert web.do("_held['c'].recv(9).decode()") == "z"
    assert not here.refusals


# A container


@pytest.fixture
def box(fleet: Fleet) -> Iterator[Namespace]:
    """A network namespace that is joined to the host app by a veth pair, and whose root marks what leaves it."""
    host = fleet.router.links["app"].netns
    with network_namespace() as inside:
        inside.ip(f"link add eth0 type veth peer name box0 netns {host}")
        inside.ip("address add 10.79.0.2/24 dev eth0")
        inside.ip("link set eth0 up")
        there = ["nsenter", f"--net={host}", "ip"]
        subprocess.run([*there, "address", "add", "10.79.0.1/24", "dev", "box0"], check=True)
        subprocess.run([*there, "link", "set", "box0", "up"], check=True)
        inside.run("tc", "qdisc", "add", "dev", "eth0", "clsact")
        marking = f"1,6 0 0 {1 << 16 | VERIFIED}"  # return this class, whose minor number the packet is marked with
        inside.run("tc", "filter", "add", "dev", "eth0", "egress", "protocol", "all", "bpf", "bytecode", marking)
        try:
            until(lambda: "box0" in str(fleet["app"].call("status")), "the agent guards the new device")
            yield inside
        finally:
            inside.ip("link delete eth0")


def test_a_container_does_not_pass_for_another_node_by_a_stamp_that_a_listener_has_read(
    fleet: Fleet, web, puppets, box: Namespace
) -> None:
    listener = puppets("app")
    listener.do(
        "one = _held['in'] = socket.socket(socket.AF_INET6); one.settimeout(QUIET_S)\n"
        f"one.setsockopt(6, {SAVE_SYN}, 1); one.bind(('::', 8080)); one.listen()"
    )
    assert web.hold("c", fleet.address("app"), 8080) == "ok"
    listener.do("_held['of web'] = _held['in'].accept()[0]")
    saved = Packet(bytes.fromhex(listener.do(f"_held['of web'].getsockopt(6, {SAVED_SYN}, 256).hex()")))
    assert saved.option(253) is not None
    forged = saved.readdressed("10.79.0.2").with_ports(source=4444)
    with box.entered():
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
    with sender, counting(fleet["app"]) as here:
        sender.sendto(forged.raw, ("eth0", 0x0800, 0, 0, device_address(fleet)))
        assert web.tcp(fleet.address("app"), 8080) == "timeout"  # nobody there echoes
    assert here.refusals == {("wire-forged", "ingress", "deny"): 1}
    assert here.wire["verified"] == 1


def device_address(fleet: Fleet) -> bytes:
    """Of the host's end."""
    argv = ["nsenter", f"--net={fleet.router.links['app'].netns}", "ip", "-br", "link", "show", "box0"]
    shown = subprocess.run(argv, check=True, capture_output=True, text=True)
    return bytes.fromhex(shown.stdout.split()[2].replace(":", ""))
