"""Tests and invariants judged on compiled entries: the same as on rules, and told when not."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from random import Random

import pytest

from bulkhead.dataplane.compile import Compiled, compile_resolved, examine, lookup
from bulkhead.dataplane.resolve import Resolved, resolve
from bulkhead.dataplane.trials import Tables, ask, broken_promises, stand_ins, trials, who_is_who
from bulkhead.errors import Loc
from bulkhead.policy.parse import parse
from bulkhead.policy.source import SourceFile, Sources
from lab.drawn import drawn_policy
from lab.policies import policy, repository

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def resolved(text: str) -> Resolved:
    files = (("bulkhead.yaml", repository()), ("drawn.yaml", text))
    return resolve(
        parse(Sources("", tuple(SourceFile(path, "", content.encode()) for path, content in files))), None, NOW
    )


def without(compiled: Compiled, rule: str) -> Compiled:
    """The tables as if a rule had been forgotten."""
    number = next(number for number, info in compiled.rules.items() if info.name == rule)
    entries = {key: entry for key, entry in compiled.entries.items() if entry.rule_id != number}
    assert len(entries) < len(compiled.entries)
    return replace(compiled, entries=entries)


@pytest.mark.parametrize("seed", range(150))
def test_rules_and_tables_come_to_the_same(seed: int) -> None:
    found = resolved(drawn_policy(Random(seed)))
    _, findings = examine(found.policy_set, None, NOW)
    by_rules = {one.loc for one in findings if one.code == "BH0502"}
    by_rules |= {loc for one in findings if one.code == "BH0501" for loc, _ in one.related}
    tables = Tables(compile_resolved(found))
    assert broken_promises(trials(found, tables), tables) == by_rules


RANGE = policy(
    "web -> api 8000-8100",
    externals={"net": "{cidr: [192.0.2.0/24]}"},
    more='tests:\n  - {from: web, accept: ["api:8000-8100"], deny: ["api:7999", "api:8101", "net:any"]}\n',
)


def test_the_ends_of_a_range_and_what_is_beyond_are_asked_about() -> None:
    found = resolved(RANGE)
    tables = Tables(compile_resolved(found))
    seen: set[tuple[int, int]] = set()

    def engine(compiled: Compiled, local: int, direction: int, remote: int, protocol: int, port: int):
        seen.add((protocol, port))
        return lookup(compiled, local, direction, remote, protocol, port)

    asked = ask(trials(found, tables), tables, engine)
    assert not asked.disputes
    assert not asked.left_out
    assert {(6, port) for port in (7998, 7999, 8000, 8100, 8101, 8102, 1, 65535)} <= seen
    assert {(1, 0), (58, 65535), (17, 1)} <= seen
    assert (6, 0) not in seen


def test_an_engine_that_answers_otherwise_is_told_of() -> None:
    found = resolved(RANGE)
    compiled = compile_resolved(found)
    tables, broken = Tables(compiled), without(compiled, "t/r1")
    asked = ask(trials(found, tables), tables, lambda _, *question: lookup(broken, *question))
    (test,) = found.policy_set.tests
    assert asked.disputes.keys() == {each.loc for each in (*test.accept, *test.deny[:2])}
    texts = [one.message for one in asked.disputes[test.accept[0].loc]]
    assert any("t/web to t/api, protocol 6, port 8000: allowed by `t/r1`, and refused" in text for text in texts)
    assert {one.code for found in asked.disputes.values() for one in found} == {"BH0911"}


def test_a_forgotten_rule_breaks_what_is_promised() -> None:
    found = resolved(RANGE)
    tables = Tables(without(compile_resolved(found), "t/r1"))
    (test,) = found.policy_set.tests
    assert broken_promises(trials(found, tables), tables) == {test.accept[0].loc}


def test_more_pairs_than_can_be_asked_about_are_sampled() -> None:
    found = resolved(drawn_policy(Random(3)))
    tables = Tables(compile_resolved(found))
    everything = ask(trials(found, tables), tables, lookup)
    sampled = ask(trials(found, tables), tables, lookup, limit=100)
    assert sampled.left_out
    assert not everything.left_out
    assert 0 < sampled.questions < everything.questions


def test_every_workload_of_plain_words_and_every_class_has_a_stand_in() -> None:
    compiled = compile_resolved(resolved(drawn_policy(Random(1))))
    identities = {workload.identity for workload in compiled.workloads} | compiled.classes.keys()
    endpoints, addresses = stand_ins(compiled, identities)
    assert [one.name for one in endpoints] == ["drawn/web", "drawn/api", "drawn/job"]
    assert len(addresses) >= 3


def test_an_address_that_is_taken_for_somebody_else_is_told_of() -> None:
    compiled = compile_resolved(resolved(drawn_policy(Random(1))))
    _, addresses = stand_ins(compiled, compiled.classes)
    found = who_is_who(compiled, addresses.values(), lambda _: 1)
    assert list(found) == [Loc("bulkhead.yaml", 1)]
    assert {one.code for one in found[Loc("bulkhead.yaml", 1)]} == {"BH0911"}
