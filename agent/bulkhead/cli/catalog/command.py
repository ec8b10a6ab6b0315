"""`bulkhead catalog`: what talks to what, by policy and as it was seen."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bulkhead.cli.options import View, view_options
from bulkhead.cli.output import note, show_json
from bulkhead.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from bulkhead.dataplane.catalog import Catalogue
    from bulkhead.dataplane.usage import Observed


@click.command()
@click.argument("directory", metavar="[DIR]", type=click.Path(path_type=Path), default=".")
@click.option("--rev", help="Read this commit of the repository instead of the files.")
@click.option("--flows", type=click.Path(path_type=Path), help="Flows saved with `bulkhead flows -o json`.")
@click.option("--live", is_flag=True, help="Flows that the running agent recorded.")
@click.option("--policy", metavar="NAME", help="Only what concerns this policy.")
@view_options(("markdown", "json", "html"))
def catalog(
    view: View, directory: Path, rev: str | None, flows: Path | None, live: bool, policy: str | None
) -> ExitCode:
    """Show what talks to what: each workload with who may call it, whom it may call, and what protects it.

    With flows beside it, unused rules and undeclared conversations are marked. Exits with 4 when flows are missing
    from the data.
    """
    from bulkhead.cli.files import read_policy
    from bulkhead.dataplane.catalog import catalogue, narrowed
    from bulkhead.dataplane.compile import compile_commit

    if flows and live:
        raise UsageError("`--flows` and `--live` are two sources of flows: choose one")
    now = datetime.now(UTC)
    policy_set = read_policy(directory, rev)
    # A policy that would be refused says nothing of what may talk.
    compile_commit(policy_set, None, now)
    observed = _observed(view, flows, live, policy_set.commit)
    found = catalogue(policy_set, now, observed)
    _write(view, narrowed(found, policy) if policy else found)
    if observed is None or observed.complete:
        return ExitCode.OK
    note(observed.missing[0])
    return ExitCode.INCOMPLETE


def _observed(view: View, flows: Path | None, live: bool, commit: str) -> Observed | None:
    from bulkhead.cli.catalog.flows import from_agent, from_file

    if live:
        return from_agent(view.socket, commit, time.time())
    return from_file(flows, commit) if flows else None


def _write(view: View, found: Catalogue) -> None:
    if view.as_json:
        from bulkhead.cli.catalog.json import as_json

        show_json("Catalog", as_json(found))
    elif view.output == "html":
        from bulkhead.cli.catalog.html import html

        click.echo(html(found), nl=False)
    else:
        from bulkhead.cli.catalog.markdown import markdown

        click.echo(markdown(found), nl=False)
