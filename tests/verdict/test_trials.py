"""`bulkhead test --engine kernel`: tests and invariants judged by the real programs."""

from __future__ import annotations

from random import Random
from xml.etree import ElementTree

import pytest

from bulkhead.cli.main import run
from bulkhead.dataplane.compile import compile_resolved
from bulkhead.dataplane.trials import Tables, ask, stand_ins, trials, who_is_who
from bulkhead.kernel.judge import Judge, engine_of
from lab.drawn import drawn_policy
from lab.repository import POLICIES
from unit.dataplane.test_trials import RANGE, resolved, without

Captured = pytest.CaptureFixture[str]


def test_the_kernel_holds_the_example_to_its_promises(judge: Judge, capfd: Captured) -> None:
    assert run(["test", str(POLICIES), "--engine", "kernel", "-o", "junit"]) == 0
    out, err = capfd.readouterr()
    root = ElementTree.fromstring(out)
    assert (root.get("tests"), root.get("failures")) == ("18", "0")
    assert {one.get("value") for one in root.iter("property") if one.get("name") == "engine"} == {"kernel"}
    assert "the kernel answered" in err


@pytest.mark.parametrize("seed", range(20))
def test_the_kernel_answers_as_the_tables_do(judge: Judge, seed: int) -> None:
    found = resolved(drawn_policy(Random(seed)))
    compiled = compile_resolved(found)
    tables = Tables(compiled)
    everybody = {workload.identity for workload in compiled.workloads} | compiled.classes.keys()
    endpoints, addresses = stand_ins(compiled, everybody)
    engine = engine_of(judge, compiled, endpoints, addresses)
    assert not who_is_who(compiled, addresses.values(), lambda one: judge.egress_remote(None, one, 6, 1).remote)
    asked = ask(trials(found, tables), tables, engine)
    assert asked.questions > 50
    assert not asked.disputes


def test_a_kernel_that_holds_other_entries_is_told_of(judge: Judge) -> None:
    found = resolved(RANGE)
    compiled = compile_resolved(found)
    tables = Tables(compiled)
    engine = engine_of(
        judge, without(compiled, "t/r1"), stand_ins(compiled, {w.identity for w in compiled.workloads})[0]
    )
    asked = ask(trials(found, tables), tables, engine)
    (test,) = found.policy_set.tests
    assert test.accept[0].loc in asked.disputes
