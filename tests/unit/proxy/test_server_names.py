"""Which workload's chain a tunnel meets."""

from __future__ import annotations

import pytest

from bulkhead.dataplane.mesh import Call, Mesh
from bulkhead.proxy.inbound import server_names

CALLER, A, B, C = 1000, 1, 2, 3
ALL_PORTS = ((1, 65535),)


@pytest.mark.parametrize(
    ("calls", "listeners", "wanted"),
    [
        pytest.param({A: ALL_PORTS}, {}, {"*": A}, id="the-only-workload-takes-every-name-and-none"),
        pytest.param({}, {80: A}, {}, id="nobody-is-called"),
        pytest.param({A: ((80, 81),), B: ((90, 90),)}, {}, {80: A, 81: A, 90: B}, id="a-port-of-one-workload-is-its"),
        pytest.param({A: ((80, 80),), B: ((80, 80),)}, {}, {}, id="of-two-and-nobody-listens-it-is-nobody-s"),
        pytest.param({A: ((80, 80),), B: ((80, 80),)}, {80: B}, {80: B}, id="of-two-it-is-who-listens"),
        pytest.param({A: ((80, 80),), B: ((80, 80),)}, {80: C}, {}, id="who-listens-must-be-called"),
        pytest.param({A: ALL_PORTS, B: ((80, 80),)}, {}, {80: B, "*": A}, id="a-wide-one-takes-what-is-left"),
        pytest.param({A: ALL_PORTS, B: ((80, 80),)}, {80: B, 9000: A}, {80: B, 9000: A, "*": A}, id="wide-and-narrow"),
        pytest.param({A: ALL_PORTS, B: ALL_PORTS}, {80: B, 81: A, 82: C}, {80: B, 81: A}, id="two-wide-ones"),
    ],
)
def test_a_name_is_the_workload_s_that_is_meant(
    calls: dict[int, tuple[tuple[int, int], ...]], listeners: dict[int, int], wanted: dict[int | str, int]
) -> None:
    mesh = Mesh(calls=tuple(Call(destination, CALLER, ports) for destination, ports in calls.items()))
    several = len(calls) > 1
    named = {f"{port}.hbone.bulkhead" if several else str(port): identity for port, identity in wanted.items()}
    assert server_names(mesh, listeners) == named
