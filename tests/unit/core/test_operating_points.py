"""Rungs: which limits do the most work with the power that is left."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core import operating_points
from edge_agent.core.operating_points import CHANGE_GAIN, build, choose, without_clock, work

CLOCKS = (0.625, 0.75, 0.875, 1.0)


@pytest.mark.parametrize("bandwidth_bound", [False, True])
def test_the_first_rung_is_without_limits(bandwidth_bound: bool) -> None:
    first = build(4, CLOCKS, bandwidth_bound)[0]
    assert (first.threads, first.clock) == (4, 1.0)
    assert (first.power, first.speed) == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize("bandwidth_bound", [False, True])
def test_less_power_never_means_more_speed(bandwidth_bound: bool) -> None:
    rungs = build(4, CLOCKS, bandwidth_bound)
    for one in rungs:
        for other in rungs:
            if one.threads <= other.threads and one.clock <= other.clock:
                assert one.power <= other.power
                assert one.speed <= other.speed + 1e-9


def test_an_encoder_gives_up_clock_first_and_is_then_paced_with_all_threads() -> None:
    rungs = build(4, CLOCKS, False)
    for share in (0.9, 0.7, 0.5, 0.3, 0.1):
        assert rungs[choose(rungs, 0, share)].threads == 4
    assert rungs[choose(rungs, 0, 0.6)].clock < 1.0
    assert choose(build(4, (), False), 0, 0.3) == 0


def test_a_generator_without_clock_gives_up_threads_but_never_the_second() -> None:
    rungs = build(4, (), True)
    assert rungs[choose(rungs, 0, 0.8)].threads == 3
    assert [rungs[choose(rungs, 0, share)].threads for share in (0.5, 0.2, 0.05)] == [2, 2, 2]


def test_a_rung_is_kept_while_no_other_is_clearly_better() -> None:
    rungs = build(4, CLOCKS, False)
    here = choose(rungs, 0, 0.5)
    assert choose(rungs, here, 0.5 * 1.005) == here


def test_with_everything_allowed_it_returns_to_the_first() -> None:
    rungs = build(4, CLOCKS, True)
    assert choose(rungs, len(rungs) - 1, 1.0) == 0


def test_a_clock_that_may_not_be_set_is_not_in_it() -> None:
    assert {rung.clock for rung in build(4, (), False)} == {1.0}


@given(st.integers(1, 16), st.lists(st.floats(0.1, 1.0), max_size=6), st.booleans(), st.floats(0, 1), st.data())
def test_the_choice_is_as_good_as_the_margin_allows(
    threads: int, clocks: list[float], bandwidth_bound: bool, share: float, data: st.DataObject
) -> None:
    rungs = build(threads, tuple(clocks), bandwidth_bound)
    current = data.draw(st.integers(0, len(rungs) - 1))
    chosen = choose(rungs, current, share)
    assert work(rungs[chosen], share) * CHANGE_GAIN >= max(work(rung, share) for rung in rungs) - 1e-12
    free = rungs[without_clock(rungs, chosen)]
    assert (free.threads, free.clock) == (rungs[chosen].threads, 1.0)


@pytest.mark.parametrize("busy", [0.02, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_one_model_has_all_of_the_time_that_is_granted(busy: float, threads: int) -> None:
    assert operating_points.part(1, busy, threads, 4) == pytest.approx(busy, abs=1e-5)


@pytest.mark.parametrize("models", [2, 3, 5])
def test_models_whose_steps_coincide_by_chance_spend_what_one_may(models: int) -> None:
    """By drawing: each computes in its part of the time, and the cores are shared where several do."""
    chance = random.Random(models)
    for busy, threads in ((0.5, 4), (0.9, 4), (1.0, 2), (0.6, 3)):
        part = operating_points.part(models, busy, threads, 4)
        assert busy / models < part <= 1.0
        spent = 0.0
        for _ in range(20_000):
            cores = min(4, threads * sum(chance.random() < part for _ in range(models)))
            spent += (0.2 + 0.8 * cores / 4) / 20_000 if cores else 0.0
        assert spent == pytest.approx(busy * (0.2 + 0.8 * threads / 4), abs=0.015)


def test_with_all_threads_and_no_pause_models_need_not_share() -> None:
    assert operating_points.part(3, 1.0, 4, 4) == pytest.approx(1.0, abs=1e-5)
    assert operating_points.part(3, 0.0, 4, 4) == pytest.approx(0.0, abs=1e-5)
