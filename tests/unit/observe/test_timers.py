"""How often a timer runs, read from unit files."""

from __future__ import annotations

from pathlib import Path

import pytest

from bulkhead.observe.timers import timer_of

DAY = 86400.0


@pytest.mark.parametrize(
    ("line", "period_s", "often"),
    [
        ("OnCalendar=weekly", 7 * DAY, "weekly"),
        ("OnCalendar=Mon *-*-* 03:00:00", 7 * DAY, "weekly"),
        ("OnCalendar=Mon..Fri 03:00", 7 * DAY, "weekly"),
        ("OnCalendar=*-*-01 04:00:00", 31 * DAY, "monthly"),
        ("OnCalendar=*-01-01", 366 * DAY, "yearly"),
        ("OnCalendar=daily", DAY, "daily"),
        ("OnCalendar=*-*-* 6,18:00", DAY, "daily"),
        ("OnCalendar=*:0/15", 3600.0, "more than once a day"),
        ("OnUnitActiveSec=1w 2d", 9 * DAY, "weekly"),
        ("OnCalendar=weekly\nOnCalendar=\nOnCalendar=hourly", 3600.0, "more than once a day"),
        ("OnCalendar=weekly\nOnUnitActiveSec=1d", DAY, "daily"),
        ("OnBootSec=5min", None, "at times that could not be read"),
        ("OnCalendar=when it suits", None, "at times that could not be read"),
    ],
)
def test_a_timer_is_as_silent_as_its_file_says(tmp_path: Path, line: str, period_s: float | None, often: str) -> None:
    (tmp_path / "backup.timer").write_text(f"[Timer]\n{line}\n")
    found = timer_of("backup.service", [tmp_path])
    assert found is not None
    assert (found.name, found.period_s, found.often) == ("backup.timer", period_s, often)


def test_a_template_and_a_drop_in_are_found(tmp_path: Path) -> None:
    (tmp_path / "dump@.timer").write_text("[Timer]\nOnCalendar=daily\n")
    (tmp_path / "dump@.timer.d").mkdir()
    (tmp_path / "dump@.timer.d" / "x.conf").write_text("[Timer]\nOnCalendar=\nOnCalendar=monthly\n")
    found = timer_of("dump@shop.service", [tmp_path / "none", tmp_path])
    assert found is not None
    assert (found.name, found.often) == ("dump@shop.timer", "monthly")


@pytest.mark.parametrize("unit", ["nginx.service", "backup.scope", "../etc/backup.service", ".service", ""])
def test_what_no_timer_starts_has_none(tmp_path: Path, unit: str) -> None:
    (tmp_path / "backup.timer").write_text("[Timer]\nOnCalendar=daily\n")
    assert timer_of(unit, [tmp_path]) is None
