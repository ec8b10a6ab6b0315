"""What a commit asks of the proxies: flags of entries, lanes, calls, and the rule that nobody writes."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from bulkhead.abi import Direction
from bulkhead.dataplane import lanes, mesh
from bulkhead.dataplane.bundle import BundleError, pack, read, unpack
from bulkhead.dataplane.compile import Compiled, PolicyEntry, PolicyKey, compile_commit, lookup
from bulkhead.dataplane.entries import LANE_MASK, MTLS, REQUESTS
from bulkhead.dataplane.mesh import Call, Lane, Mesh, lane_number, number_lanes
from bulkhead.dataplane.resolve import LEGACY, PEER, PROXY
from bulkhead.errors import PolicyError
from bulkhead.identity.registry import workload_identity
from bulkhead.policy.l7 import L7, HttpMatch
from bulkhead.policy.model import Match, PolicySet, QualifiedName
from unit.dataplane.build import NOW, TRUST_DOMAIN, external, loc, shop, workload

EGRESS, INGRESS = int(Direction.EGRESS), int(Direction.INGRESS)
TCP, UDP = 6, 17
HERE = "web-1"


def number(name: str) -> int:
    return workload_identity(TRUST_DOMAIN, QualifiedName(f"shop/{name}"))


WEB, API, DB = map(number, ("web", "api", "db"))
GET = L7(loc(1), (HttpMatch(loc(1), ("GET",)),), text="GET")


def compiled(policy_set: PolicySet, host: str | None = HERE) -> Compiled:
    return compile_commit(policy_set, host, NOW)


def by_request(policy_set: PolicySet, *rules: int) -> PolicySet:
    """With `l7` on some of the rules."""
    written = (replace(rule, l7=GET) if rule.rule_id in rules else rule for rule in policy_set.rules)
    return replace(policy_set, rules=tuple(written))


def flags(found: Compiled, local: int, remote: int, port: int, direction: int = EGRESS, protocol: int = TCP) -> int:
    entry = lookup(found, local, direction, remote, protocol, port)
    assert entry is not None
    return entry.flags & ~LANE_MASK


def opening(found: Compiled, local: int, port: int) -> PolicyEntry:
    entry = lookup(replace(found, entries=found.openings), local, EGRESS, PEER, TCP, port)
    assert entry is not None
    return entry


def lane_of(found: Compiled, entry: PolicyEntry) -> Lane:
    return next(lane for lane in found.mesh.lanes if lane.number == entry.flags & LANE_MASK)


# Flags


def test_tcp_between_workloads_asks_for_mutual_tls_at_both_ends() -> None:
    found = compiled(shop("web -> api 443,53/udp"))
    assert flags(found, WEB, API, 443) == flags(found, API, WEB, 443, INGRESS) == MTLS
    assert flags(found, WEB, API, 53, protocol=UDP) == 0


def test_nothing_but_workloads_is_asked_for_mutual_tls() -> None:
    users = external("users", ["192.0.2.0/24"])
    found = compiled(shop("users -> web 443", "web -> host 22", "legacy -> web 1", "web -> users 2", externals=[users]))
    assert {entry.flags for entry in found.entries.values()} == {0}
    assert found.mesh == Mesh()


def test_any_asks_workloads_alone() -> None:
    found = compiled(shop("any+host -> api 443"))
    assert flags(found, API, WEB, 443, INGRESS) == MTLS
    assert flags(found, API, 1, 443, INGRESS) == 0


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (("web -> api 443", "web -> api 443 off"), 0),
        (("web -> api 443 off", "web -> api 443"), 0),
        (("web -> api any/tcp off", "web -> api 443"), 0),
        (("web -> api any/tcp", "web -> api 443 off"), 0),
        (("web -> api 440-447", "web -> api any/tcp", "web -> api 443"), MTLS),
        (("web -> api 1-442 off", "web -> api 443", "web -> api 444-9999 off"), MTLS),
        (("web -> db 443 off", "web -> api 443"), MTLS),
    ],
)
def test_one_rule_that_permits_plaintext_suffices(rules: tuple[str, ...], expected: int) -> None:
    assert flags(compiled(shop(*rules)), WEB, API, 443) == expected


def test_a_passing_exception_lifts_nothing_that_lasts_longer() -> None:
    soon = NOW + timedelta(hours=1)
    found = compiled(shop("web -> api 443", ("web -> api 443 off", soon), ("web -> db 443 off", soon)))
    entry = lookup(found, WEB, EGRESS, API, TCP, 443)
    assert entry is not None
    assert (entry.rule_id, entry.deadline, entry.flags) == (1, None, MTLS)
    alone = lookup(found, WEB, EGRESS, DB, TCP, 443)
    assert alone is not None
    assert (alone.rule_id, alone.deadline, alone.flags) == (3, soon.timestamp(), 0)
    assert opening(found, WEB, 443).flags & ~LANE_MASK == MTLS


def test_requests_are_looked_at_unless_a_rule_that_lasts_as_long_lets_all_through() -> None:
    soon, late = NOW + timedelta(hours=1), NOW + timedelta(hours=2)
    both = shop("web -> api 443", "web -> api 443", "web -> api any/tcp", "web -> db 80", ("web -> db 80", soon),
                ("web -> db 90", soon), ("web -> db any/tcp", late), ("web -> db 90", soon))  # fmt: skip
    found = compiled(by_request(both, 1, 2, 4, 6, 8))
    assert flags(found, WEB, API, 443) == MTLS
    assert flags(found, WEB, DB, 80) == MTLS | REQUESTS
    assert flags(found, WEB, DB, 90) == MTLS
    assert flags(compiled(by_request(both, 1, 2, 3)), WEB, API, 443) == MTLS | REQUESTS


# Lanes


def test_a_lane_is_a_caller_and_all_who_may_answer_on_the_port() -> None:
    found = compiled(shop("web -> api 443", "web -> db 440-447 off", "web -> db 80 off"))
    assert lane_of(found, opening(found, WEB, 443)).peers == tuple(sorted((API, DB)))
    assert opening(found, WEB, 443).flags & ~LANE_MASK == MTLS
    assert [opening(found, WEB, port).flags for port in (442, 444, 80)] == [0, 0, 0]


def test_ports_with_the_same_peers_share_a_lane_and_others_do_not() -> None:
    found = compiled(shop("web -> api any/tcp", "web -> db 5432", "db -> api 1"))
    lanes_of = [lane_of(found, opening(found, WEB, port)) for port in (1, 65535, 5432)]
    assert [lane.peers for lane in lanes_of] == [(API,), (API,), tuple(sorted((API, DB)))]
    assert lanes_of[0] == lanes_of[1]
    assert {lane.source for lane in found.mesh.lanes} == {WEB, DB}
    assert list(found.mesh.lanes) == sorted(found.mesh.lanes)


def test_lanes_are_of_local_callers_alone() -> None:
    away = workload("web", Match(host=("db-*",), unit=("web.service",)))
    found = compiled(shop("web -> api 443", "api -> db 5432", workloads=[away, "api", "db"]))
    assert [lane.source for lane in found.mesh.lanes] == [API]


def test_an_opening_that_any_answer_would_have_judged_by_request_says_so() -> None:
    found = compiled(by_request(shop("web -> api 443", "web -> db 443"), 1))
    assert opening(found, WEB, 443).flags & ~LANE_MASK == MTLS | REQUESTS


def test_a_workload_of_the_same_host_has_a_lane_of_its_own_where_requests_are_looked_at() -> None:
    found = compiled(by_request(shop("web -> api 443", "web -> db 443"), 1))
    inside = lookup(found, WEB, EGRESS, API, TCP, 443)
    assert inside is not None
    assert lane_of(found, inside) == Lane(lane_number(WEB, [API]), WEB, (API,))
    assert flags(found, WEB, DB, 443) == MTLS
    assert flags(found, API, WEB, 443, INGRESS) == MTLS | REQUESTS


def test_all_hosts_at_once_have_no_mesh() -> None:
    found = compiled(shop("web -> api 443"), None)
    assert found.mesh == Mesh()
    assert opening(found, WEB, 443).flags == MTLS
    assert "hosts/proxy" not in {rule.name for rule in found.rules.values()}


def test_more_lanes_than_a_host_may_have_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "LANES_MAX", 1)
    compiled(shop("web -> api 443"))
    with pytest.raises(PolicyError, match="2 lanes through the proxy of host `web-1` are more than 1"):
        compiled(shop("web -> api 443", "api -> db 5432"))


def test_lanes_that_want_one_number_both_get_another(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = [(source, (9,)) for source in range(1, 5)]

    def crowded(source: int, peers: tuple[int, ...], attempt: int = 0) -> int:
        return source * 10 + attempt if attempt or source > 2 else 7

    monkeypatch.setattr(mesh, "lane_number", crowded)
    assert [lane.number for lane in number_lanes(ends).values()] == [30, 40, 11, 21]
    assert number_lanes(ends[1:]) == {
        one: Lane(number, *one) for one, number in zip(ends[1:], (7, 30, 40), strict=True)
    }


def test_a_lane_has_the_same_number_in_every_commit() -> None:
    assert number_lanes([(1, (2, 3))])[1, (2, 3)].number == lane_number(1, (3, 2)) == 2_742_336


# Calls


def calls(*rules: str, **more: object) -> list[Call]:
    return list(compiled(shop(*rules, **more)).mesh.calls)  # type: ignore[arg-type]


def test_calls_are_those_of_local_workloads_by_port() -> None:
    here = workload("api", Match(host=("web-*",), unit=("api.service",)))
    away = workload("db", Match(host=("db-*",), unit=("db.service",)))
    assert calls("web -> api 80,8000-8100", "web -> api 8050-9000,53/udp", "web -> db 5432",
                 workloads=["web", here, away]) == [Call(API, WEB, ((80, 80), (8000, 9000)))]  # fmt: skip


def test_plaintext_that_may_come_through_a_lane_is_a_call_too() -> None:
    assert calls("web -> api 443", "web -> db 440-447 off", "web -> db 80 off", "db -> api 1 off") == sorted(
        [Call(API, WEB, ((443, 443),)), Call(DB, WEB, ((443, 443),))]
    )


def test_a_policy_without_mutual_tls_needs_no_proxy() -> None:
    found = compiled(shop("web -> api 443 off", "web -> db 5432 off"))
    assert found.mesh.is_empty
    assert "hosts/proxy" not in {rule.name for rule in found.rules.values()}


def test_everybody_in_the_mesh_has_the_spiffe_id_that_policy_gives() -> None:
    named = replace(workload("api"), spiffe="/host/{host}/api")
    found = compiled(shop("web -> api 443", workloads=["web", named, "db"]))
    assert found.mesh.svids == {WEB: "spiffe://example.org/shop/web", API: "spiffe://example.org/host/{host}/api"}
    assert {one.qualified: one.svid for one in found.workloads}["shop/api"] == "spiffe://example.org/host/{host}/api"


# The proxies themselves


def test_proxies_may_reach_each_other_where_there_is_something_to_carry() -> None:
    found = compiled(shop("web -> api 443"))
    (rule,) = (rule for rule in found.rules.values() if rule.kind == "proxy")
    assert (rule.rule_id, rule.name, rule.loc.file) == (2, "hosts/proxy", "bulkhead.yaml")
    ends = {(key.direction, key.remote_identity) for key in (found.entries | found.openings) if key[0] == PROXY}
    assert ends == {(EGRESS, PEER), (EGRESS, PROXY), (EGRESS, LEGACY), (INGRESS, PROXY), (INGRESS, LEGACY)}
    assert lookup(found, PROXY, EGRESS, PROXY, TCP, 15008) == PolicyEntry(rule.rule_id, None)
    assert lookup(found, PROXY, EGRESS, PROXY, TCP, 15009) is None


# In a bundle

MESHED = compiled(by_request(shop("web -> api 443,8000-8100", "any -> db 5432"), 1))


def test_a_mesh_comes_back_as_it_was() -> None:
    found = read(pack(MESHED))
    assert found.mesh() == MESHED.mesh
    assert unpack(pack(MESHED)).entries == MESHED.entries
    assert dict(found.openings()) == MESHED.openings


FIRST = next(key for key, entry in MESHED.entries.items() if entry.flags and key.direction == INGRESS)
OTHERS = [lane for lane in MESHED.mesh.lanes if lane.source != FIRST.local_identity]


@pytest.mark.parametrize(
    ("key", "changed"),
    [
        (FIRST, 1 << 29 | MTLS),
        (FIRST, MTLS | OTHERS[0].number),
        (FIRST._replace(direction=EGRESS), MTLS | OTHERS[0].number),
        (FIRST._replace(direction=EGRESS), MTLS | 4711),
        (FIRST._replace(protocol=UDP), MTLS),
        (FIRST._replace(remote_identity=1), MTLS),
        (FIRST._replace(local_identity=1), MTLS),
        (PolicyKey(PROXY, EGRESS, PROXY, TCP, 15009, 16), 0),
        (PolicyKey(PROXY, EGRESS, PROXY, UDP, 15008, 16), 0),
        (PolicyKey(WEB, EGRESS, PROXY, TCP, 15008, 16), 0),
    ],
)
def test_flags_and_proxies_that_no_compiler_writes_are_refused(key: PolicyKey, changed: int) -> None:
    entry = next(iter(MESHED.entries.values()))._replace(flags=changed)
    with pytest.raises(BundleError):
        read(pack(replace(MESHED, entries=MESHED.entries | {key: entry})))


ONE = MESHED.mesh.lanes[0]
CALL = MESHED.mesh.calls[0]


@pytest.mark.parametrize(
    "wrong",
    [
        replace(MESHED.mesh, lanes=(replace(ONE, number=0),)),
        replace(MESHED.mesh, lanes=(*MESHED.mesh.lanes, replace(ONE, number=(1 << 22) - 1))),
        replace(MESHED.mesh, lanes=(*MESHED.mesh.lanes, replace(ONE, number=1, source=4711))),
        replace(MESHED.mesh, lanes=(*MESHED.mesh.lanes, replace(ONE, number=1, peers=()))),
        replace(MESHED.mesh, lanes=(*MESHED.mesh.lanes, replace(ONE, number=1, peers=(API, API)))),
        replace(MESHED.mesh, calls=(replace(CALL, destination=4711),)),
        replace(MESHED.mesh, calls=(replace(CALL, source=4711),)),
        replace(MESHED.mesh, calls=(replace(CALL, ports=()),)),
        replace(MESHED.mesh, calls=(replace(CALL, ports=((2, 1),)),)),
        replace(MESHED.mesh, calls=(replace(CALL, ports=((1, 2), (2, 3))),)),
        replace(MESHED.mesh, calls=(replace(CALL, ports=((1, 65536),)),)),
        replace(MESHED.mesh, svids={}),
        replace(MESHED.mesh, svids=MESHED.mesh.svids | {WEB: "spiffe://example.org/shop/api"}),
        replace(MESHED.mesh, svids=MESHED.mesh.svids | {WEB: "https://example.org/shop/web"}),
        replace(MESHED.mesh, svids=MESHED.mesh.svids | {4711: "spiffe://example.org/a"}),
    ],
)
def test_a_mesh_that_no_compiler_writes_is_refused(wrong: Mesh) -> None:
    with pytest.raises(BundleError):
        read(pack(replace(MESHED, mesh=wrong)))
