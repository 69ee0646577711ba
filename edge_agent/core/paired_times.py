"""Times of several variants measured in turns, and how sure it is that one is faster than another. Pure.

On a shared board a minute of other work makes whatever is measured in it slower. So the variants take turns (A B A B),
and what is compared is the ratio of two times of the same turn: a slow minute slows both. The interval of the median
ratio is by order statistics (a sign test turned round), which needs no distribution and forgives outliers.

A file of its own because the store decides by it and the worker's prober fills it in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

LEVEL = 0.99
"""Coverage of an interval where there are turns enough: each board decides once, and a fleet is many boards."""


class Ratio(NamedTuple):
    """How many times as long one variant takes as another: the median of the turns and its interval."""

    low: float
    median: float
    high: float

    def text(self) -> str:
        """'1.42 times (1.35 to 1.50)'."""
        return f"{self.median:.2f} times ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True, slots=True)
class PairedTimes:
    """Milliseconds of one text by variant (the digest of its manifest), one per turn, the same turns for each.

    `apart`: the variants were not in memory together, and a turn is one load of each. Such turns are few.
    """

    times: Mapping[str, Sequence[float]]
    apart: bool = False

    @property
    def turns(self) -> int:
        """How often each was measured."""
        return min((len(found) for found in self.times.values()), default=0)

    def median_ms(self, variant: str) -> float:
        """The median time of a variant."""
        return _median(self.times[variant])

    def ratio(self, variant: str, reference: str) -> Ratio | None:
        """How many times as long `variant` takes as `reference`; None where one of them was not measured."""
        one, other = self.times.get(variant, ()), self.times.get(reference, ())
        ratios = sorted(mine / its for mine, its in zip(one, other, strict=False) if its > 0.0)
        if not ratios:
            return None
        left_out = interval_rank(len(ratios))
        return Ratio(ratios[left_out], _median(ratios), ratios[-1 - left_out])

    def text(self) -> str:
        """How the ratios were measured."""
        return f"{self.turns} loads each, since they do not fit into memory together" if self.apart else (
            f"{self.turns} turns"
        )  # fmt: skip


def interval_rank(count: int, level: float = LEVEL) -> int:
    """How many of `count` sorted values lie outside at each end of the interval of their median.

    The largest k with P(at most k of `count` fair coins are heads) <= (1 - level) / 2. Fewer than eight values have no
    interval of 99 %: 0 leaves none outside, and the interval is their range.
    """
    left_out, chance = 0, 1 / 2.0**count
    while 2 * left_out + 3 < count:
        chance += math.comb(count, left_out + 1) / 2.0**count
        if chance > (1.0 - level) / 2:
            break
        left_out += 1
    return left_out


def _median(values: Sequence[float]) -> float:
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
