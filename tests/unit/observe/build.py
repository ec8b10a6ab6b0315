"""A small commit, its tables in both forms, and events as the kernel would write them."""

from __future__ import annotations

from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

from bulkhead.abi import Direction, DropReason, Verdict, VerdictEvent
from bulkhead.dataplane.bundle import pack, read
from bulkhead.dataplane.compile import Compiled, compile_commit
from bulkhead.observe.flows import Context, FlowLog, FlowRecord, Process, Sighting
from bulkhead.observe.names import GenerationNamer
from bulkhead.observe.tables import Tables, tables_of
from bulkhead.policy.parse import parse
from bulkhead.policy.source import SourceFile, Sources

COMMIT = "3f2c1ab" + "0" * 33
NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
T = NOW.timestamp()
OFFSET = T - 1000

REPOSITORY = b"""
apiVersion: bulkhead/v1alpha1
kind: Repository
trustDomain: example.org
hosts: {mode: enforce, lifeline: [{from: admins, to: "host:22"}]}
"""
SHOP = b"""
apiVersion: bulkhead/v1alpha1
kind: Policy
metadata: {name: shop}
workloads:
  web:    {match: {unit: nginx.service}, labels: {tier: web}, mode: enforce}
  api:    {match: {unit: api.service}, labels: {tier: app}, mode: enforce}
  db:     {match: {unit: db.service}, labels: {tier: data}, mode: enforce}
  batch:  {match: {unit: batch.service}, labels: {tier: app}}
  remote: {match: {host: "other-*", unit: far.service}, mode: enforce}
externals:
  users:  {cidr: [0.0.0.0/0, "::/0"], except: [10.0.0.0/8]}
  admins: {cidr: [10.9.0.0/24, 192.0.2.0/24]}
allow:
  - {name: users-web, from: users, to: web, ports: [443]}
  - {name: web-api, from: web, to: api, ports: [8443]}
  - {name: api-db, from: {tier: app}, to: db, ports: [5432]}
  - {name: ping, from: host, to: [web, api], ports: [icmp/echo]}
  - {name: far, from: web, to: remote, ports: [53/udp]}
exceptions:
  - {name: debug, from: admins, to: db, ports: [5432], expires: 2026-07-02T00:00:00Z, owner: dba, ticket: OPS-1}
  - {name: gone, from: web, to: db, ports: [9999], expires: 2026-06-01T00:00:00Z, owner: dba, ticket: OPS-2}
"""


def compiled(host: str | None = "web-1") -> Compiled:
    files = (SourceFile("bulkhead.yaml", "1" * 40, REPOSITORY), SourceFile("shop.yaml", "2" * 40, SHOP))
    return compile_commit(parse(Sources(COMMIT, files)), host, NOW)


def both_forms(host: str | None = "web-1") -> list[Tables]:
    """The tables as values, and as a bundle."""
    found = compiled(host)
    return [tables_of(found), tables_of(read(pack(found)))]


def identity(name: str) -> int:
    return next(w.identity for w in compiled().workloads if w.qualified == f"shop/{name}")


def namer() -> GenerationNamer:
    made = GenerationNamer()
    made.add(7, tables_of(compiled()))
    return made


def mapped(address: str) -> tuple[int, ...]:
    found = ip_address(address)
    return tuple(found.packed if found.version == 6 else bytes(10) + b"\xff\xff" + found.packed)


def event(**changed: Any) -> bytes:
    """web -> db:5432 refused at web; addresses as text."""
    values: dict[str, Any] = {
        "time_ns": 900 * 10**9,
        "cgroup_id": 11,
        "exe_inode": 12,
        "exe_device": 13,
        "local_identity": identity("web"),
        "remote_identity": identity("db"),
        "generation": 7,
        "tgid": 8123,
        "uid": 33,
        "source": "10.0.0.1",
        "destination": "10.0.0.2",
        "source_port": 40000,
        "destination_port": 5432,
        "direction": Direction.EGRESS,
        "protocol": 6,
        "verdict": Verdict.DENY,
        "reason": DropReason.POLICY,
        "comm": b"nginx",
    } | changed
    values["source"], values["destination"] = mapped(values["source"]), mapped(values["destination"])
    return bytes(VerdictEvent(**values))


def nginx(_: Sighting) -> Process:
    return Process("/usr/sbin/nginx", "nginx.service", "/system.slice/nginx.service")


def context() -> Context:
    return Context(namer(), nginx, OFFSET)


def record(**changed: Any) -> FlowRecord:
    """The record of one such event."""
    log = FlowLog()
    log.record(event(**changed), context())
    (found,) = log.records()
    return found
