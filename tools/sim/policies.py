"""The policies that set limits once a second: the governor, and the policies that it is compared with. One per lane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from edge_agent.base.reading import Reading
from edge_agent.core import governor
from edge_agent.core.thermal_model import prior_for
from sim.boards import FLAGGED, BoardModel

SET_POINT_BELOW_SOFT_C = governor.SET_POINT_BELOW_SOFT_C


class PolicyInput(NamedTuple):
    """What a policy is told: time, the kernel's temperature in °C, measured watts, the share of the last second that
    was computed, seconds per row, throttle flags, and a second source of the temperature. None: not available.
    """

    now_s: float
    sensor_c: float | None
    power_w: float | None
    busy_share: float
    row_s: float | None = None
    flags: int = 0
    second_c: float | None = None


class PolicyLimits(NamedTuple):
    """The limits to apply: rows, threads, clock cap, duty share, and whether new jobs are refused.

    `mark` identifies the setting; a change of it counts as a change of level.
    """

    rows: int
    threads: int
    clock: float
    duty_share: float
    closed: bool
    mark: tuple[int, ...]


class Policy(Protocol):
    """Asked once a second."""

    def limits(self, seen: PolicyInput) -> PolicyLimits:
        """The limits from now on."""
        ...


@dataclass
class ConstantLimits:
    """Constant limits; at full limits only the firmware controls the temperature."""

    rows: int
    threads: int
    clock: float = 1.0
    duty_share: float = 1.0

    def limits(self, seen: PolicyInput) -> PolicyLimits:
        """The limits."""
        del seen
        return PolicyLimits(self.rows, self.threads, self.clock, self.duty_share, False, ())


@dataclass
class OnOffControl:
    """Two-point control: stop at the upper threshold, continue at the lower one."""

    rows: int
    threads: int
    upper_c: float
    lower_c: float
    running: bool = True

    def limits(self, seen: PolicyInput) -> PolicyLimits:
        """Full limits or none."""
        if seen.sensor_c is not None:
            self.running = seen.sensor_c < self.upper_c if self.running else seen.sensor_c <= self.lower_c
        return PolicyLimits(self.rows, self.threads, 1.0, float(self.running), False, (int(self.running),))


@dataclass
class DutyCycleControl:
    """Full speed for a share of every period; integral control of that share by the mean temperature of a period."""

    rows: int
    threads: int
    set_point_c: float
    period_s: int = 20
    gain_per_c: float = 0.02
    duty: float = 1.0
    sum_c: float = 0.0
    second: int = 0

    def limits(self, seen: PolicyInput) -> PolicyLimits:
        """On for the duty share of the period, then off."""
        if seen.sensor_c is not None:
            self.sum_c += seen.sensor_c
        if self.second == self.period_s:
            error_c = self.set_point_c - self.sum_c / self.period_s
            self.duty = max(0.0, min(self.duty + self.gain_per_c * error_c, 1.0))
            self.second, self.sum_c = 0, 0.0
        on = self.second < round(self.duty * self.period_s)
        self.second += 1
        return PolicyLimits(self.rows, self.threads, 1.0, float(on), False, (int(on),))


class GovernorControl:
    """The agent's governor, with the readings that it would have on that board."""

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

    def limits(self, seen: PolicyInput) -> PolicyLimits:
        """Call `governor.decide`."""
        reading = (
            Reading(seen.sensor_c, "celsius", "sim", seen.now_s - 1.0)
            if seen.sensor_c is not None
            else Reading(None, "celsius", "sim", seen.now_s, "the sensor is lost")
        )
        power = Reading(seen.power_w, "watts", "sim", seen.now_s) if seen.power_w is not None else None
        second = Reading(seen.second_c, "celsius", "sim", seen.now_s - 1.0) if seen.second_c is not None else None
        observed = governor.Observation(seen.busy_share, seen.row_s, power, second, seen.flags, self._generator)
        grant, self.state = governor.decide(self.config, reading, self.state, seen.now_s, observed)
        self.grant = grant
        closed = grant.closed is not None
        mark = (int(grant.level), self.state.point_index)
        return PolicyLimits(grant.max_rows, grant.threads, grant.clock, grant.duty_share, closed, mark)
