"""How many sequences decode in one call: all of them, or one after the other. Pure.

A batch should be cheaper than its parts, and is, where the kernels for few columns are good. Other builds fall from a
kernel for one column, as fast as memory, to one made for long prompts: with Q8_0 on AVX2 a call for two took 31 ms,
for one 7 ms, and only from five on was the batch worth it. So both ways are measured as they are used, and the cheaper
one is taken; the other one is looked at again now and then, since threads, clocks and neighbours change.
"""

from __future__ import annotations

from dataclasses import dataclass, field

WEIGHT = 0.25
LOOK_AGAIN_STEPS = 64
OUTLIER = 2.0
"""A call that took longer than twice the mean counts as that: the system was busy with something else."""


@dataclass(slots=True)
class Calls:
    """Mean seconds of a call that only decodes, by its number of sequences."""

    _mean_s: dict[int, float] = field(default_factory=dict)
    _steps: int = 0

    def rows(self, count: int) -> int:
        """Sequences per call for a step of `count`: 1, or all."""
        if count < 2:
            return 1
        self._steps += 1
        together_s, one_s = self._mean_s.get(count), self._mean_s.get(1)
        if together_s is None:
            return count
        if one_s is None:
            return 1
        apart = one_s * count < together_s
        if self._steps % LOOK_AGAIN_STEPS == 0:
            apart = not apart
        return 1 if apart else count

    def learn(self, rows: int, call_s: float) -> None:
        """A call for so many sequences, one token each, took so long."""
        mean_s = self._mean_s.get(rows)
        if mean_s is None:
            self._mean_s[rows] = call_s
        else:
            self._mean_s[rows] = mean_s + WEIGHT * (min(call_s, OUTLIER * mean_s) - mean_s)

    def forget(self) -> None:
        """Other threads, other times."""
        self._mean_s.clear()
