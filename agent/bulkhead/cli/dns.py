"""`bulkhead names`: which addresses DNS names have, as workloads were told."""

from __future__ import annotations

import click

from bulkhead.cli.options import View, view_options
from bulkhead.cli.output import cell, note, show, show_json
from bulkhead.control import client
from bulkhead.errors import ExitCode


@click.command()
@view_options()
def names(view: View) -> ExitCode:
    """Show the addresses of DNS names that workloads have looked up, and for how long they still count.

    A wildcard stands for all names that were looked up under it.
    """
    answer = client.call(view.socket, "names")
    if view.as_json:
        show_json("Names", answer)
        return ExitCode.OK
    if not answer["names"]:
        note("no workload has been told an address of a name that policy knows, or all have lapsed")
        return ExitCode.OK
    from bulkhead.cli.render import table

    made = table("WORKLOAD", "NAME", "ADDRESS", "LEFT", numbers=("LEFT",))
    for row in answer["names"]:
        made.add_row(*(cell(text) for text in (row["workload"], row["name"], row["address"], f"{row['left_s']}s")))
    show(view, made)
    return ExitCode.OK
