"""A node's key and what follows from it: the maps of identity on the wire, as a real agent keeps them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from bulkhead.abi import NodeEntry, NodeFlag, NodeKey, WireSelf
from bulkhead.kernel import libbpf
from bulkhead.kernel.wire import claim_key, node_key
from lab.bpf import can_attach
from lab.host import Host
from lab.nodes import KeyFile, key_file, record
from lab.policies import policy, repository
from lab.wire import Party, direction_key, host_set_of, number_of, pair_secret

DOMAIN = "example.org"
EPOCH_S = 4096
WEB = Party("web-1", b"\x11" * 32)
DB = Party("db-1", b"\x22" * 32)
POLICY = policy(
    "web -> db 5432",
    workloads={
        "web": "{match: {cgroup: /web, host: 'web-*'}}",
        "db": "{match: {cgroup: /db, host: [db-1, db-2]}}",
        "batch": "{match: {cgroup: /batch}}",
    },
)


class Node:
    """A lab host that has a key."""

    def __init__(self, host: Host, key: KeyFile) -> None:
        self.host, self.key = host, key

    @property
    def own(self) -> str:
        """Its own record."""
        return record(self.host.name, "10.77.0.1", "fd77::1", key=self.key.public)

    def know(self, *records: str, text: str = POLICY) -> None:
        """Commit records, and wait until they are in force."""
        files = {"bulkhead.yaml": repository(), "t.yaml": text, "nodes.yaml": "".join(records) or "---\n"}
        status = self.host.wait_for_commit(self.host.commit(files))
        assert status["policy"]["error"] is None

    def wire(self) -> dict[str, Any]:
        """What `status` says."""
        return dict(self.host.call("status")["wire"])

    def until(self, is_so: Callable[[dict[str, Any]], object], timeout_s: float = 15.0) -> dict[str, Any]:
        """Wait until `status` says so."""
        deadline = time.monotonic() + timeout_s
        while not is_so(found := self.wire()):
            assert time.monotonic() < deadline, (found, self.host.log()[-2000:])
            time.sleep(0.02)
        return found

    def map(self, name: str) -> dict[bytes, bytes]:
        """What a map holds."""
        with libbpf.map_open(self.host.pins / "maps" / name) as opened:
            return opened.as_dict()

    @property
    def kernel_self(self) -> WireSelf:
        """This node, as the kernel has it."""
        return WireSelf.from_buffer_copy(self.map("wire_self")[bytes(4)])

    def keys_of(self, number: int) -> dict[int, bytes]:
        """The keys that the kernel has of a node, by epoch."""
        found = ((int.from_bytes(key[:4], "little"), key[4:], value) for key, value in self.map("wire_keys").items())
        return {int.from_bytes(epoch, "little"): value for node, epoch, value in found if node == number}

    def entry(self, network: str) -> NodeEntry | None:
        """What the kernel has of a prefix."""
        held = self.map("nodes").get(node_key(ip_network(network)))
        return None if held is None else NodeEntry.from_buffer_copy(held)


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    if not can_attach():
        pytest.skip("needs root and a mounted BPF file system")
    with Host("near-1") as host:
        key = key_file(host.directory)
        host.more_settings |= key.settings
        host.start_agent()
        yield Node(host, key)


@pytest.fixture
def fleet(node: Node) -> Node:
    """The node speaks, and knows three others."""
    node.know(
        node.own,
        record("web-1", "10.1.0.1", "fd01::1", key=WEB.public),
        record("db-1", "10.2.0.0/24", key=DB.public, unknown="address"),
        record("printer", "10.3.0.9"),
    )
    node.until(lambda wire: wire["speaking"] and wire["keys"]["nodes"] == 2)
    return node


def test_a_node_speaks_under_the_number_of_its_record_and_for_the_commit_in_force(fleet: Node) -> None:
    own, commit = fleet.kernel_self, fleet.host.call("status")["commit"]
    assert own.node == number_of("near-1")
    assert bytes(own.commit) == bytes.fromhex(commit)[:8]
    assert abs(own.clock_offset_s - (time.time() - time.monotonic())) <= 1
    assert any(own.stamp_key)


def test_the_kernel_knows_other_nodes_by_their_addresses_and_not_itself(fleet: Node) -> None:
    web, db, printer = (fleet.entry(one) for one in ("fd01::1/128", "10.2.0.0/24", "10.3.0.9/32"))
    assert web is not None and (web.node, web.flags) == (number_of("web-1"), 0)
    assert db is not None and (db.node, db.flags) == (number_of("db-1"), NodeFlag.BY_ADDRESS)
    assert printer is not None and (printer.node, printer.flags) == (number_of("printer"), NodeFlag.LEGACY)
    assert fleet.entry("10.77.0.1/32") is fleet.entry("fd77::1/128") is None
    assert {NodeKey.from_buffer_copy(key).prefix_bits for key in fleet.map("nodes")} == {128, 120}


def test_keys_of_a_day_are_those_that_a_second_implementation_derives(fleet: Node) -> None:
    now, held = int(time.time()) // EPOCH_S, fleet.keys_of(number_of("web-1"))
    assert {now - 1, now, now + 86400 // EPOCH_S} <= held.keys()
    pair, near = pair_secret(WEB.secret, fleet.key.public), Party("near-1", b"")
    for epoch, value in held.items():
        sending = direction_key(pair, DOMAIN, near, WEB, epoch)
        assert value == sending + direction_key(pair, DOMAIN, WEB, near, epoch)
    assert fleet.keys_of(number_of("printer")) == {}


def test_a_node_may_claim_what_the_globs_let_it_host(fleet: Node) -> None:
    web, db = host_set_of(["web-*"]), host_set_of(["db-1", "db-2"])
    assert fleet.map("claims").keys() == {claim_key(number_of("web-1"), web), claim_key(number_of("db-1"), db)}


def test_a_revoked_node_has_no_keys_no_claims_and_no_address(fleet: Node) -> None:
    fleet.know(fleet.own, record("web-1", "10.1.0.1", key=WEB.public, revoked="true"))
    found = fleet.until(lambda wire: wire["registry"]["refused"] and not wire["keys"]["nodes"])
    (refused,) = found["registry"]["refused"]
    assert (refused["name"], refused["reason"]) == ("web-1", "revoked")
    assert (fleet.map("wire_keys"), fleet.map("claims"), fleet.map("nodes")) == ({}, {}, {})
    assert fleet.kernel_self.node == number_of("near-1")


@pytest.mark.parametrize(
    ("own", "why"),
    [
        ("", "there is no record of the node `near-1`"),
        (record("near-1", "10.77.0.1"), "has no key"),
        (record("near-1", "10.77.0.1", key=DB.public), "has another key than this node's"),
    ],
)
def test_a_node_whose_record_is_not_its_own_says_nothing(fleet: Node, own: str, why: str) -> None:
    fleet.know(own, record("web-1", "10.1.0.1", key=WEB.public))
    found = fleet.until(lambda wire: not wire["speaking"])
    assert why in found["mute"]
    assert (fleet.kernel_self.node, fleet.map("wire_keys")) == (0, {})
    assert why in fleet.host.bulkhead("status").stdout.replace("\n", " ")


def test_a_key_of_low_order_is_refused_and_others_are_unaffected(fleet: Node) -> None:
    weak = (1).to_bytes(32, "little")
    fleet.know(fleet.own, record("web-1", "10.1.0.1", key=WEB.public), record("evil", "10.9.0.1", key=weak))
    found = fleet.until(lambda wire: wire["registry"]["refused"] and wire["keys"]["nodes"])
    assert [(one["name"], one["reason"]) for one in found["registry"]["refused"]] == [("evil", "key")]
    assert fleet.keys_of(number_of("evil")) == {}
    assert fleet.keys_of(number_of("web-1"))


def test_a_restart_of_the_agent_leaves_the_maps_in_force(fleet: Node) -> None:
    before = {name: fleet.map(name) for name in ("nodes", "wire_keys", "claims")}
    stamp_key = bytes(fleet.kernel_self.stamp_key)
    fleet.host.stop_agent(signal.SIGKILL)
    seen: list[bool] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            seen.append(all(before[name].items() <= fleet.map(name).items() for name in before))
            seen.append(fleet.kernel_self.node != 0)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        fleet.host.start_agent()
        fleet.until(lambda wire: wire["keys"]["process"] and wire["mute"] is None)
    finally:
        over.set()
        watching.join()
    assert len(seen) > 10
    assert all(seen)
    assert bytes(fleet.kernel_self.stamp_key) == stamp_key


def test_a_key_process_that_is_killed_comes_back_and_the_keys_stay(fleet: Node) -> None:
    before, wire = fleet.map("wire_keys"), fleet.wire()
    os.kill(wire["keys"]["process"], signal.SIGKILL)
    found = fleet.until(lambda one: one["keys"]["restarts"] > wire["keys"]["restarts"] and one["keys"]["process"])
    assert found["speaking"]
    assert fleet.map("wire_keys") == before
    fleet.until(lambda one: one["keys"]["error"] is None)
    fleet.know(fleet.own, record("db-1", "10.2.0.1", key=DB.public), record("web-2", "10.1.0.2", key=WEB.public))
    fleet.until(lambda one: one["keys"]["nodes"] == 2)
    assert fleet.keys_of(number_of("web-2"))


@pytest.mark.parametrize("name", ["nodes", "claims", "wire_keys"])
def test_what_somebody_else_deletes_or_adds_is_put_right_and_told(fleet: Node, name: str) -> None:
    before, known = fleet.map(name), fleet.host.call("status")["drift"]["found"]
    fleet.until(lambda wire: wire["problem"] is None)
    with libbpf.map_open(fleet.host.pins / "maps" / name) as opened:
        gone, value = next(iter(before.items()))
        opened.delete(gone)
        if name != "nodes":
            opened.update(b"\xee" * len(gone), value)
    deadline = time.monotonic() + 15
    while fleet.map(name) != before or fleet.host.call("status")["drift"]["found"] == known:
        assert time.monotonic() < deadline, fleet.host.log()[-2000:]
        time.sleep(0.05)
    assert any(name in one["what"] for one in fleet.host.call("status")["drift"]["recent"])


# Who may see what

_CONFINED = """
import sys; sys.path[:0] = {path!r}
import os
from bulkhead.confinement import confine
if {uid}: os.setgroups([]); os.setresgid({uid}, {uid}, {uid}); os.setresuid({uid}, {uid}, {uid})
else: confine()
try:
    {attempt}
except (OSError, Exception) as error:
    print(type(error).__name__, error)
else:
    print("ALLOWED")
"""


def attempt_as(uid: int, attempt: str) -> str:
    """What comes of `attempt` for that user; for root, as a child of the agent is confined."""
    code = _CONFINED.format(path=sys.path, uid=uid, attempt=attempt)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("uid", [0, 65534])
def test_the_memory_of_the_key_process_is_closed_to_whoever_lacks_the_capability(fleet: Node, uid: int) -> None:
    pid = fleet.wire()["keys"]["process"]
    for attempt in (
        f"open('/proc/{pid}/mem', 'rb')",
        f"open('/proc/{pid}/maps').read()",
        f"open('/proc/{pid}/environ')",
    ):
        assert attempt_as(uid, attempt).startswith("PermissionError"), attempt


@pytest.mark.parametrize("uid", [0, 65534])
def test_neither_another_user_nor_a_child_of_the_agent_opens_a_pin(fleet: Node, uid: int) -> None:
    get = "from bulkhead.kernel import libbpf; from pathlib import Path; libbpf.obj_get(Path('{}'))"
    for name in ("wire_keys", "wire_self", "claims"):
        assert attempt_as(uid, get.format(fleet.host.pins / "maps" / name)).startswith("KernelError")


def test_another_user_does_not_read_the_key_file(fleet: Node) -> None:
    for path in (fleet.key.path, fleet.key.passphrase):
        assert attempt_as(65534, f"open('{path}').read()").startswith("PermissionError")


def test_the_key_process_has_no_capability_and_leaves_no_core_and_no_file(fleet: Node) -> None:
    proc = Path(f"/proc/{fleet.wire()['keys']['process']}")
    status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line)
    assert (status["CapEff"], status["CapPrm"], status["NoNewPrivs"]) == ("0" * 16, "0" * 16, "1")
    assert status["Seccomp"] == "2"
    limits = (proc / "limits").read_text()
    for name in ("Max core file size", "Max file size"):
        assert next(line for line in limits.splitlines() if line.startswith(name)).split()[-3:-1] == ["0", "0"]


def test_nothing_of_the_key_is_in_logs_or_answers(fleet: Node) -> None:
    secret = Party("near-1", _private(fleet.key)).secret
    pair = pair_secret(secret, WEB.public)
    derived = direction_key(pair, DOMAIN, Party("near-1", b""), WEB, int(time.time()) // EPOCH_S)
    said = fleet.host.log() + fleet.host.bulkhead("status", "-o", "json").stdout
    said += fleet.host.bulkhead("wire", "nodes", "-o", "json").stdout
    files = b"".join(one.read_bytes() for one in (fleet.host.directory / "state").rglob("*") if one.is_file())
    for hidden in (secret, pair, derived):
        assert hidden.hex() not in said
        assert hidden not in files


def _private(key: KeyFile) -> bytes:
    from cryptography.hazmat.primitives import serialization

    from bulkhead import keyd

    raw = (serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption())
    return keyd.read_key(key.path, key.passphrase).private_bytes(*raw)


# What people see


def test_nodes_are_listed_with_those_that_do_not_count(fleet: Node) -> None:
    fleet.know(
        fleet.own,
        record("web-1", "10.1.0.1", key=WEB.public),
        record("printer", "10.3.0.9"),
        record("db-1", "10.2.0.1", key=DB.public, revoked="true"),
    )
    fleet.until(lambda wire: wire["keys"]["nodes"] == 1 and wire["registry"]["refused"])
    done = fleet.host.bulkhead("wire", "nodes")
    rows = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "no agent" in rows["printer"]
    assert "this node" in rows["near-1"]
    assert "10.1.0.1" in rows["web-1"]
    assert "`db-1` is revoked" in done.stderr
    assert [one["name"] for one in fleet.host.ask("wire", "nodes")["nodes"]] == ["near-1", "printer", "web-1"]


def test_status_tells_in_two_lines_and_metrics_in_numbers(fleet: Node) -> None:
    text = fleet.host.bulkhead("status").stdout
    assert f"node near-1 ({number_of('near-1')})" in text
    assert "4 nodes in files, 1 without agent" in text.replace("\n", " ")
    scrape = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:9464/metrics').read().decode())"
    metrics = fleet.host.python("ops", scrape).stdout
    assert "bulkhead_wire_nodes 4.0" in metrics
    assert 'bulkhead_wire_total{outcome="verified"} 0.0' in metrics


def test_a_key_file_that_others_may_read_silences_the_node_and_nothing_else(fleet: Node) -> None:
    fleet.host.stop_agent()
    fleet.key.path.chmod(0o644)
    try:
        fleet.host.start_agent()
        found = fleet.until(lambda wire: wire["keys"]["error"])
        assert "others than its owner may read" in found["keys"]["error"]
        assert found["speaking"], "what an earlier agent put into force stays so"
        assert fleet.keys_of(number_of("web-1"))
    finally:
        fleet.host.stop_agent()
        fleet.key.path.chmod(0o600)
        fleet.host.start_agent()
    fleet.until(lambda wire: wire["keys"]["error"] is None and wire["mute"] is None)
