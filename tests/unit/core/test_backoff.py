"""Exponential back-off with full jitter."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core.backoff import delay_s


def test_the_bound_doubles_until_the_cap() -> None:
    almost_one = 1 - 2**-53
    assert [round(delay_s(attempt, 1.0, 60.0, almost_one), 6) for attempt in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_full_jitter_is_uniform_in_the_callers_randomness() -> None:
    assert [delay_s(3, 1.0, 60.0, random01) for random01 in (0.0, 0.25, 0.5)] == [0.0, 2.0, 4.0]


@given(st.integers(0, 10**9), st.floats(0.001, 10), st.floats(0.001, 3600), st.floats(0, 1, exclude_max=True))
def test_never_negative_never_above_the_cap_and_never_overflowing(
    attempt: int, base_s: float, cap_s: float, random01: float
) -> None:
    assert 0 <= delay_s(attempt, base_s, cap_s, random01) <= cap_s
