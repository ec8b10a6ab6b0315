"""Findings about one file while it is read: where, which code, and the line for the caret."""

from __future__ import annotations

from typing import Protocol

from bulkhead.errors import Diagnostic, Loc
from bulkhead.policy.codes import code, message

FINDINGS_MAX = 20
"""Findings kept for a file, and shown for a commit. Further ones are only counted."""

LINE_MAX = 400
"""Longest line, in characters, that is repeated under a finding."""

Related = tuple[tuple[Loc, str], ...]


class Spot(Protocol):
    """A place in a file: line and column from 1, width in characters."""

    @property
    def line(self) -> int: ...
    @property
    def column(self) -> int: ...
    @property
    def width(self) -> int: ...


class Findings:
    """Collects the findings about one file. `content` is what the lines under them are taken from."""

    def __init__(self, path: str, content: bytes, commit: str = "") -> None:
        self.path = path
        self.commit = commit
        self.diagnostics: list[Diagnostic] = []
        self.count = 0
        self._content = content

    @property
    def full(self) -> bool:
        """True when further findings are only counted, so that a costly hint would be wasted."""
        return len(self.diagnostics) >= FINDINGS_MAX

    def add(self, number: str, spot: Spot, *, hint: str = "", related: Related = (), **values: object) -> None:
        """Records the finding `number` at `spot`; `values` fill in its message."""
        self.count += 1
        if not self.full:
            self.diagnostics.append(
                Diagnostic(
                    code=number,
                    message=message(number, **values),
                    loc=self.loc(spot),
                    hint=hint,
                    source_line=excerpt(self._content, spot.line),
                    width=spot.width,
                    severity=code(number).severity,
                    related=related,
                )
            )

    def loc(self, spot: Spot) -> Loc:
        """The place as a Loc of this file."""
        return Loc(self.path, spot.line, spot.column, self.commit)


def excerpt(content: bytes, line: int) -> str:
    """Line `line` (from 1) as it can be shown: one character for each, none that a terminal obeys.

    Empty when there is no such line, or when it is too long to be shown.
    """
    lines = content.split(b"\n", line)
    if not 1 <= line <= len(lines):
        return ""
    text = lines[line - 1].decode("utf-8", "replace").rstrip("\r").removeprefix("\ufeff")
    if len(text) > LINE_MAX:
        return ""
    return "".join(character if character.isprintable() else _stand_in(character) for character in text)


def _stand_in(character: str) -> str:
    return " " if character == "\t" else "\N{REPLACEMENT CHARACTER}"
