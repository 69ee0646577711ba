"""The best constant limit at a temperature cap, by search: an upper bound for what a person with a calibrated board
finds.

For every lane all threads and (where permitted) clocks are tried with the largest duty share whose settled temperature
does not exceed the cap; the fastest combination is returned. The search knows plant, room and load exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sim import load
from sim.boards import BoardModel
from sim.plant import Floats, Plants


class Best(NamedTuple):
    """The best limits per lane; `speed`: settled throughput (1: full speed)."""

    threads: Floats
    clock: Floats
    duty_share: Floats
    speed: Floats


class SearchCase(NamedTuple):
    """A board with its room, load and temperature cap."""

    board: BoardModel
    ambient_c: float
    cooling: float
    generator: bool
    rows: int
    cap_c: float


def best_constant(cases: Sequence[SearchCase], clocks: bool) -> Best:
    """Search all cases at once."""
    plants = Plants(
        [case.board for case in cases],
        np.array([case.ambient_c for case in cases]),
        np.array([case.cooling for case in cases]),
        0,
    )
    count = len(cases)
    cap_c = np.array([case.cap_c for case in cases])
    cores = np.array([case.board.cores for case in cases], dtype=float)
    generator = np.array([case.generator for case in cases])
    rows = np.array([case.rows for case in cases], dtype=float)
    best = Best(cores, np.ones(count), np.zeros(count), np.full(count, -1.0))
    for threads in range(1, int(cores.max()) + 1):
        used = np.minimum(float(threads), cores)
        share = load.power_share(generator, cores, rows, used)
        for clock in _clock_grid(cases, clocks):
            duty_share = _largest_duty_share(plants, share, clock, cap_c)
            speed = load.speed(generator, cores, rows, rows, used, clock) * duty_share
            better = speed > best.speed + 1e-9
            best = Best(
                *(np.where(better, new, old) for new, old in zip((used, clock, duty_share, speed), best, strict=True))
            )
    return best


def _clock_grid(cases: Sequence[SearchCase], clocks: bool) -> list[Floats]:
    """One array of clock shares per trial; lanes with fewer clocks repeat their highest one."""
    if not clocks:
        return [np.ones(len(cases))]
    longest = max(len(case.board.clocks_mhz) for case in cases)
    shares = [(*case.board.clock_shares, *([1.0] * (longest - len(case.board.clocks_mhz)))) for case in cases]
    return [np.array([lane[place] for lane in shares]) for place in range(longest)]


def _largest_duty_share(plants: Plants, share: Floats, clock: Floats, cap_c: Floats) -> Floats:
    low, high = np.zeros(len(cap_c)), np.ones(len(cap_c))
    whole = plants.settled_c(share, clock) <= cap_c
    for _ in range(12):
        middle = (low + high) / 2.0
        fits = plants.settled_c(share * middle, clock) <= cap_c
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    return np.where(whole, 1.0, low)
