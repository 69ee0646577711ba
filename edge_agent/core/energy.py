"""Energy in joules: of a request (`EnergyMeter`) and of one text during a trial (`per_text`), or None with the reason.

A request's energy is the board's power integrated over the request's share of the computation. Between two samples the
power is their mean (trapezoidal rule). At every moment it is divided among all requests inside a worker, by their rows
(also those that pause in a generator); power while no request is inside is attributed to none. On a board without a
power sensor a utilisation model supplies the power, and the method says that it is an estimate. With neither, or if a
sample was missing while the request ran, the energy is None: an integral with a gap is not a measurement.

A trial runs one text after another and divides the energy of the whole board, idle power included, by the number of
texts. Sensors are slow: an INA3221 or a PMIC shows a new value every few milliseconds to every second, and its first
value may still be from the time before. The mean is therefore taken from the first change of the value on, and a run in
which the value changed too seldom gives no figure.

Pure: readings and times are arguments. `agent.governor_loop` samples once a second, `agent.respond` closes the
accounts, and `worker.one_shot` samples during a trial.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from edge_agent.base.reading import Reading
from edge_agent.core.operating_points import CLOCK_EXPONENT

FRESH_S = 5.0
NOT_METERED = "the request was not metered"
LEAST_VALUES = 3
"""Changes of the sensor's value within a trial. A rail that never changes gives none: it cannot be told from a sensor
that is stuck."""
LEAST_S, MOST_S = 2.0, 5.0
"""A trial for energy runs until the sensor has changed often enough, within these bounds; a text that takes longer is
not interrupted."""


@dataclass(frozen=True, slots=True)
class UtilisationModel:
    """Power of a kind of board: `idle_w`, and up to `full_w` more by the threads that compute and their clock.

    The figures are those of `thermal_model.PRIORS`: published measurements of such boards, not of this one.
    """

    board: str
    idle_w: float
    full_w: float
    cores: int

    def watts(self, threads: int, clock: float = 1.0) -> float:
        """Watts while `threads` compute at this share of the highest clock."""
        return self.idle_w + self.full_w * min(1.0, threads / max(1, self.cores)) * float(clock**CLOCK_EXPONENT)

    def method(self, over: str = "the request's share of the compute") -> str:
        """The method of an estimate, for replies; `over` names the time that it covers."""
        return (
            f"estimated: {self.idle_w:g} W idle + {self.full_w:g} W at full load of a {self.board}, by threads in use, "
            f"over {over}"
        )


@dataclass(frozen=True, slots=True)
class _Method:
    """How the energy of a request is known, for people, and whether it is an estimate."""

    text: str
    estimated: bool


@dataclass(slots=True)
class _RequestEnergy:
    """One request inside a worker; `gap`: why the power is not known for a part of its time."""

    rows: int
    joules: float = 0.0
    method: _Method | None = None
    gap: str | None = None


class EnergyMeter:
    """The running integrals of all requests that are inside a worker."""

    def __init__(self, model: UtilisationModel | None = None) -> None:
        self._model = model
        self._requests: dict[str, _RequestEnergy] = {}
        self._power: Reading | None = None
        self._at_s: float | None = None
        self._watts = 0.0

    def sample(self, power: Reading, now_s: float, threads: int, clock: float = 1.0) -> None:
        """Take a sample of the board's power in watts, while `threads` compute at `clock` of the highest clock."""
        estimate_w = self._model.watts(threads, clock) if self._model is not None else 0.0
        self._advance(power, estimate_w, now_s)

    def begin(self, job_id: str, rows: int, now_s: float) -> None:
        """A request enters a worker."""
        self._advance(self._power, self._watts, now_s)
        self._requests[job_id] = _RequestEnergy(max(1, rows))

    def end(self, job_id: str, power: Reading, now_s: float) -> tuple[float | None, str]:
        """A request leaves its worker: (joules, method), or (None, reason)."""
        self._advance(power, self._watts, now_s)
        request = self._requests.pop(job_id, None)
        if request is None:
            return None, NOT_METERED
        if request.gap is not None:
            return None, request.gap
        if request.method is not None:
            return request.joules, request.method.text
        method = self._method(power)
        return (0.0, method.text) if method is not None else (None, power.reason or NOT_METERED)

    def drop(self, job_id: str) -> None:
        """A request ended without an answer of a worker; an unknown one is no error."""
        self._requests.pop(job_id, None)

    def _advance(self, power: Reading | None, estimate_w: float, now_s: float) -> None:
        """Integrate the power since the last call, with `power` as the sample of now."""
        before, before_w = self._power, self._watts
        elapsed_s = max(0.0, now_s - self._at_s) if self._at_s is not None else 0.0
        self._power, self._watts, self._at_s = power, estimate_w, now_s
        # Power without a request inside a worker belongs to no request.
        if not self._requests or elapsed_s <= 0.0 or power is None:
            return
        watts = _measured_w(before, power, now_s)
        if watts is None and self._model is not None:
            watts = (before_w + estimate_w) / 2.0
        total_rows = sum(request.rows for request in self._requests.values())
        for request in self._requests.values():
            if watts is None:
                request.gap = power.reason or "the last power sample is too old"
            else:
                request.joules += watts * elapsed_s * request.rows / total_rows
                request.method = self._method(power, request.method)

    def _method(self, power: Reading, before: _Method | None = None) -> _Method | None:
        """The method of a request; one that was estimated for a part of its time is an estimate."""
        if power.value is not None and not (before is not None and before.estimated):
            return _Method(f"{power.source} over the request's share of the compute", estimated=False)
        return before if self._model is None else _Method(self._model.method(), estimated=True)


def _measured_w(before: Reading | None, after: Reading, now_s: float) -> float | None:
    """Mean watts between two samples, of which one is enough; None when neither is fresh."""
    found = [one.value for one in (before, after) if one is not None and one.fresh(now_s, FRESH_S)]
    values = [value for value in found if value is not None]
    return sum(values) / len(values) if values else None


@dataclass(frozen=True, slots=True)
class TextEnergy:
    """Joules of one text and the method, or None and the reason in the method's place. `estimated`: not by a sensor."""

    joules: float | None
    method: str
    estimated: bool = False


def enough_samples(samples: Sequence[Reading], elapsed_s: float) -> bool:
    """Whether a trial may end."""
    return elapsed_s >= MOST_S or (elapsed_s >= LEAST_S and len(_changes(samples)) >= LEAST_VALUES)


def per_text(samples: Sequence[Reading], elapsed_s: float, texts: int) -> TextEnergy:
    """Energy of one of `texts` that were computed one after another in `elapsed_s`, from the samples of that time.

    A missing sample is a gap and gives no figure.
    """
    # A gap cannot be bridged: the load during a trial is not constant enough.
    lost = next((sample for sample in samples if sample.value is None), None)
    if lost is not None or not samples or texts < 1:
        return TextEnergy(None, (lost.reason if lost is not None else None) or "no power sample was taken")
    changes, source = _changes(samples), samples[-1].source
    if len(changes) < LEAST_VALUES:
        reason = f"{source} gave {len(changes)} new values in {elapsed_s:.1f} s, {LEAST_VALUES} are needed"
        return TextEnergy(None, f"the trial was too short for the sensor: {reason}")
    watts = _mean_w(samples[changes[0] :])
    method = f"{source}, whole board, idle power included: {watts:.3g} W while {texts} texts ran in {elapsed_s:.1f} s"
    return TextEnergy(watts * elapsed_s / texts, method)


def estimated(model: UtilisationModel, threads: int, latency_s: float) -> TextEnergy:
    """Energy of a text on a known board without a sensor: its power at full load on `threads`, times `latency_s`."""
    return TextEnergy(model.watts(threads) * latency_s, model.method("the time of one text"), estimated=True)


def _changes(samples: Sequence[Reading]) -> list[int]:
    """Indices of the samples whose value differs from the one before."""
    return [place for place in range(1, len(samples)) if samples[place].value != samples[place - 1].value]


def _mean_w(samples: Sequence[Reading]) -> float:
    """The mean power over time by the trapezoidal rule; every sample has a value."""
    joules = 0.0
    for before, after in itertools.pairwise(samples):
        joules += ((before.value or 0.0) + (after.value or 0.0)) / 2.0 * (after.taken_s - before.taken_s)
    took_s = samples[-1].taken_s - samples[0].taken_s
    return joules / took_s if took_s > 0.0 else samples[-1].value or 0.0
