"""How short of memory the host is, in stages, early enough that it stays reachable.

TIGHT     idle models leave one by one, workers give back what they only cache
SHORT     no request is admitted, no model loaded
CRITICAL  a worker is ended

A stage follows from MemAvailable against the reserve that residency leaves to the host, and from the kernel's pressure
figures (PSI) where there are any: they see what the bytes do not, a host that is busy reclaiming. Where there are none
(stock Raspberry Pi OS, Jetson Nano) the rate at which tasks wait for pages that were dropped before stands in for them.
A stage rises at once and falls when there has been more again for a while. Pure: `agent.memory_guard` looks several
times a second, and acts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from edge_agent.base.units import bytes_text

BELOW_RESERVE = {1: 0.66, 2: 0.4, 3: 0.25}
"""Shares of the reserve at which a stage begins. The reserve itself is where admission stops, so that a load that was
admitted to the last byte does not raise an alarm."""
SOME_PERCENT = 5.0
"""Tasks waited for memory in 5 % of the last ten seconds (facts/boards.md E; systemd-oomd's 60 % is too late here)."""
FULL_PERCENT = 5.0
WAITS_PER_S = {1: 75.0, 2: 500.0}
"""Pages a second that had to come back from the disk, by stage, without PSI. A memory card of class A1 reads at least
1,500 random pages a second: 75 take 5 % of a second, as in `SOME_PERCENT`; 500 take a third of it."""
WAITS_BELOW_RESERVE = {1: 1.5, 2: 1.0}
"""Shares of the reserve below which these rates count. With plenty available it is a model that is loaded once more
from a file that had been dropped; a load that was admitted leaves the reserve, so that it never closes the door."""
WAITS_WINDOW_S = 2.0
"""Rates are taken over so long: at 75 a second the count is some 150, far from chance."""
CALM_AFTER_S = 5.0
CALM_FACTOR = 1.25


class PressureStage(IntEnum):
    """How short memory is."""

    CALM = 0
    TIGHT = 1
    SHORT = 2
    CRITICAL = 3


class FaultCounts(NamedTuple):
    """Pages since boot that somebody waited for: `major_faults` on the disk, `swapped_in` from swap, and `refaults` of
    files' pages that had been dropped (None: the kernel does not count them)."""

    major_faults: float
    swapped_in: float
    refaults: float | None = None


class StallRate(NamedTuple):
    """The rate of `FaultCounts` that `rate` keeps: the counts at the window's beginning, and the last window's
    result.
    """

    since_s: float = -math.inf
    counts: FaultCounts | None = None
    per_s: float | None = None


NO_WAITS = StallRate()


@dataclass(frozen=True, slots=True)
class MemorySigns:
    """What was read: MemAvailable less what models have mapped, the reserve, and PSI (None: the kernel has none).

    `counts` stand in where there is no PSI; the same counts are looked at by nobody where there is.
    """

    available_bytes: int
    reserve_bytes: int
    some_percent: float | None = None
    full_percent: float | None = None
    counts: FaultCounts | None = None


class PressureState(NamedTuple):
    """What is remembered: the stage, since when the signs are those of a lower one, and the rate of waits."""

    stage: PressureStage = PressureStage.CALM
    lower_since_s: float = math.inf
    waits: StallRate = NO_WAITS


def rate(counts: FaultCounts, waits: StallRate, now_s: float) -> StallRate:
    """StallRate a second over the last whole window; None before the first one has passed.

    A first reading of a file is a major fault and no refault; a page from swap may be both a fault and a swap-in. So
    the larger of swap-ins and of those faults that can have been refaults counts, and none is counted twice.
    """
    begun = waits.counts
    if begun is None or any(now < then for now, then in zip(counts[:2], begun[:2], strict=True)):
        return StallRate(now_s, counts)
    elapsed_s = now_s - waits.since_s
    if elapsed_s < WAITS_WINDOW_S:
        return waits
    faults = counts.major_faults - begun.major_faults
    if counts.refaults is not None and begun.refaults is not None:
        faults = min(faults, max(0.0, counts.refaults - begun.refaults))
    return StallRate(now_s, counts, max(faults, counts.swapped_in - begun.swapped_in) / elapsed_s)


def decide(signs: MemorySigns, state: PressureState, now_s: float) -> PressureState:
    """The stage now. It falls to what the signs say after they have been clearly better for `CALM_AFTER_S`."""
    waits = StallRate()
    if signs.some_percent is None and signs.counts is not None:
        waits = rate(signs.counts, state.waits, now_s)
    wanted = _stage(signs, waits.per_s, 1.0)
    if wanted >= state.stage:
        return PressureState(wanted, waits=waits)
    if _stage(signs, waits.per_s, CALM_FACTOR) >= state.stage:
        return PressureState(state.stage, waits=waits)
    since_s = min(state.lower_since_s, now_s)
    return (
        PressureState(wanted, waits=waits)
        if now_s - since_s >= CALM_AFTER_S
        else PressureState(state.stage, since_s, waits)
    )


def reason(signs: MemorySigns, waits: StallRate = NO_WAITS) -> str:
    """The figures, for refusals and events."""
    said = (
        f"{bytes_text(max(0, signs.available_bytes))} are available, {bytes_text(signs.reserve_bytes)} are to stay free"
    )
    if signs.full_percent is not None and signs.some_percent is not None:
        return f"{said}, tasks waited for memory in {signs.some_percent:.0f} % of the last ten seconds"
    if waits.per_s is not None and waits.per_s >= WAITS_PER_S[1]:
        return f"{said}, tasks waited for {waits.per_s:.0f} pages a second to come back from the disk"
    return said


def _stage(signs: MemorySigns, waits_per_s: float | None, factor: float) -> PressureStage:
    """`factor` above 1 asks for a stage that has more than just ended."""
    share = signs.available_bytes / max(1, factor * signs.reserve_bytes)
    by_bytes = PressureStage(max((stage for stage, below in BELOW_RESERVE.items() if share < below), default=0))
    by_pressure = PressureStage.CALM
    if signs.some_percent is not None and factor * signs.some_percent > SOME_PERCENT:
        by_pressure = PressureStage.TIGHT
    if signs.full_percent is not None and factor * signs.full_percent > FULL_PERCENT:
        by_pressure = PressureStage.SHORT
    if waits_per_s is not None:
        for stage, most in WAITS_PER_S.items():
            if factor * waits_per_s > most and share < WAITS_BELOW_RESERVE[stage]:
                by_pressure = PressureStage(stage)
    return max(by_bytes, by_pressure)
