"""The real clock against the requested one: a difference counts once it has lasted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core.clock_throttling import HELD_BELOW, LASTS_S, ThrottleState, judge

looks = st.lists(st.tuples(st.none() | st.floats(6e8, 2.4e9), st.none() | st.floats(0.0, 2.4e9)), max_size=60)


def test_it_begins_and_ends_after_it_lasted() -> None:
    state = judge(1.5e9, 2.4e9, ThrottleState(), 0.0)
    assert not judge(1.5e9, 2.4e9, state, LASTS_S - 0.1).held
    state = judge(1.5e9, 2.4e9, state, LASTS_S)
    assert state.held
    state = judge(2.4e9, 2.4e9, state, 10.0)
    assert state.held
    assert not judge(2.4e9, 2.4e9, state, 10.0 + LASTS_S).held


def test_a_gap_in_the_readings_begins_anew() -> None:
    state = judge(1.5e9, 2.4e9, ThrottleState(), 0.0)
    state = judge(None, 2.4e9, state, 3.0)
    assert not judge(1.5e9, 2.4e9, state, LASTS_S).held


@given(looks)
def test_a_clock_that_is_what_was_asked_for_is_never_held(seen: list[tuple[float | None, float | None]]) -> None:
    state = ThrottleState()
    for second, (_, requested) in enumerate(seen):
        state = judge(requested, requested, state, float(second))
        assert not state.held


@given(looks)
def test_it_is_held_only_after_a_stretch_clearly_below(seen: list[tuple[float | None, float | None]]) -> None:
    state, below = ThrottleState(), 0
    for second, (real, requested) in enumerate(seen):
        is_below = real is not None and bool(requested) and real < HELD_BELOW * (requested or 0.0)
        below = below + 1 if is_below else 0
        before, state = state, judge(real, requested, state, float(second))
        if state.held and not before.held:
            assert below >= LASTS_S
