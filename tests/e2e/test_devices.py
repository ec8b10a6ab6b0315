"""Devices come, go and change their names; whatever carries packets is hooked, by tcx and by clsact."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator

import pytest

from bulkhead.control import client
from lab.host import Host
from lab.policies import policy

FAR4, NEAR4 = "10.77.0.2", "10.77.0.1"
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 1, 0x1000


@pytest.fixture(scope="module", params=["tcx", "clsact"])
def hooked(request: pytest.FixtureRequest, host: Host) -> Iterator[Host]:
    """The shared host, its agent restarted with one mechanism or the other."""
    host.stop_agent()
    host.prefer = request.param
    host.start_agent()
    assert host.call("status")["kernel"]["mechanism"] == request.param
    yield host
    if request.param != "tcx":
        host.stop_agent()
        host.prefer = "tcx"
        host.start_agent()


def is_hooked(host: Host, name: str) -> bool:
    devices = {device["name"]: device for device in host.call("status")["kernel"]["devices"]}
    return name in devices and devices[name]["ingress"] and devices[name]["egress"]


def await_hook(host: Host, name: str, timeout_s: float = 0.1) -> None:
    """Asked twice, because the machine may be busy with something else once."""
    for _ in range(2):
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            if is_hooked(host, name):
                return
        timeout_s *= 5
    raise AssertionError(f"{name} is not hooked:\n{host.log()[-2000:]}")


def test_what_is_there_is_hooked_and_enforces(hooked: Host, far: Host, puppets) -> None:
    hooked.enforce(policy("api -> far 80", "far -> db 5432", externals={"far": "{cidr: [10.77.0.2/32]}"}))
    assert is_hooked(hooked, "lo") and is_hooked(hooked, "eth0")
    api, web, db, outside = (puppets(hooked, "api"), puppets(hooked, "web"), puppets(hooked, "db"), puppets(far, "any"))
    outside.serve_tcp("0.0.0.0", 80)
    db.serve_tcp("0.0.0.0", 5432)
    assert (api.tcp(FAR4, 80), web.tcp(FAR4, 80)) == ("ok", "EPERM")
    assert (outside.tcp(NEAR4, 5432), outside.tcp(NEAR4, 5433)) in (("ok", "ECONNREFUSED"), ("ok", "timeout"))
    assert api.tcp("127.0.0.1", 5432) == "EPERM"


ICMP = "01"
"""An IPv4 header's protocol, as it is sniffed: what was allowed before may still be acknowledged."""

MADE = {
    "veth": ["veth", "peer", "name", "pair"],
    "bridge": ["bridge"],
    "macvlan": ["macvlan"],
    "vxlan": ["vxlan", "id", "7", "dstport", "4789", "local", NEAR4],
}


@pytest.mark.parametrize("kind", MADE)
def test_a_device_that_appears_is_hooked(hooked: Host, kind: str) -> None:
    link = ["link", "eth0"] if kind == "macvlan" else []
    hooked.ip("link", "add", *link, "name", "fresh", "type", *MADE[kind])
    try:
        await_hook(hooked, "fresh")
    finally:
        hooked.ip("link", "del", "fresh")


def test_a_device_that_appears_enforces(hooked: Host, far: Host, puppets) -> None:
    """A second wire to the same neighbour."""
    hooked.enforce(policy("api -> new 80", externals={"new": "{cidr: [10.78.0.2/32]}"}))
    api, web, outside = puppets(hooked, "api"), puppets(hooked, "web"), puppets(far, "any")
    outside.serve_tcp("0.0.0.0", 80)
    hooked.ip("link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", far.netns)
    try:
        for one, address in ((hooked, "10.78.0.1/24"), (far, "10.78.0.2/24")):
            one.ip("addr", "add", address, "dev", "wire")
            one.ip("link", "set", "wire", "up")
        await_hook(hooked, "wire")
        assert api.tcp("10.78.0.2", 80) == "ok"
        assert api.tcp("10.78.0.2", 81) in ("EPERM", "timeout")
        outside.sniff()
        assert web.raw_echo("10.78.0.2") != "ok"
        assert [packet for packet in outside.sniffed() if packet[18:20] == ICMP] == []
        hooked.ip("link", "set", "wire", "down")
        hooked.ip("link", "set", "wire", "name", "other")
        hooked.ip("link", "set", "other", "up")
        await_hook(hooked, "other")
        assert api.tcp("10.78.0.2", 80, quiet_s=2.0) == "ok"
        assert web.raw_echo("10.78.0.2") != "ok"
    finally:
        far.ip("link", "del", "wire")


def test_no_device_is_missed_while_somebody_asks_for_the_status(hooked: Host) -> None:
    """The answer lists the devices as well; that must not make the agent believe that it has seen them."""
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            client.call(hooked.run_dir / "control.sock", "status")

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for one in asking:
        one.start()
    names = [f"many{number}" for number in range(12)]
    try:
        for name in names:
            hooked.ip("link", "add", name, "type", "bridge")
    finally:
        done.set()
        for one in asking:
            one.join()
    try:
        until = time.monotonic() + 2
        while time.monotonic() < until and not all(is_hooked(hooked, name) for name in names):
            continue
        assert [name for name in names if not is_hooked(hooked, name)] == []
    finally:
        for name in names:
            hooked.ip("link", "del", name)


def test_a_tunnel_of_bare_ip_packets_enforces(hooked: Host, puppets) -> None:
    """A tun device: what is written to its file arrives, what is read from it has left."""
    host = hooked
    db, api, web = puppets(host, "db"), puppets(host, "api"), puppets(host, "web")
    tool = puppets(host, "tool")
    tool.do(
        f"""
import fcntl
tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
fcntl.ioctl(tun, {_TUNSETIFF}, struct.pack("16sH22x", b"tun7", {_IFF_TUN | _IFF_NO_PI}))
def came():
    sent = []
    with contextlib.suppress(BlockingIOError):
        while True:
            packet = os.read(tun, 2000)
            if packet[0] >> 4 == 4:
                sent.append(packet[9])
    return sent
"""
    )
    host.ip("addr", "add", "10.79.0.1/24", "dev", "tun7")
    host.ip("link", "set", "tun7", "up")
    await_hook(host, "tun7")
    host.enforce(policy("api -> peer 53/udp", "peer -> db 54/udp", externals={"peer": "{cidr: [10.79.0.2/32]}"}))
    tool.came()
    assert api.udp("10.79.0.2", 53, quiet_s=0.1) == "timeout"
    assert tool.came() == [17]
    assert api.udp("10.79.0.2", 55, quiet_s=0.1) in ("EPERM", "timeout")
    assert web.raw_echo("10.79.0.2") != "ok"
    assert web.tcp("10.79.0.2", 53, quiet_s=0.1) in ("EPERM", "timeout")
    assert tool.came() == []
    for port in (54, 55):
        db.udp_receive("10.79.0.1", port)
    for port in (54, 55):
        tool.do(f"os.write(tun, bytes.fromhex('{_datagram('10.79.0.2', '10.79.0.1', port).hex()}'))")
    assert (db.udp_received(54), db.udp_received(55)) == (1, -1)


def _datagram(source: str, destination: str, port: int) -> bytes:
    """An IPv4 UDP datagram of one byte, without a UDP checksum."""
    addresses = b"".join(bytes(map(int, one.split("."))) for one in (source, destination))
    head = struct.pack(">BBHHHBBH", 0x45, 0, 29, 1, 0, 64, 17, 0) + addresses
    total = sum(struct.unpack(">10H", head))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack(">H", ~total & 0xFFFF) + head[12:]
    return head + struct.pack(">HHHH", 4000, port, 9, 0) + b"x"


def test_a_device_that_leaves_and_comes_back_is_hooked_again(hooked: Host, far: Host) -> None:
    hooked.ip("link", "add", "roam", "type", "veth", "peer", "name", "roam2")
    await_hook(hooked, "roam")
    hooked.ip("link", "set", "roam", "netns", far.netns)
    far.ip("link", "set", "roam", "netns", hooked.netns)
    await_hook(hooked, "roam")
    hooked.ip("link", "del", "roam")


def test_changing_the_mechanism_leaves_no_gap(hooked: Host, puppets) -> None:
    """From tcx to clsact and back, with a client that must never get through."""
    hooked.enforce(policy("api -> db 5432", externals={}))
    db, web = puppets(hooked, "db"), puppets(hooked, "web")
    db.serve_tcp("127.0.0.1", 5432)
    was = hooked.prefer
    for prefer in ("clsact" if was == "tcx" else "tcx", was):
        hooked.stop_agent()
        hooked.prefer = prefer
        hooked.start_agent()
        assert is_hooked(hooked, "lo") and is_hooked(hooked, "eth0")
        assert web.tcp("127.0.0.1", 5432) == "EPERM"
        assert web.raw_echo(FAR4) != "ok"
