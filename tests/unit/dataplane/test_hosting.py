"""Nodes and what they may host: numbers of `host` globs, openings to nodes, and who is seen from another machine."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_address, ip_network

import pytest

from bulkhead.abi import Direction, Identity
from bulkhead.dataplane import reference
from bulkhead.dataplane.compile import Compiled, PolicyEntry, PolicyKey, compile_commit, examine, identity_name, lookup
from bulkhead.dataplane.difference import difference
from bulkhead.dataplane.halves import halves
from bulkhead.dataplane.hosting import host_set_id
from bulkhead.dataplane.recorded import Facts, Flow, Party
from bulkhead.dataplane.reference import Identified, Standing
from bulkhead.dataplane.replay import replay
from bulkhead.dataplane.resolve import Limits
from bulkhead.dataplane.trials import Tables, broken_promises, trials
from bulkhead.errors import PolicyError
from bulkhead.policy.model import Match, PolicySet
from bulkhead.policy.nodes import Node, Unknown
from unit.dataplane.build import NOW, external, policy_test, shop, workload
from unit.dataplane.test_compile import API, DB, HOST, TCP, WEB

EGRESS, INGRESS = int(Direction.EGRESS), int(Direction.INGRESS)
PEER, LEGACY = int(Identity.PEER), int(Identity.LEGACY)
SAME_NUMBER = ("web-4e7c", "web-6dcf")


def on(name: str, *globs: str, line: int = 1) -> object:
    return workload(name, Match(host=globs, unit=(f"{name}.service",)), line)


def compiled(policy_set: PolicySet, host: str | None = "web-1") -> Compiled:
    return compile_commit(policy_set, host, NOW)


# Numbers of globs


def test_globs_have_one_number_however_they_are_ordered() -> None:
    found = compiled(shop(workloads=[on("web", "b-*", "a"), on("api", "a", "b-*", "a"), "db"]))
    assert found.hosting == {WEB: host_set_id(("a", "b-*")), API: host_set_id(("a", "b-*")), DB: 0}
    assert found.host_sets == {host_set_id(("a", "b-*")): ("a", "b-*")}


def test_the_number_is_the_first_four_bytes_of_a_hash() -> None:
    assert host_set_id(("web-*",)) == 0xABAA694D
    assert host_set_id(()) == 0


def test_workloads_of_other_hosts_have_their_numbers_too_and_pods_none() -> None:
    pods = workload("pay", Match(namespace=("shop",)))
    found = compiled(shop(workloads=[on("web", "elsewhere"), "api", pods]))
    assert found.hosting.keys() == {WEB, API}
    assert not next(each for each in found.workloads if each.identity == WEB).local


def test_different_globs_of_one_number_are_refused_with_both_lines() -> None:
    one, other = SAME_NUMBER
    assert host_set_id((one,)) == host_set_id((other,))
    with pytest.raises(PolicyError) as refused:
        compiled(shop(workloads=[on("web", one, line=3), on("api", other, line=7), on("db", one, line=9)]))
    (found,) = refused.value.diagnostics
    assert (found.code, found.loc.line, [loc.line for loc, _ in found.related]) == ("BH0603", 7, [3])


def test_too_many_addresses_of_nodes_are_refused() -> None:
    wide = Node("wide", 1, tuple(map(ip_network, ("10.0.0.1", "10.0.0.2"))), None, origin="n.yaml:7")
    gone = replace(wide, name="gone", revoked=True)
    one = Node("one", 2, (ip_network("10.0.0.3"),), None, origin="n.yaml:1")
    policy_set = replace(shop(), nodes=(wide, one, gone))
    with pytest.raises(PolicyError, match="3 addresses of nodes are more than the 2 that fit") as refused:
        compile_commit(policy_set, None, NOW, Limits(node_prefixes=2))
    assert (refused.value.diagnostics[0].code, refused.value.diagnostics[0].loc.line) == ("BH0701", 7)
    assert compile_commit(policy_set, None, NOW).nodes == policy_set.nodes


# Openings


def test_an_opening_leaves_where_a_rule_leads_to_any_workload() -> None:
    found = compiled(shop("web -> api+db 443 off", "host -> api 22", "web -> host 80", "users -> web 443",
                          "web -> users 25", "web -> legacy 9100", "web -> world 53",
                          externals=[external("users", ["192.0.2.0/24"])]))  # fmt: skip
    assert found.openings == {
        PolicyKey(WEB, EGRESS, PEER, TCP, 443, 16): PolicyEntry(1, None),
        PolicyKey(HOST, EGRESS, PEER, TCP, 22, 16): PolicyEntry(2, None),
    }
    assert PEER not in {key.remote_identity for key in found.entries}


def test_openings_are_those_of_the_workloads_that_can_be_here() -> None:
    found = compiled(shop("web -> api 443 off", "api -> web 80 off", workloads=[on("web", "elsewhere"), "api"]))
    assert {key.local_identity for key in found.openings} == {API}


def test_an_opening_lasts_as_long_as_the_longest_lived_rule_around_it() -> None:
    soon, later = NOW + timedelta(hours=1), NOW + timedelta(hours=2)
    found = compiled(shop(("web -> api 443", soon), ("web -> db 443", later), ("web -> api 8000", soon),
                          "web -> db 8000-8007", ("web -> db 9", soon), "web -> api 9"))  # fmt: skip
    lasting = {(key.port, key.port_bits): (entry.rule_id, entry.deadline) for key, entry in found.openings.items()
               if key.local_identity == WEB}  # fmt: skip
    assert lasting == {
        (443, 16): (2, later.timestamp()),
        (8000, 16): (4, None),
        (8000, 13): (4, None),
        (9, 16): (6, None),
    }


def test_openings_count_against_what_fits() -> None:
    policy_set = shop("web -> api 443")
    assert compiled(policy_set, None).sizes.policy_entries == 3
    compile_commit(policy_set, None, NOW, Limits(policy_entries=3))
    with pytest.raises(PolicyError, match="3 entries on all hosts are more than the 2 that fit"):
        compile_commit(policy_set, None, NOW, Limits(policy_entries=2))


# Legacy


def test_legacy_is_judged_at_the_other_end_and_is_no_part_of_the_world() -> None:
    found = compiled(shop("legacy -> web 9100", "web -> legacy 514", "world -> api 443"))
    about = {key[:3] for key in found.entries if LEGACY in key[:3:2]}
    assert about == {(WEB, INGRESS, LEGACY), (WEB, EGRESS, LEGACY)}
    assert lookup(found, API, INGRESS, LEGACY, TCP, 443) is None
    assert identity_name(found, LEGACY) == "legacy"


@pytest.mark.parametrize(
    ("never", "broken"), [("legacy -> web", True), ("world -> web", False), ("legacy -> api", False)]
)
def test_a_never_about_legacy_is_checked(never: str, broken: bool) -> None:
    _, findings = examine(shop("legacy -> web 9100", nevers=[never]), None, NOW)
    assert ["lets `legacy` reach `shop/web`" in found.message for found in findings] == [True] * broken


def test_a_test_may_name_legacy_and_the_tables_agree() -> None:
    good = policy_test("legacy", accept=["web:9100"], deny=["web:443", "api:9100"])
    policy_set = shop("legacy -> web 9100", "world -> web 443", tests=[good])
    tables = compiled(policy_set, None)
    both = halves(policy_set, policy_set, NOW)
    listed = trials(both.new.resolved, Tables(tables))
    assert len(listed) == 3
    assert broken_promises(listed, Tables(tables)) == frozenset()


@pytest.mark.parametrize(("rule", "ends"), [
    ("legacy -> web 9100", ("legacy", "shop/web")), ("web -> legacy 514", ("shop/web", "legacy")),
])  # fmt: skip
def test_a_plan_names_legacy(rule: str, ends: tuple[str, str]) -> None:
    for before, after, kind in ((shop(), shop(rule), "gained"), (shop(rule), shop(), "lost")):
        (reach,) = difference(before, after, NOW).reach
        assert (reach.kind.value, reach.source, reach.destination, reach.addresses) == (kind, *ends, ())
        assert [str(each.name) for each in reach.rules] == ["shop/rule-1"]


def test_openings_are_nobodys_reach() -> None:
    found = difference(shop("web -> api 443"), shop("web -> api 443", "web -> db 443"), NOW)
    assert [(each.source, each.destination) for each in found.reach] == [("shop/web", "shop/db")]


@pytest.mark.parametrize("party", [Party("legacy", address=ip_address("10.0.0.9")), Party("legacy")])
def test_what_was_recorded_of_legacy_is_judged_as_it(party: Party) -> None:
    web = Party("shop/web", Facts("web-1", "/system.slice/web.service", None, 0))
    flow = Flow(party, web, TCP, 9100, Direction.INGRESS, 5, 1000.0)
    found = replay(halves(shop("legacy -> web 9100"), shop("world -> web 9100"), NOW), [flow])
    assert [(edge.effect.value, edge.source, edge.flows) for edge in found.edges] == [("breaks", "legacy", 5)]


# Who is seen from another machine

ADDRESS = ip_address("10.0.0.1")
NODE = Node("web-1", 7, (ip_network("10.0.0.1"),), bytes(range(32)))
SAID = Identified(Standing.WORKLOAD, ("shop/web",))
UNKNOWN = Identified(Standing.UNKNOWN)


@pytest.mark.parametrize(
    ("node", "said", "seen"),
    [
        (None, SAID, ADDRESS),
        (replace(NODE, revoked=True), SAID, ADDRESS),
        (replace(NODE, key=None), None, Identified(Standing.LEGACY)),
        (NODE, None, UNKNOWN),
        (replace(NODE, unknown=Unknown.ADDRESS), None, ADDRESS),
        (NODE, SAID, SAID),
        (replace(NODE, name="db-1"), SAID, UNKNOWN),
        (NODE, Identified(Standing.WORKLOAD, ("shop/pay",)), UNKNOWN),
        (NODE, Identified(Standing.WORKLOAD, ("shop/gone",)), UNKNOWN),
        (NODE, Identified(Standing.HOST), ADDRESS),
        (NODE, UNKNOWN, UNKNOWN),
    ],
)
def test_who_a_remote_is(node: Node | None, said: Identified | None, seen: reference.Remote) -> None:
    written = [on("web", "web-*"), workload("pay", Match(namespace=("shop",)))]
    assert reference.seen_from_afar(shop(workloads=written), node, said, ADDRESS) == seen


def test_a_first_packet_leaves_for_a_workload_an_address_or_a_node_without_agent() -> None:
    policy_set = shop("web -> api 443", "web -> net 25", "web -> legacy 9100",
                      externals=[external("net", ["10.0.0.0/24"])])  # fmt: skip
    leaving = {
        (wanted, key is None)
        for wanted in (443, 25, 9100, 80)
        for key in (NODE.key, None)
        if reference.may_leave(policy_set, "h", SAID, replace(NODE, key=key), ADDRESS, (TCP, wanted), NOW)
    }
    assert leaving == {(443, False), (25, False), (9100, True)}
