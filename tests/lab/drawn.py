"""Policies drawn at random, as text, with tests and invariants that may or may not hold."""

from __future__ import annotations

from random import Random

HEAD = """\
apiVersion: bulkhead/v1alpha1
kind: Policy
metadata: {name: drawn}
workloads:
  web: {match: {unit: "nginx*.service", host: "web-*"}, labels: {tier: front}}
  api: {match: {cgroup: /api, exe: /usr/bin/api}, labels: {tier: back}}
  job: {match: {unit: job.service, user: "1000"}, labels: {tier: back}}
externals:
  office: {cidr: [198.51.100.0/24], except: [198.51.100.128/25]}
  users: {cidr: [0.0.0.0/0, "2001:db8::/32"], except: [10.0.0.0/8]}
"""
_INSIDE = ("web", "api", "job", "any", "host", "{tier: back}", "[web, host]")
_OUTSIDE = ("office", "users", "world", "[office, users]")
_PORTS = ('"1-65535"', "443", '"440-450"', '"445-1029/udp"', "icmp", "icmp/echo", "proto/47", "any", '"1024-4000"')
_TARGETS = ("443", "440-450", "1025/udp", "icmp/echo", "proto/47", "any", "1-5000", "any/udp")


def drawn_policy(random: Random) -> str:
    """A policy of some rules, an exception, invariants and tests."""
    rules = [f"  - {{name: r{number}, {_ends(random)}, ports: [{_ports(random)}]}}" for number in range(6)]
    late = "expires: 2199-01-01T00:00:00Z, owner: a, ticket: b"
    exception = f"  - {{name: late, {_ends(random)}, ports: [{_ports(random)}], {late}}}"
    nevers = [f"  - {{name: n{number}, {_ends(random)}{_maybe_ports(random)}, why: drawn}}" for number in range(3)]
    tests = [f"  - {_test(random)}" for _ in range(6)]
    sections = ("allow:", *rules, "exceptions:", exception, "never:", *nevers, "tests:", *tests)
    return HEAD + "\n".join(sections) + "\n"


def _ends(random: Random) -> str:
    outward = random.random()
    source = random.choice(_OUTSIDE if outward < 0.2 else _INSIDE)
    destination = random.choice(_OUTSIDE if outward > 0.8 else _INSIDE)
    return f"from: {source}, to: {destination}"


def _ports(random: Random) -> str:
    return ", ".join(random.sample(_PORTS, random.randint(1, 2)))


def _maybe_ports(random: Random) -> str:
    return f", ports: [{_ports(random)}]" if random.random() < 0.7 else ""


def _test(random: Random) -> str:
    verb = random.choice(("accept", "deny"))
    outward = random.random()
    source = random.choice(_OUTSIDE[:3] if outward < 0.2 else _INSIDE)
    destination = random.choice(_OUTSIDE[:3] if outward > 0.8 else ("web", "api", "job", "any", "host"))
    return f'{{from: {source}, {verb}: ["{destination}:{random.choice(_TARGETS)}"]}}'
