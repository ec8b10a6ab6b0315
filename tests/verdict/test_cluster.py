"""A cluster through the real programs: the kernel draws the matrix that the model draws."""

from __future__ import annotations

import os
from dataclasses import replace

from hypothesis import HealthCheck, given, settings

from bulkhead.dataplane.cluster import resolve_cluster
from bulkhead.dataplane.cluster_matrix import cluster_matrix, tables
from bulkhead.dataplane.matrix import parse_ports
from bulkhead.kernel.judge import Judge, engine_of
from property.clusters import NOW, PORTS, Case, cases

EXAMPLES = 500 if os.environ.get("HYPOTHESIS_PROFILE") == "deep" else 15


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="HYPOTHESIS_PROFILE" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(cases())
def test_model_and_kernel_draw_the_same_matrix_of_a_cluster(judge: Judge, case: Case) -> None:
    policy_set = case.policy_set
    # The kernel has a clock of its own.
    lasting = tuple(rule for rule in policy_set.rules if rule.expires is None)
    resolved = resolve_cluster(replace(policy_set, rules=lasting), case.cluster, NOW)
    ports = parse_ports(PORTS)
    compiled, listed = tables(resolved, ports)
    engine = engine_of(judge, compiled, listed, case.addresses)
    by_kernel = [*cluster_matrix(resolved, ports, case.addresses, (compiled, engine)).rows]
    assert by_kernel == [*cluster_matrix(resolved, ports, case.addresses).rows]
