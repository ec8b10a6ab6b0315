"""Rego of the policy repository, as it was read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bulkhead.errors import Diagnostic, Loc
from bulkhead.policy.codes import message
from bulkhead.policy.source import Sources

GUARDRAILS: Final = "bulkhead.lint"
"""The package whose `deny` and `warn` speak of the repository itself."""


@dataclass(frozen=True, slots=True)
class RegoModule:
    """One `.rego` file."""

    path: str
    text: str
    loc: Loc


def read_modules(sources: Sources) -> tuple[tuple[RegoModule, ...], tuple[Diagnostic, ...]]:
    """The modules of a commit in file order, and what is wrong with those that are no text."""
    modules: list[RegoModule] = []
    found: list[Diagnostic] = []
    for file in sources.modules:
        loc = Loc(file.path, 1, commit=sources.abbreviated)
        try:
            modules.append(RegoModule(file.path, file.content.decode(), loc))
        except UnicodeDecodeError as error:
            line = file.content.count(b"\n", 0, error.start) + 1
            found.append(Diagnostic("BH0102", message("BH0102"), Loc(file.path, line, commit=sources.abbreviated)))
    return tuple(modules), tuple(found)
