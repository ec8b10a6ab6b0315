"""Hooks on private devices and control groups: put in place, kept over restarts, removed without trace."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulkhead.abi import Direction
from bulkhead.errors import KernelError, RefusedError
from bulkhead.kernel import clsact, libbpf
from bulkhead.kernel.attach import (
    Attachment,
    Attachments,
    DevicePrograms,
    Mechanism,
    Programs,
    detach_all,
    tcx_is_available,
)
from bulkhead.kernel.clsact import Tc
from bulkhead.kernel.devices import Device, Framing, list_devices
from bulkhead.kernel.libbpf import AttachType, Fd
from lab.bpf import (
    TC_ACT_SHOT,
    TC_ACT_UNSPEC,
    address_program,
    can_attach,
    device_program,
    pin_directory,
    tracepoint_program,
)
from lab.cgroup import cgroup_subtree
from lab.netns import Namespace, network_namespace

pytestmark = pytest.mark.skipif(not can_attach(), reason="needs root and a BPF file system")

MECHANISMS: tuple[Mechanism, ...] = ("tcx", "clsact")


@pytest.fixture(params=MECHANISMS)
def mechanism(request: pytest.FixtureRequest) -> Mechanism:
    chosen: Mechanism = request.param
    if chosen == "tcx" and not tcx_is_available():
        pytest.skip("this kernel has no tcx")
    return chosen


@contextlib.contextmanager
def programs(verdict: int = TC_ACT_UNSPEC, connect: int = 1, *, tracepoints: bool = False) -> Iterator[Programs]:
    """Programs of one answer: `verdict` for devices, `connect` for connect()."""
    devices = {
        framing: DevicePrograms(device_program(verdict, "test_in"), device_program(verdict, "test_out"))
        for framing in Framing
    }
    on_connect = address_program(AttachType.CGROUP_CONNECT4, connect)
    on_mkdir = {"cgroup_mkdir": tracepoint_program()} if tracepoints else {}
    made = [fd for pair in devices.values() for fd in (pair.ingress, pair.egress)]
    opened = Programs(
        opened={str(number): fd for number, fd in enumerate([*made, on_connect, *on_mkdir.values()])},
        devices=devices,
        cgroup={AttachType.CGROUP_CONNECT4: on_connect},
        tracepoints=on_mkdir,
    )
    try:
        yield opened
    finally:
        opened.close()


@contextlib.contextmanager
def attachments(
    pins: Path, verdict: int = TC_ACT_UNSPEC, prefer: Mechanism = "tcx", cgroup: Path | None = None, connect: int = 1
) -> Iterator[Attachments]:
    """One life of an agent: what it attached stays when the block is left."""
    with programs(verdict, connect) as opened, Attachments(pins, opened, cgroup, prefer) as made:
        yield made


def _by_name(name: str) -> Device:
    (found,) = [device for device in list_devices() if device.name == name]
    return found


def _hooks(made: Attachments) -> set[tuple[str, str, str]]:
    return {(a.mechanism, a.target, a.hook) for a in made.report(list_devices())}


def _loopback_carries_packets() -> bool:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("127.0.0.1", 0))
        receiver.setblocking(False)
        # What loopback carries has arrived when sendto returns; what TC drops there fails with ENOBUFS or silently.
        with contextlib.suppress(OSError):
            sender.sendto(b"?", receiver.getsockname())
        try:
            return receiver.recv(1) == b"?"
        except BlockingIOError:
            return False


def _programs_on(device: Device, mechanism: Mechanism, direction: Direction = Direction.INGRESS) -> int:
    if mechanism == "tcx":
        hook = AttachType.TCX_INGRESS if direction is Direction.INGRESS else AttachType.TCX_EGRESS
        return len(libbpf.prog_query(device.index, hook).program_ids)
    with Tc() as tc:
        return len(clsact.filters(tc, device, direction))


def test_every_device_is_hooked_both_ways_and_first(pins: Path, namespace: Namespace, mechanism: Mechanism) -> None:
    namespace.ip("link add left type veth peer name right")
    namespace.ip("tuntap add mode tun name pipe")
    with attachments(pins, prefer=mechanism) as made:
        made.attach_all(list_devices())
        report = made.report(list_devices())
        assert {(a.mechanism, a.target, a.hook, a.position) for a in report} == {
            (mechanism, device.name, hook, 0) for device in list_devices() for hook in ("ingress", "egress")
        }
        assert made.attach_all(list_devices()) == []


def test_hooks_are_in_force_outlive_the_agent_and_go_with_detach_all(
    pins: Path, namespace: Namespace, mechanism: Mechanism
) -> None:
    assert _loopback_carries_packets()
    with attachments(pins, TC_ACT_SHOT, mechanism) as made:
        made.attach_all(list_devices())
        assert not _loopback_carries_packets()
    assert not _loopback_carries_packets()
    detach_all(pins / "links")
    assert _loopback_carries_packets()
    assert os.listdir(pins / "links") == []
    assert all(_programs_on(device, mechanism) == 0 for device in list_devices())
    assert "clsact" not in namespace.run("tc", "qdisc", "show")


def test_restart_replaces_the_programs_and_adds_no_second_hook(
    pins: Path, namespace: Namespace, mechanism: Mechanism
) -> None:
    with attachments(pins, TC_ACT_SHOT, mechanism) as made:
        made.attach_all(list_devices())
    with attachments(pins, TC_ACT_UNSPEC, mechanism) as made:
        changes = made.attach_all(list_devices())
        assert {"lo ingress", "lo egress"} <= set(changes)
        assert _loopback_carries_packets()
        assert _programs_on(_by_name("lo"), mechanism) == 1
        assert made.attach_all(list_devices()) == []


def test_restart_keeps_the_very_same_links(pins: Path, namespace: Namespace) -> None:
    if not tcx_is_available():
        pytest.skip("this kernel has no tcx")

    def link_id() -> int:
        with libbpf.obj_get(pins / "links" / f"tcx_{_by_name('lo').index}_ingress") as link:
            return libbpf.link_info(link).link_id

    with attachments(pins) as made:
        made.attach_all(list_devices())
        before = link_id()
    with attachments(pins) as made:
        made.attach_all(list_devices())
        assert link_id() == before


def test_changing_the_mechanism_moves_every_hook(pins: Path, namespace: Namespace) -> None:
    if not tcx_is_available():
        pytest.skip("this kernel has no tcx")
    for mechanism in ("tcx", "clsact", "tcx"):
        with attachments(pins, prefer=mechanism) as made:
            made.attach_all(list_devices())
            assert {kind for kind, _, _ in _hooks(made)} == {mechanism}
    assert "clsact" not in namespace.run("tc", "qdisc", "show")


def test_a_device_that_appears_later_is_hooked(pins: Path, namespace: Namespace, mechanism: Mechanism) -> None:
    with attachments(pins, prefer=mechanism) as made:
        made.attach_all(list_devices())
        namespace.ip("link add left type veth peer name right")
        assert made.attach_device(_by_name("left")) == ["left egress", "left ingress"]
        assert (mechanism, "left", "ingress") in _hooks(made)


def test_a_renamed_device_keeps_its_hooks(pins: Path, namespace: Namespace, mechanism: Mechanism) -> None:
    namespace.ip("link add left type veth peer name right")
    with attachments(pins, prefer=mechanism) as made:
        made.attach_all(list_devices())
        namespace.ip("link set left name port")
        assert made.attach_device(_by_name("port")) == []
        assert (mechanism, "port", "egress") in _hooks(made)


def test_a_device_that_is_gone_leaves_no_pin(pins: Path, namespace: Namespace, mechanism: Mechanism) -> None:
    namespace.ip("link add left index 77 type veth peer name right index 78")
    with attachments(pins, prefer=mechanism) as made:
        made.attach_all(list_devices())
        namespace.ip("link del left")
        made.sync_devices(list_devices())
        assert not [name for name in os.listdir(pins / "links") if "_77" in name or "_78" in name]


def test_a_device_that_vanishes_before_it_is_hooked_is_no_error(
    pins: Path, namespace: Namespace, mechanism: Mechanism
) -> None:
    namespace.ip("link add left type veth peer name right")
    left = _by_name("left")
    namespace.ip("link del left")
    with attachments(pins, prefer=mechanism) as made:
        assert made.attach_device(left) == []
        assert not [name for name in os.listdir(pins / "links") if f"_{left.index}" in name]


@pytest.mark.parametrize("restart", [False, True])
def test_a_device_that_reuses_an_index_is_hooked_anew(
    pins: Path, namespace: Namespace, mechanism: Mechanism, restart: bool
) -> None:
    namespace.ip("link add old index 77 type veth peer name old-peer index 78")
    with attachments(pins, prefer=mechanism) as made, contextlib.ExitStack() as later:
        made.attach_all(list_devices())
        if restart:
            made.close()
        namespace.ip("link del old")
        namespace.ip("link add new index 77 type veth peer name new-peer index 78")
        agent = later.enter_context(attachments(pins, prefer=mechanism)) if restart else made
        assert {"new ingress", "new egress"} <= set(agent.sync_devices(list_devices()))
        assert _programs_on(_by_name("new"), mechanism) == 1


def test_a_pin_of_another_namespace_is_not_taken_for_this_one(pins: Path) -> None:
    if not tcx_is_available():
        pytest.skip("this kernel has no tcx")
    with network_namespace() as first, network_namespace() as second:
        with first.entered(), attachments(pins) as made:
            made.attach_all(list_devices())
        with second.entered(), attachments(pins) as made:
            assert "lo ingress" in made.attach_all(list_devices())
            assert _programs_on(_by_name("lo"), "tcx") == 1


def test_a_pin_removed_by_hand_opens_nothing_and_is_put_back(pins: Path, namespace: Namespace) -> None:
    if not tcx_is_available():
        pytest.skip("this kernel has no tcx")
    with attachments(pins, TC_ACT_SHOT) as made:
        made.attach_all(list_devices())
        for pin in (pins / "links").iterdir():
            pin.unlink()
        assert not _loopback_carries_packets()
        assert made.attach_all(list_devices()) == []
        assert (pins / "links" / f"tcx_{_by_name('lo').index}_egress").exists()


def test_a_filter_removed_by_hand_is_put_back(pins: Path, namespace: Namespace) -> None:
    with attachments(pins, TC_ACT_SHOT, "clsact") as made:
        made.attach_all(list_devices())
        namespace.run("tc", "qdisc", "del", "dev", "lo", "clsact")
        assert _loopback_carries_packets()
        assert set(made.sync_devices(list_devices())) == {"lo ingress", "lo egress"}
        assert not _loopback_carries_packets()


def test_hooks_come_and_go_while_an_event_loop_runs(pins: Path, namespace: Namespace, mechanism: Mechanism) -> None:
    async def run() -> None:
        with attachments(pins, TC_ACT_SHOT, mechanism) as made:
            assert made.attach_all(list_devices()) == ["lo egress", "lo ingress"]
            assert _hooks(made) == {(mechanism, "lo", "ingress"), (mechanism, "lo", "egress")}
            assert not _loopback_carries_packets()
            made.detach_all()
            assert _loopback_carries_packets()

    asyncio.run(run())
    assert "clsact" not in namespace.run("tc", "qdisc", "show")


def test_hooking_by_tcx_does_without_pyroute2(
    pins: Path, namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not tcx_is_available():
        pytest.skip("this kernel has no tcx")
    monkeypatch.setitem(sys.modules, "pyroute2", None)  # makes importing it fail
    namespace.run("tc", "qdisc", "add", "dev", "lo", "clsact")
    _add_foreign_filter(namespace, "ingress", preference=1)
    with attachments(pins) as made:
        made.attach_all(list_devices())
        assert _hooks(made) == {("tcx", "lo", "ingress"), ("tcx", "lo", "egress")}
        made.detach_all()


def test_a_foreign_bpf_filter_in_our_place_is_not_taken_for_ours(pins: Path, namespace: Namespace) -> None:
    namespace.run("tc", "qdisc", "add", "dev", "lo", "clsact")
    with attachments(pins, prefer="clsact") as made, device_program(TC_ACT_UNSPEC) as program, Tc() as tc:
        place = {"index": 1, "handle": 0xB0, "parent": 0xFFFFFFF2, "prio": clsact.PREFERENCE}
        options = {"fd": program.fileno(), "name": "foreign", "direct_action": True}
        tc.request("add", lambda route: route.tc("add-filter", "bpf", **place, **options))
        assert made.report(list_devices()) == []
        detach_all(pins / "links")
    assert "foreign" in namespace.run("tc", "filter", "show", "dev", "lo", "ingress")


def test_the_chain_is_listed_in_order_with_foreign_filters(pins: Path, namespace: Namespace) -> None:
    namespace.run("tc", "qdisc", "add", "dev", "lo", "clsact")
    _add_foreign_filter(namespace, "ingress", preference=9)
    with attachments(pins, prefer="clsact") as made, Tc() as tc:
        made.attach_all(list_devices())
        chain = clsact.filters(tc, _by_name("lo"), Direction.INGRESS)
        assert [f.is_ours for f in chain] == [True, *[False] * (len(chain) - 1)]
        assert {(f.kind, f.preference) for f in chain} == {("bpf", 1), ("u32", 9)}


def test_a_change_that_the_kernel_refuses_is_told_in_its_words(namespace: Namespace) -> None:
    with Tc() as tc, pytest.raises(KernelError, match=r"^cannot try: No such .* \(cannot find .*\)$") as failure:
        tc.request("try", lambda route: route.tc("del", "clsact", _by_name("lo").index))
    assert failure.value.errno == errno.ENOENT


def _add_foreign_filter(namespace: Namespace, hook: str, preference: int) -> None:
    command = f"tc filter add dev lo {hook} pref {preference} protocol all u32 match u32 0 0 classid 1:1"
    namespace.run(*command.split())


def test_a_foreign_clsact_and_its_filters_are_left_alone(pins: Path, namespace: Namespace) -> None:
    namespace.run("tc", "qdisc", "add", "dev", "lo", "clsact")
    _add_foreign_filter(namespace, "ingress", preference=7)
    with attachments(pins, prefer="clsact") as made:
        made.attach_all(list_devices())
        assert [a.position for a in made.report([_by_name("lo")])] == [0, 0]
        made.detach_all()
    assert "clsact" in namespace.run("tc", "qdisc", "show", "dev", "lo")
    assert "u32" in namespace.run("tc", "filter", "show", "dev", "lo", "ingress")


def test_a_foreign_filter_in_our_place_is_refused_by_name(pins: Path, namespace: Namespace) -> None:
    namespace.run("tc", "qdisc", "add", "dev", "lo", "clsact")
    _add_foreign_filter(namespace, "egress", preference=1)
    with (
        attachments(pins, prefer="clsact") as made,
        pytest.raises(RefusedError, match="`lo` has a foreign `u32` filter at preference 1"),
    ):
        made.attach_all(list_devices())


def test_an_ingress_discipline_in_the_way_is_refused_by_name(pins: Path, namespace: Namespace) -> None:
    namespace.run("tc", "qdisc", "add", "dev", "lo", "ingress")
    with (
        attachments(pins, prefer="clsact") as made,
        pytest.raises(RefusedError, match="`lo` has a queueing discipline `ingress`"),
    ):
        made.attach_all(list_devices())


def _connect_in(cgroup: Path) -> str:
    """errno name of a UDP connect() by a process in `cgroup`, or `ok`."""
    code = (
        f"open({str(cgroup / 'cgroup.procs')!r}, 'w').write('0')\n"
        "import errno, socket\n"
        "try: socket.socket(type=socket.SOCK_DGRAM).connect(('127.0.0.1', 9)); print('ok')\n"
        "except OSError as error: print(errno.errorcode[error.errno])\n"
    )
    # Isolated and without site: the child must end before the control group is removed, and only say one line.
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_control_group_hooks_are_in_force_are_updated_and_go(pins: Path, namespace: Namespace) -> None:
    with cgroup_subtree() as cgroup:
        assert _connect_in(cgroup) == "ok"
        with attachments(pins, cgroup=cgroup, connect=0) as made:
            assert made.attach_cgroup() == [f"{cgroup} connect4"]
        assert _connect_in(cgroup) == "EPERM"
        with attachments(pins, cgroup=cgroup, connect=1) as made:
            assert made.attach_cgroup() == [f"{cgroup} connect4"]
            assert _connect_in(cgroup) == "ok"
            assert made.attach_cgroup() == []
            assert made.report([])[0].hook == "connect4"
            made.detach_all()
        with Fd(os.open(cgroup, os.O_RDONLY)) as root:
            assert libbpf.prog_query(root.fileno(), AttachType.CGROUP_CONNECT4).program_ids == ()


def test_a_link_to_a_control_group_that_is_gone_is_replaced(pins: Path, namespace: Namespace) -> None:
    with cgroup_subtree() as cgroup, attachments(pins, cgroup=cgroup, connect=0) as made:
        made.attach_cgroup()
    with cgroup_subtree() as cgroup, attachments(pins, cgroup=cgroup, connect=0) as made:
        assert made.attach_cgroup() == [f"{cgroup} connect4"]
        assert _connect_in(cgroup) == "EPERM"


@pytest.mark.parametrize("above", [False, True])
def test_an_exclusive_owner_of_a_hook_is_named(pins: Path, namespace: Namespace, above: bool) -> None:
    hook = AttachType.CGROUP_CONNECT4
    with cgroup_subtree() as cgroup, address_program(hook, 1, "foreign_guard") as guard:
        root = cgroup / "agent"
        root.mkdir()
        with Fd(os.open(cgroup if above else root, os.O_RDONLY)) as held:
            assert libbpf.library().bpf_prog_attach(guard.fileno(), held.fileno(), int(hook), 0) == 0
        with (
            attachments(pins, cgroup=root) as made,
            pytest.raises(
                RefusedError, match=r"connect4 of `.*` is held exclusively by `foreign_guard` \(program \d+\)"
            ),
        ):
            made.attach_cgroup()


def test_tracepoints_are_attached_kept_and_replaced(pins: Path, namespace: Namespace) -> None:
    with programs(tracepoints=True) as first, Attachments(pins, first) as made:
        assert made.attach_tracepoints() == ["tracepoint cgroup_mkdir"]
        assert made.attach_tracepoints() == []
    with programs(tracepoints=True) as second, Attachments(pins, second) as made:
        assert made.attach_tracepoints() == ["tracepoint cgroup_mkdir"]
        wanted = libbpf.prog_info(second.tracepoints["cgroup_mkdir"]).program_id
        assert made.report([]) == [Attachment("tracepoint", "cgroup_mkdir", "raw", wanted)]
    assert os.listdir(pins / "links") == ["tracepoint_cgroup_mkdir"]


def test_something_else_pinned_in_a_links_place_is_refused(pins: Path, namespace: Namespace) -> None:
    with attachments(pins) as made, device_program(TC_ACT_UNSPEC) as program:
        libbpf.obj_pin(program, pins / "links" / f"tcx_{_by_name('lo').index}_egress")
        if made.mechanism != "tcx":
            pytest.skip("this kernel has no tcx")
        with pytest.raises(RefusedError, match="is no link"):
            made.attach_device(_by_name("lo"))


def test_opening_programs_that_were_never_loaded_names_the_missing_pin() -> None:
    with pin_directory() as empty, pytest.raises(KernelError, match="cannot open the pin") as failure:
        Programs.open(empty)
    assert failure.value.errno == errno.ENOENT
