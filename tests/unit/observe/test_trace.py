"""Each judge on the way: what the model says of it, and what a probe shows."""

from __future__ import annotations

from typing import Any

import pytest

from bulkhead.abi import DropReason, EventFlag, EventHook, Identity, Verdict
from bulkhead.observe import trace
from bulkhead.observe.answer import can
from bulkhead.observe.explain import explain
from bulkhead.observe.question import Directory, Question
from bulkhead.observe.tables import tables_of
from unit.observe.build import T, compiled, event, identity
from unit.observe.nodes import DB, neighbours, records, told

TABLES = tables_of(compiled())
WIRE = trace.Wire(neighbours(), "", lambda node: node.number == DB)
MUTE = trace.Wire(neighbours(speaks=False), "no `node_key` is set", lambda _: False)
SEEN = {"verdict": Verdict.ALLOW, "reason": DropReason.NONE, "destination_port": 8443}
API = identity("api")


def model(destination: str, port: int, protocol: str = "tcp", wire: trace.Wire = WIRE) -> list[trace.Step]:
    question = Question("web", destination, port, protocol)
    answer, directory = can(TABLES, question, T, nodes=wire.nodes), Directory(TABLES)
    return trace.model(answer, directory.subject("web"), directory.subject(destination), wire)


def probed(outcome: str, *raw: bytes, destination: str = "10.0.0.2", port: int = 8443) -> list[trace.Step]:
    return trace.probe(model(destination, port), seen(outcome, *raw))


def seen(outcome: str, *raw: bytes) -> trace.Probed:
    record = next(iter(records(*raw)), None)
    return trace.Probed(outcome, 0.4, record, explain(record, TABLES, {}) if record is not None else None)


def verdicts(steps: list[trace.Step]) -> list[str]:
    return [step.verdict for step in steps]


# The model


@pytest.mark.parametrize(
    ("destination", "port", "said", "because"),
    [
        ("10.0.0.2", 8443, "says who", "a key is shared with the node: each end is told who the other is"),
        ("10.4.0.7", 8443, "deny", "no key is shared with the node"),
        ("10.4.0.9", 8443, "by address", "the node runs no agent: it is the entity `legacy`"),
        ("10.6.0.1", 8443, "by address", "no registered node is at 10.6.0.1"),
        ("users", 443, "by address", "`shop/users` is known by address"),
        ("remote", 53, "says who", "on another node, if that is other-1"),
        ("api", 8443, "says who", "on another node, if that is other-1, silent"),
    ],
)
def test_what_is_between_two_hosts_is_a_judge_too(destination: str, port: int, said: str, because: str) -> None:
    _, wire, _ = model(destination, port)
    assert (wire.what, wire.verdict, wire.because) == ("wire", said, because)


def test_the_ends_are_judged_by_their_rules_or_elsewhere() -> None:
    source, _, destination = model("10.0.0.2", 8443)
    assert (source.verdict, source.rule) == ("allow", "shop/web-api  shop.yaml:16@3f2c1ab")
    assert (destination.verdict, destination.because) == ("elsewhere", "the node `other-1` judges there")
    refused, *_ = model("10.0.0.2", 8444)
    assert refused.verdict == "deny"
    assert refused.nearest.endswith("port: 8443, not 8444")


def test_a_host_that_says_nothing_knows_addresses_alone() -> None:
    _, wire, _ = model("10.0.0.2", 443, wire=MUTE)
    assert wire.verdict == "by address"
    assert wire.because == "this host says nothing on the wire: no `node_key` is set"
    assert [step.what for step in model("api", 8443, wire=MUTE)] == ["egress", "ingress"]


def test_icmp_says_nobodys_identity() -> None:
    assert model("10.0.0.2", 0, "icmp/echo")[1].because == "icmp/echo carries no identity"


# A probe


def test_a_probe_that_was_let_in_names_who_answered() -> None:
    steps = probed("connected", event(**SEEN, rule_id=2, remote_identity=API, node=DB))
    assert verdicts(steps) == ["allow", "verified", "allow"]
    assert steps[1].because == "`api` answered, proven by other-1"
    assert (steps[2].judge, steps[2].ms) == ("api on other-1", 0.4)


def test_a_refusal_that_was_told_says_whose_and_by_which_commit() -> None:
    steps = probed("reset", told(destination_port=8443, remote_identity=identity("db")))
    assert verdicts(steps) == ["allow", "verified", "deny"]
    assert steps[2].judge == "db on other-1"
    assert steps[2].because == "default deny; no rule matched (generation 41, commit 3f2c1ab)"
    assert steps[2].nearest


@pytest.mark.parametrize(
    ("outcome", "raw", "expected"),
    [
        ("refused", {"hook": EventHook.CALL, "remote_identity": Identity.PEER}, "deny, not reached, not reached"),
        ("timeout", {"reason": DropReason.WIRE_FORGED, "remote_identity": 0}, "allow, deny, allow"),
        ("timeout", {"reason": DropReason.WIRE_NO_ROOM, "remote_identity": 0}, "allow, deny, not reached"),
        ("timeout", {"flags": EventFlag.CUT, "remote_identity": identity("db")}, "deny, verified, allow"),
        ("connected", SEEN | {"remote_identity": Identity.WORLD}, "allow, by address, allow"),
        (
            "connected",
            SEEN | {"verdict": Verdict.WOULD_DENY, "remote_identity": API},
            "would-deny, verified, allow",
        ),
    ],
)
def test_what_was_recorded_says_which_judge_refused(outcome: str, raw: dict[str, Any], expected: str) -> None:
    steps = probed(outcome, event(**{"destination_port": 8443, "node": DB} | raw))
    assert ", ".join(verdicts(steps)) == expected


@pytest.mark.parametrize(
    ("outcome", "expected", "known"),
    [
        ("refused", ["deny", "not reached", "not reached"], "deny"),
        ("connected", ["allow", "unknown", "allow"], "allow"),
        ("reset", ["allow", "nothing", "unknown"], "unknown"),
        ("timeout", ["allow", "nothing", "unknown"], "unknown"),
        ("ENETUNREACH", ["allow", "nothing", "unknown"], "unknown"),
    ],
)
def test_without_a_record_only_what_the_socket_saw_is_said(outcome: str, expected: list[str], known: str) -> None:
    assert verdicts(probed(outcome)) == expected
    assert trace.verdict(seen(outcome)) == known


def test_a_probe_that_policy_would_refuse_in_enforce_mode_says_so() -> None:
    passed = event(**SEEN | {"verdict": Verdict.WOULD_DENY}, remote_identity=API, node=DB)
    assert trace.verdict(seen("connected", passed)) == "would-deny"


def test_steps_are_numbered_from_one() -> None:
    assert [one["step"] for one in trace.steps_to_json(model("10.0.0.2", 8443))] == [1, 2, 3]
