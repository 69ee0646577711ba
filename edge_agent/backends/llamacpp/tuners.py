"""Tunes decode calls by measurement while decoding: the number of threads, and the number of sequences per call. Pure.

Threads. Decoding is bound by memory, and its threads synchronise after each of several hundred operations per token. So
more threads are not always faster; where another program uses a core, or a model is small, they are slower: two of them
took 23 ms a token where one took 11 (docs/decisions/0135). The best count depends on model, board and load, so
`ThreadTuner` tries a neighbouring count for a few calls from time to time. The kernels split their work by rows, so the
count changes no result.

Sequences. A batch should be cheaper than its sequences one by one, and is where the kernels for few columns are good.
Other builds switch from a kernel for one column, as fast as memory, to one for long prompts: with Q8_0 on AVX2 a call
for two took 31 ms, for one 7 ms, and only from five on the batch was faster (docs/decisions/0097). `BatchSizeTuner`
measures both ways in use and takes the cheaper one.

A file of its own because it is pure and tested with invented times.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field

TRIED_CALLS = 5
KEPT_CALLS = 9
"""Medians of this many calls are compared, so that one call that another program delayed has no effect."""
FEWER_MAY_TAKE, MORE_MUST_TAKE = 1.02, 0.95
"""Factors on the time of a call. One thread fewer is chosen below the first, since it heats less; one more, below the
second."""
SOON_CALLS, LATE_CALLS = 8, 256
"""Calls until the next trial: SOON_CALLS after a change, doubled up to LATE_CALLS by every trial without one."""

CallKind = tuple[int, bool]
"""Decode calls of one kind take about as long: the number of sequences, and whether an adapter is applied."""


@dataclass(slots=True)
class _Search:
    """The search for the best count for one kind of call."""

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
    """The number of threads of decode calls by their kind, at most `granted`."""

    granted: int
    _searches: dict[CallKind, _Search] = field(default_factory=dict)

    def count(self, kind: CallKind) -> int:
        """Threads for the next call of that kind."""
        search = self._searches.setdefault(kind, _Search(self.granted))
        return search.trying or search.best

    def settled(self, kind: CallKind) -> bool:
        """Whether calls of that kind use the best known count at present, and not one on trial."""
        search = self._searches.get(kind)
        return search is not None and not search.trying

    def learn(self, kind: CallKind, call_s: float) -> bool:
        """Note the seconds of a call with the count from `count`; True when the best count changed."""
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
        """Try the next higher and lower count alternately; the other one where there is none."""
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
"""A call that took longer counts as OUTLIER times the mean: another program delayed it."""


@dataclass(slots=True)
class BatchSizeTuner:
    """Chooses the sequences per decode call by the mean seconds of a call of each size."""

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
        """Note the seconds of a call for `rows` sequences, one token each."""
        mean_s = self._mean_s.get(rows)
        if mean_s is None:
            self._mean_s[rows] = call_s
        else:
            self._mean_s[rows] = mean_s + WEIGHT * (min(call_s, OUTLIER * mean_s) - mean_s)

    def forget(self) -> None:
        """Drop the means: they were measured with another number of threads."""
        self._mean_s.clear()
