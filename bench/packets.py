"""What one packet costs at our hooks, by the kernel's own count, over an empty program that sees the same packets."""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import traffic
from figures import Figure, at_most, context, median, percentile, spread
from hosts import DEVICES, Pair
from meter import HookMeter, Runs, counting, empty_program, hook_meters, refused_by_policy, runs
from repository import PORT_CUT
from traffic import Session, Traffic

from bulkhead.abi import Direction
from bulkhead.kernel import libbpf
from bulkhead.kernel.libbpf import Fd

_RULES = 1000
_PORT = 7000
_PORT_REFUSED = 7150
_PORT_FORBIDDEN = 7200
_PORT_MANY = 7020
_HOLDERS = 6
"""A process may open 20,000 files on many machines, so that many processes share the connections."""
_SLICES = 20
_TRIPS = 4000
_SYNS = 1000
_BURSTS = 5
_FLOOD = 20_000
_TC_ACT_SHOT = 2
_WINDOW_SHIFT = 30
"""Events are rationed per window of 2^30 ns of the coarse clock; a burst with events needs a window of its own."""

Deltas = dict[str, list[float]]
"""By hook: nanoseconds over the empty program, one number per slice."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Both hosts' hooks, being counted."""

    traffic: Traffic
    pair: Pair
    left: dict[Direction, HookMeter]
    right: dict[Direction, HookMeter]

    def meters(self) -> list[HookMeter]:
        """All four."""
        return [*self.left.values(), *self.right.values()]


@contextmanager
def counted(program: Traffic, pair: Pair) -> Iterator[Counted]:
    """Have the kernel count, with an empty program before each of ours."""
    with (
        counting(),
        hook_meters("client", pair.left.namespace, DEVICES[0], pair.left.pins) as left,
        hook_meters("server", pair.right.namespace, DEVICES[0], pair.right.pins) as right,
    ):
        yield Counted(program, pair, left, right)


def measure(program: Traffic, pair: Pair, connections: int, rules: int) -> list[Figure]:
    """Every figure of a single packet. Leaves the pair with the policy it began with."""
    with counted(program, pair) as counts, _established(counts) as session:
        figures = [established(counts, session)]
        figures += with_many_connections(counts, session, connections)
        further, off_the_wire = further_refused(counts), first_refused(counts)
        many_rules = with_many_rules(counts, session, rules)
    pair.repository.write(_RULES)
    pair.follow(pair.repository.prepare())
    return [*figures, *many_rules, *further, *test_runs(program, pair), *off_the_wire]


@contextmanager
def _established(counts: Counted) -> Iterator[Session]:
    pair = counts.pair
    with (
        traffic.ready(counts.traffic, pair.right.place("server"), "serve-echo", pair.right.address, _PORT),
        traffic.ready(counts.traffic, pair.left.place("client"), "round-trips", pair.right.address, _PORT) as session,
    ):
        session.ask(_TRIPS)
        yield session


# Established


def established(counts: Counted, session: Session) -> Figure:
    """A packet of a conversation whose verdict stands in its socket."""
    deltas = slices(counts, [session], _SLICES)
    worst = max(deltas, key=lambda hook: median(deltas[hook]))
    each = ", ".join(f"{hook} {median(values):+.1f}" for hook, values in deltas.items())
    return at_most(
        "established TCP packet, per hook",
        median(deltas[worst]),
        "ns",
        30,
        "the costliest of four hooks: median over slices of a 1-byte ping-pong of our program's mean run time "
        "(BPF_ENABLE_STATS) less that of an empty tcx program that sees the same packets on the same hook; "
        f"{each}; {spread(deltas[worst], 'ns')} slices",
    )


def slices(counts: Counted, sessions: Sequence[Session], number: int) -> Deltas:
    """Ping-pong, `number` slices of it, on the sessions in turn."""
    deltas: Deltas = {meter.name: [] for meter in counts.meters()}
    for index in range(number):
        before = [meter.read() for meter in counts.meters()]
        sessions[index % len(sessions)].ask(_TRIPS)
        for meter, (ours, empty) in zip(counts.meters(), before, strict=True):
            deltas[meter.name].append(_over_empty(meter, ours, empty))
    return deltas


def _over_empty(meter: HookMeter, ours: Runs, empty: Runs) -> float:
    ours_now, empty_now = meter.read()
    return ours_now.since(ours).mean_ns - empty_now.since(empty).mean_ns


@dataclass(slots=True)
class Comparison:
    """The same slices under two conditions, in turn; each list holds the mean of all hooks of one slice."""

    few: list[float] = field(default_factory=list)
    many: list[float] = field(default_factory=list)

    def figure(self, name: str, condition: str) -> Figure:
        """How much more under the second, against how far slices of the first lie apart by themselves."""
        noise = max(percentile(self.few, 0.9) - percentile(self.few, 0.1), 1.0)
        return at_most(
            name,
            median(self.many) - median(self.few),
            "ns",
            round(noise, 1),
            f"median over slices, mean of all hooks, over an empty program: {condition}; "
            f"{median(self.few):.1f} ns ({spread(self.few, 'ns')}) and {median(self.many):.1f} ns "
            f"({spread(self.many, 'ns')}); the mark is the noise: slices of the first condition, p90 less p10",
        )


def hook_means(deltas: Deltas) -> list[float]:
    """Of all hooks, slice by slice."""
    return [sum(values) / len(values) for values in zip(*deltas.values(), strict=True)]


def with_many_connections(counts: Counted, session: Session, connections: int) -> list[Figure]:
    """The same packet while very many connections are open, and packets that are spread over them."""
    comparison = Comparison()
    comparison.few += hook_means(slices(counts, [session], _SLICES // 2))
    with _many(counts, connections) as holders:
        comparison.many += hook_means(slices(counts, [session], _SLICES))
        cold = hook_means(slices(counts, holders, _SLICES))
    comparison.few += hook_means(slices(counts, [session], _SLICES // 2))
    return [
        comparison.figure(
            f"established TCP packet, {connections:,} open connections over 1",
            f"one connection is used, before, while and after {connections:,} others are open",
        ),
        context(
            f"established TCP packet, each on another of {connections:,} connections",
            median(cold),
            "ns",
            "as above, on a connection picked at random for each round trip: nothing of a socket is in a cache; "
            f"{spread(cold, 'ns')} slices",
        ),
    ]


@contextmanager
def _many(counts: Counted, connections: int) -> Iterator[list[Session]]:
    program, left, right = counts.traffic, counts.pair.left, counts.pair.right
    with ExitStack() as stack:
        ports = range(_PORT_MANY, _PORT_MANY + _HOLDERS)
        for port in ports:
            server = traffic.ready(program, right.place("server"), "serve-many", right.address, port)
            stack.enter_context(server)
        each = -(-connections // _HOLDERS)
        holders = [
            stack.enter_context(traffic.start(program, left.place("client"), "many", right.address, port, each))
            for port in ports
        ]
        for holder in holders:
            holder.read()
        yield holders


def with_many_rules(counts: Counted, session: Session, rules: int) -> list[Figure]:
    """The same packet, and a refused opening, under a small and a very large policy."""
    comparison, refused = Comparison(), {}
    repository = counts.pair.repository
    for count in (10, rules, 10):
        repository.write(count)
        counts.pair.follow(repository.prepare())
        session.ask(_TRIPS)
        (comparison.few if count == 10 else comparison.many).extend(hook_means(slices(counts, [session], _SLICES)))
        refused[count] = _openings(counts, _FLOOD).mean_ns
    return [
        comparison.figure(
            f"established TCP packet, {rules:,} rules over 10", f"10, {rules:,} and again 10 rules in force"
        ),
        context(
            f"a refused SYN in a flood, {rules:,} rules over 10",
            refused[rules] - refused[10],
            "ns",
            f"{_FLOOD:,} SYNs off the wire, beyond the ration of events: {refused[10]:.0f} and {refused[rules]:.0f} ns",
        ),
    ]


# Refused


@dataclass(frozen=True, slots=True)
class _Refusals:
    """Refused openings: time over the empty program, packets that came, and what the kernel has counted of them."""

    mean_ns: float
    sent: int
    counted: int


def _openings(counts: Counted, number: int) -> _Refusals:
    """SYNs to a listener that no rule opens, each from a socket of its own."""
    left, right, meter = counts.pair.left, counts.pair.right, counts.right[Direction.INGRESS]
    with (
        right.map("refusals") as refusals,
        traffic.ready(counts.traffic, right.place("server"), "serve-echo", right.address, _PORT_REFUSED),
        traffic.ready(counts.traffic, left.place("client"), "openings", right.address, _PORT_REFUSED) as session,
    ):
        before, (ours, empty) = refused_by_policy(refusals, Direction.INGRESS), meter.read()
        sent, _ = session.ask(number)
        return _Refusals(_over_empty(meter, ours, empty), sent, refused_by_policy(refusals, Direction.INGRESS) - before)


def test_runs(program: Traffic, pair: Pair) -> list[Figure]:
    """A refused SYN by BPF_PROG_TEST_RUN: the same packet again and again, as filters are commonly compared."""
    right, packet = pair.right, _syn(pair)
    with (
        right.namespace.entered(),
        libbpf.obj_get(right.pins / "programs" / "tc_ingress") as ours,
        empty_program() as empty,
        right.map("refusals") as refusals,
        traffic.ready(program, right.place("server"), "serve-echo", right.address, _PORT_REFUSED),
    ):
        before = refused_by_policy(refusals, Direction.INGRESS)
        told = [_test_run(ours, empty, packet, _SYNS) for _ in range(_BURSTS)]
        flood = [_test_run(ours, empty, packet, _FLOOD) for _ in range(_BURSTS)]
        sent, kept = _BURSTS * (_SYNS + _FLOOD), refused_by_policy(refusals, Direction.INGRESS) - before
    return [
        at_most(
            "first denied SYN, 1,000 rules",
            median(told),
            "ns",
            250,
            "BPF_PROG_TEST_RUN at ingress, to a listener that no rule opens, over an empty program: median of "
            f"{_BURSTS} times {_SYNS} runs, each with its event ({spread(told, 'ns')}); beyond the ration of events "
            f"{median(flood):.0f} ns",
        ),
        _exactness("denied SYNs counted wrongly, test-run", sent, sent - kept),
    ]


def _test_run(ours: Fd, empty: Fd, packet: bytes, repeat: int) -> float:
    """Nanoseconds over the empty program, in a window of events of its own."""
    nothing = libbpf.prog_test_run(empty, packet, repeat=repeat).duration_ns
    _await_window()
    result = libbpf.prog_test_run(ours, packet, repeat=repeat)
    if result.retval != _TC_ACT_SHOT:
        raise RuntimeError(f"the packet is not refused, the program returns {result.retval}")
    return float(result.duration_ns - nothing)


def _syn(pair: Pair) -> bytes:
    """An opening from the client's host to the refused port, checksums left out: nobody looks at them here."""
    tcp = struct.pack("!HHIIBBHHH", 40000, _PORT_REFUSED, 1, 0, 0x50, 0x02, 65535, 0, 0)
    addresses = socket.inet_aton(pair.left.address) + socket.inet_aton(pair.right.address)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, socket.IPPROTO_TCP, 0) + addresses
    return bytes(12) + struct.pack("!H", 0x0800) + ip + tcp


def first_refused(counts: Counted) -> list[Figure]:
    """A SYN that policy refuses, off the wire, with its event and without; and a refused call."""
    bursts = []
    for _ in range(_BURSTS):
        _await_window()
        bursts.append(_openings(counts, _SYNS))
    flood = _openings(counts, _FLOOD)
    means = [one.mean_ns for one in bursts]
    return [
        context(
            "first denied SYN off the wire, 1,000 rules",
            median(means),
            "ns",
            "by BPF_ENABLE_STATS, each SYN from a new socket, so that caches are cold, over an empty program on the "
            f"same hook: median of {_BURSTS} bursts of {_SYNS}, each with its event ({spread(means, 'ns')}); in a "
            f"flood of {_FLOOD:,}, where events are rationed, {flood.mean_ns:.0f} ns",
        ),
        _exactness(
            "denied SYNs counted wrongly, off the wire",
            sum(one.sent for one in (*bursts, flood)),
            sum(abs(one.sent - one.counted) for one in (*bursts, flood)),
        ),
        _refused_call(counts),
    ]


def _exactness(name: str, sent: int, wrong: int) -> Figure:
    return at_most(name, abs(wrong), "packets", 0, f"{sent:,} packets, compared with the kernel's refusal counter")


def _await_window() -> None:
    """Wait for the next window of events to begin."""
    now_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    rest_ns = (1 << _WINDOW_SHIFT) - now_ns % (1 << _WINDOW_SHIFT)
    select.select([], [], [], rest_ns / 1e9 + 0.01)


def _refused_call(counts: Counted) -> Figure:
    """connect() that no rule allows: refused before there is a packet."""
    left = counts.pair.left
    with (
        libbpf.obj_get(left.pins / "programs" / "cgroup_connect4") as hook,
        traffic.ready(
            counts.traffic, left.place("client"), "openings", counts.pair.right.address, _PORT_FORBIDDEN
        ) as session,
    ):
        means = []
        for _ in range(_BURSTS):
            _await_window()
            before = runs(hook)
            _, refused = session.ask(_SYNS)
            if refused != _SYNS:
                raise RuntimeError(f"{_SYNS - refused} calls were not refused")
            means.append(runs(hook).since(before).mean_ns)
    return context(
        "connect() refused with EPERM, 1,000 rules",
        median(means),
        "ns",
        f"mean run time of the connect hook, clock included, each call with its event; {spread(means, 'ns')} bursts",
    )


def further_refused(counts: Counted) -> list[Figure]:
    """A packet of a conversation that policy has cut. The agent is kept from destroying the socket meanwhile."""
    left, right, meter = counts.pair.left, counts.pair.right, counts.left[Direction.EGRESS]
    means, wrong, sent = [], 0, 0
    with (
        left.map("refusals") as refusals,
        traffic.ready(counts.traffic, right.place("server"), "serve-echo", right.address, PORT_CUT),
        traffic.ready(counts.traffic, left.place("client"), "pushes", right.address, PORT_CUT) as session,
        _withdrawn(counts.pair),
        left.paused(),
    ):
        for burst in range(_BURSTS + 1):
            counted_before, (ours, empty) = refused_by_policy(refusals, Direction.EGRESS), meter.read()
            session.ask(_SYNS * 2)
            if burst:
                means.append(_over_empty(meter, ours, empty))
            arrived = meter.read()[1].since(empty).count
            wrong += abs(refused_by_policy(refusals, Direction.EGRESS) - counted_before - arrived)
            sent += arrived
    return [
        at_most(
            "further denied packet of a judged socket",
            median(means),
            "ns",
            60,
            "egress of a connection that a one-line change has cut, over an empty program: median of "
            f"{_BURSTS} bursts of about {_SYNS * 2} packets after a first one; {spread(means, 'ns')}",
        ),
        _exactness("further denied packets counted wrongly", sent, wrong),
    ]


@contextmanager
def _withdrawn(pair: Pair) -> Iterator[None]:
    """With one port taken from the client."""
    pair.repository.write(_RULES, withdraw=True)
    pair.follow(pair.repository.prepare())
    try:
        yield
    finally:
        pair.repository.write(_RULES)
        pair.follow(pair.repository.prepare())
