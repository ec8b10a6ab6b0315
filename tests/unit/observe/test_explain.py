"""Explanations of recorded verdicts, down to file, line and commit."""

from __future__ import annotations

import dataclasses
import json

import pytest

from bulkhead.abi import Direction, DropReason, EventFlag, EventHook, Identity, Verdict, name_of
from bulkhead.observe.answer import Answer, can
from bulkhead.observe.explain import asked_about, completeness, decisive, explain, mismatch, why
from bulkhead.observe.flows import FlowRecord
from bulkhead.observe.names import GenerationNamer, short
from bulkhead.observe.question import Question
from bulkhead.observe.reasons import REASONS, reason_named, reason_of
from bulkhead.observe.tables import tables_of
from unit.observe.build import COMMIT, T, compiled, identity, namer, record

TABLES = tables_of(compiled())


def answer() -> Answer:
    return can(TABLES, Question("web", "db", 5432), T)


def allow(**changed: object) -> FlowRecord:
    values = {"verdict": Verdict.ALLOW, "reason": DropReason.NONE, "rule_id": 4} | changed
    return record(**values)


def test_a_default_deny_is_explained_with_the_nearest_rule() -> None:
    found = explain(record(), TABLES, {"event-ring": 0}, "web-1")
    assert found.verdict == "deny"
    assert found.source == ("web  spiffe://example.org/shop/web  pid 8123  /usr/sbin/nginx  nginx.service  uid 33")
    assert found.destination == "db:5432  spiffe://example.org/shop/db"
    assert found.where == "egress at web on web-1; db never saw it"
    assert found.because == "default deny; no rule matched"
    assert found.nearest == "shop/api-db  shop.yaml:17@3f2c1ab  from: {tier: app}, not web"
    assert found.since == "3f2c1ab  generation 7"
    assert found.data == "complete: 0 events lost"
    assert found.complete


def test_an_allow_is_explained_by_its_rule() -> None:
    found = explain(allow(), TABLES, {})
    assert found.because == "allowed by shop/api-db"
    assert found.rule == "shop/api-db  shop.yaml:17@3f2c1ab"
    assert (found.nearest, found.advice) == ("", "")


def test_lost_events_make_the_data_incomplete() -> None:
    complete, text = completeness({"event-rate": 1200, "edge": 5})
    assert not complete
    assert text == "incomplete: 1,200 events lost (1,200 event-rate); counters are exact all the same"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"hook": EventHook.CALL}, "the call failed with EPERM, no packet was made"),
        ({"flags": EventFlag.CUT}, "an open conversation was cut"),
        ({"verdict": Verdict.WOULD_DENY}, "it passed, since web is in observe mode"),
        ({"direction": Direction.INGRESS}, "it arrived and was dropped"),
    ],
)
def test_where_it_happened_is_told(changed: dict[str, int], said: str) -> None:
    assert explain(record(**changed), TABLES, {}).where.endswith(said)


def test_every_drop_reason_is_explained_with_advice() -> None:
    assert set(REASONS) == set(DropReason) - {DropReason.MAX}
    for reason, text in REASONS.items():
        assert len(text.because) > 15, reason
        assert len(text.advice) > 15, reason
        assert not text.because.endswith("."), reason
        assert text.because[0].islower() or text.because.startswith("IPv6"), reason
        assert reason_named(name_of(DropReason, reason)) is text


def test_a_reason_of_a_newer_kernel_says_so() -> None:
    assert "does not know" in reason_of(77).because
    assert "does not know" in reason_named("77").because


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_a_record_of_every_reason_can_be_explained(reason: DropReason) -> None:
    found = explain(record(reason=reason), TABLES, {})
    assert found.because == REASONS[reason].because


def test_a_rule_no_longer_known_is_said_to_be() -> None:
    found = explain(allow(generation=3, rule_id=4), None, {})
    assert found.because == "allowed by a rule no longer known"


def test_the_latest_verdict_of_an_end_counts_and_a_refusal_beats_an_allow() -> None:
    early, late = record(time_ns=10**9), record(time_ns=2 * 10**9)
    assert decisive([]) is None
    assert decisive([early, dataclasses.replace(late, verdict="allow")]) == dataclasses.replace(late, verdict="allow")
    ingress = dataclasses.replace(early, direction="ingress")
    assert decisive([ingress, dataclasses.replace(late, verdict="allow")]) == ingress


def test_why_holds_answer_records_and_explanation() -> None:
    found = why([record()], answer(), TABLES, {"event-ring": 1}, "web-1")
    assert set(found) == {"answer", "records", "explanation", "complete", "data", "mismatch"}
    assert found["explanation"]["nearest"].startswith("shop/api-db")
    assert not found["complete"]
    assert found["mismatch"] == ""
    json.dumps(found)


def test_without_records_there_is_no_explanation() -> None:
    assert why([], answer(), TABLES, {})["explanation"] is None


def test_kernel_and_model_disagree_loudly() -> None:
    assert mismatch(allow(), answer()).startswith("BH0900 model/kernel mismatch")
    assert mismatch(record(), answer()) == ""
    assert mismatch(dataclasses.replace(allow(), commit="other"), answer()) == ""


def test_records_of_a_question_are_found_by_identity_or_address() -> None:
    assert asked_about(TABLES, Question("web", "db", 5432))(record())
    assert not asked_about(TABLES, Question("web", "db", 5433))(record())
    assert not asked_about(TABLES, Question("api", "db", 5432))(record())
    outside = record(remote_identity=TABLES.class_of(compiled_address("192.0.2.9")), destination="192.0.2.9")
    assert asked_about(TABLES, Question("web", "192.0.2.9", 5432))(outside)
    assert asked_about(TABLES, Question("web", "admins", 5432))(outside)
    assert not asked_about(TABLES, Question("web", "192.0.2.8", 5432))(outside)


def compiled_address(text: str):  # type: ignore[no-untyped-def]
    from ipaddress import ip_address

    return ip_address(text)


def test_icmp_records_are_found_by_type() -> None:
    ping = record(protocol=1, destination_port=8 << 8)
    assert asked_about(TABLES, Question("web", "db", 0, "icmp/echo"))(ping)
    assert explain(ping, TABLES, {}).destination.startswith("db icmp type 8")


# Names


def test_identities_have_names_in_every_generation_known() -> None:
    made = namer()
    assert [made.identity(number) for number in range(4)] == ["unknown", "host", "ambiguous", "world"]
    assert made.identity(identity("web"), 7) == made.identity(identity("web"), 99) == "shop/web"
    assert made.identity(5_000) == "identity 5000"
    assert made.spiffe_id(identity("web")) == "spiffe://example.org/shop/web"
    assert made.spiffe_id(1) == ""


def test_rules_have_names_in_their_own_generation_only() -> None:
    made = namer()
    found = made.rule(3, 7)
    assert found is not None
    assert found.name == "shop/web-api"
    assert made.rule(3, 6) is None
    assert made.rule(0, 7) is None
    assert (made.commit(7), made.commit(6)) == (COMMIT, "")


def test_old_generations_are_forgotten() -> None:
    made = GenerationNamer(keep=2)
    for generation in (1, 2, 3):
        made.add(generation, TABLES)
    assert made.rule(3, 1) is None
    assert made.rule(3, 2) is not None


def test_classes_are_named_by_their_externals() -> None:
    made = namer()
    assert made.identity(TABLES.class_of(compiled_address("192.0.2.9"))) == "shop/admins + shop/users"
    assert short("shop/admins + shop/users") == "admins + users"


def test_a_call_refused_by_the_other_end_tells_of_the_process_that_called() -> None:
    found = explain(
        record(
            direction=Direction.INGRESS,
            hook=EventHook.CALL,
            local_identity=identity("db"),
            remote_identity=identity("web"),
            source="::",
        ),
        TABLES,
        {},
    )
    assert found.source == "web  spiffe://example.org/shop/web  pid 8123  /usr/sbin/nginx  nginx.service  uid 33"
    assert found.destination == "db:5432  spiffe://example.org/shop/db"


def test_an_outside_destination_is_told_with_its_address_before_the_caller_has_one() -> None:
    found = explain(record(hook=EventHook.CALL, remote_identity=Identity.WORLD, source="::"), TABLES, {})
    assert found.destination == "world:5432  10.0.0.2"
