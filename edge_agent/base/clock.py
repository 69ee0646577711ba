"""The clock port. Pure modules take `now_s` as an argument; every other module asks a `Clock`."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A monotonic time for durations and deadlines, and a wall-clock time for people."""

    def monotonic_s(self) -> float:
        """Seconds since an arbitrary start; never decreases."""
        ...

    def wall_s(self) -> float:
        """Seconds since 1970 by the host's clock; may jump (a board without a battery-backed clock boots in 1970)."""
        ...


class SystemClock:
    """The host's clocks."""

    def monotonic_s(self) -> float:
        """See `Clock.monotonic_s`."""
        return time.monotonic()

    def wall_s(self) -> float:
        """See `Clock.wall_s`."""
        return time.time()


class ManualClock:
    """A clock that tests and simulations advance themselves."""

    def __init__(self, monotonic_s: float = 1000.0, wall_s: float = 1_700_000_000.0) -> None:
        self._monotonic_s = monotonic_s
        self._wall_s = wall_s

    def monotonic_s(self) -> float:
        """See `Clock.monotonic_s`."""
        return self._monotonic_s

    def wall_s(self) -> float:
        """See `Clock.wall_s`."""
        return self._wall_s

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass on both clocks."""
        if seconds < 0:
            raise ValueError("time does not go back; use set_wall for a clock jump")
        self._monotonic_s += seconds
        self._wall_s += seconds

    def set_wall(self, wall_s: float) -> None:
        """Set only the wall clock, as NTP does after the boot of a board without a battery-backed clock."""
        self._wall_s = wall_s
