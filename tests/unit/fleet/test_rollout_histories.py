"""Random histories of rollouts end, return what they gave, and survive kills, sleep and two operators."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.rollout_histories import History


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_every_history_ends_and_nothing_is_half_given(seed: int) -> None:
    assert History(seed).play() in ("done", "returned")
