"""A registry of many nodes and a policy of many identities, in real maps: what they take, and how fast keys change."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from unittest.mock import patch

from figures import Figure, at_most

from bulkhead.config import Settings
from bulkhead.daemon.keys import KeyProcess
from bulkhead.daemon.wire import EPOCH_S, WireIdentity
from bulkhead.dataplane.bundle import Bundle
from bulkhead.kernel.judge import Judge
from bulkhead.kernel.libbpf import Map
from bulkhead.kernel.wire import WireMaps
from bulkhead.policy.nodes import Node, default_number, roster
from bulkhead.registry.files import FilesRegistry
from bulkhead.registry.state import State
from lab.nodes import key_file
from lab.verdict import bundle_of
from lab.wire import Party

_NODES = 500
_IDENTITIES = 5000
_MAPS = ("wire_self", "nodes", "wire_keys", "claims", "guard")
_HERE = "node-0"
_KEY_S = 20.0


def measure(judge: Judge, directory: Path) -> list[Figure]:
    """Every figure of a large trust domain, as one of its nodes knows it."""
    bundle = bundle_of(directory, _policy())
    judge.enforce(bundle, ())
    return asyncio.run(_rotations(judge, bundle, directory))


async def _rotations(judge: Judge, bundle: Bundle, directory: Path) -> list[Figure]:
    key = key_file(directory)
    settings = Settings(host=_HERE, node_key=key.path, node_key_passphrase=key.passphrase)
    keys = KeyProcess(settings)
    wire = WireIdentity(settings, WireMaps(judge.maps.fixed), keys, FilesRegistry())
    known = asyncio.Event()
    keys.on_change = known.set
    keys.start()
    try:
        await asyncio.wait_for(known.wait(), _KEY_S)
        own = _node(0, key.public)
        given = [own, *(_node(number, _public()) for number in range(1, _NODES))]
        wire.stage(bundle)
        wire.settle(bundle)
        first = await _applied(wire, given)
        memory = {name: _bytes(opened) for name, opened in _maps(judge)}
        with patch.object(time, "time", _later(time.time)):
            wire.hint()
            epoch = await _look(wire)
        all_new = await _applied(wire, [own, *(replace(node, key=_public()) for node in given[1:])])
        held = len(judge.maps.fixed("wire_keys").as_dict())
    finally:
        await keys.stop()
    return _figures(memory, first, epoch, all_new, held)


async def _applied(wire: WireIdentity, nodes: list[Node]) -> float:
    wire.set_roster(roster(nodes), State("files", True, time.time()))
    return await _look(wire)


async def _look(wire: WireIdentity) -> float:
    """Seconds until the maps are right."""
    started = time.monotonic()
    await wire.look()
    took = time.monotonic() - started
    if wire.problem or len(wire.until) != _NODES - 1:
        raise RuntimeError(f"the maps are not right: {wire.problem or f'keys of {len(wire.until)} nodes'}")
    return took


def _figures(memory: dict[str, int], first: float, epoch: float, all_new: float, held: int) -> list[Figure]:
    scale = f"{_NODES} nodes, {_IDENTITIES:,} identities, each bound to two nodes"
    parts = ", ".join(f"`{name}` {size / 1e6:.2f}" for name, size in memory.items())
    return [
        at_most(
            f"key and identity maps, {_NODES} nodes, {_IDENTITIES:,} identities",
            sum(memory.values()) / 1e6,
            "MB",
            32,
            f"what the kernel says the maps take (`memlock`), {scale}, keys of a day ahead: {parts}",
        ),
        at_most(
            f"rotation of {_NODES} nodes' keys: next epoch",
            epoch,
            "s",
            2,
            f"{scale}: keys of the epoch that has come into view derived by bulkhead-keys, written, and those of the "
            "last one taken away, every map compared",
        ),
        at_most(
            f"rotation of {_NODES} nodes' keys: every node has another one",
            all_new,
            "s",
            2,
            f"{scale}: {held:,} pairs of keys taken away, derived anew and written; the first time {first:.2f} s",
        ),
    ]


def _maps(judge: Judge) -> Iterator[tuple[str, Map]]:
    """All of them; of those that belong to a generation both, since two are there while one gives way."""
    yield from ((name, judge.maps.fixed(name)) for name in _MAPS)
    hosting = judge.maps.current("hosting")
    if hosting is None:
        raise RuntimeError("nothing is in force")
    yield from (("hosting", hosting), ("hosting of the generation before", hosting))


def _bytes(opened: Map) -> int:
    text = Path(f"/proc/self/fdinfo/{opened.fd.fileno()}").read_text()
    return int(dict(line.split(":", 1) for line in text.splitlines())["memlock"])


def _later(clock: Callable[[], float]) -> Callable[[], float]:
    return lambda: clock() + EPOCH_S


def _node(number: int, public: bytes) -> Node:
    name = f"node-{number}"
    return Node(name, default_number(name), (ip_network((10 << 24) + number),), public)


def _public() -> bytes:
    return Party("", os.urandom(32)).public


def _policy() -> str:
    """Every workload with a set of `host` globs of its own."""
    lines = ["apiVersion: bulkhead/v1alpha1", "kind: Policy", "metadata: {name: large}", "workloads:"]
    for number in range(_IDENTITIES):
        near, far = number % _NODES, (number * 7 + number // _NODES + 1) % _NODES
        lines.append(f"  w{number}: {{match: {{cgroup: /w{number}, host: [node-{near}, node-{far}]}}}}")
    return "\n".join([*lines, "allow:", "  - {name: first, from: w0, to: w1, ports: [443]}"]) + "\n"
