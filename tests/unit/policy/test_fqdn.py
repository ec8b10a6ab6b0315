"""Externals that are known by DNS names."""

from __future__ import annotations

import pytest

from bulkhead.policy.check import check

HEAD = """\
workloads:
  web: {match: {unit: nginx.service}}
  api: {match: {unit: api.service}}
externals:
  s3: {fqdn: [s3.example.com]}
  cdn: {fqdn: ["*.example.com"]}
  office: {cidr: [192.0.2.0/24]}
"""


def test_names_are_lower_case_without_the_final_dot(parsed):
    written = '[Shop.S3.Example.COM., "*.example.net", xn--bcher-kva.example, _srv.example.org, shop.s3.example.com]'
    (found,) = parsed(f"externals:\n  s3: {{fqdn: {written}}}\n").externals
    assert found.fqdn == ("shop.s3.example.com", "*.example.net", "xn--bcher-kva.example", "_srv.example.org")
    assert found.cidr == found.excluded == ()


def test_the_longest_name_is_taken(parsed):
    name = ".".join(("a" * 63, "b" * 63, "c" * 63, "d" * 61))
    assert parsed(f"externals:\n  s3: {{fqdn: [{name}]}}\n").externals[0].fqdn == (name,)


def test_a_name_among_prefixes_is_answered_with_the_key_for_names(refused):
    (found,) = refused("externals:\n  s3: {cidr: [s3.example.com]}\n")
    assert (found.code, found.hint) == ("BH0303", "DNS names are listed under `fqdn`")


@pytest.mark.parametrize(
    ("rule", "never", "warned"),
    [
        ("from: web, to: s3", "from: web, to: office", True),
        ("from: web, to: office", "from: web, to: s3", True),
        ("from: any, to: [s3, office]", "from: web, to: office", False),
        ("from: any, to: s3", "from: web, to: office", True),
        ("from: web, to: s3", "from: any, to: office", True),
        ("from: s3, to: web", "from: office, to: web", True),
        ("from: host, to: s3", "from: host, to: office", True),
        ("from: api, to: s3", "from: web, to: office", False),
        ("from: host, to: s3", "from: any, to: office", False),
        ("from: web, to: s3", "from: office, to: web", False),
        ("from: web, to: s3", "from: web, to: api", False),
        ("from: web, to: s3", "from: web, to: world", False),
        ("from: web, to: world", "from: web, to: s3", False),
        ("from: web, to: s3", "from: web, to: cdn", False),
        ("from: web, to: s3", "from: web, to: office, ports: [443]", True),
        ("from: web, to: s3", "from: web, to: office, ports: [80]", False),
        ("from: web, to: s3", "from: web, to: office, ports: [443/udp]", False),
    ],
)
def test_names_against_addresses_are_warned_of_only_where_nobody_can_tell(rule, never, warned, parsed):
    rules = f"allow:\n  - {{name: rule, {rule}, ports: [443]}}\nnever:\n  - {{name: not, {never}}}\n"
    found = check(parsed(HEAD + rules))
    assert [each.code for each in found] == ["BH0509"] * warned
    if warned:
        assert "`shop/s3` may have addresses of `shop/office`" in found[0].message
        assert (found[0].loc.line, found[0].related[0][0].line) == (12, 14)
