"""Pacing of a worker: pauses between steps, the length of the next step, and when text of an answer is sent.

Pure; times are monotonic seconds.
"""

from __future__ import annotations

import math
from collections import deque

from edge_agent.base.limits import PACED_STEP_S

BEAT_S = 1.0
"""A generator with jobs sends something at least this often; a heartbeat where it has nothing else to send."""
DEADLINE_MARGIN_S = 0.03
"""An answer is ended this long before its deadline, so that its last message arrives in time."""
STEPS_KEPT, STEP_GROWTH = 4, 1.5
"""The next step is expected to take at most STEP_GROWTH times the longest of the last STEPS_KEPT steps."""


class StepTimes:
    """An upper estimate of the next step's length. A step cannot be cut short, so an answer whose deadline would pass
    during it is ended before it."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=STEPS_KEPT)

    def add(self, step_s: float) -> None:
        """Note the length of a step, in seconds."""
        self._last.append(step_s)

    @property
    def ahead_s(self) -> float:
        """Seconds that the next step is expected to take at most; 0 before the first step."""
        return STEP_GROWTH * max(self._last, default=0.0)


class ChunkCoalescer:
    """Joins the text of one answer to chunks: the first text is sent at once, more text every `flush_s` seconds.

    `wanted`: whether the answer streams at all. `until_s`: its deadline, None without one.
    """

    def __init__(self, wanted: bool, flush_s: float, until_s: float | None) -> None:
        self._wanted = wanted
        self._flush_s = flush_s
        self._until_s = until_s
        self._parts: list[str] = []
        self._sent_s: float | None = None

    def add(self, text: str, now_s: float) -> str:
        """Add text; returns what is to be sent now, '' for nothing yet."""
        if not self._wanted or not text:
            return ""
        self._parts.append(text)
        if self._sent_s is not None and now_s - self._sent_s < self._flush_s:
            return ""
        self._sent_s = now_s
        return self.rest()

    def rest(self) -> str:
        """Text that was added and not sent; it is handed out once."""
        parts, self._parts = self._parts, []
        return "".join(parts)

    @property
    def ends_s(self) -> float:
        """The time at which the answer is ended for its deadline; infinite without one."""
        return math.inf if self._until_s is None else self._until_s - DEADLINE_MARGIN_S

    def late(self, now_s: float) -> bool:
        """Whether the answer is to be ended now."""
        return now_s >= self.ends_s


class StepThrottle:
    """Pauses after each step, so that steps run for the fraction `share` of the time (the governor's duty cycle).

    `share` 1: no pause; 0: no step until it changes. `enabled`: only a generator's worker pauses by itself; the daemon
    keeps the duty cycle of an encoder, between two batches.
    """

    def __init__(self) -> None:
        self.share = 1.0
        self.enabled = False
        self._ended_s = -math.inf
        self._step_s = 0.0

    def begin(self, now_s: float, started_s: float) -> None:
        """Begin the pause after a step that ran from `started_s` to `now_s`."""
        self._ended_s, self._step_s = now_s, min(now_s - started_s, PACED_STEP_S)

    def left_s(self, now_s: float) -> float:
        """Seconds until the next step may begin, by the present share; 0 or less: at once."""
        if not self.enabled or self.share >= 1.0:
            return 0.0
        if self.share <= 0.0:
            return math.inf
        return self._ended_s + self._step_s * (1.0 / self.share - 1.0) - now_s

    def wait_s(self, now_s: float, *moments_s: float) -> float:
        """Seconds until the next step or the first of `moments_s` that lies ahead, at most BEAT_S; 0: step now."""
        left_s = self.left_s(now_s)
        return min([left_s, BEAT_S] + [at_s - now_s for at_s in moments_s if at_s > now_s]) if left_s > 0.0 else 0.0
