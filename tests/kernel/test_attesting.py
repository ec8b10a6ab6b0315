"""Who a caller of the Workload API is: real processes in real control groups, by the rules of the kernel's tables."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from bulkhead.abi import Mode as KernelMode
from bulkhead.daemon.attesting import NOBODY, Attesting
from bulkhead.dataplane.subjects import Answers, executable_id
from bulkhead.identity.cgroups import CgroupTree
from bulkhead.identity.processes import ExecutableKey, executable_at, executable_of
from bulkhead.identity.selectors import Narrower
from bulkhead.kernel.attestation import Plan
from bulkhead.policy.model import Match, Workload
from bulkhead.svid.svids import Attested
from lab.cgroup import cgroup_subtree, enter
from unit.dataplane.build import workload

SLEEP = os.path.realpath(shutil.which("sleep") or "/usr/bin/sleep")
WEB = workload("web", Match(unit=("web.service",)))
TOOL = workload("tool", Match(cgroup=("/batch/**",), exe=(SLEEP,)))
ROBOT = workload("robot", Match(cgroup=("/robots",), user=("12345",)))


class Ground:
    """Control groups with a process each, and who they are for a plan of these workloads."""

    def __init__(self, root: Path, stack: ExitStack) -> None:
        self._root = root
        self._stack = stack
        self._tree = CgroupTree(root)
        self.isolated: list[str] = []
        self.plan = self._plan([WEB, TOOL, ROBOT])
        self.attesting = Attesting(self._tree, lambda: self.plan, _number, lambda: self.isolated, "/agent/proxy")
        self.attesting.spiffe_ids = {
            one.qualified: f"spiffe://example.org/{one.qualified}" for one in (WEB, TOOL, ROBOT)
        }

    def _plan(self, workloads: list[Workload]) -> Plan:
        identities = {one.qualified: number for number, one in enumerate(workloads, 100)}
        narrower = Narrower(workloads, "node-1", lambda name: int(name), lambda name: int(name))
        paths = dict(enumerate(("/web.service", "/batch/x", "/robots"), 1))
        return Plan(narrower, Answers(identities, KernelMode.ENFORCE), (SLEEP,), paths=paths)

    def process(self, group: str, *, uid: int = 0, program: str = SLEEP) -> int:
        """A process in a group below the root."""
        directory = self._root / group.lstrip("/")
        directory.mkdir(parents=True, exist_ok=True)
        process = subprocess.Popen([program, "1000"], user=uid)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        enter(directory, process.pid)
        return process.pid


def _number(key: ExecutableKey) -> int:
    named = executable_at(SLEEP)
    return executable_id(SLEEP) if named is not None and named.key is not None and named.key.agrees(key) else 0


@pytest.fixture
def ground() -> Iterator[Ground]:
    with cgroup_subtree() as root, ExitStack() as stack:
        yield Ground(root, stack)


def named(one: Workload) -> Attested:
    return Attested((f"spiffe://example.org/{one.qualified}",))


def test_a_process_is_who_its_control_group_its_file_and_its_user_say(ground: Ground, tmp_path: Path) -> None:
    copy = tmp_path / "sleep"
    shutil.copy(SLEEP, copy)
    attest = ground.attesting.attest
    assert attest(ground.process("/web.service")) == named(WEB)
    assert attest(ground.process("/batch/x")) == named(TOOL)
    assert attest(ground.process("/batch/x", program=str(copy))) == NOBODY
    assert attest(ground.process("/robots", uid=12345)) == named(ROBOT)
    assert attest(ground.process("/robots")) == NOBODY
    assert attest(ground.process("/elsewhere")) == NOBODY


def test_the_proxy_is_known_by_its_control_group_alone(ground: Ground) -> None:
    assert ground.attesting.attest(ground.process("/agent/proxy")) == Attested(proxy=True)
    assert ground.attesting.attest(ground.process("/agent/proxy/below")) == NOBODY
    assert ground.attesting.attest(ground.process("/agent")) == NOBODY


def test_who_is_gone_or_outside_is_nobody(ground: Ground) -> None:
    pid = ground.process("/web.service")
    os.kill(pid, 9)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert executable_of(pid) is None
    assert ground.attesting.attest(1 << 22) == NOBODY
    assert ground.attesting.attest(os.getpid()) == NOBODY


def test_a_workload_that_is_isolated_or_withheld_is_nobody(ground: Ground) -> None:
    pid = ground.process("/web.service")
    ground.isolated = [WEB.qualified]
    assert ground.attesting.attest(pid) == NOBODY
    ground.isolated = []
    assert ground.attesting.attest(pid) == named(WEB)
    ground.plan.answers = replace(ground.plan.answers, withheld=frozenset({WEB.qualified}))
    assert ground.attesting.attest(pid) == NOBODY


def test_a_process_of_each_workload_is_found_for_an_upstream_that_asks_for_one(ground: Ground) -> None:
    web, tool = ground.process("/web.service"), ground.process("/batch/x")
    ground.process("/robots")
    assert ground.attesting.processes() == {WEB.qualified: web, TOOL.qualified: tool}
