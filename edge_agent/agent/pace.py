"""How busy the workers are, and how long each must rest after a step: the governor's pace, carried out.

The daemon hands a worker one micro-batch at a time, so a step is a batch from submission to its last answer. Pure but
for its books: the clock is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edge_agent.core.governor import Grant

LONGEST_STEP_S = 10.0
"""A step that takes longer did not compute all the time (a worker that hangs, a daemon that was stopped); resting in
proportion would leave the model unserved for minutes. Where a step is really that long, the governor asks for less."""


@dataclass(slots=True)
class Pace:
    """Books on the steps of all models. `_open` holds the steps under way, by model: when they began and their rows."""

    _open: dict[str, tuple[float, int]] = field(default_factory=dict)
    _last: dict[str, tuple[float, float, int]] = field(default_factory=dict)
    _busy_s: float = 0.0
    _asked_s: float | None = None

    def begin(self, model: str, rows: int, now_s: float) -> None:
        """A step of this many rows begins."""
        self._open[model] = (now_s, rows)

    def end(self, model: str, now_s: float, is_step: bool = True) -> None:
        """The model's step is over, or its worker is. A generator's time of many steps is busy time, but no step."""
        began_s, rows = self._open.pop(model)
        self._busy_s += now_s - max(began_s, self._asked_s if self._asked_s is not None else began_s)
        if is_step:
            self._last[model] = (now_s, min(now_s - began_s, LONGEST_STEP_S), rows)

    def rest_s(self, model: str, grant: Grant, now_s: float) -> float:
        """Seconds until the model's next step may begin; infinite while the grant lets none begin."""
        ended_s, step_s, _ = self._last.get(model, (now_s, 0.0, 1))
        if grant.busy_share >= 1.0:
            return 0.0
        return grant.pause_s(step_s) - (now_s - ended_s)

    def row_s(self) -> float | None:
        """Seconds per row of the slowest model's last step; None before the first."""
        return max((step_s / max(1, rows) for _, step_s, rows in self._last.values()), default=None)

    def busy_share(self, now_s: float) -> float | None:
        """The part of the time since the last call in which steps ran, at most 1; None at the first call."""
        asked_s, self._asked_s = self._asked_s, now_s
        if asked_s is None or now_s <= asked_s:
            return None
        busy_s = self._busy_s + sum(now_s - max(began_s, asked_s) for began_s, _ in self._open.values())
        self._busy_s = 0.0
        return min(1.0, busy_s / (now_s - asked_s))

    def forget(self, model: str) -> None:
        """The model was removed from the device."""
        self._last.pop(model, None)
