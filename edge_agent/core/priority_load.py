"""What comes later and goes first: how much longer a queue is for who waits in it than it is when he comes.

While more urgent work keeps arriving at a rate of u (seconds of work a second), w seconds that are ahead are cleared
after w / (1 - u) on average: the delay cycle of the M/G/1 queue (Conway, Maxwell and Miller, Theory of Scheduling,
1967, chapter 8). The rate is counted from what was admitted lately, by priority and by how near the deadlines were.
Pure: time is an argument.
"""

from __future__ import annotations

import math

from edge_agent.base.limits import DEADLINE_MAX_S

MEMORY_S = 2.0
"""Time constant of the rates. A burst is known after a second and forgotten after a few."""
MOST = 0.8
"""A fifth of the time counts as one's own, whatever the others ask: who is admitted by it ages, and gets his turn."""
_SHORTEST_S = 1e-3

Flow = tuple[int, int]
"""Priority, and the time left at admission as a power of two of seconds."""


class PriorityLoad:
    """The rates of admitted work of one worker; at most ten priorities times some twenty lengths of deadlines."""

    def __init__(self) -> None:
        self._flows: dict[Flow, tuple[float, float]] = {}

    def note(self, priority: int, left_s: float, work_s: float, now_s: float) -> None:
        """A request was admitted, `left_s` before its deadline, that will take `work_s` of the worker's time."""
        flow = _flow(priority, left_s)
        self._flows[flow] = (self._rate(flow, now_s) + work_s / MEMORY_S, now_s)

    def wait_s(self, priority: int, left_s: float, ahead_s: float, now_s: float) -> float:
        """Seconds until a request is reached that has `ahead_s` before it now and `left_s` to its deadline.

        What has a higher priority overtakes it, and of the same one what has clearly nearer deadlines.
        """
        own = _flow(priority, left_s)
        share = math.fsum(self._rate(flow, now_s) for flow in self._flows if flow < own)
        return ahead_s / (1.0 - min(MOST, share))

    def _rate(self, flow: Flow, now_s: float) -> float:
        rate, noted_s = self._flows.get(flow, (0.0, now_s))
        return rate * math.exp((noted_s - now_s) / MEMORY_S)


def _flow(priority: int, left_s: float) -> Flow:
    return priority, round(math.log2(min(DEADLINE_MAX_S, max(_SHORTEST_S, left_s))))
