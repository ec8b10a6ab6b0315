"""What was recorded, judged under two commits."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from bulkhead.abi import Direction
from bulkhead.dataplane.difference import difference_of
from bulkhead.dataplane.halves import halves
from bulkhead.dataplane.recorded import Facts, Flow, Party, Talk
from bulkhead.dataplane.reference import Identified, Remote, Standing
from bulkhead.dataplane.replay import Edge, Effect, Replay, edges_of_reach, replay
from bulkhead.policy.model import Match, Mode, PolicySet
from property import strategies
from property.strategies import Probes
from unit.dataplane.build import NOW, external, shop, workload
from unit.dataplane.test_difference import asked, free, possible

TCP = 6


def process(name: str, unit: str = "", exe: str | None = None, uid: int | None = 0) -> Party:
    """A process of a unit; without one, only a name was recorded."""
    return Party(name, Facts("web-1", f"/system.slice/{unit}", exe, uid) if unit else None)


def outside(address: str) -> Party:
    return Party("", address=ip_address(address))


WEB, API, DB = (process(f"shop/{name}", f"{name}.service") for name in ("web", "api", "db"))


def flow(source: Party, destination: Party, port: int = 443, count: int = 1, **more: object) -> Flow:
    direction = Direction.INGRESS if source.address is not None else Direction.EGRESS
    return replace(Flow(source, destination, TCP, port, direction, count, 1000.0), **more)  # type: ignore[arg-type]


def judged(before: PolicySet, after: PolicySet, *flows: Flow) -> Replay:
    return replay(halves(before, after, NOW), flows)


def told(edge: Edge) -> tuple[str, bool, str, str, int, int]:
    return edge.effect.value, edge.enforced, edge.source, edge.destination, edge.port, edge.flows


def test_what_a_change_refuses_breaks_and_what_it_allows_is_unblocked() -> None:
    before, after = shop("web -> api 443", "api -> db 5432"), shop("web -> api 443", "web -> db 5432")
    found = judged(before, after, flow(WEB, API), flow(API, DB, 5432, 7), flow(WEB, DB, 5432, 2))
    assert [told(edge) for edge in found.edges] == [
        ("breaks", True, "shop/api", "shop/db", 5432, 7),
        ("unblocks", True, "shop/web", "shop/db", 5432, 2),
    ]
    assert [str(edge.rule.name) if edge.rule else "" for edge in found.edges] == ["shop/rule-2", "shop/rule-2"]
    assert (found.flows, found.undecided, found.by_name) == (3, 0, 0)


def test_both_ends_of_one_machine_count_once() -> None:
    one = flow(WEB, API, count=5)
    found = judged(shop("web -> api 443"), shop(), one, replace(one, direction=Direction.INGRESS, count=4))
    assert [edge.flows for edge in found.edges] == [5]


def test_live_sockets_are_listed_with_their_process() -> None:
    talks = [Talk("nginx[7]", "10.0.0.1:443"), Talk("nginx[3]", "10.0.0.1:443")]
    live = [flow(WEB, API, count=0, last_seen=0.0, talk=talk) for talk in talks]
    found = judged(shop("web -> api 443"), shop(), *live)
    (edge,) = found.edges
    assert edge.talks == (talks[1], talks[0])
    assert (edge.flows, edge.last_seen, found.flows, found.talks) == (0, 0.0, 0, 2)


def test_a_match_that_moves_a_process_breaks_what_it_did() -> None:
    before = shop("web -> api 443")
    moved = workload("web", Match(unit=("other.service",)))
    after = shop("web -> api 443", workloads=[moved, "api", "db"])
    found = judged(before, after, flow(WEB, API))
    (edge,) = found.edges
    assert (edge.effect, edge.source, edge.source_elsewhere) == (Effect.BREAKS, "shop/web", "host")


def test_an_external_that_shrinks_breaks_the_addresses_it_leaves() -> None:
    before = shop("users -> web 443", externals=[external("users", ["10.0.0.0/8"])])
    after = shop("users -> web 443", externals=[external("users", ["10.0.0.0/9"])])
    flows = [flow(outside(address), WEB) for address in ("10.200.0.1", "10.1.0.1", "192.0.2.1")]
    found = judged(before, after, *flows)
    (edge,) = found.edges
    assert (edge.source, edge.source_elsewhere, edge.addresses) == ("shop/users", "world", (ip_address("10.200.0.1"),))


def test_an_address_known_by_a_dns_name_is_judged_by_the_name() -> None:
    named = replace(external("s3", []), fqdn=("shop.s3.example.com",))
    one = flow(WEB, Party("shop/s3", address=ip_address("192.0.2.1")))
    found = judged(shop("web -> s3 443", externals=[named]), shop(externals=[named]), one)
    assert [(edge.effect, edge.destination) for edge in found.edges] == [(Effect.BREAKS, "shop/s3")]


def test_what_observe_mode_lets_pass_does_not_break() -> None:
    watched = [replace(workload(name), mode=Mode.OBSERVE) for name in ("web", "api", "db")]
    found = judged(shop("web -> api 443", workloads=watched), shop(workloads=watched), flow(WEB, API))
    assert [told(edge)[:2] for edge in found.edges] == [("breaks", False)]


def test_enforcing_breaks_what_no_rule_allows() -> None:
    watched = [replace(workload(name), mode=Mode.OBSERVE) for name in ("web", "api", "db")]
    found = judged(shop("web -> api 443", workloads=watched), shop("web -> api 443"), flow(WEB, API), flow(WEB, DB))
    (edge,) = found.edges
    assert told(edge)[:4] == ("breaks", True, "shop/web", "shop/db")
    assert edge.rule is None


@pytest.mark.parametrize(
    ("exe", "breaks", "undecided"), [("/usr/bin/a", 0, 0), ("/usr/bin/b", 1, 0), (None, 0, 1)]
)  # fmt: skip
def test_a_fact_that_was_not_recorded_leaves_it_undecided(exe: str | None, breaks: int, undecided: int) -> None:
    narrowed = workload("web", Match(unit=("web.service",), exe=("/usr/bin/a",)))
    after = shop("web -> api 443", workloads=[narrowed, "api", "db"])
    found = judged(shop("web -> api 443"), after, flow(process("shop/web", "web.service", exe), API))
    assert (len(found.edges), found.undecided) == (breaks, undecided)


def test_a_fact_that_policy_does_not_ask_anew_is_taken_from_the_name() -> None:
    by_user = workload("web", Match(unit=("web.service",), user=("www-data",)))
    before = shop("web -> api 443", workloads=[by_user, "api", "db"])
    after = replace(before, rules=())
    found = judged(before, after, flow(process("shop/web", "web.service", uid=33), API))
    assert (len(found.edges), found.undecided) == (1, 0)


def test_a_name_stands_for_what_was_recorded_of_it_elsewhere() -> None:
    named = Party("shop/api")
    assert judged(shop("web -> api 443"), shop(), flow(WEB, named)).by_name == 1
    assert judged(shop("web -> api 443"), shop(), flow(WEB, named), flow(API, DB)).by_name == 0


def test_who_is_nobody_is_undecided() -> None:
    found = judged(shop("web -> api 443"), shop(), flow(Party(""), API), flow(WEB, Party("shop/gone")))
    assert (found.edges, found.undecided) == ((), 2)


def test_a_record_that_contradicts_the_commit_it_was_made_under_is_counted() -> None:
    flows = [flow(WEB, API, passed=passed) for passed in (True, False, None)]
    assert judged(shop("web -> api 443"), shop("web -> api 443"), *flows).contradicted == 1


def test_edges_belong_to_the_reach_that_they_are_part_of() -> None:
    outer = [external("users", ["10.0.0.0/8"])]
    before = shop("web -> api 443", "users -> web 80", externals=outer)
    after = shop("web -> db 5432", externals=outer)
    both = halves(before, after, NOW)
    found = difference_of(both)
    flows = [flow(WEB, API), flow(outside("10.1.1.1"), WEB, 80), flow(WEB, DB, 5433)]
    within = edges_of_reach(found, replay(both, flows).edges)
    listed = {(one.source, one.destination): [edge.port for edge in within[at]] for at, one in enumerate(found.reach)}
    assert listed == {
        ("shop/web", "shop/api"): [443],
        ("shop/users", "shop/web"): [80],
        ("shop/web", "shop/db"): [],
    }


# Any two commits


def party(end: Remote) -> Party | None:
    """An end as the log would have it; None for one that it cannot tell of."""
    if not isinstance(end, Identified):
        return Party("", address=end)
    if end.standing is Standing.HOST:
        return Party("host", Facts("web-1", "/", "/usr/bin/none", 0))
    if end.standing is Standing.LEGACY:
        return Party("legacy", address=strategies.STRAY_ADDRESSES[0])
    if end.standing is not Standing.WORKLOAD:
        return None
    policy, _, name = end.workloads[0].partition("/")
    return Party("", Facts("web-1", "/", f"/usr/bin/{policy}-{name}", 0))


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(strategies.policy_sets(), st.integers(0, 2**32 - 1))
def test_a_replay_says_what_the_oracle_says(policy_set: PolicySet, seed: int) -> None:
    rng = Random(seed)
    enforced = free(policy_set)
    enforced = replace(enforced, workloads=tuple(replace(w, mode=Mode.ENFORCE) for w in enforced.workloads))
    before = replace(enforced, host_mode=Mode.ENFORCE)
    kept = tuple(rule for rule in before.rules if rng.random() < 0.6)
    outer = tuple(replace(e, excluded=()) if rng.random() < 0.5 else e for e in before.externals)
    both = halves(before, replace(before, rules=kept, externals=outer), strategies.NOW)
    probes = Probes.of(before, "web-1")
    for _ in range(strategies.OPENINGS):
        opening = probes.opening(rng)
        local, remote = party(opening.local), party(opening.remote)
        if local is None or remote is None or not possible(opening):
            continue
        ends = (local, remote) if opening.direction is Direction.EGRESS else (remote, local)
        found = replay(both, [Flow(*ends, opening.protocol, opening.port, opening.direction, 1, 1.0)])
        passes = [asked(half.resolved.policy_set, opening) > 0 for half in both]
        expected = {(True, False): ["breaks"], (False, True): ["unblocks"]}.get((passes[0], passes[1]), [])
        assert [edge.effect.value for edge in found.edges] == expected, opening
        assert found.undecided == 0
        event(f"changed: {bool(expected)}")
