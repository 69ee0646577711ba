"""A pace that has turned does not turn back at once: what hunts is calmed for the dwell.

The share of power that heat allows moves with the noise of the sensor. On a rung of little power a small correction of
that share is a large one of the pace, so that it would swing up and down within seconds for nothing: the die's heat
evens out what lies so near together. Only what leads near the limit is taken back at once (`urgent`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

SWING = 0.1
"""Smaller movements of the pace are no turn."""
DWELL_S = 10.0
JUST = 1e-6


class PaceHistory(NamedTuple):
    """Which way the pace went last (1 up, -1 down, 0 not yet), how far it came, and when it turned."""

    rising: int = 0
    extreme: float = math.nan
    turned_s: float = -math.inf
    rung: int = 0


def calmed(swing: PaceHistory, pace: float, now_s: float, rung: int, urgent: bool) -> tuple[float, PaceHistory]:
    """The pace to keep instead of `pace` (0 to 1) on this rung, and what to remember.

    Another rung's pace is no turn: it makes up for the threads or the clock.
    """
    if math.isnan(swing.extreme) or rung != swing.rung:
        return pace, swing._replace(extreme=pace, rung=rung)
    moved = pace - swing.extreme
    if swing.rising == 0:
        rising = 0 if abs(moved) < SWING else 1 if moved > 0.0 else -1
        return pace, swing._replace(rising=rising, extreme=pace if rising else swing.extreme)
    if swing.rising * moved >= 0.0:
        return pace, swing._replace(extreme=pace)
    if abs(moved) < SWING:
        return pace, swing
    if now_s - swing.turned_s < DWELL_S and not (urgent and moved < 0.0):
        return swing.extreme - swing.rising * (SWING - JUST), swing
    return pace, swing._replace(rising=-swing.rising, extreme=pace, turned_s=now_s)
