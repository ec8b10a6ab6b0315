"""The real programs judge offline: packets that no device carries, from endpoints that do not run.

What is loaded is what enforces (bpf/*.c), with bpf/harness.c behind it, into maps of its own below a directory of its
own, and run by BPF_PROG_TEST_RUN inside a network namespace of its own: nothing on this machine is touched. Endpoints
are synthetic. Each control group path gets a number that no control group has, and the entry that the agent would give
it; a sender is a stamped dummy socket, a receiver a real one, stamped, that listens in the namespace.

Rejected: sending real packets between real processes, which takes a thousand times as long and needs every control
group, executable and user of the inventory on the machine that asks.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from ipaddress import ip_address
from itertools import count
from pathlib import Path
from typing import Any, Final, Self

from bulkhead.abi import (
    Direction,
    DropReason,
    ExecutableKey,
    Identity,
    Mode,
    Setting,
    SockFlag,
    SockState,
    Verdict,
    VerdictEvent,
)
from bulkhead.dataplane import bundle as bundles
from bulkhead.dataplane.addresses import Address
from bulkhead.dataplane.bundle import Bundle
from bulkhead.dataplane.compile import Compiled, PolicyEntry
from bulkhead.dataplane.inventory import Listed
from bulkhead.dataplane.matrix import Engine
from bulkhead.dataplane.subjects import Answers, executable_id
from bulkhead.errors import KernelError, RefusedError
from bulkhead.identity.selectors import Endpoint, Narrower
from bulkhead.kernel import generation, libbpf, load, netns, source
from bulkhead.kernel.attestation import Plan
from bulkhead.kernel.libbpf import Fd, ProgramType
from bulkhead.kernel.maps import GenerationTables, KernelMaps, Table
from bulkhead.kernel.programs import STAGES
from bulkhead.kernel.ringbuf import RingBuffer
from bulkhead.policy import model
from bulkhead.policy.model import RuleId

BPF_FILE_SYSTEM: Final = Path("/sys/fs/bpf")
SOURCE_PORT: Final = 40000
"""Of every opening that is judged here."""

TCP: Final = socket.IPPROTO_TCP
UDP: Final = socket.IPPROTO_UDP
ICMP: Final = socket.IPPROTO_ICMP
ICMPV6: Final = socket.IPPROTO_ICMPV6
SCTP: Final = socket.IPPROTO_SCTP
UDP_LITE: Final = 136

_CLONE_NEWNET: Final = 0x40000000
_PASS: Final = -1
_NO_EVENT_LIMIT: Final = "#define EVENTS_PER_WINDOW (1ull << 40)\n"
_FIRST_SYNTHETIC: Final = 1 << 48
"""Control group ids and inode numbers from here on belong to nothing that is."""
_FIRST_SYNTHETIC_ID: Final = 1 << 30
"""Likewise uids and gids."""
_SETUP: Final = struct.Struct("=IIII")
_QUESTION: Final = struct.Struct("=IIBB2sIBBH")
_CONTEXT: Final = struct.Struct("=36xI152x")
"""A `struct __sk_buff` of which only `ingress_ifindex` is given."""
_ZERO: Final = bytes(4)
_POLICY_REASONS: Final = (DropReason.POLICY, DropReason.EXPIRED, DropReason.UNATTESTED, DropReason.AMBIGUOUS)


class Entry(IntEnum):
    """The entry points of bpf/tc.c, in the order of `harness_programs`."""

    EGRESS = 0
    INGRESS = 1
    EGRESS_BARE = 2
    INGRESS_BARE = 3
    EGRESS_LOOPBACK = 4
    INGRESS_LOOPBACK = 5


_ENTRIES: Final = (
    "tc_egress",
    "tc_ingress",
    "tc_egress_bare",
    "tc_ingress_bare",
    "tc_egress_loopback",
    "tc_ingress_loopback",
)
_HARNESS: Final = ("harness_packet", "harness_ownerless", "harness_judge")


@dataclass(frozen=True, slots=True)
class Ruling:
    """What became of a packet, and what its verdict event says of why."""

    passes: bool
    verdict: Verdict = Verdict.NONE
    """NONE: there was no event. A control packet, a part of a conversation, or a refusal reported before."""
    reason: DropReason = DropReason.NONE
    rule_id: int = 0
    direction: Direction | None = None
    """Which end decided."""
    local: int = 0
    remote: int = 0


class Judge:
    """The programs, loaded for questions. One thread at a time; a context manager, whose end leaves nothing behind.

    Raises RefusedError where this cannot be: without root, a BPF file system or bcc.
    """

    def __init__(self, file_system: Path = BPF_FILE_SYSTEM) -> None:
        self._pins = file_system / f"bulkhead-judge-{os.getpid()}-{secrets.token_hex(4)}"
        self._owned = contextlib.ExitStack()
        self._programs: dict[str, Fd] = {}
        self._attested = _Attested()
        self._cookies = count(1)

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise RefusedError("judging by the kernel programs needs root: run it as root, or ask the model instead")
        with contextlib.ExitStack() as undo:
            self._open(undo)
            self._owned = undo.pop_all()
        return self

    def __exit__(self, *raised: object) -> None:
        self._owned.close()

    def _open(self, owned: contextlib.ExitStack) -> None:
        owned.callback(shutil.rmtree, self._pins, ignore_errors=True)
        load.prepare_directory(self._pins)
        self._namespace = owned.enter_context(_private_namespace())
        names = (*source.ORDER, "harness.c")
        module = load.compile_text(_NO_EVENT_LIMIT + source.compose(self._pins / "maps", names=names))
        owned.callback(module.cleanup)
        for name in (*STAGES, *_ENTRIES, *_HARNESS):
            self._programs[name] = owned.enter_context(_loaded(module, name))
        self._link("stages", STAGES)
        self._link("harness_programs", _ENTRIES)
        self._setups = owned.enter_context(libbpf.map_open(self._pins / "maps" / "harness_setups"))
        self._questions = owned.enter_context(libbpf.map_open(self._pins / "maps" / "harness_questions"))
        self.maps = owned.enter_context(KernelMaps(self._pins))
        self.maps.fixed("setting").update(_ZERO, bytes(Setting(hash_seed=secrets.randbits(64))))
        self._events = owned.enter_context(RingBuffer(self.maps.fixed("verdict_events")))

    def _link(self, table: str, names: Sequence[str]) -> None:
        with libbpf.map_open(self._pins / "maps" / table) as programs:
            for index, name in enumerate(names):
                number = self._programs[name].fileno()
                programs.update(index.to_bytes(4, "little"), number.to_bytes(4, "little"))

    def program(self, name: str) -> Fd:
        """A loaded program by its name in C. It stays the judge's."""
        return self._programs[name]

    def inside(self) -> contextlib.AbstractContextManager[None]:
        """Run a block of the calling thread in the judge's network namespace, where lookups find its sockets."""
        return netns.entered(Path(f"/proc/self/fd/{self._namespace.fileno()}"))

    # What is in force

    def enforce(self, bundle: Bundle, endpoints: Iterable[Endpoint], observe_only: bool = False) -> int:
        """Switch to a bundle in which exactly these endpoints exist, and return the generation."""
        self._attested = _Attested()
        tables = self._attested.tables(bundle, tuple(endpoints), observe_only)
        executables = self.maps.fixed("executables")
        for key, number in self._attested.executables.items():
            executables.update(key, number.to_bytes(4, "little"))
        return self.switch(tables)

    def switch(self, tables: GenerationTables) -> int:
        """Put tables of one's own making in force; `sender` then knows no endpoint of an earlier `enforce`."""
        return self.maps.switch(tables)

    def sender(self, endpoint: Endpoint | None) -> SockState:
        """The state of a socket that an endpoint has just opened; None: an endpoint that is not attested."""
        state = SockState() if endpoint is None else self._attested.state(endpoint)
        state.socket_cookie = next(self._cookies)
        state.flags |= SockFlag.ORIGIN
        return state

    # Openings

    def egress_local(
        self, origin: Endpoint | None, target: Endpoint | None, protocol: int, port: int, family: int
    ) -> Ruling:
        """An opening between two endpoints of this machine, over loopback, judged by both ends.

        `family` is 4 or 6. Only TCP and UDP have a receiver that can be told; what else arrives is the host's.
        """
        here = ip_address("127.0.0.1" if family == 4 else "::1")
        with self.receiving(protocol, port, self.sender(target)):
            return self.send(opening(here, here, protocol, port), self.sender(origin), Entry.EGRESS_LOOPBACK)

    def egress_remote(self, origin: Endpoint | None, address: Address, protocol: int, port: int) -> Ruling:
        """An opening by an endpoint of this machine to an address outside it, judged as it leaves."""
        return self.send(opening(_our(address), address, protocol, port), self.sender(origin))

    def ingress(self, address: Address, target: Endpoint | None, protocol: int, port: int) -> Ruling:
        """An opening by an address outside this machine, judged as it arrives.

        `target` receives TCP and UDP; all else is the host's.
        """
        with self.receiving(protocol, port, self.sender(target)):
            return self.receive(opening(address, _our(address), protocol, port))

    def ask(self, local: int, direction: Direction, remote: int, protocol: int, port: int) -> Ruling:
        """What the kernel's judge itself says for two identities, as if the mode were enforce, without any packet."""
        question = _QUESTION.pack(local, remote, direction, protocol, port.to_bytes(2, "big"), 0, 0, 0, 0)
        self._questions.update(_ZERO, question)
        run = libbpf.prog_test_run(self._programs["harness_judge"], bytes(64))
        answer = self._questions.lookup(_ZERO) or question
        rule_id, verdict, reason = _QUESTION.unpack(answer)[5:8]
        passes = run.retval == _PASS
        return Ruling(passes, Verdict(verdict), DropReason(reason), rule_id, direction, local, remote)

    # Packets

    def send(
        self, frame: bytes, state: SockState | None, entry: Entry = Entry.EGRESS, repeat: int = 1, tc_index: int = 0
    ) -> Ruling:
        """A packet on its way out of a socket with this state; None: a socket that no hook has seen.

        `frame` starts with the Ethernet header, on bare devices with the IP header. With `repeat` it is sent over and
        over through the same socket; the ruling is then the last one.
        """
        self._prepare(entry, state, tc_index)
        return self._run("harness_packet", frame, repeat=repeat)

    def send_ownerless(
        self, frame: bytes, ingress_ifindex: int = 0, link: int = 0, repeat: int = 1, tc_index: int = 0
    ) -> Ruling:
        """A packet that no socket sent; it is being forwarded when `ingress_ifindex` says where it came in."""
        self._prepare(Entry.EGRESS, None, tc_index, link)
        return self._run("harness_ownerless", frame, ingress_ifindex, repeat)

    def receive(self, frame: bytes, entry: Entry = Entry.INGRESS, repeat: int = 1, tc_index: int = 0) -> Ruling:
        """A packet on its way in. Who receives it is looked up in the judge's network namespace."""
        self._prepare(entry, None, tc_index)
        return self._run("harness_packet", frame, repeat=repeat)

    def _prepare(self, entry: Entry, state: SockState | None, tc_index: int, link: int = 0) -> None:
        stamp = SockState() if state is None else state
        self._setups.update(_ZERO, bytes(stamp) + _SETUP.pack(entry, link, state is not None, tc_index))

    def _run(self, name: str, frame: bytes, ingress_ifindex: int = 0, repeat: int = 1) -> Ruling:
        for _ in self._events.drain():
            pass  # what earlier runs left
        with self.inside():
            context = _CONTEXT.pack(ingress_ifindex) if ingress_ifindex else b""
            run = libbpf.prog_test_run(self._programs[name], frame, context=context, repeat=repeat)
        records = [bytes(record) for record in self._events.drain()]
        return _ruling(run.retval == _PASS, records[-1] if records else None)

    @contextlib.contextmanager
    def receiving(self, protocol: int, port: int, state: SockState) -> Iterator[int]:
        """A socket of either family that receives on `port` and has this state; its descriptor, -1 for none.

        Protocols other than TCP and UDP have none.
        """
        if protocol not in (TCP, UDP):
            yield -1
            return
        kind = socket.SOCK_STREAM if protocol == TCP else socket.SOCK_DGRAM
        with self.inside():
            receiver = socket.socket(socket.AF_INET6, kind)
        with receiver:
            receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            receiver.bind(("::", port))
            if protocol == TCP:
                receiver.listen()
            self.stamp(receiver.fileno(), state)
            yield receiver.fileno()

    def stamp(self, descriptor: int, state: SockState) -> None:
        """Write the state of a socket of this process."""
        self.maps.fixed("sockets").update(descriptor.to_bytes(4, "little"), bytes(state))


@contextlib.contextmanager
def _private_namespace() -> Iterator[Fd]:
    """A network namespace that lives as long as the block; the calling thread stays where it is."""
    library = ctypes.CDLL(None, use_errno=True)
    with netns.entered(Path("/proc/thread-self/ns/net")):
        if library.unshare(_CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise KernelError(f"cannot make a network namespace: {os.strerror(number)}", number)
        namespace = Fd(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
    with namespace:
        yield namespace


def _loaded(module: Any, name: str) -> Fd:
    try:
        function = module.load_func(name.encode(), int(ProgramType.SCHED_CLS))
    except Exception as error:  # bcc raises the base class; the verifier has written its log to stderr
        raise KernelError(f"the kernel rejects the program `{name}`: {error}") from error
    return Fd(os.dup(function.fd))


def _ruling(passes: bool, record: bytes | None) -> Ruling:
    if record is None:
        return Ruling(passes)
    event = VerdictEvent.from_buffer_copy(record)
    return Ruling(
        passes,
        Verdict(event.verdict),
        DropReason(event.reason),
        event.rule_id,
        Direction(event.direction),
        event.local_identity,
        event.remote_identity,
    )


# Endpoints that do not run


@dataclass(slots=True)
class _Attested:
    """What stands for the control groups, executables and users of some endpoints."""

    cgroups: dict[tuple[str, str], int] = field(default_factory=dict)
    """By host and path: the agents of two hosts answer differently for the same path."""
    files: dict[str | None, int] = field(default_factory=dict)
    accounts: dict[tuple[str, str, str], int] = field(default_factory=dict)
    """By kind, host and name."""
    executables: dict[bytes, int] = field(default_factory=dict)

    def tables(self, bundle: Bundle, endpoints: Sequence[Endpoint], observe_only: bool) -> GenerationTables:
        """A generation in which these endpoints exist."""
        for endpoint in endpoints:
            self._number(endpoint, bundle.executables)
        hosts = sorted({endpoint.host for endpoint in endpoints} | {bundle.host or ""})
        plans = self._plans(bundle, hosts, observe_only)
        cgroups: dict[bytes, bytes] = {}
        members: dict[bytes, bytes] = {}
        subjects: dict[bytes, bytes] = {}
        for (host, path), number in self.cgroups.items():
            entries, is_new = plans[host].entries(path)
            cgroups[number.to_bytes(8, "little")] = entries.entry
            if is_new:
                members |= entries.members
                subjects |= entries.subjects
        surveyed = Table.of(cgroups), Table.of(members), Table.of(subjects)
        slots: dict[str, int] = {info.name: slot for slot, info in enumerate(bundle.rules(), 1)}
        return generation.tables(bundle, plans[hosts[0]], surveyed, slots)

    def state(self, endpoint: Endpoint) -> SockState:
        """What the hooks would stamp into a socket of an endpoint; of one that is not there, nothing."""
        number = self.cgroups.get((endpoint.host, endpoint.cgroup))
        if number is None:
            return SockState()
        return SockState(
            cgroup_id=number,
            exe_inode=self.files[endpoint.exe],
            uid=self._account("user", endpoint.host, endpoint.uid, endpoint.users),
            gid=self._account("group", endpoint.host, endpoint.gid, endpoint.groups),
        )

    def _number(self, endpoint: Endpoint, named: Sequence[str]) -> None:
        self.cgroups.setdefault((endpoint.host, endpoint.cgroup), _FIRST_SYNTHETIC + len(self.cgroups))
        inode = self.files.setdefault(endpoint.exe, _FIRST_SYNTHETIC + len(self.files))
        is_named = endpoint.exe is not None and endpoint.exe in named
        self.executables[bytes(ExecutableKey(inode=inode))] = executable_id(endpoint.exe or "") if is_named else 0
        self._account("user", endpoint.host, endpoint.uid, endpoint.users)
        self._account("group", endpoint.host, endpoint.gid, endpoint.groups)

    def _account(self, kind: str, host: str, number: int | None, names: Sequence[str]) -> int:
        """The number behind some names: the one given, or one that nobody has."""
        known = next((self.accounts[kind, host, name] for name in names if (kind, host, name) in self.accounts), None)
        if number is None:
            number = _FIRST_SYNTHETIC_ID + len(self.accounts) if known is None else known
        for name in names:
            self.accounts.setdefault((kind, host, name), number)
        return number

    def _plans(self, bundle: Bundle, hosts: Iterable[str], observe_only: bool) -> dict[str, Plan]:
        local = [info for info in bundle.workloads() if info.local]
        enforced = bundle.host_mode is model.Mode.ENFORCE and not observe_only
        mode = Mode.ENFORCE if enforced else Mode.OBSERVE
        answers = Answers({info.qualified: info.identity for info in local}, mode, observe_only)
        plans: dict[str, Plan] = {}
        for host in hosts:
            users, groups = self._called("user", host), self._called("group", host)
            narrower = Narrower([info.as_workload() for info in local], host, users.get, groups.get)
            # One numbering of groups of answers, since all hosts share one generation here.
            shared = next(iter(plans.values())).groups if plans else {}
            plans[host] = Plan(narrower, answers, bundle.executables, shared)
        return plans

    def _called(self, kind: str, host: str) -> dict[str, int]:
        return {name: number for (k, h, name), number in self.accounts.items() if (k, h) == (kind, host)}


# Packets


def opening(origin: Address, target: Address, protocol: int, port: int, source_port: int = SOURCE_PORT) -> bytes:
    """The first packet of a conversation, from its Ethernet header on; checksums are left to the imagination.

    `port` is that of the target; for ICMP `type << 8 | code`; of no matter for protocols without ports.
    """
    segment = _segment(protocol, port, source_port)
    if origin.version == 4:
        fields = (0x45, 0, 20 + len(segment), 0, 0, 64, protocol, 0, origin.packed, target.packed)
        return _ethernet(0x0800) + struct.pack("!BBHHHBBH4s4s", *fields) + segment
    header = struct.pack("!IHBB16s16s", 6 << 28, len(segment), protocol, 64, origin.packed, target.packed)
    return _ethernet(0x86DD) + header + segment


def _ethernet(protocol: int) -> bytes:
    return bytes(12) + protocol.to_bytes(2, "big")


def _segment(protocol: int, port: int, source_port: int) -> bytes:
    if protocol == TCP:
        return struct.pack("!HHIIBBHHH", source_port, port, 1, 0, 5 << 4, 2, 65535, 0, 0)
    if protocol == UDP:
        return struct.pack("!HHHH", source_port, port, 8, 0)
    if protocol == UDP_LITE:
        return struct.pack("!HHHH", source_port, port or 9, 8, 0)
    if protocol in (ICMP, ICMPV6):
        return struct.pack("!BB6x", port >> 8, port & 255)
    return bytes(8)


def _our(other: Address) -> Address:
    """An address of this machine in the family of another one; nothing depends on which."""
    return ip_address("192.0.2.1" if other.version == 4 else "2001:db8::1")


# The matrix


@contextlib.contextmanager
def kernel_engine(
    compiled: Compiled, inventory: Sequence[Listed], addresses: Mapping[str, Address] | None = None
) -> Iterator[Engine]:
    """An engine for `matrix` that asks the kernel programs instead of the compiled tables.

    `inventory` and `addresses` are those that the matrix is made of. Raises RefusedError where there can be no Judge.
    """
    with Judge() as judge:
        yield engine_of(judge, compiled, inventory, addresses)


def engine_of(
    judge: Judge, compiled: Compiled, inventory: Sequence[Listed], addresses: Mapping[str, Address] | None = None
) -> Engine:
    """The same with a judge that is there already; good until something else is put in force."""
    outside = [address for listed in inventory for address in listed.addresses]
    outside += (addresses or {}).values()
    endpoints = [listed.endpoint for listed in inventory]
    judge.enforce(bundles.read(bundles.pack(_as_if_enforced(compiled))), endpoints)
    return _KernelEngine(judge, endpoints, outside)


def _as_if_enforced(compiled: Compiled) -> Compiled:
    workloads = tuple(replace(info, mode=model.Mode.ENFORCE) for info in compiled.workloads)
    return replace(compiled, host_mode=model.Mode.ENFORCE, workloads=workloads)


class _KernelEngine:
    """Finds a packet for each question; who is who is asked of the kernel as well.

    A packet cannot stand for everything: what is no TCP or UDP is received by the host alone, ports of SCTP are not
    read, and of a conversation within the machine one end's judgement is told. For the other the judge is asked without
    a packet.
    """

    def __init__(self, judge: Judge, endpoints: Iterable[Endpoint], addresses: Iterable[Address]) -> None:
        self._judge = judge
        self._endpoints: dict[int, Endpoint] = {}
        self._addresses: dict[tuple[int, int], Address] = {}
        nowhere = _our(ip_address("0.0.0.0"))
        for endpoint in endpoints:
            self._endpoints.setdefault(judge.egress_remote(endpoint, nowhere, TCP, 1).local, endpoint)
        for address in addresses:
            identity = judge.egress_remote(None, address, TCP, 1).remote
            self._addresses.setdefault((identity, address.version), address)

    def __call__(
        self, compiled: Compiled, local: int, direction: int, remote: int, protocol: int, port: int
    ) -> PolicyEntry | None:
        ruling = self._by_packet(local, Direction(direction), remote, protocol, port)
        if ruling is None or not _decides(ruling, Direction(direction)):
            ruling = self._judge.ask(local, Direction(direction), remote, protocol, port)
        if ruling.verdict is not Verdict.ALLOW:
            return None
        rule_id = RuleId(ruling.rule_id)
        return PolicyEntry(rule_id, compiled.rules[rule_id].expires)

    def _by_packet(self, local: int, direction: Direction, remote: int, protocol: int, port: int) -> Ruling | None:
        near, far = self._endpoints.get(local), self._endpoints.get(remote)
        # The programs do not read the ports of SCTP: a packet of it is asked about as port 0.
        if near is None or (protocol == SCTP and port):
            return None
        if remote == Identity.WORLD or remote >> 31:
            return self._with_address(near, direction, remote, protocol, port)
        if far is None or protocol not in (TCP, UDP):
            return None
        origin, target = (near, far) if direction is Direction.EGRESS else (far, near)
        return self._judge.egress_local(origin, target, protocol, port, 4)

    def _with_address(
        self, near: Endpoint, direction: Direction, remote: int, protocol: int, port: int
    ) -> Ruling | None:
        versions = {ICMP: (4,), ICMPV6: (6,)}.get(protocol, (4, 6))
        found = (self._addresses.get((remote, version)) for version in versions)
        address = next((address for address in found if address is not None), None)
        if address is None:
            return None
        if direction is Direction.EGRESS:
            return self._judge.egress_remote(near, address, protocol, port)
        return self._judge.ingress(address, near, protocol, port) if protocol in (TCP, UDP) else None


def _decides(ruling: Ruling, direction: Direction) -> bool:
    """Whether a ruling is policy's, and that of the end that was asked: the other may allow by another rule."""
    refused = ruling.verdict is Verdict.DENY and ruling.reason in _POLICY_REASONS
    return (ruling.verdict is Verdict.ALLOW or refused) and ruling.direction is direction
