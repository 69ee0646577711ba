"""How short of memory the host is, in stages that begin early enough for the host to stay reachable.

TIGHT     idle models are evicted one by one, and workers free their caches
SHORT     additionally no request is admitted and no model is loaded
CRITICAL  additionally a worker is ended

The stage follows from MemAvailable against the reserve of `residency`, and from the kernel's pressure stall information
(PSI) where there is any: PSI shows a host that is busy reclaiming memory, which the number of bytes does not. A kernel
without PSI (stock Raspberry Pi OS, Jetson Nano) is judged by the rate at which tasks wait for pages that had been
dropped. A stage rises at once and falls only after memory has been clearly better for `CALM_AFTER_S`.

Pure: `agent.memory_guard` reads the figures several times a second and acts on the stage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from edge_agent.base.units import bytes_text

BELOW_RESERVE = {1: 0.66, 2: 0.4, 3: 0.25}
"""Available bytes as a share of the reserve below which a stage begins. They lie below 1 because admission of loads
stops at the reserve itself: a load that used the last permitted byte must not raise an alarm."""
SOME_PERCENT = 5.0
"""PSI `some avg10`: some task waited for memory in 5 % of the last ten seconds. The 60 % at which systemd-oomd acts is
too late on a board with a memory card, which is unreachable by then."""
FULL_PERCENT = 5.0
"""PSI `full avg10`: all tasks waited at the same time."""
STALLS_PER_S = {1: 75.0, 2: 500.0}
"""Without PSI: pages a second that had to come back from the disk, by stage. A memory card of class A1 reads at least
1,500 random pages a second (SD specification), so 75 take 5 % of a second, as in `SOME_PERCENT`, and 500 a third."""
STALLS_BELOW_RESERVE = {1: 1.5, 2: 1.0}
"""Available bytes as a share of the reserve below which these rates count. With more memory the waits come from a model
that is loaded again from a file that was dropped. An admitted load leaves the whole reserve, so that it never closes
admission."""
STALLS_WINDOW_S = 2.0
"""Rates are taken over this time: at 75 a second that is about 150 events, of which chance explains 8 %."""
CALM_AFTER_S = 5.0
CALM_FACTOR = 1.25
"""Memory is clearly better when the stage would still be lower with a reserve and pressure figures 25 % higher."""


class PressureStage(IntEnum):
    """How short of memory the host is."""

    CALM = 0
    TIGHT = 1
    SHORT = 2
    CRITICAL = 3


class FaultCounts(NamedTuple):
    """Pages since boot that a task waited for.

    `major_faults`: read from disk. `swapped_in`: read from swap. `refaults`: pages of files that had been in memory
    before (None: the kernel does not count them).
    """

    major_faults: float
    swapped_in: float
    refaults: float | None = None


class StallRate(NamedTuple):
    """The current window of `stall_rate`: its start with the counts then, and the rate of the window before."""

    since_s: float = -math.inf
    counts: FaultCounts | None = None
    per_s: float | None = None


NO_STALLS = StallRate()


@dataclass(frozen=True, slots=True)
class MemorySigns:
    """What was read: MemAvailable less the bytes that models have mapped, the reserve, and PSI (None: no PSI).

    `counts` are used only where there is no PSI.
    """

    available_bytes: int
    reserve_bytes: int
    some_percent: float | None = None
    full_percent: float | None = None
    counts: FaultCounts | None = None


class PressureState(NamedTuple):
    """The stage, since when the signs have been those of a lower one, and the rate of stalls."""

    stage: PressureStage = PressureStage.CALM
    lower_since_s: float = math.inf
    stalls: StallRate = NO_STALLS


def stall_rate(counts: FaultCounts, stalls: StallRate, now_s: float) -> StallRate:
    """The rate over the last whole window of `STALLS_WINDOW_S`; None before the first window has passed.

    The first read of a file is a major fault and no refault, and a page from swap may count both as a fault and as a
    swap-in. The rate is therefore the larger of swap-ins and of those faults that can have been refaults.
    """
    begun = stalls.counts
    # A counter that went back (the tree under `sysroot` was replaced) starts a new window.
    if begun is None or any(now < then for now, then in zip(counts[:2], begun[:2], strict=True)):
        return StallRate(now_s, counts)
    elapsed_s = now_s - stalls.since_s
    if elapsed_s < STALLS_WINDOW_S:
        return stalls
    # Kernels without refault counts: every fault may have been a refault, which errs towards a higher stage.
    faults = counts.major_faults - begun.major_faults
    if counts.refaults is not None and begun.refaults is not None:
        faults = min(faults, max(0.0, counts.refaults - begun.refaults))
    return StallRate(now_s, counts, max(faults, counts.swapped_in - begun.swapped_in) / elapsed_s)


def decide(signs: MemorySigns, state: PressureState, now_s: float) -> PressureState:
    """The next state. The stage falls to that of the signs once they have been clearly better for `CALM_AFTER_S`."""
    # With PSI the counters are not used, and a window that was begun before is dropped.
    stalls = StallRate()
    if signs.some_percent is None and signs.counts is not None:
        stalls = stall_rate(signs.counts, state.stalls, now_s)
    wanted = _stage(signs, stalls.per_s, 1.0)
    if wanted >= state.stage:
        return PressureState(wanted, stalls=stalls)
    # Better than the stage, and not clearly: stay, and start the time of calm again.
    if _stage(signs, stalls.per_s, CALM_FACTOR) >= state.stage:
        return PressureState(state.stage, stalls=stalls)
    since_s = min(state.lower_since_s, now_s)
    if now_s - since_s >= CALM_AFTER_S:
        return PressureState(wanted, stalls=stalls)
    return PressureState(state.stage, since_s, stalls)


def reason(signs: MemorySigns, stalls: StallRate = NO_STALLS) -> str:
    """The figures, for refusals and events."""
    text = (
        f"{bytes_text(max(0, signs.available_bytes))} are available, {bytes_text(signs.reserve_bytes)} are to stay free"
    )
    if signs.full_percent is not None and signs.some_percent is not None:
        return f"{text}, tasks waited for memory in {signs.some_percent:.0f} % of the last ten seconds"
    if stalls.per_s is not None and stalls.per_s >= STALLS_PER_S[1]:
        return f"{text}, tasks waited for {stalls.per_s:.0f} pages a second to come back from the disk"
    return text


def _stage(signs: MemorySigns, stalls_per_s: float | None, factor: float) -> PressureStage:
    """The stage of the signs; `factor` multiplies the reserve and the pressure figures."""
    share = signs.available_bytes / max(1, factor * signs.reserve_bytes)
    by_bytes = PressureStage(max((stage for stage, below in BELOW_RESERVE.items() if share < below), default=0))
    by_pressure = PressureStage.CALM
    if signs.some_percent is not None and factor * signs.some_percent > SOME_PERCENT:
        by_pressure = PressureStage.TIGHT
    if signs.full_percent is not None and factor * signs.full_percent > FULL_PERCENT:
        by_pressure = PressureStage.SHORT
    if stalls_per_s is not None:
        for stage, most in STALLS_PER_S.items():
            if factor * stalls_per_s > most and share < STALLS_BELOW_RESERVE[stage]:
                by_pressure = PressureStage(stage)
    return max(by_bytes, by_pressure)
