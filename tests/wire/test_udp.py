"""UDP between hosts: who sends is told behind the user data, and what says nothing is nobody."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bulkhead.kernel import netns
from lab import nameserver, wire
from lab.faults import duplicate, lose, rewrite, when
from lab.fleet import Fleet
from lab.offloads import set_offloads
from lab.packet import Packet, is_sound
from lab.puppet import Puppet
from lab.router import DEVICE
from lab.wired import WORKLOADS, counting, shop, until

FAMILIES = pytest.mark.parametrize("family", (4, 6))
PORT = 700
REUSES = int(os.environ.get("BULKHEAD_REUSES", "200"))
"""How often an address and port pass to somebody else; 10,000 in a long run."""
UDP = when("udp")
RULES = (f"web -> app {PORT}/udp", f"app -> db {PORT}/udp")
POLICY = shop(*RULES)
REFUSED = ("ingress", "deny")


@pytest.fixture
def web(puppets) -> Puppet:
    return puppets("web")


@pytest.fixture
def app(puppets) -> Puppet:
    one = puppets("app")
    one.serve_udp("::", PORT)
    return one


def said(packet: Packet) -> wire.Trailer | None:
    """What a captured datagram says of its sender. Raises ValueError when that is not in good order."""
    return wire.found_behind(packet.segment, len(packet.segment))


def has_trailer(packet: Packet) -> bool:
    return UDP(packet) and bool(packet.trailer)


def open_socket(on: Puppet, family: int, port: int = 0) -> None:
    """A socket that stays, from a port of one's own choice."""
    on.do(
        f"one = _held['s'] = socket.socket(socket.{'AF_INET6' if family == 6 else 'AF_INET'}, socket.SOCK_DGRAM)\n"
        f"one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
        f"one.bind(('', {port})); one.settimeout(QUIET_S)"
    )


def ask(on: Puppet, to: str, size: int = 1) -> str:
    """Send through the socket, and hear it back."""
    on.do(
        "def ask(to, size):\n"
        "    with _word() as said:\n"
        f"        _held['s'].sendto(bytes(size), (to, {PORT}))\n"
        "        if len(_held['s'].recv(1 << 16)) != size: raise OSError(errno.EPIPE, 'another answer')\n"
        "    return said[0]"
    )
    return str(on.do(f"ask({to!r}, {size})"))


def tell(on: Puppet, to: str, text: bytes = b"x") -> None:
    """Send through the socket."""
    on.do(f"_held['s'].sendto({text!r}, ({to!r}, {PORT}))")


@contextmanager
def offloads(fleet: Fleet, *hosts: str) -> Iterator[None]:
    """With checksums left to devices that compute them, or not at all."""
    for is_on in (True, False):
        for host in hosts:
            with netns.entered(fleet.router.links[host].netns):
                set_offloads(DEVICE, is_on)
            with fleet.router.namespace.entered():
                set_offloads(fleet.router.links[host].device, is_on)
        if is_on:
            yield


# What works


@FAMILIES
@pytest.mark.parametrize("size", (0, 1, 2, 13, 1000, 1199, 1200, 1400, 1452, 1472, 4000, 9001))
def test_a_question_is_answered_whatever_its_length(fleet: Fleet, web, app, family: int, size: int) -> None:
    with (
        fleet.router.capture("web", "app") as wires,
        counting(fleet["web"]) as there,
        counting(fleet["app"]) as here,
    ):
        assert web.udp(fleet.address("app", family), PORT, size=size) == "ok"
    assert not there.refusals and not here.refusals
    assert here.wire["datagrams"] == there.wire["datagrams"] == 1
    if size <= 1452:
        sent = [packet for packet in wires.arriving("app") + wires.arriving("web") if UDP(packet)]
        assert all(is_sound(packet) for packet in sent)
        assert sum(said(packet) is not None for packet in sent) == 2


@FAMILIES
@pytest.mark.parametrize("size", (0, 1, 2, 13, 1400, 1472, 4000))
def test_with_offloads_too(fleet: Fleet, web, app, family: int, size: int) -> None:
    with offloads(fleet, "web", "app"), counting(fleet["app"]) as here:
        assert web.udp(fleet.address("app", family), PORT, size=size) == "ok"
    assert here.wire["datagrams"] == 1 and not here.refusals


@FAMILIES
@pytest.mark.parametrize("size", (1, 2, 1400))
def test_a_checksum_that_a_device_completes_is_right(fleet: Fleet, web, app, family: int, size: int) -> None:
    """Offloaded by web, completed by the router towards app, whose device takes nothing on trust."""
    with offloads(fleet, "web"), fleet.router.capture("app") as wires, counting(fleet["app"]) as here:
        assert web.udp(fleet.address("app", family), PORT, size=size) == "ok"
    sent = [packet for packet in wires.arriving("app") if UDP(packet)]
    assert sent and all(is_sound(packet) for packet in sent)
    assert here.wire["datagrams"] == 1


@pytest.mark.parametrize("offloaded", (False, True))
@FAMILIES
def test_a_burst_for_segmentation_is_preceded_by_who_sends_it(
    fleet: Fleet, web, puppets, family: int, offloaded: bool
) -> None:
    app = puppets("app")
    app.do(
        f"one = _held['in'] = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\n"
        f"one.setsockopt(17, 104, 1)\n"  # UDP_GRO
        f"one.bind(('::', {PORT})); one.settimeout(QUIET_S)"
    )
    open_socket(web, family)
    web.do("_held['s'].setsockopt(17, 103, 1200)")  # UDP_SEGMENT
    with counting(fleet["app"]) as here:
        if offloaded:
            with offloads(fleet, "web", "app"):
                tell(web, fleet.address("app", family), bytes(12000))
        else:
            tell(web, fleet.address("app", family), bytes(12000))
        got = app.do("total = 0\nwhile total < 12000: total += len(_held['in'].recv(1 << 16))\n") or app.do("total")
    assert got == 12000
    assert here.wire["datagrams"] == 1
    assert not here.refusals


def test_a_datagram_without_checksum_stays_without(fleet: Fleet, web, app) -> None:
    open_socket(web, 4)
    web.do("_held['s'].setsockopt(socket.SOL_SOCKET, 11, 1)")  # SO_NO_CHECK
    with fleet.router.capture("app") as wires:
        assert ask(web, fleet.address("app"), 13) == "ok"
        assert ask(web, fleet.address("app"), 1400) == "ok"
    sent = [packet for packet in wires.arriving("app") if UDP(packet)]
    assert [packet.segment[6:8] for packet in sent] == [b"\0\0"] * len(sent)


@FAMILIES
def test_a_conversation_says_it_at_its_beginning_and_then_seldom(fleet: Fleet, web, app, family: int) -> None:
    open_socket(web, family)
    with counting(fleet["web"]) as there, counting(fleet["app"]) as here:
        for _ in range(50):
            assert ask(web, fleet.address("app", family)) == "ok"
    assert 1 <= there.wire["trailers"] <= 4
    assert 1 <= here.wire["trailers"] <= 4
    assert not there.refusals and not here.refusals


def test_one_socket_that_talks_to_several_says_it_to_each(fleet: Fleet, puppets) -> None:
    app, db, ops = puppets("app"), puppets("db"), puppets("web", "app")
    fleet.enforce(shop(f"app -> db {PORT}/udp", f"app -> app {PORT}/udp"))
    app.serve_udp("::", PORT)
    db.serve_udp("::", PORT)
    open_socket(ops, 4)
    with counting(fleet["web"]) as there:
        for _ in range(5):
            assert ask(ops, fleet.address("app")) == "ok"
            assert ask(ops, fleet.address("db")) == "ok"
    assert there.wire["trailers"] >= 10
    assert not there.refusals


# What does not


@FAMILIES
def test_a_caller_that_policy_does_not_let_in_is_refused_by_name(fleet: Fleet, puppets, app, family: int) -> None:
    ops = puppets("web", "ops")
    fleet.enforce(shop(f"web -> app {PORT}/udp", f"ops -> db {PORT}/udp"))
    with counting(fleet["app"]) as here:
        assert ops.udp(fleet.address("app", family), PORT) == "timeout"
    assert here.refusals == {("policy", *REFUSED): 1}
    flows = fleet["app"].bulkhead("flows", "-o", "json", check=False).stdout
    assert "ops" in flows


def test_a_datagram_does_not_leave_where_no_rule_could_want_it(fleet: Fleet, web, app) -> None:
    with counting(fleet["web"]) as there:
        assert web.udp(fleet.address("db"), 9) == "EPERM"
    assert sum(there.refusals.values()) == 1


@FAMILIES
def test_a_wrong_answerer_is_refused_where_it_was_asked(fleet: Fleet, web, puppets, family: int) -> None:
    watched = WORKLOADS["ops"].replace("enforce", "observe")
    fleet.enforce(shop(f"web -> app {PORT}/udp").replace(WORKLOADS["ops"], watched))
    puppets("app", "ops").serve_udp("::", PORT)
    open_socket(web, family)
    with counting(fleet["web"]) as there:
        for _ in range(3):
            assert ask(web, fleet.address("app", family)) == "timeout"
    assert there.refusals == {("policy", *REFUSED): 3}


def short(packet: Packet) -> Packet:
    return packet.with_trailer(packet.trailer[:-8])


def wrong_sum(packet: Packet) -> Packet:
    pad = len(packet.trailer) - 32
    return packet.with_trailer(packet.trailer[:pad] + bytes([packet.trailer[pad] ^ 1]) + packet.trailer[pad + 1 :])


def altered(at: int, by: int = 1):
    """One byte of the trailer is another, and its checksum right."""

    def change(packet: Packet) -> Packet:
        length = len(packet.segment) - len(packet.trailer)
        pad = length % 2
        raw = bytearray(packet.trailer[pad:])
        raw[at] = (raw[at] + by) & 0xFF
        return packet.with_trailer(wire.surplus_area(wire.Trailer(bytes(raw)), length))

    return change


@pytest.mark.parametrize(
    "change, reason",
    (
        (lambda packet: packet.with_trailer(b""), "wire-missing"),
        (short, "wire-malformed"),
        (wrong_sum, "wire-malformed"),
        (altered(7, 5), "wire-clock"),
        (altered(8), "wire-forged"),
        (altered(14), "wire-no-key"),
        (altered(20), "wire-forged"),
        (altered(31), "wire-forged"),
        (altered(4), "wire-missing"),
    ),
    ids=("stripped", "cut", "sum", "tick", "identity", "node", "nonce", "mac", "experiment"),
)
@pytest.mark.parametrize("size", (4, 5))
def test_what_was_altered_on_the_way_is_refused_and_counted(
    fleet: Fleet, web, app, change, reason: str, size: int
) -> None:
    with fleet.router.fault("web", rewrite(change), has_trailer) as fault, counting(fleet["app"]) as here:
        assert web.udp(fleet.address("app"), PORT, size=size) == "timeout"
    assert fault.hits == 1
    assert here.refusals == {(reason, *REFUSED): 1}
    assert web.udp(fleet.address("app"), PORT, size=size) == "ok"


@pytest.mark.parametrize("what", ("another port", "another address", "the same again"))
def test_a_recorded_datagram_proves_nothing_in_another_conversation(fleet: Fleet, web, app, what: str) -> None:
    with fleet.router.capture("app") as wires:
        assert web.udp(fleet.address("app"), PORT) == "ok"
    (sent,) = filter(has_trailer, wires.arriving("app"))
    again = {
        "another port": sent.with_ports(source=sent.ports[0] ^ 1),
        "another address": sent.readdressed(source=fleet.address("mallory")),
        "the same again": sent,
    }[what]
    with counting(fleet["app"]) as here, fleet.router.capture("app") as wires:
        fleet.router.send(again, "app")
        wires.wait(lambda seen: has_trailer(seen.packet))
        assert web.udp(fleet.address("app"), PORT) == "ok"  # what was sent before it has been judged
    assert here.refusals == ({} if what == "the same again" else {("wire-replayed", *REFUSED): 1})


def test_an_address_proves_nothing(fleet: Fleet, web, app) -> None:
    """Sent in web's name from elsewhere on the way."""
    with fleet.router.capture("app") as wires:
        assert web.udp(fleet.address("app"), PORT) == "ok"
    (sent,) = filter(has_trailer, wires.arriving("app"))
    spoofed = sent.with_trailer(b"").with_ports(source=sent.ports[0] ^ 1)
    with counting(fleet["app"]) as here, fleet.router.capture("app") as wires:
        fleet.router.send(spoofed, "app")
        wires.wait(lambda seen: UDP(seen.packet))
        assert web.udp(fleet.address("app"), PORT) == "ok"  # what was sent before it has been judged
    assert here.refusals == {("wire-missing", *REFUSED): 1}


def test_a_carrier_never_reaches_the_socket(fleet: Fleet, web, puppets) -> None:
    app = puppets("app")
    app.udp_receive("::", PORT)
    open_socket(web, 4)
    with counting(fleet["web"]) as there, counting(fleet["app"]) as here:
        tell(web, fleet.address("app"), bytes(1472))
        assert app.udp_received(PORT) == 1472
        assert app.udp_received(PORT) == -1
    assert there.wire["carriers"] == 1 and here.wire["datagrams"] == 1
    assert not here.refusals


def test_a_datagram_that_the_network_doubles_arrives_twice(fleet: Fleet, web, puppets) -> None:
    app = puppets("app")
    app.udp_receive("::", PORT)
    open_socket(web, 4)
    with fleet.router.fault("web", duplicate(), UDP), counting(fleet["app"]) as here:
        tell(web, fleet.address("app"), b"four")
        assert [app.udp_received(PORT), app.udp_received(PORT)] == [4, 4]
    assert not here.refusals


def test_a_lost_first_datagram_is_made_good_by_the_next(fleet: Fleet, web, app) -> None:
    open_socket(web, 4)
    with fleet.router.fault("web", lose(), UDP):
        assert ask(web, fleet.address("app")) == "timeout"
    assert ask(web, fleet.address("app")) == "ok"


def test_a_lost_first_answer_is_made_good_by_the_next(fleet: Fleet, web, app) -> None:
    open_socket(web, 4)
    with fleet.router.fault("app", lose(), UDP):
        assert ask(web, fleet.address("app")) == "timeout"
    with counting(fleet["web"]) as there:
        assert ask(web, fleet.address("app")) == "ok"
    assert not there.refusals


def test_whoever_takes_over_an_address_and_port_is_not_taken_for_who_had_it(fleet: Fleet, puppets, app) -> None:
    """In turn a workload that may and one that may not, each with a socket of its own on the port of the other."""
    fleet.enforce(shop(f"web -> app {PORT}/udp", f"ops -> db {PORT}/udp"))
    right, wrong = puppets("web"), puppets("web", "ops")
    answered = {right: 0, wrong: 0}
    with counting(fleet["app"]) as here:
        for _ in range(REUSES // 2):
            for one, tries in ((right, 1), (wrong, 2)):
                open_socket(one, 4, 5555)
                if one is wrong:
                    one.do("_held['s'].settimeout(0.03)")
                answered[one] += sum(ask(one, fleet.address("app")) == "ok" for _ in range(tries))
                one.do("_held['s'].close()")
    assert answered == {right: REUSES // 2, wrong: 0}
    assert here.refusals == {("policy", *REFUSED): REUSES}


def test_a_rule_that_is_gone_ends_the_conversation(fleet: Fleet, web, app) -> None:
    open_socket(web, 4)
    assert ask(web, fleet.address("app")) == "ok"
    fleet.enforce(shop(f"ops -> app {PORT}/udp", f"web -> db {PORT}/udp"))
    assert ask(web, fleet.address("app")) != "ok"
    fleet.enforce(shop(*RULES))
    assert ask(web, fleet.address("app")) == "ok"


def test_a_host_without_agent_is_reached_and_answered_by_address(fleet: Fleet, web, puppets) -> None:
    fleet.enforce(shop(f"web -> mallory {PORT}/udp"))
    puppets("mallory", "any").serve_udp("::", PORT)
    with fleet.router.capture("mallory") as wires:
        assert web.udp(fleet.address("mallory"), PORT) == "ok"
    assert not any(packet.trailer for packet in wires.arriving("mallory"))


def test_a_node_that_is_only_known_by_its_address_is_judged_by_it_until_it_says_more(fleet: Fleet, web, app) -> None:
    """`unknown: address`: stripped datagrams go by the address class, the others by who sends them."""
    webs = f"externals:\n  webs: {{cidr: [{fleet.address('web')}/32]}}"
    rules = shop(*RULES, f"webs -> app {PORT}/udp").replace("externals:", webs)
    strict = shop(*RULES)
    try:
        for text, expected in ((rules, "ok"), (strict, "timeout")):
            commit = fleet.commit({"t.yaml": text, "nodes.yaml": fleet.records({"web": {"unknown": "address"}})})
            fleet.wait_for_commit(commit)
            with fleet.router.fault("web", rewrite(lambda packet: packet.with_trailer(b"")), has_trailer):
                assert web.udp(fleet.address("app"), PORT) == expected
            assert web.udp(fleet.address("app"), PORT) == "ok"
    finally:
        fleet.enforce(shop())


def test_a_node_that_is_revoked_is_cut_off_within_seconds(fleet: Fleet, web, app) -> None:
    open_socket(web, 4)
    assert ask(web, fleet.address("app")) == "ok"
    commit = fleet.commit({"t.yaml": shop(*RULES), "nodes.yaml": fleet.records({"web": {"revoked": True}})})
    fleet.wait_for_commit(commit)
    try:
        until(lambda: ask(web, fleet.address("app")) != "ok", "the revoked node is cut off")
        with counting(fleet["app"]) as here:
            assert web.udp(fleet.address("app"), PORT) != "ok"
        assert set(here.refusals) <= {("wire-no-key", *REFUSED)}
    finally:
        fleet.enforce(shop(*RULES))
    until(lambda: web.udp(fleet.address("app"), PORT) == "ok", "it is let in again")


def test_identity_goes_on_with_every_agent_dead(fleet: Fleet, web, app, puppets) -> None:
    ops = puppets("web", "ops")
    for host in fleet.guarded:
        host.stop_agent(9)
    try:
        assert web.udp(fleet.address("app"), PORT) == "ok"
        assert ops.udp(fleet.address("app"), PORT) != "ok"
    finally:
        fleet.start_agents()


def test_udp_lite_has_no_place_for_an_identity(fleet: Fleet, web) -> None:
    with counting(fleet["web"]) as there, fleet.router.capture("web") as wires:
        web.do(
            "one = _held['lite'] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136)\n"
            f"with contextlib.suppress(OSError): one.sendto(b'x', ({fleet.address('app')!r}, {PORT}))"
        )
    assert sum(there.refusals.values()) == 1
    assert not wires.leaving("web")


def test_a_name_that_a_resolver_on_another_node_tells_is_learned(fleet: Fleet, puppets) -> None:
    text = shop("app -> db 53/udp", "app -> shop 80").replace(
        "externals:", 'externals:\n  shop: {fqdn: ["*.many.example.net"]}'
    )
    fleet.enforce(text)
    app, db = puppets("app"), puppets("db")
    db.do(
        "import threading\n"
        "one = _held['dns'] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "one.bind(('', 53))\n"
        "def serve():\n"
        "    while True:\n"
        "        query, sender = one.recvfrom(512)\n"
        "        one.sendto(query[:2] + b'\\x81\\x80\\0\\1\\0\\1\\0\\0\\0\\0' + query[12:]"
        " + b'\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x3c\\0\\4\\x0a\\x50\\0\\1', sender)\n"
        "threading.Thread(target=serve, daemon=True).start()"
    )
    query = nameserver.question("7.many.example.net", 9)
    before = fleet["app"].call("status")["dns"]["learned"]
    with counting(fleet["app"]) as here:
        app.do(
            "one = _held['q'] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); one.settimeout(QUIET_S)\n"
            f"one.sendto({query!r}, ({fleet.address('db')!r}, 53)); got = len(one.recv(512))"
        )
    assert app.do("got") == len(query) + 16
    assert not here.refusals
    assert fleet["app"].call("status")["dns"]["learned"] == before + 1
