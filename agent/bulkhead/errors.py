"""Errors, each class named for the reaction it asks of its catcher.

    BulkheadError
    ├── UsageError        the command line asks for something that cannot be meant       (exit 2)
    ├── PolicyError       a commit is refused whole, the last good one stays in force    (exit 2)
    ├── UnreachableError  the agent, a repository or a file is not there                 (exit 3)
    ├── RefusedError      the host cannot be enforced on: do not start                   (exit 3)
    └── KernelError       a call into the kernel failed that should not have             (exit 3)

Messages are lower case, carry no final period, and put what the author wrote in backticks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit status of the command line."""

    OK = 0
    NO = 1
    """The answer is no: denied, a failed test, a difference."""
    INVALID = 2
    """Wrong usage or an invalid policy."""
    UNREACHABLE = 3
    """The agent, a repository or the kernel did not answer."""
    INCOMPLETE = 4
    """An answer was given, built on incomplete data."""
    INTERRUPTED = 130


@dataclass(frozen=True, slots=True, order=True)
class Loc:
    """A place in a policy repository. Lines and columns count from 1; a column of 0 means the whole line."""

    file: str
    line: int
    column: int = 0
    commit: str = ""
    """Abbreviated commit id; empty when read from a directory."""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}"
        if self.column:
            place += f":{self.column}"
        return f"{place}@{self.commit}" if self.commit else place

    @property
    def short(self) -> str:
        """`file:line@commit`, the form that verdicts are traced to."""
        return f"{self.file}:{self.line}@{self.commit}" if self.commit else f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding about what an author wrote.

    `code` is stable (`BH0412`); `source_line` is the text of the line, for the caret; `related` are further places
    with a short label each, such as the second of two rules that contradict each other.
    """

    code: str
    message: str
    loc: Loc
    hint: str = ""
    source_line: str = ""
    width: int = 1
    severity: str = "error"
    related: tuple[tuple[Loc, str], ...] = field(default=())

    def render(self) -> str:
        """The finding as plain text: message, place, line with caret, hint, related places."""
        lines = [f"{self.severity}[{self.code}]: {self.message}", f"  --> {self.loc}"]
        if self.source_line:
            number = str(self.loc.line)
            lines.append(f"{number} | {self.source_line}")
            if self.loc.column:
                pad = " " * (len(number) + 3 + self.loc.column - 1)
                caret = "^" * max(1, min(self.width, len(self.source_line) - self.loc.column + 1))
                lines.append(f"{pad}{caret}{' help: ' + self.hint if self.hint else ''}")
        if self.hint and not (self.source_line and self.loc.column):
            lines.append(f"  help: {self.hint}")
        lines.extend(f"  --> {loc}   {label}" for loc, label in self.related)
        return "\n".join(lines)


class BulkheadError(Exception):
    """Base of every error that Bulkhead raises on purpose."""

    exit_code = ExitCode.UNREACHABLE


class UsageError(BulkheadError):
    """The request itself is wrong; the one who asked must change it."""

    exit_code = ExitCode.INVALID


class PolicyError(BulkheadError):
    """A policy is refused as a whole. Carries every finding, in file order."""

    exit_code = ExitCode.INVALID

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        super().__init__("\n\n".join(d.render() for d in self.diagnostics))


class UnreachableError(BulkheadError):
    """Something that should answer does not: retry later, or start it."""


class RefusedError(BulkheadError):
    """This host cannot be enforced on as asked; names the cause and its owner."""


class KernelError(BulkheadError):
    """A call into the kernel failed. `errno` is kept for the caller that can react to it."""

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno
