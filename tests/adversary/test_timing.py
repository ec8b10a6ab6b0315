"""Windows: policy switches, restarts, groups that have just come to be. In none of them does a refused pair connect,
and in none of them is an allowed one refused.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from .conftest import POLICY, Arena, got, inbox, listen, outcome

_HAMMER = """
import threading
stop, tries, passed, failed = False, 0, 0, []
def hammer():
    global tries, passed
    while not stop:
        tries += 1
        one = socket.socket(); one.settimeout(0.5)
        try:
            one.connect(('127.0.0.1', 5432)); one.send(b'x'); one.recv(9); passed += 1
        except OSError as error:
            failed.append(repr(error))
        one.close()
        two = socket.socket(2, 2); two.settimeout(PATIENCE)
        try:
            two.connect(('127.0.0.1', 5300)); two.send(b'x'); two.recv(9); passed += 1
        except OSError as error:
            failed.append(repr(error))
        two.close()
thread = threading.Thread(target=hammer, daemon=True); thread.start()
"""


@contextmanager
def hammered(arena: Arena, db) -> Iterator[None]:
    """While the block runs, web calls db and succeeds every time; rogue calls it and never does."""
    db.serve_tcp("0.0.0.0", 5432)
    db.serve_udp("0.0.0.0", 5300)
    with arena.another("web") as web, arena.another("rogue") as rogue:
        web.do(_HAMMER.replace("PATIENCE", "2"))
        rogue.do(_HAMMER.replace("PATIENCE", "0.01"))
        yield
        for one in (web, rogue):
            one.do("stop = True; thread.join()")
        assert rogue.do("tries") > 20
        assert rogue.do("passed") == 0
        assert web.do("tries") > 20
        assert web.do("failed") == []


def test_fifty_unrelated_changes_open_and_refuse_nothing(arena: Arena, db) -> None:
    first = arena.maps.control().generation
    with arena.counting() as refused, hammered(arena, db):
        for number in range(50):
            commit = arena.host.commit({"t.yaml": POLICY.replace("7000/udp", f"{7100 + number}/udp")})
            if number % 5 == 4:
                arena.host.wait_for_commit(commit)
        arena.host.enforce(POLICY)
    assert arena.maps.control().generation >= first + 10
    assert set(refused) == {("policy", "egress", "deny")}


def test_killing_and_restarting_the_agent_opens_and_refuses_nothing(arena: Arena, db) -> None:
    with hammered(arena, db):
        for _ in range(3):
            arena.host.stop_agent(signal.SIGKILL)
            arena.host.start_agent()


def test_a_group_that_has_just_come_to_be_gets_nothing_before_it_is_known(arena: Arena, db, plain) -> None:
    """Into a new group, a socket, a call: as fast as a process can, a hundred times."""
    listen(db, 5432)
    inbox(db, 5300)
    parent = arena.host.cgroup / "t/rogue"
    parent.mkdir(parents=True, exist_ok=True)
    plain.do(
        f"""
passed = 0
for number in range(100):
    group = {str(parent)!r} + '/new%d' % number
    os.mkdir(group)
    open(group + '/cgroup.procs', 'w').write('0')
    one = socket.socket(); one.setblocking(False)
    two = socket.socket(2, 2)
    try:
        one.connect(('127.0.0.1', 5432))
    except OSError:
        pass
    try:
        two.sendto(b'x', ('127.0.0.1', 5300))
    except OSError:
        pass
    one.close(); two.close()
"""
    )
    assert got(db) == 0
    assert outcome(db, "listener.accept()") == "timeout"
