"""The record of switches, read as the agent left it."""

from __future__ import annotations

import json
from pathlib import Path

from bulkhead.daemon.switches import KEPT, switches


def line(generation: int, **more: object) -> str:
    return json.dumps({"generation": generation, "commit": "a" * 40, "at": 1.5, "why": "commit", "digest": "x"} | more)


def test_the_latest_switches_are_told_the_oldest_first(tmp_path: Path) -> None:
    record = tmp_path / "generations"
    record.write_text("".join(f"{line(number)}\n" for number in range(5000)))
    found = switches(record)
    assert [one["generation"] for one in found] == list(range(5000 - KEPT, 5000))
    assert found[0] == {"commit": "a" * 40, "generation": 5000 - KEPT, "at": 1.5, "why": "commit"}


def test_what_is_not_whole_is_passed_over(tmp_path: Path) -> None:
    record = tmp_path / "generations"
    record.write_text(f'{line(1)}\n{line(2)[:20]}\n[]\n{{"at": 1}}\n{line(3, at="x")}\n{line(4)}\n')
    assert [one["generation"] for one in switches(record)] == [1, 4]
    assert switches(tmp_path / "none") == []
