"""`make bench`: measures everything that is promised, in one run, prints it, and writes bench/results/latest.json.

`bench/run.py PART...` measures only these of the parts that need no others (see `ALONE`), prints them, writes nothing.
Exits 0 whether or not the marks hold: the figures say so themselves. Needs root. Leaves nothing behind.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(_ROOT / "agent"), str(_ROOT / "tests")]
os.environ["PYTHONPATH"] = str(_ROOT / "agent")

import agents  # noqa: E402
import authoring  # noqa: E402
import packets  # noqa: E402
import page  # noqa: E402
import paths  # noqa: E402
import proxies  # noqa: E402
import traffic  # noqa: E402
import upkeep  # noqa: E402
from figures import Figure, read, write  # noqa: E402
from hosts import enforced_pair  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

import wire  # noqa: E402

RESULTS = _ROOT / "bench" / "results" / "latest.json"
_PAIR_SUBNET = 70
_NFT_SUBNET = 80
_WIRE_SUBNET = 90
_MESH_SUBNET = 100
_CONNECTIONS = 100_000
_RULES = 100_000
ALONE: dict[str, Callable[[], list[Figure]]] = {
    "authoring": authoring.measure,
    "upkeep": upkeep.measure,
    "wire": partial(wire.measure, _WIRE_SUBNET),
    "proxies": partial(proxies.measure, _MESH_SUBNET),
}


def measure(console: Console) -> list[Figure]:
    """Every figure. Memory and starts come first, while the agents are fresh; what bloats them comes last."""
    measured = [_timed(word, part, console) for word, part in ALONE.items()]
    with tempfile.TemporaryDirectory(prefix="bulkhead-bench-") as name:
        directory = Path(name)
        program = traffic.build(directory)
        with enforced_pair(directory, _PAIR_SUBNET, agents.RULES) as pair:
            parts: tuple[tuple[str, Callable[[], list[Figure]]], ...] = (
                ("agents", partial(agents.measure, program, pair)),
                ("paths", partial(paths.measure, program, pair, _NFT_SUBNET)),
                ("packets", partial(packets.measure, program, pair, _CONNECTIONS, _RULES)),
            )
            measured += [_timed(word, part, console) for word, part in parts]
    return [figure for part_figures in reversed(measured) for figure in part_figures]


def _timed(word: str, part: Callable[[], list[Figure]], console: Console) -> list[Figure]:
    started = time.monotonic()
    figures = part()
    console.print(f"{word}: {time.monotonic() - started:.0f} s", style="dim")
    return figures


def show(figures: list[Figure], console: Console) -> None:
    """Print the figures."""
    table = Table(title="make bench")
    for heading in ("figure", "value", "unit", "mark", "holds"):
        table.add_column(heading, justify="right" if heading == "value" else "left")
    for figure in figures:
        verdict = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}[figure.holds]
        table.add_row(figure.name, f"{figure.value:g}", figure.unit, figure.mark or "", verdict)
    console.print(table)


def _end(*_: object) -> None:
    """Told to end: clean up on the way out."""
    raise SystemExit(143)


def main() -> None:
    """Measure, show, write. `page` as an argument: only write docs/performance.md from the last results."""
    console = Console()
    signal.signal(signal.SIGTERM, _end)
    words = sys.argv[1:]
    if words and words != ["page"]:
        show([figure for word in words for figure in _timed(word, ALONE[word], console)], console)
        return
    if not words:
        figures = measure(console)
        show(figures, console)
        write(figures, RESULTS)
        console.print(f"written to {RESULTS.relative_to(_ROOT)}")
    page.write(read(RESULTS), _ROOT / "docs" / "performance.md")


if __name__ == "__main__":
    main()
