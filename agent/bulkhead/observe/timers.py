"""How often systemd starts a unit: what runs seldom is seldom recorded.

Reads the unit files of this machine alone, and of a timer only how long it can be silent. What cannot be read or
understood gives no answer, never a wrong one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

UNIT_DIRECTORIES: Final = (
    Path("/etc/systemd/system"),
    Path("/run/systemd/system"),
    Path("/run/systemd/transient"),
    Path("/usr/local/lib/systemd/system"),
    Path("/usr/lib/systemd/system"),
    Path("/lib/systemd/system"),
)
"""In the order in which systemd prefers them."""

_FILE_MAX: Final = 65536
_HOUR: Final = 3600.0
_DAY: Final = 24 * _HOUR
_WEEK, _MONTH, _YEAR = 7 * _DAY, 31 * _DAY, 366 * _DAY
_WORDS: Final = {
    "minutely": 60.0,
    "hourly": _HOUR,
    "daily": _DAY,
    "weekly": _WEEK,
    "monthly": _MONTH,
    "quarterly": 92 * _DAY,
    "semiannually": _YEAR / 2,
    "yearly": _YEAR,
    "annually": _YEAR,
}
_NAMED: Final = ((_YEAR, "yearly"), (_MONTH, "monthly"), (_WEEK, "weekly"), (_DAY, "daily"))
_UNITS: Final = {
    "us": 1e-6, "usec": 1e-6, "ms": 1e-3, "msec": 1e-3,
    "": 1.0, "s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0,
    "m": 60.0, "min": 60.0, "minute": 60.0, "minutes": 60.0,
    "h": _HOUR, "hr": _HOUR, "hour": _HOUR, "hours": _HOUR,
    "d": _DAY, "day": _DAY, "days": _DAY,
    "w": _WEEK, "week": _WEEK, "weeks": _WEEK,
    "M": _MONTH, "month": _MONTH, "months": _MONTH,
    "y": _YEAR, "year": _YEAR, "years": _YEAR,
}  # fmt: skip
_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")
_WEEKDAYS: Final = re.compile(r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]*(?:[.,-].*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Timer:
    """A timer that starts a unit."""

    name: str
    period_s: float | None
    """How long it can be silent between two starts; None: its file does not tell."""

    @property
    def often(self) -> str:
        """How often it runs, in words."""
        if self.period_s is None:
            return "at times that could not be read"
        return next((word for period, word in _NAMED if self.period_s >= period), "more than once a day")


def timer_of(unit: str, directories: Iterable[Path] = UNIT_DIRECTORIES) -> Timer | None:
    """The timer that starts a service by its name; None when there is none."""
    stem, dot, _ = unit.rpartition(".service")
    if not dot or "/" in unit or not stem:
        return None
    listed = tuple(directories)
    template = re.sub(r"@.*", "@", stem)
    for name in dict.fromkeys((f"{stem}.timer", f"{template}.timer")):
        text = _read(name, listed)
        if text is not None:
            return Timer(f"{stem}.timer", _period(text))
    return None


def _read(name: str, directories: Iterable[Path]) -> str | None:
    """The timer's file with what drop-ins add to it; None when there is no such file."""
    listed = tuple(directories)
    found = None
    for directory in listed:
        try:
            with (directory / name).open("rb") as file:
                found = file.read(_FILE_MAX).decode(errors="replace")
            break
        except OSError:
            continue
    if found is None:
        return None
    for directory in reversed(listed):
        for extra in sorted((directory / f"{name}.d").glob("*.conf")):
            try:
                with extra.open("rb") as file:
                    found += "\n" + file.read(_FILE_MAX).decode(errors="replace")
            except OSError:
                continue
    return found


def _period(text: str) -> float | None:
    """Of several triggers the one that comes most often; an empty value takes back what stood before it."""
    found: dict[str, list[float | None]] = {}
    for line in text.splitlines():
        key, _, value = line.partition("=")
        key, value = key.strip(), value.strip()
        if key in ("OnCalendar", "OnUnitActiveSec", "OnUnitInactiveSec"):
            if value:
                found.setdefault(key, []).append(_calendar(value) if key == "OnCalendar" else _span(value))
            else:
                found.pop(key, None)
    periods = [period for each in found.values() for period in each if period is not None]
    return min(periods, default=None)


def _span(text: str) -> float | None:
    position, total = 0, 0.0
    while position < len(text):
        found = _SPAN.match(text, position)
        if not found or found[2] not in _UNITS:
            return None
        total += float(found[1]) * _UNITS[found[2]]
        position = found.end()
    return total


def _calendar(text: str) -> float | None:
    """The longest that a calendar expression is silent, at the coarsest field that it fixes."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    parts = text.split()
    days = _WEEKDAYS.fullmatch(parts[0]) if parts else None
    if days:
        parts = parts[1:]
    date = next((part for part in parts if "-" in part), "*-*-*")
    time = next((part for part in parts if ":" in part), "")
    fields = date.split("-")
    others = [part for part in parts if part not in (date, time)]  # at most a time zone
    if len(fields) not in (2, 3) or len(others) > 1 or not (days or len(parts) > len(others)):
        return None
    if len(fields) == 3 and fields[0] != "*":
        return _YEAR
    if fields[-2] != "*":
        return _YEAR
    if fields[-1] != "*":
        return _MONTH
    if days:
        return _WEEK
    return _HOUR if time.startswith("*:") else _DAY
