"""The wall clock: how well it is kept, and when it jumps."""

from __future__ import annotations

import ctypes
import os
import time
from ctypes import c_int, c_long
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

_STA_UNSYNC: Final = 0x40
_STA_NANO: Final = 0x2000
_TIME_ERROR: Final = 5
_TFD_TIMER_ABSTIME: Final = 1
_TFD_TIMER_CANCEL_ON_SET: Final = 2
_TIMESYNCD: Final = Path("/run/systemd/timesync/synchronized")
"""Made by systemd-timesyncd when it first knows the time."""
_FAR_S: Final = 1 << 33
"""A time that does not come: what is waited for is that the clock is set."""


class _Timex(ctypes.Structure):
    _fields_ = (
        ("modes", c_int),
        ("offset", c_long),
        ("freq", c_long),
        ("maxerror", c_long),
        ("esterror", c_long),
        ("status", c_int),
        ("constant", c_long),
        ("precision", c_long),
        ("tolerance", c_long),
        ("time", c_long * 2),
        ("tick", c_long),
        ("ppsfreq", c_long),
        ("jitter", c_long),
        ("shift", c_int),
        ("stabil", c_long),
        ("pps", c_long * 4),
        ("tai", c_int),
        ("unused", c_int * 11),
    )


class _Timerspec(ctypes.Structure):
    _fields_ = (("interval", c_long * 2), ("value", c_long * 2))


@dataclass(frozen=True, slots=True)
class ClockState:
    """How the kernel's clock is kept. Times in seconds."""

    synchronised: bool | None
    """Whether something keeps it equal to a time server's; None: it cannot be told."""
    offset_s: float
    """What is still to be corrected."""
    error_s: float
    """What the clock may be off by, at most, as far as the kernel knows."""


def clock_state() -> ClockState:
    """Ask the kernel; changes nothing."""
    timex = _Timex()
    result = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    if result < 0:  # as under `ProtectClock=`, which refuses the question too
        return ClockState(_TIMESYNCD.exists() or None, 0.0, 0.0)
    unit = 1e9 if timex.status & _STA_NANO else 1e6
    synchronised = result != _TIME_ERROR and not timex.status & _STA_UNSYNC
    return ClockState(synchronised, timex.offset / unit, timex.maxerror / 1e6)


def monotonic_offset_s() -> int:
    """Unix time less CLOCK_MONOTONIC, in whole seconds: the nearest, so that nodes differ by as little as possible."""
    return round(time.time() - time.monotonic())


class JumpWatch:
    """A descriptor that becomes readable when somebody sets the wall clock."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._number: int = libc.timerfd_create(time.CLOCK_REALTIME, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._number < 0:
            raise OSError(ctypes.get_errno(), "cannot watch the clock")
        self._settime = libc.timerfd_settime
        self._arm()

    def _arm(self) -> None:
        when = _Timerspec((0, 0), (_FAR_S, 0))
        flags = _TFD_TIMER_ABSTIME | _TFD_TIMER_CANCEL_ON_SET
        if self._settime(self._number, flags, ctypes.byref(when), None) != 0:
            raise OSError(ctypes.get_errno(), "cannot watch the clock")

    def fileno(self) -> int:
        """For select."""
        return self._number

    def drain(self) -> bool:
        """Whether the clock was set since the last call; from then on the next time is waited for."""
        try:
            os.read(self._number, 8)
        except BlockingIOError:
            return False
        except OSError:  # ECANCELED: that is how the kernel says it
            self._arm()
        return True

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
