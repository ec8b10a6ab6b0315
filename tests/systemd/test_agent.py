"""Loader and agent as their shipped units, under a real systemd: what they enforce between real units, and that it goes
on whatever becomes of them.
"""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bulkhead.kernel import netns
from bulkhead.kernel.libbpf import AttachType, prog_query

AGENT = "bulkhead.service"
LOADER = "bulkhead-loader.service"
BULKHEAD = "/opt/bulkhead/bin/bulkhead"
LOOPBACK = 1
CGROUP_HOOKS = (AttachType.CGROUP_SOCK_CREATE, AttachType.CGROUP_CONNECT4, AttachType.CGROUP_SENDMSG6)
DEVICE_HOOKS = (AttachType.TCX_INGRESS, AttachType.TCX_EGRESS)
LAZY = "[Service]\nExecStart=/usr/bin/python3 /opt/lab/caller.py activated\n"
LAZY_SOCKET = "[Socket]\nListenStream=127.0.0.1:9000\n"
CAPABILITIES = {"CAP_DAC_READ_SEARCH": 2, "CAP_NET_ADMIN": 12, "CAP_SYS_PTRACE": 19, "CAP_BPF": 39}


@pytest.fixture
def host(running: Any) -> Iterator[Any]:
    """Enforcing, with a conversation under way; also afterwards."""
    assert running.order("asker", "open 8080") == "server: hello"
    yield running
    running.start()


def verdicts(host: Any) -> tuple[str, str, str]:
    """What an allowed, an open and a refused conversation come to."""
    return host.order("asker", "connect 8080"), host.order("asker", "talk"), host.order("stranger", "connect 8080")


AS_POLICY_SAYS = ("server: hello", "server: hello", "EPERM")


def process_of(host: Any, pid: int) -> Path:
    """/proc of a process of the box, which numbers it `pid`."""
    return Path(f"{host.box.root}/proc/{pid}")


def status_fields(process: Path) -> dict[str, str]:
    lines = (process / "status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_the_units_load_and_enforce_what_the_commit_says(host: Any) -> None:
    status = host.ask("status")
    assert (status["commit"], status["policy"]["error"]) == (host.git("rev-parse", "HEAD"), None)
    assert status["git_equals_kernel"]
    assert host.box.show(LOADER, "Result") == "success"
    assert host.box.show(LOADER, "MainPID") == "0"
    assert verdicts(host) == AS_POLICY_SAYS


def test_the_agent_runs_in_the_group_of_its_unit(host: Any) -> None:
    assert host.box.unit_cgroup(AGENT) == host.box.cgroup / "system.slice/bulkhead.service"


def test_a_refusal_names_the_unit(host: Any) -> None:
    host.order("stranger", "connect 8080")
    refused = [record for record in host.ask("drops")["records"] if record["unit"] == "stranger.service"]
    assert {(record["source"], record["destination"]) for record in refused} == {("t/stranger", "t/server")}


@pytest.mark.parametrize(("unit", "outcome"), [("passing-7", "server: hello"), ("other-7", "EPERM|ETIMEDOUT")])
def test_a_transient_unit_is_selected_by_its_name(host: Any, unit: str, outcome: str) -> None:
    # Not `--wait --pipe`: that needs a message bus. A start job of a oneshot ends with the program.
    command = ["systemd-run", "--quiet", f"--unit={unit}", "-pType=oneshot", "-pStandardOutput=truncate:/run/said"]
    host.box.run([*command, "python3", "/opt/lab/caller.py", "once", "8080"], check=True)
    assert re.fullmatch(outcome, (host.box.root / "run/said").read_text())


def test_a_socket_unit_is_reached_by_who_may_and_started_by_nobody_else(host: Any) -> None:
    host.box.start_unit("lazy.service", LAZY)
    host.systemctl("stop", "lazy.service")
    host.box.start_unit("lazy.socket", LAZY_SOCKET)
    assert host.order("stranger", "connect 9000") in ("EPERM", "ETIMEDOUT")
    assert host.box.show("lazy.service", "MainPID") == "0"  # stopped by a signal, it may count as failed
    assert host.order("asker", "connect 9000") == "lazy: hello"
    assert host.order("stranger", "connect 9000") == "EPERM"
    host.systemctl("stop", "lazy.service")
    assert host.order("asker", "connect 9000") == "lazy: hello"


def test_stopping_the_agent_changes_no_verdict_and_counting_goes_on(host: Any) -> None:
    denied = host.ask("status")["totals"]["deny"]
    hits = {rule["name"]: rule["hits"] for rule in host.ask("rules", "ls")["rules"]}
    host.systemctl("stop", AGENT)
    assert verdicts(host) == AS_POLICY_SAYS
    host.start()
    assert verdicts(host) == AS_POLICY_SAYS
    assert host.ask("status")["totals"]["deny"] == denied + 2
    after = {rule["name"]: rule["hits"] for rule in host.ask("rules", "ls")["rules"]}
    assert after["t/r1"] > hits["t/r1"] + 1


def test_restarting_the_agent_changes_no_verdict(host: Any) -> None:
    before = host.main_pid()
    host.systemctl("restart", AGENT)
    assert host.main_pid() != before
    assert verdicts(host) == AS_POLICY_SAYS


def test_a_killed_agent_is_started_again_and_nothing_opens_meanwhile(host: Any) -> None:
    before = host.main_pid()
    host.systemctl("kill", "--kill-whom=main", "--signal=KILL", AGENT)
    assert verdicts(host) == AS_POLICY_SAYS
    host.until(lambda: host.main_pid() not in (0, before) and host.box.show(AGENT, "ActiveState") == "active")
    assert verdicts(host) == AS_POLICY_SAYS


def test_an_agent_that_hangs_is_replaced_by_the_watchdog_and_nothing_opens_meanwhile(host: Any) -> None:
    with host.drop_in(AGENT, "WatchdogSec=2\nTimeoutAbortSec=1"):
        host.systemctl("restart", AGENT)
        before = host.main_pid()
        host.systemctl("kill", "--kill-whom=main", f"--signal={signal.SIGSTOP.name}", AGENT)
        assert verdicts(host) == AS_POLICY_SAYS
        host.until(lambda: host.main_pid() not in (0, before) and host.box.show(AGENT, "ActiveState") == "active")
        assert "Watchdog timeout" in host.box.journal(AGENT)
        assert verdicts(host) == AS_POLICY_SAYS


def test_the_watchdog_is_fed(host: Any) -> None:
    with host.drop_in(AGENT, "WatchdogSec=3"):
        host.systemctl("restart", AGENT)
        pid = host.main_pid()
        for _ in range(2):
            last = host.box.show(AGENT, "WatchdogTimestampMonotonic")
            host.until(lambda last=last: host.box.show(AGENT, "WatchdogTimestampMonotonic") != last)
        assert host.main_pid() == pid


def test_reload_looks_at_the_repository(host: Any) -> None:
    before, pid = host.ask("status")["policy"]["loaded"], host.main_pid()
    host.systemctl("reload", AGENT)
    host.until(lambda: host.ask("status")["policy"]["loaded"] > before)
    assert host.main_pid() == pid


def test_an_upgrade_is_a_restart_and_keeps_what_is_open(host: Any) -> None:
    pinned = host.box.journal(LOADER).count("programs pinned")
    (source,) = (host.box.root / "opt/bulkhead").glob("lib/python*/site-packages/bulkhead/bpf/tc.c")
    source.write_text(source.read_text() + "/* A later version. */\n")
    host.systemctl("restart", AGENT)
    assert host.box.journal(LOADER).count("programs pinned") == pinned + 1
    assert verdicts(host) == AS_POLICY_SAYS


def test_a_missing_loader_does_not_keep_the_agent_from_being_tried_again(host: Any) -> None:
    with host.drop_in(LOADER, "ExecStart=\nExecStart=/usr/bin/false"):
        host.systemctl("restart", AGENT)
        assert verdicts(host) == AS_POLICY_SAYS


def test_the_journal_gets_one_line_an_event_with_fields_and_priorities(host: Any) -> None:
    good = host.git("rev-parse", "HEAD")
    bad = host.commit({"\x1b[31mred.yaml": "kind: Policy\n\x07: [\n"})
    host.until(lambda: host.ask("status")["policy"]["refused_commit"] == bad)
    host.git("reset", "--hard", "-q", good)
    host.until(lambda: host.ask("status")["policy"]["refused_commit"] is None)
    records = host.journal_records(AGENT)
    assert all(isinstance(record["MESSAGE"], str) and record["MESSAGE"].isprintable() for record in records)
    (refused,) = [record for record in records if bad in record["MESSAGE"]]
    assert refused["PRIORITY"] == "3"
    assert r"\u{1b}[31mred.yaml" in refused["MESSAGE"]
    dropped = [
        record for record in records if "source=t/stranger destination=t/server port=8080/tcp" in record["MESSAGE"]
    ]
    assert {record["PRIORITY"] for record in dropped} == {"4"}


def test_the_agent_holds_the_capabilities_that_it_needs_and_no_compiler(host: Any) -> None:
    process = process_of(host, host.main_pid())
    fields = status_fields(process)
    wanted = f"{sum(1 << number for number in CAPABILITIES.values()):016x}"
    assert {fields["CapEff"], fields["CapPrm"], fields["CapBnd"]} == {wanted}
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    assert not re.search(r"libbcc|LLVM|libclang", (process / "maps").read_text())


def test_no_process_that_the_agent_starts_holds_a_capability(host: Any) -> None:
    pid = host.main_pid()

    def children() -> list[str]:
        return (process_of(host, pid) / f"task/{pid}/children").read_text().split()

    def held(child: str) -> set[str]:
        fields = status_fields(process_of(host, int(child)))
        return {fields["CapEff"], fields["CapPrm"], fields["CapInh"], fields["CapAmb"]}

    with socket.socket(socket.AF_UNIX) as caller:  # whose call has bulkhead-svids started
        caller.connect(str(host.box.root / "run/bulkhead/workload.sock"))
        host.until(lambda: len(children()) == 2 and all(held(child) == {"0" * 16} for child in children()))


def hooked(host: Any) -> dict[str, int]:
    """How many programs are at hooks that only the agent uses."""
    group = os.open(host.box.cgroup, os.O_RDONLY)
    try:
        found = {hook.name: len(prog_query(group, hook).program_ids) for hook in CGROUP_HOOKS}
    finally:
        os.close(group)
    with netns.entered(host.box.netns):
        return found | {hook.name: len(prog_query(LOOPBACK, hook).program_ids) for hook in DEVICE_HOOKS}


def test_detach_after_stop_leaves_no_trace(host: Any) -> None:
    assert set(hooked(host).values()) == {1}
    host.systemctl("stop", AGENT)
    assert set(hooked(host).values()) == {1}
    host.box.run([BULKHEAD, "detach"], check=True)
    assert set(hooked(host).values()) == {0}
    assert host.order("stranger", "connect 8080") == "server: hello"
    assert host.box.run(["test", "-e", "/sys/fs/bpf/bulkhead"]).returncode
    left = host.box.run(["find", "/run/bulkhead", "/var/lib/bulkhead", "-type", "f,s"], check=True).stdout.split()
    assert not left
