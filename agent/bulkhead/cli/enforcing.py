"""`bulkhead enforce | observe`: the mode of a workload, changed where policy lives: in the files of a work tree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from bulkhead.cli.options import View, view_options
from bulkhead.cli.output import note, show_json
from bulkhead.errors import BulkheadError, ExitCode, UsageError

if TYPE_CHECKING:
    from bulkhead.dataplane.recorded import Party
    from bulkhead.observe.evidence import Evidence
    from bulkhead.policy.model import Mode, PolicySet, Workload

LOST_MAX: Final = 0.01
"""The share of events that may be lost before records count as incomplete."""
TRAILER: Final = "Bulkhead-Incomplete-Data"
_PATH = click.Path(path_type=Path)


@dataclass(frozen=True, slots=True)
class Change:
    """A mode that moves."""

    workload: str
    file: str
    line: int
    before: str
    after: str
    revision: str
    """The commit that the work tree is based on; empty when there is none."""


@dataclass(frozen=True, slots=True)
class Objections:
    """What speaks against enforcing."""

    against: tuple[str, ...] = ()
    """What is known to fail, or to break."""
    missing: tuple[str, ...] = ()
    """What the records do not tell. Goes with a reason."""


@click.command()
@click.argument("workloads", metavar="WORKLOAD...", nargs=-1, required=True)
@click.option("--directory", type=_PATH, default=".", help="The policy's work tree; else `.`.")
@click.option(
    "--since", "period", metavar="PERIOD", default="24h", help="Of what was recorded in it, nothing may break."
)
@click.option("--accept-incomplete", "reason", metavar="REASON", help="Go on though the records do not tell all of it.")
@view_options()
def enforce(view: View, workloads: Sequence[str], directory: Path, period: str, reason: str | None) -> ExitCode:
    """Write `mode: enforce` for WORKLOAD into the files of a work tree. Nothing is enforced until it is committed.

    Refuses, with exit code 1, when a test or lint fails, when the agent has recorded what it would break, and when the
    records are incomplete and no reason is given to go on.
    """
    from bulkhead.observe.filters import parse_age
    from bulkhead.policy.model import Mode

    if reason is not None and not reason.strip():
        raise UsageError("`--accept-incomplete` wants a reason")
    policy_set, chosen = _chosen(directory, workloads)
    moving = [one for one in chosen if one.mode is not Mode.ENFORCE]
    found = _objections(view, directory, policy_set, moving, parse_age(period)) if moving else Objections()
    refused = [*found.against, *(() if reason else found.missing)]
    if refused:
        return _refuse(view, refused, only_missing=not found.against)
    said = " ".join(reason.split()) if reason and found.missing else ""
    remark = f"enforced on incomplete data: {_printable(said)}" if said else ""
    changes = [_write(directory, one, Mode.ENFORCE, remark) for one in moving]
    for gap in found.missing:
        note(f"incomplete, accepted: {gap}")
    _show(view, directory, chosen, changes, said)
    return ExitCode.OK


@click.command()
@click.argument("workloads", metavar="WORKLOAD...", nargs=-1, required=True)
@click.option("--directory", type=_PATH, default=".", help="The policy's work tree; else `.`.")
@view_options()
def observe(view: View, workloads: Sequence[str], directory: Path) -> ExitCode:
    """Write `mode: observe` for WORKLOAD into the files of a work tree: committed, it refuses nothing any more."""
    from bulkhead.policy.model import Mode

    _, chosen = _chosen(directory, workloads)
    changes = [_write(directory, one, Mode.OBSERVE, "") for one in chosen if one.mode is not Mode.OBSERVE]
    _show(view, directory, chosen, changes, "")
    return ExitCode.OK


def _chosen(directory: Path, names: Iterable[str]) -> tuple[PolicySet, list[Workload]]:
    """The policy in the files, and the workloads of these names. Raises UsageError for one that is not exactly one."""
    from bulkhead.policy.parse import parse
    from bulkhead.policy.source import read_directory

    policy_set = parse(read_directory(directory))
    chosen = {one.qualified: one for name in names for one in [_named(policy_set, name)]}
    return policy_set, list(chosen.values())


def _named(policy_set: PolicySet, name: str) -> Workload:
    found = [one for one in policy_set.workloads if name in (one.qualified, one.name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"`{name}` is several workloads: {', '.join(one.qualified for one in found)}")
    if name == "host":
        raise UsageError("the mode of the host is `hosts.mode` in bulkhead.yaml: change it there")
    from difflib import get_close_matches

    close = get_close_matches(name, [text for one in policy_set.workloads for text in (one.qualified, one.name)], n=1)
    raise UsageError(f"no workload is called `{name}`" + (f": did you mean `{close[0]}`?" if close else ""))


# What speaks against it


def _objections(
    view: View, directory: Path, policy_set: PolicySet, moving: Sequence[Workload], period_s: float
) -> Objections:
    from bulkhead.cli.offline import findings

    refused, found = findings(directory, None)
    errors = [one for one in found if one.severity == "error"]
    against = tuple(f"{one.code}: {one.message} ({one.loc})" for one in errors)
    if refused:
        return Objections(against)
    evidence, missing = _evidence(view, period_s)
    if evidence is None:
        return Objections(against, missing)
    missing += tuple(_unknown(policy_set, evidence, moving))
    return Objections((*against, *_broken(policy_set, evidence, moving)), missing)


def _evidence(view: View, period_s: float) -> tuple[Evidence | None, tuple[str, ...]]:
    """What the agent recorded, and what is missing from it."""
    from bulkhead.control import client
    from bulkhead.observe.evidence import recorded

    try:
        answer = client.call(view.socket, "flows")
    except BulkheadError as error:
        return None, (f"the agent does not tell what it recorded: {error}",)
    share = _lost_share(answer)
    # Losses within bounds are no gap here; every other one is.
    evidence = recorded({**answer, "lost": {}}, period_s, "")
    gaps = evidence.coverage.gaps
    if share > LOST_MAX:
        gaps += (f"{share:.1%} of events were lost",)
    return evidence, gaps


def _lost_share(answer: Any) -> float:
    """The share of judgements that an agent could not tell of, since its counters began."""
    from bulkhead.observe.explain import EVENT_LOSSES

    lost, totals = answer.get("lost", {}), answer.get("totals", {})
    missing = float(sum(lost.get(source, 0) for source in EVENT_LOSSES))
    return missing / max(missing, float(sum(totals.values())), 1.0)


def _unknown(policy_set: PolicySet, evidence: Evidence, moving: Iterable[Workload]) -> Iterator[str]:
    """Workloads that the records tell nothing of."""
    from bulkhead.dataplane.compile import compile_resolved
    from bulkhead.dataplane.resolve import resolve

    host = evidence.coverage.host
    compiled = compile_resolved(resolve(policy_set, host, _now()))
    here = {one.qualified for one in compiled.workloads if one.local}
    parties = {party for flow in evidence.flows for party in (flow.source, flow.destination)}
    seen = {party.name for party in parties} | set(_selected(policy_set, parties))
    for one in moving:
        if one.qualified not in here:
            yield f"{one.qualified} cannot be on {host}, where the records are from"
        elif one.qualified not in seen:
            yield f"nothing was recorded of {one.qualified} on {host}"


def _selected(policy_set: PolicySet, parties: Iterable[Party]) -> Iterator[str]:
    """The workloads that select, by now, who was recorded as the host."""
    from bulkhead.identity.selectors import Endpoint, Identified, classify

    for facts in {party.facts for party in parties if party.facts is not None and party.name == "host"}:
        found = classify(policy_set.workloads, Endpoint(facts.host, facts.cgroup, facts.exe, facts.uid, gid=facts.gid))
        if isinstance(found, Identified):
            yield found.workload.qualified


def _broken(policy_set: PolicySet, evidence: Evidence, moving: Sequence[Workload]) -> Iterator[str]:
    """Recorded edges that the new modes would cut, by the rules as they are in the files."""
    import time

    from bulkhead.dataplane.halves import halves
    from bulkhead.dataplane.replay import Effect, replay
    from bulkhead.observe.evidence import age_text
    from bulkhead.observe.flows import protocol_name
    from bulkhead.policy.model import Mode

    names = {one.qualified for one in moving}
    workloads = tuple(
        replace(one, mode=Mode.ENFORCE) if one.qualified in names else one for one in policy_set.workloads
    )
    both = halves(policy_set, replace(policy_set, workloads=workloads), _now())
    theirs = [flow for flow in evidence.flows if {flow.source.name, flow.destination.name} & names]
    if undecided := replay(both, theirs).undecided:
        yield f"{undecided} records of it cannot be decided: an end of them has no name that policy knows"
    for edge in replay(both, evidence.flows).edges:
        if edge.effect is Effect.BREAKS and edge.enforced:
            last = age_text(max(0.0, time.time() - edge.last_seen))
            addresses = f" ({', '.join(map(str, edge.addresses[:3]))})" if edge.addresses else ""
            port = f"{edge.port}/{protocol_name(edge.protocol)}"
            yield f"breaks {edge.source} -> {edge.destination}{addresses} {port}: {edge.flows} events, last {last} ago"


def _now() -> Any:
    from datetime import UTC, datetime

    return datetime.now(UTC)


def _refuse(view: View, reasons: Sequence[str], *, only_missing: bool) -> ExitCode:
    if view.as_json:
        show_json("ModeChange", {"changes": [], "refused": list(reasons), "next": []})
    for reason in reasons:
        note(f"refused: {reason}")
    if only_missing:
        note("`--accept-incomplete REASON` goes on, and records the reason")
    elif any(reason.startswith("breaks ") for reason in reasons):
        note("`bulkhead suggest` writes rules for what is meant")
    return ExitCode.NO


# The edit


def _write(directory: Path, workload: Workload, mode: Mode, remark: str) -> Change:
    """Changes the file. Raises BulkheadError, having written nothing, unless the result says what it should."""
    from bulkhead.cli.format import replace_file
    from bulkhead.errors import UnreachableError
    from bulkhead.policy.modes import set_mode
    from bulkhead.policy.parse import parse
    from bulkhead.policy.source import SourceFile, blob_id, read_directory

    sources = read_directory(directory)
    file = next(one for one in sources.files if one.path == workload.loc.file)
    content = set_mode(file.content, workload.policy, workload.name, mode, remark)
    changed = SourceFile(file.path, blob_id(content), content)
    files = tuple(changed if one is file else one for one in sources.files)
    wanted = {one.qualified: one.mode for one in parse(sources).workloads} | {workload.qualified: mode}
    found = {one.qualified: one.mode for one in parse(replace(sources, files=files)).workloads}
    if found != wanted:
        raise BulkheadError(f"{file.path}: the edit would change something else; this is a fault of bulkhead's")
    try:
        replace_file(directory / file.path, content)
    except OSError as error:
        raise UnreachableError(f"`{directory / file.path}` cannot be written: {error.strerror}") from error
    return Change(workload.qualified, file.path, workload.loc.line, str(workload.mode), str(mode), _revision(directory))


def _revision(directory: Path) -> str:
    from bulkhead.policy import git

    try:
        return git.resolve(git.git_directory(directory), "HEAD", directory)
    except BulkheadError:
        return ""


def _printable(text: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in text)


def _show(view: View, directory: Path, chosen: Sequence[Workload], changes: Sequence[Change], accepted: str) -> None:
    trailer = f"{TRAILER}: {_printable(accepted)}" if accepted else ""
    steps = _next_steps(directory, changes, trailer)
    if view.as_json:
        data = {"changes": [asdict(one) for one in changes], "refused": [], "trailer": trailer, "next": steps}
        show_json("ModeChange", data)
        return
    moved = {one.workload for one in changes}
    for one in changes:
        base = f" on {one.revision[:7]}" if one.revision else ""
        click.echo(f"{one.workload}: {one.before} -> {one.after}  {one.file}:{one.line}{base}")
    for workload in chosen:
        if workload.qualified not in moved:
            note(f"{workload.qualified} is in {workload.mode} already")
    if steps:
        note("nothing is in force until it is committed; next:")
    for step in steps:
        note(f"  {step}")


def _next_steps(directory: Path, changes: Sequence[Change], trailer: str) -> list[str]:
    if not changes:
        return []
    from shlex import join, quote

    what = f"{changes[0].after} {', '.join(one.workload for one in changes)}"
    commit = ["git", "-C", str(directory), "commit", "-am", what, *(["--trailer", trailer] if trailer else [])]
    plan = f"bulkhead plan HEAD~1..HEAD --repository {quote(str(directory))} --replay 24h"
    return [join(commit), plan, "bulkhead try HEAD --timeout 120s"]
