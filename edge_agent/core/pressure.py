"""How short of memory the host is, in stages, early enough that it stays reachable.

TIGHT     idle models leave one by one, workers give back what they only cache
SHORT     no request is admitted, no model loaded
CRITICAL  a worker is ended

A stage follows from MemAvailable against the reserve that residency leaves to the host, and from the kernel's pressure
figures (PSI) where there are any: they see what the bytes do not, a host that is busy reclaiming. It rises at once and
falls when there has been more again for a while. Pure: `agent.guard` looks several times a second, and acts.
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
CALM_AFTER_S = 5.0
CALM_FACTOR = 1.25


class Stage(IntEnum):
    """How short memory is."""

    CALM = 0
    TIGHT = 1
    SHORT = 2
    CRITICAL = 3


@dataclass(frozen=True, slots=True)
class Signs:
    """What was read: MemAvailable less what models have mapped, the reserve, and PSI (None: the kernel has none)."""

    available_bytes: int
    reserve_bytes: int
    some_percent: float | None = None
    full_percent: float | None = None


class State(NamedTuple):
    """What is remembered: the stage, and since when the signs are those of a lower one."""

    stage: Stage = Stage.CALM
    lower_since_s: float = math.inf


def decide(signs: Signs, state: State, now_s: float) -> State:
    """The stage now. It falls to what the signs say after they have been clearly better for `CALM_AFTER_S`."""
    wanted = _stage(signs, 1.0)
    if wanted >= state.stage:
        return State(wanted)
    if _stage(signs, CALM_FACTOR) >= state.stage:
        return State(state.stage)
    since_s = min(state.lower_since_s, now_s)
    return State(wanted) if now_s - since_s >= CALM_AFTER_S else State(state.stage, since_s)


def reason(signs: Signs) -> str:
    """The figures, for refusals and events."""
    said = (
        f"{bytes_text(max(0, signs.available_bytes))} are available, {bytes_text(signs.reserve_bytes)} are to stay free"
    )
    if signs.full_percent is None or signs.some_percent is None:
        return said
    return f"{said}, tasks waited for memory in {signs.some_percent:.0f} % of the last ten seconds"


def _stage(signs: Signs, factor: float) -> Stage:
    """`factor` above 1 asks for a stage that has more than just ended."""
    share = signs.available_bytes / max(1, factor * signs.reserve_bytes)
    by_bytes = Stage(max((stage for stage, below in BELOW_RESERVE.items() if share < below), default=0))
    by_pressure = Stage.CALM
    if signs.some_percent is not None and factor * signs.some_percent > SOME_PERCENT:
        by_pressure = Stage.TIGHT
    if signs.full_percent is not None and factor * signs.full_percent > FULL_PERCENT:
        by_pressure = Stage.SHORT
    return max(by_bytes, by_pressure)
