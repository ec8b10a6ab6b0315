"""`bulkhead plan | schema`: what happens to a change before a commit is enforced."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bulkhead.cli.options import View, view_options
from bulkhead.cli.output import complain, show, show_json, write_json
from bulkhead.errors import BulkheadError, ExitCode

if TYPE_CHECKING:
    from bulkhead.cli.plan.plan import Plan

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("range_", metavar="OLD..NEW|DIR", default=".")
@click.option("--repository", type=_PATH, default=".", help="Where OLD and NEW are commits.")
@click.option("--replay", "period", metavar="PERIOD", default="", help="Judge what was recorded in it, such as 7d.")
@click.option("--flows", "exports", type=_PATH, multiple=True, help="Replay what `flows -o json` saved here instead.")
@click.option("--live", is_flag=True, help="Judge the conversations that are open on this host.")
@click.option("--inventory", type=_PATH, help="Kubernetes objects: say what changes between these pods, too.")
@click.option("--authors/--no-authors", "with_authors", default=True, help="Say who wrote what changes, or do not.")
@click.option("--detailed-exitcode", is_flag=True, help="Exit with 0 for no change, 2 for changes, 1 for an error.")
@click.option("--require-complete", is_flag=True, help="Exit with 4 when the records do not tell all of it.")
@view_options(("table", "json", "github", "junit"))
def plan(view: View, detailed_exitcode: bool, require_complete: bool, **wishes: Any) -> int:
    """Show what NEW changes about OLD: who reaches what from then on, and no longer, which rule does it, whose it is.

    DIR compares the files of a repository as they are with its last commit. The difference is exact: a rule that is
    written in another way, or that another rule covers, changes nothing. With `--replay` it says which of the recorded
    flows, and of the conversations that are open now, NEW would break, and what it would let through.
    """
    from bulkhead.cli.plan.plan import Wish
    from bulkhead.cli.plan.plan import plan as make

    try:
        made = make(Wish(**wishes, socket=view.socket))
    except BulkheadError as error:
        if not detailed_exitcode:
            raise
        complain(error, view.color)
        return 1
    _show(view, made)
    if require_complete and made.gaps:
        return ExitCode.INCOMPLETE
    return 2 if made and detailed_exitcode else ExitCode.OK


def _show(view: View, made: Plan) -> None:
    if view.as_json:
        from bulkhead.cli.plan.json import plan_json

        show_json("Plan", plan_json(made))
    elif view.output == "github":
        from bulkhead.cli.plan.markdown import markdown

        click.echo(markdown(made), nl=False)
    elif view.output == "junit":
        from bulkhead.cli.plan.junit import junit

        click.echo(junit(made), nl=False)
    else:
        from bulkhead.cli.plan.table import table

        show(view, *table(made))


@click.command()
@view_options()
def schema(view: View) -> ExitCode:  # noqa: ARG001  it has one form
    """Print the JSON Schema of the policy language, for editors."""
    from bulkhead.policy.schema import schema as generate

    write_json(generate())
    return ExitCode.OK
