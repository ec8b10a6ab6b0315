"""What is certain of a caller and a port before there is a request."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from bulkhead.dataplane.istio_conditions import rule_condition
from bulkhead.dataplane.istio_truth import Callers, Known, Span
from bulkhead.dataplane.requests import All, AnyOf, CallerAddress, How, Method, Not, Port, Text
from bulkhead.errors import Loc
from bulkhead.policy.istio import UNNUMBERED, IstioRule, When

SVID = "spiffe://example.org"


def of_caller(key: str, value: str, known: Known) -> bool | None:
    """What one value of an attribute says of a caller."""
    rule = IstioRule(UNNUMBERED, "rule-1", Loc("a", 1), when=(When(key, (), (value,)),))
    (span,) = Callers({0: known}).answers(rule_condition(rule, "shop")).for_caller(0)
    return span.truth


@pytest.mark.parametrize(
    ("key", "value", "path", "truth"),
    [
        ("source.principal", "*", "/host/{host}/unit/a", True),
        ("source.principal", "example.org/*", "/host/{host}/unit/a", True),
        ("source.principal", "*/unit/a", "/host/{host}/unit/a", True),
        ("source.principal", "*1/unit/a", "/host/{host}/unit/a", None),
        ("source.principal", "*/unit/b", "/host/{host}/unit/a", False),
        ("source.principal", "example.org/host/web-1/unit/a", "/host/{host}/unit/a", None),
        ("source.principal", "example.org/host/web-1/unit/b", "/host/{host}/unit/a", False),
        ("source.principal", "example.org/host/a/b/unit/a", "/host/{host}/unit/a", False),
        ("source.principal", "example.org/host/web-1/*", "/host/{host}/unit/a", None),
        ("source.principal", "example.org/ns/*", "/host/{host}/unit/a", False),
        ("source.principal", "*/ns/shop/sa/web", "/ns/shop/sa/web", True),
        ("source.principal", "*/example.org/ns/shop/sa/web", "/ns/shop/sa/web", False),
        ("source.namespace", "shop", "/ns/shop/sa/{host}", True),
        ("source.namespace", "shop", "/ns/bank/sa/web", False),
        ("source.namespace", "shop", "/host/{host}/unit/a", False),
        ("source.namespace", "unit", "/host/{host}/unit/a", None),
        ("source.namespace", "web-1", "/ns/{host}/sa/a", None),
        ("source.namespace", "*-1", "/ns/shop/{host}/sa/a", None),
        ("source.namespace", "*", "/ns/{host}/sa/a", True),
        ("source.serviceAccount", "web", "/ns/shop/x/sa/web/y", True),
        ("source.serviceAccount", "bank/web", "/ns/shop/sa/web", False),
        ("source.serviceAccount", "web.a", "/ns/shop/sa/webxa", False),
        ("source.trustDomain", "example.*", "/a", True),
        ("source.trustDomain", "*.com", "/a.com", False),
    ],
)
def test_a_name_of_a_node_is_decided_only_where_every_name_says_the_same(key, value, path, truth) -> None:
    assert of_caller(key, value, Known(SVID + path)) is truth


def test_who_has_no_svid_is_nobody_by_name() -> None:
    assert of_caller("source.principal", "*", Known()) is False


@pytest.mark.parametrize(
    ("networks", "held", "truth"),
    [
        (["192.0.2.0/24"], ["192.0.2.0/25", "192.0.2.128/25"], True),
        (["192.0.2.0/25"], ["192.0.2.0/24"], None),
        (["192.0.2.0/24"], ["198.51.100.0/24", "2001:db8::/32"], False),
        (["192.0.2.0/24"], ["192.0.2.1/32", "198.51.100.0/24"], None),
        (["192.0.2.0/24"], [], None),
        (["0.0.0.0/0"], [], None),
        (["0.0.0.0/0", "::/0"], [], True),
    ],
)
def test_addresses_are_certain_where_a_class_lies_within_or_apart(networks, held, truth) -> None:
    condition = CallerAddress(tuple(map(ip_network, networks)))
    known = Known(networks=tuple(map(ip_network, held)))
    assert Callers({0: known}).answers(condition).for_caller(0) == (Span(0, 65535, truth),)


def test_ports_are_answered_interval_by_interval() -> None:
    get = Method(Text(How.EXACT, "GET"))
    condition = AnyOf((Port(22, 22), All((Port(80, 90), get)), Not(AnyOf((Port(0, 1000), get)))))
    assert Callers({0: Known()}).answers(condition).for_caller(0) == (
        Span(0, 21, False),
        Span(22, 22, True),
        Span(23, 79, False),
        Span(80, 90, None),
        Span(91, 1000, False),
        Span(1001, 65535, None),
    )
