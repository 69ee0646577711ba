"""Scores of a generator on preferences: how often, and by how much, it finds the chosen answer likelier. Pure.

A file of its own because it scores pairs of answers, and `generator_metrics` single ones; the conversion to GGUF is
keyed by that module's code, and by none of this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edge_forge.evaluate.paired import LEVEL, difference_interval, share_interval


def preferred(chosen_nats: Sequence[float], rejected_nats: Sequence[float]) -> dict[str, Any]:
    """Of -ln p in nats of both answers of each pair, summed over their tokens: `preferred`, the share of pairs whose
    chosen answer is likelier (Wilson's interval), and `margin`, ln p(chosen) - ln p(rejected) in nats, on average
    (Student's). A tie is no preference. `pair_margins` has a margin for each pair."""
    margins = [bad - good for good, bad in zip(chosen_nats, rejected_nats, strict=True)]
    return {**_shares("preferred", margins), **_means("margin", margins), "pair_margins": margins}


def rewarded(tuned: Sequence[float], base: Sequence[float], beta: float) -> dict[str, Any]:
    """Of `pair_margins` of the tuned model and of its base: `rewarded`, the share of pairs whose margin training
    raised, which is DPO's accuracy, and `reward_margin`, beta times the rise, on average, with intervals."""
    rises = [beta * (after - before) for after, before in zip(tuned, base, strict=True)]
    return {**_shares("rewarded", rises), **_means("reward_margin", rises)}


@dataclass(frozen=True, slots=True)
class PairedPreferences:
    """A number format beside F16 on the same pairs of answers.

    `loss`: the share of pairs whose chosen answer is likelier, by F16 minus by the variant (Tango's interval).
    `fall`: how much smaller the variant's margin is, in nats on average, with its interval (Student's). `rise`: by how
    much training raised the margin of F16 over the base's, in nats on average.
    """

    rows: int
    loss: float
    loss_low: float
    loss_high: float
    fall: float
    fall_low: float | None
    fall_high: float | None
    rise: float

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)


def compare_preferences(
    reference: Sequence[float], variant: Sequence[float], base: Sequence[float]
) -> PairedPreferences:
    """The scores of `variant` beside `reference`, by the `pair_margins` of both and of the untuned base."""
    held = list(zip(reference, variant, strict=True))
    lost, gained = (sum(one > 0.0 >= other for one, other in pairs) for pairs in (held, [pair[::-1] for pair in held]))
    loss = difference_interval(len(held), lost, gained)
    fall = _means("fall", [one - other for one, other in held])
    rise = math.fsum(one - other for one, other in zip(reference, base, strict=True)) / len(held)
    return PairedPreferences(
        len(held), (lost - gained) / len(held), loss.low, loss.high,
        fall["fall"] or 0.0, fall["fall_low"], fall["fall_high"], rise,
    )  # fmt: skip


def _shares(name: str, values: Sequence[float]) -> dict[str, float]:
    above = sum(value > 0.0 for value in values)
    interval = share_interval(above, len(values))
    return {name: above / len(values), f"{name}_low": interval.low, f"{name}_high": interval.high}


def _means(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """Mean and Student's interval; of one value the interval is not known."""
    from scipy import stats

    count, mean = len(values), math.fsum(values) / len(values)
    if count < 2:
        return {name: mean, f"{name}_low": None, f"{name}_high": None}
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(stats.t.ppf((1.0 + LEVEL) / 2.0, count - 1)) * deviation / math.sqrt(count)
    return {name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half}
