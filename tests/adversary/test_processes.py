"""Processes that pretend, move, hide behind names or namespaces."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from bulkhead.abi import LifecycleEvent

from .conftest import FRIEND, OURS, POLICY, Arena, inbox, listen, outcome, until

DENIED = ("policy", "egress", "deny")
CALL = "c = socket.socket(); c.settimeout(0.3); c.connect(('127.0.0.1', 5432))"


def test_a_namespace_and_a_device_of_its_own_take_a_workload_nowhere(arena: Arena, db, rogue) -> None:
    """Joined to the host by a wire of its own making, it is refused in its calls, and as an address behind them."""
    inbox(db, 5300)
    listen(db, 5432)
    assert rogue.do("__import__('ctypes').CDLL(None).unshare(0x40000000)") == 0
    try:
        arena.host.ip("link", "add", "sly0", "type", "veth", "peer", "name", "sly1", "netns", str(rogue.pid))
        arena.host.ip("addr", "add", "10.78.0.1/24", "dev", "sly0")
        arena.host.ip("link", "set", "sly0", "up")
        rogue.do("import subprocess")
        for command in ("addr add 10.78.0.2/24 dev sly1", "link set sly1 up"):
            rogue.do(f"subprocess.run(['ip', *{command.split()!r}], check=True).returncode")
        hooked = arena.host.ask("status")["kernel"]["devices"]
        assert [one for one in hooked if one["name"] == "sly0" and one["ingress"] and one["egress"]]
        for target in ("10.78.0.1", OURS):
            rogue.do("subprocess.run(['ip', 'route', 'replace', 'default', 'via', '10.78.0.1'], check=True).returncode")
            with arena.counting() as refused:
                assert (
                    outcome(rogue, f"c = socket.socket(); c.settimeout(0.3); c.connect(({target!r}, 5432))") == "EPERM"
                )
                assert outcome(rogue, f"u = socket.socket(2, 2); u.sendto(b'x', ({target!r}, 5300))") == "EPERM"
            assert refused == {DENIED: 2}
        with arena.counting() as refused:
            outcome(rogue, "r = socket.socket(2, 3, 17); r.sendto(struct.pack('!4H', 9, 5300, 8, 0), ('10.78.0.1', 0))")
            outcome(rogue, "r = socket.socket(2, 3, 17); r.sendto(struct.pack('!4H', 9, 5300, 8, 0), ('10.78.0.1', 0))")
        assert refused == {("policy", "ingress", "deny"): 2}
        assert outcome(db, "inbox.settimeout(0.1); inbox.recv(9)") == "timeout"
    finally:
        arena.host.ip("link", "del", "sly0")


def test_a_name_that_is_cut_in_its_report_stands_for_no_other_group(arena: Arena, db) -> None:
    """The kernel reports a group's path in a field of fixed size; what it cuts off may have made it another name."""
    listen(db, 5432)
    room = LifecycleEvent.path.size - 1
    unit = "look.service"
    policy = POLICY.replace("  db:", f"  look: {{match: {{unit: {unit}}}, mode: enforce}}\n  db:")
    policy += "  - {name: look-db, from: look, to: db, ports: [5432]}\n"
    head = f"/{arena.host.cgroup.name}/"
    filler = room - len(head) - len(unit) - len(".slice/.slice/")
    group = f"{'n' * (filler // 2)}.slice/{'m' * (filler - filler // 2)}.slice/{unit}-is-not-it"
    with arena.policy(policy):
        pretender = arena.host.puppet(group)
        real = arena.host.puppet(f"system.slice/{unit}")
        assert until(lambda: outcome(real, CALL) == "ok")
        for _ in range(5):
            assert outcome(pretender, CALL) == "EPERM"
        pretender.end()
        real.end()
    assert (f"{head}{group}".encode())[:room].endswith(unit.encode())


@pytest.mark.parametrize("comm", [b"\x1b[2J\x1b]0;owned\x07", b"\xff\xfe\xfd", b"a\nb: allow\r", b"%s{}{0}$(id)"])
def test_a_process_name_cannot_write_to_the_terminal(arena: Arena, rogue, comm: bytes) -> None:
    rogue.do(f"open('/proc/self/comm', 'wb').write({comm!r})")
    outcome(rogue, "c = socket.socket(); c.connect(('127.0.0.1', 5999))")
    for command in (("drops", "--since", "5s"), ("drops", "--since", "5s", "-o", "json")):
        shown = arena.host.bulkhead(*command, check=False)
        assert not [one for one in shown.stdout + shown.stderr if ord(one) < 32 and one != "\n"], command
    assert json.loads(shown.stdout)["data"]["records"]


@pytest.mark.parametrize("name", [b"\xff\xfe", b"\x1b[31mred", b"..hidden", b"sshd.service", b"a'b\"c\\"])
def test_a_group_may_be_called_anything_and_stays_what_it_is(arena: Arena, db, rogue, name: bytes) -> None:
    listen(db, 5432)
    directory = os.fsencode(arena.host.cgroup / "t/rogue") + b"/" + name
    os.mkdir(directory)
    Path(os.fsdecode(directory + b"/cgroup.procs")).write_text(str(rogue.pid))
    with arena.counting() as refused:
        assert until(lambda: outcome(rogue, CALL) == "EPERM")
    assert refused[DENIED] >= 1
    shown = arena.host.bulkhead("workloads").stdout
    assert not [one for one in shown if ord(one) < 32 and one != "\n"]
    assert arena.host.ask("workloads")


def test_a_child_that_moves_away_keeps_what_it_inherited_and_opens_nothing_new(arena: Arena, db, web) -> None:
    """The socket says who opened it. A stated limit for what was open; never for what is opened."""
    listen(db, 5432)
    rogue = arena.host.cgroup / "t/rogue/cgroup.procs"
    rogue.parent.mkdir(parents=True, exist_ok=True)
    web.do("c = socket.create_connection(('127.0.0.1', 5432), 1); r, w = os.pipe()")
    web.do(
        f"""
pid = os.fork()
if pid == 0:
    open({str(rogue)!r}, 'w').write('0')
    said = b''
    try:
        c.send(b'x'); said += b'sent '
        n = socket.socket(); n.settimeout(0.3); n.connect(('127.0.0.1', 5432)); said += b'opened'
    except OSError as error:
        said += error.__class__.__name__.encode()
    os.write(w, said); os._exit(0)
os.waitpid(pid, 0)
"""
    )
    assert web.do("os.read(r, 99).decode()") in ("sent PermissionError", "sent TimeoutError")


def test_groups_and_moves_are_found_again_after_their_events_were_lost(arena: Arena, db) -> None:
    listen(db, 5432)
    assert arena.host.agent is not None
    with arena.another("web") as mover:
        mover.do("keep = socket.create_connection(('127.0.0.1', 5432), 1)")
        before = arena.losses()["lifecycle"]
        os.kill(arena.host.agent.pid, 19)
        try:
            crowd = arena.host.cgroup / "t/crowd"
            crowd.mkdir()
            for _ in range(1200):
                (crowd / "one").mkdir()
                (crowd / "one").rmdir()
            late = arena.host.puppet("t/web/late")
            (arena.host.cgroup / "t/rogue/cgroup.procs").write_text(str(mover.pid))
            assert outcome(late, CALL) in ("timeout", "EPERM")
            assert outcome(mover, CALL) == "EPERM"
        finally:
            os.kill(arena.host.agent.pid, 18)
        assert until(lambda: outcome(late, CALL) == "ok")
        assert arena.losses()["lifecycle"] > before
        db.do("k, _ = listener.accept(); k.settimeout(0.3)")
        mover.do("keep.settimeout(0.3)")
        assert until(lambda: outcome(mover, "keep.send(b'x'); keep.recv(1)") not in ("ok", "timeout"))
        late.end()


_RING = """
import ctypes, mmap, os, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
params = ctypes.create_string_buffer(120)
ring = libc.syscall(425, 4, params)
sq_entries, cq_entries = struct.unpack_from('II', params, 0)
sq = struct.unpack_from('8I', params, 40); cq = struct.unpack_from('8I', params, 80)
sq_map = mmap.mmap(ring, sq[6] + 4 * sq_entries, flags=mmap.MAP_SHARED, offset=0)
cq_map = mmap.mmap(ring, cq[5] + 16 * cq_entries, flags=mmap.MAP_SHARED, offset=0x8000000)
sqes = mmap.mmap(ring, 64 * sq_entries, flags=mmap.MAP_SHARED, offset=0x10000000)
def submit(opcode, fd, address, length, offset=0):
    tail = struct.unpack_from('I', sq_map, sq[1])[0]
    slot = tail & (sq_entries - 1)
    struct.pack_into('=BBHiQQI', sqes, 64 * slot, opcode, 0, 0, fd, offset, address, length)
    struct.pack_into('I', sq_map, sq[6] + 4 * slot, slot)
    struct.pack_into('I', sq_map, sq[1], tail + 1)
    assert libc.syscall(426, ring, 1, 1, 1, None, 0) == 1
    head = struct.unpack_from('I', cq_map, cq[0])[0]
    result = struct.unpack_from('QiI', cq_map, cq[5] + 16 * (head & (cq_entries - 1)))[1]
    struct.pack_into('I', cq_map, cq[0], head + 1)
    return result
c = socket.socket()
address = struct.pack('<H', 2) + struct.pack('!H', 5432) + socket.inet_aton('127.0.0.1') + bytes(8)
to = ctypes.create_string_buffer(address)
connected = submit(16, c.fileno(), ctypes.addressof(to), 0, 16)
"""


def test_io_uring_asks_the_same_judge(arena: Arena, db, web, rogue) -> None:
    listen(db, 5432)
    if (
        web.do("__import__('ctypes').CDLL(None).syscall(425, 0, 0)") == -1
        and Path("/proc/sys/kernel/io_uring_disabled").read_text().strip() == "2"
    ):
        pytest.skip("this kernel has io_uring switched off")
    web.do(_RING)
    assert web.do("connected") == 0
    web.do("text = ctypes.create_string_buffer(b'ring'); sent = submit(26, c.fileno(), ctypes.addressof(text), 4)")
    assert web.do("sent") == 4
    db.do("k, _ = listener.accept()")
    assert db.do("k.recv(9).decode()") == "ring"
    with arena.counting() as refused:
        rogue.do(_RING)
    assert rogue.do("connected") == -1
    assert refused == {DENIED: 1}


def test_a_second_path_of_a_conversation_is_judged_by_its_own_address(arena: Arena, web) -> None:
    arena.host.run("", ["ip", "mptcp", "limits", "set", "add_addr_accepted", "4", "subflows", "4"])
    arena.peer.run("", ["ip", "mptcp", "limits", "set", "add_addr_accepted", "4", "subflows", "4"])
    arena.peer.run("", ["ip", "mptcp", "endpoint", "add", "10.77.0.3", "dev", "eth0", "signal"])
    before = arena.refused()[DENIED]
    with arena.at_peer(kind=socket.SOCK_STREAM, proto=262) as server, arena.counting() as refused:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("0.0.0.0", 7000))
        server.listen()
        web.do(f"c = socket.socket(2, 1, 262); c.settimeout(1); c.connect(({FRIEND!r}, 7000)); c.send(b'first')")
        one, _ = server.accept()
        with one:
            assert one.recv(9) == b"first"
            assert until(lambda: arena.refused()[DENIED] > before)
            one.send(b"back")
            assert web.do("c.recv(9).decode()") == "back"
        web.do("c.close()")
    arena.peer.run("", ["ip", "mptcp", "endpoint", "flush"])
    assert refused[DENIED] >= 1
    assert set(refused) == {DENIED}
