"""What consecutive sensor samples say together: whether a temperature can be believed, and whether the firmware
throttles the clock.

Temperature (`validate`): a sample is valid if it is present, finite, fresh, and changes when the load must change it. A
sensor without a valid sample is bridged by the thermal model for `STALE_S`. A sensor that was lost or frozen for longer
is used again only after `RECOVERY_S` of valid samples. Of two sources the hotter one is used. If the two disagree,
there is no way to tell which is wrong; the disagreement is reported and nothing else is limited, because the hotter
value is the safe one.

Clock (`detect_throttling`): firmware that throttles does not report it, so the real clock is compared with the clock
that the kernel requests. Our own clock cap lowers both and is therefore never taken for throttling.

Pure: `core.governor` validates the temperature, `agent.governor_loop` asks for the clock, each once a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from edge_agent.base.reading import Reading

STALE_S = 5.0
RECOVERY_S = 3.0
FROZEN_AFTER_S = 10.0
FROZEN_MOVE_C = 2.0
"""A reading that has not changed for `FROZEN_AFTER_S`, although the load must have moved it by this much, is frozen."""
DISAGREE_C = 10.0
AGREE_C = 8.0
"""Two sources agree again below this difference; the hysteresis keeps the report from repeating at the threshold."""
THROTTLED_BELOW = 0.9
"""Real over requested clock. A Raspberry Pi 5 loses up to 10 % between 80 °C (its soft limit) and 85 °C, which its
throttle flags already report; a larger loss costs noticeable throughput (2256 of 2400 MHz at 82.9 °C, 1500 MHz from
88 °C; raspberrypi/rpi-eeprom issue 518)."""
UNTHROTTLED_ABOVE = 0.95
THROTTLED_FOR_S = 5.0
"""A clock changes within milliseconds and the two clocks are not read at the same time, so a single difference says
nothing."""


class SensorState(NamedTuple):
    """What is remembered about the temperature sensor between two samples.

    `seen`: there was a valid sample. `unchanged_since_s`: since when the sensor repeats `last_c`; `die_w`: power of the
    die at that time. `valid_s`: time of the last valid sample. `invalid`: why the sensor is not believed.
    `recovering_since_s`: since when its samples are valid again. `frozen_c`: the value at which it was found frozen,
    which it must leave to be believed again. `disagree`: the two sources disagreed at the last sample.
    """

    seen: bool = False
    last_c: float = math.nan
    unchanged_since_s: float = -math.inf
    die_w: float = 0.0
    valid_s: float = -math.inf
    invalid: str | None = None
    recovering_since_s: float | None = None
    frozen_c: float | None = None
    disagree: bool = False


@dataclass(frozen=True, slots=True)
class DieConditions:
    """The processor die by the thermal model: its power behind the fast low pass, and its thermal resistance."""

    watts: float
    k_per_w: float


@dataclass(frozen=True, slots=True)
class ValidatedTemperature:
    """The temperature to use.

    `value_c` is None while there is no valid sample. `lost`: why there has been none for too long. `disagree`: what two
    contradicting sources say. `unchanged_s`: for how long the value has been the same.
    """

    value_c: float | None
    lost: str | None = None
    disagree: str | None = None
    unchanged_s: float = 0.0


def validate(
    first: Reading, second: Reading | None, state: SensorState, die: DieConditions, now_s: float
) -> tuple[ValidatedTemperature, SensorState]:
    """Judge this second's readings.

    On a machine that never had a valid temperature the result has neither a value nor a reason for a loss.
    """
    reading, problem = first, _problem(first, now_s)
    disagree = None
    if second is not None and _problem(second, now_s) is None:
        # A second source that is alone has nothing to disagree with.
        disagree = _disagreement(first, second, state.disagree) if problem is None else None
        if problem is not None or _value(second) > _value(first):
            reading, problem = second, None
    state = state._replace(disagree=disagree is not None)
    if problem is not None:
        # A machine without a sensor is not limited; only a sensor that worked and stopped is a fault.
        if not state.seen:
            return ValidatedTemperature(None), state
        if state.invalid is None and now_s - state.valid_s < STALE_S:
            return ValidatedTemperature(None), state
        return ValidatedTemperature(None, problem, disagree), state._replace(invalid=problem, recovering_since_s=None)
    state = _with_value(state, _value(reading), die.watts, now_s)
    frozen = _frozen(state, die, now_s)
    if frozen is not None:
        return ValidatedTemperature(None, frozen, disagree), state._replace(
            invalid=frozen, recovering_since_s=None, frozen_c=state.last_c
        )
    return _accept_or_wait(state, _value(reading), disagree, now_s)


def _problem(reading: Reading, now_s: float) -> str | None:
    if reading.value is None:
        return reading.reason or "no value"
    if not math.isfinite(reading.value):
        return f"the sensor says {reading.value}"
    if not reading.fresh(now_s, STALE_S):
        return f"the last sample is too old ({reading.age_s(now_s):.0f} s)"
    return None


def _value(reading: Reading) -> float:
    return reading.value if reading.value is not None else math.nan


def _disagreement(first: Reading, second: Reading, before: bool) -> str | None:
    if abs(_value(first) - _value(second)) <= (AGREE_C if before else DISAGREE_C):
        return None
    return f"{first.source} says {first.value:.1f} °C, {second.source} {second.value:.1f} °C"


def _with_value(state: SensorState, value_c: float, die_w: float, now_s: float) -> SensorState:
    if value_c == state.last_c:
        return state
    return state._replace(seen=True, last_c=value_c, unchanged_since_s=now_s, die_w=die_w, frozen_c=None)


def _frozen(state: SensorState, die: DieConditions, now_s: float) -> str | None:
    unchanged_s = now_s - state.unchanged_since_s
    text = f"it has said {state.last_c:.1f} °C for {unchanged_s:.0f} s"
    # The load may return to its old value, which would make the unchanged reading look right again.
    if state.frozen_c == state.last_c:
        return f"{text}, where it froze"
    if unchanged_s >= FROZEN_AFTER_S and die.k_per_w * abs(die.watts - state.die_w) >= FROZEN_MOVE_C:
        return f"{text} while the load must have moved it"
    return None


def _accept_or_wait(
    state: SensorState, value_c: float, disagree: str | None, now_s: float
) -> tuple[ValidatedTemperature, SensorState]:
    """Use a valid sample, or wait while a sensor that was invalid has not been valid for `RECOVERY_S`."""
    if state.invalid is not None:
        since_s = now_s if state.recovering_since_s is None else state.recovering_since_s
        if now_s - since_s < RECOVERY_S:
            return ValidatedTemperature(None, state.invalid, disagree), state._replace(recovering_since_s=since_s)
    unchanged_s = now_s - state.unchanged_since_s
    return ValidatedTemperature(value_c, None, disagree, unchanged_s), state._replace(
        valid_s=now_s, invalid=None, recovering_since_s=None
    )


class ThrottleState(NamedTuple):
    """Whether the clock is throttled, and since when the readings have said the opposite (None: they do not)."""

    throttled: bool = False
    opposite_since_s: float | None = None


def detect_throttling(
    real_hz: float | None, requested_hz: float | None, state: ThrottleState, now_s: float
) -> ThrottleState:
    """The state after this second's clocks; it changes once the opposite has held for `THROTTLED_FOR_S`.

    Without both readings the state stays as it is, and the time that the opposite has held starts again.
    """
    if real_hz is None or requested_hz is None or requested_hz <= 0.0:
        return ThrottleState(state.throttled)
    share = real_hz / requested_hz
    opposite = share > UNTHROTTLED_ABOVE if state.throttled else share < THROTTLED_BELOW
    if not opposite:
        return ThrottleState(state.throttled)
    since_s = now_s if state.opposite_since_s is None else state.opposite_since_s
    if now_s - since_s >= THROTTLED_FOR_S:
        return ThrottleState(not state.throttled)
    return ThrottleState(state.throttled, since_s)
