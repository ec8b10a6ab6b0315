"""Options that every command takes, before its name or after it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from bulkhead.config import DEFAULT_RUN_DIR

TABLE_OR_JSON = ("table", "json")


@dataclass(frozen=True, slots=True)
class View:
    """How a command was asked to answer, and whom to ask."""

    output: str = "table"
    run_dir: Path = DEFAULT_RUN_DIR
    color: bool = True
    """False: none, even on a terminal."""
    verbose: bool = False

    @property
    def socket(self) -> Path:
        """The agent's control socket."""
        return self.run_dir / "control.sock"

    @property
    def as_json(self) -> bool:
        return self.output == "json"


def view_options(outputs: tuple[str, ...] = TABLE_OR_JSON) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives a command the options of every command, and the resulting View as its first argument.

    One that writes no table answers in the first of its forms unless told otherwise. One without forms has no `-o` of
    this kind.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        @click.pass_context
        def wrapped(context: click.Context, /, **options: Any) -> Any:
            view = merged(context.obj or View(), options)
            if outputs and view.output == "table" and "table" not in outputs:
                view = replace(view, output=outputs[0])
            if outputs and view.output not in outputs:
                raise click.BadParameter(f"this command writes {' or '.join(outputs)}", param_hint="-o")
            context.obj = view
            return command(view, **options)

        return add_view_options(wrapped, outputs)

    return decorate


def add_view_options(command: Callable[..., Any], outputs: tuple[str, ...]) -> Callable[..., Any]:
    """The options themselves; unset ones are None."""
    for option in (
        click.option("-v", "--verbose", is_flag=True, default=None, help="Say more, and show tracebacks."),
        click.option("--no-color", is_flag=True, default=None, help="No colours; so does NO_COLOR."),
        click.option(
            "--run-dir",
            type=click.Path(path_type=Path),
            default=None,
            help=f"The agent's run directory; {DEFAULT_RUN_DIR} unless given.",
        ),
        *_output_option(outputs),
    ):
        command = option(command)
    return command


def _output_option(outputs: tuple[str, ...]) -> tuple[Callable[..., Any], ...]:
    if not outputs:
        return ()
    return (click.option("-o", "--output", type=click.Choice(outputs), default=None, help="How to write the answer."),)


def merged(view: View, options: dict[str, Any]) -> View:
    """The view with what was given; takes the options of every command out of `options`."""
    no_color = options.pop("no_color", None)
    found = {name: options.pop(name, None) for name in ("output", "run_dir", "verbose")}
    if no_color:
        found["color"] = False
    return replace(view, **{name: value for name, value in found.items() if value is not None})
