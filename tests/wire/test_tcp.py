"""TCP between hosts: who calls and who answers is proven in the handshake, and nothing else lets anything through."""

from __future__ import annotations

import pytest

from lab.faults import Predicate, blank, duplicate, lose, normalise, rewrite, strip, when
from lab.fleet import Fleet
from lab.packet import Packet
from lab.wired import WORKLOADS, counting, shop, until

FAMILIES = pytest.mark.parametrize("family", (4, 6))
SYN, SYN_ACK = when("tcp", "S"), when("tcp", "SA")
MPTCP = 262


def opening(packet: Packet) -> bool:
    return packet.flags == "S"


def truncated(packet: Packet) -> Packet:
    """The identity option, cut by four bytes, as an option of its own."""
    return packet.with_options([whole if kind != 253 else b"\xfd\x10" + whole[2:16] for kind, whole in packet.options])


@FAMILIES
def test_three_tiers_work_from_the_first_packet_with_identities_alone(fleet: Fleet, puppets, family: int) -> None:
    web, app, db, app_caller = puppets("web"), puppets("app"), puppets("db"), puppets("app")
    app.serve_tcp("::", 8080)
    db.serve_tcp("::", 5432)
    with (
        fleet.router.capture("app", "db") as wires,
        counting(fleet["web"]) as there,
        counting(fleet["app"]) as here,
    ):
        assert web.tcp(fleet.address("app", family), 8080) == "ok"
        assert app_caller.tcp(fleet.address("db", family), 5432) == "ok"
    assert [packet.flags for packet in wires.arriving("app")].count("S") == 1
    assert [packet.flags for packet in wires.arriving("db")].count("S") == 1
    assert (there.wire, here.wire["verified"]) == ({"said": 1, "answered": 1}, 1)
    assert not there.refusals and not here.refusals


@FAMILIES
def test_a_caller_that_policy_does_not_let_in_is_told_at_once_and_both_ends_know_why(
    fleet: Fleet, puppets, family: int
) -> None:
    web, db = puppets("web"), puppets("db")
    db.serve_tcp("::", 5432)
    db.serve_tcp("::", 9000)
    fleet.enforce(shop("app -> db 5432", "web -> app 5432"))
    with counting(fleet["web"]) as there, counting(fleet["db"]) as here:
        assert web.tcp(fleet.address("db", family), 5432) == "ECONNREFUSED"
    assert here.refusals == {("policy", "ingress", "deny"): 1}
    assert (here.wire, there.wire) == ({"verified": 1, "told": 1}, {"said": 1, "heard": 1})
    assert not there.refusals


def test_an_opening_does_not_even_leave_where_no_rule_could_want_it(fleet: Fleet, puppets) -> None:
    web = puppets("web")
    with fleet.router.capture("web") as wires, counting(fleet["web"]) as here:
        assert web.tcp(fleet.address("db"), 5432) == "EPERM"
    assert not wires.leaving("web")
    assert here.refusals == {("policy", "egress", "deny"): 1}


@FAMILIES
def test_whoever_answers_is_judged_too_before_anything_is_sent(fleet: Fleet, puppets, family: int) -> None:
    """The wrong workload listens where the right one is expected; its own host only watches it."""
    watched = WORKLOADS["ops"].replace("enforce", "observe")
    fleet.enforce(shop("web -> app 8080").replace(WORKLOADS["ops"], watched))
    web, impostor = puppets("web"), puppets("app", "ops")
    impostor.serve_tcp("::", 8080)
    with counting(fleet["web"]) as here, fleet.router.capture("app") as wires:
        assert web.tcp(fleet.address("app", family), 8080, quiet_s=2.0) in ("ECONNABORTED", "ECONNREFUSED")
    assert here.refusals == {("policy", "egress", "deny"): 1}
    assert not any(packet.payload for packet in wires.arriving("app"))


@pytest.mark.parametrize(
    "alter", (strip(), blank(), normalise(), rewrite(truncated)), ids=("strip", "blank", "reorder", "cut")
)
@FAMILIES
def test_an_opening_whose_identity_was_taken_off_on_the_way_is_not_let_in(
    fleet: Fleet, puppets, alter, family: int
) -> None:
    web, app = puppets("web"), puppets("app")
    app.serve_tcp("::", 8080)
    with fleet.router.fault("web", alter, SYN) as fault, counting(fleet["app"]) as here:
        assert web.tcp(fleet.address("app", family), 8080) == "timeout"
    assert set(here.refusals) <= {
        ("wire-missing", "ingress", "deny"),
        ("wire-malformed", "ingress", "deny"),
        ("wire-forged", "ingress", "deny"),
    }
    assert sum(here.refusals.values()) == fault.hits >= 1
    assert not here.wire["verified"]
    assert web.tcp(fleet.address("app", family), 8080) == "ok"


def test_an_answer_whose_identity_was_taken_off_on_the_way_opens_nothing(fleet: Fleet, puppets) -> None:
    web, app = puppets("web"), puppets("app")
    app.serve_tcp("::", 8080)
    with fleet.router.fault("app", strip(), SYN_ACK) as fault, counting(fleet["web"]) as here:
        assert web.tcp(fleet.address("app"), 8080) == "timeout"
    assert here.refusals == {("wire-missing", "egress", "deny"): fault.hits}


@pytest.mark.parametrize("host, lost", (("web", SYN), ("app", SYN_ACK)), ids=("SYN", "SYN-ACK"))
def test_a_lost_opening_or_answer_is_sent_again_and_believed(fleet: Fleet, puppets, host: str, lost: Predicate) -> None:
    web, app = puppets("web"), puppets("app")
    app.serve_tcp("::", 8080)
    seen: list[Packet] = []

    def first(packet: Packet) -> bool:
        if lost(packet):
            seen.append(packet)
        return lost(packet) and len(seen) == 1

    with fleet.router.fault(host, lose(), first), counting(fleet["app"]) as here:
        assert web.tcp(fleet.address("app"), 8080, quiet_s=5.0) == "ok"
    assert len(seen) >= 2
    assert not here.refusals


def test_an_opening_that_the_network_doubles_is_one_opening(fleet: Fleet, puppets) -> None:
    web, app = puppets("web"), puppets("app")
    app.serve_tcp("::", 8080)
    with fleet.router.fault("web", duplicate(), SYN), counting(fleet["app"]) as here:
        assert web.tcp(fleet.address("app"), 8080) == "ok"
    assert not here.refusals


@pytest.mark.parametrize("what", ("another port", "another address", "the same again"))
def test_a_recorded_opening_proves_nothing_in_another_conversation(fleet: Fleet, puppets, what: str) -> None:
    web, app = puppets("web"), puppets("app")
    app.serve_tcp("::", 8080)
    with fleet.router.capture("app") as wires:
        assert web.tcp(fleet.address("app"), 8080) == "ok"
    (syn,) = filter(opening, wires.arriving("app"))
    again = {
        "another port": syn.with_ports(source=syn.ports[0] ^ 1),
        "another address": syn.readdressed(source=fleet.address("mallory")),
        "the same again": syn,
    }[what]
    with counting(fleet["app"]) as here, fleet.router.capture("app") as wires:
        fleet.router.send(again, "app")
        until(lambda: bool(wires.arriving("app")), "it arrives")
        wires.wait(lambda seen: opening(seen.packet))
        web.tcp(fleet.address("app"), 8080)  # what was sent before it has been judged
    refused = {} if what == "the same again" else {("wire-replayed", "ingress", "deny"): 1}
    assert here.refusals == refused


def test_a_simultaneous_open_is_refused(fleet: Fleet, puppets) -> None:
    fleet.enforce(shop("web -> app 8080", "app -> web 8080"))
    ends = [puppets("web"), puppets("app")]
    code = (
        "_held['s'] = socket.socket(); _held['s'].setsockopt(1, 2, 1); _held['s'].bind(('', 8080)); "
        "_held['s'].setblocking(False); _held['s'].connect_ex(({!r}, 8080))"
    )
    with counting(fleet["web"]) as one, counting(fleet["app"]) as other, fleet.router.fault("web", lose(), SYN):
        ends[0].do(code.format(fleet.address("app")))
        ends[1].do(code.format(fleet.address("web")))
        until(lambda: bool(ends[0].do("1")), "both have sent")
        assert ends[1].do("_held['s'].getsockopt(1, 4) in (0, 111)")
    assert set(one.refusals) == {("unsolicited", "ingress", "deny")}
    assert set(other.refusals) <= set(one.refusals), "web's opening is sent again, and meets the same"


@FAMILIES
def test_no_data_reaches_another_host_before_it_is_known_who_answers(fleet: Fleet, puppets, family: int) -> None:
    """TCP Fast Open is declined: its cookie is never asked for, and what was to go in the SYN goes after it."""
    web, app = puppets("web"), puppets("app")
    fleet["app"].run("app", ["sysctl", "-qw", "net.ipv4.tcp_fastopen=3"])
    app.serve_tcp("::", 8080, fast_open=True)
    with fleet.router.capture("app") as wires:
        for _ in range(4):
            assert web.tcp_fast_open(fleet.address("app", family), 8080) == "ok"
    openings = [packet for packet in wires.arriving("app") if opening(packet)]
    assert [(packet.payload, packet.option(34)) for packet in openings] == [(b"", None)] * 4


def test_mptcp_goes_on_as_ordinary_tcp_since_its_answer_leaves_no_room(fleet: Fleet, puppets) -> None:
    web, app = puppets("web"), puppets("app")
    app.serve_tcp("::", 8080, proto=MPTCP)
    with fleet.router.capture("app") as wires:
        assert web.tcp(fleet.address("app"), 8080, proto=MPTCP) == "ok"
    (syn,) = filter(opening, wires.arriving("app"))
    said = syn.option(253)
    assert said is not None and len(said) == 20
    assert syn.option(30) is None


def test_an_opening_without_room_for_an_identity_does_not_leave(fleet: Fleet, puppets) -> None:
    """TCP-MD5 fills the header."""
    web = puppets("web")
    address = fleet.address("app")
    web.do(
        "import struct\n"
        "one = _held['md5'] = socket.socket(); one.settimeout(0.4)\n"
        f"peer = struct.pack('=HH4s120x', socket.AF_INET, 0, socket.inet_aton({address!r}))\n"
        "one.setsockopt(socket.IPPROTO_TCP, 14, peer + struct.pack('=BBHI80s', 0, 0, 3, 0, b'key'))"
    )
    with counting(fleet["web"]) as here:
        web.do(f"_held['md5'].connect_ex(({address!r}, 8080))")
    assert ("wire-no-room", "egress", "deny") in here.refusals


def test_under_syn_cookies_nobody_is_known(fleet: Fleet, puppets) -> None:
    """Nothing is kept of an opening, so nobody can say who answers it: the caller believes no answer."""
    web, app = puppets("web"), puppets("app")
    app.serve_tcp("::", 8080)
    fleet["app"].run("app", ["sysctl", "-qw", "net.ipv4.tcp_syncookies=2"])
    try:
        with counting(fleet["web"]) as there, counting(fleet["app"]) as here:
            assert web.tcp(fleet.address("app"), 8080) == "timeout"
    finally:
        fleet["app"].run("app", ["sysctl", "-qw", "net.ipv4.tcp_syncookies=1"])
    assert (here.wire, here.refusals) == ({"verified": 1}, {})
    assert set(there.refusals) == {("wire-missing", "egress", "deny")}
    assert web.tcp(fleet.address("app"), 8080) == "ok"


def test_a_workload_is_itself_wherever_it_runs_and_only_where_it_may(fleet: Fleet, puppets) -> None:
    """`app` may be on any host; `web` only on web, and its host is not asked but its key."""
    db = puppets("db")
    db.serve_tcp("::", 5432)
    moved = puppets("web", "app")
    assert moved.tcp(fleet.address("db"), 5432) == "ok"
    elsewhere = puppets("app", "web")
    assert elsewhere.tcp(fleet.address("db"), 9000) == "ECONNREFUSED"  # there it is a process of the host, by address


@FAMILIES
def test_a_revoked_rule_cuts_the_conversation_at_both_ends(fleet: Fleet, puppets, family: int) -> None:
    web, app = puppets("web"), puppets("app")
    app.serve_tcp("::", 8080)
    assert web.hold("c", fleet.address("app", family), 8080) == "ok"
    assert web.use("c") == "ok"
    fleet.enforce(shop("ops -> app 22", "app -> db 5432"))
    assert web.use("c") != "ok"
    assert web.use("c") != "ok"


def test_a_policy_change_that_allows_it_still_lets_a_conversation_go_on(fleet: Fleet, puppets) -> None:
    web, app = puppets("web"), puppets("app")
    app.serve_tcp("::", 8080)
    assert web.hold("c", fleet.address("app"), 8080) == "ok"
    fleet.enforce(shop("ops -> app 22", "web -> app 8080"))
    assert web.use("c") == "ok"


def test_a_node_that_is_revoked_is_cut_off_and_the_others_are_not(fleet: Fleet, puppets) -> None:
    web, app, db = puppets("web"), puppets("app"), puppets("db")
    app.serve_tcp("::", 8080)
    db.serve_tcp("::", 5432)
    caller = puppets("app")
    assert web.hold("c", fleet.address("app"), 8080) == "ok"
    assert caller.hold("d", fleet.address("db"), 5432) == "ok"
    commit = fleet.commit({"t.yaml": shop(), "nodes.yaml": fleet.records({"web": {"revoked": True}})})
    fleet.wait_for_commit(commit)
    try:
        until(lambda: web.use("c") != "ok", "the revoked node's conversation is cut")
        with counting(fleet["app"]) as here:
            assert web.tcp(fleet.address("app"), 8080) != "ok"
        assert caller.use("d") == "ok"
        assert set(here.refusals) <= {("wire-no-key", "ingress", "deny")}
    finally:
        fleet.enforce(shop())
    until(lambda: web.tcp(fleet.address("app"), 8080) == "ok", "it is let in again")


def test_enforcement_and_identity_go_on_with_every_agent_dead(fleet: Fleet, puppets) -> None:
    web, app, db = puppets("web"), puppets("app"), puppets("db")
    app.serve_tcp("::", 8080)
    db.serve_tcp("::", 5432)
    for host in fleet.guarded:
        host.stop_agent(9)
    try:
        assert web.tcp(fleet.address("app"), 8080) == "ok"
        assert web.tcp(fleet.address("db"), 5432) == "EPERM"
        with fleet.router.fault("web", strip(), SYN):
            assert web.tcp(fleet.address("app"), 8080) == "timeout"
    finally:
        fleet.start_agents()
    assert web.tcp(fleet.address("app"), 8080) == "ok"


def test_an_isolated_workload_is_isolated_on_hosts_that_it_calls_too(fleet: Fleet, puppets) -> None:
    web, app = puppets("web"), puppets("app")
    app.serve_tcp("::", 8080)
    fleet["app"].bulkhead("quarantine", "web", "--reason", "test")
    try:
        with counting(fleet["app"]) as here:
            assert web.tcp(fleet.address("app"), 8080) == "ECONNREFUSED"
        assert here.refusals == {("quarantine", "ingress", "deny"): 1}
    finally:
        fleet["app"].bulkhead("release", "web")
    assert web.tcp(fleet.address("app"), 8080) == "ok"


def test_an_outsider_is_its_address_and_never_a_workload(fleet: Fleet, puppets) -> None:
    mallory, app = puppets("mallory"), puppets("app")
    app.serve_tcp("::", 8080)
    with counting(fleet["app"]) as here:
        assert mallory.tcp(fleet.address("app"), 8080) == "timeout"
    assert set(here.refusals) == {("policy", "ingress", "deny")}
    fleet.enforce(shop("mallory -> app 8080"))
    assert mallory.tcp(fleet.address("app"), 8080) == "ok"


def test_established_segments_carry_nothing(fleet: Fleet, puppets) -> None:
    web, app = puppets("web"), puppets("app")
    app.serve_tcp("::", 8080)
    with fleet.router.capture("web", "app") as wires:
        assert web.tcp(fleet.address("app"), 8080) == "ok"
    carried = [p.flags for p in (*wires.arriving("web"), *wires.arriving("app")) if p.option(253) is not None]
    assert sorted(carried) == ["S", "SA"]
