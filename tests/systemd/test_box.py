"""The lab's own foundation: what a systemd box promises to the tests that use it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.systemd_box import BoxError, SystemdBox

NAP = "[Service]\nType=exec\nExecStart=/usr/bin/sleep infinity\n"


@pytest.fixture(scope="module")
def box() -> Iterator[SystemdBox]:
    with SystemdBox("web-1") as running:
        yield running


def pids_in(cgroup: Path) -> list[int]:
    return [int(pid) for pid in (cgroup / "cgroup.procs").read_text().split()]


def test_it_boots_a_real_systemd_without_failed_units(box: SystemdBox) -> None:
    assert box.run(["systemctl", "is-system-running"]).stdout.strip() == "running"
    assert (box.root / "proc/1/comm").read_text() == "systemd\n"
    assert box.run(["hostname"]).stdout.strip() == "web-1"


def test_it_boots_within_seconds(box: SystemdBox) -> None:
    assert 0 < box.boot_s < 30


def test_systemd_need_not_wait_for_anybody_to_read_what_it_tells_after_it_has_booted(box: SystemdBox) -> None:
    environment = (box.root / "proc/1/environ").read_text().split("\0")
    (address,) = [line.removeprefix("NOTIFY_SOCKET=") for line in environment if line.startswith("NOTIFY_SOCKET=")]
    tell = f"import socket; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'STATUS=busy', {address!r})"
    assert "ConnectionRefusedError" in box.run(["/usr/bin/python3", "-c", tell]).stderr


def test_a_service_runs_in_the_group_of_its_unit(box: SystemdBox) -> None:
    group = box.start_unit("nap.service", NAP)
    assert group == box.cgroup / "system.slice/nap.service"
    (pid,) = pids_in(group)
    assert Path(f"/proc/{pid}/cgroup").read_text().rstrip().endswith(f"/{box.cgroup.name}/system.slice/nap.service")
    assert box.run(["cat", f"/proc/{box.show('nap.service', 'MainPID')}/cgroup"]).stdout.endswith(
        "0::/system.slice/nap.service\n"
    )


def test_a_template_and_a_slice_of_its_own_give_the_expected_path(box: SystemdBox) -> None:
    (box.root / "run/systemd/system/db@.service").write_text(NAP + "Slice=data.slice\n")
    box.run(["systemctl", "daemon-reload"], check=True)
    box.run(["systemctl", "start", "db@15.service"], check=True)
    assert box.unit_cgroup("db@15.service") == box.cgroup / "data.slice/db@15.service"


def test_a_command_runs_in_no_unit(box: SystemdBox) -> None:
    assert "0::/lab\n" in box.run(["cat", "/proc/self/cgroup"]).stdout


def test_a_unit_that_does_not_start_raises_with_its_journal(box: SystemdBox) -> None:
    with pytest.raises(BoxError, match="boiler is cold"):
        box.start_unit("bad.service", "[Service]\nType=oneshot\nExecStart=sh -c 'echo boiler is cold; exit 3'\n")


def test_bpffs_inside_is_not_the_one_of_the_machine(box: SystemdBox) -> None:
    box.run(["mkdir", "/sys/fs/bpf/only-in-the-box"], check=True)
    assert not Path("/sys/fs/bpf/only-in-the-box").exists()
    box.run(["mount", "-t", "bpf", "bpf", "/mnt"], check=True)
    assert "only-in-the-box" not in box.run(["ls", "/mnt"], check=True).stdout
    box.run(["umount", "/mnt"], check=True)


def test_what_it_writes_stays_inside(box: SystemdBox) -> None:
    box.run(["touch", "/etc/bulkhead-lab-was-here"], check=True)
    assert (box.root / "etc/bulkhead-lab-was-here").exists()
    assert not Path("/etc/bulkhead-lab-was-here").exists()


def test_it_cannot_change_settings_of_the_machine(box: SystemdBox) -> None:
    before = Path("/proc/sys/fs/nr_open").read_text()
    assert box.run(["sh", "-c", "echo 4096 >/proc/sys/fs/nr_open"]).returncode
    assert Path("/proc/sys/fs/nr_open").read_text() == before
    box.run(["sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"], check=True)


def test_its_network_is_a_loopback_of_its_own(box: SystemdBox) -> None:
    assert box.netns.readlink() != Path("/proc/self/ns/net").readlink()
    assert box.run(["ip", "-brief", "link"]).stdout.split()[:2] == ["lo", "UNKNOWN"]


def test_two_boxes_share_neither_group_nor_network(box: SystemdBox) -> None:
    with SystemdBox("db-1") as other:
        assert other.cgroup != box.cgroup
        assert other.netns.readlink() != box.netns.readlink()
        assert set(pids_in(other.cgroup / "init.scope")).isdisjoint(pids_in(box.cgroup / "init.scope"))


def test_teardown_leaves_no_process_group_or_mount() -> None:
    mounts = Path("/proc/self/mountinfo").read_text()
    with SystemdBox("gone") as box:
        box.start_unit("nap.service", NAP)
        pids = [pid for group, _, _ in os.walk(box.cgroup) for pid in pids_in(Path(group))]
        assert len(pids) >= 3
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert not box.cgroup.exists()
    assert Path("/proc/self/mountinfo").read_text() == mounts
    with pytest.raises(BoxError, match="not running"):
        box.run(["true"])


def test_a_box_that_does_not_boot_says_why_and_leaves_nothing() -> None:
    box = SystemdBox("a-host-name-that-is-far-longer-than-the-sixty-four-characters-allowed")
    with pytest.raises(BoxError, match="hostname"), box:
        pass
    assert not box.cgroup.exists()
