"""The shipped units as they are written: well-formed, and tight. What they do is in test_agent.py."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "systemd"
PROBE = ROOT / "tests/systemd/sandbox_probe.py"


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


@pytest.mark.parametrize(
    ("unit", "limit"), [("bulkhead-loader.service", 2.0), ("bulkhead.service", 2.5), ("bulkhead-proxy.service", 2.0)]
)
def test_exposure_stays_below_its_limit(unit: str, limit: float) -> None:
    assert exposure(unit) <= limit


def test_systemd_has_no_complaint_about_the_units(installed: Any) -> None:
    done = installed.box.run(
        ["systemd-analyze", "verify", "bulkhead.service", "bulkhead-loader.service", "bulkhead-proxy.service"]
    )
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0


@pytest.mark.parametrize("unit", ["bulkhead.service", "bulkhead-loader.service"])
def test_stopping_runs_nothing(unit: str) -> None:
    assert not re.findall(r"^ExecStop\w*=", (UNITS / unit).read_text(), re.MULTILINE)


def test_the_units_come_before_the_network(installed: Any) -> None:
    installed.systemctl("enable", "bulkhead.service")
    for unit in ("bulkhead.service", "bulkhead-loader.service"):
        assert "network-pre.target" in installed.box.show(unit, "Before").split()
    assert "bulkhead-loader.service" in installed.box.show("bulkhead.service", "After").split()


def test_the_sandbox_refuses_what_the_agent_never_does(installed: Any) -> None:
    installed.box.run(["mkdir", "-p", "/sys/fs/bpf/bulkhead"], check=True)
    text = (UNITS / "bulkhead.service").read_text()
    text = re.sub(r"^(ExecStart|Type|Restart)=.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^(Wants|After)=.*$", "", text, flags=re.MULTILINE)
    text += "[Service]\nType=oneshot\nStandardOutput=truncate:/run/probe.json\n"
    text += "ExecStart=/opt/bulkhead/bin/python /opt/lab/sandbox_probe.py\n"
    (installed.box.root / "opt/lab/sandbox_probe.py").write_text(PROBE.read_text())
    installed.box.start_unit("probe.service", text)
    outcomes = json.loads((installed.box.root / "run/probe.json").read_text())
    refused = re.compile(r"(PermissionError|OSError|TimeoutError): ")
    assert {action: said for action, said in outcomes.items() if not refused.match(said)} == {}
