"""How many threads decode: as many as are worth it. Pure.

Decoding waits for memory, and its threads wait for each other after each of several hundred operations per token. So
more threads are not always faster, and where another program has a core, or a model is small, they are slower: two of
them took 23 ms a token where one took 11 (docs/decisions/0135). Which count is best depends on model, board and what
else runs, so it is looked for while decoding: now and then a neighbouring count is tried for a few calls. The kernels
split their work by rows, so the count changes no result.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field

TRIED_CALLS = 5
KEPT_CALLS = 9
"""The median of so many calls is compared: one that was held up by another program decides nothing."""
FEWER_MAY_TAKE, MORE_MUST_TAKE = 1.02, 0.95
"""Fewer threads are taken where they are hardly slower: they make less heat. More, where they clearly save time."""
SOON_CALLS, LATE_CALLS = 8, 256
"""BatchSizeTuner until the next trial: few after a change, doubled by every trial that changed nothing."""

CallKind = tuple[int, bool]
"""BatchSizeTuner that take about as long: the number of sequences, and whether an adapter is applied."""


@dataclass(slots=True)
class _Search:
    """The search for calls of one kind."""

    best: int
    times: dict[int, deque[float]] = field(default_factory=dict)
    trying: int = 0
    left: int = SOON_CALLS
    pause: int = SOON_CALLS
    upwards: bool = False

    def note(self, threads: int, call_s: float) -> None:
        self.times.setdefault(threads, deque(maxlen=KEPT_CALLS)).append(call_s)

    def median_s(self, threads: int) -> float:
        return statistics.median(self.times[threads])


@dataclass(slots=True)
class ThreadTuner:
    """The count for every call that only decodes, by its kind; at most `granted`."""

    granted: int
    _searches: dict[CallKind, _Search] = field(default_factory=dict)

    def count(self, kind: CallKind) -> int:
        """Threads for the next call of that kind."""
        search = self._searches.setdefault(kind, _Search(self.granted))
        return search.trying or search.best

    def settled(self, kind: CallKind) -> bool:
        """Whether such calls are made with the best count that is known, and not to try another one."""
        search = self._searches.get(kind)
        return search is not None and not search.trying

    def learn(self, kind: CallKind, call_s: float) -> bool:
        """A call with the count that was asked for took so long; True when the best count has changed by that."""
        search = self._searches[kind]
        threads = search.trying or search.best
        search.note(threads, call_s)
        search.left -= 1
        if search.left > 0:
            return False
        if search.trying:
            return self._judge(search)
        self._begin(search)
        return False

    def _begin(self, search: _Search) -> None:
        """Try the next count on one side, by turns; the other side where there is none."""
        search.upwards = not search.upwards
        if not 1 <= search.best + (1 if search.upwards else -1) <= self.granted:
            search.upwards = not search.upwards
        trying = search.best + (1 if search.upwards else -1)
        if 1 <= trying <= self.granted:
            search.trying, search.left = trying, TRIED_CALLS
            search.times.pop(trying, None)
        else:
            search.left = search.pause

    def _judge(self, search: _Search) -> bool:
        tried, search.trying = search.trying, 0
        may_take = FEWER_MAY_TAKE if tried < search.best else MORE_MUST_TAKE
        better = search.median_s(tried) <= may_take * search.median_s(search.best)
        if better:
            search.best = tried
            search.pause = SOON_CALLS
            search.upwards = not search.upwards  # go on in this direction first
        else:
            search.pause = min(2 * search.pause, LATE_CALLS)
        search.left = search.pause
        return better


WEIGHT = 0.25
LOOK_AGAIN_STEPS = 64
OUTLIER = 2.0
"""A call that took longer than twice the mean counts as that: the system was busy with something else."""


@dataclass(slots=True)
class BatchSizeTuner:
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
