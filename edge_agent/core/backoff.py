"""How long to wait before the next attempt.

In a file of its own because `agent` and `mqtt`, which may not import each other, both use it.
"""

from __future__ import annotations


def delay_s(attempt: int, base_s: float, cap_s: float, random01: float) -> float:
    """Exponential back-off with full jitter: uniform in [0, min(cap, base * 2^attempt)] seconds.

    `attempt` counts from 0. `random01` in [0, 1) is passed in, so that tests control it. Full jitter spreads the
    attempts of many devices that lost their broker at the same time (AWS Architecture Blog, 'Exponential Backoff And
    Jitter', 2015).
    """
    # The exponent is bounded because 2.0 ** attempt overflows from 1024 attempts on.
    return random01 * min(cap_s, base_s * 2.0 ** min(attempt, 32))
