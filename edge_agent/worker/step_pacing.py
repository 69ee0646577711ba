"""Pacing of a worker: pauses between steps, the length of the next step, and when text of an answer is sent.

Pure; times are monotonic seconds.
"""

from __future__ import annotations

import math
from collections import deque

from edge_agent.base.limits import PACED_STEP_S

BEAT_S = 1.0
"""A worker that works says so at least this often; what it says may be nothing but that."""
DEADLINE_MARGIN_S = 0.03
"""So long before its deadline an answer is ended as it stands, so that its end still arrives in time."""
STEPS_KEPT, STEP_GROWTH = 4, 1.5
"""A step is expected to take at most so many times the longest of the last few."""


class StepTimes:
    """How long the next step may take: none can be cut short, so an answer ends before one that would outlast it."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=STEPS_KEPT)

    def add(self, step_s: float) -> None:
        """A step took so many seconds."""
        self._last.append(step_s)

    @property
    def ahead_s(self) -> float:
        """Seconds that the next step is expected to take at most; 0 before the first."""
        return STEP_GROWTH * max(self._last, default=0.0)


class ChunkCoalescer:
    """The text of one answer on its way out. Times are monotonic seconds; `until_s` None: no deadline."""

    def __init__(self, wanted: bool, flush_s: float, until_s: float | None) -> None:
        self._wanted = wanted
        self._flush_s = flush_s
        self._until_s = until_s
        self._parts: list[str] = []
        self._sent_s: float | None = None

    def add(self, text: str, now_s: float) -> str:
        """Take text; what is to be sent now, '' for nothing yet."""
        if not self._wanted or not text:
            return ""
        self._parts.append(text)
        if self._sent_s is not None and now_s - self._sent_s < self._flush_s:
            return ""
        self._sent_s = now_s
        return self.rest()

    def rest(self) -> str:
        """What was taken and not sent."""
        parts, self._parts = self._parts, []
        return "".join(parts)

    @property
    def ends_s(self) -> float:
        """When the answer is to end as it stands; infinite without a deadline."""
        return math.inf if self._until_s is None else self._until_s - DEADLINE_MARGIN_S

    def late(self, now_s: float) -> bool:
        """Whether the answer is to end now."""
        return now_s >= self.ends_s


class StepThrottle:
    """`share`: the part of the time in which steps may run; 1: no rest, 0: no step until it changes.

    `concerned`: whether this worker rests at all; an encoder's does not, the daemon rests it between two batches.
    """

    def __init__(self) -> None:
        self.share = 1.0
        self.concerned = False
        self._ended_s = -math.inf
        self._step_s = 0.0

    def begin(self, now_s: float, started_s: float) -> None:
        """A step that began at `started_s` is over."""
        self._ended_s, self._step_s = now_s, min(now_s - started_s, PACED_STEP_S)

    def left_s(self, now_s: float) -> float:
        """Seconds until the next step may begin, by the share as it is now; not above 0: at once."""
        if not self.concerned or self.share >= 1.0:
            return 0.0
        if self.share <= 0.0:
            return math.inf
        return self._ended_s + self._step_s * (1.0 / self.share - 1.0) - now_s

    def wait_s(self, now_s: float, *moments_s: float) -> float:
        """Seconds until the next step, or the first of these moments that is still to come; at most until a beat."""
        left_s = self.left_s(now_s)
        return min([left_s, BEAT_S] + [at_s - now_s for at_s in moments_s if at_s > now_s]) if left_s > 0.0 else 0.0
