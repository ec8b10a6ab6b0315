"""Policy repositories for lab hosts, written as briefly as a test reads best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

WORKLOADS = {name: f"{{match: {{cgroup: /{name}}}, mode: enforce}}" for name in ("web", "api", "db")}
"""Three workloads by control group, enforced."""


def repository(hosts: str = "observe", default: str = "enforce", mtls: str = "off") -> str:
    """`bulkhead.yaml`. Most lab hosts have no proxy, so that mutual TLS is off unless a test is about it."""
    return (
        "apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: example.org\n"
        f'defaults: {{mode: {default}, mtls: "{mtls}"}}\n'
        f"hosts: {{mode: {hosts}}}\n"
    )


def policy(
    *rules: str,
    workloads: Mapping[str, str] | None = None,
    externals: Mapping[str, str] | None = None,
    more: str = "",
    name: str = "t",
) -> str:
    """A policy. Rules are `FROM -> TO PORTS`, as in `api -> db 5432, 53/udp`; they are called r1, r2, …"""
    lines = ["apiVersion: bulkhead/v1alpha1", "kind: Policy", f"metadata: {{name: {name}}}"]
    lines += _section("workloads", (WORKLOADS if workloads is None else workloads).items())
    lines += _section("externals", (externals or {}).items())
    if rules:
        lines += ["allow:", *(f"  - {_rule(number, rule)}" for number, rule in enumerate(rules, start=1))]
    return "\n".join(lines) + "\n" + more


def _section(name: str, entries: Iterable[tuple[str, str]]) -> list[str]:
    found = [f"  {key}: {value}" for key, value in entries]
    return [f"{name}:", *found] if found else []


def _rule(number: int, text: str) -> str:
    ends, _, ports = text.partition(" -> ")[2].partition(" ")
    source = text.partition(" -> ")[0]
    listed = ", ".join(port if port.strip().isdigit() else f'"{port.strip()}"' for port in ports.split(","))
    return f"{{name: r{number}, from: {source}, to: {ends}, ports: [{listed}]}}"
