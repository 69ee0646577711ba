"""How long a generator's worker rests between two steps: the governor's pace inside the child.

Pure but for the last step; times are monotonic seconds.
"""

from __future__ import annotations

import math

from edge_agent.base.limits import PACED_STEP_S
from edge_agent.worker.step_pacing import BEAT_S


class Rest:
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
