"""Logins are as old as their processes, on a clock that nobody sets."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import pytest

from bulkhead.errors import RefusedError
from bulkhead.identity.sessions import login_of


def test_a_login_over_the_network_is_as_old_as_the_process_that_serves_it() -> None:
    """The listener lives in a parent; the child holds the connection alone, as sshd's does."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        served, _ = listener.accept()
        before = time.clock_gettime(time.CLOCK_BOOTTIME)
        with served:
            command = [
                sys.executable,
                "-c",
                "import os, sys; os.close(0); sys.stdin = None; input = None; os.read(3, 1)",
            ]
            command[2] = f"import os; os.read({served.fileno()}, 1)"
            with subprocess.Popen(command, pass_fds=[served.fileno()]) as child:
                login = login_of(child.pid)
                client.send(b"x")
    after = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert (login.pid, login.is_local) == (child.pid, True)
    assert before - 0.02 <= login.started_s <= after


def test_who_has_left_his_login_is_told_so() -> None:
    code = "import os, sys; print(os.getpid(), flush=True); sys.stdin.read()"
    command = ["setsid", "--fork", sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        with pytest.raises(RefusedError, match="belongs to no login"):
            login_of(pid)
