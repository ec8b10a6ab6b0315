"""Authors' texts inside Markdown and Mermaid, where they stay text whatever they contain. HTML escapes by itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from bulkhead.cli.output import safe

_PLAIN: Final = re.compile(r"[^`|\\<>&]+")
_SYNTAX: Final = re.compile(r"[^A-Za-z0-9 ./:,=+-]")
_SYNTAX_OF_PROSE: Final = re.compile(r"[^A-Za-z0-9 ./:,=+()';-]")


def code(text: object) -> str:
    """A code span, also within a cell of a table. Characters that could end either are written as references."""
    shown = safe(text)
    if not shown.strip():
        return ""
    if _PLAIN.fullmatch(shown) and shown == shown.strip():
        return f"`{shown}`"
    # A code span knows no escapes; within an element, references are text and nothing else.
    return f"<code>{_referenced(_SYNTAX, shown)}</code>"


def prose(text: object) -> str:
    """A sentence that is no markup."""
    return _referenced(_SYNTAX_OF_PROSE, safe(text))


def _referenced(syntax: re.Pattern[str], text: str) -> str:
    return syntax.sub(lambda found: f"&#{ord(found[0])};", text)


def codes(texts: Iterable[object]) -> str:
    """Code spans, one after the other."""
    return ", ".join(filter(None, map(code, texts)))


def rows(heads: Sequence[str], cells: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table whose cells are Markdown already."""
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return [*lines, *(f"| {' | '.join(line)} |" for line in cells)]


def mermaid_text(text: object) -> str:
    """A quoted label. Mermaid writes references as `#NUMBER;`; its own syntax is made of what is replaced here."""
    return f'"{_SYNTAX.sub(lambda found: f"#{ord(found[0])};", safe(text))}"'
