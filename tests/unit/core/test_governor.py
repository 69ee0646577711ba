"""Heat: a step function with hysteresis and dwell that fails towards cool, and never fails otherwise."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.reading import Reading, unavailable
from edge_agent.core.governor import DWELL_S, STALE_S, Grant, Level, Memory, Plan, decide

PLAN = Plan(soft_limit_c=80.0, max_rows=8, threads=4)
SET_POINT_C = 77.5


def at(value_c: float, taken_s: float = 0.0) -> Reading:
    return Reading(value_c, "celsius", "test", taken_s)


def lost(taken_s: float = 0.0) -> Reading:
    return unavailable("celsius", "test", taken_s, "the file is gone")


class Board:
    """One governed board; each call is one second's look."""

    def __init__(self, plan: Plan = PLAN) -> None:
        self.plan, self.memory, self.now_s = plan, Memory(), 1000.0

    def look(self, value_c: float | None, after_s: float = 1.0) -> Grant:
        self.now_s += after_s
        reading = lost(self.now_s) if value_c is None else at(value_c, self.now_s)
        grant, self.memory = decide(self.plan, reading, self.memory, self.now_s)
        return grant


def test_cool_gives_everything() -> None:
    grant = Board().look(50.0)
    assert (grant.level, grant.max_rows, grant.threads, grant.closed_because) == (Level.NORMAL, 8, 4, None)
    assert "50.0 °C" in grant.why


def test_at_the_set_point_it_gives_half_at_once() -> None:
    board = Board()
    board.look(77.4)
    grant = board.look(SET_POINT_C)
    assert (grant.level, grant.max_rows, grant.threads, grant.closed_because) == (Level.REDUCED, 4, 2, None)


def test_at_the_soft_limit_it_closes_with_the_numbers() -> None:
    grant = Board().look(80.0)
    assert grant.level is Level.CLOSED
    assert grant.closed_because == "too hot: 80.0 °C, set point 77.5 °C, soft limit 80.0 °C"


def test_it_never_hands_out_less_than_one_row_and_one_thread() -> None:
    grant = Board(Plan(80.0, max_rows=1, threads=1)).look(79.0)
    assert (grant.max_rows, grant.threads) == (1, 1)


def test_hysteresis_holds_a_level_until_it_is_clearly_cooler() -> None:
    board = Board()
    board.look(78.0)
    for _ in range(3 * int(DWELL_S)):
        assert board.look(SET_POINT_C - 2.9).level is Level.REDUCED
    assert board.look(SET_POINT_C - 3.1).level is Level.NORMAL


def test_closed_reopens_to_reduced_first() -> None:
    board = Board()
    board.look(81.0)
    for _ in range(3 * int(DWELL_S)):
        assert board.look(77.1).level is Level.CLOSED
    assert board.look(76.9).level is Level.REDUCED


def test_a_level_is_kept_for_the_dwell_time_however_cool_it_gets() -> None:
    board = Board()
    board.look(81.0)
    for _ in range(int(DWELL_S) - 1):
        assert board.look(20.0).level is Level.CLOSED
    assert board.look(20.0).level is Level.NORMAL


def test_dwell_never_delays_a_rise() -> None:
    board = Board()
    assert board.look(78.0).level is Level.REDUCED
    assert board.look(80.5).level is Level.CLOSED


def test_a_lost_sensor_derates_where_there_was_one() -> None:
    board = Board()
    board.look(50.0)
    grant = board.look(None)
    assert grant.level is Level.REDUCED
    assert grant.why == "temperature lost: the file is gone"


def test_a_stale_sample_derates_like_a_lost_one() -> None:
    _, memory = decide(PLAN, at(50.0, 0.0), Memory(), 0.0)
    grant, memory = decide(PLAN, at(50.0, 0.0), memory, STALE_S)
    assert grant.level is Level.NORMAL
    grant, _ = decide(PLAN, at(50.0, 0.0), memory, STALE_S + 0.1)
    assert grant.level is Level.REDUCED
    assert "too old" in grant.why


@pytest.mark.parametrize("value_c", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_no_temperature(value_c: float) -> None:
    board = Board()
    board.look(50.0)
    assert board.look(value_c).level is Level.REDUCED


def test_a_sensor_that_comes_back_is_believed_again() -> None:
    board = Board()
    board.look(50.0)
    board.look(None)
    for _ in range(int(DWELL_S)):
        grant = board.look(50.0)
    assert grant.level is Level.NORMAL


def test_a_machine_without_a_sensor_is_not_held_back_and_says_so() -> None:
    board = Board()
    for _ in range(30):
        grant = board.look(None)
    assert (grant.level, grant.max_rows) == (Level.NORMAL, 8)
    assert grant.why == "no temperature sensor: the file is gone"


def test_an_unknown_board_is_not_held_back_and_says_so() -> None:
    grant = Board(Plan(None, 8, 4)).look(95.0)
    assert (grant.level, grant.why) == (Level.NORMAL, "the board's soft limit is unknown")


READINGS = st.one_of(
    st.floats(-40, 130),
    st.sampled_from([math.nan, math.inf, -math.inf, 77.5, 74.5, 80.0, 77.0]),
    st.none(),
)
STEPS = st.lists(st.tuples(READINGS, st.floats(0.0, 15.0), st.floats(0.0, 8.0)), min_size=1, max_size=60)


@given(STEPS, st.none() | st.floats(40, 110), st.integers(1, 64), st.integers(1, 8))
def test_any_history_gives_sound_limits(
    steps: list[tuple[float | None, float, float]], soft_limit_c: float | None, max_rows: int, threads: int
) -> None:
    plan, memory, now_s = Plan(soft_limit_c, max_rows, threads), Memory(), 0.0
    changed_s = -math.inf
    for value_c, after_s, age_s in steps:
        now_s += after_s
        reading = lost(now_s - age_s) if value_c is None else at(value_c, now_s - age_s)
        before = memory.level
        grant, memory = decide(plan, reading, memory, now_s)
        assert grant.level is memory.level
        assert 1 <= grant.max_rows <= max_rows
        assert 1 <= grant.threads <= threads
        assert (grant.closed_because is not None) == (grant.level is Level.CLOSED)
        assert grant.why
        if memory.level < before:
            assert now_s - changed_s >= DWELL_S, "came down before the dwell time"
        if memory.level != before:
            changed_s = now_s
        known = value_c is not None and math.isfinite(value_c) and age_s <= STALE_S
        if soft_limit_c is not None and value_c is not None and known and value_c >= soft_limit_c:
            assert grant.level is Level.CLOSED
        if value_c is not None and not known:
            assert grant.level >= Level.REDUCED
