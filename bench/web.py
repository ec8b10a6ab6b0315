"""A web server, Envoys that only carry bytes, and on which processors whatever runs may run."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from hosts import DEVICES, quiet_wires, wait_until
from traffic import Place

from bulkhead.config import Settings
from bulkhead.proxy.running import find_envoy

_SERVER_PORT, _FAR_PORT, _NEAR_PORT = 7230, 7231, 7232
_LISTEN = "0A"
"""The state in /proc/net/tcp."""
_JOIN = 'test -z "$0" || echo $$ > "$0"; exec "$@"'
_NGINX = """\
daemon off;
user root;
worker_processes 1;
pid %(directory)s/pid;
error_log %(directory)s/error.log;
events { worker_connections 4096; }
http {
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
    client_body_temp_path %(directory)s/body;
    proxy_temp_path %(directory)s/proxy;
    fastcgi_temp_path %(directory)s/fastcgi;
    uwsgi_temp_path %(directory)s/uwsgi;
    scgi_temp_path %(directory)s/scgi;
    server { %(listen)s location / { return 200 "one item\\n"; } }
}
"""


@dataclass(frozen=True, slots=True)
class Relayed:
    """A web server behind two plain Envoys, on two hosts of which Bulkhead knows nothing."""

    client: Place
    address: str
    """Where the client finds the nearer Envoy."""
    port: int


def said(place: Place, *command: str) -> list[str]:
    """The lines that a program says, from its start to its end. Raises CalledProcessError when it fails."""
    with place.namespace.entered():
        argv = _joining(place, command)
        return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout.split()


def _joining(place: Place, command: Sequence[str]) -> tuple[str, ...]:
    procs = str(place.cgroup / "cgroup.procs") if place.cgroup else ""
    return ("/bin/sh", "-c", _JOIN, procs, *command)


@contextmanager
def running(place: Place, log: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program, from its first instruction on where it belongs; told to end when the block is left."""
    with place.namespace.entered(), log.open("ab") as output:
        process = subprocess.Popen(_joining(place, command), stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


@contextmanager
def web_server(place: Place, directory: Path, address: str, ports: Sequence[int]) -> Iterator[list[int]]:
    """nginx with one worker, which answers everything with one line; its processes."""
    directory.mkdir()
    listen = " ".join(f"listen {address}:{port};" for port in ports)
    (directory / "nginx.conf").write_text(_NGINX % {"directory": directory, "listen": listen})
    command = ("nginx", "-e", str(directory / "error.log"), "-p", str(directory), "-c", str(directory / "nginx.conf"))
    with running(place, directory / "error.log", *command) as master:
        children = Path(f"/proc/{master.pid}/task/{master.pid}/children")
        wait_until(lambda: bool(children.read_text()) and all(_listens(place, port) for port in ports))
        yield [master.pid, *map(int, children.read_text().split())]


@contextmanager
def relayed(directory: Path, subnet: int) -> Iterator[Relayed]:
    """A client, an Envoy beside it, another one beside the server, and the server."""
    directory.mkdir()
    with quiet_wires(subnet, DEVICES[:1]) as (wire,), ExitStack() as stack:
        near, far, there = Place(wire.left, None), Place(wire.right, None), wire.right_address4
        stack.enter_context(web_server(far, directory / "nginx", there, [_SERVER_PORT]))
        stack.enter_context(_envoy(far, directory / "far.json", (there, _FAR_PORT), (there, _SERVER_PORT)))
        stack.enter_context(_envoy(near, directory / "near.json", ("127.0.0.1", _NEAR_PORT), (there, _FAR_PORT)))
        yield Relayed(near, "127.0.0.1", _NEAR_PORT)


@contextmanager
def _envoy(place: Place, configuration: Path, at: tuple[str, int], to: tuple[str, int]) -> Iterator[None]:
    """The binary that the agent would start, with as many threads."""
    binary = find_envoy(Settings())
    if binary is None:
        raise RuntimeError("there is no Envoy")
    configuration.write_text(json.dumps(_relay(at, to)))
    threads = max(1, (os.cpu_count() or 1) // 2)
    options = ("--concurrency", str(threads), "--log-level", "error", "--disable-hot-restart")
    with running(place, configuration.with_suffix(".log"), str(binary), "-c", str(configuration), *options):
        wait_until(lambda: _listens(place, at[1]))
        yield


def _relay(at: tuple[str, int], to: tuple[str, int]) -> dict[str, object]:
    """Bytes from one address to another."""
    proxy = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "relay",
        "cluster": "there",
    }
    filters = [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": _address(to)}}]}]
    cluster = {
        "name": "there",
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": "there", "endpoints": endpoints},
    }
    listener = {"name": "here", "address": _address(at), "filter_chains": [{"filters": filters}]}
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _address(end: tuple[str, int]) -> dict[str, object]:
    return {"socket_address": {"address": end[0], "port_value": end[1]}}


def _listens(place: Place, port: int) -> bool:
    """Whether somebody listens on that TCP port, asked of the kernel and not by calling."""
    with place.namespace.entered():
        lines = Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]
    return any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == _LISTEN for line in lines)


@contextmanager
def pinned(processes: Iterable[int], cpu: int) -> Iterator[None]:
    """Every thread of these processes runs on one CPU until the block is left; then on any that it ran on before."""
    before: dict[int, set[int]] = {}
    try:
        for process in processes:
            for task in Path(f"/proc/{process}/task").iterdir():
                before[int(task.name)] = os.sched_getaffinity(int(task.name))
                os.sched_setaffinity(int(task.name), {cpu})
        yield
    finally:
        for task, cpus in before.items():
            os.sched_setaffinity(task, cpus)
