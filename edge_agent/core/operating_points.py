"""Operating points: combinations of threads and clock with the power and speed that they are assumed to have.

For a given share of full dynamic power the governor uses the point that is assumed to do the most work; if the point
would spend more than the share, steps are followed by pauses (the duty share). Which limit is used first follows from
these assumptions and depends on the load: a compute-bound encoder gets a lower clock and then pauses; a bandwidth-bound
generator loses clock and threads first, because both cost it almost no speed. Batches are not reduced, because small
batches do less work per joule (docs/decisions/0071).

The assumptions need not be exact: the feedback of the governor compensates their errors.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

CLOCK_EXPONENT = 1.7
"""Dynamic power is proportional to f * V(f)^2. With the published voltages of the supported boards (Raspberry Pi 5:
0.72 V at 1.5 GHz, 0.91 V at 2.4 GHz; Raspberry Pi 4: about 0.86 V at 1.5, 0.93 V at 1.8 GHz) that lies between f^1.3
and f^2."""
SHARED_POWER = 0.2
"""Share of dynamic power that does not depend on the number of threads: caches, memory, interconnect. Estimated."""
SERIAL = 0.05
"""Share of an encoder's step that runs on one thread (Amdahl's law). Estimated."""
ARITHMETIC = 0.15
"""Share of a decode step that is arithmetic; during the rest the cores wait for memory. Estimated."""
BANDWIDTH = {1: 0.6, 2: 0.9}
"""Share of the memory bandwidth that this many cores can use; three or more use all of it. Estimated."""
CHANGE_GAIN = 1.02
"""Another point must be assumed to do 2 % more work than the current one: hysteresis of half a clock step."""


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Threads and clock, with their assumed shares of full dynamic power and of full speed while a step runs."""

    threads: int
    clock: float
    power: float
    speed: float


@functools.lru_cache(maxsize=8)
def build(threads: int, clocks: tuple[float, ...], bandwidth_bound: bool) -> tuple[OperatingPoint, ...]:
    """All operating points; the first has no limits.

    `clocks`: shares of the highest clock that may be set; empty: none.
    """
    shares = sorted({1.0, *(clock for clock in clocks if 0.0 < clock < 1.0)}, reverse=True)
    speed = _decode_speed if bandwidth_bound else _encoder_speed
    return tuple(
        OperatingPoint(count, clock, _power(count / threads, clock), speed(count, threads, clock))
        for count in range(threads, 0, -1)
        for clock in shares
    )


def _power(thread_share: float, clock: float) -> float:
    return (SHARED_POWER + (1.0 - SHARED_POWER) * thread_share) * float(clock**CLOCK_EXPONENT)


def _encoder_speed(count: int, threads: int, clock: float) -> float:
    # Times of a step relative to one thread, by Amdahl's law.
    full = SERIAL + (1.0 - SERIAL) / threads
    return clock * full / (SERIAL + (1.0 - SERIAL) / count)


def _decode_speed(count: int, threads: int, clock: float) -> float:
    # Memory time plus arithmetic time of a step; only the arithmetic depends on the clock.
    full = (1.0 - ARITHMETIC) / BANDWIDTH.get(threads, 1.0) + ARITHMETIC
    return full / ((1.0 - ARITHMETIC) / BANDWIDTH.get(count, 1.0) + ARITHMETIC * threads / (count * clock))


def work(point: OperatingPoint, power_share: float) -> float:
    """Assumed throughput (1: full speed) at this point with `power_share` of full dynamic power, pauses included."""
    return point.speed * min(1.0, power_share / point.power)


def choose(points: tuple[OperatingPoint, ...], current: int, power_share: float) -> int:
    """Index of the point that does the most work with `power_share`; `current` unless another does clearly more.

    At full power it is the first point, which has no limits.
    """
    if power_share >= 1.0:
        return 0
    best = max(range(len(points)), key=lambda index: work(points[index], power_share))
    better = work(points[best], power_share) >= CHANGE_GAIN * work(points[current], power_share)
    return best if better else current


def without_clock(points: tuple[OperatingPoint, ...], index: int) -> int:
    """Index of the point with the threads of `index` and the full clock: for boards that ignore a clock cap."""
    threads = points[index].threads
    return next(i for i, point in enumerate(points) if point.threads == threads and point.clock == 1.0)


@functools.lru_cache(maxsize=256)
def duty_share_of_each(models: int, duty_share: float, threads: int, of_threads: int) -> float:
    """The duty share p of each of several models that together spend what one model with `duty_share` would spend.

    All run with `threads` of `of_threads`. The models do not coordinate their steps: the number k that compute at the
    same time is taken to be binomially distributed, and k models share the cores:

        sum over k of C(models, k) p^k (1 - p)^(models - k) power(k models) = duty_share * power(1 model)

    solved by bisection. So p is larger than `duty_share / models`, and 1 for a duty share of 1 with all threads.
    """
    wanted = duty_share * _power(threads / of_threads, 1.0)
    # 20 halvings give the share to 1e-6; the spent power rises monotonically with it.
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2.0
        spent = sum(
            math.comb(models, at_once)
            * middle**at_once
            * (1.0 - middle) ** (models - at_once)
            * _power(min(1.0, at_once * threads / of_threads), 1.0)
            for at_once in range(1, models + 1)
        )
        low, high = (middle, high) if spent <= wanted else (low, middle)
    return high
