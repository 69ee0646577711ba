"""The duty cycle of the board: when the next step of a model may begin, and which share of the time was computed.

The governor grants a duty share: the fraction of the time in which steps may run, for all models together, because
they share one power budget. While it is limited,

- encoders step one at a time. After a step of any encoder all encoders pause for `step * (1 / share - 1)`; the model
  whose last step ended first goes next. The daemon submits one micro-batch at a time, so a step lasts from the
  submission of a batch to its last answer.
- generators cannot be controlled token by token from here. Each active generator is told its own duty share
  (`operating_points.duty_share_of_each`) and pauses between its tokens by itself. All encoders together count as one
  more model while one of them steps or pauses (docs/decisions/0074).

Terms: a *duty share* is permitted, a *busy share* is measured, a *pause* is the time between two steps.

Pure: the clock is an argument. `agent.serving.StepGate` waits for the pauses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from edge_agent.base.limits import PACED_STEP_S
from edge_agent.core import operating_points
from edge_agent.core.governor import ComputeGrant

RECENT_S = 60.0
"""A model whose last step is older than this, against the last step of any model, does not limit the rows of a batch.
"""
LEAST_PAUSE_S = 1e-5
"""A shorter pause is rounding: a timer for it would fire at once, again and again."""


class ActiveStep(NamedTuple):
    """A step that runs now. A generator (`generates`) counts as in one step from its first request until it has none
    left."""

    began_s: float
    rows: int
    generates: bool


class FinishedStep(NamedTuple):
    """An encoder's last step; `step_s` is its duration in seconds, at most `PACED_STEP_S`."""

    ended_s: float
    step_s: float
    rows: int


NO_STEP = FinishedStep(-math.inf, 0.0, 1)


@dataclass(slots=True)
class DutyCycle:
    """The steps of all models: those that run, the last one of each encoder, and the models that wait.

    `_generator_share`: the duty share that each active generator was told last. `_step_weight`: how much a second of a
    step adds to the busy time; below 1 where several models may compute at once and share the cores.
    """

    _generator_share: float = 1.0
    _step_weight: float = 1.0
    _active: dict[str, ActiveStep] = field(default_factory=dict)
    _finished: dict[str, FinishedStep] = field(default_factory=dict)
    _waiting: set[str] = field(default_factory=set)
    _last: FinishedStep = NO_STEP
    _busy_s: float = 0.0
    _reported_s: float | None = None
    _counted_s: float = -math.inf

    def begin(self, model: str, rows: int, now_s: float, generates: bool = False) -> None:
        """A step of `rows` rows begins."""
        self._count(now_s)
        self._active[model] = ActiveStep(now_s, rows, generates)

    def end(self, model: str, now_s: float) -> None:
        """The model's step has ended, or its worker has."""
        self._count(now_s)
        step = self._active.pop(model)
        if not step.generates:
            # A generator pauses in its worker, so its time with the worker causes no pause here.
            self._last = FinishedStep(now_s, min(now_s - step.began_s, PACED_STEP_S), step.rows)
            self._finished[model] = self._last

    def wait(self, model: str) -> None:
        """The model has work and asks with `pause_s` when its step may begin."""
        self._waiting.add(model)

    def leave(self, model: str) -> None:
        """The model no longer waits."""
        self._waiting.discard(model)

    def pause_s(self, model: str, grant: ComputeGrant, now_s: float, generates: bool = False) -> float:
        """Seconds until the model's next step may begin; inf while no step may begin or another model goes first."""
        if grant.duty_share <= 0.0:
            return math.inf
        # A generator begins at once: its worker pauses between tokens.
        if generates or not grant.one_at_a_time:
            return 0.0
        # No end is known for either; the gate asks again when a step ends.
        if self._encoder_steps(now_s) or self._another_goes_first(model):
            return math.inf
        return self._pause_left_s(grant, now_s)

    def share_of(self, model: str, grant: ComputeGrant) -> float:
        """The duty share that the model can expect beside the models that step or wait now."""
        # A model that neither steps nor waits uses no power and does not count.
        others = {*self._active, *self._waiting} - {model}
        return _share_of_each(grant, len(others) + 1)

    def set_generator_share(self, grant: ComputeGrant, now_s: float) -> float:
        """Compute and return the duty share of each active generator from now on."""
        self._count(now_s)
        models = max(1, self._generators() + self._encoders_count(grant, now_s))
        self._generator_share = share = _share_of_each(grant, models)
        # Steps of several models overlap by chance and then share the cores; weighted by this, the busy shares of all
        # models add up to the granted duty share.
        self._step_weight = grant.duty_share / models / share if grant.one_at_a_time and share > 0.0 else 1.0
        return share

    def row_s(self) -> float | None:
        """Seconds per row of the slowest model's last step within `RECENT_S`; None before the first step."""
        # A slow model that is no longer used must not keep the batches of the others small.
        recent = [step for step in self._finished.values() if self._last.ended_s - step.ended_s <= RECENT_S]
        return max((step.step_s / max(1, step.rows) for step in recent), default=None)

    def take_busy_share(self, now_s: float) -> float | None:
        """Fraction of the time since the last call in which steps ran, at most 1; None at the first call."""
        self._count(now_s)
        reported_s, self._reported_s = self._reported_s, now_s
        busy_s, self._busy_s = self._busy_s, 0.0
        if reported_s is None or now_s <= reported_s:
            return None
        return min(1.0, busy_s / (now_s - reported_s))

    def forget(self, model: str) -> None:
        """The model's worker died: its last step causes no pause."""
        if self._finished.pop(model, None) == self._last:
            self._last = max(self._finished.values(), default=NO_STEP)

    def _count(self, now_s: float) -> None:
        """Add the busy time since the last change; a generator computes for its duty share of the time."""
        since_s, self._counted_s = self._counted_s, now_s
        for step in self._active.values():
            ran_s = max(0.0, now_s - max(step.began_s, since_s))
            self._busy_s += ran_s * self._step_weight * (self._generator_share if step.generates else 1.0)

    def _generators(self) -> int:
        return sum(step.generates for step in self._active.values())

    def _encoders_count(self, grant: ComputeGrant, now_s: float) -> bool:
        """Whether the encoders count as one model: while one steps or pauses they use their share by definition."""
        stepping = any(not step.generates for step in self._active.values())
        return stepping or self._pause_left_s(grant, now_s) > LEAST_PAUSE_S

    def _pause_left_s(self, grant: ComputeGrant, now_s: float) -> float:
        """Seconds left of the pause after the last step of any encoder."""
        share = _share_of_each(grant, self._generators() + 1)
        if share <= 0.0:
            return math.inf
        return max(0.0, self._last.ended_s + self._last.step_s * (1.0 / share - 1.0) - now_s)

    def _encoder_steps(self, now_s: float) -> bool:
        """Whether an encoder steps. After `PACED_STEP_S` its worker may hang and no longer blocks other models."""
        return any(not step.generates and now_s - step.began_s < PACED_STEP_S for step in self._active.values())

    def _another_goes_first(self, model: str) -> bool:
        """Whether a waiting model's last step ended before this model's last step."""
        own_s = self._ended_s(model)
        return any(self._ended_s(other) < own_s for other in self._waiting if other != model)

    def _ended_s(self, model: str) -> float:
        step = self._finished.get(model)
        return step.ended_s if step is not None else -math.inf


def _share_of_each(grant: ComputeGrant, models: int) -> float:
    if not grant.one_at_a_time or grant.duty_share <= 0.0 or models == 1:
        return grant.duty_share
    of_threads = max(grant.threads, grant.unlimited_threads)
    return operating_points.duty_share_of_each(models, grant.duty_share, grant.threads, of_threads)
