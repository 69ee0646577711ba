"""The governor's words: levels, what is planned, seen, granted and remembered. `governor` decides with them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from edge_agent.base.reading import Reading
from edge_agent.core.anti_hunting import PaceHistory
from edge_agent.core.sensor_validation import SensorState
from edge_agent.core.thermal_model import ANY_BOARD, Model, Prior

SET_POINT_BELOW_SOFT_C = 2.5
HARD_ABOVE_SOFT_C = 3.5


class Level(IntEnum):
    """How much is held back. EMERGENCY: nothing is computed until the board is cooler."""

    NORMAL = 0
    REDUCED = 1
    CLOSED = 2
    EMERGENCY = 3


@dataclass(frozen=True, slots=True)
class GovernorConfig:
    """The board's soft limit (None: unknown board) and the limits that hold when nothing is wrong.

    `hard_limit_c`: where firmware or kernel cut hard (None: 3.5 °C above the soft limit). `prior`: what is assumed of
    the board until it was watched. `clocks`: shares of the highest clock that the operator lets us set; empty: none.
    `firmware_soft_c`: the temperature that the firmware's throttle flags stand for (None: the soft limit).
    """

    soft_limit_c: float | None
    max_rows: int
    threads: int
    hard_limit_c: float | None = None
    prior: Prior = ANY_BOARD
    clocks: tuple[float, ...] = ()
    firmware_soft_c: float | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """What else was seen in this second; every part may be unknown.

    `busy_share`: the part of the last second in which a step ran (None: taken to be all that was allowed).
    `row_s`: seconds that a row of the slowest recent step took. `second`: another temperature of the same board.
    `throttle_word`: the Raspberry Pi's flags. `bandwidth_bound`: the load waits for memory, so that threads and clock
    can be taken from it almost for free (token generation).
    """

    busy_share: float | None = None
    row_s: float | None = None
    power: Reading | None = None
    second: Reading | None = None
    throttle_word: int = 0
    bandwidth_bound: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    """What may be used now. `closed_because` is the sentence of a refusal, None while requests are admitted.

    `busy_share`: the part of the time in which steps may run (1: no pause between steps, 0: none may start), of all
    models together. `of_threads`, `of_rows`: how many threads and rows there are without limits (0: these).
    `clock`: share of the highest clock. `tier`: 1 asks for a cheaper variant. `forecast_c`: in ten seconds at this
    grant; `headroom_c` is what that leaves to the soft limit. `derated`: why the sensor is not believed;
    `disagree`: what two sensors say that contradict each other, of which the hotter one counts.
    """

    level: Level
    max_rows: int
    threads: int
    closed_because: str | None
    why: str
    busy_share: float = 1.0
    clock: float = 1.0
    tier: int = 0
    share: float = 1.0
    temperature_c: float | None = None
    forecast_c: float | None = None
    headroom_c: float | None = None
    derated: str | None = None
    disagree: str | None = None
    of_threads: int = 0
    of_rows: int = 0

    @property
    def takes_turns(self) -> bool:
        """Whether the limits leave no room for two models that compute at once."""
        return self.busy_share < 1.0 or self.threads < self.of_threads


class GovernorState(NamedTuple):
    """What the governor carries from one second to the next. `rung` counts in the ladder that `clocks` make."""

    level: Level = Level.NORMAL
    since_s: float = -math.inf
    now_s: float = -math.inf
    trust: SensorState = SensorState()
    model: Model | None = None
    temperature_c: float = math.nan
    share: float = 1.0
    slow_share: float = 1.0
    rung: int = 0
    rung_since_s: float = -math.inf
    clocks: tuple[float, ...] = ()
    busy: float = 1.0
    power: float = 1.0
    scale: float = 1.0
    idle_since_s: float = math.inf
    tier: int = 0
    tier_since_s: float = -math.inf
    swing: PaceHistory = PaceHistory()
