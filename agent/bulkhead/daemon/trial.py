"""A policy that is only tried: who tries it, until when, and who may say that it stays."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from bulkhead.errors import RefusedError, UsageError

SECONDS_MIN: Final = 10
SECONDS_MAX: Final = 3600


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial. Times in Unix seconds."""

    commit: str
    before: str
    """The commit that returns when nobody confirms."""
    began: float
    until: float
    uid: int
    pid: int
    """Process that asked."""
    tip: str = ""
    """What the reference names, where that is another commit: left alone once the trial is confirmed."""
    began_boot_s: float = field(default_factory=partial(time.clock_gettime, time.CLOCK_BOOTTIME))
    """When it began on the clock that nobody sets."""

    def check_confirmation(self, pid: int) -> None:
        """Raise RefusedError unless the process belongs to a login that the tried policy has let in."""
        from bulkhead.identity.sessions import login_of  # psutil, which nothing else needs while the agent runs

        login = login_of(pid)
        if login.is_local:
            raise RefusedError("this login comes from this machine itself: confirm from a login from outside")
        if login.started_s <= self.began_boot_s:
            over = f"over the network from {login.peer}" if login.peer else "at this terminal"
            raise RefusedError(
                f"your login {over} is older than the trial, and an old connection proves nothing: "
                "log in once more, and confirm from there"
            )


def checked_seconds(value: object) -> int:
    """How long a trial lasts. Raises UsageError when it makes no sense."""
    if not isinstance(value, int) or isinstance(value, bool) or not SECONDS_MIN <= value <= SECONDS_MAX:
        raise UsageError(f"a trial lasts {SECONDS_MIN} to {SECONDS_MAX} seconds")
    return value
