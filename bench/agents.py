"""What the agent takes and how fast it is: memory, starts, commits, control groups and executables that appear."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import traffic
from figures import Figure, at_most, context, median, percentile, spread
from hosts import Host, Pair, generation_of, wait_until
from traffic import Place, Traffic

from bulkhead.abi import Direction, DropReason
from bulkhead.identity.processes import executable_at
from bulkhead.kernel.attestation import kernel_key
from bulkhead.kernel.libbpf import Map

RULES = 1000
_MANY_RULES = 10_000
_COLD_STARTS = 5
_WARM_STARTS = 7
_CHANGES = 15
_BIG_CHANGES = 3
_CGROUPS = 300
_EXECUTABLES = 150
_UNIDENTIFIED_SYNS = 200
_PORT = 7000
_SEEN_S = 10.0


def measure(program: Traffic, pair: Pair) -> list[Figure]:
    """Every figure of one agent; the other one does not run meanwhile."""
    pair.right.stop()
    figures = [*_starts(pair.left), _one_line(pair.left), *_memory(pair.left)]
    figures += [*_appearing(pair.left), _nothing_passes(program, pair), _many_rules(pair.left)]
    pair.right.start()
    return figures


def _starts(host: Host) -> list[Figure]:
    cold, kept = [], []
    for _ in range(_COLD_STARTS):
        host.forget()
        host.forget_compiled()
        cold.append(host.start())
        host.forget()
        kept.append(host.start())
    warm = []
    for _ in range(_WARM_STARTS):
        host.stop()
        warm.append(host.start())
    how = "from starting `bulkhead agent` to its READY=1: policy in force, every hook attached; median of starts with"
    return [
        at_most("start to enforcing, cold compile", median(cold), "s", 1.5, f"{how} no pins; {spread(cold, 's')}"),
        at_most(
            "start to enforcing, compiled before",
            median(kept),
            "s",
            1.5,
            f"{how} no pins, as after a reboot; {spread(kept, 's')}",
        ),
        at_most("start to enforcing, pins present", median(warm), "s", 0.4, f"{how} pins; {spread(warm, 's')}"),
    ]


def _memory(host: Host) -> list[Figure]:
    if host.agent is None:
        raise RuntimeError("no agent runs")
    pid = host.agent.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    method = f"VmRSS after {_CHANGES} commits"
    return [
        at_most("agent resident memory, 1,000 rules", _resident_mb(pid), "MB", 60, f"{method} of `bulkhead agent`"),
        context(
            "policy process resident memory, 1,000 rules",
            sum(_resident_mb(int(child)) for child in children),
            "MB",
            f"{method} of its child that reads git and compiles; pages that both map count twice",
        ),
    ]


def _resident_mb(pid: int) -> float:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024 / 1e6


# Commits


def _publish(host: Host, commit: str) -> float:
    """Seconds from before the reference moves to the new generation in the control word."""
    with host.map("control") as control:
        before = generation_of(control)
        started = time.monotonic()
        host.repository.publish(commit)
        return wait_until(lambda: generation_of(control) != before) - started


def _one_line(host: Host) -> Figure:
    times_ms = []
    for change in range(_CHANGES):
        host.repository.write(RULES, odd_port=20000 + change)
        times_ms.append(1000 * _publish(host, host.repository.prepare()))
    return at_most(
        "one-line change in 1,000 rules, commit to enforced",
        median(times_ms),
        "ms",
        300,
        "from before `git update-ref` moves the branch to the new generation in the pinned control word, which is "
        f"looked at every 0.5 ms; {spread(times_ms, 'ms')}, worst {max(times_ms):.0f}",
    )


def _many_rules(host: Host) -> Figure:
    times = []
    for change in range(_BIG_CHANGES):
        host.repository.write(_MANY_RULES, first_port=11000 + 1000 * change)
        times.append(_publish(host, host.repository.prepare()))
        host.repository.write(RULES)
        _publish(host, host.repository.prepare())
    return at_most(
        "10,000 rules, commit to enforced",
        median(times),
        "s",
        3,
        f"as the one-line change, every line another; {spread(times, 's')}",
    )


# Attestation


def _appearing(host: Host) -> list[Figure]:
    cgroups_ms = [1000 * took for took in _new_cgroups(host)]
    executables_ms = [1000 * took for took in _new_executables(host)]
    return [
        at_most(
            name,
            percentile(times_ms, 0.99),
            "ms",
            10,
            f"{method}; median {median(times_ms):.2f}, worst {max(times_ms):.2f}",
        )
        for name, times_ms, method in (
            (
                "new control group to identified, p99",
                cgroups_ms,
                f"{_CGROUPS} times from before mkdir to its entry in the map",
            ),
            (
                "new process to identified, p99",
                executables_ms,
                f"{_EXECUTABLES} times from before a program that never ran is started to its entry in the map",
            ),
        )
    ]


def _new_cgroups(host: Host) -> list[float]:
    with host.current("cgroups") as cgroups:
        return [_new_cgroup(host, cgroups, index) for index in range(_CGROUPS)]


def _new_cgroup(host: Host, cgroups: Map, index: int) -> float:
    path = host.cgroup / "client" / f"new-{index}"
    started = time.monotonic()
    path.mkdir()
    key = path.stat().st_ino.to_bytes(8, "little")
    took = _spin(lambda: cgroups.lookup(key) is not None) - started
    path.rmdir()
    return took


def _new_executables(host: Host) -> list[float]:
    with host.map("executables") as executables:
        return [_new_executable(host.directory / f"new-{index}", executables) for index in range(_EXECUTABLES)]


def _new_executable(path: Path, executables: Map) -> float:
    shutil.copy("/bin/true", path)
    found = executable_at(str(path))
    if found is None or found.key is None:
        raise RuntimeError(f"`{path}` cannot be told apart from other executables")
    key = kernel_key(found.key)
    started = time.monotonic()
    process = subprocess.Popen([str(path)])
    took = _spin(lambda: executables.lookup(key) is not None) - started
    process.wait()
    path.unlink()
    return took


def _spin(is_so: Callable[[], bool]) -> float:
    """As `wait_until`, without a pause between looks: the times are of the order of one."""
    deadline = time.monotonic() + _SEEN_S
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError("what has appeared is not identified")
    return time.monotonic()


def _nothing_passes(program: Traffic, pair: Pair) -> Figure:
    """SYNs out of a control group that its agent cannot have seen yet, to where its workload may go."""
    left, right = pair.left, pair.right
    fresh = left.cgroup / "client" / "unseen"
    index = (DropReason.UNATTESTED * 4 + Direction.EGRESS * 2).to_bytes(4, "little")
    with left.map("refusals") as refusals:

        def refused() -> int:
            return refusals.sum_words(refusals.lookup(index) or b"")[0]

        before = refused()
        with left.paused():
            fresh.mkdir()
            sent = _openings(program, Place(left.namespace, fresh), right.address)
        kept = refused() - before
        with left.current("cgroups") as cgroups:
            key = fresh.stat().st_ino.to_bytes(8, "little")
            _spin(lambda: cgroups.lookup(key) is not None)
        _openings(program, Place(left.namespace, fresh), right.address)
        refused_later = refused() - before - kept
    fresh.rmdir()
    return at_most(
        "packets passing before identification",
        sent - kept + refused_later,
        "packets",
        0,
        f"{sent} SYNs of a new control group, its agent stopped: {kept} refused as unattested; as many again when it "
        f"goes on: {refused_later} refused",
    )


def _openings(program: Traffic, place: Place, address: str) -> int:
    with traffic.ready(program, place, "openings", address, _PORT) as session:
        return session.ask(_UNIDENTIFIED_SYNS)[0]
