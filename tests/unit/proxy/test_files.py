"""The configuration as files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bulkhead.dataplane.mesh import Call, Lane, Mesh
from bulkhead.dataplane.requests import (
    Always,
    Authorization,
    Clause,
    Effect,
    Header,
    How,
    Method,
    Not,
    ServerName,
    Text,
)
from bulkhead.dataplane.requests_reference import Request, holds
from bulkhead.proxy.authorization import bounded, next_deadline
from bulkhead.proxy.files import publish, render
from bulkhead.proxy.node import ProxyNode

NODE = ProxyNode("one", "example.org", ("10.0.0.1",), Path("/run/bulkhead"))
GET = Method(Text(How.EXACT, "GET"))


def mesh(*clauses: Clause) -> Mesh:
    return Mesh(
        lanes=(Lane(5, 1, (2,)),),
        calls=(Call(2, 1, ((80, 81),)),),
        authorizations=(Authorization(2, ((81, 81),), clauses),),
        svids={1: "spiffe://example.org/a", 2: "spiffe://example.org/b"},
    )


def allowing(files: dict[str, bytes]) -> list[str]:
    route = json.loads(files["requests.json"])["resources"][0]["virtual_hosts"][0]["routes"][0]
    return sorted(route["typed_per_filter_config"]["allow"]["rbac"]["rules"]["policies"])


def test_equal_meshes_give_equal_bytes() -> None:
    clause = Clause(7, Effect.ALLOW, GET)
    assert render(mesh(clause), NODE, {}, 0.0) == render(mesh(clause), NODE, {}, 0.0)


def test_a_change_of_who_may_request_what_changes_no_listener_and_no_cluster() -> None:
    before = render(mesh(Clause(7, Effect.ALLOW, GET)), NODE, {}, 0.0)
    after = render(mesh(Clause(8, Effect.DENY, GET)), NODE, {}, 0.0)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed == {"requests.json", "server-names.json"}


def test_files_are_few_however_many_workloads_there_are() -> None:
    """Envoy takes an inotify instance for each, of which a user has 128."""
    many = range(2, 300)
    large = Mesh(
        calls=tuple(Call(one, 1, ((one, one),)) for one in many),
        authorizations=tuple(Authorization(one, ((80, 80),), ()) for one in many),
        svids={one: f"spiffe://example.org/{one}" for one in (1, *many)},
    )
    files = render(large, NODE, {}, 0.0)
    assert len(files) == 6
    sources = set(re.findall(rb'"path":"/run/bulkhead/proxy/config/current/([^"]+)"', files["lds.json"]))
    assert len(sources) == 4


def test_a_clause_counts_until_its_deadline() -> None:
    ending = mesh(Clause(7, Effect.ALLOW, GET, deadline=100.0), Clause(8, Effect.ALLOW, GET, deadline=200.0))
    assert allowing(render(ending, NODE, {}, 99.0)) == ["rule-7", "rule-8"]
    assert allowing(render(ending, NODE, {}, 100.0)) == ["rule-8"]
    assert [next_deadline(ending, now) for now in (0.0, 100.0, 200.0)] == [100.0, 200.0, None]


@pytest.mark.parametrize(
    ("condition", "upper", "lower"),
    [
        (GET, True, False),
        (Not(GET), True, False),
        (Not(Header("x", Text(How.PRESENT))), True, False),
        (Always(), True, True),
    ],
)
def test_of_tls_inside_a_condition_on_requests_is_met_for_a_deny_and_unmet_for_an_allow(
    condition: Method | Not | Header | Always, upper: bool, lower: bool
) -> None:
    nothing = Request("spiffe://example.org/a", 81)
    assert holds(bounded(condition, upper=True), nothing) == upper
    assert holds(bounded(condition, upper=False), nothing) == lower


def test_a_server_name_stays_what_it_is() -> None:
    name = ServerName(Text(How.EXACT, "a"))
    assert bounded(name, upper=True) == bounded(name, upper=False) == name


def test_files_come_into_force_together_and_those_before_go(tmp_path: Path) -> None:
    assert publish(tmp_path, {"a.json": b"1", "b.json": b"1"})
    assert not publish(tmp_path, {"a.json": b"1", "b.json": b"1"})
    assert publish(tmp_path, {"a.json": b"2"})
    assert {one.name: one.read_bytes() for one in (tmp_path / "current").iterdir()} == {"a.json": b"2"}
    assert len(list(tmp_path.iterdir())) == 2
    assert (tmp_path / "current" / "a.json").stat().st_mode & 0o777 == 0o640
