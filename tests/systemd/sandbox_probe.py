#!/usr/bin/python3
"""Stands where `bulkhead` stands when its units are tested: does what loader and agent need, tries what they must not.

Runs in a box, from /opt/bulkhead/bin/bulkhead, on the system's Python with a copy of the source tree beside it.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, "/opt/bulkhead/agent")

from bulkhead.errors import BulkheadError
from bulkhead.identity.cgroups import CgroupTree
from bulkhead.kernel import libbpf, load, rtnetlink
from bulkhead.kernel.programs import TRACEPOINTS

PINS = Path("/sys/fs/bpf/bulkhead")
STATE = Path("/var/lib/bulkhead")
OTHER = "/system.slice/other.service"
LOOPBACK = 1
TCX_INGRESS = 46
CLONE_NEWUSER = 0x10000000
SYS_PIDFD_GETFD = 438


def other_pid() -> int:
    return int(Path("/sys/fs/cgroup" + OTHER, "cgroup.procs").read_text())


def attach_and_pin_a_link() -> None:
    pin = PINS / "links/probe"
    pin.unlink(missing_ok=True)
    with (
        libbpf.obj_get(PINS / "programs/tc_ingress_loopback") as program,
        libbpf.link_create(program, LOOPBACK, TCX_INGRESS) as link,
    ):
        libbpf.obj_pin(link, pin)


def open_a_raw_tracepoint() -> None:
    name, tracepoint = next(iter(TRACEPOINTS.items()))
    with libbpf.obj_get(PINS / "programs" / name) as program, libbpf.raw_tracepoint_open(tracepoint, program):
        pass


def read_a_pinned_map() -> None:
    with libbpf.map_open(PINS / "maps/setting") as setting:
        assert setting.lookup(bytes(4))


def talk_rtnetlink() -> None:
    with rtnetlink.Rtnetlink() as netlink:
        assert netlink.dump(18, bytes(16), "list devices")


def name_the_program_of_another_user() -> None:
    assert Path(f"/proc/{other_pid()}/exe").stat().st_ino == Path("/usr/bin/sleep").stat().st_ino


def borrow_a_descriptor_of_another_user() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(other_pid())
    fd = libc.syscall(SYS_PIDFD_GETFD, pidfd, 0, 0)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")


def find_a_group_by_its_id() -> None:
    tree = CgroupTree(Path("/sys/fs/cgroup"))
    group = tree.cgroup_id(OTHER)
    assert group is not None
    assert tree.path_of(group) == OTHER


def listen_for_metrics() -> None:
    with socket.create_server(("127.0.0.1", 0)):
        pass


def serve_control_and_keep_state() -> None:
    with socket.socket(socket.AF_UNIX) as control:
        Path("/run/bulkhead/probe.sock").unlink(missing_ok=True)
        control.bind("/run/bulkhead/probe.sock")
    (STATE / "probe").write_text("kept")


def make_a_callback() -> None:
    assert ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 7)() == 7


def open_a_packet_socket() -> None:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW)


def map_writable_code() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)


def enter_a_user_namespace() -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER):
        raise OSError(ctypes.get_errno(), "unshare")


def write_configuration() -> None:
    Path("/etc/bulkhead-probe").touch()


def make_a_control_group() -> None:
    Path("/sys/fs/cgroup/probe").mkdir()


def change_a_kernel_setting() -> None:
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


NEEDED = (
    attach_and_pin_a_link,
    open_a_raw_tracepoint,
    read_a_pinned_map,
    talk_rtnetlink,
    name_the_program_of_another_user,
    borrow_a_descriptor_of_another_user,
    find_a_group_by_its_id,
    listen_for_metrics,
    serve_control_and_keep_state,
    make_a_callback,
)
FORBIDDEN = (
    open_a_packet_socket,
    map_writable_code,
    enter_a_user_namespace,
    write_configuration,
    make_a_control_group,
    change_a_kernel_setting,
)
ACTIONS = {"needed": NEEDED, "forbidden": FORBIDDEN}


def outcome(action: Callable[[], None]) -> str:
    """What came of it: `done`, or the failure as text."""
    try:
        action()
    except (OSError, BulkheadError, AssertionError) as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def notify(state: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.sendto(state.encode(), os.environ["NOTIFY_SOCKET"])


def agent() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    found = {kind: {action.__name__: outcome(action) for action in actions} for kind, actions in ACTIONS.items()}
    (STATE / "probe.json").write_text(json.dumps(found))
    notify("READY=1")
    interval_s = int(os.environ["WATCHDOG_USEC"]) / 2e6
    while True:
        if signal.sigtimedwait({signal.SIGHUP}, interval_s):
            (STATE / "reloaded").touch()
        notify("WATCHDOG=1")


if __name__ == "__main__":
    if sys.argv[1] == "loader":
        load.load(PINS)
    else:
        agent()
