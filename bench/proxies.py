"""What mutual TLS through the nodes' proxies costs, and how soon it follows: SVIDs, policy, memory."""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import meshes
import traffic
import web
from figures import Figure, at_least, at_most, context, median, percentile, spread
from hosts import Host, Pair, wait_until
from traffic import Session, Traffic

from bulkhead.abi import MeshSelf

_CONNECTIONS = 32
_LOAD_MS, _LOADS = 300, 12
_TRIPS_MS, _TRIPS = 100, 20
_RUNS, _REQUESTS = 60, 200
_FETCHES = 1000
_CHANGES = 8
_RING_CALLS = 40
_PRESENTED_S = 180.0
"""For an Envoy to fetch hundreds of SVIDs."""
_ANY_CPU = -1
_ZERO = bytes(4)
_RATE, _P50 = "requests/s", "us"

_WAYS = {
    "direct": "in plaintext without a proxy",
    "tunnelled": "HBONE with L4 authorisation",
    "judged": "HBONE with L7 authorisation",
    "relayed": "two plain Envoys",
}
_OF_ONE_POLICY = ("direct", "tunnelled", "judged")
_FETCHING = """
import sys, time
sys.modules["OpenSSL"] = None  # the client's dependency tries a distribution's old one
from spiffe import WorkloadApiClient
with WorkloadApiClient(sys.argv[1]) as api:
    for _ in range(int(sys.argv[2])):
        begun = time.monotonic_ns()
        api.fetch_x509_svid()
        print(time.monotonic_ns() - begun)
"""


@dataclass(frozen=True, slots=True)
class _Course:
    """Who asks whom: the client on the left, the web server on the right, over each way that is compared."""

    asking: Traffic
    pair: Pair
    server: list[int]
    """The web server's processes."""
    relayed: web.Relayed

    @contextmanager
    def sessions(self, connections: int, cpu: int, *names: str) -> Iterator[dict[str, Session]]:
        """A client for each of those ways, all ready and none asking."""
        program, client, there = replace(self.asking, cpu=cpu), self.pair.left.place("client"), self.pair.right.address
        ways = {
            "direct": (client, "kept", there, meshes.PLAIN),
            "tunnelled": (client, "kept", there, meshes.TUNNELLED),
            "judged": (client, "kept", there, meshes.JUDGED),
            "relayed": (self.relayed.client, "kept", self.relayed.address, self.relayed.port),
        }
        with ExitStack() as stack:
            yield {name: stack.enter_context(traffic.ready(program, *ways[name], connections)) for name in names}


@dataclass(frozen=True, slots=True)
class _Answers:
    """What came of asking for a while."""

    answered: int
    failed: int
    took_ns: int
    median_ns: int
    late_ns: int
    """99th percentile."""

    @property
    def per_second(self) -> float:
        return self.answered * 1e9 / self.took_ns


def _asked(session: Session, milliseconds: int) -> _Answers:
    return _Answers(*session.ask(milliseconds))


def measure(subnet: int) -> list[Figure]:
    """All figures of this part, on hosts of their own; takes four subnets' numbers from `subnet` on."""
    with tempfile.TemporaryDirectory(prefix="bulkhead-bench-mesh-") as name:
        directory = Path(name)
        echoing, asking = traffic.build(directory), traffic.build(directory, "http")
        with meshes.meshed_pair(directory, subnet) as pair:
            with _course(directory, subnet + 2, asking, pair) as course:
                figures = [*_throughput(course), *_latency(course), *_fetches(pair), _withdrawal(course)]
            figures += _untouched(echoing, pair)
            return figures + _many(directory, echoing, asking, pair)


@contextmanager
def _course(directory: Path, subnet: int, asking: Traffic, pair: Pair) -> Iterator[_Course]:
    with _server(pair, directory / "nginx") as server, web.relayed(directory / "relayed", subnet) as relayed:
        yield _Course(asking, pair, server, relayed)


def _server(pair: Pair, directory: Path) -> AbstractContextManager[list[int]]:
    """nginx on the right, as the workload that is called; its processes."""
    ports = (meshes.TUNNELLED, meshes.JUDGED, meshes.PLAIN)
    return web.web_server(pair.right.place("server"), directory, pair.right.address, ports)


# What a request costs


def _throughput(course: _Course) -> list[Figure]:
    with course.sessions(_CONNECTIONS, _ANY_CPU, *_WAYS) as sessions:
        found = _compared(sessions, lambda session: _checked(_asked(session, _LOAD_MS)).per_second, _LOADS)
    ratios = [ours / theirs for ours, theirs in zip(found["tunnelled"], found["relayed"], strict=True)]
    how = (
        f"nginx asked for one line on {_CONNECTIONS} kept connections, {_LOAD_MS} ms at a time, ways in turn and in "
        f"random order, {_LOADS} times, on all CPUs; median"
    )
    figures = [
        at_least(
            f"HTTP requests/s, {_CONNECTIONS} connections, HBONE with L4 authorisation over two plain Envoys",
            median(ratios),
            "x",
            1.2,
            f"{how} of paired ratios, {spread(ratios, 'x')}; the plain Envoys: the same binary and number of threads, "
            "TCP carried without TLS, between two hosts without Bulkhead",
        )
    ]
    for name, rates in found.items():
        figures.append(
            context(
                f"HTTP requests/s, {_CONNECTIONS} connections, {_WAYS[name]}",
                median(rates),
                _RATE,
                f"{how}; {spread(rates, _RATE)}",
            )
        )
    return figures


def _latency(course: _Course) -> list[Figure]:
    """One connection, and everything it passes through on one CPU."""
    processes = [*course.server, *map(meshes.proxy_pid, course.pair)]
    with (
        web.pinned(processes, course.asking.cpu),
        course.sessions(1, course.asking.cpu, *_OF_ONE_POLICY) as sessions,
    ):
        found = _compared(sessions, lambda session: _checked(_asked(session, _TRIPS_MS)).median_ns / 1000, _TRIPS)
    added = [ours - bare for ours, bare in zip(found["tunnelled"], found["direct"], strict=True)]
    ratios = [judged / ours for judged, ours in zip(found["judged"], found["tunnelled"], strict=True)]
    how = (
        f"one request after the other on one kept connection, {_TRIPS_MS} ms at a time, ways in turn and in random "
        f"order, {_TRIPS} times; client, both proxies and nginx on one CPU; median of paired"
    )
    return [
        at_most(
            "p50 added to an HTTP request by both proxies, one connection",
            median(added),
            _P50,
            130,
            f"{how} differences of p50 between HBONE with L4 authorisation and plaintext (`mtls: off`) on the same "
            f"hosts, {spread(added, _P50)}",
        ),
        at_most(
            "p50 of an HTTP request, L7 authorisation over L4, one connection",
            median(ratios),
            "x",
            2.5,
            f"{how} ratios, {spread(ratios, 'x')}; L7: method and path by Envoy's RBAC",
        ),
        *(
            context(
                f"p50 of an HTTP request, one connection, {_WAYS[name]}",
                median(found[name]),
                _P50,
                f"{how.removesuffix(' of paired')}; {spread(found[name], _P50)}",
            )
            for name in _OF_ONE_POLICY
        ),
    ]


def _compared(sessions: dict[str, Session], once: Callable[[Session], float], times: int) -> dict[str, list[float]]:
    """Every way in turn, after each has been gone once."""
    for session in sessions.values():
        wait_until(partial(_answers, session))
    found: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(times):
        for name in random.sample(list(sessions), len(sessions)):
            found[name].append(once(sessions[name]))
    return found


def _answers(session: Session) -> bool:
    said = _asked(session, _TRIPS_MS)
    return said.answered > 0 and said.failed == 0


def _checked(said: _Answers) -> _Answers:
    if said.failed or not said.answered:
        raise RuntimeError(f"{said.failed} requests failed, {said.answered} did not")
    return said


# What policy leaves alone


def _untouched(program: Traffic, pair: Pair) -> list[Figure]:
    """Conversations that are none of the proxies': while the kernel steers others into them, and while it does not."""
    taken = [meshes.conversations_taken(host) for host in pair]
    ways = {
        "in plaintext to another host": (pair.left, meshes.PLAIN, "a rule that says `mtls: off`"),
        "on one host": (pair.right, meshes.TUNNELLED, "a rule that asks for mutual TLS"),
    }
    figures = []
    with _steering(pair) as steer:
        for words, (caller, port, rule) in ways.items():
            found = _with_and_without(partial(_connects, program, caller, pair.right, port), steer)
            paired = [100 * (ours / bare - 1) for ours, bare in zip(found[True], found[False], strict=True)]
            fast = {wanted: percentile(times, 0.25) for wanted, times in found.items()}
            figures.append(
                at_most(
                    f"connect-request-close {words}, proxies wanted over not wanted",
                    100 * (fast[True] / fast[False] - 1),
                    "%",
                    3,
                    f"{fast[True]:.2f} us over {fast[False]:.2f} us, fast mode: p25 over {_RUNS} runs of each run's "
                    f"p10 of {_REQUESTS}, one CPU, in turn and in random order; under {rule}; not wanted: `mesh_self` "
                    f"0, agents held still; noise: {spread(paired, '%')} paired differences",
                )
            )
    went = [meshes.conversations_taken(host) for host in pair]
    if went != taken:
        raise RuntimeError("what is to go past the proxies went through them")
    return figures


def _with_and_without(once: Callable[[], float], steer: Callable[[bool], None]) -> dict[bool, list[float]]:
    found: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(_RUNS):
        for wanted in random.sample((True, False), 2):
            steer(wanted)
            found[wanted].append(once())
    return found


def _connects(program: Traffic, caller: Host, called: Host, port: int) -> float:
    """Microseconds, p10."""
    with traffic.ready(program, called.place("server"), "serve-echo", called.address, port):
        return traffic.run(program, caller.place("client"), "requests", called.address, port, _REQUESTS)[0] / 1000


@contextmanager
def _steering(pair: Pair) -> Iterator[Callable[[bool], None]]:
    """What has both kernels steer, or steer nothing, as before any policy asked for a proxy. The agents, which would
    put this right, are held still."""
    with ExitStack() as stack:
        for host in pair:
            stack.enter_context(host.paused())
        maps = [stack.enter_context(host.map("mesh_self")) for host in pair]
        wanted = [own.lookup(_ZERO) or bytes(MeshSelf()) for own in maps]

        def steer(is_wanted: bool) -> None:
            for own, value in zip(maps, wanted, strict=True):
                own.update(_ZERO, value if is_wanted else bytes(MeshSelf()))

        stack.callback(steer, True)
        yield steer


# How soon it follows


def _fetches(pair: Pair) -> list[Figure]:
    """By the public client, as a process of a workload."""
    socket = f"unix://{pair.left.directory}/run/workload.sock"
    took = [
        int(line) / 1e6
        for line in web.said(pair.left.place("client"), sys.executable, "-c", _FETCHING, socket, str(_FETCHES))
    ]
    how = f"{_FETCHES:,} calls of FetchX509SVID, one after the other, by the public client `spiffe`, attested each time"
    return [
        at_most("SVID fetch from the Workload API, p99", percentile(took, 0.99), "ms", 20, how),
        context("SVID fetch from the Workload API, p50", median(took), "ms", f"{how}; {spread(took, 'ms')}"),
    ]


def _withdrawal(course: _Course) -> Figure:
    """A path is withdrawn while a client asks for it, again and again."""
    pair, took = course.pair, []
    client, there = pair.left.place("client"), pair.right.address
    with (
        traffic.ready(course.asking, client, "kept", there, meshes.JUDGED, 1) as session,
        ThreadPoolExecutor(1) as pool,
    ):
        session.ask(-200)
        for _ in range(_CHANGES):
            refused = pool.submit(session.ask, -403)
            meshes.allow(pair, meshes.WITHDRAWN)
            pair.repository.commit()
            committed = time.monotonic()
            took.append((refused.result()[0] / 1e9 - committed) * 1000)
            allowed = pool.submit(session.ask, -200)
            meshes.allow(pair, meshes.ALLOWED)
            pair.repository.commit()
            allowed.result()
    return at_most(
        "policy change to the first request denied on a live connection",
        max(took),
        "ms",
        500,
        f"from the end of `git commit` to the first 403, one connection asking all the time; worst of {_CHANGES}; "
        f"{spread(took, 'ms')}",
    )


# Many identities


def _many(directory: Path, echoing: Traffic, asking: Traffic, pair: Pair) -> list[Figure]:
    """500 workloads on each host, each with a lane to the next, and a chain for the one before."""
    meshes.add_ring(pair)
    meshes.follow(pair)
    for host in pair:
        wait_until(lambda host=host: len(meshes.serial_numbers(host)) >= meshes.IDENTITIES, _PRESENTED_S)
    with _server(pair, directory / "nginx-many"):
        rotation = _rotation(echoing, asking, pair)
    return [*rotation, _memory(pair)]


def _rotation(echoing: Traffic, asking: Traffic, pair: Pair) -> list[Figure]:
    client, there = pair.left.place("client"), pair.right.address
    loads = [("kept", _CONNECTIONS), ("fresh", 1)]
    program = replace(asking, cpu=_ANY_CPU)
    over = threading.Event()
    counted: Counter[str] = Counter()
    with ExitStack() as stack:
        sessions = [
            stack.enter_context(traffic.ready(program, client, kind, there, meshes.TUNNELLED, connections))
            for kind, connections in loads
        ]
        for session in sessions:
            wait_until(partial(_answers, session))
        for at in range(_RING_CALLS):
            stack.enter_context(_ring_server(echoing, pair, at))
        pool = stack.enter_context(ThreadPoolExecutor(len(loads) + 1))
        stack.callback(over.set)
        before = [meshes.serial_numbers(host) for host in pair]
        asked = [pool.submit(_ask_until, over, session) for session in sessions]
        called: Future[int] = pool.submit(_ring_calls, replace(echoing, cpu=_ANY_CPU), pair)
        started = time.monotonic()
        for host in pair:
            os.kill(meshes.status(host)["svids"]["process"], signal.SIGKILL)
        for host, old in zip(pair, before, strict=True):
            wait_until(partial(_is_rotated, host, old), _PRESENTED_S)
        took = time.monotonic() - started
        counted["newcomers"] = called.result()
        over.set()
        for future in asked:
            answered, failed = future.result()
            counted["answered"] += answered
            counted["failed"] += failed
    how = (
        f"`bulkhead-svids` of both nodes is killed, and the one that follows issues every SVID anew under a new "
        f"intermediate; until both Envoys present new ones for all {meshes.IDENTITIES} identities"
    )
    return [
        at_most(
            f"requests that fail while every SVID is rotated, {meshes.IDENTITIES} identities",
            counted["failed"] + counted["newcomers"],
            "requests",
            0,
            f"of {counted['answered']:,} on {_CONNECTIONS} kept connections and on one fresh each, and of "
            f"{_RING_CALLS} calls between other workloads, each with a handshake of its own; {how}",
        ),
        context(f"rotation of every SVID under load, {meshes.IDENTITIES} identities", took, "s", how),
    ]


def _ring_server(program: Traffic, pair: Pair, at: int) -> AbstractContextManager[Session]:
    """The one that the workload of that number may call."""
    for host, group in ((pair.left, at), (pair.right, at + 1)):
        (host.cgroup / meshes.ring_group(group)).mkdir(parents=True, exist_ok=True)
    place = pair.right.place(meshes.ring_group(at + 1))
    return traffic.ready(program, place, "serve-echo", pair.right.address, meshes.FIRST_RING_PORT + at)


def _ring_calls(program: Traffic, pair: Pair) -> int:
    """Each calls the next; how many could not."""
    failed = 0
    for at in range(_RING_CALLS):
        place, port = pair.left.place(meshes.ring_group(at)), meshes.FIRST_RING_PORT + at
        try:
            traffic.run(program, place, "requests", pair.right.address, port, 1)
        except RuntimeError:
            failed += 1
    return failed


def _ask_until(over: threading.Event, session: Session) -> tuple[int, int]:
    """Requests that were answered, and that were not."""
    answered = failed = 0
    while not over.is_set():
        said = _asked(session, _TRIPS_MS)
        answered, failed = answered + said.answered, failed + said.failed
    return answered, failed


def _is_rotated(host: Host, before: dict[str, set[str]]) -> bool:
    now = meshes.serial_numbers(host)
    return now.keys() >= before.keys() and not any(now[name] & before[name] for name in before)


def _memory(pair: Pair) -> Figure:
    resident = [_resident_mb(meshes.proxy_pid(host)) for host in pair]
    return at_most(
        f"memory of a node's Envoy, {meshes.IDENTITIES} identities",
        max(resident),
        "MB",
        150,
        f"VmRSS after all the traffic above and a rotation; {meshes.IDENTITIES} workloads on the host, each with an "
        f"SVID, a lane of its own and a chain of its own; the larger of both nodes",
    )


def _resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024
