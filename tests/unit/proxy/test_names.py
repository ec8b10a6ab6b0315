"""SPIFFE IDs, ports and addresses as Envoy is told them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulkhead.proxy.names import authority_pattern, id_pattern, own_id, port_pattern
from bulkhead.proxy.node import ProxyNode

NODE = ProxyNode("one", "example.org", ("10.0.0.1",), Path("/run/bulkhead"))
ports = st.integers(1, 65535)


@given(st.lists(st.tuples(ports, ports).map(sorted), min_size=1, max_size=3), st.integers(0, 99999))
def test_a_port_pattern_matches_the_ports_of_its_intervals_and_no_other_text(
    intervals: list[tuple[int, int]], number: int
) -> None:
    pattern = re.compile(port_pattern(intervals))
    edges = (edge + by for first, last in intervals for edge in (first, last) for by in (-1, 0, 1))
    for one in (number, *edges):
        inside = any(first <= one <= last for first, last in intervals)
        assert (pattern.fullmatch(str(one)) is not None) == inside
        assert pattern.fullmatch(f"0{one}") is None


def test_every_port_is_a_short_pattern() -> None:
    assert len(port_pattern([(1, 65535)])) < 150


@pytest.mark.parametrize(
    ("authority", "matches"),
    [
        ("10.0.0.1:80", True),
        ("[fd00::1]:80", True),
        ("fd00::1:80", False),
        ("10.0.0.1", False),
        ("10a0b0c1:80", False),
        ("10.0.0.1:8", False),
        ("10.0.0.1:80,10.0.0.2:80", False),
    ],
)
def test_an_authority_is_one_address_and_one_port(authority: str, matches: bool) -> None:
    pattern = authority_pattern(("10.0.0.1", "fd00::1"), ((80, 90),))
    assert (re.fullmatch(pattern, authority) is not None) == matches


def test_an_own_workload_is_of_the_own_host() -> None:
    assert own_id("spiffe://example.org/host/{host}/unit/x", NODE) == "spiffe://example.org/host/one/unit/x"
    assert own_id("/shop/api", NODE) == "spiffe://example.org/shop/api"


def test_a_name_without_a_host_is_compared_as_it_is() -> None:
    assert id_pattern("spiffe://example.org/shop/api", NODE) == {"exact": "spiffe://example.org/shop/api"}


@pytest.mark.parametrize(
    ("name", "matches"),
    [
        ("spiffe://example.org/host/two/web", True),
        ("spiffe://example.org/host//web", False),
        ("spiffe://example.org/host/two/x/web", False),
        ("spiffe://example.org/host/a,spiffe:", False),
        ("spiffe://example.org/host/two/web,spiffe://example.org/host/two/web", False),
        ("spiffe://exampleXorg/host/two/web", False),
        ("x-spiffe://example.org/host/two/web", False),
    ],
)
def test_a_name_with_a_host_matches_on_every_host_and_is_one_name(name: str, matches: bool) -> None:
    pattern = id_pattern("spiffe://example.org/host/{host}/web", NODE)["safe_regex"]["regex"]
    assert (re.fullmatch(pattern, name) is not None) == matches
