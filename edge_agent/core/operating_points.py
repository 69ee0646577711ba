"""The ways to spend less power: combinations of threads and clock ("rungs"), each with what it is assumed to take and
to give. What a rung spends too much is paced: pauses between steps.

At a given allowance the rung is chosen that is assumed to do the most work. So the order of the knobs is a result and
differs by load: a compute-bound encoder is slowed by its clock, then paced; a bandwidth-bound generator loses clock and
threads first, because both are almost free for it. Batches are left whole: small ones do less work per joule
(docs/decisions/0071). The assumptions need not be exact: the governor's feedback absorbs what they are wrong by.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

CLOCK_EXPONENT = 1.7
"""Dynamic power goes with f * V^2; on the boards of facts/boards.md D2 that lies between f^1.3 and f^2."""
SHARED_POWER = 0.2
"""The part of dynamic power that does not fall with the number of threads: caches, memory, interconnect."""
SERIAL = 0.05
"""The part of an encoder's step that one thread does alone (Amdahl)."""
ARITHMETIC = 0.15
"""The part of a decode step that is arithmetic and not waiting for memory."""
BANDWIDTH = {1: 0.6, 2: 0.9}
"""How much of the memory's bandwidth so many cores can draw; three and more draw all of it."""
CHANGE_GAIN = 1.02
"""A rung is left for one that is assumed to do 2 % more: half a clock step of hysteresis."""


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Limits with the shares of full power and full speed that they are assumed to have while a step runs."""

    threads: int
    clock: float
    power: float
    speed: float


@functools.lru_cache(maxsize=8)
def build(threads: int, clocks: tuple[float, ...], bandwidth_bound: bool) -> tuple[OperatingPoint, ...]:
    """All rungs, the first without limits. `clocks`: shares of the highest clock that may be set; empty: none may."""
    shares = sorted({1.0, *(clock for clock in clocks if 0.0 < clock < 1.0)}, reverse=True)
    speed = _decode_speed if bandwidth_bound else _encoder_speed
    return tuple(
        OperatingPoint(count, clock, _power(count / threads, clock), speed(count, threads, clock))
        for count in range(threads, 0, -1)
        for clock in shares
    )


def _power(part: float, clock: float) -> float:
    return (SHARED_POWER + (1.0 - SHARED_POWER) * part) * float(clock**CLOCK_EXPONENT)


def _encoder_speed(count: int, threads: int, clock: float) -> float:
    full = SERIAL + (1.0 - SERIAL) / threads
    return clock * full / (SERIAL + (1.0 - SERIAL) / count)


def _decode_speed(count: int, threads: int, clock: float) -> float:
    """Never slower than it is with fewer threads."""
    full = (1.0 - ARITHMETIC) / BANDWIDTH.get(threads, 1.0) + ARITHMETIC
    return full / ((1.0 - ARITHMETIC) / BANDWIDTH.get(count, 1.0) + ARITHMETIC * threads / (count * clock))


def work(rung: OperatingPoint, share: float) -> float:
    """Assumed throughput on this rung when `share` of full dynamic power may be spent, paced where it would be more."""
    return rung.speed * min(1.0, share / rung.power)


def choose(rungs: tuple[OperatingPoint, ...], current: int, share: float) -> int:
    """The rung that does the most work with `share`; the current one unless another does clearly more.

    With everything allowed it is the first: no limits.
    """
    if share >= 1.0:
        return 0
    best = max(range(len(rungs)), key=lambda index: work(rungs[index], share))
    return best if work(rungs[best], share) >= CHANGE_GAIN * work(rungs[current], share) else current


@functools.lru_cache(maxsize=256)
def part(models: int, busy: float, threads: int, of_threads: int) -> float:
    """The part of the time in which each of several models may compute so that all spend what one would that computes
    for `busy` of it, with as many threads.

    They do not know of each other's steps: now none computes, now several, which then share the cores. So a part is
    more than an equal share of `busy`, and with all threads and `busy` 1 it is 1.
    """
    wanted = busy * _power(threads / of_threads, 1.0)
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


def without_clock(rungs: tuple[OperatingPoint, ...], index: int) -> int:
    """The rung with the threads of `index` and a free clock: what counts where the firmware does not obey a cap."""
    threads = rungs[index].threads
    return next(i for i, rung in enumerate(rungs) if rung.threads == threads and rung.clock == 1.0)
