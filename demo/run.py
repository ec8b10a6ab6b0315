"""`make demo`: the main job on real programs, on a host of its own that is gone afterwards."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

HERE = Path(__file__).resolve().parent
# The lab host is shared with the tests; neither is part of the installed package.
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

from shop import Shop, world_outside  # noqa: E402
from stage import Stage  # noqa: E402
from tour import Tour  # noqa: E402

from lab.host import Host  # noqa: E402

LIMIT_S = 90
"""A show that hangs is ended, and its host taken down."""
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StoppedError(Exception):
    """Somebody, or the clock, ended the show."""


def main() -> int:
    """Exit code: 0, 1 when something failed, 2 without root, 130 when it was stopped."""
    if os.geteuid() != 0:
        print("the demo needs root: it makes network namespaces and control groups, and loads BPF", file=sys.stderr)
        return 2
    stage = Stage()
    try:
        show(stage)
    except StoppedError as stopped:
        print(f"\n{stopped}; everything the demo made is gone", file=sys.stderr)
        return 130
    except RuntimeError as error:
        print(f"\nthe demo failed: {error}", file=sys.stderr)
        return 1
    stage.say(f"{stage.elapsed_s:.0f} s. What the demo made is gone: processes, hooks, control groups, namespaces.")
    return 0


def show(stage: Stage) -> None:
    """Build the host, walk through it, take it down, however the walk ends."""
    _ignore_endings()
    with ExitStack() as owned:
        host = owned.enter_context(Host("demo"))
        world = owned.enter_context(world_outside(host))
        try:
            _hear_endings()
            stage.begin()
            Tour(stage, host, Shop(host), world).walk()
        finally:
            _ignore_endings()


def _hear_endings() -> None:
    for number in (*ENDINGS, signal.SIGALRM):
        signal.signal(number, _stop)
    signal.alarm(LIMIT_S)


def _ignore_endings() -> None:
    # What is half made or half gone cannot be taken down; and the programs that do it inherit this, since a terminal
    # sends its Ctrl-C to all of them.
    signal.alarm(0)
    for number in ENDINGS:
        signal.signal(number, signal.SIG_IGN)


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  the signature of a handler
    _ignore_endings()
    raise StoppedError(f"not done after {LIMIT_S} s" if number == signal.SIGALRM else "stopped")


if __name__ == "__main__":
    sys.exit(main())
