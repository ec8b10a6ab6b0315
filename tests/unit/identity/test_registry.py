"""Identity numbers: fixed by name, and refused when they collide."""

from __future__ import annotations

import hashlib

import pytest

from bulkhead.errors import Loc, PolicyError
from bulkhead.identity.registry import (
    assign_classes,
    assign_workloads,
    class_identity,
    spiffe_id,
    workload_identity,
)
from bulkhead.policy.model import Match, Mode, QualifiedName, Workload

WEB = QualifiedName("shop/web")
API = QualifiedName("shop/api")


def workload(name: str, line: int) -> Workload:
    return Workload("shop", name, Match(everything=True), Mode.OBSERVE, Loc("a.yaml", line))


def test_identity_is_the_hash_of_the_spiffe_id_without_its_first_bit() -> None:
    digest = hashlib.sha256(b"spiffe://example.org/shop/web").digest()
    assert spiffe_id("example.org", WEB) == "spiffe://example.org/shop/web"
    assert workload_identity("example.org", WEB) == int.from_bytes(digest[:4], "big") & 0x7FFFFFFF


def test_class_is_the_hash_of_its_sorted_externals_with_the_first_bit_set() -> None:
    digest = hashlib.sha256(b"shop/api\nshop/web").digest()
    assert class_identity(frozenset({WEB, API})) == int.from_bytes(digest[:4], "big") | 1 << 31


def test_class_without_externals_is_the_world() -> None:
    assert class_identity(frozenset()) == 3


# Found by trying names until hashes met.
TWINS = ("w53929", "w62364")
RESERVED = "w2109871"
CLASS_TWINS = (QualifiedName("shop/e11966"), QualifiedName("shop/e25329"))


def test_colliding_workloads_are_refused_by_both_names() -> None:
    first, second = TWINS
    with pytest.raises(PolicyError, match=f"`shop/{second}` and `shop/{first}` hash to the same identity") as refused:
        assign_workloads("example.org", [workload(first, 3), workload("web", 5), workload(second, 8)])
    (finding,) = refused.value.diagnostics
    assert (finding.code, finding.loc.line, finding.related[0][0].line) == ("BH0602", 8, 3)


def test_names_that_collide_in_one_trust_domain_do_not_in_another() -> None:
    assert len(assign_workloads("example.net", [workload(name, 1) for name in TWINS])) == 2


def test_reserved_identity_is_refused() -> None:
    with pytest.raises(PolicyError, match="identity 92, which is reserved"):
        assign_workloads("example.org", [workload(RESERVED, 3)])


def test_colliding_classes_are_refused() -> None:
    first, second = CLASS_TWINS
    locs = {first: Loc("a.yaml", 1), second: Loc("a.yaml", 2)}
    with pytest.raises(PolicyError, match=f"`{second}` and `{first}` hash to the same identity"):
        assign_classes([frozenset({first}), frozenset({second})], locs)
