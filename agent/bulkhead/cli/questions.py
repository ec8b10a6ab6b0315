"""`bulkhead can`: what policy says, loaded or in files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from bulkhead.cli.options import View, view_options
from bulkhead.cli.output import show, show_json
from bulkhead.errors import ExitCode, UsageError


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST:PORT")
@click.option("--policy", type=click.Path(path_type=Path), help="Ask these files instead of the agent.")
@click.option("--rev", help="A commit of the repository at --policy.")
@click.option("--inventory", type=click.Path(path_type=Path), help="Endpoints whose names may be used, with --policy.")
@view_options()
def can(view: View, source: str, target: str, policy: Path | None, rev: str | None, inventory: Path | None) -> ExitCode:
    """Say whether policy lets SRC reach DST:PORT, and by which rule.

    SRC and DST are workloads, externals, `host`, `world` or addresses; PORT is such as 443, 53/udp or icmp/echo.
    Exits with 1 when it does not.
    """
    if policy is None and (rev or inventory):
        raise UsageError("`--rev` and `--inventory` go with `--policy`")
    answer = (
        _from_agent(view, source, target) if policy is None else _from_files(source, target, policy, rev, inventory)
    )
    if view.as_json:
        show_json("Answer", answer)
    else:
        from bulkhead.cli import render

        show(view, *render.answer(answer))
    return ExitCode.OK if answer["verdict"] == "allow" else ExitCode.NO


def _from_agent(view: View, source: str, target: str) -> dict[str, Any]:
    from bulkhead.control import client
    from bulkhead.observe.question import parse_question, question_to_json

    answer: dict[str, Any] = client.call(view.socket, "can", question_to_json(parse_question(source, target)))
    return answer


def _from_files(source: str, target: str, policy: Path, rev: str | None, inventory: Path | None) -> dict[str, Any]:
    from bulkhead.cli.files import aliases, compile_policy
    from bulkhead.observe.explain import answer_to_json
    from bulkhead.observe.explain import can as ask
    from bulkhead.observe.neighbours import Neighbours
    from bulkhead.observe.question import parse_question
    from bulkhead.policy.nodes import roster

    question = parse_question(source, target)
    compiled = compile_policy(policy, rev)
    nodes = Neighbours(roster(compiled.nodes), speaks=True)
    return answer_to_json(ask(compiled, question, time.time(), aliases(compiled, inventory), nodes=nodes))
