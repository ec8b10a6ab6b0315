"""The agent comes and goes; what it has put in force stays, until it is told to take everything away."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulkhead.abi import Control, Setting
from bulkhead.kernel import libbpf
from bulkhead.kernel.libbpf import AttachType
from lab.bpf import address_program, can_attach
from lab.host import PYTHON, Host, joined
from lab.policies import policy

LOCAL = "127.0.0.1"
NEAR4 = "10.77.0.1"
RULES = ("api -> db 5432, 53/udp", "far -> db 5432")
FAR = {"far": "{cidr: [10.77.0.2/32]}"}


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Host, Host]]:
    """A host and its neighbour over a veth; the agent runs and a policy is in force."""
    if not can_attach():
        pytest.skip("needs root and a mounted BPF file system")
    with Host("life") as near, Host("beyond") as far, joined(near, far):
        near.start_agent()
        near.enforce(policy(*RULES, externals=FAR), hosts="enforce")
        yield near, far


@pytest.fixture
def world(pair, puppets):
    """Who talks to whom in these tests, with an open connection of each kind."""
    near, far = pair
    people = World(near, puppets(near, "db"), puppets(near, "api"), puppets(near, "web"), puppets(far, "any"))
    people.db.serve_tcp("0.0.0.0", 5432)
    people.db.serve_udp("0.0.0.0", 53)
    assert people.api.hold("c", LOCAL, 5432) == "ok"
    assert people.far.hold("c", NEAR4, 5432) == "ok"
    return people


class World:
    def __init__(self, host: Host, db, api, web, far) -> None:
        self.host, self.db, self.api, self.web, self.far = host, db, api, web, far

    def assert_enforced(self) -> None:
        """The same verdicts as ever, on old connections and new ones."""
        assert self.api.use("c") == "ok"
        assert self.far.use("c") == "ok"
        assert self.api.tcp(LOCAL, 5432) == "ok"
        assert self.api.udp(LOCAL, 53) == "ok"
        assert self.far.tcp(NEAR4, 5432) == "ok"
        assert self.web.tcp(LOCAL, 5432) == "EPERM"
        assert self.web.udp(LOCAL, 53) in ("EPERM", "timeout")
        assert self.far.tcp(NEAR4, 5433, quiet_s=0.2) == "timeout"


def set_build(host: Host, build: bytes) -> None:
    """Make the pins look as if another version had loaded them."""
    with libbpf.map_open(host.pins / "maps" / "setting") as setting:
        value = Setting.from_buffer_copy(setting.lookup(bytes(4)) or b"")
        value.build = build
        setting.update(bytes(4), bytes(value))


def program_ids(host: Host) -> set[int]:
    with libbpf.obj_get(host.pins / "programs" / "stage_egress") as stage:
        return {libbpf.prog_info(stage).program_id}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_verdicts_stay_while_the_agent_is_gone_and_when_it_is_back(world: World, number: int) -> None:
    world.assert_enforced()
    world.host.stop_agent(number)
    try:
        world.assert_enforced()
    finally:
        world.host.start_agent()
    world.assert_enforced()


def test_verdicts_stay_during_a_restart(world: World) -> None:
    """A client that connects all the time, and one that must not, see nothing of three restarts."""
    code = (
        f"import sys; sys.path[:0] = [{str(Path(__file__).parents[1])!r}]; from lab import puppet\n"
        "import select\n"
        "words = set()\n"
        "print('on', flush=True)\n"
        "while not select.select([sys.stdin], [], [], 0)[0]:\n"
        "    words.add(puppet.tcp('127.0.0.1', 5432, quiet_s=2.0))\n"
        "print(*sorted(words))\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    may, may_not = (world.host.start(group, [PYTHON, "-c", code], **pipes) for group in ("api", "web"))
    for one in (may, may_not):
        assert one.stdout.readline() == "on\n"
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
        world.host.stop_agent(number)
        world.host.start_agent()
    assert [one.communicate("stop\n")[0] for one in (may, may_not)] == ["ok\n", "EPERM\n"]


def test_an_upgrade_replaces_the_programs_under_live_traffic(world: World) -> None:
    before = program_ids(world.host)
    world.host.stop_agent()
    set_build(world.host, b"0" * 32)
    world.assert_enforced()
    world.host.start_agent()
    assert program_ids(world.host) != before
    world.assert_enforced()


def test_counters_go_on_over_restarts(world: World) -> None:
    host = world.host
    world.assert_enforced()
    totals, hits = host.call("status")["totals"], {rule["name"]: rule["hits"] for rule in host.call("rules")["rules"]}
    assert hits["t/r1"] > 0
    assert totals["deny"] > 0
    host.stop_agent(signal.SIGKILL)
    assert world.web.tcp(LOCAL, 5432) == "EPERM"
    assert world.api.tcp(LOCAL, 5432) == "ok"
    host.start_agent()
    after = host.call("status")["totals"]
    assert after["deny"] == totals["deny"] + 1
    again = {rule["name"]: rule["hits"] for rule in host.call("rules")["rules"]}
    assert again["t/r1"] == hits["t/r1"] + 1
    assert again["t/r2"] == hits["t/r2"]


def test_the_last_good_policy_is_restored_when_the_repository_is_broken(world: World) -> None:
    host = world.host
    good = host.call("status")["commit"]
    host.wait_for_commit(host.commit({"t.yaml": "nonsense: [\n"}))
    host.stop_agent()
    host.start_agent()
    world.assert_enforced()
    status = host.call("status")
    assert status["commit"] == good
    host.enforce(policy(*RULES, externals=FAR), hosts="enforce")


def test_the_last_good_policy_is_restored_when_the_repository_is_gone(world: World) -> None:
    host = world.host
    good = host.call("status")["commit"]
    host.stop_agent()
    hidden = host.repository.rename(host.repository.with_name("hidden"))
    try:
        host.start_agent()
        world.assert_enforced()
        status = host.call("status")
        assert status["commit"] == good
    finally:
        hidden.rename(host.repository)
    world.assert_enforced()


def test_a_second_agent_is_refused_and_disturbs_nothing(world: World, puppets) -> None:
    before, generation = world.host.call("status"), generation_in_force(world.host)
    done = world.host.run_agent()
    assert done.returncode == 3, done.stderr
    assert f"pid {before['pid']}" in done.stderr
    assert world.host.call("status")["pid"] == before["pid"]
    assert generation_in_force(world.host) == generation
    world.assert_enforced()
    assert puppets(world.host, "api/new").tcp(LOCAL, 5432) == "ok"


def generation_in_force(host: Host) -> int:
    with libbpf.map_open(host.pins / "maps" / "control") as control:
        return Control.from_buffer_copy(control.lookup(bytes(4)) or b"").generation


def test_detach_removes_every_trace_and_lets_traffic_flow(world: World) -> None:
    host = world.host
    host.stop_agent()
    assert host.bulkhead("detach").returncode == 0
    assert world.web.tcp(LOCAL, 5432) == "ok"
    assert world.far.tcp(NEAR4, 5433) == "ECONNREFUSED"
    assert traces(host) == []
    host.start_agent()
    world.assert_enforced()


def test_detach_under_a_running_agent_is_refused(world: World) -> None:
    done = world.host.bulkhead("detach", check=False)
    assert done.returncode == 2
    assert "stop it first" in done.stderr
    world.assert_enforced()


def traces(host: Host) -> list[str]:
    """Whatever is left of the agent in the kernel: pins, programs on devices and control groups, qdiscs."""
    found = [str(path) for path in (host.pins,) if path.exists()]
    found += [line for line in _in_netns(host, ["tc", "qdisc"]).splitlines() if "clsact" in line]
    with libbpf.Fd(os.open(host.cgroup, os.O_RDONLY | os.O_DIRECTORY)) as root:
        for hook in AttachType:
            if hook.name.startswith("CGROUP") and _attached(root.fileno(), hook):
                found.append(f"program at {hook.name}")
    code = (
        "from bulkhead.kernel import libbpf; print([libbpf.prog_query(i, h).program_ids for i in {} for h in (46, 47)])"
    )
    indexes = [int(line.split(":")[0]) for line in host.ip("-o", "link").splitlines()]
    answer = _in_netns(host, [PYTHON, "-c", code.format(indexes)])
    return found + ([answer] if answer.replace("()", "").strip("[], \n") else [])


def _attached(fd: int, hook: AttachType) -> bool:
    try:
        return bool(libbpf.prog_query(fd, hook).program_ids)
    except libbpf.KernelError:
        return False


def _in_netns(host: Host, argv: list[str]) -> str:
    return host.run("tool", argv).stdout


# Refusing to start


@pytest.fixture(scope="module")
def bare() -> Iterator[Host]:
    """A host on which no agent has ever run."""
    if not can_attach():
        pytest.skip("needs root and a mounted BPF file system")
    with Host("bare") as one:
        yield one


def assert_refused(host: Host, done: subprocess.CompletedProcess[str], *words: str) -> None:
    """One error that names the cause, exit 3, nothing left behind."""
    assert done.returncode == 3, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert traces(host) == []
    assert not (host.run_dir / "control.sock").exists()


def test_refuse_to_start_without_cgroup2(bare: Host, tmp_path: Path) -> None:
    assert_refused(bare, bare.run_agent(cgroup_root=str(tmp_path)), "cgroup2")


def test_refuse_to_start_without_a_bpf_file_system(bare: Host, tmp_path: Path) -> None:
    assert_refused(bare, bare.run_agent(pins=str(tmp_path / "pins")), "BPF file system", "mount -t bpf")


@pytest.mark.parametrize("capability", ["bpf", "net_admin"])
def test_refuse_to_start_without_a_capability(bare: Host, capability: str) -> None:
    less = ["setpriv", f"--bounding-set=-{capability},-sys_admin", f"--inh-caps=-{capability},-sys_admin"]
    assert_refused(bare, bare.run_agent(less, netns=None), f"CAP_{capability.upper()}")


def test_refuse_to_start_as_a_user(bare: Host) -> None:
    bare.directory.chmod(0o755)
    done = bare.run_agent(["setpriv", "--reuid=65534", "--clear-groups"])
    assert done.returncode == 3, done.stderr
    assert "root" in done.stderr
    assert traces(bare) == []


def test_refuse_to_start_under_a_foreign_exclusive_program_and_name_it(bare: Host) -> None:
    root = libbpf.Fd(os.open(bare.cgroup, os.O_RDONLY | os.O_DIRECTORY))
    with root, address_program(AttachType.CGROUP_CONNECT4, 1) as program:
        name = libbpf.prog_info(program).name
        attach_exclusively(program.fileno(), root.fileno())
        try:
            done = bare.run_agent()
        finally:
            detach_exclusive(program.fileno(), root.fileno())
    assert_refused(bare, done, "connect4", f"`{name}`", str(bare.cgroup))


def attach_exclusively(program: int, cgroup: int) -> None:
    _libbpf("bpf_prog_attach", program, cgroup, int(AttachType.CGROUP_CONNECT4), 0)


def detach_exclusive(program: int, cgroup: int) -> None:
    _libbpf("bpf_prog_detach2", program, cgroup, int(AttachType.CGROUP_CONNECT4))


def _libbpf(name: str, *arguments: int) -> None:
    code = getattr(ctypes.CDLL("libbpf.so.1", use_errno=True), name)(*arguments)
    assert code == 0, os.strerror(-code)
