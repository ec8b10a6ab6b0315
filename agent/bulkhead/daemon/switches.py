"""When which commit came into force, as the agent has recorded it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

KEPT: Final = 200
"""Told at most, the latest."""
_TAIL_BYTES: Final = 1 << 17


def switches(record: Path) -> list[dict[str, Any]]:
    """The latest changes of generation, the oldest first: `commit`, `generation`, `at` (Unix seconds) and `why`.

    A line that is not whole is passed over; without a record there are none.
    """
    try:
        with record.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return []
    return [found for line in lines[-KEPT:] if (found := _switch(line)) is not None]


def _switch(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
        return {
            "commit": str(value["commit"]),
            "generation": int(value["generation"]),
            "at": float(value["at"]),
            "why": str(value["why"]),
        }
    except (ValueError, KeyError, TypeError):
        return None
