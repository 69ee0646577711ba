"""Energy: the integral of what was measured, shared by rows; an estimate says so; a gap is None, not a small figure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.reading import Reading, unavailable
from edge_agent.core.energy import FRESH_S, NOT_METERED, EnergyMeter, UtilisationModel

PI_4 = UtilisationModel("Raspberry Pi 4", 2.7, 4.0, 4)


def rail(watts: float, taken_s: float) -> Reading:
    return Reading(watts, "watts", "ina3221 VDD_IN", taken_s)


def none(taken_s: float) -> Reading:
    return unavailable("watts", "power", taken_s, "no power sensor was found")


def test_a_long_request_is_the_integral_of_the_samples() -> None:
    meter = EnergyMeter()
    meter.sample(rail(4.0, 0.0), 0.0, 4)
    meter.begin("a", 1, 0.0)
    for second in range(1, 11):
        meter.sample(rail(4.0 if second < 5 else 8.0, float(second)), float(second), 4)
    joules, method = meter.end("a", rail(8.0, 10.0), 10.0)
    assert joules == pytest.approx(4 * 4.0 + 6.0 + 5 * 8.0)
    assert method == "ina3221 VDD_IN over the request's share of the compute"


def test_two_requests_share_a_moment_by_their_rows() -> None:
    meter = EnergyMeter()
    meter.sample(rail(8.0, 0.0), 0.0, 4)
    meter.begin("alone", 1, 0.0)
    meter.begin("three", 3, 1.0)
    assert meter.end("alone", rail(8.0, 2.0), 2.0)[0] == pytest.approx(8.0 + 2.0)
    assert meter.end("three", rail(8.0, 3.0), 3.0)[0] == pytest.approx(6.0 + 8.0)


def test_without_a_sensor_a_known_board_is_estimated_and_says_so() -> None:
    meter = EnergyMeter(PI_4)
    meter.sample(none(0.0), 0.0, 4)
    meter.begin("a", 1, 0.0)
    joules, method = meter.end("a", none(2.0), 2.0)
    assert joules == pytest.approx(2 * 6.7)
    assert method.startswith("estimated: 2.7 W idle + 4 W at full load of a Raspberry Pi 4")
    assert PI_4.watts(2) == pytest.approx(4.7)
    assert PI_4.watts(4, clock=0.5) < PI_4.watts(4)


def test_a_request_estimated_for_a_part_of_its_time_is_an_estimate() -> None:
    meter = EnergyMeter(PI_4)
    meter.sample(none(0.0), 0.0, 4)
    meter.begin("a", 1, 0.0)
    meter.sample(none(10.0), 10.0, 4)
    meter.sample(rail(5.0, 11.0), 11.0, 4)
    assert meter.end("a", rail(5.0, 12.0), 12.0)[1].startswith("estimated")


def test_without_either_it_is_none_with_the_reason() -> None:
    meter = EnergyMeter()
    meter.sample(none(0.0), 0.0, 4)
    meter.begin("a", 1, 0.0)
    assert meter.end("a", none(1.0), 1.0) == (None, "no power sensor was found")
    assert meter.end("a", none(1.0), 1.0) == (None, NOT_METERED)


def test_a_gap_makes_the_whole_figure_none() -> None:
    meter = EnergyMeter()
    meter.sample(rail(4.0, 0.0), 0.0, 4)
    meter.begin("a", 1, 0.0)
    meter.sample(rail(4.0, 0.0), FRESH_S + 1.0, 4)
    meter.sample(rail(4.0, FRESH_S + 2.0), FRESH_S + 2.0, 4)
    assert meter.end("a", rail(4.0, FRESH_S + 2.0), FRESH_S + 2.0) == (None, "the last power sample is too old")


def test_who_left_without_an_answer_takes_no_share() -> None:
    meter = EnergyMeter()
    meter.sample(rail(4.0, 0.0), 0.0, 4)
    meter.begin("a", 1, 0.0)
    meter.begin("dead", 9, 0.0)
    meter.drop("dead")
    meter.drop("dead")
    assert meter.end("a", rail(4.0, 1.0), 1.0)[0] == pytest.approx(4.0)


@given(st.lists(st.tuples(st.integers(1, 8), st.floats(0.0, 5.0), st.floats(0.01, 5.0)), min_size=1, max_size=8))
def test_what_all_requests_took_is_what_the_board_took_while_any_was_inside(
    jobs: list[tuple[int, float, float]],
) -> None:
    meter = EnergyMeter()
    meter.sample(rail(6.0, 0.0), 0.0, 4)
    steps = [(begin_s, 0, index) for index, (_, begin_s, _) in enumerate(jobs)]
    steps += [(begin_s + for_s, 1, index) for index, (_, begin_s, for_s) in enumerate(jobs)]
    total, busy_s, inside, last_s = 0.0, 0.0, 0, 0.0
    for at_s, ends, index in sorted(steps):
        busy_s += (at_s - last_s) if inside else 0.0
        last_s = at_s
        meter.sample(rail(6.0, at_s), at_s, 4)
        if ends:
            joules, _ = meter.end(str(index), rail(6.0, at_s), at_s)
            assert joules is not None
            total += joules
        else:
            meter.begin(str(index), jobs[index][0], at_s)
        inside += -1 if ends else 1
    assert total == pytest.approx(6.0 * busy_s, rel=1e-6, abs=1e-9)


def test_a_request_of_no_length_without_a_sensor_is_none_as_well() -> None:
    meter = EnergyMeter()
    meter.sample(none(0.0), 0.0, 1)
    meter.begin("a", 1, 1.0)
    assert meter.end("a", none(1.0), 1.0) == (None, "no power sensor was found")
