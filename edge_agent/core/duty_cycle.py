"""How busy the workers are, and how long each must rest after a step: the governor's pace, carried out.

The board has one power budget, however many models spend it. So where heat limits, models take turns: encoders step one
at a time and rest together from any of their steps, whoever rested longest goes first. A generator cannot be asked for
every token: each that is under way is told its part of the time (`core.operating_points.part`), and one more part is
the encoders' while they step or rest (docs/decisions/0074).

The daemon hands an encoder's worker one micro-batch at a time, so a step is a batch from submission to its last answer.
Pure but for its books: the clock is an argument.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from edge_agent.base.limits import PACED_STEP_S
from edge_agent.core import operating_points
from edge_agent.core.governor import Grant

LATELY_S = 60.0
"""A model that stepped longer ago than this before the last step of any limits nobody by the length of its rows."""
REST_LEAST_S = 1e-5
"""What is left of a pause by rounding is none: a timer for it would come at once, again and again."""


class Step(NamedTuple):
    """A model's time with its worker; a generator's is of many steps (`streams`)."""

    began_s: float
    rows: int
    streams: bool


class Past(NamedTuple):
    """An encoder's last step. `step_s` is what is rested from."""

    ended_s: float
    step_s: float
    rows: int


NEVER = Past(-math.inf, 0.0, 1)


@dataclass(slots=True)
class DutyCycle:
    """Books on the steps of all models.

    `_part`: the part of the time that each generator under way was told last; `_worth`: what a second of a step counts,
    less than 1 where several models may compute at once and share the cores.
    """

    _part: float = 1.0
    _worth: float = 1.0
    _open: dict[str, Step] = field(default_factory=dict)
    _past: dict[str, Past] = field(default_factory=dict)
    _waiting: set[str] = field(default_factory=set)
    _last: Past = NEVER
    _busy_s: float = 0.0
    _asked_s: float | None = None
    _counted_s: float = -math.inf

    def begin(self, model: str, rows: int, now_s: float, streams: bool = False) -> None:
        """A step of this many rows begins."""
        self._count(now_s)
        self._open[model] = Step(now_s, rows, streams)

    def end(self, model: str, now_s: float) -> None:
        """The model's step is over, or its worker is."""
        self._count(now_s)
        step = self._open.pop(model)
        if not step.streams:
            self._last = Past(now_s, min(now_s - step.began_s, PACED_STEP_S), step.rows)
            self._past[model] = self._last

    def wait(self, model: str) -> None:
        """The model has something to compute, and asks by `rest_s` when it may."""
        self._waiting.add(model)

    def leave(self, model: str) -> None:
        """It waits no longer."""
        self._waiting.discard(model)

    def rest_s(self, model: str, grant: Grant, now_s: float, streams: bool = False) -> float:
        """Seconds until the model's next step may begin; infinite while the grant lets none begin or others are first.

        A generator may begin at once: its worker rests between its tokens.
        """
        if grant.busy_share <= 0.0:
            return math.inf
        if streams or not grant.takes_turns:
            return 0.0
        if self._stepping(now_s) or self._is_behind(model):
            return math.inf
        return self._left_s(grant, now_s)

    def part_of(self, model: str, grant: Grant) -> float:
        """The part of the time that a model can count on beside those that step or wait now."""
        others = {*self._open, *self._waiting} - {model}
        return _part(grant, len(others) + 1)

    def share_out(self, grant: Grant, now_s: float) -> float:
        """The part of the time in which each generator under way may compute from now on."""
        self._count(now_s)
        models = max(1, self._generators() + self._encoders(grant, now_s))
        self._part = _part(grant, models)
        self._worth = grant.busy_share / models / self._part if grant.takes_turns and self._part > 0.0 else 1.0
        return self._part

    def row_s(self) -> float | None:
        """Seconds per row of the slowest model's last step, of those that stepped lately; None before the first."""
        lately = [past for past in self._past.values() if self._last.ended_s - past.ended_s <= LATELY_S]
        return max((past.step_s / max(1, past.rows) for past in lately), default=None)

    def busy_share(self, now_s: float) -> float | None:
        """The part of the time since the last call in which steps ran, at most 1; None at the first call."""
        self._count(now_s)
        asked_s, self._asked_s = self._asked_s, now_s
        busy_s, self._busy_s = self._busy_s, 0.0
        if asked_s is None or now_s <= asked_s:
            return None
        return min(1.0, busy_s / (now_s - asked_s))

    def forget(self, model: str) -> None:
        """Its worker died: nobody rests from its last step."""
        if self._past.pop(model, None) == self._last:
            self._last = max(self._past.values(), default=NEVER)

    def _count(self, now_s: float) -> None:
        """Book what ran since the last change; a generator computes in its part of the time."""
        since_s, self._counted_s = self._counted_s, now_s
        for step in self._open.values():
            ran_s = max(0.0, now_s - max(step.began_s, since_s))
            self._busy_s += ran_s * self._worth * (self._part if step.streams else 1.0)

    def _generators(self) -> int:
        return sum(step.streams for step in self._open.values())

    def _encoders(self, grant: Grant, now_s: float) -> bool:
        """Whether an encoder steps, or the rest from its step is not over: so long it uses its part by definition."""
        return any(not step.streams for step in self._open.values()) or self._left_s(grant, now_s) > REST_LEAST_S

    def _left_s(self, grant: Grant, now_s: float) -> float:
        """What is left of the rest from the last step of any encoder."""
        share = _part(grant, self._generators() + 1)
        if share <= 0.0:
            return math.inf
        return max(0.0, self._last.ended_s + self._last.step_s * (1.0 / share - 1.0) - now_s)

    def _stepping(self, now_s: float) -> bool:
        """Whether an encoder is in a step; one whose worker may hang holds nobody up any longer."""
        return any(not step.streams and now_s - step.began_s < PACED_STEP_S for step in self._open.values())

    def _is_behind(self, model: str) -> bool:
        """Whether another one waits whose last step is longer ago."""
        mine_s = self._ended_s(model)
        return any(self._ended_s(other) < mine_s for other in self._waiting if other != model)

    def _ended_s(self, model: str) -> float:
        past = self._past.get(model)
        return past.ended_s if past is not None else -math.inf


def _part(grant: Grant, models: int) -> float:
    if not grant.takes_turns or grant.busy_share <= 0.0 or models == 1:
        return grant.busy_share
    return operating_points.part(models, grant.busy_share, grant.threads, max(grant.threads, grant.of_threads))
