"""The shipped units: well-formed, tight enough, and not so tight that the work cannot be done.

They are started in a box under a real systemd, with `sandbox_probe.py` in the place of the program.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.systemd_box import SystemdBox

ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "systemd"
PROBE = ROOT / "tests/systemd/sandbox_probe.py"
PINS = "/sys/fs/bpf/bulkhead"
OTHER = "[Service]\nType=exec\nUser=nobody\nStandardInput=null\nExecStart=/usr/bin/sleep infinity\n"


def install(box: SystemdBox) -> None:
    """Put units, sources and the probe where an installation has them, writable in the box only."""
    prefix = box.root / "opt/bulkhead"
    (prefix / "bin").mkdir(parents=True)
    shutil.copytree(ROOT / "agent", prefix / "agent", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "bpf", prefix / "bpf")
    shutil.copy(PROBE, prefix / "bin/bulkhead")
    (prefix / "bin/bulkhead").chmod(0o755)
    for unit in UNITS.glob("*.service"):
        shutil.copy(unit, box.root / "etc/systemd/system")


@pytest.fixture(scope="module")
def box() -> Iterator[SystemdBox]:
    with SystemdBox("units") as running:
        install(running)
        running.start_unit("other.service", OTHER)
        yield running


@pytest.fixture(scope="module")
def started(box: SystemdBox) -> SystemdBox:
    done = box.run(["systemctl", "start", "bulkhead.service"], timeout_s=90)
    assert done.returncode == 0, box.journal("bulkhead-loader.service") + box.journal("bulkhead.service")
    return box


@pytest.fixture(scope="module")
def outcomes(started: SystemdBox) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads((started.root / "var/lib/bulkhead/probe.json").read_text())
    return found


def exposure(unit: str) -> float:
    """The overall exposure that systemd itself computes, from 0 (none) to 10."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNITS / unit)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"Overall exposure level for \S+: (\d+\.\d+)", done.stdout)
    assert found, done.stdout
    return float(found[1])


@pytest.mark.parametrize(("unit", "limit"), [("bulkhead-loader.service", 2.0), ("bulkhead.service", 2.5)])
def test_exposure_stays_below_its_limit(unit: str, limit: float) -> None:
    found = exposure(unit)
    print(f"{unit}: {found}")
    assert found <= limit


def test_systemd_has_no_complaint_about_the_units(box: SystemdBox) -> None:
    done = box.run(["systemd-analyze", "verify", "bulkhead.service", "bulkhead-loader.service"])
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0


@pytest.mark.parametrize("unit", ["bulkhead.service", "bulkhead-loader.service"])
def test_stopping_runs_nothing(unit: str) -> None:
    assert not re.findall(r"^ExecStop\w*=", (UNITS / unit).read_text(), re.MULTILINE)


def test_the_loader_leaves_pins_and_no_process(started: SystemdBox) -> None:
    assert started.show("bulkhead-loader.service", "ActiveState") == "active"
    assert started.show("bulkhead-loader.service", "MainPID") == "0"
    assert "tc_egress" in started.run(["ls", f"{PINS}/programs"], check=True).stdout.split()


def test_the_agent_runs_in_the_group_of_its_unit(started: SystemdBox) -> None:
    assert started.unit_cgroup("bulkhead.service") == started.cgroup / "system.slice/bulkhead.service"


def test_the_sandbox_lets_the_agent_do_its_work(outcomes: dict[str, dict[str, str]]) -> None:
    assert {action: said for action, said in outcomes["needed"].items() if said != "done"} == {}


def test_the_sandbox_refuses_what_the_agent_never_does(outcomes: dict[str, dict[str, str]]) -> None:
    refused = re.compile(r"(PermissionError|OSError): ")
    assert {action: said for action, said in outcomes["forbidden"].items() if not refused.match(said)} == {}


def test_reload_reaches_the_agent_as_a_hangup(started: SystemdBox) -> None:
    started.run(["systemctl", "reload", "bulkhead.service"], check=True)
    # The watchdog's own interval bounds the wait: the unit is killed when the loop that sees the signal is stuck.
    started.run(["timeout", "10", "sh", "-c", "until [ -e /var/lib/bulkhead/reloaded ]; do :; done"], check=True)


def test_a_killed_agent_comes_back_and_the_loader_does_not_run_again(started: SystemdBox) -> None:
    loaded = started.show("bulkhead-loader.service", "ExecMainStartTimestampMonotonic")
    before = started.show("bulkhead.service", "MainPID")
    started.run(["systemctl", "kill", "--signal=KILL", "bulkhead.service"], check=True)
    restarted = "[ $(systemctl show --value -p NRestarts bulkhead) = 1 ] && systemctl -q is-active bulkhead"
    started.run(["timeout", "20", "sh", "-c", f"until {restarted}; do :; done"], check=True)
    assert started.show("bulkhead.service", "MainPID") not in ("0", before)
    assert started.show("bulkhead-loader.service", "ExecMainStartTimestampMonotonic") == loaded


def test_stopping_the_agent_leaves_what_is_pinned(started: SystemdBox) -> None:
    started.run(["systemctl", "stop", "bulkhead.service"], check=True)
    assert started.run(["test", "-e", f"{PINS}/links/probe"]).returncode == 0
    started.run(["systemctl", "stop", "bulkhead-loader.service"], check=True)
    assert started.run(["test", "-e", f"{PINS}/programs/tc_egress"]).returncode == 0
