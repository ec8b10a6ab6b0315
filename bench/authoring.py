"""What an author waits for: lint, test and compile, a plan, and the matrix of a cluster."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from figures import Figure, at_most, context, median
from repository import Repository

from bulkhead.cli.main import run

_ROUNDS = 3
_RULES_PER_POLICY = 100
_WORKLOADS_PER_POLICY = 20
_PODS = 200
_PORTS = 20
_CLUSTER_POLICIES = 100
_MARKS = {1_000: 1.0, 10_000: 8.0}
_PLAN_RULES = 10_000
_PLAN_LIMIT_S = 10.0
_MATRIX_LIMIT_S = 5.0


def measure() -> list[Figure]:
    """All figures of this part. Needs no root and no agent."""
    with tempfile.TemporaryDirectory(prefix="bulkhead-bench-authoring-") as name:
        directory = Path(name)
        figures = [figure for rules, limit in _MARKS.items() for figure in _checks(directory, rules, limit)]
        return [*figures, _plan(directory), _matrix(directory)]


def _checks(directory: Path, rules: int, limit_s: float) -> list[Figure]:
    place = directory / f"estate-{rules}"
    write_estate(place, rules)
    commands = (["lint", str(place)], ["test", str(place)])
    inside = median([sum(_inside(command) for command in commands) for _ in range(_ROUNDS)])
    outside = median([sum(_outside(command) for command in commands) for _ in range(_ROUNDS)])
    what = f"lint, test and compile of {rules:,} rules"
    method = f"bulkhead lint, then bulkhead test (which compile both), median of {_ROUNDS}"
    return [
        at_most(what, inside, "s", limit_s, f"{method}; from reading files to the verdict, interpreter running"),
        context(f"{what}, from the shell", outside, "s", f"{method}; with the start of two processes"),
    ]


def _plan(directory: Path) -> Figure:
    repository = Repository(directory / "plan", ("192.0.2.1/32",), ("192.0.2.2/32",))
    repository.create(_PLAN_RULES)
    repository.write(_PLAN_RULES, withdraw=True, odd_port=7199, first_port=20000)
    repository.commit()
    command = ["plan", "HEAD~1..HEAD", "--repository", str(repository.path)]
    found = median([_outside(command) for _ in range(_ROUNDS)])
    method = f"bulkhead plan from the shell, every rule but two another one, median of {_ROUNDS}"
    return at_most(f"plan of two {_PLAN_RULES:,}-rule commits", found, "s", _PLAN_LIMIT_S, method)


def _matrix(directory: Path) -> Figure:
    place = directory / "cluster"
    write_cluster(place)
    ports = ",".join(f"{8000 + number}/tcp" for number in range(_PORTS))
    command = ["matrix", "--policy", str(place / "policy"), "--inventory", str(place / "inventory.yaml")]
    found = median([_outside([*command, "--ports", ports, "-o", "json"]) for _ in range(_ROUNDS)])
    name = f"matrix of {_PODS} pods, {_PORTS} ports, {_CLUSTER_POLICIES} policies"
    method = f"bulkhead matrix -o json from the shell, Kubernetes objects, median of {_ROUNDS}"
    return at_most(name, found, "s", _MATRIX_LIMIT_S, method)


def _inside(command: list[str]) -> float:
    return _timed(lambda: run(command))


def _outside(command: list[str]) -> float:
    whole = [sys.executable, "-m", "bulkhead.cli.main", *command]
    return _timed(lambda: subprocess.run(whole, capture_output=True, check=False, env=os.environ).returncode)


def _timed(call: Callable[[], int]) -> float:
    """Seconds of a command that must succeed."""
    silence = io.StringIO()
    with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        started = time.monotonic()
        code = call()
        took = time.monotonic() - started
    if code != 0:
        raise RuntimeError(f"the command that is measured ended with {code}: {silence.getvalue()[:500]}")
    return took


# What is judged


def write_estate(place: Path, rules: int) -> None:
    """Policies of a hundred rules each, with workloads, externals, tests and invariants of their own."""
    place.mkdir()
    head = "apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: bench.example\n"
    (place / "bulkhead.yaml").write_text(head)
    for number in range(rules // _RULES_PER_POLICY):
        (place / f"team-{number:03}.yaml").write_text(_estate_policy(number))


def _estate_policy(number: int) -> str:
    names = [f"w{index}" for index in range(_WORKLOADS_PER_POLICY)]
    lines = [f"apiVersion: bulkhead/v1alpha1\nkind: Policy\nmetadata: {{name: team-{number}}}\nworkloads:"]
    lines += [f"  {name}: {{match: {{unit: {name}-{number}.service}}, mode: enforce}}" for name in names]
    lines.append("externals:")
    lines += [f"  partner-{index}: {{cidr: [198.18.{number % 256}.{index * 8}/29]}}" for index in range(5)]
    lines.append("allow:")
    for index in range(_RULES_PER_POLICY):
        source = f"partner-{index % 5}" if index % 10 == 0 else names[index % len(names)]
        target = names[(index * 7 + 3) % len(names)]
        lines.append(f"  - {{name: r{index}, from: {source}, to: {target}, ports: [{8000 + index}]}}")
    lines.append("never:")
    lines.append("  - {name: no-leak, from: w1, to: partner-0, why: it holds customer data}")
    if number % 10 == 0:
        lines.append("  - {name: no-telnet, from: any, to: any, ports: [23], why: passwords in the clear}")
    lines.append("tests:")
    for index in range(1, 6):
        target = names[(index * 7 + 3) % len(names)]
        others = ", ".join(f'"{name}:22"' for name in names)
        lines.append(f'  - {{from: {names[index]}, accept: ["{target}:{8000 + index}"], deny: [{others}]}}')
    return "\n".join(lines) + "\n"


def write_cluster(place: Path) -> None:
    """A cluster of Kubernetes objects, and NetworkPolicies for it."""
    policy = place / "policy"
    policy.mkdir(parents=True)
    head = "apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: bench.example\n"
    (policy / "bulkhead.yaml").write_text(head)
    texts = [_network_policy(number) for number in range(_CLUSTER_POLICIES)]
    (policy / "policies.yaml").write_text("---\n".join(texts))
    spaces = [
        f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: ns{n}, labels: {{team: t{n}}}}}\n" for n in range(10)
    ]
    (place / "inventory.yaml").write_text("---\n".join([*spaces, *(_pod(number) for number in range(_PODS))]))


def _pod(number: int) -> str:
    labels = f"{{app: a{number // 10 % 10}, tier: t{number % 4}}}"
    metadata = f"{{name: pod-{number}, namespace: ns{number % 10}, labels: {labels}}}"
    address = f"10.244.{number // 200}.{number % 200 + 1}"
    status = f"{{phase: Running, podIP: {address}, podIPs: [{{ip: {address}}}]}}"
    spec = f"{{nodeName: node-{number % 5}, containers: [{{name: c, image: i}}]}}"
    return f"apiVersion: v1\nkind: Pod\nmetadata: {metadata}\nspec: {spec}\nstatus: {status}\n"


def _network_policy(number: int) -> str:
    peer = f"{{namespaceSelector: {{matchLabels: {{team: t{(number + 3) % 10}}}}}, podSelector: {{}}}}"
    ports = f"[{{port: {8000 + number % _PORTS}}}, {{port: {8000 + (number + 7) % _PORTS}}}]"
    return (
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n"
        f"metadata: {{name: np-{number}, namespace: ns{number % 10}}}\n"
        f"spec: {{podSelector: {{matchLabels: {{app: a{number // 10}}}}}, policyTypes: [Ingress], "
        f"ingress: [{{from: [{peer}], ports: {ports}}}]}}\n"
    )
