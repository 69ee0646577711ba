"""`python -m bench.heat_faults`: does a board pass its hard limit when its sensor is lost or freezes at a random time?

Every board, room and cooling of the sweep runs with a sensor that is lost and with one that freezes, each at a time
drawn from the seed; load and permission to set the clock are drawn too. The load is saturated.
"""

from __future__ import annotations

import argparse
import random

import numpy as np

from bench.heat_cases import AMBIENTS_C, COOLINGS, ENCODER_ROWS, GENERATOR_SEQUENCES
from sim.boards import BOARDS
from sim.closed_loop import Lane, Loop
from sim.policies import GovernorControl

AFTER_S = 400


def main() -> int:
    """Run and print; the exit code is 1 when a lane passed its hard limit."""
    parser = argparse.ArgumentParser(prog="bench.heat_faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--latest", type=int, default=600, help="the latest moment of a fault, seconds")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    lanes, kinds, moments_s = [], [], []
    for kind in ("lost", "frozen"):
        for key, board in BOARDS.items():
            for ambient_c in AMBIENTS_C:
                for cooling in COOLINGS:
                    clocks, generator = chance.random() < 0.5, chance.random() < 0.5
                    rows = GENERATOR_SEQUENCES if generator else ENCODER_ROWS
                    labels: dict[str, object] = {"name": f"{key} {ambient_c:.0f} °C x{cooling}"}
                    governed = GovernorControl(board, rows, clocks, generator)
                    lanes.append(Lane(board, ambient_c, cooling, generator, governed, rows, labels=labels))
                    kinds.append(kind)
                    moments_s.append(chance.randrange(1, options.latest))
    frozen: dict[int, float] = {}

    def fault(second: int, lane: int, shown_c: float) -> float | None:
        if second < moments_s[lane]:
            frozen[lane] = shown_c
            return shown_c
        return None if kinds[lane] == "lost" else frozen[lane]

    trace = Loop(lanes, options.seed, fault).run(options.latest + AFTER_S)
    over_c = trace.hottest_c - np.array([lane.board.hard_c for lane in lanes])
    for kind in ("lost", "frozen"):
        mine = [place for place, each in enumerate(kinds) if each == kind]
        worst = max(mine, key=lambda place: float(over_c[place]))
        passed = sum(bool(over_c[place] >= 0.0) for place in mine)
        print(
            f"sensor {kind}: {passed} of {len(mine)} lanes passed their hard limit; the nearest stayed "
            f"{-over_c[worst]:.1f} °C under it ({lanes[worst].labels['name']}, {moments_s[worst]} s)"
        )
    return int(bool((over_c >= 0.0).any()))


if __name__ == "__main__":
    raise SystemExit(main())
