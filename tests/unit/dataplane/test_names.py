"""Externals of DNS names: judged among each other and against the world, and found by the name on the wire."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from bulkhead.abi import Direction
from bulkhead.dataplane.addresses import name_classes
from bulkhead.dataplane.bundle import pack, unpack
from bulkhead.dataplane.compile import class_of, compile_commit, lookup
from bulkhead.dataplane.difference import difference
from bulkhead.dataplane.names import name_id, wire_key
from bulkhead.dataplane.resolve import Limits
from bulkhead.errors import Diagnostic, PolicyError
from bulkhead.identity.registry import workload_identity
from bulkhead.policy.model import External, PolicySet, QualifiedName
from unit.dataplane.build import NOW, TRUST_DOMAIN, external, loc, policy_test, shop


def named(name: str, *fqdn: str) -> External:
    return External("shop", name, (), (), loc(1), fqdn)


S3 = named("s3", "s3.example.com")
CDN = named("cdn", "*.example.com")
DEEP = named("deep", "a.s3.example.com")
SAME = named("same", "x.example.org", "s3.example.com")
OFFICE = external("office", ["0.0.0.0/0", "::/0"])
OUTSIDE = (S3, CDN, DEEP, SAME, OFFICE)
NAMES = [each.name for each in OUTSIDE]


def findings(policy_set: PolicySet) -> tuple[Diagnostic, ...]:
    try:
        compile_commit(policy_set, None, NOW)
    except PolicyError as refused:
        return refused.diagnostics
    return ()


def test_each_name_belongs_to_whoever_wrote_it_or_its_wildcard() -> None:
    classes = {frozenset(str(name) for name in members) for members in name_classes(OUTSIDE).values()}
    assert classes == {
        frozenset({"shop/s3", "shop/cdn", "shop/same"}),
        frozenset({"shop/cdn"}),
        frozenset({"shop/deep"}),
        frozenset({"shop/same"}),
    }


@pytest.mark.parametrize(
    ("rule", "never", "broken"),
    [
        ("web -> s3 443", "web -> s3", True),
        ("web -> s3 443", "web -> same", True),
        ("web -> s3 443", "web -> cdn", True),
        ("web -> cdn 443", "web -> s3", True),
        ("web -> cdn 443", "web -> deep", False),
        ("web -> s3 443", "web -> deep", False),
        ("web -> s3 443", "web -> s3 80", False),
        ("web -> s3 443", "web -> world", True),
        ("web -> world 443", "web -> s3", True),
        ("web -> s3 443", "web -> office", False),
        ("web -> office 443", "web -> s3", False),
    ],
)
def test_never_holds_names_against_names(rule: str, never: str, broken: bool) -> None:
    found = findings(shop(rule, nevers=[never], externals=OUTSIDE))
    assert [finding.code for finding in found] == ["BH0501"] * broken


@pytest.mark.parametrize(
    ("accept", "deny", "fails"),
    [
        (["s3:443"], [], 0),
        (["s3:80"], [], 1),
        (["cdn:443"], [], 1),
        ([], ["cdn:443"], 1),
        ([], ["deep:443", "s3:80"], 0),
    ],
)
def test_tests_know_names(accept: list[str], deny: list[str], fails: int) -> None:
    tests = [policy_test("web", accept, deny, NAMES)]
    assert [each.code for each in findings(shop("web -> s3 443", tests=tests, externals=OUTSIDE))] == ["BH0502"] * fails


def test_no_address_has_a_name_until_somebody_is_told() -> None:
    compiled = compile_commit(shop("web -> s3 443", externals=(S3,)), "web-1", NOW)
    web = workload_identity(TRUST_DOMAIN, QualifiedName("shop/web"))
    classes = {class_of(compiled, ip_address(text)) for text in ("192.0.2.1", "2001:db8::1", "0.0.0.0")}
    assert not compiled.classes4
    assert not compiled.classes6
    assert not any(lookup(compiled, web, Direction.EGRESS, number, 6, 443) for number in classes)
    assert unpack(pack(compiled)) == compiled


def test_a_plan_shows_names_that_change() -> None:
    before = shop("web -> s3 443", externals=(S3, OFFICE))
    after = replace(before, externals=(replace(S3, fqdn=("s3.example.org",)), OFFICE))
    found = difference(before, after, NOW)
    assert not found.reach
    assert not found.addresses
    (altered,) = found.altered
    assert [(each.field, each.before, each.after) for each in altered.details] == [
        ("fqdn", "s3.example.com", "s3.example.org")
    ]


def test_a_plan_between_names_and_addresses_shows_both() -> None:
    before = shop("web -> s3 443", externals=(S3,))
    after = replace(before, externals=(external("s3", ["192.0.2.0/24"]),))
    found = difference(before, after, NOW)
    assert [(each.source, each.destination) for each in found.reach] == [("shop/web", "shop/s3")]
    (altered,) = found.altered
    assert {each.field for each in altered.details} == {"cidr", "fqdn"}


def test_each_written_name_has_a_number_of_its_own_and_the_class_of_its_externals() -> None:
    compiled = compile_commit(shop("web -> s3 443", externals=OUTSIDE), None, NOW)
    members = {name.pattern: set(compiled.classes[name.identity]) for name in compiled.names.values()}
    assert members == {
        "s3.example.com": {"shop/s3", "shop/cdn", "shop/same"},
        "*.example.com": {"shop/cdn"},
        "a.s3.example.com": {"shop/deep"},
        "x.example.org": {"shop/same"},
    }
    assert all(number == name_id(name.pattern) for number, name in compiled.names.items())


@pytest.mark.parametrize(
    ("pattern", "name", "is_wildcard"),
    [
        ("s3.example.com", b"\2s3\7example\3com\0", 0),
        ("*.example.com", b"\7example\3com\0", 1),
        ("_srv.example.org", b"\4_srv\7example\3org\0", 0),
        (".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61]), None, 0),
    ],
)
def test_the_key_of_a_name_is_how_it_looks_on_the_wire(pattern: str, name: bytes | None, is_wildcard: int) -> None:
    key = wire_key(pattern)
    assert len(key) == 256
    assert key[255] == is_wildcard
    if name is not None:
        assert key[:255].rstrip(b"\0") + b"\0" == name


@pytest.mark.parametrize("pattern", ["", "a..b", ".a", "A.example.org", "x" * 64 + ".org", ".".join(["abcdefg"] * 32)])
def test_what_cannot_be_on_the_wire_has_no_key(pattern: str) -> None:
    with pytest.raises(ValueError, match="DNS name"):
        wire_key(pattern)


def test_more_names_than_fit_are_refused() -> None:
    with pytest.raises(PolicyError) as refused:
        compile_commit(shop(externals=OUTSIDE), None, NOW, Limits(names=3))
    assert [finding.code for finding in refused.value.diagnostics] == ["BH0701"]
