"""Names instead of addresses, live: real resolvers, real lookups, and connections that follow at once."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import nameserver
from lab.host import PYTHON, Host
from lab.policies import policy

FAR4, FAR6, NEAR4 = "10.77.0.2", "fd77::2", "10.77.0.1"
LOOKUPS = 10_000
NAMED = {
    "resolver": "{cidr: [10.77.0.2/32]}",
    "shop": '{fqdn: [shop.example.org, "*.many.example.net"]}',
}
RULES = ("api -> resolver 53/udp, 53", "api -> shop 80")


@pytest.fixture(scope="module")
def resolver(host: Host, far: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """dnsmasq on the far machine, and every address of 10.80.0.0/12 there as well."""
    far.ip("route", "replace", "local", "10.80.0.0/12", "dev", "lo")
    host.ip("route", "replace", "10.80.0.0/12", "via", FAR4)
    far.ip("addr", "add", "fd80::1/128", "dev", "lo")
    host.ip("-6", "route", "replace", "fd80::/64", "via", FAR6)
    directory = tmp_path_factory.mktemp("dnsmasq")
    records = ["--host-record=web.example.com,10.80.0.1,fd80::1", "--cname=shop.example.org,front.example.com"]
    records += ["--cname=front.example.com,web.example.com", "--host-record=other.example.org,10.80.0.2"]
    argv = ["dnsmasq", "--no-daemon", "--no-hosts", "--no-resolv", "--conf-file=/dev/null", "--user=root"]
    argv += [f"--listen-address={FAR4}", "--bind-interfaces", "--local-ttl=2", "--log-facility=-", *records]
    with (directory / "log").open("w") as log:
        server = far.start("dns", [*argv, f"--pid-file={directory}/pid"], stderr=log, stdout=log)
    _await_server(far)
    yield
    server.terminate()
    server.wait()
    host.ip("route", "del", "10.80.0.0/12")
    host.ip("-6", "route", "del", "fd80::/64")
    far.ip("route", "del", "local", "10.80.0.0/12", "dev", "lo")
    far.ip("addr", "del", "fd80::1/128", "dev", "lo")


def _await_server(far: Host) -> None:
    """Until it answers; asked on the far machine itself, which nobody watches."""
    code = f"""
import socket, time
from lab.nameserver import question
end = time.monotonic() + 10
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
    one.settimeout(0.1)
    one.connect(("{FAR4}", 53))
    while time.monotonic() < end:
        try:
            one.send(question("shop.example.org", 1)); one.recv(512); break
        except OSError:
            continue
    else:
        raise SystemExit("no answer")
"""
    asked = far.run("dns", ["env", f"PYTHONPATH={Path(nameserver.__file__).parent.parent}", PYTHON, "-c", code])
    assert asked.returncode == 0, asked.stderr


@pytest.fixture
def enforced(host: Host, resolver: None) -> None:
    host.enforce(policy(*RULES, externals=NAMED))
    forget(host)


def forget(host: Host) -> None:
    """Nothing has been learned."""
    from bulkhead.kernel import libbpf

    with libbpf.map_open(host.pins / "maps" / "learned") as learned:
        for key in learned.as_dict():
            learned.delete(key)


def lapse(host: Host) -> None:
    """As if every time to live had passed."""
    import struct

    from bulkhead.kernel import libbpf

    with libbpf.map_open(host.pins / "maps" / "learned") as learned:
        for key, value in learned.as_dict().items():
            words = struct.unpack("<4Q", value)
            learned.update(key, struct.pack("<4Q", *(word >> 32 << 32 | 1 if word else 0 for word in words)))


def glibc(host: Host, group: str, tmp_path: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python whose C library asks the far machine's resolver."""
    (tmp_path / "resolv.conf").write_text(f"nameserver {FAR4}\noptions timeout:1 attempts:2\n")
    (tmp_path / "nsswitch.conf").write_text("hosts: dns\n")
    binds = " && ".join(f"mount --bind {tmp_path}/{name} /etc/{name}" for name in ("resolv.conf", "nsswitch.conf"))
    return host.run(group, ["unshare", "-m", "sh", "-c", f'{binds} && exec "$@"', "sh", PYTHON, "-c", code])


CONNECT = """
import socket
with socket.create_connection(("{name}", 80), timeout=0.9) as one:
    one.sendall(b"x")
    print(one.recv(9).decode())
"""


def test_a_program_connects_by_name_through_the_c_library(
    host: Host, far: Host, puppets, enforced: None, tmp_path: Path
) -> None:
    for address in ("0.0.0.0", "fd80::1"):
        puppets(far, "any").serve_tcp(address, 80)
    assert puppets(host, "api").tcp("10.80.0.1", 80) == "EPERM"
    done = glibc(host, "api", tmp_path, CONNECT.format(name="shop.example.org"))
    assert (done.stdout, done.stderr) == ("x\n", "")
    refused = glibc(host, "api", tmp_path, CONNECT.format(name="other.example.org"))
    assert "PermissionError" in refused.stderr
    assert puppets(host, "web").tcp("10.80.0.1", 80) == "EPERM"


def test_a_program_connects_by_name_while_no_agent_runs(
    host: Host, far: Host, puppets, enforced: None, tmp_path: Path
) -> None:
    for address in ("0.0.0.0", "fd80::1"):
        puppets(far, "any").serve_tcp(address, 80)
    host.stop_agent(signal.SIGKILL)
    try:
        done = glibc(host, "api", tmp_path, CONNECT.format(name="shop.example.org"))
    finally:
        host.start_agent()
    assert (done.stdout, done.stderr) == ("x\n", "")


def test_a_stub_resolver_on_the_host_teaches_as_well(host: Host, far: Host, puppets, resolver: None) -> None:
    host.enforce(policy("api -> db 53/udp", "api -> shop 80", externals=NAMED))
    forget(host)
    puppets(far, "any").serve_tcp("10.80.0.1", 80)
    argv = [
        "dnsmasq",
        "--no-daemon",
        "--no-hosts",
        "--no-resolv",
        "--conf-file=/dev/null",
        "--user=root",
        "--pid-file=",
    ]
    argv += ["--listen-address=127.0.0.1", "--bind-interfaces", "--host-record=shop.example.org,10.80.0.1"]
    stub = host.start("db", argv, stderr=subprocess.DEVNULL)
    api, web = puppets(host, "api"), puppets(host, "web")
    try:
        api.do(_ASK)
        assert api.do("ask('127.0.0.1', 'shop.example.org')") == ["10.80.0.1"]
    finally:
        stub.terminate()
        stub.wait()
    assert api.tcp("10.80.0.1", 80) == "ok"
    assert web.tcp("10.80.0.1", 80) == "EPERM"


_ASK = f"""
import sys
sys.path.insert(0, {str(Path(nameserver.__file__).parent)!r})
import nameserver
def ask(server, name, number=1, until=5):
    end = time.monotonic() + until
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.settimeout(0.2)
        while time.monotonic() < end:
            try:
                one.sendto(nameserver.question(name, number), (server, 53))
                return nameserver.addresses_in(one.recv(4096))
            except OSError:
                continue
    raise TimeoutError(name)
"""


def test_a_connection_goes_on_when_its_name_has_lapsed(host: Host, far: Host, puppets, enforced: None) -> None:
    puppets(far, "any").serve_tcp("10.80.0.1", 80)
    api = puppets(host, "api")
    api.do(_ASK)
    api.do(f"ask('{FAR4}', 'shop.example.org')")
    assert api.hold("long", "10.80.0.1", 80) == "ok"
    lapse(host)
    assert api.tcp("10.80.0.1", 80) == "EPERM"
    assert api.use("long") == "ok"
    host.enforce(policy(*RULES, "api -> resolver 123/udp", externals=NAMED))
    assert api.use("long") == "ok"
    host.enforce(policy(*RULES[:1], externals=NAMED))
    assert api.use("long") != "ok"


def test_a_connection_is_cut_when_its_name_leaves_the_policy(host: Host, far: Host, puppets, enforced: None) -> None:
    puppets(far, "any").serve_tcp("10.80.0.1", 80)
    api = puppets(host, "api")
    api.do(_ASK)
    api.do(f"ask('{FAR4}', 'shop.example.org')")
    assert api.hold("long", "10.80.0.1", 80) == "ok"
    host.enforce(policy(*RULES, externals=NAMED | {"shop": '{fqdn: ["*.many.example.net"]}'}))
    assert api.use("long") != "ok"


@pytest.fixture
def many(far: Host) -> Iterator[str]:
    """A server of names with up to 16 addresses each."""
    address = "10.77.0.3"
    far.ip("addr", "add", f"{address}/24", "dev", "eth0")
    argv = [PYTHON, "-u", nameserver.__file__, address, "53"]
    server = far.start("dns", argv, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert server.stdout.readline()
    yield address
    server.terminate()
    server.wait()
    server.stdout.close()
    far.ip("addr", "del", f"{address}/24", "dev", "eth0")


def test_lookups_are_never_too_late_for_the_connection_that_follows(
    host: Host, far: Host, puppets, resolver: None, many: str
) -> None:
    """10,000 lookups of up to 16 records, each followed by a connection: none refused, none sent twice."""
    host.enforce(policy(*RULES, externals=NAMED | {"resolver": f"{{cidr: [{many}/32]}}"}))
    forget(host)
    puppets(far, "any").do(_DISCARD)
    api = puppets(host, "api")
    api.do(_ASK)
    before = api.do(_RETRANSMITTED)
    api.do(_MANY.replace("LOOKUPS", str(LOOKUPS)))
    assert api.do("failures") == []
    assert api.do("connected") == LOOKUPS
    assert api.do(_RETRANSMITTED) == before


def test_what_was_learned_can_be_seen(host: Host, far: Host, puppets, enforced: None) -> None:
    learned = host.ask("status")["dns"]["learned"]
    puppets(far, "any").serve_tcp("10.80.0.1", 80)
    api = puppets(host, "api")
    api.do(_ASK)
    api.do(f"ask('{FAR4}', 'shop.example.org')")
    (row,) = host.ask("names")["names"]
    assert (row["workload"], row["name"], row["address"]) == ("t/api", "shop.example.org", "10.80.0.1")
    assert 0 < row["left_s"] <= 7
    assert host.ask("status")["dns"]["learned"] == learned + 1
    assert api.tcp("10.80.0.1", 80) == "ok"
    flows = host.bulkhead("flows", "-o", "json", check=False)  # an earlier test has lost events
    assert "t/shop" in flows.stdout


_DISCARD = """
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("0.0.0.0", 80))
listener.listen(4096)
def discard():
    while True:
        listener.accept()[0].close()
threading.Thread(target=discard, daemon=True).start()
"""

_RETRANSMITTED = """[int(line.split()[12]) for line in open('/proc/thread-self/net/snmp') if line.startswith('Tcp: ')
 and line.split()[1].isdigit()][0]"""

_MANY = """
failures, connected = [], 0
for number in range(1, LOOKUPS + 1):
    addresses = ask("10.77.0.3", f"{number}.many.example.net", number & 0xFFFF, until=2)
    address = addresses[number * 7 % len(addresses)]
    with socket.socket() as one:
        one.settimeout(0.9)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        try:
            one.connect((address, 80))
            connected += 1
        except OSError as error:
            failures.append((number, address, str(error)))
"""
