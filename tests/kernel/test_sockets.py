"""Adoption and restamping of real sockets, in a private control group and network namespace."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bulkhead.abi import Direction, SockFlag, SockState, Verdict
from bulkhead.identity.cgroups import CgroupTree
from bulkhead.identity.processes import Process, executable_of, read
from bulkhead.kernel.diag import SocketDiag, SocketEntry
from bulkhead.kernel.libbpf import Map
from bulkhead.kernel.sockets import AdoptionReport, adopt, read_state, restamp
from lab.cgroup import cgroup_subtree, child, enter, read_line, tell
from lab.loopback import private_loopback
from lab.storage import sk_storage_map

ADOPTED = SockFlag.ADOPTED | SockFlag.ORIGIN
SLEEP = shutil.which("sleep") or "/usr/bin/sleep"
LISTEN = "import socket, os\ns = socket.create_server(('127.0.0.1', 0))\nprint(s.getsockname()[1], flush=True)\n"


@dataclass(frozen=True)
class Lab:
    root: Path
    tree: CgroupTree
    storage: Map

    def group(self, name: str) -> Path:
        directory = self.root / name
        directory.mkdir(exist_ok=True)
        return directory

    def states(self, port: int) -> dict[str, SockState | None]:
        """The stored state of every TCP socket with that local port, by the name of its TCP state."""
        return {entry.state.name: decode(entry) for entry in self.entries() if entry.socket_id.source_port == port}

    def entries(self) -> tuple[SocketEntry, ...]:
        with SocketDiag() as diag:
            return diag.dump(storage_map_fd=self.storage.fd.fileno()).sockets

    def adopt(self, *pids: int) -> AdoptionReport:
        return adopt(self.storage, self.tree, [facts(pid) for pid in pids])


@pytest.fixture
def lab() -> Iterator[Lab]:
    with private_loopback(), cgroup_subtree() as root, sk_storage_map(ctypes.sizeof(SockState)) as storage:
        yield Lab(root, CgroupTree(root), storage)


@pytest.fixture
def home(lab: Lab) -> Lab:
    """The lab with the test's own process inside its root."""
    enter(lab.group("self"), os.getpid())
    return lab


def facts(pid: int) -> Process:
    process = read(pid)
    assert process is not None
    return process


def decode(entry: SocketEntry) -> SockState | None:
    return None if entry.storage is None else SockState.from_buffer_copy(entry.storage)


def stamp_of(lab: Lab, one: socket.socket) -> SockState:
    state = read_state(lab.storage, one.fileno())
    assert state is not None
    return state


def put(lab: Lab, one: socket.socket, state: SockState) -> None:
    lab.storage.update(struct.pack("=i", one.fileno()), bytes(state))


def test_an_adopted_socket_carries_the_facts_of_its_process(lab: Lab) -> None:
    group = lab.group("web")
    with child(LISTEN + "input()", cgroup=group) as process:
        port = int(read_line(process))
        report = lab.adopt(process.pid)
        assert (report.stamped, report.complete) == (1, True)

        state = lab.states(port)["LISTEN"]
        executable = executable_of(process.pid)
        assert state is not None
        assert executable is not None
        assert executable.key is not None
        assert state.flags == SockFlag.ORIGIN
        assert state.cgroup_id == group.stat().st_ino
        assert state.tgid == process.pid
        assert (state.exe_inode, state.exe_device) == (executable.key.inode, executable.key.device)
        assert state.exe_generation == (executable.key.generation or 0)
        assert (state.uid, state.gid) == (os.geteuid(), os.getegid())
        assert state.comm == facts(process.pid).comm.encode()
        assert (state.generation, state.identity_generation, state.verdict) == (0, 0, Verdict.NONE)
        assert state.opened_ns > 0
        (entry,) = lab.entries()
        assert state.socket_cookie == entry.socket_id.cookie


def test_who_opened_and_who_accepted_is_told_by_the_listener(home: Lab) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as opener,
        listener.accept()[0] as accepted,
        socket.socket() as idle,
    ):
        home.adopt(os.getpid())
        assert stamp_of(home, opener).flags == ADOPTED | SockFlag.OPENED
        assert stamp_of(home, opener).direction == Direction.EGRESS
        assert stamp_of(home, accepted).flags == ADOPTED
        assert stamp_of(home, accepted).direction == Direction.INGRESS
        assert stamp_of(home, listener).flags == SockFlag.ORIGIN
        assert stamp_of(home, idle).flags == SockFlag.ORIGIN


def test_a_listener_of_another_process_tells_who_accepted(lab: Lab) -> None:
    # The parent keeps only the listener, the worker only the conversation.
    code = (
        LISTEN
        + """
c, _ = s.accept()
worker = os.fork()
(c if worker else s).close()
print(worker, flush=True) if worker else None
input()
"""
    )
    with child(code, cgroup=lab.group("a")) as process:
        port = int(read_line(process))
        with socket.create_connection(("127.0.0.1", port)):
            worker = int(read_line(process))
            lab.adopt(process.pid, worker)
            state = lab.states(port)["ESTABLISHED"]
            assert state is not None
            assert (state.flags, state.tgid, state.direction) == (ADOPTED, worker, Direction.INGRESS)
        tell(process, "parent")
        tell(process, "worker")


def test_a_listener_in_another_network_namespace_proves_nothing(home: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with private_loopback():
            # The same port number, opened from, in a namespace where nobody listens on it any more.
            with socket.create_server(("127.0.0.1", 0)) as server:
                opener = socket.create_connection(server.getsockname(), source_address=("127.0.0.1", port))
                accepted, _ = server.accept()
            with opener, accepted:
                home.adopt(os.getpid())
                assert SockFlag.OPENED & stamp_of(home, opener).flags


def test_what_an_adopted_listener_accepts_later_inherits_the_stamp(home: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        home.adopt(os.getpid())
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            state = stamp_of(home, accepted)
            assert (state.flags, state.tgid) == (SockFlag.ORIGIN, os.getpid())


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_datagram_and_raw_sockets_are_adopted_for_what_they_are(home: Lab, family: socket.AddressFamily) -> None:
    protocol = socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
    with socket.socket(family, socket.SOCK_DGRAM) as datagram, socket.socket(family, socket.SOCK_RAW, protocol) as raw:
        home.adopt(os.getpid())
        assert stamp_of(home, datagram).flags == ADOPTED
        assert stamp_of(home, raw).flags == ADOPTED | SockFlag.RAW


def test_sockets_of_other_families_are_left_alone(home: Lab) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        home.adopt(os.getpid())
        assert read_state(home.storage, one.fileno()) is None


def test_a_stamp_given_by_a_hook_wins(home: Lab) -> None:
    with socket.socket() as one:
        put(home, one, SockState(flags=SockFlag.ORIGIN, tgid=7, cgroup_id=9, generation=3, local_identity=5))
        report = home.adopt(os.getpid())
        state = stamp_of(home, one)
        assert (state.flags, state.tgid, state.cgroup_id, state.generation) == (SockFlag.ORIGIN, 7, 9, 3)
        assert report.kept >= 1


def test_a_judged_socket_without_origin_gets_one_and_is_judged_anew(home: Lab) -> None:
    with socket.socket() as one:
        put(home, one, SockState(generation=3, identity_generation=3, verdict=Verdict.DENY, remote_identity=5))
        home.adopt(os.getpid())
        state = stamp_of(home, one)
        assert (state.flags, state.tgid) == (SockFlag.ORIGIN, os.getpid())
        assert (state.generation, state.identity_generation, state.remote_identity) == (0, 0, 5)


def test_adopting_twice_stamps_once(home: Lab) -> None:
    with socket.socket() as one:
        first = home.adopt(os.getpid())
        before = bytes(stamp_of(home, one))
        second = home.adopt(os.getpid())
        assert (second.stamped, second.kept) == (0, first.stamped)
        assert bytes(stamp_of(home, one)) == before


def test_the_oldest_holder_of_a_shared_socket_is_its_origin(lab: Lab) -> None:
    code = LISTEN + "p = os.fork()\nif p: print(p, flush=True)\ninput()"
    with child(code, cgroup=lab.group("a")) as process:
        port, forked = int(read_line(process)), int(read_line(process))
        lab.adopt(process.pid, forked)
        state = lab.states(port)["LISTEN"]
        assert state is not None
        assert state.tgid == process.pid
        tell(process)
        tell(process)


def test_user_and_group_are_those_of_the_opening(lab: Lab) -> None:
    code = LISTEN + "os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534); print(); input()"
    with child(code.replace("print()", "print('dropped', flush=True)"), cgroup=lab.group("a")) as process:
        port = int(read_line(process))
        assert read_line(process) == "dropped"
        lab.adopt(process.pid)
        state = lab.states(port)["LISTEN"]
        assert state is not None
        assert (state.uid, state.gid) == (0, 0)


def test_processes_outside_the_root_are_not_adopted(lab: Lab) -> None:
    with socket.socket() as one:
        report = lab.adopt(os.getpid())
        assert (report.outside, report.stamped) == (1, 0)
        assert read_state(lab.storage, one.fileno()) is None


def test_a_process_that_moved_has_its_sockets_restamped(lab: Lab) -> None:
    old, new = lab.group("old"), lab.group("new")
    with child(LISTEN + "c, _ = s.accept(); print('up', flush=True); input()", cgroup=old) as process:
        port = int(read_line(process))
        with socket.create_connection(("127.0.0.1", port)):
            assert read_line(process) == "up"
            lab.adopt(process.pid)
            enter(new, process.pid)
            report = restamp(lab.storage, lab.tree, process.pid)
            assert report.stamped == 2
            for state in lab.states(port).values():
                assert state is not None
                assert state.cgroup_id == new.stat().st_ino


def test_restamping_resets_what_was_judged_and_keeps_what_is_known(home: Lab) -> None:
    with socket.socket() as one:
        put(
            home,
            one,
            SockState(
                flags=SockFlag.ORIGIN | SockFlag.OPENED,
                tgid=os.getpid(),
                generation=4,
                identity_generation=4,
                remote_identity=77,
                peer_word=0xABCD_EF01_2345_0004,
                uid=12,
                gid=13,
                opened_ns=99,
            ),
        )
        assert restamp(home.storage, home.tree, os.getpid()).stamped == 1
        state = stamp_of(home, one)
        assert (state.generation, state.identity_generation) == (0, 0)
        assert state.peer_word == 0xABCD_EF01_2345_0000
        assert (state.remote_identity, state.uid, state.gid, state.opened_ns) == (77, 12, 13, 99)
        assert state.flags == SockFlag.ORIGIN | SockFlag.OPENED
        assert state.cgroup_id == home.group("self").stat().st_ino


def test_restamping_leaves_sockets_that_another_process_made(home: Lab) -> None:
    with socket.socket() as inherited, socket.socket() as unstamped:
        put(home, inherited, SockState(flags=SockFlag.ORIGIN, tgid=os.getpid() + 1, cgroup_id=9, generation=4))
        report = restamp(home.storage, home.tree, os.getpid())
        assert (report.stamped, report.kept) == (0, 2)
        assert stamp_of(home, inherited).cgroup_id == 9
        assert stamp_of(home, inherited).generation == 4
        assert read_state(home.storage, unstamped.fileno()) is None


def test_a_process_that_runs_another_program_has_its_sockets_restamped(lab: Lab) -> None:
    code = LISTEN + f"os.set_inheritable(s.fileno(), True); input(); os.execv({SLEEP!r}, ['sleep', '60'])"
    with child(code, cgroup=lab.group("a")) as process:
        port = int(read_line(process))
        lab.adopt(process.pid)
        tell(process)
        while facts(process.pid).comm != "sleep":
            os.sched_yield()
        assert restamp(lab.storage, lab.tree, process.pid).stamped == 1
        state, executable = lab.states(port)["LISTEN"], executable_of(process.pid)
        assert state is not None
        assert executable is not None
        assert executable.key is not None
        assert (state.exe_inode, state.comm) == (executable.key.inode, b"sleep")


def test_a_process_moved_out_of_the_root_matches_nothing_any_more(home: Lab) -> None:
    with socket.socket() as one:
        home.adopt(os.getpid())
        enter(home.root.parent, os.getpid())
        restamp(home.storage, home.tree, os.getpid())
        assert stamp_of(home, one).cgroup_id == 0


def test_restamping_a_process_that_is_gone_does_nothing(lab: Lab) -> None:
    with child("") as process:
        process.wait()
        assert restamp(lab.storage, lab.tree, process.pid) == AdoptionReport()


def test_what_cannot_be_listed_is_counted_and_said(home: Lab) -> None:
    code = f"""
import ctypes
from pathlib import Path
from bulkhead.abi import SockState
from bulkhead.identity.cgroups import CgroupTree
from bulkhead.identity.processes import read
from bulkhead.kernel.sockets import adopt
from lab.storage import sk_storage_map
with sk_storage_map(ctypes.sizeof(SockState)) as storage:
    report = adopt(storage, CgroupTree(Path({str(home.root)!r})), [read({os.getpid()})])
print(report.refused, report.complete, report, flush=True)
"""
    # The holder then has a capability that the agent lacks, and only CAP_SYS_PTRACE reaches past that.
    with socket.socket(), child(code, prefix=("setpriv", "--bounding-set=-sys_ptrace")) as process:
        assert read_line(process) == (
            f"({os.getpid()},) False 0 sockets stamped, 0 kept; processes whose sockets could not be "
            "listed: 1; what was not reached stays unattested"
        )
