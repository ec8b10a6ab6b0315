"""`bulkhead suggest`: a policy to review, from what was recorded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bulkhead.cli.options import View, view_options
from bulkhead.cli.output import note
from bulkhead.errors import ExitCode, UnreachableError, UsageError

if TYPE_CHECKING:
    from bulkhead.observe.suggest import Suggestion, Wish
    from bulkhead.policy.source import Sources

STDOUT = "-"
_LOW_SHOWN = 10


@click.command()
@click.option(
    "--since", "period", metavar="PERIOD", help="Only what was recorded in it, such as 24h; all unless given."
)
@click.option("--for", "workloads", metavar="WORKLOAD", multiple=True, help="Only what this workload or unit does.")
@click.option("--flows", "export", type=click.Path(path_type=Path), help="What `flows -o json` saved here instead.")
@click.option(
    "--directory", type=click.Path(path_type=Path), default=".", help="The policy that it is to be added to; else `.`."
)
@click.option("-o", "target", metavar="FILE|-", default=STDOUT, help="Where to write it; a file must be new.")
@view_options(())
def suggest(
    view: View, period: str | None, workloads: tuple[str, ...], export: Path | None, directory: Path, target: str
) -> ExitCode:
    """Write a policy for what was recorded and no rule allows, to be reviewed and committed. Changes nothing.

    Rules are never wider than what was seen; the comment above each says how well it is founded. Programs without a
    workload get one, in observe mode.
    """
    from bulkhead.observe.flows import record_from_json
    from bulkhead.observe.suggest import suggest as make

    if target != STDOUT and Path(target).exists():
        raise UsageError(f"`{target}` exists: name a new file, or remove it")
    answer = _answer(view, export)
    wish, since = _wish(answer, period, workloads, is_here=export is None)
    records = [record_from_json(one) for one in answer["records"]]
    found = make(_sources(directory), [one for one in records if one.last_seen >= since], wish)
    _say(found, wish)
    if found.text:
        _write(target, found.text)
    return ExitCode.OK


def _answer(view: View, export: Path | None) -> Any:
    if export is not None:
        from bulkhead.cli.plan.plan import read_export

        return read_export(export)
    from bulkhead.control import client

    return client.call(view.socket, "flows")


def _wish(answer: Any, period: str | None, workloads: tuple[str, ...], *, is_here: bool) -> tuple[Wish, float]:
    """What is asked for, and since when (Unix seconds). Raises UsageError for what is no flow log."""
    from datetime import UTC, datetime

    from bulkhead.observe.evidence import recorded
    from bulkhead.observe.filters import parse_age
    from bulkhead.observe.suggest import Wish, no_timers
    from bulkhead.observe.timers import timer_of

    log = answer.get("log") if isinstance(answer, dict) else None
    at, began = (log.get(key) for key in ("at", "since")) if isinstance(log, dict) else (None, None)
    if not isinstance(at, int | float) or not isinstance(began, int | float):
        raise UsageError("this flow log does not say which time it tells of")
    asked_s = parse_age(period) if period else at - began
    coverage = recorded(answer, asked_s, "").coverage
    timers = timer_of if is_here else no_timers
    return Wish(coverage.host, workloads, coverage, timers, datetime.now(UTC)), at - asked_s


def _sources(directory: Path) -> Sources:
    from bulkhead.policy.source import read_directory

    return read_directory(directory)


def _say(found: Suggestion, wish: Wish) -> None:
    from bulkhead.observe.evidence import age_text
    from bulkhead.observe.scores import Level

    covered = age_text(wish.coverage.covered_s)
    if not found.text:
        note(f"nothing to suggest from {covered} on {wish.host}")
    else:
        note(f"{len(found.rules)} rules from {found.edges} edges, recorded in {covered} on {wish.host}")
    low = [one for one in found.rules if one.score.level is Level.LOW]
    for one in low[:_LOW_SHOWN]:
        note(f"LOW confidence: {one.source} -> {one.destination} {one.port} ({'; '.join(one.score.reasons)})")
    if len(low) > _LOW_SHOWN:
        note(f"LOW confidence: {len(low) - _LOW_SHOWN} more")
    for gap in wish.coverage.gaps:
        note(f"incomplete: {gap}")
    if found.left_out:
        note(f"left out: {len(found.left_out)} kinds of traffic" + (", listed at its top" if found.text else ""))


def _write(target: str, text: str) -> None:
    if target == STDOUT:
        click.echo(text, nl=False)
        return
    try:
        with Path(target).open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UnreachableError(f"cannot write `{target}`: {error.strerror}") from error
    note(f"wrote {target}: review it, run `bulkhead test`, commit it")
