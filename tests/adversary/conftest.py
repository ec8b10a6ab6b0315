"""The arena: one enforced host with a real agent, and a peer on a wire that nobody enforces.

Whoever attacks from the host is a puppet in a control group. The peer's sockets belong to the test process: nothing
judges what it sends, and it can send anything.
"""

from __future__ import annotations

import errno
import socket
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from bulkhead.daemon.counters import Counters
from bulkhead.kernel.maps import KernelMaps
from bulkhead.kernel.netns import entered
from lab.bpf import can_attach
from lab.host import Host, joined
from lab.puppet import Puppet

OURS, OURS6 = "10.77.0.1", "fd77::1"
FRIEND, FRIEND6 = "10.77.0.2", "fd77::2"
"""The peer's first address: policy lets it in."""
STRANGER, STRANGER6 = "10.77.0.3", "fd77::3"
"""The peer's second: no rule names it."""

POLICY = """apiVersion: bulkhead/v1alpha1
kind: Policy
metadata: {name: t}
workloads:
  web: {match: {cgroup: /t/web}, mode: enforce}
  db: {match: {cgroup: /t/db}, mode: enforce}
  rogue: {match: {cgroup: /t/rogue}, mode: enforce}
externals:
  friend: {cidr: [10.77.0.2/32, "fd77::2/128"]}
allow:
  - {name: web-db, from: web, to: db, ports: [5432, 5300/udp]}
  - {name: friend-db, from: friend, to: db, ports: [5432, 5300/udp, icmp/echo]}
  - {name: web-friend, from: web, to: friend, ports: [7000, 7000/udp, icmp/echo]}
  - {name: web-host, from: web, to: host, ports: [icmp/echo]}
"""

Refusals = Counter[tuple[str, str, str]]
"""How often, by (reason, direction, verdict)."""


@dataclass
class Arena:
    """The host, its peer, and what the kernel counted."""

    host: Host
    peer: Host
    maps: KernelMaps
    _lasting: dict[str, Puppet] = field(default_factory=dict)

    def puppet(self, name: str) -> Puppet:
        """The lasting puppet of workload `name`; `plain` is a process that no workload selects."""
        if name not in self._lasting:
            self._lasting[name] = self.host.puppet("plain" if name == "plain" else f"t/{name}")
        return self._lasting[name]

    @contextmanager
    def another(self, name: str) -> Iterator[Puppet]:
        """A puppet for one test."""
        made = self.host.puppet("plain" if name == "plain" else f"t/{name}")
        try:
            yield made
        finally:
            made.end()

    def at_peer(self, family: int = socket.AF_INET, kind: int = socket.SOCK_DGRAM, proto: int = 0) -> socket.socket:
        """A socket in the peer's namespace; a second until it gives up."""
        with entered(Path(f"/run/netns/{self.peer.netns}")):
            made = socket.socket(family, kind, proto)
        made.settimeout(1)
        return made

    @cached_property
    def links(self) -> tuple[str, str]:
        """Link addresses of the wire's ends, the host's first."""
        ours, theirs = (one.ip("-br", "link", "show", "eth0").split()[2] for one in (self.host, self.peer))
        return ours, theirs

    def send_frames(self, *frames: bytes) -> None:
        """Put frames on the wire at the peer's end."""
        with self.at_peer(socket.AF_PACKET, socket.SOCK_RAW) as wire:
            wire.bind(("eth0", 0))
            for frame in frames:
                wire.send(frame)

    def refused(self) -> Refusals:
        """Everything refused so far."""
        return Counter({(r.reason, r.direction, r.verdict): r.total for r in Counters(self.maps).refusals()})

    def losses(self) -> dict[str, int]:
        """What user space was not told."""
        return Counters(self.maps).losses()

    @contextmanager
    def counting(self) -> Iterator[Refusals]:
        """What was refused in the block; filled in when it is left."""
        before = self.refused()
        found: Refusals = Counter()
        yield found
        found.update(self.refused() - before)

    @contextmanager
    def policy(self, text: str, hosts: str = "observe") -> Iterator[None]:
        """Another policy for a block, the usual one afterwards."""
        self.host.enforce(text, hosts)
        try:
            yield
        finally:
            self.host.enforce(POLICY)


@contextmanager
def arena_of(policy: str = POLICY) -> Iterator[Arena]:
    """An arena with a policy in force."""
    with Host("alpha") as host, Host("beta") as peer, joined(host, peer):
        peer.ip("addr", "add", f"{STRANGER}/24", "dev", "eth0")
        peer.ip("addr", "add", f"{STRANGER6}/64", "dev", "eth0", "nodad")
        host.start_agent()
        host.enforce(policy)
        with KernelMaps(host.pins) as maps:
            yield Arena(host, peer, maps)


@pytest.fixture(scope="session")
def shared() -> Iterator[Arena]:
    """One arena for every test that leaves it as it was."""
    if not can_attach():
        pytest.skip("needs root and a mounted BPF file system")
    with arena_of() as made:
        yield made


@pytest.fixture
def arena(shared: Arena) -> Iterator[Arena]:
    """The shared arena. Whatever was done to it, the agent is alive and says nothing of errors."""
    before = len(shared.host.log())
    yield shared
    assert shared.host.agent is not None and shared.host.agent.poll() is None, shared.host.log()
    assert "Exception in callback" not in shared.host.log()[before:]


@pytest.fixture
def db(arena: Arena) -> Iterator[Puppet]:
    """The workload that `web` and the friend may call."""
    with arena.another("db") as made:
        yield made


@pytest.fixture
def web(arena: Arena) -> Iterator[Puppet]:
    """The workload that may call `db` and the friend."""
    with arena.another("web") as made:
        yield made


@pytest.fixture
def rogue(arena: Arena) -> Iterator[Puppet]:
    """A workload, uid 0 in its control group, that no rule names."""
    with arena.another("rogue") as made:
        yield made


@pytest.fixture
def plain(arena: Arena) -> Iterator[Puppet]:
    """A process of the host, which is only observed."""
    with arena.another("plain") as made:
        yield made


def framed(arena: Arena, packet: Packet, to: str = "host", vlan: Packet | None = None) -> bytes:
    """A frame for the other end of the wire."""
    ours, theirs = arena.links
    link = Ether(src=theirs, dst=ours) if to == "host" else Ether(src=ours, dst=theirs)
    return bytes(link / packet if vlan is None else link / vlan / packet)


def outcome(puppet: Puppet, code: str) -> str:
    """Run code that may fail by an OSError: the error's name, `timeout`, or `ok`."""
    body = textwrap.indent(textwrap.dedent(code).strip(), "    ")
    failing = "except TimeoutError:\n    said = -1\nexcept OSError as problem:\n    said = problem.errno"
    puppet.do(f"said = 0\ntry:\n{body}\n{failing}")
    number = puppet.do("said")
    return {0: "ok", -1: "timeout"}.get(number) or errno.errorcode[number]


def listen(puppet: Puppet, port: int, address: str = "0.0.0.0", name: str = "listener") -> None:
    """Have a puppet listen; it gives up on `accept` soon."""
    family = "socket.AF_INET6" if ":" in address else "socket.AF_INET"
    puppet.do(
        f"{name} = socket.socket({family}); {name}.setsockopt(1, socket.SO_REUSEADDR, 1); "
        f"{name}.bind(({address!r}, {port})); {name}.listen(64); {name}.settimeout(0.3)"
    )


def inbox(puppet: Puppet, port: int, address: str = "0.0.0.0", options: str = "pass") -> None:
    """Have a puppet hold a datagram socket called `inbox`, in which `got` looks."""
    family = "socket.AF_INET6" if ":" in address else "socket.AF_INET"
    puppet.do(f"inbox = socket.socket({family}, socket.SOCK_DGRAM); inbox.setsockopt(1, socket.SO_REUSEADDR, 1)")
    puppet.do(f"{options}; inbox.bind(({address!r}, {port}))")


def got(puppet: Puppet, name: str = "inbox", wait_s: float = 0.15) -> int:
    """How many datagrams have come into a puppet's socket."""
    puppet.do(
        f"""
{name}.settimeout({wait_s})
count = 0
try:
    while True:
        {name}.recv(65535)
        count += 1
except TimeoutError:
    pass
"""
    )
    return int(puppet.do("count"))


def until(condition: Callable[[], Any], timeout_s: float = 5.0) -> bool:
    """Has `condition` come true in time?"""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
    return True
