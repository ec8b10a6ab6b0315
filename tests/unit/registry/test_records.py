"""The records of a store, by name."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from bulkhead.policy.nodes import Node
from bulkhead.registry import record
from bulkhead.registry.records import Records
from lab.following import names_of


def node(name: str, number: int = 1) -> Node:
    return Node(name, number, (ip_network(f"10.0.0.{number}"),), None)


def known(*nodes: Node) -> Records:
    records = Records("store /nodes/")
    for one in nodes:
        records.put(one.name, record.write(one))
    return records


@pytest.mark.parametrize("name", ["a" * 80 + "/x", "a" * 80 + "\n", "a" * 300])
def test_a_name_that_only_begins_like_that_of_a_node_does_not_touch_it(name: str) -> None:
    records = known(node("a" * 80))
    records.put(name, b"garbage")
    roster = records.roster()
    assert names_of(roster) == ("a" * 80,)
    assert roster.refused[0].name.endswith("…") and "\n" not in roster.refused[0].detail


def test_a_number_is_taken_by_another_node_only() -> None:
    records = known(node("a", 7))
    assert records.is_taken(7, "b")
    assert not records.is_taken(7, "a")
    assert not records.is_taken(8, "b")


def test_a_record_that_is_gone_is_gone_and_a_removal_of_nothing_does_nothing() -> None:
    records = known(node("a", 1), node("b", 2))
    records.remove("a")
    records.remove("a")
    records.remove("never there")
    assert names_of(records.roster()) == ("b",) and len(records) == 1


def test_a_revocation_outlives_the_record_it_is_about() -> None:
    records = known(node("a", 1))
    records.revoke("a")
    records.remove("a")
    records.put("a", record.write(node("a", 1)))
    assert names_of(records.roster()) == ()
    assert records.nodes()[0].revoked


def test_what_goes_beyond_the_bound_is_not_kept_and_known_to_be_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bulkhead.registry.records.NODES_MAX", 2)
    records = known(node("c", 3), node("b", 2), node("d", 4), node("e", 5), node("a", 1))
    assert names_of(records.roster()) == ("a", "b") and len(records) == 3
    assert not records.lacks_some
    records.remove("a")
    assert records.lacks_some
