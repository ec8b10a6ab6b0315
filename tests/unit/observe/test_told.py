"""Records of what happened with other nodes: their names, and what they tell of their own refusals."""

from __future__ import annotations

import dataclasses
import json

import pytest

from bulkhead.abi import Direction, DropReason, EventFlag, EventHook, Identity, Verdict
from bulkhead.observe.answer import can
from bulkhead.observe.explain import asked_about, decisive, explain, mismatch, why
from bulkhead.observe.flows import FlowLog, FlowRecord, record_from_json, record_to_json
from bulkhead.observe.question import Question
from bulkhead.observe.tables import tables_of
from unit.observe.build import COMMIT, T, compiled, event, identity, namer
from unit.observe.nodes import DB, REMOTE_COMMIT, SILENT, context, neighbours, records, told

TABLES = tables_of(compiled())
FROM_DB = {"direction": Direction.INGRESS, "local_identity": identity("web"), "node": DB, "source": "10.0.0.2"}


def told_record(**changed: object) -> FlowRecord:
    (found,) = records(told(**changed))
    return found


# Records


def test_what_another_node_told_is_a_record_of_its_own_that_names_it() -> None:
    own, theirs = event(node=DB), told()
    found = {one.told_by: one for one in records(own, theirs)}
    assert set(found) == {"", "other-1"}
    record = found["other-1"]
    assert (record.verdict, record.reason, record.direction, record.hook) == ("deny", "policy", "egress", "peer")
    assert (record.source, record.destination, record.node) == ("shop/web", "shop/db", "other-1")
    assert (record.generation, record.commit) == (41, COMMIT[:16])
    assert found[""].commit == COMMIT


def test_names_in_what_was_told_are_those_of_this_host_whatever_the_generation_there() -> None:
    assert told_record(generation=7, remote_identity=identity("remote")).destination == "shop/remote"


def test_a_node_that_says_no_commit_leaves_it_open() -> None:
    assert told_record(commit=(0,) * 8).commit == ""


def test_minutes_count_a_told_refusal_under_the_generation_of_this_host() -> None:
    log = FlowLog()
    log.record(told(), dataclasses.replace(context(), clock_offset_s=log.since - 900))
    assert [(cell.generation, cell.verdict) for cell in log.minutes] == [(7, "deny")]


def test_a_node_that_is_not_known_is_shown_by_its_number() -> None:
    (found,) = records(event(node=999))
    assert (found.node, found.told_by) == ("999", "")


def test_nodes_tell_records_apart_in_what_leaves_and_where_they_are_proven() -> None:
    assert len(records(event(node=DB), event(node=SILENT))) == 2
    assert len(records(event(**FROM_DB), event(**FROM_DB | {"node": SILENT}))) == 2


def test_a_claimed_node_tells_no_records_apart() -> None:
    claimed = FROM_DB | {"reason": DropReason.WIRE_MISSING, "remote_identity": Identity.UNKNOWN}
    (found,) = records(event(**claimed), event(**claimed | {"node": SILENT}))
    assert (found.count, found.node) == (2, "silent")


@pytest.mark.parametrize(
    ("remote", "address", "node"),
    [
        (Identity.LEGACY, "10.4.0.9", "printer"),
        (Identity.WORLD, "10.4.0.7", "silent"),
        (Identity.WORLD, "192.0.2.1", ""),
        (identity("db"), "10.4.0.9", ""),
    ],
)
def test_a_node_that_says_nothing_is_known_by_its_address(remote: int, address: str, node: str) -> None:
    (leaving,) = records(event(remote_identity=remote, destination=address))
    (arriving,) = records(event(remote_identity=remote, source=address, direction=Direction.INGRESS))
    assert (leaving.node, arriving.node) == (node, node)


def test_a_dump_of_an_earlier_version_is_read_without_nodes() -> None:
    log = FlowLog()
    log.record(told(), context())
    dump = json.loads(log.dump())
    for one in dump["records"]:
        del one["node"], one["told_by"]
    later = FlowLog()
    assert later.load(json.dumps(dump)) == 1
    assert (later.records()[0].node, later.records()[0].told_by) == ("", "")


def test_a_record_keeps_what_was_told_over_a_restart_and_goes_on_with_it() -> None:
    log = FlowLog()
    log.record(told(), context())
    later = FlowLog()
    later.load(log.dump())
    later.record(told(time_ns=990 * 10**9), context())
    (found,) = later.records()
    assert (found.count, found.told_by) == (2, "other-1")
    assert record_from_json(record_to_json(found)) == found


# Explanations


def test_a_told_refusal_is_explained_with_the_rules_of_the_commit_it_was_judged_by() -> None:
    found = explain(told_record(), TABLES, {}, "web-1")
    assert found.where == (
        "ingress at db on other-1, which said so (generation 41, commit 3f2c1ab); this host let it leave"
    )
    assert found.because == "default deny; no rule matched"
    assert found.destination == "db:5432 on other-1  spiffe://example.org/shop/db"
    assert found.nearest == "shop/api-db  shop.yaml:17@3f2c1ab  from: {tier: app}, not web"
    assert found.since == "3f2c1ab  generation 41 at other-1"
    assert found.note == ""


@pytest.mark.parametrize(
    ("commit", "said"),
    [
        (b"\xaa" * 8, "other-1 enforces another commit (aaaaaaa) than this host: ask there which rule comes closest"),
        (bytes(8), "other-1 did not say which commit it enforces: ask there which rule comes closest"),
    ],
)
def test_rules_of_a_commit_that_this_host_does_not_know_are_not_guessed(commit: bytes, said: str) -> None:
    record, answer = told_record(commit=tuple(commit)), can(TABLES, Question("web", "db", 5432), T)
    found = why([record], answer, TABLES, {}, "web-1", namer().of_commit)["explanation"]
    assert (found["nearest"], found["note"]) == ("", said)


def test_a_known_commit_is_found_by_its_first_digits() -> None:
    assert namer().of_commit(REMOTE_COMMIT.hex()) is not None
    assert namer().of_commit("") is None


def test_what_is_no_matter_of_policy_is_to_be_looked_for_on_the_other_node() -> None:
    found = explain(told_record(reason=DropReason.QUARANTINE), None, {}, "web-1")
    assert found.advice.startswith("on other-1: `bulkhead status` says which")
    assert found.note == ""


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (FROM_DB | {"remote_identity": identity("api")}, "it arrived from other-1, which is told why it was refused"),
        (FROM_DB | {"remote_identity": identity("api"), "protocol": 17}, "it arrived and was dropped"),
        (FROM_DB | {"remote_identity": 0, "reason": DropReason.WIRE_FORGED}, "it arrived and was dropped"),
        ({"node": DB, "flags": EventFlag.CUT}, "refused when other-1 answered, or cut later"),
        ({"node": DB, "remote_identity": 0, "reason": DropReason.WIRE_FORGED}, "refused when other-1 answered"),
        ({"node": DB, "remote_identity": 0, "reason": DropReason.WIRE_NO_ROOM}, "unknown never saw it"),
    ],
)
def test_where_it_happened_between_two_nodes(changed: dict[str, int], said: str) -> None:
    (found,) = records(event(**changed))
    assert explain(found, TABLES, {}).where.endswith(f"; {said}")


@pytest.mark.parametrize("remote", (Identity.WORLD, Identity.PEER))
def test_an_opening_that_nobody_answered_comes_close_to_rules_about_workloads(remote: Identity) -> None:
    (found,) = records(event(remote_identity=remote, node=DB, destination_port=8444, hook=EventHook.CALL))
    assert explain(found, TABLES, {}).nearest.endswith("port: 8443, not 8444")


def test_the_latest_word_of_the_callers_host_counts_whoever_said_it() -> None:
    refusal, allowed = told_record(), dataclasses.replace(told_record(), verdict="allow", told_by="")
    assert decisive([refusal, dataclasses.replace(allowed, last_seen=refusal.last_seen + 1)]).verdict == "allow"  # type: ignore[union-attr]
    assert decisive([dataclasses.replace(allowed, last_seen=refusal.last_seen - 1), refusal]) == refusal


# Questions


def test_what_was_told_is_found_by_the_workload_there_and_not_as_this_machine() -> None:
    assert asked_about(TABLES, Question("web", "db", 5432))(told_record())
    theirs = told_record(remote_identity=Identity.HOST)
    assert not asked_about(TABLES, Question("web", "host", 5432))(theirs)
    assert asked_about(TABLES, Question("web", "10.0.0.2", 5432))(theirs)


@pytest.mark.parametrize(
    ("name", "node", "is_meant"), [("remote", DB, True), ("remote", SILENT, False), ("db", SILENT, True)]
)
def test_an_opening_to_a_node_was_meant_for_those_it_may_host(name: str, node: int, is_meant: bool) -> None:
    (found,) = records(event(remote_identity=Identity.WORLD, node=node))
    assert asked_about(TABLES, Question("web", name, 5432))(found) is is_meant


@pytest.mark.parametrize(
    "changed",
    (
        {"node": 0, "destination": "192.0.2.1"},
        {"flags": EventFlag.CUT},
        {"verdict": Verdict.ALLOW},
        {"remote_identity": identity("api")},
    ),
)
def test_what_was_answered_or_went_elsewhere_was_meant_for_nobody_else(changed: dict[str, int]) -> None:
    (found,) = records(event(**{"remote_identity": Identity.WORLD, "node": DB} | changed))
    assert not asked_about(TABLES, Question("web", "db", 5432))(found)


def test_a_refusal_told_by_the_very_commit_whose_model_allows_it_is_loud() -> None:
    answer = can(TABLES, Question("web", "api", 8443), T)
    record = told_record(remote_identity=identity("api"), destination_port=8443)
    assert mismatch(record, answer) == "BH0900 model/kernel mismatch: the kernel said deny, the model says allow"
    assert mismatch(dataclasses.replace(record, commit="aaaa"), answer) == ""
    assert mismatch(dataclasses.replace(record, reason="quarantine"), answer) == ""


# The model


def ask(source: str, destination: str, port: int, protocol: str = "tcp", speaks: bool = True):  # type: ignore[no-untyped-def]
    return can(TABLES, Question(source, destination, port, protocol), T, nodes=neighbours(speaks))


def test_an_opening_to_a_node_leaves_for_any_workload_and_is_judged_by_its_host() -> None:
    answer = ask("web", "10.0.0.2", 8443)
    assert (answer.verdict, answer.source_end.rule.name) == ("allow", "shop/web-api")
    assert answer.source_end.note == "who answers on `other-1` is judged when it does"
    assert (answer.destination_end.verdict, answer.destination_end.note) == ("", "the node `other-1` judges there")


def test_without_a_word_on_the_wire_the_address_decides() -> None:
    assert ask("web", "10.0.0.2", 8443, speaks=False).verdict == "deny"
    assert ask("web", "10.0.0.2", 0, "icmp/echo").verdict == "deny"


def test_a_node_without_agent_is_legacy_and_in_no_external() -> None:
    answer = ask("10.4.0.9", "web", 443)
    assert answer.verdict == "deny"
    assert answer.source_end.note == "the node `printer` runs no agent: nothing judges there"


def test_a_workload_of_another_host_is_judged_there_by_one_that_may_host_it() -> None:
    end = ask("web", "remote", 53, "udp").destination_end
    assert (end.verdict, end.note) == ("", "`shop/remote` cannot be on `web-1`: it is judged where it runs (other-1)")
