"""Two hosts whose workloads speak mutual TLS through the proxies of their nodes, and others in plaintext."""

from __future__ import annotations

import http.client
import json
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import web
from hosts import Host, Pair, enforced_pair, wait_until
from traffic import Place

from bulkhead import config
from bulkhead.control import client
from lab import nodes

TUNNELLED, JUDGED, PLAIN = 7220, 7221, 7222
"""Ports of the server: by mutual TLS, by mutual TLS and request by request, and in plaintext because a rule says so."""
ALLOWED, WITHDRAWN = "/v1/*", "/v2/*"
"""What may be asked for on `JUDGED`: what is measured, or something else."""
IDENTITIES = 500
FIRST_RING_PORT = 10_000
_RULES = 1000
_TRUST_DOMAIN = "bench.example"
_POLICY = f"""\
apiVersion: bulkhead/v1alpha1
kind: Policy
metadata: {{name: mesh}}
allow:
  - {{name: tunnelled, from: bench/client, to: bench/server, ports: [{TUNNELLED}], mtls: required}}
  - name: judged
    from: bench/client
    to: bench/server
    ports: [{JUDGED}]
    mtls: required
    l7: {{http: [{{methods: [GET], path: "%s"}}]}}
  - {{name: plain, from: bench/client, to: bench/server, ports: [{PLAIN}], mtls: "off"}}
"""
_RING = """\
apiVersion: bulkhead/v1alpha1
kind: Policy
metadata: {name: ring}
"""
_ADMIN_S = 60.0
"""An Envoy that is given hundreds of SVIDs answers nobody meanwhile."""


@contextmanager
def meshed_pair(directory: Path, subnet: int) -> Iterator[Pair]:
    """A pair of hosts whose proxies serve what policy asks of them. Leaves nothing behind."""
    directory.chmod(0o711)  # as /run is: what is below says itself who may
    with enforced_pair(directory, subnet, _RULES, _equip) as pair, ExitStack() as stack:
        for host in pair:
            stack.enter_context(_proxy(host))
        allow(pair, ALLOWED)
        follow(pair)
        yield pair


def _equip(pair: Pair) -> None:
    """A key and an authority for each node, and a record."""
    records = ""
    for host in pair:
        with host.namespace.entered():  # the proxy listens on both loopback addresses
            Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6").write_text("0")
        key, authority = nodes.key_file(host.directory), nodes.authority_file(host.directory, host.name, _TRUST_DOMAIN)
        host.configure(key.settings | authority.settings)
        records += nodes.record(host.name, host.address, key=key.public, ca=f"[{authority.text}]")
    (pair.repository.path / "nodes.yaml").write_text(records)
    pair.repository.commit()


@contextmanager
def _proxy(host: Host) -> Iterator[None]:
    """What keeps the host's Envoy running, as its unit would; Envoy ends with it."""
    group = config.load(host.settings).proxy_directory(host.cgroup)
    group.mkdir(parents=True, exist_ok=True)
    command = (sys.executable, "-m", "bulkhead.cli.main", "proxy", "--config", str(host.settings))
    try:
        with web.running(Place(host.namespace, group), host.directory / "proxy.log", *command):
            yield
    finally:
        wait_until(lambda: "populated 0" in (group / "cgroup.events").read_text())


def allow(pair: Pair, path: str) -> None:
    """Have the work tree allow what is measured, and requests for that path alone."""
    (pair.repository.path / "mesh.yaml").write_text(_POLICY % path)


def add_ring(pair: Pair) -> None:
    """Have the work tree name 500 workloads on each host, every one of which may call the next on a port of its own."""
    lines = [
        "workloads:",
        *(f"  w{at}: {{match: {{cgroup: /{ring_group(at)}}}}}" for at in range(IDENTITIES)),
        "allow:",
    ]
    for at in range(IDENTITIES):
        ends = f"from: w{at}, to: w{(at + 1) % IDENTITIES}"
        lines.append(f"  - {{name: r{at}, {ends}, ports: [{FIRST_RING_PORT + at}], mtls: required}}")
    (pair.repository.path / "ring.yaml").write_text(_RING + "\n".join(lines) + "\n")


def ring_group(at: int) -> str:
    """The control group of one of them."""
    return f"ring/{at}"


def follow(pair: Pair) -> None:
    """Commit the work tree, and wait until both agents enforce it and both proxies serve it."""
    pair.follow(pair.repository.prepare())
    proxies_serve(pair)


def proxies_serve(pair: Pair) -> None:
    """Wait until both proxies serve what is in force."""
    for host in pair:
        wait_until(lambda host=host: _is_served(host))


def _is_served(host: Host) -> bool:
    said = status(host)["mesh"]
    return said["wanted"] and said["proxy"]["pid"] is not None and said["problem"] is None


def status(host: Host) -> dict[str, Any]:
    """What the agent says of itself."""
    return dict(client.call(host.directory / "run" / "control.sock", "status"))


def proxy_pid(host: Host) -> int:
    """The host's Envoy."""
    return int(status(host)["mesh"]["proxy"]["pid"])


def serial_numbers(host: Host) -> dict[str, set[str]]:
    """Of the certificates that the host's Envoy has of its own workloads, by SPIFFE ID."""
    found: dict[str, set[str]] = {}
    for one in json.loads(_asked(host, "/certs"))["certificates"]:
        for certificate in one["cert_chain"]:
            for name in certificate["subject_alt_names"]:
                found.setdefault(name["uri"], set()).add(certificate["serial_number"])
    return found


def conversations_taken(host: Host) -> int:
    """How many the host's Envoy has accepted, by lanes and by tunnels."""
    counters = json.loads(_asked(host, "/stats?format=json&filter=%5Elistener.*downstream_cx_total%24"))["stats"]
    return sum(one["value"] for one in counters if "value" in one)


def _asked(host: Host, path: str) -> bytes:
    """Of Envoy's administration."""
    with socket.socket(socket.AF_UNIX) as connected:
        connected.settimeout(_ADMIN_S)
        connected.connect(str(host.directory / "run" / "proxy" / "own" / "admin.sock"))
        connection = http.client.HTTPConnection("localhost")
        connection.sock = connected
        connection.request("GET", path)
        return connection.getresponse().read()
