"""`bulkhead try | confirm | revert`: enforce a commit for a while, and let it go by itself unless somebody confirms."""

from __future__ import annotations

import time

import click

from bulkhead.cli.options import View, view_options
from bulkhead.cli.output import tell
from bulkhead.control import client
from bulkhead.errors import ExitCode, UsageError

_COMPILE_TIMEOUT_S = 150.0
"""A large policy is compiled, and perhaps fetched, before the answer."""


@click.command("try")
@click.argument("revision")
@click.option("--timeout", default="120s", show_default=True, help="How long, such as 90s or 5m.")
@view_options()
def try_(view: View, revision: str, timeout: str) -> ExitCode:
    """Enforce the commit REVISION until it is confirmed, or until the time is up. Needs root.

    Nobody confirms: the kernel goes back to what was enforced before, also when the agent is dead. Confirm from a login
    made after this command: an old connection says nothing about whether you can still get in.
    """
    from bulkhead.observe.filters import parse_age

    seconds = parse_age(timeout)
    if seconds != int(seconds):
        raise UsageError(f"`{timeout}` is not a whole number of seconds")
    args = {"revision": revision, "seconds": int(seconds)}
    answer = client.call(view.socket, "try", args, timeout_s=_COMPILE_TIMEOUT_S)
    left = max(0, round(answer["until"] - time.time()))
    sentence = (
        f"ENFORCING {answer['commit'][:7]}, was {answer['before'][:7]}. Run `bulkhead confirm` from a NEW login. "
        f"Reverting in {left} s"
    )
    tell(view, "Trial", answer, sentence)
    return ExitCode.OK


@click.command()
@view_options()
def confirm(view: View) -> ExitCode:
    """Let the commit that is tried stay. Needs root, and a login made after the trial began."""
    answer = client.call(view.socket, "confirm")
    tell(view, "Trial", answer, f"{answer['commit'][:7]} stays; generation {answer['generation']}")
    return ExitCode.OK


@click.command()
@view_options()
def revert(view: View) -> ExitCode:
    """End a trial now: what was enforced before is enforced again. Needs root."""
    answer = client.call(view.socket, "revert")
    sentence = f"back from {answer['commit'][:7]} to {answer['before'][:7]}; generation {answer['generation']}"
    tell(view, "Trial", answer, sentence)
    return ExitCode.OK
