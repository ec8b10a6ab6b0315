"""What the language promises, seen in the kernel: ends, modes, address families, deadlines, changes under way."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from lab.host import Host
from lab.policies import WORKLOADS, policy, repository

LOCAL = "127.0.0.1"
FAR4, FAR6, NEAR4, NEAR6 = "10.77.0.2", "fd77::2", "10.77.0.1", "fd77::1"
REFUSED = ("EPERM", "timeout", "ENOBUFS")
CUT = ("timeout", "ECONNRESET", "ECONNABORTED", "ETIMEDOUT", "EPIPE")


@pytest.fixture
def ends(host: Host, puppets):
    """`db` serving TCP and UDP at every address, `api` and `web` to call it."""
    db = puppets(host, "db")
    for port in (5432, 5433):
        db.serve_tcp("::", port)
    db.serve_udp("::", 53)
    return db, puppets(host, "api"), puppets(host, "web")


@pytest.fixture(scope="module")
def outside(host: Host, far: Host):
    """A process on the machine at the other end of the wire, which serves, at two addresses more."""
    for address in ("10.77.9.1/32", "fd77:9::1/128"):
        far.ip("addr", "replace", address, "dev", "eth0", *(["nodad"] if ":" in address else []))
    host.ip("route", "replace", "10.77.9.0/24", "via", FAR4)
    host.ip("-6", "route", "replace", "fd77:9::/64", "via", FAR6)
    one = far.puppet("any")
    one.serve_tcp("::", 80)
    for address in (FAR4, FAR6, "10.77.9.1", "fd77:9::1"):
        one.serve_udp(address, 53)
    yield one
    one.end()


def eventually(ask: Callable[[], object], timeout_s: float = 3.0) -> bool:
    """Does it become true?"""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if ask():
            return True
    return False


@pytest.mark.parametrize("address", [LOCAL, "::1", FAR4])
def test_a_silent_conversation_is_ended_as_well(host: Host, ends, outside, address: str) -> None:
    """Nobody says a word on it: it is gone without a packet to judge."""
    _, api, _ = ends
    far = {"far": "{cidr: [10.77.0.2/32]}"}
    port = 80 if address == FAR4 else 5432
    host.enforce(policy("api -> db 5432", "api -> far 80", externals=far))
    assert api.hold("silent", address, port) == "ok"
    host.enforce(policy("api -> db 5433", externals=far))
    assert eventually(lambda: f":{port}" not in host.run("tool", ["ss", "-Htn", "state", "established"]).stdout)


@pytest.mark.parametrize("address", [LOCAL, "::1"])
def test_a_one_line_change_cuts_an_open_connection_and_destroys_its_socket(host: Host, ends, address: str) -> None:
    _, api, _ = ends
    host.enforce(policy("api -> db 5432"))
    assert api.hold("c", address, 5432) == "ok"
    assert api.use("c") == "ok"
    host.enforce(policy("api -> db 5433"))
    assert api.use("c") in CUT
    assert eventually(lambda: api.use("c") in ("ECONNRESET", "ECONNABORTED", "ETIMEDOUT", "EPIPE"))
    assert api.tcp(address, 5432) == "EPERM"
    assert api.tcp(address, 5433) == "ok"


def test_a_cut_seen_first_at_the_server_spares_its_listener(host: Host, puppets) -> None:
    """The server streams to a silent client: what is destroyed is the conversation's socket, not the listener's."""
    host.enforce(policy("api -> db 6000"))
    db, api = puppets(host, "db"), puppets(host, "api")
    db.do(
        """
def pour():
    listener = socket.socket(); listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 6000)); listener.listen()
    _held["listener"] = listener
    def serve():
        while True:
            one, _ = listener.accept()
            _held["poured"] = one
            def run(one=one):
                with contextlib.suppress(OSError):
                    while True:
                        one.sendall(b"z")
                        time.sleep(0.005)
                _held["ended"] = True
            threading.Thread(target=run, daemon=True).start()
    threading.Thread(target=serve, daemon=True).start()
pour()
"""
    )
    assert api.hold("c", LOCAL, 6000) == "ok"
    assert api.do("_held['c'].recv(1).decode()") == "z"
    host.enforce(policy("api -> db 6001"))
    assert eventually(lambda: db.do("_held.get('ended', False)"))
    host.enforce(policy("api -> db 6000"))
    assert api.hold("d", LOCAL, 6000) == "ok"
    assert api.do("_held['d'].recv(1).decode()") == "z"


def test_a_change_over_the_wire_cuts_too(host: Host, ends, outside) -> None:
    _, api, _ = ends
    far = {"far": '{cidr: [10.77.0.2/32, "fd77::2/128"]}'}
    host.enforce(policy("api -> far 80", "far -> db 5432", externals=far))
    for address in (FAR4, FAR6):
        assert api.hold(address, address, 80) == "ok"
        assert api.use(address) == "ok"
    for address in (NEAR4, NEAR6):
        assert outside.hold(address, address, 5432) == "ok"
        assert outside.use(address) == "ok"
    host.enforce(policy("api -> far 81", "far -> db 5433", externals=far))
    assert {api.use(address) for address in (FAR4, FAR6)} <= set(CUT)
    assert {outside.use(address) for address in (NEAR4, NEAR6)} <= set(CUT)
    for address in (NEAR4, NEAR6):
        assert eventually(lambda address=address: outside.use(address) in ("ECONNRESET", "EPIPE"))
    host.enforce(policy("far -> db 5432", externals=far))
    assert outside.tcp(NEAR4, 5432) == "ok"  # what was destroyed was the conversation, not the listener


def test_a_change_that_still_allows_leaves_connections_alone(host: Host, ends) -> None:
    _, api, _ = ends
    host.enforce(policy("api -> db 5432"))
    assert api.hold("c", LOCAL, 5432) == "ok"
    for rules in (("api -> db 5000-6000",), ("api -> db any",), ("web -> db 1", "api -> db 5432")):
        host.enforce(policy(*rules))
        assert api.use("c") == "ok"


def test_widening_lets_in_what_was_refused(host: Host, ends) -> None:
    _, api, web = ends
    host.enforce(policy("api -> db 5432"))
    assert web.tcp(LOCAL, 5432) == "EPERM"
    host.enforce(policy("api -> db 5432", "web -> db 5432"))
    assert web.tcp(LOCAL, 5432) == "ok"
    assert api.tcp(LOCAL, 5432) == "ok"


@pytest.mark.parametrize(
    "ports, inside, outside_",
    [("5400-5431", (), (5432, 5433)), ("5400-5432", (5432,), (5433,)), ("5433-65535", (5433,), (5432,))],
)
def test_a_port_range_ends_where_it_says(host: Host, ends, ports: str, inside, outside_) -> None:
    _, api, _ = ends
    host.enforce(policy(f"api -> db {ports}"))
    assert [api.tcp(LOCAL, port) for port in inside] == ["ok"] * len(inside)
    assert [api.tcp(LOCAL, port) for port in outside_] == ["EPERM"] * len(outside_)


def test_tcp_and_udp_are_different_rules(host: Host, ends) -> None:
    _, api, _ = ends
    host.enforce(policy("api -> db 53/udp"))
    assert api.udp(LOCAL, 53) == "ok"
    assert api.tcp(LOCAL, 53) == "EPERM"
    host.enforce(policy("api -> db any/tcp"))
    assert api.udp(LOCAL, 53) in REFUSED
    assert api.tcp(LOCAL, 5432) == "ok"


@pytest.mark.parametrize("how", ["ping", "raw_echo"])
@pytest.mark.parametrize("address", [FAR4, FAR6])
def test_ping_follows_policy_through_ping_and_raw_sockets(host: Host, puppets, outside, how: str, address: str) -> None:
    host.run("tool", ["sh", "-c", "echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range"])
    api = puppets(host, "api")
    far = {"far": '{cidr: [10.77.0.2/32, "fd77::2/128"]}'}
    host.enforce(policy("api -> far icmp/echo", externals=far))
    assert getattr(api, how)(address) == "ok"
    host.enforce(policy("api -> far 80", externals=far))
    assert getattr(api, how)(address) in REFUSED
    host.enforce(policy("api -> far icmp", externals=far))
    assert getattr(api, how)(address) == "ok"


def test_a_protocol_by_number_needs_a_rule_that_names_it(host: Host, puppets, outside) -> None:
    api = puppets(host, "api")
    send = "attempt(socket.socket(socket.AF_INET, socket.SOCK_RAW, 47), b'gre?', ('10.77.0.2', 0))"
    far = {"far": "{cidr: [10.77.0.2/32]}"}
    for rule, arrives in (("api -> far any", False), ("api -> far proto/47", True)):
        host.enforce(policy(rule, externals=far))
        outside.do("grey = socket.socket(socket.AF_INET, socket.SOCK_RAW, 47); grey.settimeout(0.3)")
        api.do(send)
        assert (outside.do("attempt(grey)") == "ok") is arrives


@pytest.mark.parametrize(
    "cidr, allowed, refused",
    [
        ("{cidr: [10.77.0.0/16], except: [10.77.9.0/24]}", [FAR4], ["10.77.9.1", FAR6]),
        ('{cidr: ["fd77::/16"], except: ["fd77:9::/64"]}', [FAR6], ["fd77:9::1", FAR4]),
        (
            '{cidr: [0.0.0.0/0, "::/0"], except: [10.77.0.2/32, "fd77::2/128"]}',
            ["10.77.9.1", "fd77:9::1"],
            [FAR4, FAR6],
        ),
    ],
)
def test_an_external_is_its_addresses_less_the_exceptions(host: Host, ends, outside, cidr, allowed, refused) -> None:
    _, api, web = ends
    host.enforce(policy("api -> net 80, 53/udp", externals={"net": cidr}))
    assert {address: (api.tcp(address, 80), api.udp(address, 53)) for address in allowed} == dict.fromkeys(
        allowed, ("ok", "ok")
    )
    for address in refused:
        assert api.tcp(address, 80) in REFUSED
        assert api.udp(address, 53) in REFUSED
    assert web.tcp(allowed[0], 80) in REFUSED


def test_observe_mode_passes_and_counts_exactly_what_it_would_have_refused(host: Host, ends) -> None:
    _, api, _ = ends
    watched = {name: text.replace("enforce", "observe") for name, text in WORKLOADS.items()}
    host.enforce(policy("web -> db 1", workloads=watched))
    before = host.call("status")["totals"]
    for _ in range(7):
        assert api.tcp(LOCAL, 5432) == "ok"
    after = host.call("status")["totals"]
    assert after["would-deny"] - before["would-deny"] == 7
    assert after["deny"] == before["deny"]


def test_refusals_are_counted_exactly(host: Host, ends) -> None:
    _, api, _ = ends
    host.enforce(policy("api -> db 1"))
    before = host.call("status")["totals"]
    assert [api.tcp(LOCAL, 5432) for _ in range(9)] == ["EPERM"] * 9
    after = host.call("status")["totals"]
    assert after["deny"] - before["deny"] == 9
    assert after["allow"] == before["allow"]


def test_each_end_applies_its_own_mode(host: Host, ends, puppets) -> None:
    """`db` enforces: what reaches it is refused. What else `api`, which observes, does is not."""
    _, api, web = ends
    web.serve_tcp(LOCAL, 8080)
    workloads = WORKLOADS | {
        "api": "{match: {cgroup: /api}, mode: observe}",
        "web": "{match: {cgroup: /web}, mode: observe}",
    }
    host.enforce(policy("web -> db 5432", workloads=workloads))
    assert api.tcp(LOCAL, 5432) == "EPERM"
    assert api.tcp(LOCAL, 8080) == "ok"
    assert web.tcp(LOCAL, 5432) == "ok"


def test_a_peer_by_labels_is_every_workload_that_carries_them(host: Host, ends, puppets) -> None:
    workloads = {
        "db": "{match: {cgroup: /db}, mode: enforce}",
        "web": "{match: {cgroup: /web}, labels: {tier: web, zone: a}, mode: enforce}",
        "api": "{match: {cgroup: /api}, labels: {tier: web}, mode: enforce}",
        "other": "{match: {cgroup: /other}, labels: {tier: app}, mode: enforce}",
    }
    _, api, web = ends
    other = puppets(host, "other")
    host.enforce(policy("{tier: web} -> db 5432", "{tier: web, zone: a} -> db 5433", workloads=workloads))
    assert [one.tcp(LOCAL, 5432) for one in (api, web, other)] == ["ok", "ok", "EPERM"]
    assert [one.tcp(LOCAL, 5433) for one in (api, web, other)] == ["EPERM", "ok", "EPERM"]


def test_any_is_every_workload_and_neither_host_nor_world(host: Host, ends, puppets, outside) -> None:
    _, api, web = ends
    stranger = puppets(host, "system.slice/cron.service")
    host.enforce(policy("any -> db 5432"), hosts="enforce")
    assert [one.tcp(LOCAL, 5432) for one in (api, web)] == ["ok", "ok"]
    assert stranger.tcp(LOCAL, 5432) == "EPERM"
    assert outside.tcp(NEAR4, 5432) == "timeout"


def test_host_is_whatever_no_workload_selects(host: Host, ends, puppets, outside) -> None:
    _, api, _ = ends
    stranger = puppets(host, "system.slice/cron.service")
    host.enforce(policy("host -> db 5432"), hosts="enforce")
    assert stranger.tcp(LOCAL, 5432) == "ok"
    assert api.tcp(LOCAL, 5432) == "EPERM"
    assert outside.tcp(NEAR4, 5432) == "timeout"


def test_world_is_every_address_outside_this_machine(host: Host, ends, puppets, outside) -> None:
    _, api, web = ends
    host.enforce(policy("api -> world 80", "world -> db 5432"), hosts="enforce")
    assert [api.tcp(address, 80) for address in (FAR4, FAR6, "10.77.9.1")] == ["ok"] * 3
    assert web.tcp(FAR4, 80) in REFUSED
    assert [outside.tcp(address, 5432) for address in (NEAR4, NEAR6)] == ["ok", "ok"]
    assert api.tcp(NEAR4, 5432) in REFUSED
    assert api.tcp(LOCAL, 80) == "EPERM"


def test_several_files_are_read_together(host: Host, ends) -> None:
    _, api, _ = ends
    host.enforce(policy("api -> db 1"))
    more = policy("t/api -> t/db 5432", workloads={}, name="more")
    host.wait_for_commit(host.commit({"more.yaml": more}))
    try:
        assert api.tcp(LOCAL, 5432) == "ok"
        assert {rule["name"] for rule in host.call("rules")["rules"]} == {"t/r1", "more/r1"}
    finally:
        (host.repository / "more.yaml").unlink()
        host.wait_for_commit(host.commit({"bulkhead.yaml": repository()}))


def test_an_exception_lapses_in_the_kernel_with_the_agent_dead(host: Host, ends) -> None:
    _, api, web = ends
    expires = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=5)  # written in whole seconds
    more = (
        "exceptions:\n  - {name: debug, from: web, to: db, ports: [5432, 53/udp], "
        f"expires: {expires:%Y-%m-%dT%H:%M:%SZ}, owner: me, ticket: T-1}}\n"
    )
    host.enforce(policy("api -> db 5432", more=more))
    assert web.tcp(LOCAL, 5432) == "ok"
    assert web.udp(LOCAL, 53) == "ok"
    assert (web.hold("c", LOCAL, 5432), web.use("c")) == ("ok", "ok")
    host.stop_agent(9)
    try:
        assert eventually(lambda: web.tcp(LOCAL, 5432) == "EPERM", timeout_s=7)
        assert datetime.now(UTC) >= expires - timedelta(seconds=1.1), "the kernel compares whole seconds"
        assert web.use("c") == "timeout"
        assert web.udp(LOCAL, 53) in REFUSED
        assert api.tcp(LOCAL, 5432) == "ok"
    finally:
        host.start_agent()
    assert web.tcp(LOCAL, 5432) == "EPERM"


def test_a_server_may_answer_a_datagram_that_an_exception_let_in(host: Host, puppets, outside) -> None:
    expires = datetime.now(UTC) + timedelta(hours=1)
    more = (
        "exceptions:\n  - {name: debug, from: far, to: db, ports: [5353/udp], "
        f"expires: {expires:%Y-%m-%dT%H:%M:%SZ}, owner: me, ticket: T-1}}\n"
    )
    db = puppets(host, "db")
    db.serve_udp("0.0.0.0", 5353)
    host.enforce(policy(externals={"far": "{cidr: [10.77.0.2/32]}"}, more=more))
    assert outside.udp(NEAR4, 5353) == "ok"
    assert outside.udp(NEAR4, 5353, connected=True) == "ok"
