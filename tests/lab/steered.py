"""A node of which the kernel is real and the rest is written by hand: the programs, a policy of single entries, and
processes in control groups. What stands in for the proxy is a puppet in the proxy's group; no Envoy is needed.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path

from bulkhead.abi import (
    CgroupEntry,
    ControlFlag,
    Direction,
    Identity,
    Mode,
    NodeFlag,
    PolicyFlag,
    VerdictEvent,
    WireKeyId,
    WireSelf,
)
from bulkhead.abi import PolicyEntry as KernelEntry
from bulkhead.abi import PolicyKey as KernelKey
from bulkhead.daemon.counters import Counters
from bulkhead.kernel.attach import Attachments, Programs
from bulkhead.kernel.clock import monotonic_offset_s
from bulkhead.kernel.devices import list_devices
from bulkhead.kernel.maps import GenerationTables, KernelMaps, Table
from bulkhead.kernel.ringbuf import RingBuffer
from bulkhead.kernel.steering import Steering
from bulkhead.kernel.wire import node_entry, node_key
from lab import puppet
from lab.cgroup import cgroup_subtree, enter
from lab.host import CACHE
from lab.netns import Wire, wire
from lab.puppet import Puppet

TCP = socket.IPPROTO_TCP
EXACT_BITS = 96
THIS_NODE, OTHER_NODE, OLD_NODE = 1, 2, 3
WIRE_EPOCH_S = 4096

WEB, DB, OTHER, WATCHED = 1001, 1002, 1003, 1004
GROUPS = {
    "web": (WEB, Mode.ENFORCE),
    "db": (DB, Mode.ENFORCE),
    "other": (OTHER, Mode.ENFORCE),
    "watched": (WATCHED, Mode.OBSERVE),
    "proxy": (int(Identity.PROXY), Mode.ENFORCE),
    "plain": (int(Identity.HOST), Mode.OBSERVE),
}
"""Identity and mode of what runs in each control group of the node."""

Refused = Counter[tuple[str, str]]
"""How often, by reason and direction."""


@dataclass(frozen=True, slots=True)
class Allow:
    """One entry of policy. Its rule has the number of its place, from 1."""

    local: int
    direction: Direction
    remote: int
    port: int
    flags: int = 0


def mtls(lane: int = 0) -> int:
    """What an entry asks for that goes through the proxies between nodes."""
    return int(PolicyFlag.MTLS) | lane


def requests(lane: int = 0) -> int:
    """What an entry asks for that is judged by request."""
    return int(PolicyFlag.MTLS) | int(PolicyFlag.REQUESTS) | lane


def policy_table(allows: Iterable[Allow]) -> Table:
    """Entries as the kernel holds them."""
    entries = {}
    for rule, one in enumerate(allows, 1):
        key = KernelKey(
            prefix_bits=EXACT_BITS,
            local_identity=one.local,
            remote_identity=one.remote,
            direction=one.direction,
            protocol=TCP,
            port=one.port,
        )
        entries[bytes(key)] = bytes(KernelEntry(rule_id=rule, hit_slot=rule, flags=one.flags))
    return Table.of(entries)


@dataclass
class Node:
    """One node, with `wire.right` as the rest of the world."""

    pins: Path
    maps: KernelMaps
    attachments: Attachments
    programs: Programs
    steering: Steering
    cgroup: Path
    wire: Wire
    _events: RingBuffer
    _puppets: dict[str, Puppet] = field(default_factory=dict)

    def enforce(self, *allows: Allow) -> None:
        """Put these in force, and nothing else."""
        cgroups = {
            (self.cgroup / group).stat().st_ino.to_bytes(8, "little"): bytes(CgroupEntry(identity=number, mode=mode))
            for group, (number, mode) in GROUPS.items()
        }
        empty = Table()
        tables = GenerationTables(
            policy_table(allows), empty, empty, Table.of(cgroups), empty, empty, ControlFlag.ANY_ENFORCE
        )
        self.maps.switch(tables)

    def puppet(self, group: str) -> Puppet:
        """The lasting process of a control group."""
        if group not in self._puppets:
            self._puppets[group] = self._start(group)
        return self._puppets[group]

    @contextmanager
    def another(self, group: str) -> Iterator[Puppet]:
        """A process for one test."""
        made = self._start(group)
        try:
            yield made
        finally:
            made.end()

    def _start(self, group: str) -> Puppet:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = ["sh", "-c", 'read go; exec "$@"', "sh", sys.executable, puppet.__file__]
        with self.wire.left.entered():
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
            )
        enter(self.cgroup / group, process.pid)
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        return Puppet(process)

    def end(self) -> None:
        """End every process."""
        for one in self._puppets.values():
            one.end()

    @contextmanager
    def refusing(self) -> Iterator[Refused]:
        """What was refused in the block; filled in when it is left. What only would have been refused is not in it."""
        before = self._refused()
        found: Refused = Counter()
        yield found
        found.update(self._refused() - before)

    def _refused(self) -> Refused:
        counted = Counters(self.maps).refusals()
        return Counter({(r.reason, str(r.direction)): r.total for r in counted if r.verdict == "deny"})

    def hits(self, rule: int) -> int:
        """How many openings a rule has allowed."""
        table = self.maps.fixed("hits")
        return table.sum_words(table.lookup(rule.to_bytes(4, "little")) or bytes(8))[0]

    def events(self) -> list[VerdictEvent]:
        """What was reported since the last time."""
        return [VerdictEvent.from_buffer_copy(bytes(record)) for record in self._events.drain()]


def _speak(maps: KernelMaps, nodes: Mapping[str, tuple[int, int]]) -> None:
    """Say who this node is, and who the others are; keys are of zeroes, as nobody at the other end checks them."""
    own = WireSelf(stamp_key=(1, 2), clock_offset_s=monotonic_offset_s(), node=THIS_NODE)
    maps.fixed("wire_self").update(bytes(4), bytes(own))
    for prefix, (number, flags) in nodes.items():
        maps.fixed("nodes").update(node_key(ip_network(prefix)), node_entry(number, flags))
    epoch = int(time.time()) // WIRE_EPOCH_S
    for at in (epoch - 1, epoch, epoch + 1):
        maps.fixed("wire_keys").update(bytes(WireKeyId(node=OTHER_NODE, epoch=at)), struct.pack("=4Q", 1, 2, 3, 4))


@contextmanager
def steered_node(pins: Path) -> Iterator[Node]:
    """A node at 10.77.1.1, with another at 10.77.1.2 and one without an agent at 10.77.1.3; nothing is left of it."""
    loader = [sys.executable, "-m", "bulkhead.kernel.load", str(pins), str(CACHE)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run(loader, check=True, env=environment)
    with cgroup_subtree() as cgroup, wire() as joined, KernelMaps(pins) as maps:
        for group in GROUPS:
            (cgroup / group).mkdir()
        joined.right.ip(f"addr add 10.77.1.3/24 dev {joined.device}")
        nodes = {
            f"{joined.left_address4}/32": (THIS_NODE, 0),
            f"{joined.right_address4}/32": (OTHER_NODE, 0),
            f"{joined.right_address6}/128": (OTHER_NODE, 0),
            "10.77.1.3/32": (OLD_NODE, int(NodeFlag.LEGACY)),
        }
        _speak(maps, nodes)
        programs = Programs.open(pins)
        try:
            with joined.left.entered(), Attachments(pins, programs, cgroup) as attachments:
                events = RingBuffer(maps.fixed("verdict_events"))
                node = Node(pins, maps, attachments, programs, Steering(maps, attachments), cgroup, joined, events)
                node.enforce()
                attachments.attach_all(list_devices())
                node.steering.attach_proxy(cgroup / "proxy")
                node.steering.want(True)
                try:
                    yield node
                finally:
                    node.end()
                    node.steering.close()
                    attachments.detach_all()
        finally:
            programs.close()
