"""What came of a question about a request."""

from __future__ import annotations

from collections import Counter, deque
from enum import StrEnum
from typing import Any, Final

_LATENCIES: Final = 1024
"""Of each package, the last ones."""


class Outcome(StrEnum):
    """All but the first refuse the request."""

    ALLOWED = "allowed"
    DENIED = "denied"
    UNDEFINED = "undefined"
    """`allow` has no value."""
    ERROR = "error"
    """Evaluating it failed, a function that is not there included."""
    DECISION = "decision"
    """`allow` is neither true nor false nor an object that says so."""
    INPUT = "input"
    """The request, or its body, cannot be read."""
    TIMEOUT = "timeout"
    """Evaluating it took too long."""
    CRASHED = "crashed"
    """Evaluating it ended the process: too much memory, too deep a recursion."""
    OVERLOADED = "overloaded"
    """Too many requests were waiting, or it waited too long."""
    OVERSIZE = "oversize"
    """The request is larger than is judged."""
    UNKNOWN = "unknown"
    """No module has the package."""
    UNREADY = "unready"
    """The modules have not been read, or cannot be."""


class Tally:
    """Counts and times of decisions, by package."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, Outcome]] = Counter()
        self._seconds: dict[str, deque[float]] = {}

    def add(self, package: str, outcome: Outcome, seconds: float) -> None:
        """Count a decision; of a package that no module has under the empty name, so that names stay bounded."""
        name = "" if outcome in (Outcome.UNKNOWN, Outcome.UNREADY) else package
        self._counts[name, outcome] += 1
        self._seconds.setdefault(name, deque(maxlen=_LATENCIES)).append(seconds)

    def status(self) -> dict[str, Any]:
        """As JSON: `decisions` of `[package, outcome, count]`; `latency` by package, `p50_ms` and `p99_ms` of the last
        thousand."""
        return {
            "decisions": [
                [package, outcome.value, count] for (package, outcome), count in sorted(self._counts.items())
            ],
            "latency": {package: _percentiles(sorted(listed)) for package, listed in sorted(self._seconds.items())},
        }


def _percentiles(ordered: list[float]) -> dict[str, float]:
    return {
        name: round(ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1000, 3)
        for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99))
    }
