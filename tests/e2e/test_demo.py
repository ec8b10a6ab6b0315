"""The demo, run as `make demo` runs it: what it shows, how long it takes, and that nothing of it stays."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulkhead.identity.cgroups import find_mount

ROOT = Path(__file__).resolve().parents[2]
DEMO = [sys.executable, str(ROOT / "demo" / "run.py")]
LIMIT_S = 60
MARK = "lab-demo-"
"""In the name of the directory that every process of the demo's host works in or is told of."""

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("nginx", "redis-server", "redis-cli", "curl"))),
    reason="Debian's packages nginx-light, redis-server and curl are not installed",
)


def traces() -> set[str]:
    """What a demo would leave: directories, control groups, pins, namespaces, devices, processes."""
    places = (Path(tempfile.gettempdir()), find_mount().mount_point, Path("/sys/fs/bpf"), Path("/run/netns"))
    found = {str(path) for place in places if place.exists() for path in place.iterdir() if "demo" in path.name}
    return found | set(processes())


def processes() -> Iterator[str]:
    """Processes that were started with the demo's directory on their command line or in their control group."""
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            command = (directory / "cmdline").read_bytes()
            told = command + (directory / "cgroup").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        # Without a command line it has ended, and only waits for its parent to take notice.
        if command and (b"bulkhead-demo-" in told or MARK.encode() in told):
            yield f"{directory.name} {told!r}"


@pytest.fixture(scope="module")
def shown() -> str:
    """What a whole run prints."""
    before, started = traces(), time.monotonic()
    done = subprocess.run(DEMO, capture_output=True, text=True, timeout=LIMIT_S + 40)
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - started < LIMIT_S
    assert traces() <= before
    return done.stdout


def part(shown: str, number: int) -> str:
    """One act."""
    found = re.search(rf"^{number}  .*?(?=^{number + 1}  |\Z)", shown, re.MULTILINE | re.DOTALL)
    assert found, shown
    return found[0]


def after(text: str, command: str) -> str:
    """What a command printed, up to the next prompt."""
    _, found, rest = text.partition(f"{command}\n")
    assert found, text
    return re.split(r"^\S+[#$] |^\S", rest, maxsplit=1, flags=re.MULTILINE)[0]


def test_before_the_agent_starts_the_rogue_reads_what_it_likes(shown: str) -> None:
    assert after(part(shown, 1), "rogue$ redis-cli get visits").strip() == "1"


def test_the_agent_enforces_a_commit_on_what_is_running(shown: str) -> None:
    status = after(part(shown, 2), "bulkhead status")
    assert "equals git" in status
    assert "3 enforce, 0 observe" in status
    assert "tcx on lo, eth0" in status or "clsact on lo, eth0" in status


def test_what_policy_allows_works_from_inside_and_from_outside(shown: str) -> None:
    assert after(part(shown, 3), "people$ curl -s http://127.0.0.1:8080/").strip() == "visit 2"
    assert after(part(shown, 3), "world$ curl -s http://203.0.113.1:8080/").strip() == "visit 3"


@pytest.mark.parametrize(
    ("question", "process", "nearest"),
    [
        ("host cache:6379", r"pid \d+  \S*redis-cli  /rogue  uid", r"shop\.yaml:19@[0-9a-f]{7}  from: api, not host"),
        (
            "web cache:6379",
            r"pid \d+  /usr/sbin/nginx  /shop/web  uid",
            r"shop\.yaml:19@[0-9a-f]{7}  from: api, not web",
        ),
        (
            "api 203.0.113.10:80",
            r"pid \d+  /usr/bin/python3\S*  /shop/api  uid",
            r"shop\.yaml:19@[0-9a-f]{7}  to: cache",
        ),
    ],
)
def test_a_refusal_names_process_commit_and_nearest_rule(shown: str, question: str, process: str, nearest: str) -> None:
    answer = after(part(shown, 4), f"bulkhead why {question}")
    assert answer.lstrip().startswith("DENIED")
    assert re.search(process, answer), answer
    assert re.search(rf"nearest +shop/api-cache  {nearest}", answer), answer
    assert re.search(r"since +[0-9a-f]{7}  generation 1", answer), answer
    assert "complete: 0 events lost" in answer


def test_the_refused_programs_saw_an_error_at_once(shown: str) -> None:
    act = part(shown, 4)
    assert "Could not connect to Redis at 127.0.0.1:6379: Operation not permitted" in act
    assert "HTTP 502" in act
    assert "nginx: connect() to 127.0.0.1:6379 failed (1: Operation not permitted)" in act
    assert "Operation not permitted" in after(act, f"curl -s {'http://127.0.0.1:8080'}/export")
    assert after(act, "curl -s http://203.0.113.10/").strip() == "hello from the world"


def test_drops_and_counters_agree(shown: str) -> None:
    act = part(shown, 5)
    assert re.search(r"1 +\S+ +web nginx +cache:6379 +deny +default deny", act), act
    assert re.search(r"1 +\S+ +api python3 +users 203\.0\.113\.10:80 +deny +default deny", act), act
    assert 'policy_verdicts_total{direction="egress",dst="shop/cache",src="shop/web",verdict="deny"} 1.0' in act
    assert 'policy_verdicts_total{direction="egress",dst="shop/users",src="shop/api",verdict="deny"} 1.0' in act
    assert 'bulkhead_drops_total{direction="egress",reason="policy"} 2.0' in act


def test_a_one_line_commit_cuts_an_open_connection_and_spares_the_shop(shown: str) -> None:
    act = part(shown, 6)
    assert len(re.findall(r"^  [-+] ", act, re.MULTILINE)) == 2
    assert "PONG" in act
    # its own socket is destroyed, or the server's end was first
    assert "Error: Software caused connection abort" in act or "Error: Connection reset by peer" in act
    assert re.search(r"enforcing commit=[0-9a-f]{7,40} generation=2", act), act
    assert "destroyed a socket" in act
    assert re.search(r"^  visit \d+$", act, re.MULTILINE), act


def test_a_revert_lets_it_in_again(shown: str) -> None:
    assert after(part(shown, 7), "shop/api$ redis-cli ping").strip() == "PONG"


def test_with_the_agent_killed_the_same_is_refused_and_allowed(shown: str) -> None:
    act = part(shown, 8)
    assert "kill -9" in act
    assert "Operation not permitted" in after(act, "rogue$ redis-cli get visits")
    assert "visit" in after(act, "people$ curl -s http://127.0.0.1:8080/")


@pytest.mark.parametrize("moment", ["1  Without", "4  What it does not"])
def test_stopped_in_the_middle_it_leaves_nothing_behind(moment: str) -> None:
    before = traces()
    with subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        assert any(moment in line for line in demo.stdout)
        demo.send_signal(signal.SIGINT)
        _, complaint = demo.communicate(timeout=30)
    assert demo.returncode == 130
    assert "stopped; everything the demo made is gone" in complaint
    assert traces() <= before
