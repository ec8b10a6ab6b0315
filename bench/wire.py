"""What identity on the wire costs and keeps: between two hosts that speak, or do not, as they are told."""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import openings
import rosters
import traffic
from figures import Figure, at_most, context, median, percentile, spread
from hosts import Host, Pair, enforced_pair, wait_until
from meter import refused_by_policy
from packets import Comparison, counted, hook_means, slices
from traffic import Place, Traffic

from bulkhead.abi import Direction, WireCount, WireSelf
from bulkhead.kernel import libbpf
from bulkhead.kernel.judge import Judge
from bulkhead.kernel.libbpf import AttachType, Fd, Map
from lab import nodes

_RULES = 1000
_PORT = 7001
_RUNS = 120
"""Of each measure, with identity and without."""
_REQUESTS = 200
_SLICES = 20
_TRIPS = 4000
_NEWCOMERS = 20
_REUSES = 10_000
_LENT_PORT, _CLIENTS_PORT, _OTHERS_PORT = 7260, 7250, 7251
_ZERO = bytes(4)

_POLICY = f"""\
apiVersion: bulkhead/v1alpha1
kind: Policy
metadata: {{name: wire}}
workloads:
  other: {{match: {{cgroup: /other}}}}
allow:
  - {{name: by-identity, from: bench/client, to: bench/server, ports: ["7000-7149", "7000-7149/udp"]}}
  - {{name: datagrams-out, from: bench/client, to: bench/right, ports: ["7000-7149/udp"]}}
  - {{name: datagrams-in, from: bench/left, to: bench/server, ports: ["7000-7149/udp"]}}
  - {{name: clients, from: bench/client, to: bench/server, ports: [{_CLIENTS_PORT}]}}
  - {{name: others, from: other, to: bench/server, ports: [{_OTHERS_PORT}]}}
  - {{name: clients-elsewhere, from: bench/client, to: other, ports: [{_OTHERS_PORT}]}}
  - {{name: others-elsewhere, from: other, to: bench/client, ports: [{_CLIENTS_PORT}]}}
"""
"""What the repository allows by address, by identity as well; and a port of the server for each of two workloads, to
which the other one may go on other hosts, so that it is the server's host that refuses it."""


def measure(subnet: int) -> list[Figure]:
    """All figures of this part, on hosts of their own."""
    with tempfile.TemporaryDirectory(prefix="bulkhead-bench-wire-") as name:
        directory = Path(name)
        program = traffic.build(directory)
        figures = []
        with enforced_pair(directory, subnet, _RULES, _equip) as pair:
            wait_until(lambda: all(map(_speaks, pair)))
            figures += [*_newcomers(program, pair), _reuses(program, pair)]
            with _voices(pair) as voices:
                figures += [_connects(program, pair, voices), *_datagrams(program, pair, voices)]
                figures.append(_established(program, pair, voices))
        with Judge() as judge:
            for part in (openings.measure, rosters.measure):
                place = directory / part.__module__
                place.mkdir()
                figures += part(judge, place)
        return figures


# Hosts that speak


def _equip(pair: Pair) -> None:
    """A key for each node, and a record; and a third workload."""
    records = ""
    for host in pair:
        key = nodes.key_file(host.directory)
        records += nodes.record(host.name, host.address, key=key.public)
        host.configure(key.settings)
        (host.cgroup / "other").mkdir()
    (pair.repository.path / "nodes.yaml").write_text(records)
    (pair.repository.path / "wire.yaml").write_text(_POLICY)
    pair.repository.commit()


def _speaks(host: Host) -> bool:
    """Whether it says who is talking, and has keys for the other one."""
    with host.map("wire_self") as own, host.map("wire_keys") as keys:
        return _node(own) != 0 and keys.next_key(None) is not None


def _node(own: Map) -> int:
    return int(WireSelf.from_buffer_copy(own.lookup(_ZERO) or bytes(WireSelf())).node)


class _Voice:
    """Whether one host says and believes who is talking. Its agent is held still: it would put this right."""

    def __init__(self, host: Host) -> None:
        with ExitStack() as owned:
            self._program = owned.enter_context(libbpf.obj_get(host.pins / "programs" / "wire_sock_ops"))
            self._group = owned.enter_context(Fd(os.open(host.cgroup, os.O_RDONLY | os.O_DIRECTORY)))
            self._own = owned.enter_context(host.map("wire_self"))
            self._speaking = self._own.lookup(_ZERO) or b""
            self._owned = owned.pop_all()
        self._hook: Fd | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._own.update(_ZERO, self._speaking)
        self._unhook()
        self._owned.close()

    def set(self, speaks: bool) -> None:
        """Sockets that are opened from here on carry an identity, or are as they were before there was any."""
        self._unhook()
        if speaks:
            self._hook = libbpf.link_create(self._program, self._group.fileno(), AttachType.CGROUP_SOCK_OPS)
            self._own.update(_ZERO, self._speaking)
        else:
            silent = WireSelf.from_buffer_copy(self._speaking)
            silent.node = 0
            self._own.update(_ZERO, bytes(silent))

    def _unhook(self) -> None:
        if self._hook is not None:
            self._hook.close()
            self._hook = None


class _Voices:
    """Both hosts'."""

    def __init__(self, *ends: _Voice) -> None:
        self._ends = ends

    def set(self, speaks: bool) -> None:
        for end in self._ends:
            end.set(speaks)


@contextmanager
def _voices(pair: Pair) -> Iterator[_Voices]:
    """With the hook of the agents off, and one of our own in its place. They put theirs back afterwards."""
    with ExitStack() as stack:
        for host in pair:
            stack.enter_context(host.paused())
            with _agents_hook(host) as link:
                libbpf.link_detach(link)
        yield _Voices(*(stack.enter_context(_Voice(host)) for host in pair))
    wait_until(lambda: all(map(_is_hooked, pair)))


def _agents_hook(host: Host) -> Fd:
    return libbpf.obj_get(host.pins / "links" / "cgroup_sock_ops")


def _is_hooked(host: Host) -> bool:
    with _agents_hook(host) as link:
        return libbpf.link_info(link).cgroup_id != 0


# What it costs


Measured = dict[bool, list[float]]
"""With identity and without: one number per run."""
_WHERE = (
    "fast mode: p25 over runs of each run's p10, one CPU, runs in turn and in random order; without: the same hosts, "
    "policy and programs with `wire_self.node` 0 and sock_ops not attached; agents held still"
)


def _runs(once: Callable[[], float], voices: _Voices) -> Measured:
    found: Measured = {True: [], False: []}
    for _ in range(_RUNS):
        for speaks in random.sample((True, False), 2):
            voices.set(speaks)
            found[speaks].append(once())
    return found


def _difference(found: Measured) -> tuple[float, float, str]:
    """How much slower with identity, the time without, and both in words; microseconds."""
    fast = {speaks: percentile(values, 0.25) for speaks, values in found.items()}
    paired = [said - silent for said, silent in zip(found[True], found[False], strict=True)]
    words = (
        f"{fast[True]:.2f} us over {fast[False]:.2f} us, {_WHERE}; {spread(paired, 'us')} paired differences, "
        f"median {median(paired):+.2f}"
    )
    return fast[True] - fast[False], fast[False], words


def _connects(program: Traffic, pair: Pair, voices: _Voices) -> Figure:
    def once() -> float:
        return _timed(program, pair, "serve-echo", "requests")

    with _counted(pair.right, WireCount.VERIFIED) as verified:
        more, _, words = _difference(_runs(once, voices))
        _expect(verified(), _RUNS * _REQUESTS, "openings with an identity")
    name = "added to one TCP connect by identity on the wire, verified at both ends"
    return at_most(name, more, "us", 3, f"connect, one byte there and back, close: {words}")


def _datagrams(program: Traffic, pair: Pair, voices: _Voices) -> list[Figure]:
    figures = []
    for command, what in (("questions", "each from a socket of its own"), ("datagrams", "on one socket")):

        def once(command: str = command) -> float:
            return _timed(program, pair, "serve-datagrams", command)

        with _counted(pair.right, WireCount.DATAGRAMS) as verified:
            more, silent, words = _difference(_runs(once, voices))
            _expect(verified(), _RUNS, "datagrams with an identity")
        name = f"UDP request and answer with identity over without, {what}"
        figures.append(at_most(name, 100 * more / silent, "%", 10, f"1 byte, {words}"))
    return figures


def _timed(program: Traffic, pair: Pair, serve: str, command: str) -> float:
    """Microseconds, p10."""
    address, server, client = pair.right.address, pair.right.place("server"), pair.left.place("client")
    with traffic.ready(program, server, serve, address, _PORT):
        return traffic.run(program, client, command, address, _PORT, _REQUESTS)[0] / 1000


@contextmanager
def _counted(host: Host, what: WireCount) -> Iterator[Callable[[], int]]:
    """How often something has happened since the block was entered."""
    with host.map("wire_counts") as counts:

        def count() -> int:
            return counts.sum_words(counts.lookup(int(what).to_bytes(4, "little")) or b"")[0]

        before = count()
        yield lambda: count() - before


def _expect(found: int, least: int, what: str) -> None:
    if found < least:
        raise RuntimeError(f"{found} {what}, not {least}: what was measured is something else")


def _established(program: Traffic, pair: Pair, voices: _Voices) -> Figure:
    """A packet of a conversation whose ends have proven who they are, and of one that knows nothing of it."""
    comparison = Comparison()
    address, server, client = pair.right.address, pair.right.place("server"), pair.left.place("client")
    with counted(program, pair) as counts, ExitStack() as stack:
        sessions = {}
        for speaks, port in ((False, _PORT), (True, _PORT + 1)):
            voices.set(speaks)
            stack.enter_context(traffic.ready(program, server, "serve-echo", address, port))
            sessions[speaks] = stack.enter_context(traffic.ready(program, client, "round-trips", address, port))
            sessions[speaks].ask(_TRIPS)
        for _ in range(_SLICES):
            for speaks, values in ((False, comparison.few), (True, comparison.many)):
                values += hook_means(slices(counts, [sessions[speaks]], 1))
    return comparison.figure(
        "established TCP packet with identity over without",
        "two connections between the same processes' hosts in turn, the second opened with an identity on the wire",
    )


# What it keeps


def _newcomers(program: Traffic, pair: Pair) -> list[Figure]:
    """A workload that has just been started on one host, called from the other one at once."""
    took, syns = [], []
    generations = [host.generation() for host in pair]
    for number in range(_NEWCOMERS):
        group = pair.right.cgroup / "server" / f"new-{number}"
        before, started = _syns(pair.left), time.monotonic()
        group.mkdir()
        with traffic.ready(program, Place(pair.right.namespace, group), "serve-echo", pair.right.address, _PORT):
            wait_until(partial(_is_identified, pair.right, group))
            traffic.run(program, pair.left.place("client"), "requests", pair.right.address, _PORT, 1)
            took.append(1000 * (time.monotonic() - started))
        syns.append(_syns(pair.left) - before)
        wait_until(partial(_is_empty, group))
        group.rmdir()
    if generations != [host.generation() for host in pair]:
        raise RuntimeError("something was put in force meanwhile")
    method = (
        f"{_NEWCOMERS} times, a control group is made on one host, a server started in it, and called from the other "
        "as soon as it listens and its own host has identified it; nothing is told to the "
        "other host, whose generation stays as it is"
    )
    return [
        at_most("SYNs to a new workload on another host until it answers", max(syns), "SYNs", 1, f"worst of {method}"),
        context(
            "new workload, from its control group to its first answer on another host",
            median(took),
            "ms",
            f"median of {method}; the starts of both processes included; {spread(took, 'ms')}",
        ),
    ]


def _is_identified(host: Host, group: Path) -> bool:
    with host.current("cgroups") as cgroups:
        return cgroups.lookup(group.stat().st_ino.to_bytes(8, "little")) is not None


def _is_empty(group: Path) -> bool:
    return "populated 0" in (group / "cgroup.events").read_text()


def _syns(host: Host) -> int:
    """Openings that have left, those that were sent again included."""
    with host.namespace.entered():
        lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("Tcp:"))
    counts = dict(zip(names[1:], map(int, values[1:]), strict=True))
    return counts["ActiveOpens"] + counts["RetransSegs"]


def _reuses(program: Traffic, pair: Pair) -> Figure:
    """Two workloads of one host take turns at one address and port."""
    address, places = pair.right.address, (pair.left.place("client"), pair.left.place("other"))
    ports = (_CLIENTS_PORT, _OTHERS_PORT)
    wrong = 0
    with ExitStack() as stack:
        for port in ports:
            stack.enter_context(traffic.ready(program, pair.right.place("server"), "serve-echo", address, port))
        ends = [
            stack.enter_context(traffic.ready(program, place, "borrowing", address, port, _LENT_PORT))
            for place, port in zip(places, ports, strict=True)
        ]
        refusals = stack.enter_context(pair.right.map("refusals"))
        before = refused_by_policy(refusals, Direction.INGRESS)
        for turn in range(_REUSES):
            own, other = ends[turn % 2].ask(ports[1 - turn % 2])
            wrong += own != 0 or other == 0
        refused = refused_by_policy(refusals, Direction.INGRESS) - before
    return at_most(
        "address and port reused by another workload, taken for the former one",
        wrong + abs(refused - _REUSES),
        "times",
        0,
        f"{_REUSES:,} times in turn, two workloads of one host from one source port: each reaches its own port of the "
        f"server and not the other's; {refused:,} openings refused by the server's host",
    )
