"""The matrix says who reaches whom, and by which rule."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from bulkhead.dataplane.compile import Compiled, compile_commit
from bulkhead.dataplane.inventory import Listed, parse_inventory, read_inventory
from bulkhead.dataplane.matrix import matrix, parse_ports
from bulkhead.errors import PolicyError, UnreachableError, UsageError
from bulkhead.identity.selectors import Endpoint
from bulkhead.policy.model import Match
from unit.dataplane.build import NOW, external, shop, workload

INVENTORY = b"""
endpoints:
  - {name: web, unit: web.service}
  - {name: api, cgroup: /system.slice/api.service/worker, user: www, group: "33", exe: /bin/api}
  - {name: shell, cgroup: /user.slice/user-0.slice/session-1.scope}
  - {name: db, host: db-1, unit: db.service, addresses: [10.0.0.7]}
"""


def compiled(*rules: str) -> Compiled:
    outside = [external("office", ["10.9.0.0/16"]), external("hosts", ["10.0.0.0/24"])]
    return compile_commit(shop(*rules, externals=outside), None, NOW)


def cells(found: dict[str, object], **wanted: object) -> list[tuple[object, object]]:
    listed = found["cells"]
    assert isinstance(listed, list)
    names = {"source": "from", "destination": "to"}
    return [
        (cell["verdict"], cell["rule"])
        for cell in listed
        if all(cell[names.get(key, key)] == value for key, value in wanted.items())
    ]


def test_every_ordered_pair_has_a_cell_for_each_port_and_family() -> None:
    listed = parse_inventory(INVENTORY, "inventory.yaml")
    found = matrix(compiled("web -> api 80"), listed, "80/tcp,53/udp")
    assert found["endpoints"] == ["web", "api", "shell", "db"]
    assert len(cells(found)) == 2 * (9 * 2 + 7)
    assert cells(found, source="web", destination="api", port=80) == [("allow", "shop/rule-1")] * 2
    assert cells(found, source="api", destination="web", port=80) == [("deny", None)] * 2
    assert cells(found, source="web", destination="api", protocol="udp") == [("deny", None)] * 2


def test_icmp_is_one_cell_for_each_family() -> None:
    listed = parse_inventory(INVENTORY, "inventory.yaml")[:2]
    found = matrix(compiled("web -> api icmp/echo"), listed, "icmp/echo")
    assert cells(found, source="web", destination="api", port="echo", protocol="icmp", family=4) == [
        ("allow", "shop/rule-1")
    ]
    assert len(cells(found, source="web", destination="api")) == 2


def test_addresses_meet_endpoints_both_ways_in_their_own_family() -> None:
    listed = parse_inventory(INVENTORY, "inventory.yaml")[:1]
    addresses = {"laptop": ip_address("10.9.1.1"), "six": ip_address("2001:db8::1")}
    found = matrix(compiled("office -> web 443", "web -> world 443"), listed, "443", addresses)
    assert cells(found, source="address:laptop", destination="web") == [("allow", "shop/rule-1")]
    assert cells(found, source="web", destination="address:laptop", family=4) == [("allow", "shop/rule-2")]
    assert cells(found, source="address:six", destination="web", family=6) == [("deny", None)]
    assert not cells(found, source="address:laptop", destination="address:six")


def test_host_is_the_same_machine_and_else_an_address() -> None:
    near = [
        Listed("shell", Endpoint("h1", "/user.slice/session-1.scope")),
        Listed("web", Endpoint("h1", "/system.slice/web.service")),
    ]
    far = Listed("far", Endpoint("h2", "/user.slice/session-1.scope"), (ip_address("10.0.0.9"),))
    found = matrix(compiled("host -> web 80", "hosts -> web 81"), [*near, far], "80,81")
    assert cells(found, source="shell", destination="web", port=80) == [("allow", "shop/rule-1")] * 2
    assert cells(found, source="far", destination="web", port=80) == [("deny", None)]
    assert cells(found, source="far", destination="web", port=81) == [("deny", None)]


def test_both_ends_must_allow() -> None:
    web, far = (
        Listed("web", Endpoint("h1", "/web.service")),
        Listed("far", Endpoint("h2", "/x"), (ip_address("10.0.0.9"),)),
    )
    found = matrix(compiled("host -> web 81", "hosts -> web 81"), [web, far], "81")
    assert cells(found, source="far", destination="web") == [("allow", "shop/rule-2")]


def test_ambiguous_endpoint_reaches_nothing() -> None:
    tied = [workload("a", Match(user=("www",))), workload("b", Match(user=("33",))), workload("c")]
    found = compile_commit(shop("any -> any 80", workloads=[*tied]), None, NOW)
    one = [workload("a", Match(user=("abc",))), workload("b", Match(user=("123",)))]
    both = compile_commit(shop("any -> any 80", workloads=one), None, NOW)
    listed = Listed("x", Endpoint("h", "/", uid=123, users=("abc",)))
    assert cells(matrix(both, [listed], "80")) == [("deny", None)] * 2
    assert cells(matrix(found, [Listed("c", Endpoint("h", "/c.service"))], "80")) == [("allow", "shop/rule-1")] * 2


def test_another_engine_may_answer() -> None:
    listed = parse_inventory(INVENTORY, "inventory.yaml")[:2]
    found = matrix(compiled("web -> api 80"), listed, "80", engine=lambda *_: None)
    assert set(cells(found)) == {("deny", None)}


def test_tables_of_one_host_are_refused() -> None:
    one = compile_commit(shop("web -> api 80"), "h", NOW)
    with pytest.raises(UsageError, match="tables of all hosts"):
        matrix(one, [], "80")


@pytest.mark.parametrize("text", ["", "80-90", "any", "icmp", "any/tcp", "http", "0"])
def test_ports_of_a_matrix_are_single(text: str) -> None:
    with pytest.raises(UsageError):
        parse_ports(text)


def test_inventory_gives_the_facts() -> None:
    web, api, shell, db = parse_inventory(INVENTORY, "inventory.yaml", "web-1")
    assert web.endpoint == Endpoint("web-1", "/system.slice/web.service")
    assert api.endpoint == Endpoint("web-1", "/system.slice/api.service/worker", "/bin/api", users=("www",), gid=33)
    assert shell.families == {4, 6}
    assert (db.endpoint.host, db.families) == ("db-1", {4})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"[]", "the inventory is a mapping"),
        (b"{}", "the one key `endpoints`"),
        (b"endpoints: 3", "`endpoints` is a list"),
        (b"endpoints: [{unit: a.service}]", "1:13: an endpoint needs `name`"),
        (b"endpoints: [{name: a, nmae: b}]", "unknown key `nmae`"),
        (b"endpoints: [{name: a, addresses: [10.0.0]}]", "`10.0.0` is not an address"),
        (b"endpoints: [{name: a}, {name: a}]", "`a` is listed twice"),
        (b"endpoints: [{name: [a]}]", "`name` is text"),
        (b"", "one document"),
        (b" " * 2_000_000, "at most"),
    ],
)
def test_what_is_no_inventory_is_refused_by_its_place(text: bytes, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        parse_inventory(text, "inventory.yaml")


def test_inventory_that_is_no_yaml_is_refused() -> None:
    with pytest.raises(PolicyError):
        parse_inventory(b"endpoints: [", "inventory.yaml")
    with pytest.raises(PolicyError):
        parse_inventory(b"endpoints: []\nendpoints: []", "inventory.yaml")


def test_inventory_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "inventory.yaml"
    file.write_bytes(INVENTORY)
    assert [listed.name for listed in read_inventory(file)] == ["web", "api", "shell", "db"]
    with pytest.raises(UnreachableError, match="cannot read the inventory"):
        read_inventory(tmp_path / "none.yaml")
