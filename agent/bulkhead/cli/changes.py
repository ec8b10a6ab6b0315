"""`bulkhead test | plan | schema`: what happens to a change before a commit is enforced."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from bulkhead.cli.options import View, view_options
from bulkhead.cli.output import complain, note, show, show_json, write_json
from bulkhead.errors import BulkheadError, Diagnostic, ExitCode, Loc, PolicyError, UsageError

if TYPE_CHECKING:
    from bulkhead.dataplane.difference import Difference
    from bulkhead.policy.model import PolicySet

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
    """What came of all cases."""

    cases: tuple[Case, ...]
    code: ExitCode


@click.command()
@click.argument("directory", metavar="[DIR]", type=click.Path(path_type=Path), default=".")
@click.option("--rev", help="Read this commit of the repository instead of the files.")
@view_options(("table", "json", "junit"))
def test(view: View, directory: Path, rev: str | None) -> ExitCode:
    """Check that the policy in DIR compiles, and that its tests and invariants hold.

    Exits with 1 when a test, an invariant or lint finds an error, with 2 when the policy cannot be judged at all.
    """
    found = _verdicts(directory, rev)
    if view.as_json:
        show_json("Verdicts", [_case_json(case) for case in found.cases])
    elif view.output == "junit":
        from bulkhead.cli.junit import junit

        click.echo(junit(found.cases), nl=False)
    else:
        for one in _failures(found.cases):
            click.echo(one.render() + "\n")
        note(_summary(found.cases))
    return found.code


def _verdicts(directory: Path, rev: str | None) -> Verdicts:
    from bulkhead.cli.files import read_policy
    from bulkhead.policy.lint import lint

    try:
        policy_set = read_policy(directory, rev)
    except PolicyError as error:
        whole = Case("policy", "compiles", error.diagnostics[0].loc, error.diagnostics)
        return Verdicts((whole,), ExitCode.INVALID)
    now = datetime.now(UTC)
    found = _refusals(policy_set, now)
    unsound = tuple(one for one in found if one.code not in JUDGED)
    linted = tuple(one for one in lint(policy_set, now) if one.severity == "error")
    root = Loc("bulkhead.yaml", 1)
    cases = (
        Case("policy", "compiles", root, unsound),
        Case("policy", "lint", root, linted),
        *_invariants(policy_set, found, judged=not unsound),
        *_expectations(policy_set, found, judged=not unsound),
    )
    if unsound:
        return Verdicts(cases, ExitCode.INVALID)
    return Verdicts(cases, ExitCode.NO if found or linted else ExitCode.OK)


def _refusals(policy_set: PolicySet, now: datetime) -> tuple[Diagnostic, ...]:
    from bulkhead.dataplane.compile import compile_commit

    try:
        compile_commit(policy_set, None, now)
    except PolicyError as error:
        return error.diagnostics
    return ()


def _invariants(policy_set: PolicySet, found: Sequence[Diagnostic], *, judged: bool) -> Iterator[Case]:
    for never in policy_set.nevers:
        broken = tuple(one for one in found if one.code == "BH0501" and never.loc in dict(one.related))
        yield Case("never", f"{never.policy}/{never.name}", never.loc, broken, judged or bool(broken))


def _expectations(policy_set: PolicySet, found: Sequence[Diagnostic], *, judged: bool) -> Iterator[Case]:
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


def _case_json(case: Case) -> dict[str, Any]:
    return {
        "group": case.group,
        "name": case.name,
        "loc": case.loc.short,
        "result": "failed" if case.failures else "passed" if case.judged else "unjudged",
        "failures": [{"code": one.code, "message": one.message, "loc": one.loc.short} for one in case.failures],
    }


@click.command()
@click.argument("range_", metavar="OLD..NEW|DIR", default=".")
@click.option("--repository", type=click.Path(path_type=Path), default=".", help="Where OLD and NEW are commits.")
@click.option("--detailed-exitcode", is_flag=True, help="Exit with 0 for no change, 2 for changes, 1 for an error.")
@view_options(("table", "json", "github"))
def plan(view: View, range_: str, repository: Path, detailed_exitcode: bool) -> int:
    """Show what NEW changes about OLD: who reaches what from then on, and no longer, and which rule does it.

    DIR compares the files of a repository as they are with its last commit. The difference is exact: a rule that is
    written in another way, or that another rule covers, changes nothing.
    """
    try:
        found = _difference(range_, repository)
    except BulkheadError as error:
        if not detailed_exitcode:
            raise
        complain(error, view.color)
        return 1
    _show_plan(view, found)
    return 2 if found and detailed_exitcode else 0


def _difference(range_: str, repository: Path) -> Difference:
    from bulkhead.dataplane.difference import difference
    from bulkhead.policy.parse import ParseCache, parse
    from bulkhead.policy.source import REPOSITORY_BYTES_MAX, read_commit, read_directory

    if Path(range_).is_dir():
        sources = read_commit(Path(range_), "HEAD"), read_directory(Path(range_))
    else:
        before, after = _revisions(range_)
        sources = read_commit(repository, before), read_commit(repository, after)
    # Most files are the same in both.
    cache = ParseCache(REPOSITORY_BYTES_MAX)
    old, new = (parse(one, cache) for one in sources)
    return difference(old, new, datetime.now(UTC))


def _revisions(text: str) -> tuple[str, str]:
    before, dots, after = text.partition("..")
    if not dots or after.startswith("."):
        raise UsageError(f"`{text}` is neither a directory nor two commits, such as `main..HEAD`")
    return before or "HEAD", after or "HEAD"


def _show_plan(view: View, found: Difference) -> None:
    from bulkhead.cli import plans

    if view.as_json:
        show_json("Plan", plans.plan_json(found))
    elif view.output == "github":
        click.echo(plans.github(found), nl=False)
    else:
        show(view, *plans.table(found))


@click.command()
@view_options()
def schema(view: View) -> ExitCode:  # noqa: ARG001  it has one form
    """Print the JSON Schema of the policy language, for editors."""
    from bulkhead.policy.schema import schema as generate

    write_json(generate())
    return ExitCode.OK
