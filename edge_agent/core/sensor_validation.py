"""Whether a temperature can be believed: present, a number, fresh, moving when the load must move it.

A sensor that is merely late is bridged by the model for `STALE_S`. One that stays lost or is frozen is not believed
again until it has behaved for `BACK_S`. Of two sources the hotter one counts, whichever it is. When they disagree, it
cannot be told which is wrong: that is said, and nothing else is derated, since the hotter one is the cautious one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from edge_agent.base.reading import Reading

STALE_S = 5.0
BACK_S = 3.0
FROZEN_AFTER_S = 10.0
FROZEN_MOVE_C = 2.0
"""A reading that has not changed for `FROZEN_AFTER_S` although the die must have moved by this much is frozen."""
DISAGREE_C = 10.0
AGREE_C = 8.0
"""They agree again below this, so that two which lie at the edge are not said to disagree again and again."""


class SensorState(NamedTuple):
    """What is remembered about the sensor.

    `same_since_s`: since when it repeats `last_c`; `die_w`: the die's watts at that moment; `good_s`: when it was last
    believed; `bad`: why it is not believed; `behaves_since_s`: since when it behaves again; `frozen_c`: the value at
    which it was found frozen, which it must leave to be believed again; `disagree`: the two sources did the last time.
    """

    seen: bool = False
    last_c: float = math.nan
    same_since_s: float = -math.inf
    die_w: float = 0.0
    good_s: float = -math.inf
    bad: str | None = None
    behaves_since_s: float | None = None
    frozen_c: float | None = None
    disagree: bool = False


@dataclass(frozen=True, slots=True)
class DieConditions:
    """What the model says of the die: its watts behind the fast low pass, and degrees per watt."""

    watts: float
    k_per_w: float


@dataclass(frozen=True, slots=True)
class ValidatedTemperature:
    """`value_c` to take into account now, or None; `lost` says why nothing was believable for too long.

    `still_s`: for how long the value has not changed.
    """

    value_c: float | None
    lost: str | None = None
    disagree: str | None = None
    still_s: float = 0.0


def believe(
    first: Reading, second: Reading | None, trust: SensorState, die: DieConditions, now_s: float
) -> tuple[ValidatedTemperature, SensorState]:
    """Judge this second's readings. A machine that never had a temperature is neither believed nor lost."""
    reading, problem = first, _problem(first, now_s)
    disagree = None
    if second is not None and _problem(second, now_s) is None:
        disagree = _disagreement(first, second, trust.disagree) if problem is None else None
        if problem is not None or _value(second) > _value(first):
            reading, problem = second, None
    trust = trust._replace(disagree=disagree is not None)
    if problem is not None:
        if not trust.seen:
            return ValidatedTemperature(None), trust
        if trust.bad is None and now_s - trust.good_s < STALE_S:
            return ValidatedTemperature(None), trust
        return ValidatedTemperature(None, problem, disagree), trust._replace(bad=problem, behaves_since_s=None)
    trust = _noted(trust, _value(reading), die.watts, now_s)
    frozen = _frozen(trust, die, now_s)
    if frozen is not None:
        return ValidatedTemperature(None, frozen, disagree), trust._replace(
            bad=frozen, behaves_since_s=None, frozen_c=trust.last_c
        )
    return _returning(trust, _value(reading), disagree, now_s)


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


def _noted(trust: SensorState, value_c: float, die_w: float, now_s: float) -> SensorState:
    if value_c == trust.last_c:
        return trust
    return trust._replace(seen=True, last_c=value_c, same_since_s=now_s, die_w=die_w, frozen_c=None)


def _frozen(trust: SensorState, die: DieConditions, now_s: float) -> str | None:
    same_s = now_s - trust.same_since_s
    text = f"it has said {trust.last_c:.1f} °C for {same_s:.0f} s"
    if trust.frozen_c == trust.last_c:
        return f"{text}, where it froze"
    if same_s >= FROZEN_AFTER_S and die.k_per_w * abs(die.watts - trust.die_w) >= FROZEN_MOVE_C:
        return f"{text} while the load must have moved it"
    return None


def _returning(
    trust: SensorState, value_c: float, disagree: str | None, now_s: float
) -> tuple[ValidatedTemperature, SensorState]:
    if trust.bad is not None:
        since_s = now_s if trust.behaves_since_s is None else trust.behaves_since_s
        if now_s - since_s < BACK_S:
            return ValidatedTemperature(None, trust.bad, disagree), trust._replace(behaves_since_s=since_s)
    still_s = now_s - trust.same_since_s
    return ValidatedTemperature(value_c, None, disagree, still_s), trust._replace(
        good_s=now_s, bad=None, behaves_since_s=None
    )
