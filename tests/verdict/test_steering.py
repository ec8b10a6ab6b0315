"""What policy asks to go through the proxies, and what does not: single packets through the real programs.

The policy is written entry by entry. The receiver is node beta of the tests of identity on the wire, alpha the other.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from scapy.layers.inet import TCP

from bulkhead.abi import (
    CgroupEntry,
    ControlFlag,
    Direction,
    DropReason,
    Identity,
    Lane,
    Mode,
    SockFlag,
    SockState,
    WireCount,
)
from bulkhead.kernel.judge import Entry, Judge, opening
from bulkhead.kernel.maps import GenerationTables, Table
from lab.steered import DB, WEB, Allow, mtls, policy_table, requests
from lab.verdict import Bench, allowed, passed
from lab.wire import found, segment
from verdict import test_wire as wired
from verdict.test_wire import AT_ALPHA, PLACE, Opening, counted, framed, guard_with, set_clock

EGRESS, INGRESS = Direction.EGRESS, Direction.INGRESS
PEER, PROXY = Identity.PEER, Identity.PROXY
MODES = {"enforced": Mode.ENFORCE, "observed": Mode.OBSERVE}
ENDS = {WEB: 1, DB: 2, int(PROXY): 3}
"""A control group for each identity."""
HOSTING = {number.to_bytes(4, "little"): bytes(4) for number in (WEB, DB)}
"""Any node may host them."""


class Desk:
    """Single entries in force, and packets of those they are about."""

    def __init__(self, judge: Judge, mode: Mode) -> None:
        self.judge = judge
        self.bench = Bench(judge, enforced=mode is Mode.ENFORCE)
        self._mode = mode

    def enforce(self, *allows: Allow) -> None:
        cgroups = {
            group.to_bytes(8, "little"): bytes(CgroupEntry(identity=identity, mode=self._mode))
            for identity, group in ENDS.items()
        }
        flags = ControlFlag.ANY_ENFORCE if self.bench.enforced else ControlFlag(0)
        empty = Table()
        tables = GenerationTables(
            policy_table(allows), empty, empty, Table.of(cgroups), empty, empty, flags, hosting=Table.of(HOSTING)
        )
        self.judge.switch(tables)
        guard_with(self.judge.maps, 0)

    def socket_of(self, identity: int, *flags: SockFlag) -> SockState:
        return SockState(cgroup_id=ENDS[identity], flags=sum((SockFlag.ORIGIN, *flags)), socket_cookie=7)


@pytest.fixture(params=MODES)
def desk(judge: Judge, request: pytest.FixtureRequest) -> Iterator[Desk]:
    """Everybody enforced, or nobody."""
    wired.tell(judge.maps)
    set_clock(judge.maps)
    yield Desk(judge, MODES[request.param])
    wired.forget(judge.maps)


# On one host


HERE = ip_address("127.0.0.1")
ON_LO = {
    "nothing": (0, 0, None),
    "mutual TLS at both ends": (mtls(5), mtls(), None),
    "requests at the caller": (requests(5), 0, EGRESS),
    "requests at the called": (mtls(), requests(), INGRESS),
}


@pytest.mark.parametrize(("near", "far", "refuses"), ON_LO.values(), ids=ON_LO)
def test_on_one_host_only_what_is_judged_by_request_needs_the_proxy(
    desk: Desk, near: int, far: int, refuses: Direction | None
) -> None:
    desk.enforce(Allow(WEB, EGRESS, DB, 80, near), Allow(DB, INGRESS, WEB, 80, far))
    with desk.judge.receiving(socket.IPPROTO_TCP, 80, desk.socket_of(DB)):
        outcome = desk.bench.leaves(
            opening(HERE, HERE, socket.IPPROTO_TCP, 80), desk.socket_of(WEB), Entry.EGRESS_LOOPBACK
        )
    if refuses is None:
        allowed(outcome)
    else:
        desk.bench.refused(outcome, DropReason.MTLS, refuses)


# Between nodes


OUT = framed(segment(PLACE, 1000, 5432), wired.HERE, AT_ALPHA)


@pytest.mark.parametrize("flags", [mtls(), mtls(5), requests(5)])
def test_what_asks_for_mutual_tls_does_not_leave_by_itself(desk: Desk, flags: int) -> None:
    """In observe mode it does, and who answers decides what would have been refused."""
    desk.enforce(Allow(WEB, EGRESS, PEER, 5432, flags))
    outcome = desk.bench.leaves(OUT, desk.socket_of(WEB))
    if desk.bench.enforced:
        desk.bench.refused_out(outcome, DropReason.MTLS)
    else:
        passed(outcome)


def test_an_answer_to_what_was_not_told_yet_is_refused(desk: Desk) -> None:
    desk.enforce(Allow(DB, EGRESS, WEB, 8080, mtls()))
    with wired.waiting(desk.judge, desk.socket_of(DB, SockFlag.OPENED)):
        desk.bench.refused_out(desk.bench.arrives(wired.Answer(identity=WEB).frame()), DropReason.MTLS)


def test_what_asks_for_nothing_leaves_as_it_did(desk: Desk) -> None:
    desk.enforce(Allow(WEB, EGRESS, PEER, 5432, 0))
    assert desk.bench.leaves(OUT, desk.socket_of(WEB)).ruling.passes


@pytest.mark.parametrize("flags", [mtls(), requests()])
def test_what_asks_for_mutual_tls_is_not_let_in_without_and_the_caller_is_told(desk: Desk, flags: int) -> None:
    desk.enforce(Allow(DB, INGRESS, WEB, 5432, flags))
    told = counted(desk.bench, WireCount.TOLD)
    with desk.judge.receiving(socket.IPPROTO_TCP, 5432, desk.socket_of(DB)):
        outcome = desk.bench.arrives(Opening(identity=WEB).frame())
    desk.bench.refused_in(outcome, DropReason.MTLS)
    assert outcome.ruling.remote == WEB
    assert counted(desk.bench, WireCount.TOLD) == told + desk.bench.enforced


# The proxies


def test_a_proxy_says_that_it_is_one(desk: Desk) -> None:
    desk.enforce(Allow(PROXY, EGRESS, PEER, Lane.INBOUND_PORT))
    frame = framed(segment(PLACE, 1000, int(Lane.INBOUND_PORT)), wired.HERE, AT_ALPHA)
    assert desk.bench.leaves(frame, desk.socket_of(PROXY)).ruling.passes
    left = wired.transformed(desk.bench, "harness_packet", frame)[TCP]
    assert bytes(found(bytes(left)) or b"") == bytes(wired.FROM_BETA.option(int(PROXY), 1000, wired.TICK))


def test_any_node_may_say_so_and_is_judged_as_a_proxy_by_that(desk: Desk) -> None:
    desk.enforce(Allow(PROXY, INGRESS, PROXY, Lane.INBOUND_PORT), Allow(DB, INGRESS, WEB, 5432))
    with (
        desk.judge.receiving(socket.IPPROTO_TCP, int(Lane.INBOUND_PORT), desk.socket_of(PROXY)),
        desk.judge.receiving(socket.IPPROTO_TCP, 5432, desk.socket_of(DB)),
    ):
        called = Opening(identity=int(PROXY), port=int(Lane.INBOUND_PORT))
        outcome = desk.bench.arrives(called.frame())
        allowed(outcome)
        assert outcome.ruling.remote == PROXY
        direct = desk.bench.arrives(Opening(identity=int(PROXY), sequence=2).frame())
        desk.bench.refused_in(direct, DropReason.POLICY)
        assert direct.ruling.remote == PROXY


# What is marked as steered and has no right to be


@pytest.mark.parametrize("entry", [Entry.EGRESS, Entry.EGRESS_LOOPBACK])
def test_what_is_for_the_proxy_goes_nowhere_else(desk: Desk, entry: Entry) -> None:
    """In observe mode as well: such a socket was enforced when it was steered."""
    desk.enforce(Allow(WEB, EGRESS, PEER, 5432), Allow(WEB, EGRESS, DB, 5432), Allow(DB, INGRESS, WEB, 5432))
    with desk.judge.receiving(socket.IPPROTO_TCP, 5432, desk.socket_of(DB)):
        outcome = desk.bench.leaves(OUT, desk.socket_of(WEB, SockFlag.STEERED), entry)
    assert outcome.refusals == {(DropReason.PROXY, EGRESS, False): 1}
    assert not outcome.ruling.passes
