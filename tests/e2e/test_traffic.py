"""Traffic of every shape: what policy allows works, what it does not allow does not, and nothing leaks beside it."""

from __future__ import annotations

import pytest

from lab.host import Host
from lab.policies import policy

MPTCP = 262
FAR4, FAR6 = "10.77.0.2", "fd77::2"
NEAR4, NEAR6 = "10.77.0.1", "fd77::1"
ANYWHERE = {"far": '{cidr: [10.77.0.2/32, "fd77::2/128"]}'}


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", NEAR4, NEAR6, "0.0.0.0", "::"])
def test_tcp_on_one_host_follows_policy_at_every_address(host: Host, puppets, address: str) -> None:
    host.enforce(policy("api -> db 5432"))
    db, api, web = (puppets(host, name) for name in ("db", "api", "web"))
    db.serve_tcp("::", 5432)
    assert api.tcp(address, 5432) == "ok"
    assert web.tcp(address, 5432) == "EPERM"


def test_tcp_to_a_mapped_address_is_judged_as_ipv4(host: Host, puppets) -> None:
    host.enforce(policy("api -> db 5432"))
    db, api, web = (puppets(host, name) for name in ("db", "api", "web"))
    db.serve_tcp("0.0.0.0", 5432)
    assert api.tcp("127.0.0.1", 5432, mapped=True) == "ok"
    assert web.tcp("127.0.0.1", 5432, mapped=True) == "EPERM"
    assert web.tcp(NEAR4, 5432, mapped=True) in ("EPERM", "timeout")


@pytest.mark.parametrize("connected", [True, False])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1", NEAR4])
def test_udp_follows_policy_connected_or_not(host: Host, puppets, address: str, connected: bool) -> None:
    host.enforce(policy("api -> db 53/udp"))
    db, api, web = (puppets(host, name) for name in ("db", "api", "web"))
    db.serve_udp("::" if ":" in address else "0.0.0.0", 53)
    assert api.udp(address, 53, connected=connected) == "ok"
    assert web.udp(address, 53, connected=connected) in ("EPERM", "timeout")
    assert api.udp(address, 54, connected=connected) in ("EPERM", "timeout")


def test_one_socket_asks_several_servers_and_takes_answers_in_any_order(host: Host, far: Host, puppets) -> None:
    host.enforce(policy("api -> db 53-55/udp", "api -> far 53-55/udp", externals=ANYWHERE))
    db, api, outside = puppets(host, "db"), puppets(host, "api"), puppets(far, "any")
    for port in (53, 54, 55):
        db.serve_udp("127.0.0.1", port)
        outside.serve_udp("0.0.0.0", port)
    api.do(
        """
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
one.settimeout(2)
peers = [(a, p) for a in ("127.0.0.1", "10.77.0.2") for p in (53, 54, 55)]
for turn in range(3):
    for peer in peers:
        one.sendto(b"q", peer)
answered = {}
for _ in range(3 * len(peers)):
    _, peer = one.recvfrom(9)
    answered[peer] = answered.get(peer, 0) + 1
"""
    )
    assert api.do("sorted(answered.values())") == [3] * 6


def test_an_answer_from_somebody_who_was_not_asked_is_dropped(host: Host, far: Host, puppets) -> None:
    host.enforce(policy("api -> far 53/udp", externals=ANYWHERE))
    api, outside = puppets(host, "api"), puppets(far, "any")
    outside.serve_udp("0.0.0.0", 53)
    api.do("one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); one.settimeout(1); one.bind(('0.0.0.0', 4000))")
    api.do("one.sendto(b'q', ('10.77.0.2', 53))")
    assert api.do("one.recv(9).decode()") == "q"
    outside.do("two = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); two.bind(('0.0.0.0', 99))")
    outside.do("two.sendto(b'forged', ('10.77.0.1', 4000))")
    api.do("one.settimeout(0.3)")
    assert api.do("attempt(one)") == "TimeoutError"


def test_a_server_answers_many_clients(host: Host, far: Host, puppets) -> None:
    host.enforce(policy("api -> db 53/udp, 5432", "far -> db 53/udp, 5432", externals=ANYWHERE))
    db, api, outside = puppets(host, "db"), puppets(host, "api"), puppets(far, "any")
    db.serve_udp("0.0.0.0", 53)
    db.serve_tcp("0.0.0.0", 5432)
    for _ in range(20):
        assert api.udp("127.0.0.1", 53) == "ok"
        assert outside.udp(NEAR4, 53) == "ok"
        assert api.tcp("127.0.0.1", 5432) == "ok"
        assert outside.tcp(NEAR4, 5432) == "ok"
    assert outside.tcp(NEAR4, 5433) == "timeout" or outside.tcp(NEAR4, 5433) == "ECONNREFUSED"


@pytest.mark.parametrize("remote, near", [(FAR4, NEAR4), (FAR6, NEAR6)])
def test_large_datagrams_cross_a_wire_in_fragments(host: Host, far: Host, puppets, remote: str, near: str) -> None:
    host.enforce(policy("api -> far 53/udp", "far -> db 54/udp", externals=ANYWHERE))
    api, db, outside = puppets(host, "api"), puppets(host, "db"), puppets(far, "any")
    outside.serve_udp("::", 53)
    db.serve_udp("::", 54)
    assert api.udp(remote, 53, size=4000) == "ok"
    assert outside.udp(near, 54, size=4000) == "ok"


@pytest.mark.parametrize("remote, near", [(FAR4, NEAR4), (FAR6, NEAR6)])
def test_a_refused_large_datagram_leaves_nothing_on_the_wire(
    host: Host, far: Host, puppets, remote: str, near: str
) -> None:
    host.enforce(policy("api -> db 1", externals=ANYWHERE))
    api, db, outside = puppets(host, "api"), puppets(host, "db"), puppets(far, "any")
    outside.sniff()
    db.udp_receive("::", 54)
    assert api.udp(remote, 53, size=4000) == "EPERM"
    assert outside.udp(near, 54, size=4000) == "timeout"
    assert db.udp_received(54) == -1
    assert outside.sniffed() == []


def test_tcp_fast_open_is_judged_before_its_data_is_sent(host: Host, puppets) -> None:
    host.enforce(policy("api -> db 5432"))
    db, api, web = (puppets(host, name) for name in ("db", "api", "web"))
    host.run("tool", ["sh", "-c", "echo 1539 > /proc/sys/net/ipv4/tcp_fastopen"])  # both ends, no cookie needed
    db.serve_tcp("0.0.0.0", 5432, fast_open=True)
    assert [api.tcp_fast_open("127.0.0.1", 5432) for _ in range(3)] == ["ok"] * 3
    assert [web.tcp_fast_open("127.0.0.1", 5432) for _ in range(3)] == ["EPERM"] * 3
    with open(f"/proc/{api.pid}/net/netstat") as counters:
        assert "TCPFastOpenPassive" in counters.read()


def test_mptcp_is_judged_like_tcp(host: Host, far: Host, puppets) -> None:
    host.enforce(policy("api -> db 5432", "api -> far 80", "far -> db 5432", externals=ANYWHERE))
    db, api, web, outside = puppets(host, "db"), puppets(host, "api"), puppets(host, "web"), puppets(far, "any")
    db.serve_tcp("0.0.0.0", 5432, proto=MPTCP)
    outside.serve_tcp("0.0.0.0", 80, proto=MPTCP)
    assert api.tcp("127.0.0.1", 5432, proto=MPTCP) == "ok"
    assert api.tcp("127.0.0.1", 5432) == "ok"
    assert api.tcp(FAR4, 80, proto=MPTCP) == "ok"
    assert outside.tcp(NEAR4, 5432, proto=MPTCP) == "ok"
    assert web.tcp("127.0.0.1", 5432, proto=MPTCP) in ("EPERM", "timeout")
    assert web.tcp(FAR4, 80, proto=MPTCP) in ("EPERM", "timeout")


def test_reuse_port_listeners_of_two_workloads_are_told_apart(host: Host, puppets) -> None:
    host.enforce(policy("api -> db 5432"))
    db, web, api = puppets(host, "db"), puppets(host, "web"), puppets(host, "api")
    db.serve_tcp("127.0.0.1", 5432, reuse_port=True)
    db.serve_tcp("127.0.0.1", 5432, reuse_port=True)
    assert {api.tcp("127.0.0.1", 5432) for _ in range(10)} == {"ok"}
    web.serve_tcp("127.0.0.1", 5432, reuse_port=True)
    outcomes: set[str] = set()
    for _ in range(100):
        outcomes.add(api.tcp("127.0.0.1", 5432))
        if len(outcomes) > 1:
            break
    assert outcomes == {"ok", "timeout"}, "the source port decides who receives, and connect() has none yet"


@pytest.mark.parametrize("listeners", [1, 4])
def test_a_caller_is_never_refused_for_who_else_listens_on_the_port(host: Host, puppets, listeners: int) -> None:
    host.enforce(policy("api -> db 5432"))
    db, web, api = puppets(host, "db"), puppets(host, "web"), puppets(host, "api")
    for _ in range(listeners):
        web.serve_tcp("127.0.0.1", 5432, reuse_port=True)
    db.serve_tcp("127.0.0.1", 5432, reuse_port=True)
    assert "EPERM" not in {api.tcp("127.0.0.1", 5432) for _ in range(10)}


def test_a_closed_port_answers_as_the_host_and_by_the_hosts_policy(host: Host, far: Host, puppets) -> None:
    workloads = {"api": "{match: {cgroup: /api}, mode: enforce}"}
    host.enforce(policy("api -> host 81", "far -> host 82", workloads=workloads, externals=ANYWHERE), hosts="enforce")
    api, outside = puppets(host, "api"), puppets(far, "any")
    assert api.tcp("127.0.0.1", 81) == "ECONNREFUSED"
    assert api.tcp("127.0.0.1", 83) == "EPERM"
    assert api.tcp(NEAR4, 81) == "ECONNREFUSED"
    assert outside.tcp(NEAR4, 82) == "ECONNREFUSED"
    assert outside.tcp(NEAR4, 83) == "timeout"
    assert api.udp("127.0.0.1", 81) in ("EPERM", "timeout")


def test_a_closed_port_of_an_observed_host_answers_everybody(host: Host, far: Host, puppets) -> None:
    host.enforce(policy("api -> db 1", externals=ANYWHERE))
    assert puppets(far, "any").tcp(NEAR4, 83) == "ECONNREFUSED"
    assert puppets(host, "web").tcp("127.0.0.1", 83) == "EPERM"


@pytest.mark.parametrize("near", [NEAR4, NEAR6])
def test_an_enforced_host_answers_pings_only_where_a_rule_says_so(host: Host, far: Host, puppets, near: str) -> None:
    outside = puppets(far, "any")
    host.enforce(policy(externals=ANYWHERE), hosts="enforce")
    assert outside.raw_echo(near) == "timeout"
    host.enforce(policy("far -> host icmp/echo", externals=ANYWHERE), hosts="enforce")
    assert outside.raw_echo(near) == "ok"


@pytest.mark.parametrize("remote", [FAR4, FAR6])
def test_neighbours_are_found_under_an_enforced_host(host: Host, far: Host, puppets, remote: str) -> None:
    host.enforce(policy("api -> far 80", externals=ANYWHERE), hosts="enforce")
    puppets(far, "any").serve_tcp("::", 80)
    api = puppets(host, "api")
    for one in (host, far):
        one.ip("neigh", "flush", "dev", "eth0")
    assert api.tcp(remote, 80, quiet_s=3.0) == "ok"


def test_dhcp_works_under_an_enforced_host(host: Host, far: Host, puppets) -> None:
    host.enforce(policy(externals=ANYWHERE), hosts="enforce")
    client, server = puppets(host, "system.slice/dhcpcd.service"), puppets(far, "any")
    open_at = (
        "one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); one.settimeout(1); "
        "one.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1); "
        "one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'eth0'); one.bind(('0.0.0.0', {}))"
    )
    client.do(open_at.format(68))
    server.do(open_at.format(67))
    client.do("one.sendto(b'discover', ('255.255.255.255', 67))")
    assert server.do("one.recv(99).decode()") == "discover"
    server.do("one.sendto(b'offer', ('255.255.255.255', 68))")
    assert client.do("one.recv(99).decode()") == "offer"
    workload = puppets(host, "web")
    client.do("one.close()")
    workload.do(open_at.format(68))
    assert "PermissionError" == workload.do("attempt(one, b'forged', ('255.255.255.255', 67))")


def test_nothing_of_an_allowed_conversation_is_ever_refused(host: Host, puppets) -> None:
    host.enforce(policy("api -> db 5432, 53/udp"))
    db, api = puppets(host, "db"), puppets(host, "api")
    db.serve_tcp("127.0.0.1", 5432)
    db.serve_udp("127.0.0.1", 53)
    before = host.call("status")["totals"]["deny"]
    for _ in range(5):
        assert api.hold("one", "127.0.0.1", 5432) == "ok"
        assert api.use("one") == "ok"
        api.drop("one")
        assert api.udp("127.0.0.1", 53) == "ok"
    assert host.call("status")["totals"]["deny"] == before


def test_datagrams_of_every_size_pass_where_one_may(host: Host, puppets) -> None:
    host.enforce(policy("api -> db 53/udp"))
    db, api = puppets(host, "db"), puppets(host, "api")
    db.serve_udp("127.0.0.1", 53)
    assert [api.udp("127.0.0.1", 53, size=size) for size in (1, 1400, 9000, 60000)] == ["ok"] * 4
