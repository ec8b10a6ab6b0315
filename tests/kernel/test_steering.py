"""Conversations with the node's proxy, in a real kernel: what the workloads see, what the proxy is told, what is cut.

A puppet in the proxy's control group does by hand what the proxy does: it listens on a lane, asks for the original
destination, binds to the caller's address, and says by mark and priority for whom it calls whom.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest

from bulkhead.abi import Direction, DropReason, EventFlag, Identity, Lane, Verdict
from bulkhead.identity.cgroups import CgroupTree
from bulkhead.kernel import libbpf
from bulkhead.kernel.attestation import Attestation
from bulkhead.kernel.audit import Auditor
from bulkhead.kernel.devices import list_devices
from bulkhead.kernel.libbpf import AttachType, Fd
from bulkhead.kernel.netns import CURRENT
from bulkhead.kernel.steering import Steered, socket_ends
from lab.bpf import can_attach, pin_directory
from lab.puppet import Puppet
from lab.steered import DB, OTHER, OTHER_NODE, WATCHED, WEB, Allow, Node, mtls, requests, steered_node

EGRESS, INGRESS = Direction.EGRESS, Direction.INGRESS
PEER, PROXY, LEGACY = Identity.PEER, Identity.PROXY, Identity.LEGACY
HERE, HERE6, THERE, THERE6, OLD = "10.77.1.1", "fd77:1::1", "10.77.1.2", "fd77:1::2", "10.77.1.3"
SHORT_S = 0.1
"""How long to wait for an answer that is not to come: what is refused is refused in the call."""
CALLER = "203.0.113.9"
"""An address of another machine."""
LANE = 5
LANE_ADDRESS = "127.64.0.5"
LOCAL_LANE, LOCAL_LANE_ADDRESS = 300, "127.64.1.44"

WEB_OUT = Allow(WEB, EGRESS, PEER, 8080, mtls(LANE))
DB_IN = Allow(DB, INGRESS, WEB, 5432, mtls())
RULES = (
    WEB_OUT,
    DB_IN,
    Allow(WEB, EGRESS, DB, 5432, mtls()),
    Allow(WEB, EGRESS, DB, 6000, requests(LOCAL_LANE)),
    Allow(DB, INGRESS, WEB, 6000, requests()),
    Allow(WATCHED, EGRESS, DB, 6000, requests(LOCAL_LANE)),
    Allow(DB, INGRESS, WATCHED, 6000, requests()),
    Allow(PROXY, INGRESS, LEGACY, Lane.INBOUND_PORT),
)

LISTEN = """
lane = socket.socket(family_of({address!r}), socket.SOCK_STREAM)
lane.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
lane.bind(({address!r}, {port}))
lane.listen()
lane.settimeout(2)
"""
LEG = """
leg = socket.socket(family_of({target!r}), socket.SOCK_STREAM)
leg.settimeout(QUIET_S)
leg.bind(({caller!r}, 0))
leg.setsockopt(socket.SOL_SOCKET, 36, {mark})  # SO_MARK
leg.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, {priority})
with _word() as said:
    leg.connect(({target!r}, {port}))
"""


@pytest.fixture(scope="module")
def started() -> Iterator[Node]:
    if not can_attach():
        pytest.skip("needs root and a mounted BPF file system")
    with pin_directory() as pins, steered_node(pins) as node:
        yield node


@pytest.fixture
def node(started: Node) -> Node:
    """With RULES in force and nothing to report."""
    started.enforce(*RULES)
    started.events()
    return started


@contextmanager
def listening(on: Puppet, address: str = LANE_ADDRESS, port: int = Lane.PORT) -> Iterator[Puppet]:
    """A process listens, as the proxy does on a lane."""
    on.do(LISTEN.format(address=address, port=int(port)))
    try:
        yield on
    finally:
        on.do("lane.close()")
        on.do("globals().pop('accepted', lane).close()")


def accept(on: Puppet) -> tuple[str, int]:
    """Take the next conversation; who its other end is said to be."""
    on.do("accepted, peer = lane.accept(); accepted.settimeout(QUIET_S)")
    address, port = on.do("peer[:2]")
    return address, port


def original(proxy: Puppet) -> str:
    """The answer to SO_ORIGINAL_DST on what was accepted last."""
    return str(proxy.do("accepted.getsockopt(socket.SOL_IP, 80, 128).hex()"))


def said4(address: str, port: int) -> str:
    packed = socket.AF_INET.to_bytes(2, "little") + port.to_bytes(2, "big") + ip_address(address).packed
    return (packed + bytes(8)).hex()


def said6(address: str, port: int) -> str:
    packed = socket.AF_INET6.to_bytes(2, "little") + port.to_bytes(2, "big") + bytes(4) + ip_address(address).packed
    return (packed + bytes(4)).hex()


def peer_of(one: Puppet, name: str) -> tuple[str, int]:
    address, port = one.do(f"_held[{name!r}].getpeername()[:2]")
    return address, port


def call(
    on: Puppet, mark: int = WEB, priority: int = DB, caller: str = CALLER, port: int = 5432, target: str = HERE
) -> str:
    """What the proxy does for a caller of another node."""
    on.do(LEG.format(caller=caller, mark=mark, priority=priority, target=target, port=port))
    return str(on.do("said[0]"))


def ends_of(on: Puppet, what: str) -> tuple[tuple[str, int], tuple[str, int]]:
    own, other = on.do(f"{what}.getsockname()[:2]"), on.do(f"{what}.getpeername()[:2]")
    return (own[0], own[1]), (other[0], other[1])


def as_end(end: tuple[str, int]):
    return ip_address(end[0]), end[1]


# Lanes


def test_a_call_to_another_node_takes_the_lane_and_nobody_notices(node: Node) -> None:
    web, hits = node.puppet("web"), node.hits(1)
    with node.refusing() as refused, listening(node.puppet("proxy")) as proxy:
        assert web.hold("one", THERE, 8080) == "ok"
        seen = accept(proxy)
        assert original(proxy) == said4(THERE, 8080)
        assert peer_of(web, "one") == (THERE, 8080)
        own = web.do("_held['one'].getsockname()[:2]")
        assert seen == (own[0], own[1]), "the proxy sees who it is that calls"
        web.do("_held['one'].sendall(b'question')")
        assert proxy.do("accepted.recv(99).decode()") == "question"
        proxy.do("accepted.sendall(b'answer')")
        assert web.do("_held['one'].recv(99).decode()") == "answer"
        found = node.steering.lane_call(as_end(seen), (ip_address(LANE_ADDRESS), int(Lane.PORT)))
        assert found == Steered(ip_address(THERE), 8080, found.socket_cookie if found else 0, WEB, PEER)
    assert not refused
    assert node.hits(1) == hits + 1


def test_the_report_of_a_call_says_whom_the_workload_called(node: Node) -> None:
    web = node.puppet("web")
    with listening(node.puppet("proxy")) as proxy:
        assert web.hold("one", THERE, 8080) == "ok"
        seen = accept(proxy)
    (event,) = [one for one in node.events() if one.local_identity == WEB]
    assert (event.verdict, event.rule_id, event.remote_identity) == (Verdict.ALLOW, 1, PEER)
    assert event.node == OTHER_NODE
    assert ip_address(bytes(event.destination)).ipv4_mapped == ip_address(THERE)
    assert event.destination_port == 8080
    assert event.flags & EventFlag.STEERED
    assert socket_ends(event) == (as_end(seen), (ip_address(LANE_ADDRESS), int(Lane.PORT)))


@pytest.mark.parametrize(
    ("address", "shown", "said"),
    [
        (THERE6, THERE6, said6(THERE6, 8080)),
        (f"::ffff:{THERE}", f"::ffff:{THERE}", said4(THERE, 8080)),
    ],
)
def test_an_ipv6_socket_takes_the_lane_as_well(node: Node, address: str, shown: str, said: str) -> None:
    web = node.puppet("web")
    with node.refusing() as refused, listening(node.puppet("proxy")) as proxy:
        assert web.hold("six", address, 8080) == "ok"
        accept(proxy)
        assert original(proxy) == said
        assert peer_of(web, "six") == (shown, 8080)
    assert not refused


OPENED = {
    "bound to an address": "one.bind(('10.77.1.1', 0)); one.connect(('10.77.1.2', 8080))",
    "with data in the SYN": "one.sendto(b'x', socket.MSG_FASTOPEN, ('10.77.1.2', 8080))",
    "without waiting": "one.settimeout(0); one.connect_ex(('10.77.1.2', 8080))",
}


@pytest.mark.parametrize("how", OPENED.values(), ids=OPENED)
def test_a_call_takes_the_lane_however_it_is_opened(node: Node, how: str) -> None:
    web = node.puppet("web")
    with node.refusing() as refused, listening(node.puppet("proxy")) as proxy:
        web.do(f"one = socket.socket(); {how}")
        accept(proxy)
        assert original(proxy) == said4(THERE, 8080)
        assert web.do("one.getpeername()") == [THERE, 8080]
        web.do("one.close()")
    assert not refused


NO_WAY = {
    "IPv6 alone": (THERE6, "socket.AF_INET6", "socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1"),
    "one device alone": (THERE, "socket.AF_INET", "socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'eth0'"),
}


@pytest.mark.parametrize(("address", "family", "option"), NO_WAY.values(), ids=NO_WAY)
def test_a_socket_that_cannot_take_the_lane_is_refused_at_once(
    node: Node, address: str, family: str, option: str
) -> None:
    web = node.puppet("web")
    with node.refusing() as refused, listening(node.puppet("proxy")):
        web.do(f"one = socket.socket({family}); one.setsockopt({option})")
        web.do(f"with _word() as said, one: one.connect(({address!r}, 8080))")
        assert web.do("said[0]") == "EPERM"
    assert refused == {("proxy", "egress"): 1}


def test_multipath_tcp_which_no_hook_can_steer_does_not_leave(node: Node) -> None:
    with node.refusing() as refused:
        assert node.puppet("web").tcp(THERE, 8080, proto=262, quiet_s=SHORT_S) == "timeout"
    assert refused == {("mtls", "egress"): 1}


def test_without_the_proxy_a_call_is_refused(node: Node) -> None:
    with node.refusing() as refused:
        assert node.puppet("web").tcp(THERE, 8080, quiet_s=SHORT_S) == "timeout"
    assert refused == {("proxy", "egress"): 1}


@pytest.mark.parametrize("group", ["other", "plain"])
def test_nobody_else_is_given_what_is_for_the_proxy(node: Node, group: str) -> None:
    node.steering.want(False)  # before, anybody could have taken the address
    with node.refusing() as refused, listening(node.puppet(group)):
        node.steering.want(True)
        assert node.puppet("web").tcp(THERE, 8080, quiet_s=SHORT_S) == "timeout"
    assert refused == {("proxy", "egress"): 1}


def test_a_lane_is_for_those_whom_the_kernel_has_steered(node: Node) -> None:
    with node.refusing() as refused, listening(node.puppet("proxy")):
        assert node.puppet("web").tcp(LANE_ADDRESS, int(Lane.PORT)) == "EPERM"
        assert node.puppet("other").tcp(LANE_ADDRESS, int(Lane.PORT)) == "EPERM"
    assert refused == {("policy", "egress"): 2}


def test_a_socket_that_connects_again_is_judged_by_where_it_goes_now(node: Node) -> None:
    web = node.puppet("web")
    with node.refusing() as refused, listening(node.puppet("proxy")) as proxy:
        assert web.hold("again", THERE, 8080) == "ok"
        accept(proxy)
        web.do(DISCONNECT)
        web.do("with _word() as said: _held['again'].connect(('10.77.1.2', 9999))")
        assert web.do("said[0]") == "EPERM"
    assert refused == {("policy", "egress"): 1}


DISCONNECT = """
import ctypes
ctypes.CDLL(None).connect(_held['again'].fileno(), bytes(16), 16)
"""


def test_what_policy_no_longer_allows_is_cut_from_either_end(node: Node) -> None:
    web = node.puppet("web")
    for name in ("caller", "proxy"):
        node.enforce(*RULES)
        with listening(node.puppet("proxy")) as proxy:
            assert web.hold(name, THERE, 8080) == "ok"
            accept(proxy)
            proxy.do("accepted.sendall(b'first')")
            assert web.do(f"_held[{name!r}].recv(99).decode()") == "first"
            node.events()
            node.enforce(DB_IN)
            with node.refusing() as refused:
                if name == "caller":
                    assert web.use(name) == "timeout"
                else:
                    proxy.do("accepted.sendall(b'second')")
                    assert web.do(f"attempt(_held[{name!r}])") == "TimeoutError"
            assert set(refused) == {("policy", "egress")}
            cut = [one for one in node.events() if one.flags & EventFlag.CUT]
            assert [(one.local_identity, one.remote_identity, one.reason) for one in cut] == [
                (WEB, PEER, DropReason.POLICY)
            ]
        web.drop(name)


# Legs


def test_a_leg_is_judged_as_its_caller_and_shown_as_its_caller(node: Node) -> None:
    proxy, hits = node.puppet("proxy"), node.hits(2)
    with node.refusing() as refused, listening(node.puppet("db"), "0.0.0.0", 5432) as db:
        assert call(proxy) == "ok"
        leg, other = ends_of(proxy, "leg")
        assert accept(db) == (CALLER, leg[1])
        assert db.do("accepted.getpeername()") == [CALLER, leg[1]]
        assert other == (HERE, 5432), "the proxy sees where it really is"
        assert leg[0] == HERE
        proxy.do("leg.sendall(b'question')")
        assert db.do("accepted.recv(99).decode()") == "question"
        db.do("accepted.sendall(b'answer')")
        assert proxy.do("leg.recv(99).decode()") == "answer"
        assert proxy.do("[leg.getsockopt(socket.SOL_SOCKET, one) for one in (36, socket.SO_PRIORITY)]") == [0, 0]
        found = node.steering.leg(as_end(leg), as_end(other))
        assert found is not None
        assert (found.address, found.caller, found.called) == (ip_address(CALLER), WEB, DB)
    assert not refused
    assert node.hits(2) == hits + 1
    (event,) = [one for one in node.events() if one.local_identity == DB]
    assert (event.verdict, event.remote_identity) == (Verdict.ALLOW, WEB)
    assert ip_address(bytes(event.source)).ipv4_mapped == ip_address(CALLER)
    assert socket_ends(event) == (as_end(leg), (ip_address(HERE), 5432))


SEEN = {
    "IPv6 over IPv6": ("2001:db8::9", HERE6, "2001:db8::9"),
    "IPv4 at a socket of both": (CALLER, HERE, f"::ffff:{CALLER}"),
}


@pytest.mark.parametrize(("caller", "target", "shown"), SEEN.values(), ids=SEEN)
def test_an_ipv6_socket_sees_the_caller_as_well(node: Node, caller: str, target: str, shown: str) -> None:
    proxy = node.puppet("proxy")
    with node.refusing() as refused, listening(node.puppet("db"), "::", 5432) as db:
        assert call(proxy, caller=caller, target=target) == "ok"
        port = proxy.do("leg.getsockname()[1]")
        assert accept(db) == (shown, port)
        db.do("accepted.sendall(b'answer')")
        assert proxy.do("leg.recv(99).decode()") == "answer"
        proxy.do("leg.close()")
    assert not refused


@pytest.mark.parametrize(
    ("group", "mark", "priority", "why"),
    [
        ("proxy", OTHER, DB, ("policy", "ingress")),
        ("proxy", WEB, OTHER, ("proxy", "ingress")),
        ("proxy", WEB, 0, ("proxy", "ingress")),
    ],
)
def test_a_leg_is_refused(node: Node, group: str, mark: int, priority: int, why: tuple[str, str]) -> None:
    """Whom policy does not allow, and whom the caller did not ask for."""
    with node.refusing() as refused, listening(node.puppet("db"), "0.0.0.0", 5432):
        assert call(node.puppet(group), mark, priority) == "timeout"
    assert refused == {why: 1}


def test_the_same_marks_mean_nothing_from_another_control_group(node: Node) -> None:
    with node.refusing() as refused, listening(node.puppet("db"), "0.0.0.0", 5432):
        assert call(node.puppet("other"), caller=HERE) == "EPERM"
        assert call(node.puppet("plain"), caller=HERE) == "timeout"
    assert refused == {("policy", "egress"): 1, ("policy", "ingress"): 1}


def test_without_a_mark_the_proxy_is_nobody_else(node: Node) -> None:
    with node.refusing() as refused, listening(node.puppet("db"), "0.0.0.0", 5432):
        assert call(node.puppet("proxy"), mark=0) == "EPERM"
    assert refused == {("policy", "egress"): 1}


def test_a_leg_is_cut_when_its_caller_may_no_longer_call(node: Node) -> None:
    proxy = node.puppet("proxy")
    for speaker in ("proxy", "db"):
        node.enforce(*RULES)
        with listening(node.puppet("db"), "0.0.0.0", 5432) as db:
            assert call(proxy) == "ok"
            accept(db)
            db.do("accepted.sendall(b'first')")
            assert proxy.do("leg.recv(99).decode()") == "first"
            node.events()
            node.enforce(WEB_OUT)
            with node.refusing() as refused:
                if speaker == "proxy":
                    proxy.do("leg.sendall(b'second')")
                    assert db.do("attempt(accepted)") == "TimeoutError"
                else:
                    db.do("accepted.sendall(b'second')")
                    assert proxy.do("attempt(leg)") == "TimeoutError"
            assert set(refused) == {("policy", "ingress")}
            cut = [one for one in node.events() if one.flags & EventFlag.CUT]
            assert [(one.local_identity, one.remote_identity) for one in cut] == [(DB, WEB)]


# Requests, on one host


def test_what_is_judged_by_request_goes_through_the_proxy_on_one_host_as_well(node: Node) -> None:
    web = node.puppet("web")
    with (
        node.refusing() as refused,
        listening(node.puppet("db"), "0.0.0.0", 6000) as db,
        listening(node.puppet("proxy"), LOCAL_LANE_ADDRESS) as proxy,
    ):
        for address in ("127.0.0.1", HERE):
            assert web.hold("local", address, 6000) == "ok"
            accept(proxy)
            assert original(proxy) == said4(address, 6000)
            assert call(proxy, caller=address, port=6000) == "ok"
            assert accept(db)[0] == address
    assert not refused


def test_nobody_comes_past_the_proxy(node: Node) -> None:
    with node.refusing() as refused, listening(node.puppet("db"), "0.0.0.0", 6000):
        assert node.puppet("watched").tcp("127.0.0.1", 6000, quiet_s=SHORT_S) == "timeout"
    assert refused == {("mtls", "ingress"): 1}


def test_mutual_tls_alone_needs_no_proxy_on_one_host(node: Node) -> None:
    with node.refusing() as refused, listening(node.puppet("db"), "0.0.0.0", 5432) as db:
        assert node.puppet("web").hold("near", "127.0.0.1", 5432) == "ok"
        assert accept(db)[0] == "127.0.0.1"
        assert peer_of(node.puppet("web"), "near") == ("127.0.0.1", 5432)
    assert not refused


# Without a proxy


@pytest.fixture
def unsteered(node: Node) -> Iterator[Node]:
    node.steering.want(False)
    yield node
    node.steering.want(True)


def test_a_call_that_is_not_steered_does_not_leave(unsteered: Node) -> None:
    with unsteered.refusing() as refused:
        assert unsteered.puppet("web").tcp(THERE, 8080, quiet_s=SHORT_S) == "timeout"
    assert refused == {("mtls", "egress"): 1}


# What comes from other nodes


def far_call(node: Node, port: int = Lane.INBOUND_PORT) -> str:
    """A call from a machine without an agent."""
    with node.wire.right.entered(), socket.socket() as one:
        one.settimeout(0.4)
        one.bind((OLD, 0))
        try:
            one.connect((HERE, port))
            return one.recv(99).decode()
        except OSError as error:
            return type(error).__name__


GREET = """
import threading
def greet(one):
    with contextlib.suppress(OSError):
        while True:
            accepted, _ = one.accept()
            accepted.sendall({text!r})
            accepted.close()
greeter = socket.socket()
greeter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
greeter.bind(({address!r}, 15008))
greeter.listen()
threading.Thread(target=greet, args=(greeter,), daemon=True).start()
"""


@pytest.mark.parametrize("port", [Lane.PORT, Lane.INBOUND_PORT])
def test_nobody_else_may_take_a_port_of_the_proxy(node: Node, port: Lane) -> None:
    take = f"with _word() as said, socket.socket() as one: one.bind(('127.64.7.7', {int(port)}))"
    with node.refusing() as refused:
        for group, outcome in (("plain", "EPERM"), ("web", "EPERM"), ("proxy", "ok")):
            node.puppet(group).do(take)
            assert node.puppet(group).do("said[0]") == outcome
    assert refused == {("proxy", "ingress"): 2}
    node.steering.want(False)
    node.puppet("plain").do(take)
    assert node.puppet("plain").do("said[0]") == "ok"
    node.steering.want(True)


def test_what_other_nodes_proxies_say_reaches_the_proxy_alone(node: Node) -> None:
    node.steering.want(False)
    with node.another("plain") as thief:
        thief.do(GREET.format(text=b"thief", address=HERE))
        node.steering.want(True)
        assert far_call(node) == "ConnectionRefusedError"
        with node.another("proxy") as proxy:
            assert not node.steering.set_listeners(proxy.pid)
            proxy.do(GREET.format(text=b"proxy", address="127.0.0.99"))
            assert node.steering.set_listeners(proxy.pid)
            assert far_call(node) == "proxy"
            node.maps.fixed("proxy_listeners").delete(bytes(4))
            assert far_call(node) == "ConnectionRefusedError"
            assert list(node.steering.put_right()) == ["`proxy_listeners` was written by somebody else"]
            assert far_call(node) == "proxy"
            assert list(node.steering.put_right()) == []
        assert far_call(node) == "ConnectionRefusedError", "the proxy has ended"
        assert list(node.steering.put_right()) == []
        node.steering.want(False)
        assert far_call(node) == "thief"
        node.steering.want(True)


# Upkeep


def test_what_somebody_else_writes_is_put_right(node: Node) -> None:
    node.maps.fixed("mesh_self").update(bytes(4), bytes(16))
    assert list(node.steering.put_right()) == ["`mesh_self` was written by somebody else"]
    with node.refusing() as refused:
        assert node.puppet("web").tcp(THERE, 8080, quiet_s=SHORT_S) == "timeout"
    assert refused == {("proxy", "egress"): 1}


def test_an_audit_finds_what_is_missing_of_the_proxy(node: Node) -> None:
    attestation = Attestation(node.maps, CgroupTree(node.cgroup))
    auditor = Auditor(node.pins, node.maps, node.programs, node.attachments, attestation, node.steering)
    assert auditor.look(list_devices()) == []
    node.attachments._links.drop("proxy_getsockopt")
    (node.pins / "links" / "netns_sk_lookup").unlink()
    node.maps.fixed("mesh_self").update(bytes(4), bytes(16))
    assert {(one.kind, one.what) for one in auditor.look(list_devices()) if one.repaired} == {
        ("hook", f"{node.cgroup / 'proxy'} getsockopt was not attached"),
        ("pin", "the pin `netns_sk_lookup` was removed"),
        ("proxy", "`mesh_self` was written by somebody else"),
    }
    assert auditor.look(list_devices()) == []


def test_detaching_leaves_nothing_of_it(node: Node) -> None:
    node.attachments.detach_all()
    try:
        assert os.listdir(node.pins / "links") == []
        assert node.attachments.report(list_devices()) == []
        with Fd(os.open(node.cgroup / "proxy", os.O_RDONLY)) as group:
            for hook in (AttachType.CGROUP_BIND4, AttachType.CGROUP_BIND6, AttachType.CGROUP_GETSOCKOPT):
                assert libbpf.prog_query(group.fileno(), hook).program_ids == ()
        with Fd(os.open(CURRENT, os.O_RDONLY)) as namespace:
            assert libbpf.prog_query(namespace.fileno(), AttachType.SK_LOOKUP).program_ids == ()
    finally:
        node.attachments.attach_all(list_devices())


def test_hooks_of_the_proxy_are_reported_and_put_back(node: Node) -> None:
    hooks = {(one.mechanism, one.hook) for one in node.attachments.report([])}
    wanted = {("proxy", "bind4"), ("proxy", "bind6"), ("proxy", "getsockopt"), ("netns", "sk_lookup")}
    assert wanted <= hooks
    assert ("cgroup", "getpeername4") in hooks
    node.attachments._links.drop("netns_sk_lookup")
    node.attachments._links.drop("proxy_bind4")
    assert node.attachments.attach_netns() == ["netns sk_lookup"]
    assert node.attachments.attach_proxy() == [f"{node.cgroup / 'proxy'} bind4"]
    assert {(one.mechanism, one.hook) for one in node.attachments.report([])} == hooks
