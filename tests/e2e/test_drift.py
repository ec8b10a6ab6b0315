"""Somebody tampers with the kernel behind the agent's back: it is found, put right and told within a second."""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from bulkhead.abi import CgroupEntry, Control, Mode, PolicyEntry, PolicyKey
from bulkhead.errors import KernelError
from bulkhead.kernel import libbpf, netns
from bulkhead.kernel.libbpf import AttachType, MapType
from lab.bpf import device_program
from lab.host import Host
from lab.policies import policy

FAR4 = "10.77.0.2"
TC_ACT_OK = 0
WITHIN_S = 1.0
_TRIES = 5


@pytest.fixture
def enforced(host: Host, far: Host, puppets):
    """`api` may reach the far end's port 80, `web` may not; both with a conversation to try."""
    host.enforce(policy("api -> far 80", externals={"far": "{cidr: [10.77.0.2/32]}"}))
    outside, api, web = puppets(far, "any"), puppets(host, "api"), puppets(host, "web")
    outside.serve_tcp("0.0.0.0", 80)
    assert (api.tcp(FAR4, 80), web.tcp(FAR4, 80)) == ("ok", "EPERM")
    return api, web


def found(host: Host) -> int:
    return int(host.call("status")["drift"]["found"])


def repaired(host: Host, tamper: Callable[[], object], is_right: Callable[[], bool]) -> str:
    """Tamper, wait until all is right again, and say what the agent reported of it.

    Done again when it took too long, because the machine may be busy with something else for a while.
    """
    for _ in range(_TRIES):
        took = _repair_time(host, tamper, is_right)
        if took < WITHIN_S:
            break
    else:
        raise AssertionError(f"repaired after {took:.2f} s, {_TRIES} times too late")
    status = host.call("status")
    assert status["git_equals_kernel"] and not status["differences"], status["differences"]
    last = status["drift"]["recent"][-1]
    assert last["repaired"]
    return str(last["what"])


def _repair_time(host: Host, tamper: Callable[[], object], is_right: Callable[[], bool]) -> float:
    before = found(host)
    started = time.monotonic()
    tamper()
    while found(host) == before or not is_right():
        assert time.monotonic() - started < 5, f"not repaired:\n{host.log()[-3000:]}"
    return time.monotonic() - started


def link(host: Host, name: str) -> libbpf.Fd:
    return libbpf.obj_get(host.pins / "links" / name)


def index_of(host: Host, device: str) -> int:
    return int(host.ip("-o", "link", "show", device).partition(":")[0])


def is_hooked(host: Host, device: str) -> bool:
    devices = {one["name"]: one for one in host.call("status")["kernel"]["devices"]}
    return bool(devices[device]["ingress"] and devices[device]["egress"])


def test_a_detached_device_hook_is_attached_again_and_nothing_denied_passes(host: Host, enforced) -> None:
    api, web = enforced
    name = f"tcx_{index_of(host, 'eth0')}_egress"

    def tamper() -> None:
        with link(host, name) as one:
            libbpf.link_detach(one)
        assert web.tcp(FAR4, 80) == "EPERM", "the connect hook still stands"

    what = repaired(host, tamper, lambda: is_hooked(host, "eth0"))
    assert what == "eth0 egress was not attached"
    assert (api.tcp(FAR4, 80), web.tcp(FAR4, 80)) == ("ok", "EPERM")


def test_a_detached_connect_hook_is_attached_again_and_nothing_denied_passes(host: Host, enforced) -> None:
    _, web = enforced

    def tamper() -> None:
        with link(host, "cgroup_connect4") as one:
            libbpf.link_detach(one)
        assert web.tcp(FAR4, 80) in ("EPERM", "timeout"), "the device hook still stands"

    assert "connect4 was not attached" in repaired(host, tamper, lambda: web.tcp(FAR4, 80) == "EPERM")


def test_a_removed_pin_is_made_again(host: Host, enforced) -> None:
    del enforced
    path = host.pins / "maps" / "refusals"
    assert repaired(host, path.unlink, path.exists) == "the pin `refusals` was removed"


def test_a_table_in_force_cannot_be_edited(host: Host, enforced) -> None:
    del enforced
    slot = Control.from_buffer_copy(read(host, "control", bytes(4))).generation & 1
    key = PolicyKey(prefix_bits=80, local_identity=1, remote_identity=3, protocol=6)
    with libbpf.map_open(host.pins / "slots" / f"policy_{slot}") as table, pytest.raises(KernelError):
        table.update(bytes(key), bytes(PolicyEntry(rule_id=1)))


def read(host: Host, name: str, key: bytes) -> bytes:
    with libbpf.map_open(host.pins / "maps" / name) as opened:
        return opened.lookup(key) or b""


def write(host: Host, name: str, key: bytes, value: bytes) -> None:
    with libbpf.map_open(host.pins / "maps" / name) as opened:
        opened.update(key, value)


def test_a_table_put_in_the_place_of_ours_opens_nothing_for_long(host: Host, enforced) -> None:
    """The policy table of the generation in force is replaced by one in which everything is allowed."""
    api, web = enforced
    slot = Control.from_buffer_copy(read(host, "control", bytes(4))).generation & 1
    identity = {one["name"]: one["identity"] for one in host.call("workloads")["workloads"]}["t/web"]

    def tamper() -> None:
        with libbpf.map_create(
            MapType.LPM_TRIE,
            "rogue",
            ctypes.sizeof(PolicyKey),
            ctypes.sizeof(PolicyEntry),
            8,
            libbpf.BPF_F_NO_PREALLOC,
        ) as rogue:
            for remote in range(3, 4):
                key = PolicyKey(prefix_bits=80, local_identity=identity, remote_identity=remote, protocol=6)
                rogue.update(bytes(key), bytes(PolicyEntry(rule_id=1)))
            write(host, "policy", slot.to_bytes(4, "little"), rogue.fd.fileno().to_bytes(4, "little"))

    what = repaired(host, tamper, lambda: api.tcp(FAR4, 80) == "ok" and web.tcp(FAR4, 80) == "EPERM")
    assert what == "the table `policy` in force was replaced"


def test_a_rewritten_generation_word_is_put_right(host: Host, enforced) -> None:
    _, web = enforced

    def tamper() -> None:
        word = Control.from_buffer_copy(read(host, "control", bytes(4)))
        write(host, "control", bytes(4), bytes(Control(generation=word.generation - 1, flags=0)))

    what = repaired(host, tamper, lambda: web.tcp(FAR4, 80) == "EPERM")
    assert "the word that selects the generation" in what


def test_a_control_group_given_another_identity_gets_its_own_back(host: Host, enforced) -> None:
    """The rogue makes itself `api`, and opens a conversation before it is found out: that is cut."""
    _, web = enforced
    identity = {one["name"]: one["identity"] for one in host.call("workloads")["workloads"]}["t/api"]
    group = os.stat(host.cgroup / "web").st_ino
    slot = Control.from_buffer_copy(read(host, "control", bytes(4))).generation & 1

    def tamper() -> None:
        with libbpf.map_open(host.pins / "slots" / f"cgroups_{slot}") as table:
            entry = CgroupEntry(identity=identity, mode=Mode.OBSERVE, needs=0)
            table.update(group.to_bytes(8, "little"), bytes(entry))

    what = repaired(host, tamper, lambda: web.tcp(FAR4, 80) == "EPERM")
    assert what == "entries of `cgroups`: 0 missing, 1 changed, 0 foreign"


def test_another_second_stage_is_replaced_by_ours(host: Host, enforced) -> None:
    _, web = enforced

    def tamper() -> None:
        with device_program(TC_ACT_OK) as foreign:
            write(host, "stages", bytes(4), foreign.fileno().to_bytes(4, "little"))

    what = repaired(host, tamper, lambda: web.tcp(FAR4, 80) == "EPERM")
    assert what == "the second stage `stage_egress` was replaced"


def test_a_program_that_goes_before_ours_is_put_behind_it(host: Host, enforced) -> None:
    """It would let everything pass: TC_ACT_OK ends the chain before our program is asked."""
    _, web = enforced
    index = index_of(host, "eth0")
    with ExitStack() as stack:

        def tamper() -> None:
            foreign = stack.enter_context(device_program(TC_ACT_OK))
            with netns.entered(Path(f"/run/netns/{host.netns}")):
                hook = libbpf.link_create(foreign, index, AttachType.TCX_EGRESS, libbpf.BPF_F_BEFORE)
            stack.enter_context(hook)

        what = repaired(host, tamper, lambda: web.udp(FAR4, 9) == "EPERM" and is_hooked(host, "eth0"))
        assert what == "another program runs before ours on eth0 egress"


def test_an_hour_of_tampering_in_a_few_seconds_always_ends_with_the_kernel_equal_to_git(host: Host, enforced) -> None:
    """Every kind of tampering, many times, in changing order; between them `status` tells the truth."""
    api, web = enforced
    egress = f"tcx_{index_of(host, 'eth0')}_egress"

    def detach(name: str) -> None:
        with link(host, name) as one:
            libbpf.link_detach(one)

    def clear_word() -> None:
        write(host, "control", bytes(4), bytes(Control()))

    tampering = [
        lambda: detach(egress),
        lambda: detach("cgroup_connect4"),
        (host.pins / "links" / "cgroup_connect6").unlink,
        clear_word,
        (host.pins / "maps" / "edges").unlink,
    ]
    for number in range(15):
        repaired(host, tampering[(number * 7 + number // 5) % len(tampering)], lambda: web.tcp(FAR4, 80) == "EPERM")
    assert api.tcp(FAR4, 80) == "ok"


@pytest.fixture(scope="module")
def by_filters(host: Host):
    """The shared host with its devices hooked by clsact."""
    host.stop_agent()
    host.prefer = "clsact"
    host.start_agent()
    yield host
    host.stop_agent()
    host.prefer = "tcx"
    host.start_agent()


@pytest.mark.parametrize(
    "command",
    [
        ["tc", "qdisc", "del", "dev", "eth0", "clsact"],
        ["tc", "filter", "del", "dev", "eth0", "egress"],
    ],
)
def test_a_deleted_qdisc_or_filter_is_made_again_at_once(by_filters: Host, enforced, command: list[str]) -> None:
    _, web = enforced

    def tamper() -> None:
        subprocess.run(["ip", "netns", "exec", by_filters.netns, *command], check=True, capture_output=True)
        assert web.tcp(FAR4, 80) == "EPERM"

    assert "eth0" in repaired(by_filters, tamper, lambda: is_hooked(by_filters, "eth0"))
