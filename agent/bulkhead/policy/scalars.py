"""What a YAML reader would make of an unquoted scalar.

Readers differ (`off` is false in YAML 1.1 and text in 1.2, `22:22` is 1342 or text), so what one author wrote and
another reviewed may not be what a third program enforces. Anything that some reader takes for other than text is
refused where text belongs, and the author adds the quotes.
"""

from __future__ import annotations

import re
from functools import lru_cache

_MEANINGS = (
    ("a boolean", re.compile(r"(?i:y|yes|n|no|on|off|true|false)")),
    ("nothing", re.compile(r"~|(?i:null)|")),
    (
        "a number",
        re.compile(
            r"[-+]?(0[bB][01_]+|0[oO][0-7_]+|0[xX][0-9a-fA-F_]+|[0-9][0-9_]*"
            r"|([0-9][0-9_]*)?\.[0-9_]+([eE][-+]?[0-9]+)?|[0-9][0-9_]*\.?([eE][-+]?[0-9]+)?"
            r"|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?|\.(?i:inf))|\.(?i:nan)"
        ),
    ),
    (
        "a date",
        re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(([Tt]|[ \t]+)[0-9]{1,2}:[0-9:.]+([ \t]*(Z|[-+][0-9:]+))?)?"),
    ),
    ("a merge key", re.compile(r"<<")),
    ("a default value", re.compile(r"=")),
)

DECIMAL = re.compile(r"0|[1-9][0-9]*")
"""A number that every reader reads alike."""


@lru_cache(maxsize=65536)
def meaning(text: str) -> str:
    """What an unquoted `text` is to some YAML reader, in words; empty when it is text to all of them."""
    for words, expression in _MEANINGS:
        if expression.fullmatch(text):
            return words
    return ""
