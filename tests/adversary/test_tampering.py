"""Tampering with what the agent keeps, and its opposite: what nobody has tampered with is never called tampering."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bulkhead.kernel import libbpf, netns
from bulkhead.kernel.libbpf import AttachType, MapType
from lab.bpf import device_program

from .conftest import FRIEND, OURS, Arena, listen, until

TC_ACT_OK = 0


def drift(arena: Arena) -> dict[str, Any]:
    found: dict[str, Any] = arena.host.call("status")["drift"]
    return found


def test_devices_that_come_and_go_by_the_score_are_no_tampering(arena: Arena) -> None:
    before = drift(arena)["found"]
    names = [f"w{number}" for number in range(40)]
    for verb, rest in (("add", "type veth peer name {}p"), ("del", "")):
        lines = "".join(f"link {verb} {name} {rest.format(name)}\n" for name in names)
        subprocess.run(["ip", "-n", arena.host.netns, "-batch", "-"], input=lines, text=True, check=True)
        wanted = 40 * 2 + 2 if verb == "add" else 2
        assert until(lambda wanted=wanted: len(arena.host.call("status")["kernel"]["devices"]) == wanted)
        looked = drift(arena)["looked"]
        assert until(lambda looked=looked: drift(arena)["looked"] > looked, 10)
    assert drift(arena)["found"] == before, drift(arena)["recent"]


def test_groups_and_programs_that_come_and_go_by_the_thousand_are_no_tampering(arena: Arena) -> None:
    before = drift(arena)["found"]
    for number in range(2000):
        group = arena.host.cgroup / f"churn-{number}" / "inner"
        group.mkdir(parents=True)
        group.rmdir()
        group.parent.rmdir()
    looked = drift(arena)["looked"]
    assert until(lambda: drift(arena)["looked"] > looked, 10)
    assert drift(arena)["found"] == before, drift(arena)["recent"]


def test_every_pin_is_made_again_when_the_whole_directory_is_removed(arena: Arena, web) -> None:
    pins = arena.host.pins
    before = sorted(path.relative_to(pins) for path in pins.rglob("*") if "slots" not in path.parts)
    shutil.rmtree(pins)
    assert until(pins.exists)
    assert until(lambda: arena.host.bulkhead("status", check=False).returncode == 0)
    after = sorted(path.relative_to(pins) for path in pins.rglob("*") if "slots" not in path.parts)
    assert after == before
    assert web.tcp(FRIEND, 7001) == "EPERM"


def test_another_map_under_the_name_of_ours_is_found_out(arena: Arena) -> None:
    """The next start would isolate in it, and nobody would be isolated."""
    path = arena.host.pins / "maps" / "quarantined"
    before = drift(arena)["found"]
    with libbpf.map_create(MapType.HASH, "quarantined", 4, 4, 1024, libbpf.BPF_F_NO_PREALLOC) as rogue:
        path.unlink()
        rogue.pin(path)
        assert until(lambda: drift(arena)["found"] > before)
    assert drift(arena)["recent"][-1]["what"] == "the pin `quarantined` was replaced"


def test_a_program_that_comes_back_before_ours_is_told_of_and_fought_within_bounds(arena: Arena) -> None:
    index = int(arena.host.ip("-o", "link", "show", "eth0").partition(":")[0])
    with ExitStack() as stack:
        for _ in range(4):
            before = drift(arena)["found"]
            foreign = stack.enter_context(device_program(TC_ACT_OK))
            with netns.entered(Path(f"/run/netns/{arena.host.netns}")):
                hook = libbpf.link_create(foreign, index, AttachType.TCX_EGRESS, libbpf.BPF_F_BEFORE)
            stack.enter_context(hook)
            assert until(lambda before=before: drift(arena)["found"] > before)
        status = arena.host.call("status")
        assert not status["git_equals_kernel"]
        assert "another program runs before ours on eth0 egress" in status["differences"][0]
    assert until(lambda: arena.host.call("status")["git_equals_kernel"])


def test_a_storm_of_notifications_leaves_the_agent_answering(arena: Arena, db) -> None:
    listen(db, 5432)
    lines = "qdisc add dev eth0 root pfifo limit 10\nqdisc del dev eth0 root\n" * 500
    subprocess.run(["tc", "-n", arena.host.netns, "qdisc", "del", "dev", "eth0", "root"], capture_output=True)
    subprocess.run(["tc", "-n", arena.host.netns, "-batch", "-"], input=lines, text=True, check=True)
    status = arena.host.call("status")
    assert status["git_equals_kernel"]
    assert arena.puppet("web").tcp(OURS, 5432) in ("ok", "timeout")
