"""The identified board: it finds resistance and time constant, forecasts, and stays within bounds on any data."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.core.thermal_model import (
    DEFAULT_PRIOR,
    PRIORS,
    ThermalModel,
    ThermalPrior,
    advance,
    forecast_c,
    holding_w,
    learn,
    prior_for,
    settled_w,
    start_model,
)

PI5 = prior_for("pi-5")


class Sink:
    """A board that is exactly two nodes in series, with a noisy sensor."""

    def __init__(self, slow_k_per_w: float, slow_s: float, ambient_c: float) -> None:
        self.random = random.Random(7)
        self.fast_c, self.slow_c = PI5.fast_k_per_w * PI5.idle_w, slow_k_per_w * PI5.idle_w
        self.slow_k_per_w, self.slow_s, self.ambient_c = slow_k_per_w, slow_s, ambient_c

    @property
    def die_c(self) -> float:
        return self.ambient_c + self.fast_c + self.slow_c

    def spend(self, watts: float) -> float:
        self.fast_c += (PI5.fast_k_per_w * watts - self.fast_c) * -math.expm1(-1.0 / PI5.fast_s)
        self.slow_c += (self.slow_k_per_w * watts - self.slow_c) * -math.expm1(-1.0 / self.slow_s)
        return self.die_c + self.random.gauss(0.0, 0.6)


def watch(sink: Sink, watts: list[float]) -> ThermalModel:
    model = start_model(PI5, sink.die_c)
    for spent_w in watts:
        measured_c = sink.spend(spent_w)
        model = learn(advance(model, spent_w, 1.0), PI5, measured_c, 1.0)
    return model


STEPS = ([3.2] * 60 + [10.7] * 240) * 4


@pytest.mark.parametrize(("slow", "slow_s"), [(2.7, 90.0), (3.9, 165.0), (6.0, 300.0)])
@pytest.mark.parametrize("ambient_c", [10.0, 40.0])
def test_it_finds_the_board(slow: float, slow_s: float, ambient_c: float) -> None:
    model = watch(Sink(slow, slow_s, ambient_c), STEPS)
    assert model.slow_k_per_w == pytest.approx(slow, rel=0.15)
    assert model.slow_s == slow_s
    assert model.ambient_c == pytest.approx(ambient_c, abs=5.0)
    assert settled_w(model, 77.5) == pytest.approx((77.5 - ambient_c) / (slow + PI5.fast_k_per_w), rel=0.08)


def test_before_anything_was_seen_it_is_the_prior_and_explains_the_first_temperature() -> None:
    model = start_model(PI5, 44.2)
    assert (model.fast_k_per_w, model.slow_k_per_w) == (PI5.fast_k_per_w, PI5.slow_k_per_w)
    assert forecast_c(model, 44.2, PI5.idle_w, 1e6) == pytest.approx(44.2)


def test_a_board_that_only_idles_keeps_its_prior() -> None:
    model = watch(Sink(6.0, 300.0, 25.0), [PI5.idle_w] * 1800)
    assert model.slow_k_per_w == pytest.approx(PI5.slow_k_per_w, rel=0.5)
    assert model.observed_s == 0.0
    assert forecast_c(model, 51.0, PI5.idle_w, 600.0) == pytest.approx(51.0, abs=1.5)


def test_the_forecast_is_anchored_at_now_and_ends_where_the_board_settles() -> None:
    model = watch(Sink(3.9, 165.0, 25.0), STEPS)
    assert forecast_c(model, 60.0, 9.0, 0.0) == 60.0
    assert forecast_c(model, 60.0, 9.0, 1e6) == pytest.approx(model.ambient_c + 9.0 * model.total_k_per_w)


@given(st.floats(30, 90), st.floats(60, 95), st.floats(1, 60))
def test_the_holding_power_is_the_inverse_of_the_settled_forecast(
    now_c: float, target_c: float, ahead_s: float
) -> None:
    model = start_model(PI5, 50.0)._replace(fast_s=1e-3)
    watts = holding_w(model, now_c, target_c, ahead_s)
    assert forecast_c(model, now_c, watts, ahead_s) == pytest.approx(target_c, abs=1e-6)


def test_every_board_of_the_table_has_a_plausible_prior() -> None:
    for prior in (*PRIORS.values(), DEFAULT_PRIOR):
        assert 0.2 <= prior.fast_k_per_w + prior.slow_k_per_w <= 30.0
        assert prior.fast_s < 10.0 < prior.slow_s
    assert prior_for("what-is-this") is DEFAULT_PRIOR


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.0, 60.0), st.floats(-40.0, 130.0), st.floats(0.0, 5.0)), max_size=80),
    st.sampled_from([DEFAULT_PRIOR, *PRIORS.values()]),
)
def test_no_data_drive_it_out_of_its_bounds(steps: list[tuple[float, float, float]], prior: ThermalPrior) -> None:
    model = start_model(prior, 45.0)
    for watts, measured_c, elapsed_s in steps:
        model = learn(advance(model, watts, elapsed_s), prior, measured_c, elapsed_s)
        assert 0.5 * prior.fast_k_per_w <= model.fast_k_per_w <= 2.0 * prior.fast_k_per_w
        assert 0.2 * prior.slow_k_per_w <= model.slow_k_per_w <= 2.5 * prior.slow_k_per_w
        assert math.isfinite(model.ambient_c)
        assert math.isfinite(forecast_c(model, measured_c, watts, 10.0))
