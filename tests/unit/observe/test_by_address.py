"""What still rests on addresses, and why."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from bulkhead.abi import Direction, DropReason, Identity, Verdict
from bulkhead.observe.by_address import Kind, Path, path_to_json, paths, summary
from bulkhead.observe.neighbours import Neighbours
from unit.observe.build import event, identity
from unit.observe.nodes import DB, SILENT, neighbours, records

WORLD = int(Identity.WORLD)
ALLOWED = {"verdict": Verdict.ALLOW, "reason": DropReason.NONE}


def resting(*changed: dict[str, Any], since: float = 0.0) -> list[Path]:
    return paths(records(*(event(**ALLOWED | one) for one in changed)), neighbours(), since)


@pytest.mark.parametrize(
    ("changed", "kind", "peer"),
    [
        ({"remote_identity": Identity.LEGACY, "destination": "10.4.0.9"}, Kind.LEGACY, "printer"),
        ({"remote_identity": WORLD, "destination": "10.4.0.7"}, Kind.BY_ADDRESS, "silent"),
        ({"remote_identity": WORLD, "destination": "10.4.0.7", "node": SILENT}, Kind.BY_ADDRESS, "silent"),
        ({"remote_identity": WORLD, "destination": "10.0.0.2", "node": DB}, Kind.NO_WORKLOAD, "other-1"),
        ({"remote_identity": WORLD, "destination": "10.6.0.1"}, Kind.UNREGISTERED, "10.6.0.1"),
        ({"remote_identity": WORLD, "destination": "fd00::1"}, Kind.UNREGISTERED, "fd00::1"),
        ({"remote_identity": WORLD, "destination": "1.1.1.1"}, Kind.INTERNET, "1.1.1.1"),
        ({"remote_identity": WORLD, "destination": "2606:4700::1"}, Kind.INTERNET, "2606:4700::1"),
        (
            {"remote_identity": 0, "node": DB, "verdict": Verdict.WOULD_DENY, "reason": DropReason.WIRE_MISSING},
            Kind.SILENT,
            "other-1",
        ),
    ],
)
def test_each_other_end_says_what_would_change_it(changed: dict[str, Any], kind: Kind, peer: str) -> None:
    (found,) = resting(changed)
    assert (found.kind, found.peer, found.local, found.direction) == (kind, peer, "shop/web", "egress")


@pytest.mark.parametrize(
    "changed",
    [
        {"remote_identity": identity("db"), "node": DB},
        {"remote_identity": WORLD, "destination": "1.1.1.1", "verdict": Verdict.DENY},
        {"remote_identity": WORLD, "destination": "10.6.0.1", "protocol": 1},
        {"remote_identity": WORLD, "destination": "224.0.0.251", "protocol": 17},
        {"remote_identity": WORLD, "destination": "255.255.255.255", "protocol": 17},
        {"remote_identity": 0, "verdict": Verdict.WOULD_DENY, "reason": DropReason.UNATTESTED},
    ],
)
def test_what_is_proven_refused_or_could_never_be_proven_is_not_listed(changed: dict[str, Any]) -> None:
    assert resting(changed) == []


def test_what_comes_in_is_listed_by_who_calls() -> None:
    coming = {"direction": Direction.INGRESS, "remote_identity": WORLD, "source": "10.4.0.7", "destination_port": 443}
    (found,) = resting(coming)
    assert (found.peer, found.local, found.direction, found.port) == ("silent", "shop/web", "ingress", 443)


def test_one_path_is_one_row_and_the_busiest_comes_first() -> None:
    near = {"remote_identity": WORLD, "destination": "10.6.0.1"}
    found = resting({"remote_identity": WORLD, "destination": "1.1.1.1"}, near, near | {"cgroup_id": 99})
    assert [(one.peer, one.count) for one in found] == [("10.6.0.1", 2), ("1.1.1.1", 1)]
    assert {kind: count for kind, count in summary(found).items() if count} == {"not registered": 1, "internet": 1}
    assert path_to_json(found[0])["kind"] == "not registered"


def test_what_was_last_seen_earlier_is_left_out() -> None:
    near = {"remote_identity": WORLD, "destination": "10.6.0.1"}
    (at,) = {one.last_seen for one in resting(near)}
    assert resting(near, since=at + 1) == []
    assert len(resting(near, since=at)) == 1


# Nodes by address


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("10.4.0.9", "printer"),
        ("10.4.0.8", "silent"),
        ("10.5.0.0", None),
        ("10.0.0.1", None),
        ("2001:db8::2", "other-1"),
        ("::a04:9", None),
    ],
)
def test_the_longest_prefix_of_another_node_says_who_is_there(address: str, name: str | None) -> None:
    found = neighbours().at(ip_address(address))
    assert (found.name if found else None) == name
    assert neighbours(speaks=False).judged_at(ip_address(address)) is None


def test_nobody_is_near_where_no_node_is_known() -> None:
    assert Neighbours().at(ip_address("10.0.0.2")) is None
    assert (Neighbours().name(0), Neighbours().name(5), neighbours().name(DB)) == ("", "5", "other-1")
