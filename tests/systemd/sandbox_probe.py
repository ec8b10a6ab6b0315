"""Runs in the sandbox of the agent's unit and tries what the agent never does. Prints what came of it."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

CLONE_NEWUSER = 0x10000000


def open_a_packet_socket() -> None:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW)


def map_writable_code() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)


def enter_a_user_namespace() -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER):
        raise OSError(ctypes.get_errno(), "unshare")


def write_configuration() -> None:
    Path("/etc/bulkhead-probe").touch()


def write_a_program() -> None:
    Path("/opt/bulkhead/bin/probe").touch()


def make_a_control_group() -> None:
    Path("/sys/fs/cgroup/probe").mkdir()


def change_a_kernel_setting() -> None:
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def pin_beside_its_own_directory() -> None:
    Path("/sys/fs/bpf/probe").mkdir()


def become_another_user() -> None:
    os.setuid(65534)


def leave_the_machine() -> None:
    with socket.create_connection(("192.0.2.1", 80), 1):
        pass


FORBIDDEN = (
    open_a_packet_socket,
    map_writable_code,
    enter_a_user_namespace,
    write_configuration,
    write_a_program,
    make_a_control_group,
    change_a_kernel_setting,
    pin_beside_its_own_directory,
    become_another_user,
    leave_the_machine,
)


def outcome(action: Callable[[], None]) -> str:
    """What came of it: `done`, or the failure as text."""
    try:
        action()
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return "done"


if __name__ == "__main__":
    json.dump({action.__name__: outcome(action) for action in FORBIDDEN}, sys.stdout)
