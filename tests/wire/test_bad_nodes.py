"""Nodes that are not as they should be: each is refused by reason and told, and the others do not notice."""

from __future__ import annotations

import base64
import os

import pytest

from lab.faults import strip, when
from lab.fleet import Fleet
from lab.wired import counting, shop, until

APART_S = 600


@pytest.fixture
def restarted(fleet: Fleet):
    """Hosts whose agents a test has started in another way are started in the usual one after it."""
    yield
    for host in fleet.guarded:
        if host.wrap:
            host.wrap = []
            host.stop_agent()
            host.start_agent()


@pytest.mark.usefixtures("restarted")
@pytest.mark.parametrize("apart_s", (-APART_S, APART_S))
def test_a_node_whose_clock_is_ten_minutes_off_is_refused_by_name_of_that(fleet: Fleet, puppets, apart_s: int) -> None:
    """The agent tells its kernel what time it is: in a time namespace of its own it is wrong about that."""
    web, app, db, caller = puppets("web"), puppets("app"), puppets("db"), puppets("app")
    app.serve_tcp("::", 8080)
    db.serve_tcp("::", 5432)
    wrong = fleet["web"]
    wrong.stop_agent()
    wrong.wrap = ["unshare", "--time", "--monotonic", str(apart_s), "--"]
    wrong.start_agent()
    with counting(fleet["app"]) as here:
        assert web.tcp(fleet.address("app"), 8080) == "timeout"
    assert set(here.refusals) == {("wire-clock", "ingress", "deny")}
    assert caller.tcp(fleet.address("db"), 5432) == "ok"


def test_a_node_whose_record_has_another_key_says_nothing_and_why(fleet: Fleet, puppets) -> None:
    web, app, db, caller = puppets("web"), puppets("app"), puppets("db"), puppets("app")
    app.serve_tcp("::", 8080)
    db.serve_tcp("::", 5432)
    other = base64.b64encode(os.urandom(32)).decode()
    commit = fleet.commit({"t.yaml": shop(), "nodes.yaml": fleet.records({"web": {"key": other}})})
    fleet.wait_for_commit(commit)
    try:
        until(lambda: not fleet["web"].call("status")["wire"]["speaking"], "web is mute")
        assert "key" in fleet["web"].call("status")["wire"]["mute"]
        with counting(fleet["app"]) as here:
            assert web.tcp(fleet.address("app"), 8080) != "ok"
        assert set(here.refusals) <= {("wire-missing", "ingress", "deny"), ("policy", "ingress", "deny")}
        assert caller.tcp(fleet.address("db"), 5432) == "ok"
    finally:
        fleet.enforce(shop())
    until(lambda: web.tcp(fleet.address("app"), 8080) == "ok", "web is known again")


def test_two_records_that_share_an_address_are_a_commit_that_is_refused(fleet: Fleet, puppets) -> None:
    web, app = puppets("web"), puppets("app")
    app.serve_tcp("::", 8080)
    clash = {"web": {"addresses": [fleet.address("app")]}}
    commit = fleet.commit({"nodes.yaml": fleet.records(clash)})
    try:
        with pytest.raises(RuntimeError, match=r"BH0405"):
            fleet.wait_for_commit(commit)
        assert web.tcp(fleet.address("app"), 8080) == "ok"
    finally:
        fleet.enforce(shop())


def test_a_host_without_an_agent_is_legacy_and_nothing_else(fleet: Fleet, puppets) -> None:
    mallory, app = puppets("mallory"), puppets("app")
    app.serve_tcp("::", 8080)
    records = fleet.records({"mallory": {}})
    fleet.wait_for_commit(fleet.commit({"t.yaml": shop("mallory -> app 8080"), "nodes.yaml": records}))
    with counting(fleet["app"]) as here:
        assert mallory.tcp(fleet.address("app"), 8080) == "timeout"  # an external no longer has this address
    assert set(here.refusals) == {("policy", "ingress", "deny")}
    fleet.wait_for_commit(fleet.commit({"t.yaml": shop("legacy -> app 8080"), "nodes.yaml": records}))
    assert mallory.tcp(fleet.address("app"), 8080) == "ok"


def test_a_node_under_way_may_still_be_its_address_and_is_itself_as_soon_as_it_says_so(fleet: Fleet, puppets) -> None:
    """`unknown: address`: what carries no identity is judged as if it came from outside, what does is not."""
    records = fleet.records({"web": {"unknown": "address"}})
    fleet.wait_for_commit(fleet.commit({"t.yaml": shop("web -> app 8080"), "nodes.yaml": records}))
    web, app = puppets("web"), puppets("app")
    app.serve_tcp("::", 8080)
    assert web.tcp(fleet.address("app"), 8080) == "ok"
    with fleet.router.fault("web", strip(), when("tcp", "S")), counting(fleet["app"]) as here:
        assert web.tcp(fleet.address("app"), 8080) == "timeout"
    assert set(here.refusals) == {("policy", "ingress", "deny")}, "judged by its address, which no rule lets in there"
