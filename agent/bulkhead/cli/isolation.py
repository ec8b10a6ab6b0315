"""`bulkhead quarantine | release`: cut a workload off at once, outside policy, and end it."""

from __future__ import annotations

import click

from bulkhead.cli.options import View, view_options
from bulkhead.cli.output import tell
from bulkhead.control import client
from bulkhead.errors import ExitCode


@click.command()
@click.argument("workload")
@click.option("--reason", required=True, help="Why; kept with the record and shown by `status`.")
@view_options()
def quarantine(view: View, workload: str, reason: str) -> ExitCode:
    """Isolate WORKLOAD: nothing reaches it and it reaches nothing, whatever policy and mode say. Needs root.

    In force in the kernel when the command returns. Survives restarts and reboots, until `bulkhead release`.
    """
    answer = client.call(view.socket, "quarantine", {"workload": workload, "reason": reason})
    sentence = f"isolated {answer['workload']} in generation {answer['generation']}: end it with `bulkhead release`"
    tell(view, "Isolation", answer, sentence)
    return ExitCode.OK


@click.command()
@click.argument("workload")
@view_options()
def release(view: View, workload: str) -> ExitCode:
    """End the isolation of WORKLOAD: policy decides again. Needs root."""
    answer = client.call(view.socket, "release", {"workload": workload})
    tell(view, "Isolation", answer, f"released {answer['workload']} in generation {answer['generation']}")
    return ExitCode.OK
