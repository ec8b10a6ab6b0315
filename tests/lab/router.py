"""A router between lab hosts: forwards in the kernel, and does to packets what real boxes, or attackers on the way, do.

Address translation is nf_tables'. Whatever alters, delays, loses or repeats packets is done here, in a thread: what
arrives from a host is steered into a TUN device of that host, read, and given back to the kernel as if it came from
there. That is before translation, and untracked until then. While no fault is switched on for a host, nothing of this
is in its path. A packet that took the detour has been forwarded twice, so its hop limit is lower by two.
"""

from __future__ import annotations

import fcntl
import os
import select
import selectors
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bulkhead.kernel import netns
from lab.description import HostSpec, Interface, Nat, interfaces
from lab.faults import Action, Predicate
from lab.netns import Namespace, network_namespace
from lab.offloads import set_offloads
from lab.packet import ICMP6, Packet
from lab.wiring import SYSCTLS, host_addresses, router_addresses, ruleset, up

DEVICE = "eth0"
"""A host's device; the router's is called after the host."""
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_SO_RCVBUFFORCE = 33
_ETH_P_ALL, _ETH_P_IP, _ETH_P_IPV6 = 0x0003, 0x0800, 0x86DD
_HEADER_BYTES = {_ETH_P_IP: 20, _ETH_P_IPV6: 40}
"""What is shorter is no packet of that protocol."""
_BUFFER_BYTES = 16 << 20
_REMEMBERED = 100_000
"""Packets, by each fault; what it matched before is forgotten."""
_LOCAL_PRIORITY, _DETOUR_PRIORITY = 100, 10
"""Of routing rules: a detour also takes what is addressed to the router and then translated."""
_NEIGHBOUR_DISCOVERY = range(133, 138)


@dataclass(frozen=True, slots=True)
class Link:
    """The wire between the router and a host."""

    host: str
    number: int
    netns: Path
    """The host's."""
    addresses: tuple[Interface, ...]
    """The host's."""

    @property
    def device(self) -> str:
        """The router's end."""
        return f"{self.host}.r"

    @property
    def detour(self) -> str:
        """The TUN device for what arrives from the host."""
        return f"{self.host}.f"

    @property
    def host_mac(self) -> str:
        return f"02:78:00:00:{self.number:02x}:02"

    @property
    def router_mac(self) -> str:
        return f"02:78:00:00:{self.number:02x}:01"


@dataclass(eq=False, slots=True)
class Fault:
    """Something that is done to what arrives from a host, while it is switched on."""

    action: Action
    when: Predicate
    matched: deque[Packet] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    """As they arrived, oldest first."""
    error: Exception | None = None

    @property
    def hits(self) -> int:
        """How many packets matched."""
        return len(self.matched)

    def apply(self, packet: Packet) -> Iterable[Packet]:
        """What becomes of a packet. One that the fault fails on is lost, and the failure kept."""
        try:
            if not self.when(packet):
                return (packet,)
            self.matched.append(packet)
            return tuple(self.action.becomes(packet))
        except Exception as error:  # noqa: BLE001  whatever a test's predicate does wrong, the test is told
            self.error = error
            return ()


@dataclass(frozen=True, slots=True)
class Seen:
    """A packet on a wire."""

    host: str
    """Whose wire."""
    is_arriving: bool
    """At the host; else it comes from there."""
    packet: Packet


class Capture:
    """The IP packets on some wires while it lasted, without neighbour discovery and multicast."""

    def __init__(self, sockets: dict[str, socket.socket]) -> None:
        self._sockets = sockets
        self._found: list[Seen] = []

    def packets(self) -> list[Seen]:
        """All so far; of each wire in order."""
        for host, one in self._sockets.items():
            while (seen := _received(host, one)) is not None:
                if not _is_of_the_link(seen.packet):
                    self._found.append(seen)
        return list(self._found)

    def end(self) -> None:
        """Look no longer; what was found stays."""
        self.packets()
        self._sockets = {}

    def arriving(self, host: str) -> list[Packet]:
        """What reached a host."""
        return [seen.packet for seen in self.packets() if seen.host == host and seen.is_arriving]

    def leaving(self, host: str) -> list[Packet]:
        """What came from a host."""
        return [seen.packet for seen in self.packets() if seen.host == host and not seen.is_arriving]

    def wait(self, matches: Callable[[Seen], bool], timeout_s: float = 5.0) -> Seen:
        """Block until there is one that matches; the first. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while True:
            for seen in self.packets():
                if matches(seen):
                    return seen
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("no such packet was on the wires")
            self.wait_for_more(left)

    def wait_for_more(self, timeout_s: float) -> None:
        """Block until there is something that `packets` has not seen, or the time is over."""
        select.select(list(self._sockets.values()), [], [], timeout_s)


def _received(host: str, one: socket.socket) -> Seen | None:
    while True:
        try:
            data, (_, protocol, kind, *_) = one.recvfrom(1 << 17)
        except BlockingIOError:
            return None
        if len(data) >= _HEADER_BYTES.get(protocol, sys.maxsize):
            return Seen(host, kind == socket.PACKET_OUTGOING, Packet(data))


def _is_of_the_link(packet: Packet) -> bool:
    """Whether it has no business beyond its wire."""
    if packet.version == 4:
        return packet.raw[16] >= 224
    is_discovery = packet.protocol == ICMP6 and packet.segment[:1] and packet.segment[0] in _NEIGHBOUR_DISCOVERY
    return packet.raw[24] == 0xFF or bool(is_discovery)


class Router:
    """Use as a context manager; hosts are connected to it one by one. It goes without a trace."""

    def __init__(self) -> None:
        self.links: dict[str, Link] = {}
        self._owned = ExitStack()
        self.nat: tuple[Nat, ...] = ()
        """The rules of address translation in force: `translate` changes them."""
        self._detours: dict[str, int] = {}
        """File descriptors of the TUN devices, by host."""
        self._faults: dict[str, tuple[Fault, ...]] = {}
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        """Held by whoever applies faults, or changes which there are."""
        self._pump: threading.Thread | None = None
        self._senders: dict[Path, socket.socket] = {}
        """By network namespace."""

    # Life

    def __enter__(self) -> Self:
        self.namespace: Namespace = self._owned.enter_context(network_namespace())
        with self.namespace.entered():
            for name, value in SYSCTLS.items():
                Path("/proc/sys", *name.split(".")).write_text(str(value))
        for family in ("-4", "-6"):
            self.namespace.ip(f"{family} rule add pref {_LOCAL_PRIORITY} lookup local")
            self.namespace.ip(f"{family} rule del pref 0")
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        if self._pump is not None:
            os.write(self._wake, b"\0")
            self._pump.join()
        for detour in self._detours.values():
            os.close(detour)
        self._selector.close()
        self._owned.close()

    # Wires

    def connect(self, spec: HostSpec, host_netns: Path, has_offloads: bool = False) -> Link:
        """Join a host by a veth pair, give it its addresses, and make the router its default gateway."""
        link = self.links[spec.name] = Link(spec.name, spec.number, host_netns, ())
        ends = f"{link.device} address {link.router_mac} type veth peer name {DEVICE} address {link.host_mac}"
        self._batch([f"link add {ends} netns {host_netns}"])
        with self.namespace.entered():
            set_offloads(link.device, has_offloads)
        with netns.entered(host_netns):
            set_offloads(DEVICE, has_offloads)
        self._batch(up(link.device, 1))
        _batch(host_netns, up(DEVICE, 2))
        return self.readdress(spec.name, map(str, spec.addresses))

    def readdress(self, host: str, addresses: Iterable[str]) -> Link:
        """Give a host other addresses (`10.78.9.2/24`) in place of those that it has; the router and its rules of
        translation move along.

        Conversations that were open under the former addresses hang, as they would on any machine.
        """
        old = self.links[host]
        new = Link(old.host, old.number, old.netns, interfaces(addresses))
        self._batch(router_addresses(new.addresses, new.device))
        _batch(new.netns, host_addresses(new.addresses, DEVICE))
        self.links[host] = new
        if self.nat:
            self.translate([_moved(rule, old.addresses, new.addresses) for rule in self.nat])
        return new

    def _batch(self, commands: Iterable[str], family: str = "") -> None:
        _batch(self.namespace.path, commands, family)

    # Address translation

    @contextmanager
    def translating(self, *rules: Nat) -> Iterator[None]:
        """With these rules of address translation after those that are in force; for conversations that begin then."""
        before = self.nat
        self.translate((*before, *rules))
        try:
            yield
        finally:
            self.translate(before)

    def translate(self, rules: Sequence[Nat]) -> None:
        """Translate by these rules from here on, for conversations that begin then."""
        self._nft(ruleset(rules))
        self.nat = tuple(rules)

    def _nft(self, commands: str) -> None:
        with self.namespace.entered():
            done = subprocess.run(["nft", "--file", "-"], input=commands, capture_output=True, text=True, timeout=20)
        if done.returncode:
            raise RuntimeError(f"nft refused {commands!r}: {done.stderr.strip()}")

    # Faults

    @contextmanager
    def fault(self, host: str, action: Action, when: Predicate = lambda _: True) -> Iterator[Fault]:
        """Do something to what arrives from a host and matches, until the block ends.

        Faults of one host are applied in the order in which they were switched on, each to what the one before let
        through. What an action still holds when it ends goes on then. An exception in a predicate or an action is
        raised here.
        """
        one = Fault(action, when)
        with self._lock:
            faults = self._faults.get(host, ())
            if not faults:
                self._take_detour(host)
            self._faults[host] = (*faults, one)
        try:
            yield one
        finally:
            self._end(host, one)
        if one.error is not None:
            raise one.error

    def _end(self, host: str, one: Fault) -> None:
        with self._lock:
            faults = self._faults[host]
            behind = faults[faults.index(one) + 1 :]
            self._write(host, _through(behind, one.action.rest()))
            self._faults[host] = tuple(other for other in faults if other is not one)
            if not self._faults[host]:
                self._nft(f"delete table inet {_table(host)}")

    def _take_detour(self, host: str) -> None:
        link = self.links[host]
        self._detour(host)
        self._nft(f"""
table inet {_table(host)} {{
  chain arriving {{
    type filter hook prerouting priority -310;
    iifname != "{link.device}" return
    ip daddr 224.0.0.0/3 return
    ip6 daddr {{ ff00::/8, fe80::/10 }} return
    icmpv6 type {{ nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, nd-redirect }} return
    meta mark set {link.number} notrack
  }}
}}
""")

    def _detour(self, host: str) -> int:
        """The TUN device of a host, made when it is first needed."""
        if host not in self._detours:
            link = self.links[host]
            with self.namespace.entered():
                self._detours[host] = _tun(link.detour)
            self._batch([f"link set {link.detour} addrgenmode none", f"link set {link.detour} up"])
            table = 1000 + link.number
            for family in ("-4", "-6"):
                rule = f"rule add pref {_DETOUR_PRIORITY} fwmark {link.number} lookup {table}"
                self._batch([rule, f"route add default dev {link.detour} table {table}"], family)
            self._selector.register(self._detours[host], selectors.EVENT_READ, host)
            self._start_pump()
        return self._detours[host]

    def _start_pump(self) -> None:
        if self._pump is None:
            ended, self._wake = os.pipe()
            self._owned.callback(os.close, ended)
            self._owned.callback(os.close, self._wake)
            self._selector.register(ended, selectors.EVENT_READ, None)
            self._pump = threading.Thread(target=self._run_pump, name="router", daemon=True)
            self._pump.start()

    def _run_pump(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    return
                packet = Packet(os.read(key.fd, 1 << 17))
                if not _is_of_the_link(packet):  # those are the router's own, from the device's coming up
                    self._pass_on(key.data, packet)

    def _pass_on(self, host: str, packet: Packet) -> None:
        with self._lock:
            faults = self._faults.get(host, ())
            try:
                self._write(host, _through(faults, (packet,)))
            except OSError as error:  # a fault made something of it that the kernel does not take for a packet
                for fault in faults:
                    fault.error = error

    def _write(self, host: str, packets: Iterable[Packet]) -> None:
        for packet in packets:
            os.write(self._detours[host], packet.raw)

    # Packets of the router's own

    def inject(self, packet: Packet, host: str) -> None:
        """As if it arrived from a host: translated and routed like anything else from there, untouched by faults."""
        with self._lock:
            self._detour(host)
            self._write(host, (packet,))

    def send(self, packet: Packet, host: str) -> None:
        """Onto a host's wire as it is, whatever its addresses."""
        link = self.links[host]
        _send(self._sender(self.namespace.path), packet, link.device, link.host_mac)

    def towards(self, host: str) -> Callable[[Packet], None]:
        """`send` to one host: for `faults.copy`, by which an attacker overhears others."""
        return lambda packet: self.send(packet, host)

    def spoof(self, packet: Packet, host: str) -> None:
        """From a host's device, whatever its addresses, as a raw socket there would send it."""
        link = self.links[host]
        _send(self._sender(link.netns), packet, DEVICE, link.router_mac)

    def _sender(self, at: Path) -> socket.socket:
        if at not in self._senders:
            with netns.entered(at):
                self._senders[at] = self._owned.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM))
        return self._senders[at]

    # What is on the wires

    @contextmanager
    def capture(self, *hosts: str) -> Iterator[Capture]:
        """Look at the wires of some hosts, or of all, until the block ends."""
        with ExitStack() as owned:
            sockets = {}
            with self.namespace.entered():
                for host in hosts or self.links:
                    one = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
                    sockets[host] = owned.enter_context(one)
                    one.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
                    one.bind((self.links[host].device, _ETH_P_ALL))
            capture = Capture(sockets)
            try:
                yield capture
            finally:
                capture.end()


def _through(faults: Iterable[Fault], packets: Iterable[Packet]) -> Iterable[Packet]:
    for fault in faults:
        packets = [after for packet in packets for after in fault.apply(packet)]
    return packets


def _moved(rule: Nat, old: Iterable[Interface], new: Sequence[Interface]) -> Nat:
    """A rule about a host that has other addresses now: the first of the same family stands for each."""
    now: dict[str, str] = {}
    for one in old:
        other = next((other for other in new if other.version == one.version), one)
        now |= {str(one.network): str(other.network), str(one.ip): str(other.ip)}
    return replace(rule, of=tuple(now.get(of, of) for of in rule.of), to=tuple(now.get(to, to) for to in rule.to))


def _table(host: str) -> str:
    return f"detour_{host.replace('-', '_')}"


def _batch(at: Path, commands: Iterable[str], family: str = "") -> None:
    """Run commands of `ip`, of one family where their arguments do not tell."""
    text = "\n".join(commands)
    argv = ["ip", *filter(None, [family]), "-batch", "-"]
    with netns.entered(at):
        done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=20)
    if done.returncode:
        raise RuntimeError(f"ip refused {text!r}: {done.stderr.strip()}")


def _tun(name: str) -> int:
    """A TUN device that lives as long as the descriptor. It has no offloads: what is read is whole and checksummed."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return device


def _send(sender: socket.socket, packet: Packet, device: str, mac: str) -> None:
    address: tuple[Any, ...] = (device, _ETH_P_IPV6 if packet.version == 6 else _ETH_P_IP, 0, 0)
    sender.sendto(packet.raw, (*address, bytes.fromhex(mac.replace(":", ""))))
