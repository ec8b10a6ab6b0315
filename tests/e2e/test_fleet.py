"""The lab of several hosts is what it says: real wires, a real router, faults that can be seen from the far side.

No agents here: this is what tests of identity between hosts stand on.
"""

from __future__ import annotations

import base64
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives import serialization

from bulkhead.identity.cgroups import find_mount
from lab import description
from lab.__main__ import setup
from lab.bpf import can_attach
from lab.faults import Action, Late, Swap, blank, copy, duplicate, lose, normalise, rewrite, strip, strip_trailer, when
from lab.fleet import Fleet
from lab.netns import network_namespace
from lab.packet import EXPERIMENT, TCP, Packet, is_sound
from lab.puppet import Puppet, PuppetError

ROOT = Path(__file__).resolve().parents[2]
THREE_TIER = ROOT / "tests" / "lab" / "three-tier.yaml"
OPTION = bytes([EXPERIMENT, 8]) + b"fleet!"
MSS, TIMESTAMP = 2, 8
FAMILIES = pytest.mark.parametrize("family", (4, 6))
SYN = when("tcp", "S")
TRANSLATED = {4: "198.51.100.7", 6: "2001:db8::7"}

pytestmark = pytest.mark.skipif(not can_attach(), reason="needs root and a mounted BPF file system")


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    hosts = {"web": {}, "db": {"serve": {"db": 5432}}, "mallory": {"agent": False}}
    with Fleet.described({"hosts": hosts}) as one:
        yield one


@pytest.fixture(scope="module")
def client(fleet: Fleet) -> Puppet:
    return fleet["web"].puppet("web")


@pytest.fixture(scope="module")
def attacker(fleet: Fleet) -> Puppet:
    return fleet["mallory"].puppet("attack")


def traces() -> set[str]:
    """What a lab would leave: directories, control groups, namespaces, pins, threads, descriptors."""
    places = (Path("/tmp"), find_mount().mount_point, Path("/run/netns"), Path("/sys/fs/bpf"))
    found = {str(path) for place in places if place.exists() for path in place.iterdir() if "leaves-no" in path.name}
    found |= {f"thread {thread.name}" for thread in threading.enumerate()}
    return found | {f"open {os.readlink(f'/proc/self/fd/{fd}')}" for fd in _descriptors()}


def _descriptors() -> list[int]:
    return [fd for fd in map(int, os.listdir("/proc/self/fd")) if os.path.lexists(f"/proc/self/fd/{fd}")]


def datagrams(client: Puppet, to: str, port: int, count: int) -> None:
    """Send datagrams of 1, 2, 3, … bytes from one socket."""
    family = "AF_INET6" if ":" in to else "AF_INET"
    client.do(
        f"with socket.socket(socket.{family}, socket.SOCK_DGRAM) as one:\n"
        f"    for size in range(1, {count} + 1): one.sendto(bytes(size), ({to!r}, {port}))"
    )


def with_option(packet: Packet) -> Packet:
    """With an experimental option where the identity's is: at the end."""
    return packet.with_options([*(whole for _, whole in packet.options), OPTION])


# Wires


@FAMILIES
def test_hosts_reach_each_other_through_the_router_from_the_first_packet(fleet: Fleet, client: Puppet, family: int):
    address = fleet.address("db", family)
    with fleet.router.capture() as wires:
        assert (client.tcp(address, 5432), client.udp(address, 5432), client.raw_echo(address)) == ("ok", "ok", "ok")
    syns = [packet for packet in wires.arriving("db") if packet.flags == "S"]
    assert [packet.source for packet in syns] == [fleet.address("web", family)]
    assert syns[0].raw != wires.leaving("web")[0].raw  # one hop further
    assert all(is_sound(seen.packet) for seen in wires.packets())


@FAMILIES
def test_a_host_that_gets_other_addresses_is_reached_there_and_not_where_it_was(
    fleet: Fleet, client: Puppet, family: int
):
    old, kept = fleet.address("db", family), [str(one) for one in fleet.router.links["db"].addresses]
    fleet.readdress("db", "10.78.99.9/24", "fd78:99::9/64")
    try:
        assert client.tcp(fleet.address("db", family), 5432) == "ok"
        assert client.tcp(old, 5432) != "ok"
    finally:
        fleet.readdress("db", *kept)
    assert client.tcp(old, 5432) == "ok"


def test_one_commit_is_every_hosts(fleet: Fleet):
    commit = fleet.commit({"a.yaml": "a: 1\n"})
    assert {host.repository for host in fleet} == {fleet.repository}
    assert {host.settings["repository"] for host in fleet} == {str(fleet.repository)}
    assert commit in (fleet.repository / ".git/refs/heads/main").read_text()


def test_a_lab_that_identifies_itself_has_keys_under_passphrases_and_records_of_where_nodes_are_reached():
    hosts = {"web": {}, "db": {}, "mallory": {"agent": False}}
    nat = [{"dnat": "198.51.100.9", "to": "db"}, {"masquerade": "web"}]
    nat += [
        {"dnat": "198.51.100.8", "to": host, "port": port} for host, port in (("db", 5432), ("web", 80))
    ]  # no one's
    with Fleet.described({"hosts": hosts, "router": {"nat": nat}, "wire": True}) as one:
        one.readdress("web", "10.78.9.2/24")
        one.commit({})
        web, db = yaml.safe_load_all((one.repository / "nodes.yaml").read_text())
        assert (web["metadata"], web["addresses"]) == ({"name": "web"}, ["10.78.9.2"])
        assert db["addresses"] == ["10.78.2.2", "fd78:2::2", "198.51.100.9/32"]
        for host, record in ((one["web"], web), (one["db"], db)):
            pem, passphrase = (Path(str(host.settings[key])) for key in ("node_key", "node_key_passphrase"))
            assert {path.stat().st_mode & 0o777 for path in (pem, passphrase)} == {0o600}
            with pytest.raises(TypeError, match="encrypted"):
                serialization.load_pem_private_key(pem.read_bytes(), None)
            key = serialization.load_pem_private_key(pem.read_bytes(), passphrase.read_bytes().rstrip())
            raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
            assert base64.b64decode(record["key"]) == raw
        changed = list(yaml.safe_load_all(one.records({"db": {"revoked": True}, "mallory": {}})))
        assert [(record.get("revoked"), "key" in record) for record in changed] == [
            (None, True),
            (True, True),
            (None, False),
        ]


# Address translation


@FAMILIES
@pytest.mark.parametrize("has_fault", (False, True))
def test_a_translated_source_is_what_the_far_side_sees(fleet: Fleet, client: Puppet, family: int, has_fault: bool):
    rule = description.nat({"snat": "web", "to": TRANSLATED[family]}, fleet.description.hosts)
    address = fleet.address("db", family)
    action, matches = (rewrite(with_option), SYN) if has_fault else (lose(), lambda packet: False)
    with (
        fleet.router.translating(rule),
        fleet.router.fault("web", action, matches),
        fleet.router.capture("web", "db") as wires,
    ):
        assert client.tcp(address, 5432) == "ok"
    assert {packet.source for packet in wires.arriving("db")} == {TRANSLATED[family]}
    assert {packet.source for packet in wires.arriving("web")} == {address}
    assert {packet.option(EXPERIMENT) for packet in wires.arriving("db") if packet.flags == "S"} == {
        OPTION if has_fault else None
    }
    with fleet.router.capture("db") as wires:
        assert client.tcp(address, 5432) == "ok"
    assert {packet.source for packet in wires.arriving("db")} == {fleet.address("web", family)}


@FAMILIES
def test_a_masqueraded_host_has_the_routers_address(fleet: Fleet, client: Puppet, family: int):
    rule = description.nat({"masquerade": "web"}, fleet.description.hosts)
    routers = {str(one.ip) for one in fleet.description.host("db").routers}
    with (
        fleet.router.translating(rule),
        fleet.router.fault("db", rewrite(with_option), when("tcp", "SA")) as answers,  # they are for the router itself
        fleet.router.capture("web", "db") as wires,
    ):
        assert client.tcp(fleet.address("db", family), 5432) == "ok"
    assert {packet.source for packet in wires.arriving("db")} < routers
    assert [packet.destination in routers for packet in answers.matched] == [True]
    assert [packet.option(EXPERIMENT) for packet in wires.arriving("web") if packet.flags == "SA"] == [OPTION]


@FAMILIES
def test_translation_goes_on_for_a_host_that_gets_other_addresses(fleet: Fleet, client: Puppet, family: int):
    rules = [{"masquerade": "web"}, {"dnat": TRANSLATED[family], "to": "db"}]
    kept = {name: [str(one) for one in fleet.router.links[name].addresses] for name in ("web", "db")}
    with fleet.router.translating(*(description.nat(rule, fleet.description.hosts) for rule in rules)):
        fleet.readdress("web", "10.78.98.9/24", "fd78:98::9/64")
        fleet.readdress("db", "10.78.99.9/24", "fd78:99::9/64")
        try:
            with fleet.router.capture("db") as wires:
                assert client.tcp(TRANSLATED[family], 5432) == "ok"
            routers = {4: "10.78.99.1", 6: "fd78:99::1"}
            assert {packet.source for packet in wires.arriving("db")} == {routers[family]}
        finally:
            for name, addresses in kept.items():
                fleet.readdress(name, *addresses)


@FAMILIES
def test_a_translated_destination_leads_to_the_host_that_it_stands_for(fleet: Fleet, client: Puppet, family: int):
    rule = description.nat(
        {"dnat": TRANSLATED[family], "port": 80, "to": "db", "to_port": 5432}, fleet.description.hosts
    )
    with fleet.router.translating(rule), fleet.router.capture("web") as wires:
        assert client.tcp(TRANSLATED[family], 80) == "ok"
        assert {packet.source for packet in wires.arriving("web")} == {TRANSLATED[family]}
    assert client.tcp(TRANSLATED[family], 80) != "ok"


# What the router does to packets


@FAMILIES
@pytest.mark.parametrize(
    "action, kinds",
    (
        pytest.param(strip(MSS), [4, TIMESTAMP, 3], id="strip"),
        pytest.param(blank(TIMESTAMP), [MSS, 4, 3], id="blank"),
        pytest.param(normalise((TIMESTAMP, 3)), [TIMESTAMP, 3, MSS, 4], id="normalise"),
        pytest.param(rewrite(with_option), [MSS, 4, TIMESTAMP, 3, EXPERIMENT], id="add"),
    ),
)
def test_options_of_a_syn_are_altered_on_the_way(
    fleet: Fleet, client: Puppet, family: int, action: Action, kinds: list[int]
):
    with fleet.router.fault("web", action, SYN) as fault, fleet.router.capture("db") as wires:
        assert client.tcp(fleet.address("db", family), 5432) == "ok"
    (syn,) = [packet for packet in wires.arriving("db") if packet.flags == "S"]
    assert fault.hits == 1
    assert [kind for kind, _ in syn.options if kind != 1] == kinds
    assert is_sound(syn)


@FAMILIES
def test_a_checksum_that_was_wrong_before_is_wrong_after_the_router_has_altered_the_packet(
    fleet: Fleet, client: Puppet, family: int
):
    def spoil(packet: Packet) -> Packet:
        return Packet(packet.raw[:-1] + bytes([packet.raw[-1] ^ 1]))

    with (
        fleet.router.fault("web", rewrite(spoil), SYN),
        fleet.router.fault("web", strip(MSS), SYN) as stripped,
        fleet.router.capture("db") as wires,
    ):
        assert client.tcp(fleet.address("db", family), 5432) == "timeout"
    assert stripped.hits >= 1
    assert not any(is_sound(packet) for packet in wires.arriving("db") if packet.flags == "S")


@FAMILIES
def test_only_what_matches_is_lost_and_only_while_the_fault_is_on(fleet: Fleet, client: Puppet, family: int):
    address = fleet.address("db", family)
    with fleet.router.fault("web", lose(), when("tcp", "S", 5432)) as fault:
        assert client.tcp(address, 5432) == "timeout"
        assert client.udp(address, 5432) == "ok"
    assert fault.hits >= 1
    assert client.tcp(address, 5432) == "ok"


@FAMILIES
@pytest.mark.parametrize(
    "action, sizes",
    (
        pytest.param(lambda: lose(every=2), [1, 3, 5], id="every second lost"),
        pytest.param(Swap, [2, 1, 4, 3, 6, 5], id="neighbours swapped"),
        pytest.param(Late, [2, 1, 3, 4, 5, 6], id="the first late by one"),
        pytest.param(lambda: duplicate(1), [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6], id="each twice"),
    ),
)
def test_datagrams_arrive_as_the_fault_leaves_them(
    fleet: Fleet, client: Puppet, family: int, action: type[Action], sizes: list[int]
):
    with fleet.router.capture("db") as wires:
        with fleet.router.fault("web", action(), when("udp", port=9)):
            datagrams(client, fleet.address("db", family), 9, 6)
            wires.wait(lambda seen: seen.is_arriving and len(seen.packet.payload) == sizes[-1])
        assert [len(packet.payload) for packet in wires.arriving("db") if packet.protocol == 17] == sizes


def test_what_a_fault_holds_back_goes_on_when_it_ends(fleet: Fleet, client: Puppet):
    with fleet.router.capture("db") as wires:
        with fleet.router.fault("web", Late(), when("udp", port=9)):
            datagrams(client, fleet.address("db"), 9, 1)
        wires.wait(lambda seen: seen.is_arriving and seen.packet.ports[1] == 9)


@FAMILIES
def test_udp_options_are_cut_off(fleet: Fleet, attacker: Puppet, family: int):
    with fleet.router.capture("db") as wires:
        plain = _datagram(fleet, family)
        longer = plain.with_trailer(b"\x01\x00")
        with fleet.router.fault("mallory", strip_trailer()):
            fleet.router.spoof(longer, "mallory")
            found = wires.wait(lambda seen: seen.is_arriving and seen.packet.ports[1] == 9).packet
    assert longer.trailer == b"\x01\x00"
    assert (found.trailer, found.payload, is_sound(found)) == (b"", plain.payload, True)


def _datagram(fleet: Fleet, family: int) -> Packet:
    """From `mallory` to `db`, to a port where nobody listens; by scapy, which knows nothing of ours."""
    from scapy.layers.inet import IP, UDP
    from scapy.layers.inet6 import IPv6

    header = IP if family == 4 else IPv6
    ends = {"src": fleet.address("mallory", family), "dst": fleet.address("db", family)}
    return Packet(bytes(header(**ends) / UDP(sport=7, dport=9) / b"data"))


def test_a_fault_that_fails_says_so(fleet: Fleet, client: Puppet):
    with pytest.raises(ZeroDivisionError), fleet.router.fault("web", strip(), lambda packet: bool(1 // 0)):
        client.udp(fleet.address("db"), 5432)
    assert client.udp(fleet.address("db"), 5432) == "ok"


def test_a_fault_that_makes_no_packet_says_so_and_the_router_goes_on(fleet: Fleet, client: Puppet):
    nothing = rewrite(lambda packet: Packet(b"\0 is no version"))
    with pytest.raises(OSError, match="Invalid argument"), fleet.router.fault("web", nothing):
        client.udp(fleet.address("db"), 5432)
    with fleet.router.fault("web", duplicate()):
        assert client.udp(fleet.address("db"), 5432) == "ok"


# Attackers


@FAMILIES
def test_a_captured_syn_is_played_again_under_another_port(fleet: Fleet, client: Puppet, family: int):
    with fleet.router.capture("db") as wires:
        assert client.tcp(fleet.address("db", family), 5432) == "ok"
        (syn,) = [packet for packet in wires.arriving("db") if packet.flags == "S"]
        fleet.router.send(syn.with_ports(source=1), "db")
        answer = wires.wait(lambda seen: not seen.is_arriving and seen.packet.ports == (5432, 1))
    assert answer.packet.flags == "SA"
    assert answer.packet.acknowledgement == (syn.sequence + 1) % (1 << 32)


@FAMILIES
def test_what_the_router_injects_for_a_host_is_translated_like_that_hosts_own(
    fleet: Fleet, client: Puppet, family: int
):
    rule = description.nat({"snat": "web", "to": TRANSLATED[family]}, fleet.description.hosts)
    with fleet.router.translating(rule), fleet.router.capture("web", "db") as wires:
        assert client.tcp(fleet.address("db", family), 5432) == "ok"
        (syn,) = [packet for packet in wires.leaving("web") if packet.flags == "S"]
        fleet.router.inject(syn.with_ports(source=2), "web")
        found = wires.wait(lambda seen: seen.host == "db" and seen.is_arriving and seen.packet.ports[0] == 2)
    assert found.packet.source == TRANSLATED[family]


def test_what_is_too_short_for_a_packet_is_sent_and_does_not_disturb_who_looks(fleet: Fleet):
    whole = _datagram(fleet, 6)
    with fleet.router.capture("db", "mallory") as wires:
        for packet in (Packet(whole.raw[:9]), whole):
            fleet.router.spoof(packet, "mallory")
            fleet.router.send(packet, "db")
        wires.wait(lambda seen: seen.host == "db" and seen.packet == whole)
    assert wires.leaving("mallory") == [whole]


@FAMILIES
def test_an_attacker_overhears_a_conversation_and_calls_under_a_foreign_address(
    fleet: Fleet, client: Puppet, attacker: Puppet, family: int
):
    attacker.sniff()
    with fleet.router.fault("web", copy(fleet.router.towards("mallory")), SYN):
        assert client.tcp(fleet.address("db", family), 5432) == "ok"
    overheard = [Packet(bytes.fromhex(text)) for text in attacker.sniffed()]
    assert [packet.flags for packet in overheard] == ["S"]
    with fleet.router.capture("mallory", "web") as wires:
        fleet.router.spoof(overheard[0].with_ports(source=3), "mallory")
        wires.wait(lambda seen: seen.host == "web" and seen.is_arriving and seen.packet.ports == (5432, 3))
    assert [packet.source for packet in wires.leaving("mallory")] == [fleet.address("web", family)]


# Packets as bytes


@pytest.mark.parametrize("version", (4, 6))
def test_an_independent_reader_agrees_on_an_altered_packet(version: int):
    from scapy.layers import inet, inet6

    header, ends = (
        (inet.IP, ("192.0.2.1", "192.0.2.2")) if version == 4 else (inet6.IPv6, ("2001:db8::1", "2001:db8::2"))
    )
    built = header(src=ends[0], dst=ends[1]) / inet.TCP(sport=1, dport=2, seq=9, options=[("MSS", 1460), ("NOP", None)])
    other = TRANSLATED[version]
    packet = Packet(bytes(built / b"odd")).readdressed(destination=other).with_ports(source=5).with_sequence(7)
    altered = with_option(packet).raw
    read, anew = header(altered), header(altered)
    del anew[inet.TCP].chksum
    assert bytes(anew) == altered
    assert (read.dst, read[inet.TCP].sport, read[inet.TCP].seq) == (other, 5, 7)
    assert (EXPERIMENT, OPTION[2:]) in read[inet.TCP].options
    assert bytes(read[inet.TCP].payload) == b"odd"


@pytest.mark.parametrize("options", (b"\xfd", b"\xfd\x00", b"\xfd\x01", b"\xfd\x28ab", b"\x02\x04\x05\xb4\xfd\x09"))
def test_options_that_cannot_be_understood_are_left_out_and_do_no_harm(options: bytes):
    data = options.ljust(-(-len(options) // 4) * 4, b"\xff")
    segment = bytes(12) + bytes([(20 + len(data)) // 4 << 4, 2]) + bytes(6) + data
    size = 20 + len(segment)
    raw = bytes([0x45, 0]) + size.to_bytes(2, "big") + bytes(4) + bytes([64, TCP]) + bytes(10) + segment
    assert Packet(raw).option(EXPERIMENT) is None


# The description, and what stays


@pytest.mark.parametrize(
    "given, problem",
    (
        ({}, "`hosts` maps"),
        ({"hosts": {"Web": {}}}, "a host's name is"),
        ({"hosts": {"web": {"adresses": []}}}, "no key `adresses`"),
        ({"hosts": {"web": {"addresses": ["10.0.0.1/32"]}}}, "no room for the router"),
        ({"hosts": {"web": {}}, "nat": []}, "no key `nat`"),
        ({"hosts": {"web": {}}, "router": {"nat": [{"snat": "web"}]}}, "snat with `to`"),
        ({"hosts": {"web": {}}, "router": {"nat": [{"masquerade": "db"}]}}, "'db' does not appear to be"),
        ({"hosts": {"web": {}}, "policy": "nowhere"}, "no policy is in"),
    ),
)
def test_a_description_of_no_lab_is_refused(given: dict[str, object], problem: str):
    with pytest.raises(ValueError, match=problem):
        description.read(given)


def test_a_lab_leaves_nothing_behind():
    before = traces()
    with Fleet.described({"hosts": {"leaves-no": {"serve": {"web": 80}}}}) as one:
        one.router.inject(_datagram_to_nobody(), "leaves-no")
        assert traces() > before
    assert traces() == before


def test_a_lab_that_cannot_be_made_leaves_nothing_behind():
    before = traces()
    no_port = {"hosts": {"leaves-no": {"serve": {"web": 1 << 20}}}}
    with pytest.raises(PuppetError, match="port must be"), Fleet.described(no_port):
        pass
    assert traces() == before


def _datagram_to_nobody() -> Packet:
    head = bytes([0x45, 0, 0, 28]) + bytes(4) + bytes([64, 17, 0, 0])
    ends = socket.inet_aton("10.78.1.2") + socket.inet_aton("192.0.2.1")
    return Packet(head + ends + bytes([0, 7, 0, 9, 0, 8, 0, 0]))


def test_the_three_tier_lab_answers_as_it_is_described():
    with Fleet.described(THREE_TIER) as one:
        for host in one.description.hosts:
            for serving in host.serve:
                client = one["mallory"].puppet("look")
                assert client.tcp(one.address(host.name, 6), serving.port) == "ok"
                assert client.udp(one.address(host.name), serving.port) == "ok"


# By hand, and on machines


def test_the_script_for_machines_sets_up_the_router_and_a_host():
    described = description.read({"hosts": {"web": {}}, "router": {"nat": [{"masquerade": "web"}]}})
    with network_namespace() as router, network_namespace() as host:
        router.ip(f"link add one type veth peer name eth0 netns {host.path}")
        router.run("sh", "-ec", "\n".join(setup(described, "router", ["one"])))
        host.run("sh", "-ec", "\n".join(setup(described, "web", ["eth0"])))
        for address in ("10.78.1.1", "fd78:1::1"):
            host.run("ping", "-c", "1", "-W", "2", address)
            assert "masquerade" in router.run("nft", "list", "ruleset")
        for address in ("192.0.2.1", "2001:db8::1"):
            assert "via" in host.ip(f"route get {address}")


def test_the_lab_by_hand_lets_one_in_and_is_gone_after_ctrl_c(tmp_path: Path):
    lab = tmp_path / "lab.yaml"
    lab.write_text("hosts: {leaves-no: {serve: {web: 80}}, far: {agent: false}}")
    before = traces()
    terminal, theirs = pty.openpty()
    argv = [sys.executable, "-m", "lab", str(lab), "--no-agents"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True) as process:
        os.close(theirs)
        try:
            directory = Path(_until(terminal, "lab> ").partition("script in ")[2].partition(":")[0])
            group = subprocess.run([directory / "leaves-no", "web", "cat", "/proc/self/cgroup"], capture_output=True)
            assert group.stdout.decode().rstrip().endswith("/web")
            call = "exec 3<>/dev/tcp/fd78:1::2/80; echo hello >&3; read -r line <&3; echo $line"
            heard = subprocess.run([directory / "far", "shell", "bash", "-c", call], capture_output=True, timeout=10)
            assert heard.stdout == b"hello\n"
            os.write(terminal, b"lose leaves-no\n")
            _until(terminal, "lab> ")
            assert subprocess.run([directory / "far", "shell", "timeout", "0.3", "bash", "-c", call]).returncode == 124
        finally:
            process.send_signal(signal.SIGINT)
            said = _until(terminal, "namespaces.")
    os.close(terminal)
    assert process.returncode == 0, said
    assert not directory.exists()
    assert traces() == before


def _until(terminal: int, text: str) -> str:
    """What a terminal shows until it shows a text. Raises AssertionError when it does not."""
    shown = ""
    while text not in shown:
        ready, _, _ = select.select([terminal], [], [], 20)
        assert ready, shown
        shown += os.read(terminal, 1 << 16).decode()
    return shown
