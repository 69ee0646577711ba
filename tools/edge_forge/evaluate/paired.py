"""A variant beside its reference on the same rows: what the rows can tell, as intervals.

Two accuracies on the same few hundred rows differ by chance: one of 387 rows is 0.26 points. Only the rows that exactly
one of the two answers right carry information, so the interval is that of a paired difference. Agreement of the answers
and the error of the logits need no labels and tell more from the same texts. Pure: arrays in, figures out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.95
"""Two-sided coverage of every interval: a variant is wrongly found to lose too much with a probability of 2.5 %."""


_LARGEST_LOG = 700.0
_BISECTIONS = 60


class Interval(NamedTuple):
    """Lower and upper bound."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PairedScores:
    """A classifier's variant beside its reference. Shares are fractions (0..1).

    `only_reference`, `only_variant`: labelled rows that one of the two alone answers right. `loss` is the accuracy of
    the reference minus that of the variant, with its interval. `agreement` is the share of `texts` (labelled or not)
    that both answer alike, `agreement_high` the upper bound of its interval. `logit_error`: see the function.
    """

    rows: int
    only_reference: int
    only_variant: int
    loss: float
    loss_low: float
    loss_high: float
    texts: int
    agreement: float
    agreement_high: float
    logit_error: float

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)


def compare_logits(
    reference: NDArray[np.floating],
    variant: NDArray[np.floating],
    gold: Sequence[int],
    unlabelled: tuple[NDArray[np.floating], NDArray[np.floating]] | None = None,
) -> PairedScores:
    """The scores of `variant` beside `reference`, logits [rows, labels] of the rows whose labels are `gold`.

    `unlabelled`: logits of both for further texts, which count for agreement and error only.
    """
    truth, rows = np.asarray(gold), len(gold)
    right, also_right = reference.argmax(axis=1) == truth, variant.argmax(axis=1) == truth
    lost, gained = int((right & ~also_right).sum()), int((also_right & ~right).sum())
    loss = difference_interval(rows, lost, gained)
    if unlabelled is not None:
        reference, variant = np.concatenate([reference, unlabelled[0]]), np.concatenate([variant, unlabelled[1]])
    same = int((reference.argmax(axis=1) == variant.argmax(axis=1)).sum())
    return PairedScores(
        rows, lost, gained, (lost - gained) / rows, loss.low, loss.high,
        len(reference), same / len(reference), share_interval(same, len(reference)).high,
        logit_error(reference, variant),
    )  # fmt: skip


def difference_interval(rows: int, only_first: int, only_second: int, level: float = LEVEL) -> Interval:
    """Score interval of the difference first - second of two shares on the same `rows` (Tango 1998, eq. 6).

    It holds its level from about ten rows on and where no row differs (Fagerland et al. 2014, "Recommended tests and
    confidence intervals for paired binomial proportions"), unlike Wald's and a bootstrap, which then have no width.
    """
    z = float(stats.norm.ppf((1 + level) / 2))
    estimate = (only_first - only_second) / rows

    def bound(end: float, sign: int) -> float:
        """By bisection from the end of the scale: beside the estimate the deviation may be 0, which is no bound."""
        outside, inside = end, estimate
        for _ in range(_BISECTIONS):
            middle = (outside + inside) / 2
            excess = sign * rows * (estimate - middle) - z * _deviation(rows, only_first, only_second, middle)
            outside, inside = (middle, inside) if excess > 0.0 else (outside, middle)
        return outside

    return Interval(bound(-1.0, 1), bound(1.0, -1))


def _deviation(rows: int, only_first: int, only_second: int, difference: float) -> float:
    """Standard deviation of `only_first - only_second` if the shares differ by `difference`: by the likeliest share of
    rows that only the second has, given that difference."""
    b = -only_first - only_second + (2 * rows - only_first + only_second) * difference
    c = -only_second * difference * (1 - difference)
    share = (math.sqrt(max(0.0, b * b - 8 * rows * c)) - b) / (4 * rows)
    return math.sqrt(max(0.0, rows * (2 * share + difference * (1 - difference))))


def share_interval(count: int, rows: int, level: float = LEVEL) -> Interval:
    """Wilson's score interval of a share (Wilson 1927)."""
    found = stats.binomtest(count, rows).proportion_ci(level, method="wilson")
    return Interval(float(found.low), float(found.high))


def median_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Interval of a median by order statistics (a sign test turned round): no distribution is assumed, and outliers do
    not widen it. The range where there are too few values for the level."""
    ordered = sorted(values)
    outside = max(0, int(stats.binom.ppf((1 - level) / 2, len(ordered), 0.5)) - 1)
    return Interval(ordered[outside], ordered[-1 - outside])


def logit_error(reference: NDArray[np.floating], variant: NDArray[np.floating]) -> float:
    """Root mean square difference of logits over the root mean square of the reference's.

    Each row's mean is taken off first, because adding a constant to a row changes no probability. 0: equal; about 1:
    the variant's logits have nothing to do with the reference's. At most a million, which JSON can hold: a reference
    that does not tell labels apart has no scale.
    """
    due = reference - reference.mean(axis=1, keepdims=True)
    off = variant - variant.mean(axis=1, keepdims=True) - due
    size = math.sqrt(float(np.square(due, dtype=np.float64).mean()))
    error = math.sqrt(float(np.square(off, dtype=np.float64).mean()))
    return min(1e6, error / max(size, 1e-12))


def latencies(times: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Of milliseconds measured in turns: median (`p50_ms`), its interval (`low_ms`, `high_ms`), 99th percentile
    (`p99_ms`), and how many times as long as the first one, by turn (`ratio`, `ratio_low`, `ratio_high`)."""
    reference = next(iter(times.values()))
    found = {}
    for name, own in times.items():
        ratios = [one / other for one, other in zip(own, reference, strict=True)]
        own_interval, interval = median_interval(own), median_interval(ratios)
        found[name] = {
            "p50_ms": float(np.median(own)), "p99_ms": float(np.percentile(own, 99)),
            "low_ms": own_interval.low, "high_ms": own_interval.high,
            "ratio": float(np.median(ratios)), "ratio_low": interval.low, "ratio_high": interval.high,
        }  # fmt: skip
    return found


def speeds(rounds: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Of a generator's files, timed in turns (`measure_gguf.speeds_in_turns`): medians over the rounds with intervals.

    first_token_ms and tokens_per_s with `_low` and `_high`; `ratio`, `ratio_low`, `ratio_high`: how many times the
    tokens/s of the first file, by round. None, and no intervals, where a round has no rate.
    """
    reference = [one["tokens_per_s"] for one in next(iter(rounds.values()))]
    found = {}
    for name, own in rounds.items():
        rates = [one["tokens_per_s"] for one in own]
        figures = {**own[0], "rounds": len(own), "tokens_per_s": None}
        figures |= _median("first_token_ms", [one["first_token_ms"] for one in own])
        if None not in rates:
            figures |= _median("tokens_per_s", rates)
            if None not in reference:
                figures |= _median("ratio", [one / other for one, other in zip(rates, reference, strict=True)])
        found[name] = figures
    return found


def _median(name: str, values: Sequence[float]) -> dict[str, float]:
    interval = median_interval(values)
    return {name: float(np.median(values)), f"{name}_low": interval.low, f"{name}_high": interval.high}


@dataclass(frozen=True, slots=True)
class PairedLosses:
    """A generator's variant beside its reference: the ratio of their perplexities with its interval."""

    rows: int
    ratio: float
    ratio_low: float
    ratio_high: float

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)


def compare_losses(
    reference: Sequence[float], variant: Sequence[float], tokens: Sequence[int], level: float = LEVEL
) -> PairedLosses:
    """The perplexity of `variant` over that of `reference`, from the loss of each row: a finite sum over its `tokens`,
    in nats.

    The logarithm of the ratio is a ratio estimator (sum of differences over sum of tokens) with rows as the units
    drawn; its interval is Student's, by the residuals of the linearised estimator (Cochran 1977, section 6.4). One row
    has the widest interval that JSON can hold.
    """
    differences, counts = np.asarray(variant) - np.asarray(reference), np.asarray(tokens, dtype=np.float64)
    mean, width = float(differences.sum() / counts.sum()), _LARGEST_LOG
    if len(counts) > 1:
        rest = differences - mean * counts
        error = math.sqrt(len(counts) / (len(counts) - 1) * float(np.square(rest).sum())) / float(counts.sum())
        width = float(stats.t.ppf((1 + level) / 2, len(counts) - 1)) * error
    ratio, low, high = (math.exp(min(_LARGEST_LOG, mean + by)) for by in (0.0, -width, width))
    return PairedLosses(len(counts), ratio, low, high)
