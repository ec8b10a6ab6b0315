"""`bulkhead trace`: who judges on the way, by the policy in force or of a real probe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from bulkhead.cli.options import View, view_options
from bulkhead.cli.output import cell, note, show, show_json
from bulkhead.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from bulkhead.observe.question import Question

_TIMEOUT_S: Final = 2.0
_EXITS: Final = {"allow": ExitCode.OK, "deny": ExitCode.NO, "would-deny": ExitCode.NO}
_STYLES: Final = {"verified": "green", "nothing": "yellow", "unknown": "yellow", "not reached": "dim"}


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST:PORT")
@click.option("--probe", is_flag=True, help="Send a real opening from SRC's own control group. Root only.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, 5, min_open=True),
    default=_TIMEOUT_S,
    show_default=True,
    help="Seconds that a probe waits.",
)
@view_options()
def trace(view: View, source: str, target: str, probe: bool, timeout_s: float) -> ExitCode:
    """Show who judges what goes from SRC to DST:PORT, one after the other, and what each says.

    With --probe, SRC is a workload that runs here, and DST an address or the name of a host: one connection is opened
    and closed at once (with PORT/udp one empty datagram sent) by a process called `bulkhead-probe`. Exits with 1 when
    it is refused, with 4 when what became of it is not known.
    """
    from bulkhead.observe.question import parse_question

    question = parse_question(source, target)
    answer = _probed(view, question, timeout_s) if probe else _modelled(view, question)
    if view.as_json:
        show_json("Trace", answer)
    else:
        show(view, _table(answer["steps"]))
        for line in _notes(answer):
            note(line)
    return _EXITS.get(answer["verdict"], ExitCode.INCOMPLETE)


def _modelled(view: View, question: Question) -> dict[str, Any]:
    from bulkhead.control import client
    from bulkhead.observe.question import question_to_json

    answer: dict[str, Any] = client.call(view.socket, "trace", question_to_json(question))
    return answer


def _probed(view: View, question: Question, timeout_s: float) -> dict[str, Any]:
    from dataclasses import asdict, replace
    from pathlib import Path

    from bulkhead.cli.probing import Place, Report, Target, send
    from bulkhead.control import client
    from bulkhead.observe.question import question_to_json

    question = replace(question, destination=_address(question))
    begun = client.call(view.socket, "probe", question_to_json(question) | {"timeout_s": timeout_s})
    place = Place(Path(begun["cgroup"]), Path(begun["netns"]), begun["comm"])
    target, token = Target(question.destination, question.port, question.protocol), {"token": begun["token"]}
    report = Report(0, "not sent", 0.0)
    try:
        report = send(place, target, timeout_s, lambda: client.call(view.socket, "probe-entered", token))
    finally:
        answer: dict[str, Any] = client.call(view.socket, "probed", asdict(report) | token)
    return answer


def _address(question: Question) -> str:
    """The destination as an address: the first that its name has."""
    import socket

    from bulkhead.observe.tables import parse_address

    if parse_address(question.destination) is not None:
        return question.destination
    try:
        found = socket.getaddrinfo(question.destination, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"`{question.destination}` is neither an address nor the name of a host: {error}") from error
    address = str(found[0][4][0])
    note(f"{question.destination} is {address}")
    return address


def _table(steps: list[dict[str, Any]]) -> Table:
    from bulkhead.cli.render import STYLES, table

    made = table("", "JUDGE", "WHAT", "VERDICT", "BECAUSE", "TIME", numbers=("TIME",))
    for step in steps:
        style = _STYLES.get(step["verdict"], STYLES.get(step["verdict"], ""))
        ms = f"{step['ms']:.1f} ms" if step["ms"] is not None else ""
        because = "  ".join(filter(None, (step["rule"], step["because"])))
        words = (step["step"], step["judge"], step["what"])
        made.add_row(*map(cell, words), cell(step["verdict"], style), cell(because), cell(ms))
    return made


def _notes(answer: dict[str, Any]) -> list[str]:
    from bulkhead.cli.render import lost

    nearest = dict.fromkeys(f"nearest: {step['nearest']}" for step in answer["steps"] if step["nearest"])
    missing = lost(answer["lost"])
    return [*nearest, *([missing] if missing else [])]
