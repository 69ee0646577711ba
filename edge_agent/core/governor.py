"""The thermal governor: limits on batch size, threads, clock, duty share and admission that keep a board below its soft
temperature limit.

`decide` is a pure function of (config, temperature reading, state, time, observation) and is called once a second. It
controls the temperature to a set point 2.5 °C below the soft limit with a PI controller in internal-model form:

    watts = spent + GAIN * (sustainable - spent)

`spent` is the low-passed electrical power that the board really took. It serves as the integral term of the controller;
because it is what was spent and not what was requested, it cannot wind up. `sustainable` is the feed-forward term: the
power whose forecast ten seconds ahead lies at the set point, by the identified thermal model (`thermal_model`).

The resulting share of full dynamic power becomes an operating point (threads and clock, see `operating_points`) and a
duty share: the fraction of the time in which steps may run at that operating point. `sensor_validation` decides whether
the temperature can be believed; without a valid temperature the governor falls back to reduced power.

This module reads no sensors (`sensors` does) and applies no limits (`agent.governor_loop` does). docs/governor.md
describes the design and the measurements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from edge_agent.base.causes import Cause, Closure
from edge_agent.base.reading import Reading
from edge_agent.core import operating_points
from edge_agent.core.sensor_validation import DieConditions, SensorState, ValidatedTemperature, validate
from edge_agent.core.thermal_model import (
    DEFAULT_PRIOR,
    ThermalModel,
    ThermalPrior,
    advance,
    forecast_c,
    holding_w,
    learn,
    settled_w,
    start_model,
)

SET_POINT_BELOW_SOFT_C = 2.5
HARD_ABOVE_SOFT_C = 3.5
HYSTERESIS_C = 3.0
DWELL_S = 10.0
"""Shortest time between two changes of the operating point, before the level falls, and between two reversals of the
duty share."""
FORECAST_S = 10.0
GAIN = 0.8
FILTER_GAIN = 0.25
"""Weight of a new sample in the temperature estimate: a first-order low pass of about 3 s at one sample a second."""
SLEW_UP_PER_S, SLEW_DOWN_PER_S = 0.1, 0.3
"""The power share rises by at most 10 % of full power a second and falls by at most 30 %."""
UNLIMITED_ABOVE = 0.97
"""A duty share from here on counts as 1: a pause of 3 % of the time would save next to nothing."""
LEAST_DUTY_SHARE = 0.01
DEADBAND = 0.015
"""In shares of full power: the duty share follows the power share only beyond this distance, which keeps it still
against the noise of the sensor."""
STEP_RISE_C = 1.5
"""The processor die may heat up by this much within one step; longer steps get fewer rows."""
RIPPLE_SHARE = 0.25
"""The set point is lowered by this share of the temperature rise within a step: the peaks must stay below the limit,
not only the mean."""
HEADROOM_S = 60.0
"""Limits are lifted once the forecast says that full power could be held for this long."""
NEAR_SOFT_C = 1.0
"""A forecast closer than this to the soft limit lets the duty share be reduced at once, without the dwell time."""
UNCHANGED_S, PROBE_NEAR_S, PROBE_AFTER_S, PROBE_PER_S = 5.0, 15.0, 120.0, 0.01
LOADED_ABOVE, NEAR_C = 0.05, 12.5
"""For both lines see `_unchanged_reading_limit`."""
NO_SENSOR_SHARE = 0.1
LEARNED_AFTER_S = 60.0
"""Power share without a temperature until the board has been observed under a changing load for `LEARNED_AFTER_S`."""
CHEAPER_BELOW, CHEAPER_AFTER_S, BETTER_AFTER_S = 0.5, 60.0, 300.0
REVERSAL_SHARE = 0.1
"""Movements of the duty share smaller than this do not count as a reversal."""
EPSILON = 1e-6


class GovernorLevel(IntEnum):
    """How much is held back. CLOSED: no request is admitted. EMERGENCY: additionally no step starts."""

    NORMAL = 0
    REDUCED = 1
    CLOSED = 2
    EMERGENCY = 3


@dataclass(frozen=True, slots=True)
class GovernorConfig:
    """What is fixed for a board, and the limits that hold without a thermal limit.

    `soft_limit_c`: °C that must not be reached (None: unknown board, which is never limited). `hard_limit_c`: °C from
    which firmware or kernel throttle hard (None: 3.5 °C above the soft limit). `prior`: thermal parameters assumed
    until the board has been observed. `clocks`: shares of the highest clock that the operator permits to set; empty:
    none. `firmware_soft_c`: the °C that the firmware's throttle flags stand for (None: the soft limit).
    """

    soft_limit_c: float | None
    max_rows: int
    threads: int
    hard_limit_c: float | None = None
    prior: ThermalPrior = DEFAULT_PRIOR
    clocks: tuple[float, ...] = ()
    firmware_soft_c: float | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """What else was observed during the last second; every part may be unknown.

    `busy_share`: fraction of the last second in which a step ran (None: taken to be the granted duty share).
    `row_s`: seconds per row of the slowest recent step. `power`: watts at the board's input. `second`: a second source
    of the board's temperature. `throttle_word`: the Raspberry Pi's throttle flags. `bandwidth_bound`: the load is
    limited by memory bandwidth (token generation), so that fewer threads and a lower clock cost little speed.
    """

    busy_share: float | None = None
    row_s: float | None = None
    power: Reading | None = None
    second: Reading | None = None
    throttle_word: int = 0
    bandwidth_bound: bool = False


@dataclass(frozen=True, slots=True)
class ComputeGrant:
    """The limits that hold now. `closed`: why requests are refused; None while they are admitted.

    `duty_share`: fraction of the time in which steps may run, of all models together (1: no pauses, 0: no step starts).
    `clock`: share of the highest clock. `tier`: 1 asks for a cheaper variant. `power_share`: share of full dynamic
    power that may be spent. `forecast_c`: temperature in ten seconds under this grant; `headroom_c`: its distance to
    the soft limit. `derated`: why the temperature is not believed. `disagree`: what two contradicting sensors say, of
    which the hotter one is used. `unlimited_threads`, `unlimited_rows`: threads and rows without a thermal limit (0:
    those granted).
    """

    level: GovernorLevel
    max_rows: int
    threads: int
    closed: Closure | None
    why: str
    duty_share: float = 1.0
    clock: float = 1.0
    tier: int = 0
    power_share: float = 1.0
    temperature_c: float | None = None
    forecast_c: float | None = None
    headroom_c: float | None = None
    derated: str | None = None
    disagree: str | None = None
    unlimited_threads: int = 0
    unlimited_rows: int = 0

    @property
    def one_at_a_time(self) -> bool:
        """Whether the limits leave too little power for two models to compute at once."""
        return self.duty_share < 1.0 or self.threads < self.unlimited_threads


class ReversalState(NamedTuple):
    """The last movement of the duty share at one operating point, for `limit_reversals`.

    `direction`: 1 up, -1 down, 0 not known yet. `extreme`: the furthest value in that direction. `reversed_s`: when the
    direction last changed.
    """

    direction: int = 0
    extreme: float = math.nan
    reversed_s: float = -math.inf
    point_index: int = 0


class GovernorState(NamedTuple):
    """What the governor carries from one second to the next.

    `decided_s`: time of the last call. `temperature_c`: filtered estimate. `mean_power_share`: `power_share` behind a
    low pass of `DWELL_S`. `point_index`: index into the operating points that `clocks` produce. `step_power_share`:
    share of full dynamic power while a step runs at that point. `full_power_scale`: measured over assumed full power.
    `stopped_since_s`: since when the duty share is 0.
    """

    level: GovernorLevel = GovernorLevel.NORMAL
    level_since_s: float = -math.inf
    decided_s: float = -math.inf
    sensor: SensorState = SensorState()
    model: ThermalModel | None = None
    temperature_c: float = math.nan
    power_share: float = 1.0
    mean_power_share: float = 1.0
    point_index: int = 0
    point_since_s: float = -math.inf
    clocks: tuple[float, ...] = ()
    duty_share: float = 1.0
    step_power_share: float = 1.0
    full_power_scale: float = 1.0
    stopped_since_s: float = math.inf
    tier: int = 0
    tier_since_s: float = -math.inf
    reversal: ReversalState = ReversalState()


NO_OBSERVATION = Observation()


def decide(
    config: GovernorConfig,
    temperature: Reading,
    state: GovernorState,
    now_s: float,
    observed: Observation = NO_OBSERVATION,
) -> tuple[ComputeGrant, GovernorState]:
    """One control step: the limits that hold from now on, and the next state.

    Called about once a second; longer gaps count as at most 5 s.
    """
    validated, state = _update_estimate(config, temperature, state, now_s, observed)
    if state.model is None:
        return _unlimited_grant(config, f"no temperature sensor: {temperature.reason}"), state
    if config.soft_limit_c is None:
        return _unlimited_grant(config, "the board's soft limit is unknown"), state
    elapsed_s = _elapsed_s(state, now_s)
    share = _sustainable_share(config, state, state.model, validated, observed)
    # Three limits on the controller's output: the unchanged reading, then the slew rate in both directions.
    share = min(share, _unchanged_reading_limit(config, state, validated, elapsed_s))
    lowest, highest = state.power_share - SLEW_DOWN_PER_S * elapsed_s, state.power_share + SLEW_UP_PER_S * elapsed_s
    share = max(lowest, min(share, highest))
    # The mean jumps to 1 with the share: full power must select the unlimited operating point without delay.
    mean = state.mean_power_share
    mean = 1.0 if share >= 1.0 else mean + (share - mean) * elapsed_s / DWELL_S
    state = state._replace(power_share=share, mean_power_share=mean)
    state = _with_operating_point(config, state, observed, now_s)
    state = _with_duty_share(config, state, validated, observed, now_s)
    state = _with_level(config, state, validated, now_s)
    state = _with_tier(state._replace(decided_s=now_s), now_s)
    return _grant(config, state, validated, observed), state


def _elapsed_s(state: GovernorState, now_s: float) -> float:
    # Bounded to 5 s: after a longer stop (a suspended board) the low passes would jump to the last power.
    return max(0.0, min(now_s - state.decided_s, 5.0)) if state.decided_s > -math.inf else 1.0


def _update_estimate(
    config: GovernorConfig, temperature: Reading, state: GovernorState, now_s: float, observed: Observation
) -> tuple[ValidatedTemperature, GovernorState]:
    """Predict the temperature from the power spent, correct it by the reading, and update the thermal model."""
    elapsed_s = _elapsed_s(state, now_s)
    # The prediction comes before the correction, as in a Kalman filter with a fixed gain: between samples the estimate
    # follows the power, and a late sample changes nothing.
    model, predicted_c = state.model, state.temperature_c
    if model is not None:
        spent_w = _spent_w(config, state, observed)
        predicted_c = forecast_c(model, state.temperature_c, spent_w, elapsed_s)
        model = advance(model, spent_w, elapsed_s)
        state = state._replace(full_power_scale=_full_power_scale(config, state, observed, now_s))
    die = DieConditions(model.fast_w, model.fast_k_per_w) if model is not None else DieConditions(0.0, 0.0)
    validated, sensor = validate(temperature, observed.second, state.sensor, die, now_s)
    if validated.value_c is not None:
        if model is None:
            model, predicted_c = start_model(config.prior, validated.value_c), validated.value_c
        measured_c = max(validated.value_c, _flagged_c(config, observed))
        predicted_c += FILTER_GAIN * (measured_c - predicted_c)
        # The model learns from the sensor only: a flag gives a lower bound and not a temperature.
        model = learn(model, config.prior, validated.value_c, elapsed_s)
    return validated, state._replace(sensor=sensor, model=model, temperature_c=predicted_c)


def _unchanged_reading_limit(
    config: GovernorConfig, state: GovernorState, validated: ValidatedTemperature, elapsed_s: float
) -> float:
    """Upper limit of the power share while the reading does not change.

    A reading that repeats itself may come from a frozen sensor, so it never permits more power than before. After
    `PROBE_NEAR_S` near the soft limit, or `PROBE_AFTER_S` elsewhere, the limit falls by `PROBE_PER_S` a second: a
    working sensor then changes, a frozen one is found by `sensor_validation`. Without load a working sensor cannot
    change; far from the soft limit `NO_SENSOR_SHARE` is always permitted, so that a cool board starts again.
    """
    if validated.value_c is not None and validated.unchanged_s < UNCHANGED_S:
        return 1.0
    # A frozen sensor is most dangerous near the limit, so it is probed there after 15 s instead of 120 s.
    near = state.temperature_c >= _soft_limit_c(config) - NEAR_C
    loaded = state.duty_share * state.step_power_share > LOADED_ABOVE
    probing = loaded and validated.unchanged_s >= (PROBE_NEAR_S if near else PROBE_AFTER_S)
    limit = max(0.0, state.power_share - (PROBE_PER_S * elapsed_s if probing else 0.0))
    return limit if near or validated.value_c is None else max(limit, NO_SENSOR_SHARE)


def _full_dynamic_w(config: GovernorConfig, state: GovernorState) -> float:
    return config.prior.full_w * state.full_power_scale


def _busy_share(state: GovernorState, observed: Observation) -> float:
    return state.duty_share if observed.busy_share is None else min(1.0, observed.busy_share)


def _spent_w(config: GovernorConfig, state: GovernorState, observed: Observation) -> float:
    dynamic_w = _full_dynamic_w(config, state) * state.step_power_share * _busy_share(state, observed)
    return config.prior.idle_w + dynamic_w


def _full_power_scale(config: GovernorConfig, state: GovernorState, observed: Observation, now_s: float) -> float:
    """Correct the assumed full power by the measured power, where the board has a power sensor and is under load."""
    power_share = state.step_power_share * _busy_share(state, observed)
    # Below a fifth of full power the quotient is dominated by errors of the assumed idle power.
    if observed.power is None or observed.power.value is None or power_share < 0.2:
        return state.full_power_scale
    if not observed.power.fresh(now_s, 5.0):
        return state.full_power_scale
    measured = (observed.power.value - config.prior.idle_w) / (config.prior.full_w * power_share)
    if not math.isfinite(measured):
        return state.full_power_scale
    # Weight 0.03 a second: a time constant of about 30 s.
    return max(0.3, min(state.full_power_scale + 0.03 * (measured - state.full_power_scale), 3.0))


def _sustainable_share(
    config: GovernorConfig,
    state: GovernorState,
    model: ThermalModel,
    validated: ValidatedTemperature,
    observed: Observation,
) -> float:
    """The share of full dynamic power that the control law permits, in [0, 1]."""
    # Long steps make the temperature ripple around the set point, so the set point moves down with the ripple.
    set_point_c = _soft_limit_c(config) - SET_POINT_BELOW_SOFT_C - RIPPLE_SHARE * _ripple_c(config, state, observed)
    if validated.lost is not None:
        return _share_without_sensor(config, state, model, set_point_c)
    sustainable_w = holding_w(model, state.temperature_c, set_point_c, FORECAST_S)
    # A gain below 1 leaves margin for errors of the model.
    watts = model.fast_w + GAIN * (sustainable_w - model.fast_w)
    return max(0.0, min((watts - config.prior.idle_w) / _full_dynamic_w(config, state), 1.0))


def _share_without_sensor(
    config: GovernorConfig, state: GovernorState, model: ThermalModel, set_point_c: float
) -> float:
    """The power share without a temperature, at most 0.7.

    It is what the learned model would hold 5 °C below the set point with a room 5 °C warmer and a thermal resistance
    20 % higher than learned; `NO_SENSOR_SHARE` before anything was learned.
    """
    if model.observed_s < LEARNED_AFTER_S:
        return NO_SENSOR_SHARE
    worse = model._replace(
        ambient_c=model.ambient_c + 5.0,
        fast_k_per_w=1.2 * model.fast_k_per_w,
        slow_k_per_w=1.2 * model.slow_k_per_w,
    )
    share = (settled_w(worse, set_point_c - 5.0) - config.prior.idle_w) / _full_dynamic_w(config, state)
    return max(0.0, min(share, 0.7))


def _throttled_by_heat(word: int) -> bool:
    """Whether the firmware reports its own soft limit, or caps or throttles without under-voltage as the cause.

    Bits of the Raspberry Pi's throttle word: 0 under-voltage, 1 clock capped, 2 throttled, 3 soft temperature limit.
    """
    return bool(word & 0b1000) or (bool(word & 0b0110) and not word & 0b0001)


def _firmware_soft_c(config: GovernorConfig) -> float:
    """The °C that the flags stand for; from there on the firmware ignores the clock cap."""
    return config.firmware_soft_c if config.firmware_soft_c is not None else _soft_limit_c(config)


def _flagged_c(config: GovernorConfig, observed: Observation) -> float:
    """Lower bound of the temperature by the throttle flags; -inf without one.

    A flag comes and goes with the noise of the firmware's sensor, so it counts as one sample and not as a state.
    """
    known = config.soft_limit_c is not None and _throttled_by_heat(observed.throttle_word)
    return _firmware_soft_c(config) if known else -math.inf


def _with_operating_point(
    config: GovernorConfig, state: GovernorState, observed: Observation, now_s: float
) -> GovernorState:
    """Choose the operating point, with at most one change per `DWELL_S`; the duty share covers the time in between."""
    points = operating_points.build(config.threads, config.clocks, observed.bandwidth_bound)
    if state.clocks != config.clocks:
        # The old index means nothing in another list of points (a board that refused a clock): choose from the start.
        index = operating_points.choose(points, 0, state.mean_power_share)
        since_s = state.point_since_s if index == state.point_index == 0 else now_s
        return state._replace(point_index=index, point_since_s=since_s, clocks=config.clocks)
    index = operating_points.choose(points, state.point_index, state.mean_power_share)
    if index == state.point_index or now_s - state.point_since_s < DWELL_S:
        return state
    return state._replace(point_index=index, point_since_s=now_s)


def _with_duty_share(
    config: GovernorConfig,
    state: GovernorState,
    validated: ValidatedTemperature,
    observed: Observation,
    now_s: float,
) -> GovernorState:
    """Set the fraction of the time in which steps may run at this operating point."""
    points = operating_points.build(config.threads, config.clocks, observed.bandwidth_bound)
    point = points[state.point_index]
    # A hot Raspberry Pi ignores clock caps, in both directions: do not count on a cap that may be without effect.
    near_firmware_limit = state.temperature_c >= min(_soft_limit_c(config), _firmware_soft_c(config)) - 0.5
    if near_firmware_limit or _throttled_by_heat(observed.throttle_word) or validated.lost is not None:
        point = points[operating_points.without_clock(points, state.point_index)]
    # At a point of low power the same power share is a larger duty share; the deadband scales with it.
    share, deadband = state.power_share / point.power, DEADBAND / point.power
    if 0.0 < state.duty_share < 1.0 and state.step_power_share == point.power and state.power_share > 0.0:
        share = max(share - deadband, min(state.duty_share, share + deadband))
    if share < LEAST_DUTY_SHARE:
        share = 0.0
    elif share >= UNLIMITED_ABOVE:
        share = 1.0
    # Safety before steadiness: a duty share that leads close to the soft limit may be reversed at any time.
    near = _forecast_c(config, state, point.power * state.duty_share) >= _soft_limit_c(config) - NEAR_SOFT_C
    urgent = near or validated.lost is not None
    share, reversal = limit_reversals(state.reversal, min(1.0, share), now_s, state.point_index, urgent)
    stopped_since_s = math.inf if share > 0.0 else min(state.stopped_since_s, now_s)
    return state._replace(
        duty_share=share, step_power_share=point.power, stopped_since_s=stopped_since_s, reversal=reversal
    )


def limit_reversals(
    state: ReversalState, share: float, now_s: float, point_index: int, urgent: bool
) -> tuple[float, ReversalState]:
    """The duty share to use instead of `share` (0 to 1), and the next state: anti-hunting.

    After a reversal of the direction, another reversal by `REVERSAL_SHARE` or more is held back until `DWELL_S` has
    passed, except for a reduction that is `urgent`. Reason: at an operating point of low power a small, noisy
    correction of the power share is a large one of the duty share, and the heat capacity of the board evens out such
    movements. A change of the operating point is not a reversal, because the duty share compensates for its threads and
    clock.
    """
    if math.isnan(state.extreme) or point_index != state.point_index:
        return share, state._replace(extreme=share, point_index=point_index)
    moved = share - state.extreme
    if state.direction == 0:
        direction = 0 if abs(moved) < REVERSAL_SHARE else 1 if moved > 0.0 else -1
        return share, state._replace(direction=direction, extreme=share if direction else state.extreme)
    if state.direction * moved >= 0.0:
        return share, state._replace(extreme=share)
    if abs(moved) < REVERSAL_SHARE:
        return share, state
    if now_s - state.reversed_s < DWELL_S and not (urgent and moved < 0.0):
        return state.extreme - state.direction * (REVERSAL_SHARE - EPSILON), state
    return share, state._replace(direction=-state.direction, extreme=share, reversed_s=now_s)


def _forecast_c(config: GovernorConfig, state: GovernorState, power_share: float) -> float:
    """The temperature in `FORECAST_S` at this share of full dynamic power (nan: nothing is known of the board yet)."""
    if state.model is None:
        return math.nan
    watts = config.prior.idle_w + _full_dynamic_w(config, state) * power_share
    return forecast_c(state.model, state.temperature_c, watts, FORECAST_S)


def _with_level(
    config: GovernorConfig, state: GovernorState, validated: ValidatedTemperature, now_s: float
) -> GovernorState:
    """Set the level: it rises at once and falls only after `DWELL_S`."""
    wanted = _wanted_level(config, state, validated, now_s)
    if wanted > state.level or (wanted < state.level and now_s - state.level_since_s >= DWELL_S):
        state = state._replace(level=wanted, level_since_s=now_s)
    # Overrides the duty share of this second only; `_with_duty_share` computes the next one from the temperature.
    if state.level is GovernorLevel.EMERGENCY:
        state = state._replace(duty_share=0.0)
    return state


def _wanted_level(
    config: GovernorConfig, state: GovernorState, validated: ValidatedTemperature, now_s: float
) -> GovernorLevel:
    soft_c, now_c, level = _soft_limit_c(config), state.temperature_c, state.level
    hard_c = config.hard_limit_c if config.hard_limit_c is not None else soft_c + HARD_ABOVE_SOFT_C
    if validated.lost is None:
        if now_c >= hard_c - 1.0 or (level is GovernorLevel.EMERGENCY and now_c >= soft_c):
            return GovernorLevel.EMERGENCY
        if now_c >= soft_c or (level >= GovernorLevel.CLOSED and now_c >= soft_c - HYSTERESIS_C):
            return GovernorLevel.CLOSED
    # Requests that cannot be computed for ten seconds are refused with the figures instead of waiting.
    if now_s - state.stopped_since_s >= DWELL_S:
        return GovernorLevel.CLOSED
    limited = state.point_index > 0 or state.duty_share < 1.0 or validated.lost is not None
    # Without this the level would alternate between NORMAL and REDUCED at the edge of what full power permits.
    held = level >= GovernorLevel.REDUCED and not _has_headroom(config, state)
    return GovernorLevel.REDUCED if limited or held else GovernorLevel.NORMAL


def _has_headroom(config: GovernorConfig, state: GovernorState) -> bool:
    """Whether the board is clearly below the set point and would stay there for `HEADROOM_S` at full power."""
    set_point_c = _soft_limit_c(config) - SET_POINT_BELOW_SOFT_C
    if state.model is None or state.temperature_c >= set_point_c - HYSTERESIS_C:
        return False
    full_w = config.prior.idle_w + _full_dynamic_w(config, state)
    return forecast_c(state.model, state.temperature_c, full_w, HEADROOM_S) < set_point_c


def _with_tier(state: GovernorState, now_s: float) -> GovernorState:
    """Ask for a cheaper variant after 60 s below half of full power, for the better one after 300 s near full power."""
    mean = state.mean_power_share
    wanted = 1 if mean < CHEAPER_BELOW else 0 if mean > 0.95 else state.tier
    if wanted == state.tier:
        return state._replace(tier_since_s=now_s)
    after_s = CHEAPER_AFTER_S if wanted else BETTER_AFTER_S
    return state._replace(tier=wanted, tier_since_s=now_s) if now_s - state.tier_since_s >= after_s else state


def _soft_limit_c(config: GovernorConfig) -> float:
    return config.soft_limit_c if config.soft_limit_c is not None else math.inf


def _unlimited_grant(config: GovernorConfig, why: str) -> ComputeGrant:
    return ComputeGrant(GovernorLevel.NORMAL, config.max_rows, config.threads, None, why)


def _grant(
    config: GovernorConfig, state: GovernorState, validated: ValidatedTemperature, observed: Observation
) -> ComputeGrant:
    point = operating_points.build(config.threads, config.clocks, observed.bandwidth_bound)[state.point_index]
    soft_c = _soft_limit_c(config)
    why = _why(state, validated, soft_c)
    ahead_c = _forecast_c(config, state, state.step_power_share * state.duty_share)
    return ComputeGrant(
        level=state.level,
        max_rows=_max_rows(config, state, observed),
        threads=point.threads,
        closed=Closure(Cause.HEAT, f"too hot: {why}") if state.level >= GovernorLevel.CLOSED else None,
        why=why,
        duty_share=state.duty_share,
        clock=point.clock,
        tier=state.tier,
        power_share=state.power_share,
        temperature_c=state.temperature_c,
        forecast_c=ahead_c,
        headroom_c=soft_c - ahead_c,
        derated=validated.lost,
        disagree=validated.disagree,
        unlimited_threads=config.threads,
        unlimited_rows=config.max_rows,
    )


def _max_rows(config: GovernorConfig, state: GovernorState, observed: Observation) -> int:
    """Rows of a batch, so that one step heats the die by at most `STEP_RISE_C`.

    Pauses keep the mean temperature, and the temperature itself only where a step is short against the time constant
    of the die.
    """
    if observed.row_s is None or state.duty_share >= 1.0:
        return config.max_rows
    rows = STEP_RISE_C / max(1e-4, _heating_c_per_s(config, state) * observed.row_s)
    return max(1, min(config.max_rows, int(rows)))


def _ripple_c(config: GovernorConfig, state: GovernorState, observed: Observation) -> float:
    """How far the die heats up during one step of the granted rows; 0 while there are no pauses."""
    if observed.row_s is None or state.duty_share >= 1.0:
        return 0.0
    return min(4.0, _heating_c_per_s(config, state) * observed.row_s * _max_rows(config, state, observed))


def _heating_c_per_s(config: GovernorConfig, state: GovernorState) -> float:
    """How fast a step heats the die above the mean of steps and pauses."""
    if state.model is None:
        return 0.0
    # The mean power already contains duty_share times the power of a step; only the rest heats the die during a step.
    watts = _full_dynamic_w(config, state) * state.step_power_share * (1.0 - state.duty_share)
    return watts * state.model.fast_k_per_w / state.model.fast_s


def _why(state: GovernorState, validated: ValidatedTemperature, soft_c: float) -> str:
    if validated.lost is not None:
        return f"temperature lost: {validated.lost}"
    set_point_c = soft_c - SET_POINT_BELOW_SOFT_C
    return f"{state.temperature_c:.1f} °C, set point {set_point_c:.1f} °C, soft limit {soft_c:.1f} °C"
