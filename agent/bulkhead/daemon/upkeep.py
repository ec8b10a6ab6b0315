"""Keeps the kernel equal to what was put there: looks often, at once when told, and remembers what it found."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final

from bulkhead.errors import BulkheadError
from bulkhead.kernel.audit import Drift
from bulkhead.observe.logs import Log

log = Log()

INTERVAL_S: Final = 0.5
"""How often the kernel is looked at, unless that takes long."""
INTERVAL_MAX_S: Final = 5.0
_SHARE: Final = 20
"""Looking takes at most this part of the agent's time, until INTERVAL_MAX_S is reached."""
_COALESCE_S: Final = 0.02
"""Notifications come in swarms: one look answers those of this long."""
_SHARE_TOLD: Final = 4
"""As _SHARE, while notifications do not end."""
_KEPT: Final = 20


class Upkeep:
    """Calls `look` for as long as it runs."""

    def __init__(self, look: Callable[[], list[Drift]]) -> None:
        self._look = look
        self._hint = asyncio.Event()
        self.counts: Counter[tuple[str, bool]] = Counter()
        """What was found since the start, by kind and whether it could be repaired."""
        self.standing: tuple[Drift, ...] = ()
        """What the last look could not repair."""
        self.recent: deque[tuple[float, Drift]] = deque(maxlen=_KEPT)
        """The last findings, with when (Unix seconds)."""
        self.looked = 0.0
        """When the last look ended well (Unix seconds)."""
        self.took_s = 0.0

    def hint(self) -> None:
        """Something has happened: look now."""
        self._hint.set()

    async def run(self) -> None:
        """Look for ever."""
        while True:
            self.look()
            pause = min(max(INTERVAL_S, self.took_s * _SHARE), INTERVAL_MAX_S)
            try:
                async with asyncio.timeout(pause):
                    await self._hint.wait()
                await asyncio.sleep(min(max(_COALESCE_S, self.took_s * _SHARE_TOLD), INTERVAL_MAX_S))
            except TimeoutError:
                continue
            finally:
                self._hint.clear()

    def look(self) -> None:
        """Look once."""
        started = time.monotonic()
        try:
            found = self._look()
        except (BulkheadError, OSError) as error:
            found = [Drift("look", "the kernel could not be compared", False, str(error))]
        else:
            self.looked = time.time()
        self.took_s = time.monotonic() - started
        self._remember(found)

    def note(self, found: list[Drift]) -> None:
        """What somebody else found, and has put right."""
        self._remember([*self.standing, *found])

    def _remember(self, found: list[Drift]) -> None:
        known = set(self.standing)
        self.standing = tuple(one for one in found if not one.repaired)
        for one in found:
            if one in known:
                continue
            self.counts[one.kind, one.repaired] += 1
            self.recent.append((time.time(), one))
            if one.repaired:
                log.error("the kernel was not as git says; repaired", what=one.what)
            else:
                log.error("the kernel is not as git says", what=one.what, cause=one.problem)

    def outcomes(self) -> dict[tuple[str, str], int]:
        """How much was found, by kind and what became of it."""
        return {(kind, "repaired" if done else "standing"): count for (kind, done), count in self.counts.items()}

    def report(self) -> dict[str, Any]:
        """For `status`."""
        return {
            "looked": self.looked,
            "found": sum(self.counts.values()),
            "standing": [{"kind": one.kind, "what": one.what, "problem": one.problem} for one in self.standing],
            "recent": [
                {"at": at, "kind": one.kind, "what": one.what, "repaired": one.repaired} for at, one in self.recent
            ],
        }
