"""The real clock against the requested one: a difference counts once it has lasted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core.sensor_validation import THROTTLED_BELOW, THROTTLED_FOR_S, ThrottleState, detect_throttling

looks = st.lists(st.tuples(st.none() | st.floats(6e8, 2.4e9), st.none() | st.floats(0.0, 2.4e9)), max_size=60)


def test_it_begins_and_ends_after_it_lasted() -> None:
    state = detect_throttling(1.5e9, 2.4e9, ThrottleState(), 0.0)
    assert not detect_throttling(1.5e9, 2.4e9, state, THROTTLED_FOR_S - 0.1).throttled
    state = detect_throttling(1.5e9, 2.4e9, state, THROTTLED_FOR_S)
    assert state.throttled
    state = detect_throttling(2.4e9, 2.4e9, state, 10.0)
    assert state.throttled
    assert not detect_throttling(2.4e9, 2.4e9, state, 10.0 + THROTTLED_FOR_S).throttled


def test_a_gap_in_the_readings_begins_anew() -> None:
    state = detect_throttling(1.5e9, 2.4e9, ThrottleState(), 0.0)
    state = detect_throttling(None, 2.4e9, state, 3.0)
    assert not detect_throttling(1.5e9, 2.4e9, state, THROTTLED_FOR_S).throttled


@given(looks)
def test_a_clock_that_is_what_was_asked_for_is_never_held(seen: list[tuple[float | None, float | None]]) -> None:
    state = ThrottleState()
    for second, (_, requested) in enumerate(seen):
        state = detect_throttling(requested, requested, state, float(second))
        assert not state.throttled


@given(looks)
def test_it_is_held_only_after_a_stretch_clearly_below(seen: list[tuple[float | None, float | None]]) -> None:
    state, below = ThrottleState(), 0
    for second, (real, requested) in enumerate(seen):
        is_below = real is not None and bool(requested) and real < THROTTLED_BELOW * (requested or 0.0)
        below = below + 1 if is_below else 0
        before, state = state, detect_throttling(real, requested, state, float(second))
        if state.throttled and not before.throttled:
            assert below >= THROTTLED_FOR_S
