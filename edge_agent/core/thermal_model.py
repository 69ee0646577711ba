"""The thermal model of a board: two nodes, identified online from the power spent and the temperatures measured.

    T = ambient + R_fast * P_fast + R_slow * P_slow + transient * exp(-t / slow_s)

P_fast and P_slow are the spent watts behind low passes with the time constants `fast_s` (the processor die) and
`slow_s` (the board with its heat sink). The thermal resistances R (K/W) and the ambient temperature are found by
recursive least squares with exponential forgetting and a prior per kind of board. The forgetting is stabilised:
parameters that the data do not determine return to the prior, so that the covariance cannot wind up while a board
idles. `slow_s` is the best of a list of candidates, each of which is fitted. Regressing on low-passed watts, and not on
previous temperatures, keeps the noise of the sensor out of the regressors.

This module decides nothing (`governor` does) and reads no clock: the elapsed time is an argument.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

SAMPLE_SD_C = 6.0
"""Standard deviation of one sample against the prior. Much higher than the 0.6 °C of the sensor, because consecutive
samples are not independent: errors that two nodes cannot explain (leakage, age of the sample) last for minutes."""
FORGETTING_S = 1200.0
"""Time constant of the forgetting of samples: a moved board or a changed room is learned within 20 minutes."""
ERROR_S = 300.0
"""Time constant of the mean squared prediction error by which the candidates are compared."""
SOLVE_EVERY_S = 10.0
SLOW_CANDIDATES_S = (50.0, 90.0, 165.0, 300.0, 550.0, 1000.0)
"""Published step responses fit 64 s (with a fan) to 840 s (closed metal case)."""
SWITCH_BELOW = 0.9
"""Another candidate is used when its error is 10 % smaller, so that two equally good ones do not alternate."""


@dataclass(frozen=True, slots=True)
class ThermalPrior:
    """Parameters of a kind of board, assumed until it has been observed. `full_w`: watts that full load adds to
    `idle_w`.

    Watts are at the board's input, resistances in K/W, time constants in seconds.
    """

    idle_w: float
    full_w: float
    fast_k_per_w: float
    fast_s: float
    slow_k_per_w: float
    slow_s: float


PRIORS = {
    "pi-zero-2": ThermalPrior(0.7, 2.2, 6.0, 7.2, 14.0, 165.0),
    "pi-3": ThermalPrior(1.4, 3.7, 5.0, 7.0, 6.0, 165.0),
    "pi-3b-plus": ThermalPrior(1.9, 4.0, 4.0, 7.0, 6.0, 165.0),
    "pi-4": ThermalPrior(2.7, 4.0, 4.3, 7.3, 4.6, 165.0),
    "pi-5": ThermalPrior(3.2, 7.5, 2.1, 7.3, 3.9, 165.0),
    "jetson-nano": ThermalPrior(2.0, 8.0, 1.0, 4.0, 4.0, 550.0),
    "orin-nano": ThermalPrior(5.0, 15.0, 0.6, 3.0, 1.6, 300.0),
    "orin-nx": ThermalPrior(6.0, 20.0, 0.5, 3.0, 1.4, 300.0),
    "orin": ThermalPrior(9.0, 40.0, 0.25, 3.0, 0.7, 300.0),
}
"""Pi 3 B+, 4 and 5: fits to published step responses and power measurements of bare boards and passive sinks (Pi 4: 72
°C after 300 s of stress-ng; Pi 5: 80 °C after 83 s of ONNX Runtime). Zero 2 W, Pi 3 and the Jetsons are estimated."""
DEFAULT_PRIOR = ThermalPrior(3.0, 6.0, 2.5, 7.0, 4.5, 165.0)


def prior_for(board_key: str) -> ThermalPrior:
    """The prior of a board by its key in `sensors.boards`; an average one for a board that is not listed."""
    return PRIORS.get(board_key, DEFAULT_PRIOR)


class CandidateFit(NamedTuple):
    """The least-squares fit of one candidate for the slow time constant `slow_s`.

    The regressors are x = (1, P_fast, P_slow = `slow_w`, decay); the parameters `theta` = (ambient, R_fast,
    R_slow, transient). `gram`: upper triangle of the weighted sum of x x^T, row by row. `moment`: weighted sum of x T.
    `error_c2`: recent mean squared prediction error in °C^2.
    """

    slow_s: float
    slow_w: float
    decay: float
    gram: tuple[float, ...]
    moment: tuple[float, float, float, float]
    theta: tuple[float, float, float, float]
    error_c2: float


class ThermalModel(NamedTuple):
    """The identified board.

    `fast_w`: P_fast now. `best`: index of the candidate in use. `since_solved_s`: seconds since the last solution.
    `initial_ambient_c`: the ambient temperature assumed at the start, used as prior. `observed_s`: for how long samples
    were taken since the load has varied; `lowest_w`, `highest_w`: the range of `fast_w` by which that is judged.
    """

    initial_ambient_c: float
    ambient_c: float
    fast_k_per_w: float
    fast_s: float
    slow_k_per_w: float
    slow_s: float
    fast_w: float
    candidates: tuple[CandidateFit, ...]
    best: int
    since_solved_s: float = 0.0
    observed_s: float = 0.0
    lowest_w: float = math.inf
    highest_w: float = 0.0

    @property
    def total_k_per_w(self) -> float:
        """Steady-state temperature rise per watt."""
        return self.fast_k_per_w + self.slow_k_per_w


def start_model(prior: ThermalPrior, first_c: float) -> ThermalModel:
    """The model before any observation: the prior, and the ambient temperature that explains `first_c` at idle power.

    After a recent load the ambient temperature is estimated too high, which limits power more than needed until it has
    been learned.
    """
    spent_w = prior.idle_w
    ambient_c = first_c - (prior.fast_k_per_w + prior.slow_k_per_w) * spent_w
    theta = (ambient_c, prior.fast_k_per_w, prior.slow_k_per_w, 0.0)
    candidates = tuple(
        CandidateFit(slow_s, spent_w, 1.0, (0.0,) * 10, (0.0,) * 4, theta, SAMPLE_SD_C**2)
        for slow_s in SLOW_CANDIDATES_S
    )
    # By ratio: 50 s and 100 s differ as much as 500 s and 1000 s.
    best = min(range(len(candidates)), key=lambda index: abs(math.log(candidates[index].slow_s / prior.slow_s)))
    return ThermalModel(
        ambient_c,
        ambient_c,
        prior.fast_k_per_w,
        prior.fast_s,
        prior.slow_k_per_w,
        candidates[best].slow_s,
        spent_w,
        candidates,
        best,
    )


def advance(model: ThermalModel, spent_w: float, elapsed_s: float) -> ThermalModel:
    """Update the low passes by the watts spent during `elapsed_s`; nothing is learned."""
    fast_w = model.fast_w + (spent_w - model.fast_w) * -math.expm1(-elapsed_s / model.fast_s)
    candidates = tuple(_advanced(candidate, spent_w, elapsed_s) for candidate in model.candidates)
    return model._replace(fast_w=fast_w, candidates=candidates)


def _advanced(candidate: CandidateFit, spent_w: float, elapsed_s: float) -> CandidateFit:
    keep = math.exp(-elapsed_s / candidate.slow_s)
    slow_w = spent_w + (candidate.slow_w - spent_w) * keep
    return CandidateFit(
        candidate.slow_s,
        slow_w,
        candidate.decay * keep,
        candidate.gram,
        candidate.moment,
        candidate.theta,
        candidate.error_c2,
    )


def learn(model: ThermalModel, prior: ThermalPrior, measured_c: float, elapsed_s: float) -> ThermalModel:
    """Add a fresh temperature to all candidates; every `SOLVE_EVERY_S` solve them and use the best.

    The resistances are bounded to 0.5 to 2 (fast) and 0.2 to 2.5 (slow) times the prior's. The ambient temperature then
    follows from the weighted means.
    """
    # By elapsed time and not per sample: a late sample must not change how fast old ones are forgotten.
    keep, keep_error = math.exp(-elapsed_s / FORGETTING_S), math.exp(-elapsed_s / ERROR_S)
    candidates = tuple(
        _learned(candidate, model.fast_w, measured_c, keep, keep_error) for candidate in model.candidates
    )
    lowest_w, highest_w = min(model.lowest_w, model.fast_w), max(model.highest_w, model.fast_w)
    # Without a change of at least 20 % of full power the resistances cannot be told from the ambient temperature.
    moved = highest_w - lowest_w >= 0.2 * prior.full_w
    since_solved_s = model.since_solved_s + elapsed_s
    model = model._replace(
        candidates=candidates,
        since_solved_s=since_solved_s,
        observed_s=model.observed_s + (elapsed_s if moved else 0.0),
        lowest_w=lowest_w,
        highest_w=highest_w,
    )
    return _solved(model, prior) if since_solved_s >= SOLVE_EVERY_S else model


def _learned(candidate: CandidateFit, fast_w: float, measured_c: float, keep: float, keep_error: float) -> CandidateFit:
    slow_w, decay = candidate.slow_w, candidate.decay
    a, b, c, d = candidate.theta
    residual_c = measured_c - a - b * fast_w - c * slow_w - d * decay
    g = candidate.gram
    m = candidate.moment
    gram = (
        keep * g[0] + 1.0,
        keep * g[1] + fast_w,
        keep * g[2] + slow_w,
        keep * g[3] + decay,
        keep * g[4] + fast_w * fast_w,
        keep * g[5] + fast_w * slow_w,
        keep * g[6] + fast_w * decay,
        keep * g[7] + slow_w * slow_w,
        keep * g[8] + slow_w * decay,
        keep * g[9] + decay * decay,
    )
    moment = (
        keep * m[0] + measured_c,
        keep * m[1] + fast_w * measured_c,
        keep * m[2] + slow_w * measured_c,
        keep * m[3] + decay * measured_c,
    )
    error_c2 = keep_error * candidate.error_c2 + (1.0 - keep_error) * residual_c * residual_c
    return CandidateFit(candidate.slow_s, slow_w, decay, gram, moment, candidate.theta, error_c2)


def _solved(model: ThermalModel, prior: ThermalPrior) -> ThermalModel:
    candidates = tuple(
        candidate._replace(theta=_solve(candidate, prior, model.initial_ambient_c)) for candidate in model.candidates
    )
    best = min(range(len(candidates)), key=lambda index: candidates[index].error_c2)
    if candidates[best].error_c2 > SWITCH_BELOW * candidates[model.best].error_c2:
        best = model.best
    _, fast, slow, transient_c = candidates[best].theta
    # The bounds keep a short or unusual history from producing a model that permits too much power.
    fast = _clamp(fast, 0.5 * prior.fast_k_per_w, 2.0 * prior.fast_k_per_w)
    slow = _clamp(slow, 0.2 * prior.slow_k_per_w, 2.5 * prior.slow_k_per_w)
    g = candidates[best].gram
    return model._replace(
        candidates=candidates,
        best=best,
        ambient_c=(candidates[best].moment[0] - fast * g[1] - slow * g[2] - transient_c * g[3]) / g[0],
        fast_k_per_w=fast,
        slow_k_per_w=slow,
        slow_s=candidates[best].slow_s,
        since_solved_s=0.0,
    )


def _solve(candidate: CandidateFit, prior: ThermalPrior, ambient_c: float) -> tuple[float, float, float, float]:
    """(ambient °C, fast and slow thermal resistance in K/W, initial transient in °C) by weighted least squares.

    The prior counts as four more observations, which make the matrix positive definite. Gaussian elimination then needs
    no pivoting; numpy would take more memory than the whole thermal model.
    """
    expected = (ambient_c, prior.fast_k_per_w, prior.slow_k_per_w, 0.0)
    # Standard deviations of the prior: ambient 12 °C, resistances 30 % and 50 %, initial transient 25 °C.
    spread = (12.0, 0.3 * prior.fast_k_per_w, 0.5 * prior.slow_k_per_w, 25.0)
    weights = [(SAMPLE_SD_C / each) ** 2 for each in spread]
    g = candidate.gram
    rows = [
        [g[0] + weights[0], g[1], g[2], g[3]],
        [g[1], g[4] + weights[1], g[5], g[6]],
        [g[2], g[5], g[7] + weights[2], g[8]],
        [g[3], g[6], g[8], g[9] + weights[3]],
    ]
    right = [candidate.moment[i] + weights[i] * expected[i] for i in range(4)]
    for i in range(4):
        for j in range(i + 1, 4):
            factor = rows[j][i] / rows[i][i]
            right[j] -= factor * right[i]
            for k in range(i, 4):
                rows[j][k] -= factor * rows[i][k]
    found = [0.0] * 4
    for i in (3, 2, 1, 0):
        found[i] = (right[i] - sum(rows[i][k] * found[k] for k in range(i + 1, 4))) / rows[i][i]
    return found[0], found[1], found[2], found[3]


def forecast_c(model: ThermalModel, now_c: float, power_w: float, ahead_s: float) -> float:
    """The temperature after `ahead_s` at `power_w`, starting from the measured `now_c`.

    The model only adds the change, so that an error of the ambient temperature has little effect.
    """
    # The measured temperature less the modelled rise of the die: the temperature of board and sink now.
    slow_now_c = now_c - model.fast_k_per_w * model.fast_w
    fast = model.fast_k_per_w * (power_w - model.fast_w) * -math.expm1(-ahead_s / model.fast_s)
    slow = (model.ambient_c + model.slow_k_per_w * power_w - slow_now_c) * -math.expm1(-ahead_s / model.slow_s)
    return now_c + fast + slow


def holding_w(model: ThermalModel, now_c: float, target_c: float, ahead_s: float) -> float:
    """The watts that bring the temperature to `target_c` in `ahead_s`, with the die settled. May be negative."""
    slow_now_c = now_c - model.fast_k_per_w * model.fast_w
    # Share of its final rise that the slow node reaches within `ahead_s`.
    reached = -math.expm1(-ahead_s / model.slow_s)
    rise_c = target_c - slow_now_c - (model.ambient_c - slow_now_c) * reached
    return rise_c / (model.fast_k_per_w + model.slow_k_per_w * reached)


def settled_w(model: ThermalModel, target_c: float) -> float:
    """The watts that hold `target_c` in steady state. May be negative."""
    return (target_c - model.ambient_c) / model.total_k_per_w


def _clamp(value: float, low: float, high: float) -> float:
    return max(low, min(value, high))
