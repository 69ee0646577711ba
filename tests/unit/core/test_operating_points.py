"""Operating points: which limits do the most work with the power that is left."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core import operating_points
from edge_agent.core.operating_points import CHANGE_GAIN, build, choose, without_clock, work

CLOCKS = (0.625, 0.75, 0.875, 1.0)


@pytest.mark.parametrize("bandwidth_bound", [False, True])
def test_the_first_point_is_without_limits(bandwidth_bound: bool) -> None:
    first = build(4, CLOCKS, bandwidth_bound)[0]
    assert (first.threads, first.clock) == (4, 1.0)
    assert (first.power, first.speed) == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize("bandwidth_bound", [False, True])
def test_less_power_never_means_more_speed(bandwidth_bound: bool) -> None:
    points = build(4, CLOCKS, bandwidth_bound)
    for one in points:
        for other in points:
            if one.threads <= other.threads and one.clock <= other.clock:
                assert one.power <= other.power
                assert one.speed <= other.speed + 1e-9


def test_an_encoder_gives_up_clock_first_and_is_then_paced_with_all_threads() -> None:
    points = build(4, CLOCKS, False)
    for share in (0.9, 0.7, 0.5, 0.3, 0.1):
        assert points[choose(points, 0, share)].threads == 4
    assert points[choose(points, 0, 0.6)].clock < 1.0
    assert choose(build(4, (), False), 0, 0.3) == 0


def test_a_generator_without_clock_gives_up_threads_but_never_the_second() -> None:
    points = build(4, (), True)
    assert points[choose(points, 0, 0.8)].threads == 3
    assert [points[choose(points, 0, share)].threads for share in (0.5, 0.2, 0.05)] == [2, 2, 2]


def test_a_point_is_kept_while_no_other_is_clearly_better() -> None:
    points = build(4, CLOCKS, False)
    here = choose(points, 0, 0.5)
    assert choose(points, here, 0.5 * 1.005) == here


def test_with_everything_allowed_it_returns_to_the_first() -> None:
    points = build(4, CLOCKS, True)
    assert choose(points, len(points) - 1, 1.0) == 0


def test_a_clock_that_may_not_be_set_is_not_in_it() -> None:
    assert {point.clock for point in build(4, (), False)} == {1.0}


@given(st.integers(1, 16), st.lists(st.floats(0.1, 1.0), max_size=6), st.booleans(), st.floats(0, 1), st.data())
def test_the_choice_is_as_good_as_the_margin_allows(
    threads: int, clocks: list[float], bandwidth_bound: bool, share: float, data: st.DataObject
) -> None:
    points = build(threads, tuple(clocks), bandwidth_bound)
    current = data.draw(st.integers(0, len(points) - 1))
    chosen = choose(points, current, share)
    assert work(points[chosen], share) * CHANGE_GAIN >= max(work(point, share) for point in points) - 1e-12
    free = points[without_clock(points, chosen)]
    assert (free.threads, free.clock) == (points[chosen].threads, 1.0)


@pytest.mark.parametrize("duty_share", [0.02, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_one_model_has_all_of_the_time_that_is_granted(duty_share: float, threads: int) -> None:
    assert operating_points.duty_share_of_each(1, duty_share, threads, 4) == pytest.approx(duty_share, abs=1e-5)


@pytest.mark.parametrize("models", [2, 3, 5])
def test_models_whose_steps_coincide_by_chance_spend_what_one_may(models: int) -> None:
    """By drawing: each computes in its part of the time, and the cores are shared where several do."""
    chance = random.Random(models)
    for duty_share, threads in ((0.5, 4), (0.9, 4), (1.0, 2), (0.6, 3)):
        share_of_each = operating_points.duty_share_of_each(models, duty_share, threads, 4)
        assert duty_share / models < share_of_each <= 1.0
        spent = 0.0
        for _ in range(20_000):
            cores = min(4, threads * sum(chance.random() < share_of_each for _ in range(models)))
            spent += (0.2 + 0.8 * cores / 4) / 20_000 if cores else 0.0
        assert spent == pytest.approx(duty_share * (0.2 + 0.8 * threads / 4), abs=0.015)


def test_with_all_threads_and_no_pause_models_need_not_share() -> None:
    assert operating_points.duty_share_of_each(3, 1.0, 4, 4) == pytest.approx(1.0, abs=1e-5)
    assert operating_points.duty_share_of_each(3, 0.0, 4, 4) == pytest.approx(0.0, abs=1e-5)
