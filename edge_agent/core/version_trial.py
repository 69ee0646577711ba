"""The trial of a new version on real requests: what is compared, and when it is sure enough to decide. Pure.

The version before answers; the new one computes copies of its requests. Each copy is a `Pair`:
both answers to one request. Rules:

- The pairs are judged only at looks: at `least` pairs, at twice as many, and so on, and at `most`. All looks together
  are wrong with a chance of at most 1 - `LEVEL` for each thing that is compared: it is divided among the looks, so
  looking often makes no bad version lucky and no good one unlucky.
- Something surely beyond its threshold (the whole interval is) returns the version; everything surely within promotes
  it; otherwise more pairs are needed. Without an end by pairs or time, `otherwise` decides.
- Shares (agreement, failures) have Wilson intervals, paired ratios and differences (latency, confidence, joules) the
  interval of their median by order statistics, which no outlier moves. The 95th percentile of the latency can only
  return a version: to show that it is within takes more requests than most devices have in a day.
- A new version whose worker died `MOST_DEATHS` times, or that could not be loaded as often, is returned at once.

Time is the running time of the daemon, and a restart costs `RESTART_S`, so a trial ends on a device that restarts again
and again, too.

A file of its own because it knows no worker and no store; the agent imports it only while a version is on trial.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from statistics import NormalDist, median
from typing import NamedTuple

from edge_agent.core.paired_times import interval_rank

LEVEL = 0.99
"""Chance that no look is wrong about one of the compared things: each board decides once, and a fleet is many."""
MOST_DEATHS = 3
MOST_PAIRS = 4096
"""The most pairs that any trial keeps figures of: 4 floats each."""
RESTART_S = 30.0
MOST_RESTARTS = 5
"""A version during whose trial the daemon ended so often is returned: it may be what takes the board down."""
P95_SHARE = 0.05


class TrialState(Enum):
    """Where a trial is."""

    RUNNING = "running"
    PROMOTED = "promoted"
    RETURNED = "returned"


@dataclass(frozen=True, slots=True)
class TrialTerms:
    """How a version is tried; docs/desired.md has the meaning of each for operators.

    `least`, `most`: pairs before the first and at the last look. `within_s`: running seconds. `agreement`: the least
    share of equal answers. `failures`: the most share of requests that the new version fails. `slower`: the most times
    as long that it may take. `confidence_drop`: how much the top score may fall, in the median. `joules`: the most
    times as much energy (None: shown and not judged). `promote`: what happens when nothing was sure by the end.
    """

    least: int = 50
    most: int = 2000
    within_s: float = 86400.0
    agreement: float = 0.9
    failures: float = 0.05
    slower: float = 1.5
    confidence_drop: float = 0.1
    joules: float | None = None
    promote: bool = False

    def looks(self) -> tuple[int, ...]:
        """The numbers of pairs at which the trial is judged, ascending."""
        found = [self.least]
        while found[-1] * 2 < self.most:
            found.append(found[-1] * 2)
        if found[-1] < self.most:
            found.append(self.most)
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Pair:
    """One request that both versions had. `failure`: why the new one gave no answer; then nothing else is known.

    `old_ms`, `new_ms`: compute times, None where they cannot be compared (the old one's batch held other requests).
    Scores are those of the top label, None where the task has none; joules None where they were not measured.
    """

    failure: str | None = None
    agrees: bool = False
    old_ms: float | None = None
    new_ms: float | None = None
    old_score: float | None = None
    new_score: float | None = None
    old_joules: float | None = None
    new_joules: float | None = None


class FigureInterval(NamedTuple):
    """A figure with the interval that it lies in; infinite ends where too little was seen."""

    low: float
    value: float
    high: float


NOTHING = FigureInterval(-math.inf, math.nan, math.inf)


def wilson(hits: int, of: int, level: float) -> FigureInterval:
    """The share `hits / of` with its score interval (Wilson 1927), which is right for few trials and for shares of 0
    and 1."""
    if of <= 0:
        return FigureInterval(0.0, math.nan, 1.0)
    z = NormalDist().inv_cdf(0.5 + level / 2.0)
    share, weight = hits / of, z * z / of
    middle = (share + weight / 2.0) / (1.0 + weight)
    half = z / (1.0 + weight) * math.sqrt(share * (1.0 - share) / of + weight / (4.0 * of))
    return FigureInterval(max(0.0, min(share, middle - half)), share, min(1.0, max(share, middle + half)))


def median_interval(values: Sequence[float], level: float) -> FigureInterval:
    """The median with its interval by order statistics; without ends where there are too few values for the level."""
    count = len(values)
    if not count:
        return NOTHING
    if 2.0 ** (1 - count) > 1.0 - level:
        return FigureInterval(-math.inf, median(values), math.inf)
    ordered, outside = sorted(values), interval_rank(count, level)
    return FigureInterval(ordered[outside], median(ordered), ordered[-1 - outside])


def quantile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that this share of the values does not exceed; None without values."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


class Finding(NamedTuple):
    """One thing that was compared: `good` and `bad` say that it is surely within or beyond its threshold (neither: not
    sure yet); `text` has the figures."""

    name: str
    good: bool
    bad: bool
    text: str


@dataclass(frozen=True, slots=True)
class TrialVerdict:
    """How a trial ended, with the reason and its figures in a sentence. `sure` is False where time or requests ran out
    and the terms decided."""

    state: TrialState
    sure: bool
    reason: str


@dataclass(slots=True)
class _Samples:
    """What the pairs have shown so far, as parallel lists of floats."""

    ratios: list[float] = field(default_factory=list)
    old_ms: list[float] = field(default_factory=list)
    new_ms: list[float] = field(default_factory=list)
    drops: list[float] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)


class VersionTrial:
    """One version on trial. Other modules call the methods and only read."""

    def __init__(self, terms: TrialTerms, *, spent_s: float = 0.0, restarts: int = 0) -> None:
        """`spent_s`, `restarts`: what earlier daemons have spent on it; their pairs are lost."""
        self.terms = terms
        self.spent_s = spent_s
        self.restarts = restarts
        self.seen = self.failed = self.agreed = self.deaths = 0
        self.last_failure = ""
        self.verdict: TrialVerdict | None = None
        self._samples = _Samples()
        self._looked = 0

    @property
    def state(self) -> TrialState:
        """Running, or how it ended."""
        return TrialState.RUNNING if self.verdict is None else self.verdict.state

    @property
    def level(self) -> float:
        """The coverage of each interval: the looks share the chance to be wrong."""
        return 1.0 - (1.0 - LEVEL) / len(self.terms.looks())

    def stopped(self) -> None:
        """The daemon is stopped by order: the next one's start is no sign that the version takes the board down."""
        self.restarts -= 1

    def restarted(self) -> None:
        """A daemon goes on with what the one before had begun."""
        self.spent_s += RESTART_S
        self.restarts += 1
        if self.restarts >= MOST_RESTARTS:
            self._end(TrialState.RETURNED, True, f"the daemon ended {self.restarts} times during the trial")

    def died(self, reason: str) -> None:
        """The new version's worker died, or could not be loaded."""
        self.deaths += 1
        self.last_failure = reason
        if self.deaths >= MOST_DEATHS:
            self._end(TrialState.RETURNED, True, f"its worker ended {self.deaths} times: {reason}")

    def decide(self, verdict: TrialVerdict) -> None:
        """It has ended otherwise: by a person, or before the daemon did."""
        self.verdict = self.verdict or verdict

    def spend(self, seconds: float) -> None:
        """Running time has passed."""
        self.spent_s += max(0.0, seconds)
        if self.spent_s >= self.terms.within_s:
            self._end_unsure(f"after {self.spent_s:.0f} s")

    def add(self, pair: Pair) -> None:
        """A request that both versions had. It is judged where a look is due."""
        if self.verdict is not None:
            return
        self.seen += 1
        if pair.failure is not None:
            self.failed += 1
            self.last_failure = pair.failure
        else:
            self._note(pair)
        looks = self.terms.looks()
        if self._looked < len(looks) and self.seen >= looks[self._looked]:
            self._looked += 1
            self._judge()
        if self.seen >= min(self.terms.most, MOST_PAIRS):
            self._end_unsure(f"after {self.seen} requests")

    def findings(self) -> tuple[Finding, ...]:
        """What is known now of each thing that is compared."""
        terms, level, samples = self.terms, self.level, self._samples
        found = [
            _at_least("agreement", wilson(self.agreed, self.seen - self.failed, level), terms.agreement),
            _at_most("failures", wilson(self.failed, self.seen, level), terms.failures),
        ]
        if samples.ratios:
            found += [_at_most("latency", median_interval(samples.ratios, level), terms.slower), self._tail()]
        if samples.drops:
            found.append(_at_most("confidence drop", median_interval(samples.drops, level), terms.confidence_drop))
        if samples.joules and terms.joules is not None:
            found.append(_at_most("joules", median_interval(samples.joules, level), terms.joules))
        return tuple(found)

    def figures(self) -> dict[str, float | int | None]:
        """What was seen, as plain figures for operators; None where there is none."""
        samples, answered = self._samples, self.seen - self.failed
        return {
            "requests": self.seen,
            "failed": self.failed,
            "deaths": self.deaths,
            "agreement": round(self.agreed / answered, 4) if answered else None,
            "old_p95_ms": _rounded(quantile(samples.old_ms, 1.0 - P95_SHARE)),
            "new_p95_ms": _rounded(quantile(samples.new_ms, 1.0 - P95_SHARE)),
            "latency_ratio": _rounded(median(samples.ratios) if samples.ratios else None),
            "confidence_drop": _rounded(median(samples.drops) if samples.drops else None),
            "joules_ratio": _rounded(median(samples.joules) if samples.joules else None),
        }

    # ---- judging ---------------------------------------------------------------------------------------------------

    def _note(self, pair: Pair) -> None:
        samples = self._samples
        self.agreed += pair.agrees
        if pair.old_ms and pair.new_ms is not None:
            samples.old_ms.append(pair.old_ms)
            samples.new_ms.append(pair.new_ms)
            samples.ratios.append(pair.new_ms / pair.old_ms)
        if pair.old_score is not None and pair.new_score is not None:
            samples.drops.append(pair.old_score - pair.new_score)
        if pair.old_joules and pair.new_joules is not None:
            samples.joules.append(pair.new_joules / pair.old_joules)

    def _tail(self) -> Finding:
        """Whether more than 5 % of the new version's times are surely beyond what the old one's 95th percentile, at the
        upper end of its own interval, allows."""
        old, new = sorted(self._samples.old_ms), self._samples.new_ms
        spread = NormalDist().inv_cdf(0.5 + self.level / 2.0) * math.sqrt(len(old) * P95_SHARE * (1.0 - P95_SHARE))
        rank = min(len(old) - 1, math.ceil((1.0 - P95_SHARE) * len(old) + spread))
        limit_ms = old[rank] * self.terms.slower
        beyond = wilson(sum(one > limit_ms for one in new), len(new), self.level)
        text = f"latency p95: {beyond.value:.1%} of the requests took more than {limit_ms:.1f} ms"
        return Finding("latency p95", beyond.low <= P95_SHARE, beyond.low > P95_SHARE, text)

    def _judge(self) -> None:
        found = self.findings()
        bad = [one.text for one in found if one.bad]
        if bad:
            self._end(TrialState.RETURNED, True, f"after {self.seen} requests: {'; '.join(bad)}")
        elif all(one.good for one in found):
            self._end(TrialState.PROMOTED, True, f"after {self.seen} requests: {self._texts(found)}")

    def _end_unsure(self, when: str) -> None:
        state = TrialState.PROMOTED if self.terms.promote else TrialState.RETURNED
        unsure = [one for one in self.findings() if not one.good]
        what = self._texts(unsure) if self.seen else "no request was compared"
        self._end(state, False, f"not decided {when} with {self.seen} requests: {what}")

    def _end(self, state: TrialState, sure: bool, reason: str) -> None:
        if self.verdict is None:
            self.verdict = TrialVerdict(state, sure, reason)

    @staticmethod
    def _texts(found: Sequence[Finding]) -> str:
        return "; ".join(one.text for one in found)


def _at_least(name: str, found: FigureInterval, limit: float) -> Finding:
    text = f"{name} {found.value:.3f} ({found.low:.3f} to {found.high:.3f}), at least {limit:g} is asked for"
    return Finding(name, found.low >= limit, found.high < limit, text)


def _at_most(name: str, found: FigureInterval, limit: float) -> Finding:
    text = f"{name} {found.value:.3f} ({found.low:.3f} to {found.high:.3f}), at most {limit:g} is allowed"
    return Finding(name, found.high <= limit, found.low > limit, text)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
