"""Trials: whoever cannot come in any more must not be able to keep the policy that shut him out, and nobody makes the
end of a trial leave anything open.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulkhead.abi import Control
from bulkhead.kernel.maps import KernelMaps
from lab.bpf import can_attach
from lab.host import PYTHON, Host, joined
from lab.policies import policy, repository
from lab.sshd import Session, Sshd

from .conftest import until

OURS, OURS_TOO, THEIRS = "10.77.0.1", "10.77.0.9", "10.77.0.2"
WORKLOADS = {"sshd": "{match: {cgroup: /ssh}, mode: enforce}", "api": "{match: {cgroup: /api}, mode: enforce}"}
RULES = ("admins -> sshd 22", "sshd -> admins 80", "sshd -> sshd 22", "host -> sshd 22")
_AFTER_A_CALL = """
import socket, subprocess
held = socket.create_connection(({address!r}, 80), 5)
print(subprocess.run(['sh', {script!r}], capture_output=True, text=True).stdout)
"""


class Lab:
    """A host with a policy that can be tried, an sshd, and an administrator at the other end of the wire."""

    def __init__(self, near: Host, far: Host, sshd: Sshd) -> None:
        self.near = near
        self.far = far
        self.sshd = sshd
        self.script = near.directory / "confirm.sh"
        self.script.write_text(f"{PYTHON} -m bulkhead.cli.main confirm --run-dir {near.run_dir} 2>&1\n")

    @property
    def word(self) -> Control:
        with KernelMaps(self.near.pins) as maps:
            return maps.control()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if not can_attach():
        pytest.skip("needs root and a mounted BPF file system")
    with Host("near") as near, Host("far") as far, joined(near, far):
        near.ip("addr", "add", f"{OURS_TOO}/24", "dev", "eth0")
        text = policy(*RULES, workloads=WORKLOADS, externals={"admins": "{cidr: [10.77.0.2/32]}"})
        near.commit({"bulkhead.yaml": repository(), "t.yaml": text})
        near.start_agent()
        with Sshd(near, "ssh", OURS) as sshd:
            yield Lab(near, far, sshd)


@pytest.fixture
def tried(lab: Lab) -> Iterator[Session]:
    """A login that is older than the trial under way."""
    with lab.sshd.login(lab.far) as session:
        assert session.run("echo here") == "here"
        lab.near.call("try", revision="main", seconds=60)
        yield session
    if lab.near.call("status")["trial"]:
        lab.near.call("revert")


def test_a_process_that_has_left_an_old_login_confirms_nothing(lab: Lab, tried: Session) -> None:
    said = lab.near.directory / "said"
    tried.run(f"setsid --fork sh -c 'sh {lab.script} > {said}.new; mv {said}.new {said}'")
    assert until(said.exists, 10)
    assert "belongs to no login" in said.read_text()
    assert lab.near.call("status")["trial"]


def test_a_connection_that_an_old_login_opens_itself_is_no_login(lab: Lab, tried: Session) -> None:
    """Such as sudo's to a directory server: it is younger than the trial, and goes out."""
    outside = lab.far.puppet("any")
    outside.serve_tcp("0.0.0.0", 80)
    program = lab.near.directory / "calls.py"
    program.write_text(_AFTER_A_CALL.format(address=THEIRS, script=str(lab.script)))
    assert "older than the trial" in tried.run(f"{PYTHON} {program} 2>&1")
    assert lab.near.call("status")["trial"]
    outside.end()


def test_a_login_from_another_address_of_the_same_machine_does_not_confirm(lab: Lab, tried: Session) -> None:
    del tried
    command = lab.sshd._command(10, f"sh {lab.script}")
    said = lab.near.run("any", [command[0], "-b", OURS_TOO, *command[1:]]).stdout
    assert "from this machine itself" in said
    assert lab.near.call("status")["trial"]


def test_a_connection_older_than_the_trial_does_not_confirm_when_it_logs_in_later(lab: Lab, tried: Session) -> None:
    """A master connection that was there before: its server makes a new process for each session."""
    del tried
    lab.near.call("revert")
    socket = lab.near.directory / "master"
    command = lab.sshd._command(10)
    shared = [command[0], "-o", f"ControlPath={socket}", *command[1:]]
    master = lab.far.start("any", [shared[0], "-MN", *shared[1:]])
    assert until(lambda: Path(socket).exists(), 10)
    lab.near.call("try", revision="main", seconds=60)
    assert "older than the trial" in lab.far.run("any", [*shared, f"sh {lab.script}"]).stdout
    master.terminate()
    master.wait(5)


def test_a_word_forged_at_the_end_of_a_trial_is_not_taken_for_the_kernels(lab: Lab) -> None:
    """It says what the kernel would say, but that nobody is enforced and nobody isolated."""
    near, before = lab.near, lab.word.flags
    near.call("try", revision="main", seconds=10)
    ends = near.call("status")["trial"]["until"]
    forged = Control(generation=lab.word.generation + 1, flags=0)
    with KernelMaps(near.pins) as maps:
        assert until(lambda: time.time() >= ends - 0.02, 12)
        maps.fixed("control").update(bytes(4), bytes(forged))
    assert until(lambda: near.call("status")["trial"] is None and lab.word.flags == before)
    assert near.call("status")["git_equals_kernel"]
