"""Who reaches whom: the model and the kernel draw the same matrix."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bulkhead.abi import Direction, Verdict
from bulkhead.dataplane.compile import compile_commit
from bulkhead.dataplane.inventory import Listed
from bulkhead.dataplane.matrix import matrix
from bulkhead.errors import RefusedError
from bulkhead.identity.selectors import Endpoint
from bulkhead.kernel.judge import Judge, engine_of, kernel_engine
from bulkhead.policy.model import PolicySet
from bulkhead.policy.parse import parse
from bulkhead.policy.source import read_directory
from property import strategies
from property.test_identity_agrees import as_facts

POLICIES = Path(__file__).resolve().parents[2] / "policies"
PORTS = "22/tcp,443,5432,53/udp,icmp/echo,icmp/unreachable,proto/47,proto/132,proto/136"
EXAMPLES = 500 if os.environ.get("HYPOTHESIS_PROFILE") == "deep" else 10


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="HYPOTHESIS_PROFILE" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(strategies.policy_sets(), st.integers(0, 2**32 - 1))
def test_model_and_kernel_draw_the_same_matrix(judge: Judge, drawn: PolicySet, seed: int) -> None:
    policy_set = replace(drawn, rules=tuple(rule for rule in drawn.rules if rule.expires is None))
    compiled = compile_commit(policy_set, None, datetime.now(UTC))
    rng = Random(seed)
    inventory = _inventory(policy_set, rng)
    outside = rng.sample(strategies.boundary_addresses(policy_set), 4)
    addresses = {str(address): address for address in outside}
    engine = engine_of(judge, compiled, inventory, addresses)
    by_kernel = matrix(compiled, inventory, PORTS, addresses, engine)
    assert json.dumps(by_kernel) == json.dumps(matrix(compiled, inventory, PORTS, addresses))


def _inventory(policy_set: PolicySet, rng: Random) -> list[Listed]:
    endpoints = strategies.endpoints_of(policy_set, rng, 5)
    return [
        Listed(f"e{number}", as_facts(rng.choice(strategies.HOSTS), endpoint), tuple(rng.sample(_ADDRESSES, 1)))
        for number, endpoint in enumerate(endpoints)
    ]


_ADDRESSES = strategies.STRAY_ADDRESSES


def test_the_kernel_agrees_about_the_example_repository() -> None:
    compiled = compile_commit(parse(read_directory(POLICIES)), None, datetime.now(UTC))
    inventory = [
        Listed(info.qualified, Endpoint(_host(info.match.host), _cgroup(info.match.unit), (*info.match.exe, None)[0]))
        for info in compiled.workloads
    ]
    addresses = {"outside": strategies.STRAY_ADDRESSES[1]}
    with kernel_engine(compiled, inventory, addresses) as engine:
        by_kernel = matrix(compiled, inventory, PORTS, addresses, engine)
    assert by_kernel == matrix(compiled, inventory, PORTS, addresses)


def _host(patterns: tuple[str, ...]) -> str:
    return (*patterns, "here")[0].replace("*", "1").replace("?", "1")


def _cgroup(units: tuple[str, ...]) -> str:
    return f"/system.slice/{units[0].replace('*', '1')}" if units else "/"


def test_refuse_to_judge_without_root(judge: Judge) -> None:
    os.seteuid(65534)
    try:
        with pytest.raises(RefusedError, match="needs root"):
            Judge().__enter__()
    finally:
        os.seteuid(0)


def test_a_judge_leaves_nothing_behind(judge: Judge) -> None:
    mount, ours = Path("/sys/fs/bpf"), f"bulkhead-judge-{os.getpid()}-*"
    before = set(mount.glob(ours))
    with Judge() as another:
        assert len(set(mount.glob(ours)) - before) == 1
        assert another.ask(1, Direction.EGRESS, 3, 6, 80).verdict is Verdict.NONE
    assert set(mount.glob(ours)) == before
