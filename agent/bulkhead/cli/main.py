"""`bulkhead`: finds the command, and turns errors into words and exit codes.

Commands are imported when they are called: the command line starts fast, and the agent holds nothing that only another
command needs.
"""

from __future__ import annotations

import importlib
import keyword
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

import click

from bulkhead.cli.options import TABLE_OR_JSON, View, add_view_options, merged
from bulkhead.cli.output import complain
from bulkhead.errors import BulkheadError, ExitCode

COMMANDS: Final = {
    "status": "live",
    "drops": "live",
    "flows": "live",
    "rules": "live",
    "why": "live",
    "requests": "requests",
    "proxy": "running",
    "can": "questions",
    "trace": "tracing",
    "workloads": "live",
    "names": "dns",
    "matrix": "offline",
    "lint": "offline",
    "fmt": "format",
    "test": "testing",
    "plan": "changes",
    "suggest": "suggesting",
    "enforce": "enforcing",
    "observe": "enforcing",
    "report": "reporting",
    "verify": "source",
    "catalog": "catalog.command",
    "schema": "changes",
    "rollback": "source",
    "try": "trying",
    "confirm": "trying",
    "revert": "trying",
    "quarantine": "isolation",
    "release": "isolation",
    "wire": "wire",
    "identity": "identity",
    "doctor": "doctor",
    "agent": "running",
    "loader": "running",
    "detach": "running",
    "reload": "running",
    "version": "version",
}
"""Commands, and the module of this room that each is in."""


def _attribute(command: str) -> str:
    """What a command is called in its module: `try` is a word of Python's."""
    return f"{command}_" if keyword.iskeyword(command) else command


class LazyGroup(click.Group):
    """Imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  likewise
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        found: click.Command = getattr(importlib.import_module(f"bulkhead.cli.{module}"), _attribute(cmd_name))
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            close = get_close_matches(args[0], COMMANDS, n=1)
            hint = f": did you mean `{close[0]}`?" if close else ""
            raise click.UsageError(f"no command `{args[0]}`{hint}", ctx)
        return super().resolve_command(ctx, args)


def _group(**options: Any) -> None:
    """Zero-trust segmentation: what this host enforces, what it refused, and why."""
    context = click.get_current_context()
    context.obj = merged(View(), options)


cli = LazyGroup(
    "bulkhead",
    callback=_group,
    params=list(click.command()(add_view_options(lambda **_: None, (*TABLE_OR_JSON, "wide", "inventory"))).params),
    help=_group.__doc__,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def run(arguments: Sequence[str]) -> int:
    """Runs a command line; returns its exit code."""
    color = "--no-color" not in arguments
    try:
        # Not `cli.main`: it ends the process itself when the reader of a pipe has gone.
        with cli.make_context("bulkhead", list(arguments)) as context:
            found = cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        return int(stop.exit_code)
    except click.ClickException as error:
        error.show()
        return int(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return int(ExitCode.INTERRUPTED)
    except BulkheadError as error:
        complain(error, color)
        return int(error.exit_code)
    except BrokenPipeError:
        # Whoever read has seen enough; nothing may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.OK)
    except Exception as error:  # noqa: BLE001  the last resort: words for people, a traceback for those who ask
        if {"-v", "--verbose"} & set(arguments):
            import traceback

            traceback.print_exc()
        complain(error, color)
        return int(ExitCode.UNREACHABLE)
    return int(found or ExitCode.OK)


def main() -> None:
    """The `bulkhead` command."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
