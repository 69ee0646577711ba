"""Whether the processor runs slower than the kernel asks: a firmware that throttles tells nobody.

What is compared is the real clock and the requested one, which our own cap has lowered already: a cap is never taken
for a throttled board. A clock moves within milliseconds and the two are not read at the same moment, so that a
difference counts only once it has lasted. Pure: `agent.governor_loop` asks once a second and says it when it changes.
"""

from __future__ import annotations

from typing import NamedTuple

HELD_BELOW = 0.9
"""Clearly below: a Raspberry Pi 5 loses 10 % over the five degrees above its soft limit, which its flags say already;
what lies beyond costs work (facts/boards.md D3)."""
FREE_ABOVE = 0.95
LASTS_S = 5.0


class ThrottleState(NamedTuple):
    """What is remembered: whether the clock is held down, and since when the readings say otherwise."""

    held: bool = False
    otherwise_since_s: float | None = None


def judge(real_hz: float | None, requested_hz: float | None, state: ThrottleState, now_s: float) -> ThrottleState:
    """The state now. Without both readings it stays as it is, and what had begun to last begins anew."""
    if real_hz is None or requested_hz is None or requested_hz <= 0.0:
        return ThrottleState(state.held)
    share = real_hz / requested_hz
    otherwise = share > FREE_ABOVE if state.held else share < HELD_BELOW
    if not otherwise:
        return ThrottleState(state.held)
    since_s = now_s if state.otherwise_since_s is None else state.otherwise_since_s
    return ThrottleState(not state.held) if now_s - since_s >= LASTS_S else ThrottleState(state.held, since_s)
