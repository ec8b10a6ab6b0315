"""`bulkhead version`."""

from __future__ import annotations

import click

from bulkhead.cli.options import View, view_options
from bulkhead.cli.output import show_json
from bulkhead.errors import ExitCode


def package_version() -> str:
    """The version that is installed; `unknown` in a checkout that is not."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("bulkhead")
    except PackageNotFoundError:
        return "unknown"


@click.command()
@view_options()
def version(view: View) -> ExitCode:
    """Show the version, and the layout of the kernel's maps that it knows."""
    from bulkhead.abi import Abi

    found = {"version": package_version(), "layout": int(Abi.LAYOUT)}
    if view.as_json:
        show_json("Version", found)
    else:
        click.echo(f"bulkhead {found['version']} (map layout {found['layout']})")
    return ExitCode.OK
