"""`python -m bench.heat_orders`: in which order limits should be reduced, by the throughput that each order leaves.

For every case of `bench.heat_cases` the limits are reduced step by step in an order until the settled temperature is at
the cap; what remains at the end of the order is achieved by the duty share. The result is the throughput as a share of
the best combination (found by search). Steady states only, from the plant's equations, without the governor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bench.heat_cases import cases_of
from sim import load
from sim.boards import BOARDS
from sim.plant import Floats, Plants
from sim.search import SearchCase, best_constant

ORDERS: Mapping[str, tuple[str, ...]] = {
    "batch, threads, clock, pace": ("rows", "threads", "clock"),
    "threads, clock, pace": ("threads", "clock"),
    "clock, threads, pace": ("clock", "threads"),
    "clock, pace": ("clock",),
    "pace": (),
}


class OrderStep(NamedTuple):
    """The limits after one step of an order, per case."""

    rows: Floats
    threads: Floats
    clock: Floats


def walk(cases: Sequence[SearchCase], order: tuple[str, ...]) -> Iterator[OrderStep]:
    """The steps of an order: rows are halved, threads reduced by one, the clock by a tenth of its range."""
    rows = np.array([float(case.rows) for case in cases])
    threads = np.array([float(case.board.cores) for case in cases])
    lowest = np.array([case.board.clock_shares[0] for case in cases])
    clock = np.ones(len(cases))
    yield OrderStep(rows, threads, clock)
    for knob in order:
        for step in range(1, 11 if knob == "clock" else 6):
            if knob == "rows":
                rows = np.maximum(1.0, np.floor(rows / 2.0))
            elif knob == "threads":
                threads = np.maximum(1.0, threads - 1.0)
            else:
                clock = 1.0 - (1.0 - lowest) * step / 10.0
            yield OrderStep(rows, threads, clock)


def reached(cases: Sequence[SearchCase], order: tuple[str, ...]) -> Floats:
    """Throughput of each case at its cap with this order."""
    plants = Plants(
        [case.board for case in cases],
        np.array([case.ambient_c for case in cases]),
        np.array([case.cooling for case in cases]),
        0,
    )
    cap_c = np.array([case.cap_c for case in cases])
    cores = np.array([float(case.board.cores) for case in cases])
    full_rows = np.array([float(case.rows) for case in cases])
    generator = np.array([case.generator for case in cases])
    found = np.full(len(cases), -1.0)
    for limits in walk(cases, order):
        share = load.power_share(generator, cores, limits.rows, limits.threads)
        speed = load.speed(generator, cores, limits.rows, full_rows, limits.threads, limits.clock)
        fits = (plants.settled_c(share, limits.clock) <= cap_c) & (found < 0.0)
        found = np.where(fits, speed, found)
    low, high = np.zeros(len(cases)), np.ones(len(cases))
    for _ in range(14):
        middle = (low + high) / 2.0
        cool = plants.settled_c(share * middle, limits.clock) <= cap_c
        low, high = np.where(cool, middle, low), np.where(cool, high, middle)
    return np.where(found < 0.0, speed * low, found)


def main() -> int:
    """Print the table."""
    cases = [case for key in BOARDS for case in cases_of(BOARDS[key])]
    best = best_constant(cases, True).speed
    limited = (best < 0.999) & (best >= 0.05)
    generator = np.array([case.generator for case in cases])
    print(
        f"Share of the best throughput at the cap; {int(limited.sum())} cases that heat limits even with the clock set"
    )
    print("| order | encoder | generator | worst |\n|---|---|---|---|")
    for name, order in ORDERS.items():
        part = reached(cases, order) / np.maximum(best, 1e-9)
        encoder, decode = part[limited & ~generator].mean(), part[limited & generator].mean()
        print(f"| {name} | {encoder:.3f} | {decode:.3f} | {part[limited].min():.3f} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
