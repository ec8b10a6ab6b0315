"""The longest prefix of an address names exactly the externals that contain it."""

from __future__ import annotations

import time
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bulkhead.dataplane.addresses import Address, address_classes, prefix_count
from bulkhead.errors import PolicyError
from bulkhead.identity.registry import Members
from bulkhead.policy.model import External, Network
from unit.dataplane.build import external


def answer(prefixes: dict[Network, Members], address: Address) -> Members:
    around = [network for network in prefixes if address in network]
    return prefixes[max(around, key=lambda network: network.prefixlen)] if around else frozenset()


def members(externals: list[External], address: Address) -> Members:
    return frozenset(
        e.qualified
        for e in externals
        if any(address in n for n in e.cidr) and not any(address in n for n in e.excluded)
    )


def small4(draw: tuple[int, int]) -> IPv4Network:
    value, bits = draw
    return IPv4Network((0x0A000000 | value, 24 + bits), strict=False)


def small6(draw: tuple[int, int]) -> IPv6Network:
    value, bits = draw
    return IPv6Network((0xFD00 << 112 | value, 120 + bits), strict=False)


DRAWN = st.tuples(st.integers(0, 255), st.integers(0, 8))
NETWORKS = st.lists(st.one_of(DRAWN.map(small4), DRAWN.map(small6)), max_size=5)
EXTERNALS = st.lists(st.tuples(NETWORKS, NETWORKS), max_size=5).map(
    lambda drawn: [external(f"e{n}", list(map(str, c)), list(map(str, x))) for n, (c, x) in enumerate(drawn)]
)


@settings(max_examples=60, deadline=None)
@given(EXTERNALS)
def test_longest_match_is_direct_membership(externals: list[External]) -> None:
    for version, addresses in (
        (4, [IPv4Address(0x0A000000 + value) for value in range(-1, 257)]),
        (6, [IPv6Address((0xFD00 << 112) + value) for value in range(-1, 257)]),
    ):
        prefixes = address_classes(externals, version).prefixes
        assert all(answer(prefixes, address) == members(externals, address) for address in addresses)
        answers = {answer(prefixes, address) for address in addresses}
        assert set(prefixes.values()) <= answers


def test_except_of_one_external_leaves_the_others() -> None:
    found = address_classes(
        [external("users", ["0.0.0.0/0"], ["10.0.0.0/8"]), external("office", ["10.9.0.0/16"])], 4
    ).prefixes
    assert answer(found, ip_address("192.0.2.1")) == {"shop/users"}
    assert answer(found, ip_address("10.1.0.1")) == frozenset()
    assert answer(found, ip_address("10.9.0.1")) == {"shop/office"}
    assert found[ip_network("10.0.0.0/8")] == frozenset()


def test_prefix_that_changes_nothing_is_left_out() -> None:
    found = address_classes([external("a", ["10.0.0.0/8", "10.1.0.0/16"], ["10.2.0.0/16", "10.2.3.0/24"])], 4)
    assert set(map(str, found.prefixes)) == {"10.0.0.0/8", "10.2.0.0/16"}


def test_prefix_whose_halves_answer_for_it_is_left_out() -> None:
    found = address_classes([external("a", ["10.0.0.0/8"], ["10.0.0.0/9", "10.128.0.0/9"])], 4)
    assert found.prefixes == {}


@pytest.mark.parametrize(
    ("cidr", "excluded", "left"),
    [
        ([], [], True),
        (["0.0.0.0/0"], [], False),
        (["0.0.0.0/1", "128.0.0.0/1"], [], False),
        (["0.0.0.0/1"], [], True),
        (["0.0.0.0/0"], ["10.0.0.0/8"], True),
        (["0.0.0.0/0", "10.0.0.0/8"], ["10.1.0.0/16"], True),
    ],
)
def test_world_is_what_no_external_contains(cidr: list[str], excluded: list[str], left: bool) -> None:
    assert address_classes([external("a", cidr, excluded)], 4).world_left is left


def test_families_do_not_mix() -> None:
    both = [external("a", ["10.0.0.0/8", "fd00::/8"])]
    assert list(address_classes(both, 4).prefixes) == [ip_network("10.0.0.0/8")]
    assert list(address_classes(both, 6).prefixes) == [ip_network("fd00::/8")]
    assert (prefix_count(both, 4), prefix_count(both, 6)) == (1, 1)


def test_externals_that_overlap_beyond_measure_are_refused() -> None:
    overlapping = [external(f"e{n}", [f"10.{n}.0.0/16", "10.0.0.0/8"]) for n in range(100)]
    with pytest.raises(PolicyError, match="overlap more than the 50 times"):
        address_classes(overlapping, 4, 50)


def test_ten_thousand_prefixes_take_half_a_second_at_most() -> None:
    flat = [external(f"e{n}", [f"10.{n}.{m}.0/24" for m in range(50)]) for n in range(100)]
    nested = external("deep", [f"11.0.0.0/{8 + n % 24}" for n in range(24)])
    wide = external("wide", ["0.0.0.0/0"], [f"10.{n}.{m}.0/25" for n in range(100) for m in range(50)])
    began = time.process_time()
    found = address_classes([*flat, nested, wide], 4)
    assert time.process_time() - began < 0.5
    assert len(found.prefixes) > 10_000
