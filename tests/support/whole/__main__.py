"""`python -m tests.support.whole --seeds 10000` runs seeds 0 to 9,999; `--seed 17` runs one and tells its story;
`--hog` prints the answered share of modest clients, alone and beside a client that asks for all it can get."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from edge_agent.base.limits import PRIORITY_DEFAULT, PRIORITY_HIGHEST
from tests.support.whole.world import share_beside_a_hog, simulate


def main() -> int:
    """The exit code is 1 when a seed broke a rule; its number is the last line."""
    parser = argparse.ArgumentParser(prog="tests.support.whole", description=__doc__)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--going", action="store_true", help="go on after a failing seed")
    parser.add_argument("--hog", action="store_true", help="the share of modest clients, beside a hog and alone")
    options = parser.parse_args()
    if options.hog:
        return _hog(range(options.first, options.first + options.seeds))
    if options.seed is not None:
        outcome = simulate(options.seed)
        print(outcome)
        print(f"{dict(outcome.statuses)}, faults {dict(outcome.faults)}, {outcome.steps} steps")
        return 1 if outcome.complaints else 0
    began_s = time.monotonic()
    statuses: Counter[int] = Counter()
    bad = []
    for seed in range(options.first, options.first + options.seeds):
        outcome = simulate(seed)
        statuses += outcome.statuses
        if outcome.complaints:
            bad.append(seed)
            print(outcome if not options.going else f"seed {seed}: {outcome.complaints[0]}", flush=True)
            if not options.going:
                break
    answers = ", ".join(f"{count} with {status}" for status, count in sorted(statuses.items()))
    print(f"{seed + 1 - options.first} seeds in {time.monotonic() - began_s:.1f} s; answers: {answers}")
    if bad:
        print(f"{len(bad)} failed; python -m tests.support.whole --seed {bad[0]}", file=sys.stderr)
    return 1 if bad else 0


def _hog(seeds: range) -> int:
    kinds = {"alone": None, "beside a hog": PRIORITY_DEFAULT, "beside a hog of the highest priority": PRIORITY_HIGHEST}
    for words, priority in kinds.items():
        shares = [share_beside_a_hog(seed, priority)[0] for seed in seeds]
        print(f"{100 * sum(shares) / len(shares):.1f} % answered {words}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
