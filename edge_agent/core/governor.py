"""What heat allows: limits on concurrency, batch, threads and admission, from temperature readings.

Three levels with a set point below the board's soft limit, hysteresis and a minimum dwell. The agent asks it once a
second. On a board that has a temperature sensor, a lost or stale reading derates instead of trusting the last value;
on a machine without one the level stays normal and the reason is reported.

It does not read sensors (`sensors`), nor act (`agent.watch` hands its limits out).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

from edge_agent.base.reading import Reading

STALE_S = 5.0
DWELL_S = 10.0
HYSTERESIS_C = 3.0
SET_POINT_BELOW_SOFT_C = 2.5


class Level(IntEnum):
    """How much is held back."""

    NORMAL = 0
    REDUCED = 1
    CLOSED = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """The board's soft limit (None: unknown board) and the limits that hold when nothing is wrong."""

    soft_limit_c: float | None
    max_rows: int
    threads: int


@dataclass(frozen=True, slots=True)
class Grant:
    """What may be used now. `closed_because` is the sentence of a refusal, None while requests are admitted."""

    level: Level
    max_rows: int
    threads: int
    closed_because: str | None
    why: str


@dataclass(frozen=True, slots=True)
class Memory:
    """What the governor carries from one second to the next."""

    level: Level = Level.NORMAL
    since_s: float = float("-inf")
    had_sensor: bool = False


def decide(plan: Plan, temperature: Reading, memory: Memory, now_s: float) -> tuple[Grant, Memory]:
    """One step: the limits to hand out now, and what to remember."""
    had_sensor = memory.had_sensor or temperature.value is not None
    wanted, why = _wanted(plan, temperature, memory.level, had_sensor, now_s)
    dwelt = now_s - memory.since_s >= DWELL_S
    level = wanted if wanted > memory.level or dwelt else memory.level
    since_s = now_s if level != memory.level else memory.since_s
    return _grant(plan, level, why), Memory(level, since_s, had_sensor)


def _wanted(plan: Plan, temperature: Reading, level: Level, had_sensor: bool, now_s: float) -> tuple[Level, str]:
    if not had_sensor:
        return Level.NORMAL, f"no temperature sensor: {temperature.reason}"
    if not temperature.fresh(now_s, STALE_S):
        return Level.REDUCED, f"temperature lost: {temperature.reason or 'the last sample is too old'}"
    if temperature.value is None or not math.isfinite(temperature.value):
        return Level.REDUCED, f"temperature lost: the sensor says {temperature.value}"
    if plan.soft_limit_c is None:
        return Level.NORMAL, "the board's soft limit is unknown"
    set_point_c = plan.soft_limit_c - SET_POINT_BELOW_SOFT_C
    text = f"{temperature.value:.1f} °C, set point {set_point_c:.1f} °C, soft limit {plan.soft_limit_c:.1f} °C"
    return _by_temperature(temperature.value, set_point_c, plan.soft_limit_c, level), text


def _by_temperature(value_c: float, set_point_c: float, soft_limit_c: float, level: Level) -> Level:
    if value_c >= soft_limit_c or (level is Level.CLOSED and value_c >= soft_limit_c - HYSTERESIS_C):
        return Level.CLOSED
    if value_c >= set_point_c or (level >= Level.REDUCED and value_c >= set_point_c - HYSTERESIS_C):
        return Level.REDUCED
    return Level.NORMAL


def _grant(plan: Plan, level: Level, why: str) -> Grant:
    if level is Level.NORMAL:
        return Grant(level, plan.max_rows, plan.threads, None, why)
    reduced_rows, reduced_threads = max(1, plan.max_rows // 2), max(1, plan.threads // 2)
    closed = f"too hot: {why}" if level is Level.CLOSED else None
    return Grant(level, reduced_rows, reduced_threads, closed, why)
