"""Energy of one text during a trial: what the whole board took while one text after another was computed, by text.

Nothing is subtracted: the board's idle power is part of it, as it is of a request's joules (`core.energy`). Sensors are
slow: an INA3221 or a PMIC shows a new value every few milliseconds to every second, and the first one may still be of
the time before. So the mean is taken from the first new value on, and a run in which the sensor moved too seldom gives
no figure. Pure: samples come in as readings, `worker.probe` takes them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from edge_agent.base.reading import Reading
from edge_agent.core.energy import Utilisation

LEAST_VALUES = 3
"""New values of the sensor within the run. A rail that is steady to the milliwatt gives none: it is not believed."""
LEAST_S, MOST_S = 2.0, 5.0
"""How long texts are run for it: until there are enough new values, within these bounds. The longest text in use may
take longer than that; it is not cut."""


@dataclass(frozen=True, slots=True)
class TextEnergy:
    """Joules of one text with the method, or None with the reason in its place."""

    joules: float | None
    method: str


def enough(samples: Sequence[Reading], elapsed_s: float) -> bool:
    """Whether a run may end."""
    return elapsed_s >= MOST_S or (elapsed_s >= LEAST_S and len(_new_values(samples)) >= LEAST_VALUES)


def per_text(samples: Sequence[Reading], elapsed_s: float, texts: int) -> TextEnergy:
    """Energy of one of `texts` that were computed one after another in `elapsed_s`, by the board's power meanwhile.

    A sample that is missing makes a gap: half an integral is no figure.
    """
    lost = next((sample for sample in samples if sample.value is None), None)
    if lost is not None or not samples or texts < 1:
        return TextEnergy(None, (lost.reason if lost is not None else None) or "no power sample was taken")
    new, source = _new_values(samples), samples[-1].source
    if len(new) < LEAST_VALUES:
        reason = f"{source} gave {len(new)} new values in {elapsed_s:.1f} s, {LEAST_VALUES} are needed"
        return TextEnergy(None, f"the trial was too short for the sensor: {reason}")
    watts = _mean_w(samples[new[0] :])
    method = f"{source}, whole board, idle power included: {watts:.3g} W while {texts} texts ran in {elapsed_s:.1f} s"
    return TextEnergy(watts * elapsed_s / texts, method)


def estimated(model: Utilisation, threads: int, latency_s: float) -> TextEnergy:
    """For a known board without a sensor: its power at full load on so many threads, for the time of a text."""
    return TextEnergy(model.watts(threads) * latency_s, model.method("the time of one text"))


def _new_values(samples: Sequence[Reading]) -> list[int]:
    """Where a sample shows another value than the one before."""
    return [place for place in range(1, len(samples)) if samples[place].value != samples[place - 1].value]


def _mean_w(samples: Sequence[Reading]) -> float:
    """The mean over time, by trapezes; every sample has a value."""
    joules = 0.0
    for before, after in itertools.pairwise(samples):
        joules += ((before.value or 0.0) + (after.value or 0.0)) / 2.0 * (after.taken_s - before.taken_s)
    took_s = samples[-1].taken_s - samples[0].taken_s
    return joules / took_s if took_s > 0.0 else samples[-1].value or 0.0
