"""The trial of a new version on real requests: what is compared, and when it is sure enough to decide. Pure.

One version answers a request and the other one computes a copy of it. Each copy is a `Pair`: both answers to one
request. Rules:

- The pairs are judged only at looks: at `least` pairs, at twice as many, and so on, and at `most`. All looks together
  are wrong with a chance of at most 1 - `LEVEL` for each thing that is compared: it is divided among the looks, so
  looking often makes no bad version lucky and no good one unlucky.
- Something surely beyond its threshold (the whole interval is) returns the version; everything surely within promotes
  it; otherwise more pairs are needed. Without an end by pairs or time, `otherwise` decides.
- Shares (agreement, failures) have Wilson intervals, paired ratios and differences (latency, confidence, joules) the
  interval of their median by order statistics, which no outlier moves. The 95th percentile of the latency can only
  return a version: to show that it is within takes more requests than most devices have in a day.
- Heat is judged where a temperature is given: the share of requests after which the board was above it. A version is
  returned only where that share is surely larger than after the version before, too: a hot room is not its doing.
- A new version whose worker died `MOST_DEATHS` times, or that could not be loaded as often, is returned at once.

Time is the running time of the daemon, and a restart costs `RESTART_S`, so a trial ends on a device that restarts again
and again, too. What was measured goes on over restarts (`samples`), and so does the number of looks.

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
from edge_agent.core.trial_records import TrialSamples
from edge_agent.protocol.messages import TrialOrder

LEVEL = 0.99
"""Chance that no look is wrong about one of the compared things: each board decides once, and a fleet is many."""
MOST_DEATHS = 3
MOST_PAIRS = 4096
"""The most pairs that any trial keeps figures of: 7 floats each."""
RESTART_S = 30.0
MOST_RESTARTS = 5
"""A version during whose trial the daemon ended so often is returned: it may be what takes the board down."""
P95_SHARE = 0.05
"""Share of the requests that may be beyond a limit of time or of temperature."""


class TrialState(Enum):
    """Where a trial is."""

    RUNNING = "running"
    PROMOTED = "promoted"
    RETURNED = "returned"


def looks(terms: TrialOrder) -> tuple[int, ...]:
    """The numbers of pairs at which a trial on these terms is judged, ascending."""
    found = [terms.least]
    while found[-1] * 2 < terms.most:
        found.append(found[-1] * 2)
    if found[-1] < terms.most:
        found.append(terms.most)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Pair:
    """One request that both versions had. `failure`: why the new one gave no answer; then nothing else is known.

    `old_ms`, `new_ms`: compute times, None where they cannot be compared (the old one's batch held other requests).
    Scores are those of the top label, None where the task has none; joules None where they were not measured. `old_c`,
    `new_c`: temperature of the board in °C after each computation, None where no sensor told it.
    """

    failure: str | None = None
    agrees: bool = False
    old_ms: float | None = None
    new_ms: float | None = None
    old_score: float | None = None
    new_score: float | None = None
    old_joules: float | None = None
    new_joules: float | None = None
    old_c: float | None = None
    new_c: float | None = None


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
    old_c: list[float] = field(default_factory=list)
    new_c: list[float] = field(default_factory=list)


_FAILURE_CHARS = 500
_LISTS = ("ratios", "old_ms", "new_ms", "drops", "joules", "old_c", "new_c")


def is_sound(samples: TrialSamples) -> bool:
    """Whether samples that were read from a disk can be those of a trial."""
    counts = (samples.seen, samples.failed, samples.agreed, samples.deaths, samples.looked)
    answered = samples.seen - samples.failed
    lists = [getattr(samples, name) for name in _LISTS]
    paired = len(samples.ratios) == len(samples.old_ms) == len(samples.new_ms) and len(samples.old_c) == len(
        samples.new_c
    )
    bounded = min(counts) >= 0 and samples.agreed <= answered and all(len(one) <= answered for one in lists)
    return bounded and paired and samples.seen <= MOST_PAIRS and all(math.isfinite(v) for one in lists for v in one)


class VersionTrial:
    """One version on trial. Other modules call the methods and only read."""

    def __init__(
        self, terms: TrialOrder, *, spent_s: float = 0.0, restarts: int = 0, known: TrialSamples | None = None
    ) -> None:
        """`spent_s`, `restarts`, `known`: what earlier daemons have spent on it and measured."""
        before = known if known is not None and is_sound(known) else TrialSamples(0, "")
        self.terms = terms
        self.spent_s = spent_s
        self.restarts = restarts
        self.seen, self.failed, self.agreed, self.deaths = before.seen, before.failed, before.agreed, before.deaths
        self.last_failure = before.last_failure
        self.verdict: TrialVerdict | None = None
        self._samples = _Samples(*(list(getattr(before, name)) for name in _LISTS))
        self._looked = before.looked

    @property
    def state(self) -> TrialState:
        """Running, or how it ended."""
        return TrialState.RUNNING if self.verdict is None else self.verdict.state

    @property
    def level(self) -> float:
        """The coverage of each interval: the looks share the chance to be wrong."""
        return 1.0 - (1.0 - LEVEL) / len(looks(self.terms))

    @property
    def next_look(self) -> int:
        """The number of pairs at which it is judged next."""
        numbers = looks(self.terms)
        return numbers[min(self._looked, len(numbers) - 1)]

    def samples(self, version: int, package: str) -> TrialSamples:
        """What was measured so far, to be kept over a restart; figures to four digits."""
        measured = self._samples
        return TrialSamples(
            version,
            package,
            self.seen,
            self.failed,
            self.agreed,
            self.deaths,
            self._looked,
            self.last_failure[:_FAILURE_CHARS],
            *(tuple(float(f"{value:.4g}") for value in getattr(measured, name)) for name in _LISTS),
        )

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
        numbers = looks(self.terms)
        if self._looked < len(numbers) and self.seen >= numbers[self._looked]:
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
        if samples.new_c and terms.temperature_c is not None:
            found.append(self._heat(terms.temperature_c))
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
            "old_p95_c": _rounded(quantile(samples.old_c, 1.0 - P95_SHARE)),
            "new_p95_c": _rounded(quantile(samples.new_c, 1.0 - P95_SHARE)),
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
        if pair.old_c is not None and pair.new_c is not None:
            samples.old_c.append(pair.old_c)
            samples.new_c.append(pair.new_c)

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

    def _heat(self, limit_c: float) -> Finding:
        """Whether the board is above the limit after more than 5 % of the new version's requests, and surely more often
        than after those of the version before."""
        old, new = (
            wilson(sum(one > limit_c for one in found), len(found), self.level)
            for found in (self._samples.old_c, self._samples.new_c)
        )
        text = f"heat: above {limit_c:g} °C after {new.value:.1%} of the requests, {old.value:.1%} before"
        return Finding("heat", new.high <= max(P95_SHARE, old.high), new.low > max(P95_SHARE, old.high), text)

    def _judge(self) -> None:
        found = self.findings()
        bad = [one.text for one in found if one.bad]
        if bad:
            self._end(TrialState.RETURNED, True, f"after {self.seen} requests: {'; '.join(bad)}")
        elif all(one.good for one in found):
            self._end(TrialState.PROMOTED, True, f"after {self.seen} requests: {self._texts(found)}")

    def _end_unsure(self, when: str) -> None:
        state = TrialState.PROMOTED if self.terms.otherwise == "promote" else TrialState.RETURNED
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
