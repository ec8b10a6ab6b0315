"""`bulkhead requests`: what went through the node's proxy; and `bulkhead why REFERENCE`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from bulkhead.cli.options import View, view_options
from bulkhead.cli.output import show, show_json
from bulkhead.errors import ExitCode

if TYPE_CHECKING:
    from rich.table import Table

Json = dict[str, Any]

_STYLES = {"allow": "", "deny": "red", "fail": "yellow"}


@click.command()
@click.option("--limit", type=click.IntRange(1, 5000), default=20, show_default=True, help="The latest so many.")
@click.option("--denied", is_flag=True, help="Only those that were refused.")
@view_options()
def requests(view: View, limit: int, denied: bool) -> ExitCode:
    """Show what went through the proxy: process, SVIDs, rule and verdict of each conversation and request."""
    from bulkhead.control import client

    answer = client.call(view.socket, "requests", {"limit": 5000 if denied else limit})
    if denied:
        answer["requests"] = [one for one in answer["requests"] if one["verdict"] == "deny"][:limit]
    if view.as_json:
        show_json("Requests", answer)
    else:
        show(view, _table(answer["requests"], time.time()))
    return ExitCode.OK


def _table(found: list[Json], now: float) -> Table:
    from bulkhead.cli.output import cell
    from bulkhead.cli.render import age, table

    made = table("LAST", "KIND", "FROM", "TO", "REQUEST", "VERDICT", "RULE")
    for one in found:
        record = one["record"]
        asked = " ".join(filter(None, (record["method"], record["path"], str(record["status"] or ""))))
        texts = (age(one["at"], now), record["kind"], _short(record["caller"]), _short(record["called"]), asked)
        verdict = cell(one["verdict"], _STYLES[one["verdict"]])
        made.add_row(*map(cell, texts), verdict, cell(", ".join(one["rules"]) or record["failure"] or "-"))
    return made


def _short(spiffe_id: str) -> str:
    return spiffe_id.removeprefix("spiffe://").partition("/")[2] or "-"


def why_request(view: View, reference: str) -> ExitCode:
    """Explain a request by the reference that its refusal came with. Exits with 1 when it was refused."""
    from bulkhead.control import client

    answer = client.call(view.socket, "requests", {"reference": reference})
    (request,) = answer["requests"]
    if view.as_json:
        show_json("Request", answer)
    else:
        _explain(view, request, answer["explanation"])
    return ExitCode.NO if request["verdict"] == "deny" else ExitCode.OK


def _explain(view: View, request: Json, said: Json | None) -> None:
    from bulkhead.cli.output import cell
    from bulkhead.cli.render import age, pairs

    words = {"deny": "DENIED", "allow": "ALLOWED", "fail": "FAILED"}
    head = cell(words[request["verdict"]], _STYLES[request["verdict"]])
    head += cell(f"  {age(request['at'], time.time())} ago, status {request['record']['status']}")
    process, told = request["process"], said or {}
    who = " ".join(filter(None, (process["comm"], process["pid"] and f"pid {process['pid']}", process["cgroup"])))
    lines = [
        ("request", told.get("request", "")),
        ("from", told.get("source", "")),
        ("to", told.get("destination", "")),
    ]
    lines += [("process", who), ("because", told.get("because", "")), ("rule", told.get("rule", ""))]
    lines += [("nearest", one) for one in told.get("nearest", ())]
    lines.append(("commit", told.get("since", "")))
    show(view, head, pairs([(label, cell(text)) for label, text in lines if text]))
