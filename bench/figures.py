"""What is measured, as it is written down: one figure per row of the tables that promise it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number. `mark` and `holds` are None where nothing is promised: a comparison, or context."""

    name: str
    value: float
    unit: str
    mark: str | None
    holds: bool | None
    method: str


def at_most(name: str, value: float, unit: str, limit: float, method: str) -> Figure:
    """A figure that must not be above `limit`."""
    return Figure(name, _rounded(value), unit, f"<= {limit:g}", value <= limit, method)


def at_least(name: str, value: float, unit: str, limit: float, method: str) -> Figure:
    """A figure that must not be below `limit`."""
    return Figure(name, _rounded(value), unit, f">= {limit:g}", value >= limit, method)


def context(name: str, value: float, unit: str, method: str) -> Figure:
    """A figure that promises nothing."""
    return Figure(name, _rounded(value), unit, None, None, method)


def write(figures: Sequence[Figure], path: Path) -> None:
    """Write the list as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(figure) for figure in figures], indent=2, ensure_ascii=False) + "\n")


def read(path: Path) -> list[Figure]:
    """The list that was written."""
    return [Figure(**entry) for entry in json.loads(path.read_text())]


def percentile(values: Iterable[float], share: float) -> float:
    """The value below which `share` (0..1) of them lie: nearest rank, so always one of them."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]


def median(values: Iterable[float]) -> float:
    """The middle one."""
    return percentile(values, 0.5)


def spread(values: Sequence[float], unit: str) -> str:
    """How far the middle half of them reaches, to quote beside a median."""
    low, high = percentile(values, 0.25), percentile(values, 0.75)
    return f"middle half {low:.2f}..{high:.2f} {unit} of {len(values)}"


def _rounded(value: float) -> float:
    return round(value, 3)
