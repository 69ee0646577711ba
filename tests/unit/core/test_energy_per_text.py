"""Joules of a text are the board's mean power times its time; a sensor that did not move gives none."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.reading import Reading, unavailable
from edge_agent.core.energy import LEAST_S, LEAST_VALUES, MOST_S, UtilisationModel, enough_samples, estimated, per_text


def rail(*watts: float, every_s: float = 0.05) -> list[Reading]:
    return [Reading(value, "watts", "ina3221 VDD_IN", place * every_s) for place, value in enumerate(watts)]


def test_the_mean_power_times_the_time_of_a_text() -> None:
    found = per_text(rail(4.0, 6.0, 5.0, 6.0, 5.0), 2.0, 100)
    assert found.joules == pytest.approx(5.5 * 2.0 / 100)
    assert found.method == (
        "ina3221 VDD_IN, whole board, idle power included: 5.5 W while 100 texts ran in 2.0 s"
    )  # fmt: skip


def test_what_the_sensor_still_shows_of_the_time_before_does_not_count() -> None:
    """A rail that is read anew every second: for the first 0.9 s it shows the idle board."""
    slow = rail(*[3.0] * 18, *[7.0] * 20, *[7.2] * 20, *[6.8] * 20)
    assert per_text(slow, 3.9, 10).joules == pytest.approx(7.0 * 0.39, rel=0.01)


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ([], "no power sample was taken"),
        ([unavailable("watts", "power", 0.0, "no power sensor was found")], "no power sensor was found"),
        ([*rail(4.0, 5.0, 6.0, 7.0), unavailable("watts", "x", 1.0, "the rail is gone")], "the rail is gone"),
        (rail(*[5.0] * 100), "the trial was too short for the sensor: ina3221 VDD_IN gave 0 new values in 5.0 s, 3 are "
         "needed"),
        (rail(5.0, 5.0, 6.0, 6.0, 7.0), "the trial was too short for the sensor: ina3221 VDD_IN gave 2 new values in "
         "5.0 s, 3 are needed"),
    ],
)  # fmt: skip
def test_no_figure_without_enough_of_the_sensor(samples: list[Reading], reason: str) -> None:
    found = per_text(samples, 5.0, 10)
    assert (found.joules, found.method) == (None, reason)


def test_a_run_ends_when_the_sensor_has_said_enough_and_at_the_latest_after_five_seconds() -> None:
    moving, still = rail(*range(1, 2 + LEAST_VALUES)), rail(*[5.0] * 100)
    assert not enough_samples(moving, LEAST_S - 0.01)
    assert enough_samples(moving, LEAST_S)
    assert not enough_samples(moving[:-1], LEAST_S)
    assert not enough_samples(still, MOST_S - 0.01)
    assert enough_samples(still, MOST_S)


WATTS = st.lists(st.floats(0.5, 200.0), min_size=1, max_size=40)


@given(WATTS, st.floats(0.1, 30.0), st.integers(1, 1000))
def test_a_figure_lies_between_the_least_and_the_largest_power(watts: list[float], took_s: float, texts: int) -> None:
    found = per_text(rail(*watts), took_s, texts)
    moves = sum(1 for before, after in itertools.pairwise(watts) if before != after)
    assert (found.joules is not None) == (moves >= LEAST_VALUES)
    assert found.method
    if found.joules is not None:
        share_s = took_s / texts
        assert min(watts) * share_s * 0.999999 <= found.joules <= max(watts) * share_s * 1.000001


@given(WATTS, st.floats(0.1, 30.0), st.integers(1, 100), st.integers(2, 10))
def test_twice_the_texts_in_the_same_time_cost_half(watts: list[float], took_s: float, texts: int, times: int) -> None:
    one, more = per_text(rail(*watts), took_s, texts), per_text(rail(*watts), took_s, texts * times)
    if one.joules is not None:
        assert more.joules == pytest.approx(one.joules / times)


def test_an_estimate_is_the_board_s_usual_power_for_the_time_and_says_so() -> None:
    found = estimated(UtilisationModel("Raspberry Pi 4", 2.7, 4.0, 4), 4, 0.01)
    assert found.joules == pytest.approx(0.067)
    assert found.method == (
        "estimated: 2.7 W idle + 4 W at full load of a Raspberry Pi 4, by threads in use, over the time of one text"
    )
