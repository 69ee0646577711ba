"""How long to wait before trying again."""

from __future__ import annotations


def delay_s(attempt: int, base_s: float, cap_s: float, random01: float) -> float:
    """Exponential back-off with full jitter: uniform in [0, min(cap, base * 2^attempt)].

    `attempt` counts from 0; `random01` in [0, 1) is the caller's randomness, so that tests own it. Full jitter
    spreads a fleet that lost its broker at one moment better than any fixed share does (AWS architecture blog,
    'Exponential Backoff And Jitter').
    """
    return random01 * min(cap_s, base_s * 2.0 ** min(attempt, 32))
