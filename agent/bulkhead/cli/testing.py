"""`bulkhead test`: whether a policy does what its authors said that it would."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from socket import IPPROTO_TCP
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from bulkhead.cli.options import View, view_options
from bulkhead.cli.output import note, show_json
from bulkhead.errors import Diagnostic, ExitCode, Loc, PolicyError, UsageError

if TYPE_CHECKING:
    from bulkhead.dataplane.addresses import Address
    from bulkhead.dataplane.cluster_inventory import Cluster
    from bulkhead.dataplane.resolve import Resolved
    from bulkhead.dataplane.trials import Asked, Tables, Trial
    from bulkhead.kernel.judge import Judge
    from bulkhead.policy.model import PolicySet

Disputes = Mapping[Loc, tuple[Diagnostic, ...]]
"""Where ways of judging do not come to the same."""

JUDGED = frozenset({"BH0501", "BH0502"})
"""Findings about a policy that could be judged: a broken invariant, a failed test."""


class Case(NamedTuple):
    """One thing that was to hold: an expectation, an invariant, or the policy as a whole."""

    group: str
    """`policy`, `never` or `tests`."""
    name: str
    loc: Loc
    failures: tuple[Diagnostic, ...]
    judged: bool = True
    """False when the policy is not sound enough to tell."""


class Verdicts(NamedTuple):
    """What came of all cases, and who judged."""

    cases: tuple[Case, ...]
    code: ExitCode
    engine: str
    remark: str = ""
    """What should be known about how it was judged."""


@click.command()
@click.argument("directory", metavar="[DIR]", type=click.Path(path_type=Path), default=".")
@click.option("--rev", help="Read this commit of the repository instead of the files.")
@click.option(
    "--engine",
    type=click.Choice(("model", "kernel")),
    default="model",
    help="Who judges; kernel asks the real programs as well, which needs root.",
)
@click.option(
    "--inventory", type=click.Path(path_type=Path), help="Kubernetes objects: hold tests and invariants in them, too."
)
@view_options(("table", "json", "junit"))
def test(view: View, directory: Path, rev: str | None, engine: str, inventory: Path | None) -> ExitCode:
    """Check that the policy in DIR compiles, and that its tests and invariants hold.

    With `--inventory` they have to hold between these pods as well, whatever kind of policy decides there.

    Exits with 1 when a test, an invariant or lint finds an error, with 2 when the policy cannot be judged at all.
    """
    if engine == "kernel":
        _require_root()
    found = _verdicts(directory, rev, engine, inventory)
    if view.as_json:
        show_json("Verdicts", [_case_json(case, found.engine) for case in found.cases])
    elif view.output == "junit":
        from bulkhead.cli.junit import junit

        click.echo(junit(found.cases, found.engine), nl=False)
    else:
        for one in _failures(found.cases):
            click.echo(one.render() + "\n")
    if found.remark:
        note(found.remark)
    if view.output == "table":
        note(_summary(found.cases))
    return found.code


def _require_root() -> None:
    import os

    if os.geteuid() != 0:
        raise UsageError("`--engine kernel` loads the kernel programs, which needs root; `--engine model` does not")


def _verdicts(directory: Path, rev: str | None, engine: str, inventory: Path | None) -> Verdicts:
    from bulkhead.cli.files import read_policy
    from bulkhead.dataplane.compile import examine
    from bulkhead.dataplane.lint import lint
    from bulkhead.rego.examine import examine as examine_rego

    cluster = _cluster(inventory) if inventory else None
    try:
        policy_set = read_policy(directory, rev)
    except PolicyError as error:
        whole = Case("policy", "compiles", error.diagnostics[0].loc, error.diagnostics)
        return Verdicts((whole,), ExitCode.INVALID, engine)
    now = datetime.now(UTC)
    resolved: Resolved | None = None
    try:
        resolved, found = examine(policy_set, None, now)
    except PolicyError as error:
        found = error.diagnostics
    found = (*found, *(one for one in examine_rego(policy_set) if one.severity == "error"))
    unsound = tuple(one for one in found if one.code not in JUDGED)
    pods = Judged({})
    if cluster and not unsound:
        pods = _judged_pods(policy_set, cluster, now)
        unsound = tuple(one for one in pods.findings if one.code not in JUDGED)
    linted = tuple(one for one in lint(policy_set, now, resolved) if one.severity == "error")
    judged = _judged(resolved, found, engine) if resolved and not unsound else Judged({})
    remark = ", ".join(filter(None, (judged.remark, pods.remark)))
    found = (*found, *pods.findings)
    root = Loc("bulkhead.yaml", 1)
    cases = (
        Case("policy", "compiles", root, unsound),
        Case("policy", "lint", root, linted),
        *_invariants(policy_set, found, judged.disputes, judged=not unsound),
        *_expectations(policy_set, found, judged.disputes, judged=not unsound),
    )
    if unsound or judged.disputes:
        return Verdicts(cases, ExitCode.INVALID, engine, remark)
    return Verdicts(cases, ExitCode.NO if found or linted else ExitCode.OK, engine, remark)


class Judged(NamedTuple):
    """Where the ways of judging do not come to the same, and how much was asked."""

    disputes: Disputes
    remark: str = ""
    findings: tuple[Diagnostic, ...] = ()
    """What does not hold, beyond what was known."""


def _cluster(inventory: Path) -> Cluster:
    from bulkhead.cli.clusters import read_cluster

    return read_cluster(inventory)


def _judged_pods(policy_set: PolicySet, cluster: Cluster, now: datetime) -> Judged:
    """Tests and invariants between the pods of a cluster, as all policies of the commit together have it."""
    from bulkhead.dataplane.cluster import resolve_cluster
    from bulkhead.dataplane.cluster_checks import cluster_findings

    remark = f"judged between {len(cluster.pods):,} pods as well"
    try:
        return Judged({}, remark, cluster_findings(resolve_cluster(policy_set, cluster, now)))
    except PolicyError as error:
        return Judged({}, "", error.diagnostics)


def _judged(resolved: Resolved, found: Sequence[Diagnostic], engine: str) -> Judged:
    """Hold the compiled tables, and the kernel when it is asked, against what the rules were found to do."""
    from bulkhead.dataplane.compile import compile_resolved
    from bulkhead.dataplane.trials import Tables, broken_promises, dispute, trials

    tables = Tables(compile_resolved(resolved))
    listed = trials(resolved, tables)
    by_tables = broken_promises(listed, tables)
    by_rules = {one.loc for one in found if one.code == "BH0502"}
    by_rules |= {loc for one in found if one.code == "BH0501" for loc, _ in one.related}
    words = {True: "broken", False: "kept"}
    disputes = {
        loc: (dispute(loc, "the rules", words[loc in by_rules], "the tables", words[loc in by_tables], "this line"),)
        for loc in by_rules ^ by_tables
    }
    if engine == "model":
        return Judged(disputes)
    asked = _ask_kernel(listed, tables)
    text = f"the kernel answered {asked.questions:,} questions"
    if asked.left_out:
        text += ", evenly spread over more than can be asked"
    return Judged(disputes | asked.disputes, text)


def _ask_kernel(listed: Sequence[Trial], tables: Tables) -> Asked:
    from bulkhead.dataplane.trials import ask, stand_ins, who_is_who
    from bulkhead.kernel.judge import Judge, engine_of

    members = {member for trial in listed for side in (trial.source, trial.destination) for member in side.members}
    endpoints, addresses = stand_ins(tables.compiled, members)
    with Judge() as judge:
        engine = engine_of(judge, tables.compiled, endpoints, addresses)
        identify = partial(_identify, judge)
        misplaced = who_is_who(tables.compiled, addresses.values(), identify)
        asked = ask(listed, tables, engine)
    return asked._replace(disputes={**asked.disputes, **misplaced})


def _identify(judge: Judge, address: Address) -> int:
    """Who the kernel takes an address for."""
    return judge.egress_remote(None, address, IPPROTO_TCP, 1).remote


def _invariants(
    policy_set: PolicySet, found: Sequence[Diagnostic], disputes: Disputes, *, judged: bool
) -> Iterator[Case]:
    for never in policy_set.nevers:
        broken = tuple(one for one in found if one.code == "BH0501" and never.loc in dict(one.related))
        broken += disputes.get(never.loc, ())
        yield Case("never", f"{never.policy}/{never.name}", never.loc, broken, judged or bool(broken))


def _expectations(
    policy_set: PolicySet, found: Sequence[Diagnostic], disputes: Disputes, *, judged: bool
) -> Iterator[Case]:
    failures: dict[Loc, list[Diagnostic]] = {}
    for one in found:
        if one.code == "BH0502":
            failures.setdefault(one.loc, []).append(one)
    told: set[Loc] = set()
    for policy_test in policy_set.tests:
        for verb, wanted in (("accept", policy_test.accept), ("deny", policy_test.deny)):
            for expectation in wanted:
                # A port of several protocols is several expectations at one place.
                if expectation.loc not in told:
                    told.add(expectation.loc)
                    name = f"{policy_test.policy}: {policy_test.source.text} {verb} {expectation.text}"
                    failed = tuple(dict.fromkeys(failures.get(expectation.loc, ())))
                    failed += disputes.get(expectation.loc, ())
                    yield Case("tests", name, expectation.loc, failed, judged or bool(failed))


def _failures(cases: Iterable[Case]) -> list[Diagnostic]:
    return list(dict.fromkeys(one for case in cases for one in case.failures))


def _summary(cases: Sequence[Case]) -> str:
    parts = []
    for group, what in (("tests", "tests"), ("never", "invariants")):
        own = [case for case in cases if case.group == group]
        held = sum(case.judged and not case.failures for case in own)
        parts.append(f"{held} of {len(own)} {what} hold")
    errors = sum(len(case.failures) for case in cases if case.group == "policy")
    return ", ".join([*parts, f"{errors} other errors"] if errors else parts)


def _case_json(case: Case, engine: str) -> dict[str, Any]:
    return {
        "group": case.group,
        "engine": engine,
        "name": case.name,
        "loc": case.loc.short,
        "result": "failed" if case.failures else "passed" if case.judged else "unjudged",
        "failures": [{"code": one.code, "message": one.message, "loc": one.loc.short} for one in case.failures],
    }
