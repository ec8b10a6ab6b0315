"""Commands on files, and the command line itself."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from bulkhead.abi import Abi
from bulkhead.cli import doctor
from bulkhead.cli.main import COMMANDS, run
from lab.repository import POLICIES, example_repository

INVENTORY = """
endpoints:
  - {name: front, host: h1, cgroup: /shop/web}
  - {name: back, host: h1, cgroup: /shop/api}
  - {name: shell, host: h1, unit: ssh.service}
"""


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    path = tmp_path / "inventory.yaml"
    path.write_text(INVENTORY)
    return path


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The example policy, committed; the work tree then breaks it."""
    directory = example_repository(tmp_path / "repository")
    broken = (directory / "shop.yaml").read_text().replace("workloads:", "workload:")
    (directory / "shop.yaml").write_text(broken)
    return directory


Captured = pytest.CaptureFixture[str]


def test_matrix_has_exactly_the_promised_shape(inventory: Path, capfd: Captured) -> None:
    arguments = ("--policy", str(POLICIES), "--inventory", str(inventory), "--ports", "9000/tcp,53/udp")
    assert run(["matrix", *arguments, "--address", "admin=10.9.0.7", "-o", "json"]) == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert err == ""
    assert set(found) == {"endpoints", "cells"}
    assert found["endpoints"] == ["front", "back", "shell"]
    assert {tuple(sorted(cell)) for cell in found["cells"]} == {
        ("family", "from", "port", "protocol", "rule", "to", "verdict")
    }
    allowed = [cell for cell in found["cells"] if cell["verdict"] == "allow"]
    assert [(c["from"], c["to"], c["port"], c["protocol"], c["family"], c["rule"]) for c in allowed] == [
        ("front", "back", 9000, "tcp", 4, "shop/web-api"),
        ("front", "back", 9000, "tcp", 6, "shop/web-api"),
    ]
    assert "address:admin" in {cell["from"] for cell in found["cells"]}


def test_matrix_as_a_table_fits(inventory: Path, capfd: Captured) -> None:
    assert run(["matrix", "--policy", str(POLICIES), "--inventory", str(inventory), "--ports", "9000"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].split() == ["FROM", "TO", "PORT", "FAMILY", "VERDICT", "RULE"]
    assert "front  back   9000/tcp  IPv4    allow    shop/web-api" in lines
    assert all(len(line) <= 100 for line in lines)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--ports", "80-90"), "more than one port"),
        (("--ports", "x"), "is not a port"),
        (("--ports", "80", "--address", "x"), "`x` is not an address with a name"),
        (("--ports", "80", "--address", "a=x"), "`x` is not an address"),
        (("--ports", "80", "--address", "a=10.0.0.1", "--address", "a=10.0.0.2"), "given twice"),
        (("--ports", "80", "--engine", "magic"), "magic"),
        ((), "--ports"),
    ],
)
def test_a_matrix_that_cannot_be_meant_is_refused(
    inventory: Path, capfd: Captured, arguments: tuple[str, ...], said: str
) -> None:
    assert run(["matrix", "--policy", str(POLICIES), "--inventory", str(inventory), *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert said in err


def test_files_that_are_not_there_exit_with_three(tmp_path: Path, inventory: Path, capfd: Captured) -> None:
    missing = str(tmp_path / "missing")
    assert run(["matrix", "--policy", missing, "--inventory", str(inventory), "--ports", "80"]) == 3
    assert run(["matrix", "--policy", str(POLICIES), "--inventory", missing, "--ports", "80"]) == 3
    assert run(["lint", missing]) == 3
    assert capfd.readouterr().out == ""


def test_can_answers_from_files(capfd: Captured) -> None:
    assert run(["can", "web", "api:9000", "--policy", str(POLICIES)]) == 0
    assert capfd.readouterr().out.startswith("ALLOW  web -> api:9000\n")
    assert run(["can", "web", "cache:6379", "--policy", str(POLICIES)]) == 1
    assert "from: api, not web" in capfd.readouterr().out


def test_can_answers_for_endpoints_of_an_inventory(inventory: Path, capfd: Captured) -> None:
    arguments = ("--policy", str(POLICIES), "--inventory", str(inventory))
    assert run(["can", "front", "back:9000", *arguments, "-o", "json"]) == 0
    assert json.loads(capfd.readouterr().out)["data"]["from"] == "shop/web"


def test_a_revision_is_read_from_its_commit_not_from_the_work_tree(repository: Path, capfd: Captured) -> None:
    assert run(["can", "web", "api:9000", "--policy", str(repository), "--rev", "HEAD"]) == 0
    out = capfd.readouterr().out
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True, check=True)
    assert f"shop.yaml:18@{commit.stdout[:7]}" in out
    assert run(["can", "web", "api:9000", "--policy", str(repository)]) == 2
    assert run(["can", "web", "api:9000", "--policy", str(repository), "--rev", "nowhere"]) == 3
    assert run(["can", "web", "api:9000", "--rev", "HEAD"]) == 2


def test_lint_finds_nothing_in_the_example_policy(capfd: Captured) -> None:
    assert run(["lint", str(POLICIES)]) == 0
    assert capfd.readouterr() == ("", "no findings\n")


def test_lint_shows_every_finding_with_its_line(repository: Path, capfd: Captured) -> None:
    assert run(["lint", str(repository)]) == 2
    out, err = capfd.readouterr()
    assert "--> shop.yaml:" in out
    assert "^" in out
    assert err == f"{out.count('error[')} errors, 0 warnings\n"
    assert run(["lint", str(repository), "--rev", "HEAD"]) == 0


def test_lint_refuses_what_would_not_compile_and_gives_json(tmp_path: Path, capfd: Captured) -> None:
    for path in POLICIES.glob("*.yaml"):
        text = path.read_text().replace('accept: ["web:8080"]', 'accept: ["cache:6379"]')
        (tmp_path / path.name).write_text(text)
    assert run(["lint", str(tmp_path), "-o", "json"]) == 2
    found = json.loads(capfd.readouterr().out)
    assert found["kind"] == "Findings"
    assert {one["code"] for one in found["data"]} >= {"BH0502"}
    assert found["data"][0]["loc"]["file"] == "shop.yaml"


def test_lint_of_an_expired_exception_exits_with_one(tmp_path: Path, capfd: Captured) -> None:
    for path in POLICIES.glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text())
    with (tmp_path / "shop.yaml").open("a") as file:
        file.write("exceptions:\n  - {name: x, from: host, to: web, ports: [81], expires: 2020-01-01T00:00:00Z, ")
        file.write("owner: o, ticket: t}\n")
    assert run(["lint", str(tmp_path)]) == 1
    assert "BH1004" in capfd.readouterr().out


# The command line itself


def test_an_unknown_command_is_told_what_it_might_have_been(capfd: Captured) -> None:
    assert run(["drop"]) == 2
    assert "no command `drop`: did you mean `drops`?" in capfd.readouterr().err


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself(command: str, capfd: Captured) -> None:
    assert run([command, "--help"]) == 0
    out = capfd.readouterr().out
    assert out.startswith("Usage: bulkhead ")
    assert len(out.splitlines()) > 4


def test_the_list_of_commands_is_complete(capfd: Captured) -> None:
    assert run(["--help"]) == 0
    out = capfd.readouterr().out
    assert all(f"\n  {command} " in out for command in COMMANDS)


def test_version_as_json(capfd: Captured) -> None:
    assert run(["version", "-o", "json"]) == 0
    assert json.loads(capfd.readouterr().out)["data"]["layout"] == Abi.LAYOUT


def test_what_nobody_foresaw_is_words_and_a_traceback_only_on_request(
    capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("oh\x1bno")

    monkeypatch.setattr("bulkhead.cli.version.package_version", fail)
    assert run(["version"]) == 3
    assert capfd.readouterr() == ("", "error: ZeroDivisionError: oh\\u{1b}no\n")
    assert run(["version", "-v"]) == 3
    assert "Traceback" in capfd.readouterr().err


def test_an_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch, capfd: Captured) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bulkhead.cli.version.package_version", interrupt)
    assert run(["version"]) == 130
    capfd.readouterr()


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=30, check=False)


def test_the_command_line_starts_fast() -> None:
    took = []
    for _ in range(5):
        before = children_cpu_s()
        assert start("-m", "bulkhead.cli.main", "version").returncode == 0
        took.append(children_cpu_s() - before)
    assert min(took) < 0.3, took


def children_cpu_s() -> float:
    """Seconds of CPU: what a start takes on a machine with nothing else to do."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_starting_imports_nothing_that_only_another_command_needs() -> None:
    code = "import sys; from bulkhead.cli.main import run; run(['version']); print(*sorted(sys.modules))"
    loaded = set(start("-c", code).stdout.split())
    assert not loaded & {"rich", "bcc", "aiohttp", "prometheus_client", "yaml", "pyroute2", "asyncio", "psutil"}


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    code = (
        "import os, sys; from bulkhead.cli.main import run; from bulkhead.cli import output\n"
        "read, write = os.pipe(); os.close(read); os.dup2(write, 1)\n"
        "sys.exit(run(['version']))"
    )
    done = start("-c", code)
    assert (done.returncode, done.stderr) == (0, "")


# Doctor


def test_an_old_kernel_fails() -> None:
    assert doctor.kernel_check("5.10.0-26-amd64").result == "fail"
    assert doctor.kernel_check("6.1.0-18-amd64").text.endswith("clsact")
    assert doctor.kernel_check("6.12.1").text.endswith("tcx")
    assert doctor.kernel_check("strange").result == "fail"


def test_a_missing_bpf_file_system_fails_with_the_remedy() -> None:
    mounted = "30 23 0:26 / /sys/fs/bpf rw shared:9 - bpf bpf rw,mode=700"
    assert doctor.bpffs_check(mounted) == doctor.Check("ok", "BPF file system at /sys/fs/bpf")
    assert "mount -t bpf" in doctor.bpffs_check("").text


def test_missing_capabilities_are_named() -> None:
    assert doctor.capability_check("CapEff:\t000001ffffffffff\n").result == "ok"
    assert "CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF" in doctor.capability_check("CapEff:\t0000000000000000\n").text


def test_doctor_looks_at_this_host(tmp_path: Path, capfd: Captured) -> None:
    code = run(["doctor", "--run-dir", str(tmp_path), "-o", "json"])
    found = json.loads(capfd.readouterr().out)["data"]
    assert code == int(any(check["result"] == "fail" for check in found))
    assert any("kernel" in check["text"] for check in found)
    assert "no agent answers" in found[-1]["text"]
