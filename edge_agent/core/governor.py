"""What heat allows: limits on batch, threads, clock, pace and admission, so that the board stays under its soft limit.

A pure function of (plan, readings, memory, now), asked once a second. It holds the temperature at a set point 2.5 °C
under the soft limit with a PI controller in internal-model form:

    watts = spent + GAIN * (sustainable - spent)

`spent` is the low-passed power that really went into the die: it is the integral of the controller, and since it is
what was spent and not what was wished for, it cannot wind up. `sustainable` is the feed-forward: the power whose
forecast ten seconds ahead sits at the set point, by the identified thermal model (`thermal_model`). The watts become a
rung of limits and a pace (`ladder`). Which temperature is believed is `trust`'s business; a lost sensor derates.

It does not read sensors (`sensors`), nor act (`agent.governor_loop` hands its limits out). docs/governor.md explains
the rest.
"""

from __future__ import annotations

import math

from edge_agent.base.reading import Reading
from edge_agent.core import operating_points
from edge_agent.core.anti_hunting import calmed
from edge_agent.core.governor_types import (
    HARD_ABOVE_SOFT_C,
    SET_POINT_BELOW_SOFT_C,
    GovernorConfig,
    GovernorState,
    Grant,
    Level,
    Observation,
)
from edge_agent.core.sensor_validation import DieConditions, ValidatedTemperature, believe
from edge_agent.core.thermal_model import Model, advance, forecast_c, holding_w, learn, settled_w, start_model

__all__ = ["SET_POINT_BELOW_SOFT_C", "GovernorConfig", "GovernorState", "Grant", "Level", "Observation", "decide"]

NOTHING_ELSE = Observation()
HYSTERESIS_C = 3.0
DWELL_S = 10.0
FORECAST_S = 10.0
GAIN = 0.8
FILTER = 0.25
"""Share of a new sample in the temperature estimate: a low pass of about 3 s that the model carries forward."""
SLEW_UP_PER_S, SLEW_DOWN_PER_S = 0.1, 0.3
LIMITED_BELOW = 0.97
STEP_RISE_C = 1.5
"""Between pauses the die may heat up by so much; a step that would last longer gets fewer rows."""
RIPPLE_SHARE = 0.25
"""By this part of what the die rises during a step the set point is lowered: its peaks count, not its mean."""
FREE_FOR_S = 60.0
"""Limits are lifted for good when full power could be kept so long."""
BUSY_LEAST = 0.01
PLAY = 0.015
"""The pace follows the share at this distance, so that it does not turn with every noise of the sensor."""
NEAR_SOFT_C = 1.0
"""A pace that leads so near to the soft limit within ten seconds is taken back at once."""
STILL_S, PROBE_NEAR_S, PROBE_S, PROBE_PER_S = 5.0, 15.0, 120.0, 0.01
"""See `_unmoved_share`."""
LOADED_ABOVE, NEAR_C = 0.05, 12.5
UNTRUSTED_SHARE = 0.1
TRUSTED_AFTER_S = 60.0
"""Without a temperature, before the board was watched for so long under a changing load."""
CHEAPER_BELOW, CHEAPER_AFTER_S, DEARER_AFTER_S = 0.5, 60.0, 300.0


def decide(
    plan: GovernorConfig, temperature: Reading, memory: GovernorState, now_s: float, seen: Observation = NOTHING_ELSE
) -> tuple[Grant, GovernorState]:
    """One step: the limits to hand out now, and what to remember. Called about once a second; gaps are tolerated."""
    belief, memory = _observe(plan, temperature, memory, now_s, seen)
    if memory.model is None:
        return _unlimited(plan, f"no temperature sensor: {temperature.reason}"), memory
    if plan.soft_limit_c is None:
        return _unlimited(plan, "the board's soft limit is unknown"), memory
    elapsed_s = _elapsed_s(memory, now_s)
    share = _share(plan, memory, memory.model, belief, seen)
    share = min(share, _unmoved_share(plan, memory, belief, elapsed_s))
    share = max(memory.share - SLEW_DOWN_PER_S * elapsed_s, min(share, memory.share + SLEW_UP_PER_S * elapsed_s))
    slow_share = 1.0 if share >= 1.0 else memory.slow_share + (share - memory.slow_share) * elapsed_s / DWELL_S
    memory = memory._replace(share=share, slow_share=slow_share)
    memory = _climbed(plan, memory, seen, now_s)
    memory = _paced(plan, memory, belief, seen, now_s)
    memory = _levelled(plan, memory, belief, now_s)
    memory = _tiered(memory._replace(now_s=now_s), now_s)
    return _grant(plan, memory, belief, seen), memory


def _elapsed_s(memory: GovernorState, now_s: float) -> float:
    return max(0.0, min(now_s - memory.now_s, 5.0)) if memory.now_s > -math.inf else 1.0


def _observe(
    plan: GovernorConfig, temperature: Reading, memory: GovernorState, now_s: float, seen: Observation
) -> tuple[ValidatedTemperature, GovernorState]:
    """Carry the estimate forward by what was spent, correct it by the reading, learn the board."""
    elapsed_s = _elapsed_s(memory, now_s)
    model, predicted_c = memory.model, memory.temperature_c
    if model is not None:
        spent_w = _spent_w(plan, memory, seen)
        predicted_c = forecast_c(model, memory.temperature_c, spent_w, elapsed_s)
        model = advance(model, spent_w, elapsed_s)
        memory = memory._replace(scale=_scale(plan, memory, seen, now_s))
    die = DieConditions(model.fast_w, model.fast_k_per_w) if model is not None else DieConditions(0.0, 0.0)
    belief, trust = believe(temperature, seen.second, memory.trust, die, now_s)
    if belief.value_c is not None:
        if model is None:
            model, predicted_c = start_model(plan.prior, belief.value_c), belief.value_c
        predicted_c += FILTER * (max(belief.value_c, _flagged_c(plan, seen)) - predicted_c)
        model = learn(model, plan.prior, belief.value_c, elapsed_s)
    return belief, memory._replace(trust=trust, model=model, temperature_c=predicted_c)


def _unmoved_share(
    plan: GovernorConfig, memory: GovernorState, belief: ValidatedTemperature, elapsed_s: float
) -> float:
    """A reading that does not move is no reason to spend more; after a while it is probed by spending a little less.

    A calm sensor moves then and all goes on; a frozen one is found out by it (`trust`). Where nothing is spent, nothing
    moves: far from the limit a calm sensor may be probed by the little that is allowed without any.
    """
    if belief.value_c is not None and belief.still_s < STILL_S:
        return 1.0
    near = memory.temperature_c >= _soft_c(plan) - NEAR_C
    probing = belief.still_s >= (PROBE_NEAR_S if near else PROBE_S) and memory.busy * memory.power > LOADED_ABOVE
    held = max(0.0, memory.share - (PROBE_PER_S * elapsed_s if probing else 0.0))
    return held if near or belief.value_c is None else max(held, UNTRUSTED_SHARE)


def _full_w(plan: GovernorConfig, memory: GovernorState) -> float:
    return plan.prior.full_w * memory.scale


def _spent_w(plan: GovernorConfig, memory: GovernorState, seen: Observation) -> float:
    busy = memory.busy if seen.busy_share is None else min(1.0, seen.busy_share)
    return plan.prior.idle_w + _full_w(plan, memory) * memory.power * busy


def _scale(plan: GovernorConfig, memory: GovernorState, seen: Observation, now_s: float) -> float:
    """Correct the assumed full power by the measured one, where the board measures and is under load."""
    busy = memory.busy if seen.busy_share is None else min(1.0, seen.busy_share)
    part = memory.power * busy
    if seen.power is None or seen.power.value is None or not seen.power.fresh(now_s, 5.0) or part < 0.2:
        return memory.scale
    measured = (seen.power.value - plan.prior.idle_w) / (plan.prior.full_w * part)
    if not math.isfinite(measured):
        return memory.scale
    return max(0.3, min(memory.scale + 0.03 * (measured - memory.scale), 3.0))


def _share(
    plan: GovernorConfig, memory: GovernorState, model: Model, belief: ValidatedTemperature, seen: Observation
) -> float:
    """The share of full dynamic power that may be spent."""
    set_point_c = _soft_c(plan) - SET_POINT_BELOW_SOFT_C - RIPPLE_SHARE * _ripple_c(plan, memory, seen)
    if belief.lost is not None:
        return _untrusted_share(plan, memory, model, set_point_c)
    now_c = memory.temperature_c
    watts = model.fast_w + GAIN * (holding_w(model, now_c, set_point_c, FORECAST_S) - model.fast_w)
    return max(0.0, min((watts - plan.prior.idle_w) / _full_w(plan, memory), 1.0))


def _untrusted_share(plan: GovernorConfig, memory: GovernorState, model: Model, set_point_c: float) -> float:
    """Without a temperature: what a warmer room and a worse heat sink than those learned would still hold, 5 °C lower.

    Before anything was learned: very little.
    """
    if model.seen_s < TRUSTED_AFTER_S:
        return UNTRUSTED_SHARE
    worse = model._replace(
        ambient_c=model.ambient_c + 5.0,
        fast_k_per_w=1.2 * model.fast_k_per_w,
        slow_k_per_w=1.2 * model.slow_k_per_w,
    )
    share = (settled_w(worse, set_point_c - 5.0) - plan.prior.idle_w) / _full_w(plan, memory)
    return max(0.0, min(share, 0.7))


def _throttled(word: int) -> bool:
    """The firmware's own soft limit was reached, or it caps or throttles and under-voltage does not explain that.

    A flag comes and goes with the noise of the firmware's sensor: it counts as a sample of at least that temperature.
    """
    return bool(word & 0b1000) or (bool(word & 0b0110) and not word & 0b0001)


def _firmware_c(plan: GovernorConfig) -> float:
    """The temperature that the flags stand for; from there on the firmware obeys no clock."""
    return plan.firmware_soft_c if plan.firmware_soft_c is not None else _soft_c(plan)


def _flagged_c(plan: GovernorConfig, seen: Observation) -> float:
    """What the flags say that the temperature is at least."""
    known = plan.soft_limit_c is not None and _throttled(seen.throttle_word)
    return _firmware_c(plan) if known else -math.inf


def _climbed(plan: GovernorConfig, memory: GovernorState, seen: Observation, now_s: float) -> GovernorState:
    """Choose the rung: at most one change per dwell; what it spends too much meanwhile is paced.

    Where other clocks may be set than before (a board that refused them), the old rung means nothing: begin anew.
    """
    rungs = operating_points.build(plan.threads, plan.clocks, seen.bandwidth_bound)
    if memory.clocks != plan.clocks:
        rung = operating_points.choose(rungs, 0, memory.slow_share)
        since_s = memory.rung_since_s if rung == memory.rung == 0 else now_s
        return memory._replace(rung=rung, rung_since_s=since_s, clocks=plan.clocks)
    rung = operating_points.choose(rungs, memory.rung, memory.slow_share)
    if rung == memory.rung or now_s - memory.rung_since_s < DWELL_S:
        return memory
    return memory._replace(rung=rung, rung_since_s=now_s)


def _paced(
    plan: GovernorConfig, memory: GovernorState, belief: ValidatedTemperature, seen: Observation, now_s: float
) -> GovernorState:
    """The part of the time in which steps may run on this rung.

    A hot Raspberry Pi ignores clock caps: they do not count where it is hot, or may be without our knowledge.
    """
    rungs = operating_points.build(plan.threads, plan.clocks, seen.bandwidth_bound)
    rung = rungs[memory.rung]
    hot = memory.temperature_c >= min(_soft_c(plan), _firmware_c(plan)) - 0.5 or _throttled(seen.throttle_word)
    if hot or belief.lost is not None:
        rung = rungs[operating_points.without_clock(rungs, memory.rung)]
    busy, play = memory.share / rung.power, PLAY / rung.power
    if 0.0 < memory.busy < 1.0 and memory.power == rung.power and memory.share > 0.0:
        busy = max(busy - play, min(memory.busy, busy + play))
    if busy < BUSY_LEAST:
        busy = 0.0
    elif busy >= LIMITED_BELOW:
        busy = 1.0
    near = _ahead_c(plan, memory, rung.power * memory.busy) >= _soft_c(plan) - NEAR_SOFT_C
    busy, swing = calmed(memory.swing, min(1.0, busy), now_s, memory.rung, urgent=near or belief.lost is not None)
    idle_since_s = math.inf if busy > 0.0 else min(memory.idle_since_s, now_s)
    return memory._replace(busy=busy, power=rung.power, idle_since_s=idle_since_s, swing=swing)


def _ahead_c(plan: GovernorConfig, memory: GovernorState, share: float) -> float:
    """The temperature in ten seconds when `share` of full dynamic power is spent (nan: the board is not known yet)."""
    if memory.model is None:
        return math.nan
    watts = plan.prior.idle_w + _full_w(plan, memory) * share
    return forecast_c(memory.model, memory.temperature_c, watts, FORECAST_S)


def _levelled(plan: GovernorConfig, memory: GovernorState, belief: ValidatedTemperature, now_s: float) -> GovernorState:
    """The level, which rises at once and falls after the dwell."""
    wanted = _wanted(plan, memory, belief, now_s)
    if wanted > memory.level or (wanted < memory.level and now_s - memory.since_s >= DWELL_S):
        memory = memory._replace(level=wanted, since_s=now_s)
    if memory.level is Level.EMERGENCY:
        memory = memory._replace(busy=0.0)
    return memory


def _wanted(plan: GovernorConfig, memory: GovernorState, belief: ValidatedTemperature, now_s: float) -> Level:
    soft_c, now_c, level = _soft_c(plan), memory.temperature_c, memory.level
    hard_c = plan.hard_limit_c if plan.hard_limit_c is not None else soft_c + HARD_ABOVE_SOFT_C
    if belief.lost is None:
        if now_c >= hard_c - 1.0 or (level is Level.EMERGENCY and now_c >= soft_c):
            return Level.EMERGENCY
        if now_c >= soft_c or (level >= Level.CLOSED and now_c >= soft_c - HYSTERESIS_C):
            return Level.CLOSED
    if now_s - memory.idle_since_s >= DWELL_S:
        return Level.CLOSED
    limited = memory.rung > 0 or memory.busy < 1.0 or belief.lost is not None
    return Level.REDUCED if limited or (level >= Level.REDUCED and not _free(plan, memory)) else Level.NORMAL


def _free(plan: GovernorConfig, memory: GovernorState) -> bool:
    """Clearly cool, and so it would stay at full power."""
    set_point_c = _soft_c(plan) - SET_POINT_BELOW_SOFT_C
    if memory.model is None or memory.temperature_c >= set_point_c - HYSTERESIS_C:
        return False
    full_w = plan.prior.idle_w + _full_w(plan, memory)
    return forecast_c(memory.model, memory.temperature_c, full_w, FREE_FOR_S) < set_point_c


def _tiered(memory: GovernorState, now_s: float) -> GovernorState:
    """A cheaper variant after a minute below half the power, the better one again after five minutes near full."""
    wanted = 1 if memory.slow_share < CHEAPER_BELOW else 0 if memory.slow_share > 0.95 else memory.tier
    if wanted == memory.tier:
        return memory._replace(tier_since_s=now_s)
    after_s = CHEAPER_AFTER_S if wanted else DEARER_AFTER_S
    return memory._replace(tier=wanted, tier_since_s=now_s) if now_s - memory.tier_since_s >= after_s else memory


def _soft_c(plan: GovernorConfig) -> float:
    return plan.soft_limit_c if plan.soft_limit_c is not None else math.inf


def _unlimited(plan: GovernorConfig, why: str) -> Grant:
    return Grant(Level.NORMAL, plan.max_rows, plan.threads, None, why)


def _grant(plan: GovernorConfig, memory: GovernorState, belief: ValidatedTemperature, seen: Observation) -> Grant:
    rung = operating_points.build(plan.threads, plan.clocks, seen.bandwidth_bound)[memory.rung]
    soft_c = _soft_c(plan)
    why = _why(memory, belief, soft_c)
    ahead_c = _ahead_c(plan, memory, memory.power * memory.busy)
    return Grant(
        level=memory.level,
        max_rows=_rows(plan, memory, seen),
        threads=rung.threads,
        closed_because=f"too hot: {why}" if memory.level >= Level.CLOSED else None,
        why=why,
        busy_share=memory.busy,
        clock=rung.clock,
        tier=memory.tier,
        share=memory.share,
        temperature_c=memory.temperature_c,
        forecast_c=ahead_c,
        headroom_c=soft_c - ahead_c,
        derated=belief.lost,
        disagree=belief.disagree,
        of_threads=plan.threads,
        of_rows=plan.max_rows,
    )


def _rows(plan: GovernorConfig, memory: GovernorState, seen: Observation) -> int:
    """A pause only evens out the temperature when the step before it is short against the die's time constant."""
    if seen.row_s is None or memory.busy >= 1.0:
        return plan.max_rows
    rows = STEP_RISE_C / max(1e-4, _heating_c_per_s(plan, memory) * seen.row_s)
    return max(1, min(plan.max_rows, int(rows)))


def _ripple_c(plan: GovernorConfig, memory: GovernorState, seen: Observation) -> float:
    """How far the die rises during one step of the rows that are granted; 0 while there are no pauses."""
    if seen.row_s is None or memory.busy >= 1.0:
        return 0.0
    return min(4.0, _heating_c_per_s(plan, memory) * seen.row_s * _rows(plan, memory, seen))


def _heating_c_per_s(plan: GovernorConfig, memory: GovernorState) -> float:
    """How fast a step heats the die above the mean that its pauses keep."""
    if memory.model is None:
        return 0.0
    watts = _full_w(plan, memory) * memory.power * (1.0 - memory.busy)
    return watts * memory.model.fast_k_per_w / memory.model.fast_s


def _why(memory: GovernorState, belief: ValidatedTemperature, soft_c: float) -> str:
    if belief.lost is not None:
        return f"temperature lost: {belief.lost}"
    set_point_c = soft_c - SET_POINT_BELOW_SOFT_C
    return f"{memory.temperature_c:.1f} °C, set point {set_point_c:.1f} °C, soft limit {soft_c:.1f} °C"
