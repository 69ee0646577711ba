"""What will overtake a request: rates by urgency, how they lengthen a wait, and that they fade."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core.forecast import HIGHEST_LOAD, LOAD_TIME_CONSTANT_S, RATES_KEPT, PriorityLoad

NOW_S = 100.0


def steady(share: float, priority: int = 2, left_s: float = 1.0) -> PriorityLoad:
    """For many time constants, a hundred requests a second that take `share` of the worker's time together."""
    rates = PriorityLoad()
    for index in range(2000):
        rates.note(priority, left_s, share / 100.0, NOW_S - 20.0 + index / 100.0)
    return rates


def test_a_quarter_of_the_time_for_others_makes_a_wait_a_third_longer() -> None:
    assert steady(0.25).wait_s(5, 1.0, 3.0, NOW_S) == pytest.approx(4.0, rel=0.01)


@pytest.mark.parametrize(
    ("priority", "left_s", "overtaken"),
    [
        (1, 1.0, False),  # more urgent than what arrives
        (2, 0.1, False),  # the same priority, and a nearer deadline
        (2, 1.0, False),  # alike: whoever came first goes first
        (2, 8.0, True),
        (3, 0.1, True),
    ],
)
def test_only_what_is_more_urgent_overtakes(priority: int, left_s: float, overtaken: bool) -> None:
    assert (steady(0.5).wait_s(priority, left_s, 1.0, NOW_S) > 1.5) is overtaken


def test_however_much_the_others_ask_a_fifth_remains() -> None:
    assert steady(3.0).wait_s(9, 9.0, 1.0, NOW_S) == pytest.approx(1.0 / (1.0 - HIGHEST_LOAD))


def test_what_nobody_has_to_wait_for_is_not_lengthened() -> None:
    assert steady(0.5).wait_s(9, 9.0, 0.0, NOW_S) == 0.0


def test_a_burst_is_forgotten() -> None:
    rates = steady(0.5)
    assert rates.wait_s(9, 9.0, 1.0, NOW_S + 10.0 * LOAD_TIME_CONSTANT_S) == pytest.approx(1.0, rel=0.001)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 9),
            st.floats(-1.0, 1e5),
            st.floats(0.0, 60.0),
            st.floats(0.0, 1000.0),
        ),
        max_size=40,
    ),
    st.integers(0, 9),
    st.floats(-1.0, 1e5),
    st.floats(0.0, 1000.0),
)
def test_a_wait_is_never_shorter_than_what_is_ahead_nor_without_end(
    admitted: list[tuple[int, float, float, float]], priority: int, left_s: float, ahead_s: float
) -> None:
    rates = PriorityLoad()
    for one, its_left_s, work_s, at_s in sorted(admitted, key=lambda row: row[3]):
        rates.note(one, its_left_s, work_s, at_s)
    assert ahead_s <= rates.wait_s(priority, left_s, ahead_s, 1000.0) <= ahead_s / (1.0 - HIGHEST_LOAD) * 1.001


def test_what_one_client_asks_beyond_its_turn_delays_that_client_alone() -> None:
    load = PriorityLoad()
    for _ in range(10):
        load.note(0, 5.0, 0.1, 100.0, only="hog")
    assert load.wait_s(5, 5.0, 1.0, 100.0, "modest") == 1.0
    assert load.wait_s(5, 5.0, 1.0, 100.0, "hog") > 1.5


def test_the_rates_of_clients_that_have_gone_are_dropped() -> None:
    load = PriorityLoad()
    for number in range(3 * RATES_KEPT):
        load.note(0, 5.0, 0.1, float(number), only=f"client {number}")
    assert len(load._rates) <= RATES_KEPT
