"""`bulkhead wire`: keys of nodes, and who the nodes are."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bulkhead.cli.options import View, view_options
from bulkhead.cli.output import cell, note, show, show_json
from bulkhead.errors import ExitCode

if TYPE_CHECKING:
    from rich.table import Table


@click.group()
def wire() -> None:
    """Identity on the wire: this node's key, and the nodes."""


@wire.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File to write, which must not exist.")
@click.option(
    "--passphrase-file", required=True, type=click.Path(path_type=Path), help="File whose first line protects the key."
)
@view_options()
def keygen(view: View, out: Path, passphrase_file: Path) -> ExitCode:
    """Make a node's private key, and print the line with the public one for its `kind: Node` record."""
    import base64

    from bulkhead import keyd
    from bulkhead.secret_files import read_passphrase, write_secret

    file, public = keyd.generate(read_passphrase(passphrase_file))
    write_secret(out, file)
    text = base64.b64encode(public).decode()
    if view.as_json:
        show_json("NodeKey", {"file": str(out), "key": text})
    else:
        click.echo(f"key: {text}")
    return ExitCode.OK


@wire.command()
@view_options()
def nodes(view: View) -> ExitCode:
    """Show the nodes, and the records that do not count. Exits with 4 when they may be out of date."""
    from bulkhead.control import client

    answer = client.call(view.socket, "nodes")
    if view.as_json:
        show_json("Nodes", answer)
    else:
        if answer["nodes"]:
            show(view, _table(answer["nodes"], time.time()))
        for one in answer["refused"]:
            note(f"does not count: {one['name']}: {one['detail']}")
        if answer["registry"]["problem"]:
            note(f"as last known: {answer['registry']['problem']}")
        elif not answer["nodes"]:
            note("no node has a record")
    return ExitCode.OK if answer["known"] and answer["registry"]["is_fresh"] else ExitCode.INCOMPLETE


def _table(found: list[dict[str, Any]], now: float) -> Table:
    from bulkhead.cli.render import table

    made = table("NODE", "NUMBER", "ADDRESSES", "KEY", "SILENT", "KEYS", "SOURCE", numbers=("NUMBER",))
    for one in found:
        key = one["key"][:8] + "…" if one["key"] else "no agent"
        silent = "by address" if one["unknown"] == "address" else "refused"
        keys = "this node" if one["own"] else _left(one["keys_until"], now)
        texts = (one["name"], one["number"], ", ".join(one["addresses"]), key, silent, keys, one["source"])
        made.add_row(*map(cell, texts))
    return made


def _left(until: float | None, now: float) -> str:
    return "-" if until is None else f"for {max(0.0, until - now) / 3600:.0f} h"
