"""Two hosts joined by a wire, each enforced by an agent process of its own."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from repository import Repository
from traffic import Place

from bulkhead.abi import Direction
from bulkhead.kernel import libbpf
from bulkhead.kernel.libbpf import Fd, Map
from lab.bpf import pin_directory
from lab.cgroup import cgroup_subtree
from lab.netns import Namespace, Wire, connect, wire

DEVICES = ("eth0", "eth1")
"""The hosts are joined twice, so that what is enforced on one wire can be compared with the other."""
_SYSCTLS = {
    "ipv6/conf/all/disable_ipv6": "1",
    "ipv4/ip_local_port_range": "1024 65535",
    "ipv4/ip_local_reserved_ports": "7000-7299,10000-10499",
    "ipv4/tcp_tw_reuse": "1",
    "ipv4/tcp_max_syn_backlog": "65535",
    "core/somaxconn": "65535",
}
"""So that connections by the ten thousand do not run out of ports or of room."""
_READY_S = 60.0
_FOLLOW_S = 180.0
_LOOK_S = 0.0005
"""How often a state is looked at that nothing reports."""


def wait_until(is_so: Callable[[], bool], timeout_s: float = _READY_S) -> float:
    """Look until it is so; when it was seen, on the monotonic clock. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError("what the benchmark waits for does not happen")
        select.select([], [], [], _LOOK_S)
    return time.monotonic()


@dataclass(slots=True)
class Host:
    """One enforced host. `agent` is None while none runs; what was enforced stays in force then."""

    name: str
    namespace: Namespace
    addresses: dict[str, str]
    """By device."""
    cgroup: Path
    pins: Path
    directory: Path
    repository: Repository
    agent: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def address(self) -> str:
        """On the first device."""
        return self.addresses[DEVICES[0]]

    @property
    def log(self) -> Path:
        """What the agent says."""
        return self.directory / "agent.log"

    def prepare(self) -> None:
        """Directories, control groups and settings."""
        for part in ("run", "state"):
            (self.directory / part).mkdir(parents=True)
        for workload in ("client", "server"):
            (self.cgroup / workload).mkdir()
        settings = {
            "host": self.name,
            "repository": self.repository.path,
            "cgroup_root": self.cgroup,
            "netns": self.namespace.path,
            "pins": self.pins,
            "run_dir": self.directory / "run",
            "state_dir": self.directory / "state",
            "cache_dir": self.cache,
        }
        self.configure(settings)

    @property
    def settings(self) -> Path:
        """The agent's."""
        return self.directory / "agent.toml"

    def configure(self, settings: Mapping[str, object]) -> None:
        """Add to the agent's settings, each a text or a path."""
        with self.settings.open("a") as file:
            file.writelines(f'{key} = "{value}"\n' for key, value in settings.items())

    def start(self) -> float:
        """Start the agent and return the seconds until it reports that it is ready."""
        address = self.directory / "notify.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications, self.log.open("ab") as log:
            notifications.bind(str(address))
            started = time.monotonic()
            self.agent = subprocess.Popen(
                [sys.executable, "-m", "bulkhead.cli.main", "agent", "--config", str(self.settings)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(address),
            )
            try:
                self._await_ready(self.agent, notifications)
                return time.monotonic() - started
            finally:
                address.unlink()

    def _environment(self, notify: Path) -> dict[str, str]:
        """An installed agent finds its modules compiled; so does this one, without leaving them in the checkout."""
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return {**kept, "NOTIFY_SOCKET": str(notify), "PYTHONPYCACHEPREFIX": str(self.directory.parent / "pycache")}

    def _await_ready(self, agent: subprocess.Popen[bytes], notifications: socket.socket) -> None:
        ended = os.pidfd_open(agent.pid)
        try:
            while notifications.fileno() in select.select([notifications.fileno(), ended], [], [], _READY_S)[0]:
                if b"READY=1" in notifications.recv(4096).split(b"\n"):
                    return
        finally:
            os.close(ended)
        raise RuntimeError(f"the agent did not get ready:\n{self.log.read_text()[-4000:]}")

    def stop(self) -> None:
        """End the agent; hooks and maps stay."""
        if self.agent is None:
            return
        agent, self.agent = self.agent, None
        agent.send_signal(signal.SIGCONT)
        agent.terminate()
        try:
            agent.wait(10)
        except subprocess.TimeoutExpired:
            agent.kill()
            agent.wait()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep the agent from running, as if it were slow or gone: what the kernel does alone."""
        if self.agent is None:
            raise RuntimeError("no agent runs")
        try:
            os.kill(self.agent.pid, signal.SIGSTOP)
            _, status = os.waitpid(self.agent.pid, os.WUNTRACED)
            if not os.WIFSTOPPED(status):
                raise RuntimeError(f"the agent ended:\n{self.log.read_text()[-4000:]}")
            yield
        finally:
            os.kill(self.agent.pid, signal.SIGCONT)

    @contextmanager
    def unhooked(self, device: str) -> Iterator[None]:
        """Nothing of ours runs for the packets of one device until the block is left; the agent is held still as long,
        because its upkeep puts hooks back. That is also how they come back."""
        with self.namespace.entered():
            index = socket.if_nametoindex(device)
        with self.paused():
            for direction in Direction:
                with self._hook(index, direction) as link:
                    libbpf.link_detach(link)
            yield
        wait_until(lambda: all(self._is_hooked(index, direction) for direction in Direction))

    def _hook(self, index: int, direction: Direction) -> Fd:
        """The pinned link of a device; the caller closes it."""
        return libbpf.obj_get(self.pins / "links" / f"tcx_{index}_{direction.name.lower()}")

    def _is_hooked(self, index: int, direction: Direction) -> bool:
        with self._hook(index, direction) as link:
            return libbpf.link_info(link).ifindex == index

    def forget(self) -> None:
        """Stop, and remove every trace: the next start is the first one."""
        self.stop()
        shutil.rmtree(self.pins)
        self.pins.mkdir(mode=0o700)
        for part in ("run", "state"):
            shutil.rmtree(self.directory / part)
            (self.directory / part).mkdir()

    @property
    def cache(self) -> Path:
        """Where its loader keeps what it has compiled."""
        return self.directory / "cache"

    def forget_compiled(self) -> None:
        """The next load compiles."""
        shutil.rmtree(self.cache, ignore_errors=True)

    def map(self, name: str) -> Map:
        """One of the pinned maps; the caller closes it."""
        return libbpf.map_open(self.pins / "maps" / name)

    def generation(self) -> int:
        """What the kernel enforces now."""
        with self.map("control") as control:
            return generation_of(control)

    def current(self, name: str) -> Map:
        """A map of the generation in force; the caller closes it."""
        return libbpf.map_open(self.pins / "slots" / f"{name}_{self.generation() & 1}")

    def place(self, workload: str) -> Place:
        """Where a process of that workload runs."""
        return Place(self.namespace, self.cgroup / workload)


def generation_of(control: Map) -> int:
    """The generation in the control word."""
    raw = control.lookup(bytes(4))
    return int(struct.unpack_from("=I", raw)[0]) if raw else 0


@dataclass(frozen=True, slots=True)
class Pair:
    """Both hosts, and the repository that both follow. The client's is left, the server's right."""

    left: Host
    right: Host
    repository: Repository

    def __iter__(self) -> Iterator[Host]:
        return iter((self.left, self.right))

    def follow(self, commit: str) -> None:
        """Publish a prepared commit and wait until both enforce it."""
        with self.left.map("control") as left, self.right.map("control") as right:
            before = [generation_of(control) for control in (left, right)]
            self.repository.publish(commit)
            try:
                wait_until(lambda: generation_of(left) > before[0] and generation_of(right) > before[1], _FOLLOW_S)
            except TimeoutError as error:
                logs = "\n".join(host.log.read_text()[-2000:] for host in (self.left, self.right))
                raise RuntimeError(f"the agents do not follow:\n{logs}") from error


@contextmanager
def quiet_wires(subnet: int, devices: tuple[str, ...]) -> Iterator[tuple[Wire, ...]]:
    """Wires between the same two namespaces, on which nothing is sent but what we send: no IPv6, neighbours known."""
    with wire(devices[0], subnet) as first:
        others = (connect(first.left, first.right, name, subnet + at) for at, name in enumerate(devices[1:], start=1))
        wires = (first, *others)
        for namespace in (first.left, first.right):
            with namespace.entered():
                for name, value in _SYSCTLS.items():
                    Path("/proc/sys/net", name).write_text(value)
        for one in wires:
            _introduce(one.left, one.device, one.right_address4, _hardware_address(one.right, one.device))
            _introduce(one.right, one.device, one.left_address4, _hardware_address(one.left, one.device))
        yield wires


def _hardware_address(namespace: Namespace, device: str) -> str:
    return str(json.loads(namespace.ip(f"-json link show {device}"))[0]["address"])


def _introduce(namespace: Namespace, device: str, neighbour: str, hardware_address: str) -> None:
    namespace.ip(f"neigh replace {neighbour} lladdr {hardware_address} dev {device} nud permanent")


@contextmanager
def enforced_pair(
    directory: Path, subnet: int, rules: int, equip: Callable[[Pair], None] = lambda _: None
) -> Iterator[Pair]:
    """A pair of hosts, agents running, enforcing a first commit of so many rules. Leaves nothing behind.

    `equip` gives the hosts and their repository what else they need, before the agents start.
    """
    with quiet_wires(subnet, DEVICES) as wires, ExitStack() as stack:
        lefts = {one.device: one.left_address4 for one in wires}
        rights = {one.device: one.right_address4 for one in wires}
        repository = Repository(directory / "policy", tuple(lefts.values()), tuple(rights.values()))
        repository.create(rules)
        hosts = []
        for name, namespace, addresses in (("left", wires[0].left, lefts), ("right", wires[0].right, rights)):
            pins, cgroup = stack.enter_context(pin_directory()), stack.enter_context(cgroup_subtree())
            host = Host(name, namespace, addresses, cgroup, pins, directory / name, repository)
            stack.callback(host.stop)
            host.prepare()
            hosts.append(host)
        pair = Pair(hosts[0], hosts[1], repository)
        equip(pair)
        for host in pair:
            host.start()
        yield pair
