"""Writing answers: data to standard output, everything said beside it to standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from bulkhead.errors import BulkheadError, PolicyError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

    from bulkhead.cli.options import View

API_VERSION: Final = "bulkhead/v1"
WIDTH: Final = 100
"""Columns of a table that nobody's terminal measures."""


def console(view: View) -> Console:
    """Standard output as rich sees it. Colours only on a terminal, and where nobody minds."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else WIDTH
    plain = not view.color or "NO_COLOR" in os.environ or not sys.stdout.isatty()
    return Console(
        file=sys.stdout,
        width=width,
        highlight=False,
        markup=False,
        emoji=False,
        color_system=None if plain else "auto",
    )


def show(view: View, *parts: RenderableType) -> None:
    """Writes tables and texts, without the blanks that fill a line up."""
    out = console(view)
    with out.capture() as captured:
        for part in parts:
            out.print(part, crop=False)
    lines = captured.get().splitlines()
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in lines))
    sys.stdout.flush()


def show_json(kind: str, data: object) -> None:
    """Writes data in the envelope that all JSON answers but a matrix come in."""
    write_json({"apiVersion": API_VERSION, "kind": kind, "data": data})


def tell(view: View, kind: str, answer: object, sentence: str) -> None:
    """Writes an answer as JSON where that is asked for; says it in words otherwise."""
    if view.as_json:
        show_json(kind, answer)
    else:
        note(sentence)


def write_json(value: object) -> None:
    """Writes a value as it is, indented."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def write_pieces(pieces: Iterable[str]) -> None:
    """Writes text that comes in pieces, as it comes."""
    sys.stdout.writelines(pieces)
    sys.stdout.flush()


def write_json_line(kind: str, data: object) -> None:
    """Writes data in its envelope on a line of its own, for those who follow."""
    sys.stdout.write(json.dumps({"apiVersion": API_VERSION, "kind": kind, "data": data}) + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Says something beside the data."""
    sys.stderr.write(safe_lines(text) + "\n")


def complain(error: BaseException, color: bool) -> None:
    """Says what went wrong. Findings about a policy come as they are: they say `error` themselves."""
    if isinstance(error, PolicyError):
        note(str(error))
        return
    red, plain = ("\x1b[31m", "\x1b[0m") if color and "NO_COLOR" not in os.environ and sys.stderr.isatty() else ("", "")
    text = str(error) if isinstance(error, BulkheadError) else f"{type(error).__name__}: {error}"
    sys.stderr.write(f"{red}error:{plain} {safe_lines(text)}\n")


def safe(value: Any) -> str:
    """A value as text without a character that a terminal would obey."""
    return "".join(one if one.isprintable() else f"\\u{{{ord(one):x}}}" for one in str(value))


def safe_lines(text: str) -> str:
    """As `safe`, with line breaks left in."""
    return "\n".join(map(safe, text.split("\n")))


def cell(value: Any, style: str = "") -> Text:
    """A value for a table. Never markup: names of others stay what they are."""
    from rich.text import Text

    return Text(safe(value), style=style)
