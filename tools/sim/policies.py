"""Who decides on limits once a second: the governor, and what it is compared with. One object per lane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from edge_agent.base.reading import Reading
from edge_agent.core import governor
from edge_agent.core.thermal_model import prior_for
from sim.boards import FLAGGED, BoardModel

SET_POINT_BELOW_SOFT_C = governor.SET_POINT_BELOW_SOFT_C


class Look(NamedTuple):
    """What a policy sees: the kernel's temperature and measured watts (None: there are none), the busy part of the
    second, seconds per row, throttle flags, another source of the temperature (None: there is none)."""

    now_s: float
    sensor_c: float | None
    power_w: float | None
    busy: float
    row_s: float | None = None
    flags: int = 0
    second_c: float | None = None


class Drive(NamedTuple):
    """Limits to apply: rows, threads, clock cap, the part of the time in which steps may run, whether jobs are refused.

    `mark` identifies the setting: a change of it counts as a level change.
    """

    rows: int
    threads: int
    clock: float
    busy: float
    closed: bool
    mark: tuple[int, ...]


class Policy(Protocol):
    """Asked once a second."""

    def limits(self, look: Look) -> Drive:
        """What holds from now on."""
        ...


@dataclass
class Constant:
    """The same limits for ever; at full limits it is 'no control', where only the firmware acts."""

    rows: int
    threads: int
    clock: float = 1.0
    busy: float = 1.0

    def limits(self, look: Look) -> Drive:
        """The limits."""
        del look
        return Drive(self.rows, self.threads, self.clock, self.busy, False, ())


@dataclass
class OnOff:
    """Two thresholds: stop at the upper, go on at the lower."""

    rows: int
    threads: int
    upper_c: float
    lower_c: float
    running: bool = True

    def limits(self, look: Look) -> Drive:
        """All or nothing."""
        if look.sensor_c is not None:
            self.running = look.sensor_c < self.upper_c if self.running else look.sensor_c <= self.lower_c
        return Drive(self.rows, self.threads, 1.0, float(self.running), False, (int(self.running),))


@dataclass
class DutyCycle:
    """Full speed for a part of every period; the part follows the mean temperature of the last period."""

    rows: int
    threads: int
    set_point_c: float
    period_s: int = 20
    gain_per_c: float = 0.02
    duty: float = 1.0
    sum_c: float = 0.0
    second: int = 0

    def limits(self, look: Look) -> Drive:
        """On until the duty is used up, then off."""
        if look.sensor_c is not None:
            self.sum_c += look.sensor_c
        if self.second == self.period_s:
            error_c = self.set_point_c - self.sum_c / self.period_s
            self.duty = max(0.0, min(self.duty + self.gain_per_c * error_c, 1.0))
            self.second, self.sum_c = 0, 0.0
        on = self.second < round(self.duty * self.period_s)
        self.second += 1
        return Drive(self.rows, self.threads, 1.0, float(on), False, (int(on),))


class Governed:
    """The governor of the product, with the readings it would have on that board."""

    def __init__(self, board: BoardModel, rows: int, clocks: bool, generator: bool) -> None:
        """`clocks`: whether the operator lets the agent set the clock."""
        self._clocks = board.clock_shares if clocks else ()
        flags_c = board.soft_c if board.law in FLAGGED else None
        prior = prior_for(board.board)
        self.config = governor.GovernorConfig(
            board.soft_c, rows, board.cores, board.hard_c, prior, self._clocks, flags_c
        )
        self._generator = generator
        self.state = governor.GovernorState()
        self.grant: governor.ComputeGrant | None = None

    def limits(self, look: Look) -> Drive:
        """One call of `governor.decide`."""
        reading = (
            Reading(look.sensor_c, "celsius", "sim", look.now_s - 1.0)
            if look.sensor_c is not None
            else Reading(None, "celsius", "sim", look.now_s, "the sensor is lost")
        )
        power = Reading(look.power_w, "watts", "sim", look.now_s) if look.power_w is not None else None
        second = Reading(look.second_c, "celsius", "sim", look.now_s - 1.0) if look.second_c is not None else None
        observed = governor.Observation(look.busy, look.row_s, power, second, look.flags, self._generator)
        grant, self.state = governor.decide(self.config, reading, self.state, look.now_s, observed)
        self.grant = grant
        closed = grant.closed is not None
        mark = (int(grant.level), self.state.point_index)
        return Drive(grant.max_rows, grant.threads, grant.clock, grant.duty_share, closed, mark)
