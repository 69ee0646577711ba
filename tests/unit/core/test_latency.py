"""QuantileWindow against a reference, and predictions that never come out of nothing."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.core.latency import CostModel, QuantileWindow, bucket

SAMPLES = st.lists(st.floats(0, 1e6), min_size=1, max_size=80)


def reference(samples: list[float], percent: int) -> float:
    """Nearest rank in exact arithmetic: the smallest sample that at least `percent` of all do not exceed."""
    return sorted(samples)[ceil(Fraction(percent * len(samples), 100)) - 1]


@given(SAMPLES, st.integers(1, 100))
def test_quantiles_are_nearest_rank(samples: list[float], percent: int) -> None:
    window = QuantileWindow(100)
    for sample in samples:
        window.add(sample)
    assert window.quantile(percent / 100) == reference(samples, percent)


@pytest.mark.parametrize("percent", [50, 55, 90, 95, 99])
def test_binary_fractions_do_not_shift_a_rank(percent: int) -> None:
    """0.55 * 20 is above 11 in floating point; a rank must not move for that, at any size of the window."""
    for count in range(1, 130):
        window = QuantileWindow()
        for sample in range(count):
            window.add(float(sample))
        expected = reference([float(sample) for sample in range(count)], percent)
        assert window.quantile(percent / 100) == expected
        if percent in {50, 95, 99}:
            assert window.summary()[f"p{percent}"] == expected


@settings(deadline=None)  # the first import of numpy takes its time
@given(SAMPLES, st.sampled_from([50, 95, 99]))
def test_quantiles_agree_with_numpy(samples: list[float], percent: int) -> None:
    numpy = pytest.importorskip("numpy", reason="the daemon itself runs without numpy")
    window = QuantileWindow()
    for sample in samples:
        window.add(sample)
    assert window.summary()[f"p{percent}"] == numpy.percentile(samples, percent, method="inverted_cdf")


def test_only_the_window_counts() -> None:
    window = QuantileWindow(3)
    for sample in (100.0, 1.0, 2.0, 3.0):
        window.add(sample)
    assert window.summary() == {"p50": 2.0, "p95": 3.0, "p99": 3.0}
    assert window.count == 4, "what was measured in all is told too"


def test_no_samples_no_figures() -> None:
    assert QuantileWindow().quantile(0.5) is None
    assert QuantileWindow().summary() == {"p50": None, "p95": None, "p99": None}


@given(st.integers(1, 10**6))
def test_a_bucket_is_the_power_of_two_at_or_above(value: int) -> None:
    found = bucket(value)
    assert found & (found - 1) == 0
    assert value <= found < 2 * value or value == found == 1


def test_nothing_is_predicted_before_something_was_measured() -> None:
    costs = CostModel()
    assert costs.predict_s("m", 1, 16) is None
    costs.learn("m", 1, 16, 0.01)
    assert costs.predict_s("other", 1, 16) is None


def test_a_measured_size_is_predicted_from_its_own_samples() -> None:
    costs = CostModel(quantile=0.9)
    for index in range(10):
        costs.learn("m", 4, 4 * 64, 0.01 * (index + 1))
    assert costs.predict_s("m", 4, 4 * 64) == pytest.approx(0.09)
    assert costs.predict_s("m", 3, 3 * 50) == pytest.approx(0.09), "3 rows of 50 bytes share the bucket of 4 by 64"


def test_equal_work_of_another_shape_does_not_replace_a_measurement() -> None:
    """8 rows of 16 bytes and 1 row of 128 are as much work by the product, but each was measured by itself."""
    costs = CostModel()
    costs.learn("m", 1, 128, 0.040)
    costs.learn("m", 8, 8 * 16, 0.010)
    assert costs.predict_s("m", 8, 8 * 16) == 0.010
    assert costs.predict_s("m", 1, 128) == 0.040


def test_a_smaller_batch_than_any_measured_costs_at_most_the_nearest_larger() -> None:
    costs = CostModel()
    costs.learn("m", 8, 8 * 64, 0.08)
    costs.learn("m", 32, 32 * 64, 0.30)
    assert costs.predict_s("m", 1, 16) == 0.08
    assert costs.predict_s("m", 16, 16 * 64) == 0.30


def test_a_larger_batch_than_any_measured_is_scaled_up() -> None:
    costs = CostModel()
    costs.learn("m", 8, 8 * 64, 0.08)
    assert costs.predict_s("m", 32, 32 * 64) == pytest.approx(0.32)


def test_old_samples_leave() -> None:
    costs = CostModel()
    costs.learn("m", 1, 16, 9.0)
    for _ in range(32):
        costs.learn("m", 1, 16, 0.01)
    assert costs.predict_s("m", 1, 16) == 0.01


ROWS, BYTES = st.integers(1, 64), st.integers(0, 32768)


@given(st.lists(st.tuples(ROWS, BYTES), min_size=1, max_size=20), ROWS, BYTES, ROWS, BYTES)
def test_where_the_measurements_grow_with_work_so_do_the_predictions(
    learned: list[tuple[int, int]], rows: int, length: int, more_rows: int, more_length: int
) -> None:
    costs = CostModel()
    for measured_rows, measured_length in learned:
        work = bucket(measured_rows) * bucket(max(16, measured_length))
        costs.learn("m", measured_rows, measured_rows * measured_length, 1e-6 * work)
    small = costs.predict_s("m", rows, rows * length)
    rows, length = max(rows, more_rows), max(length, more_length)
    large = costs.predict_s("m", rows, rows * length)
    assert small is not None
    assert large is not None
    assert 0 < small <= large * (1 + 1e-9)


@given(st.lists(st.tuples(ROWS, BYTES, st.floats(1e-6, 100)), max_size=20), ROWS, BYTES)
def test_a_prediction_is_none_or_positive(learned: list[tuple[int, int, float]], rows: int, length: int) -> None:
    costs = CostModel()
    for measured_rows, measured_length, compute_s in learned:
        costs.learn("m", measured_rows, measured_rows * measured_length, compute_s)
    predicted_s = costs.predict_s("m", rows, rows * length)
    assert (predicted_s is None) == (not learned)
    assert predicted_s is None or predicted_s > 0


def test_memory_is_bounded_by_shapes_not_by_requests() -> None:
    costs = CostModel()
    for index in range(5000):
        costs.learn("m", 1 + index % 64, (1 + index % 64) * (index * 37 % 32768), 0.01)
    assert len(costs._cells) <= 7 * 12


def test_an_expectation_stands_in_until_something_was_measured() -> None:
    costs = CostModel()
    costs.expect("m", 64, 0.010)
    assert costs.predict_s("m", 1, 64) == pytest.approx(0.010)
    assert costs.predict_s("m", 1, 16) == pytest.approx(0.010), "less work is not promised to be faster"
    assert costs.predict_s("m", 8, 8 * 64) == pytest.approx(0.080)
    costs.learn("m", 1, 64, 0.030)
    assert costs.predict_s("m", 8, 8 * 64) == pytest.approx(0.240)
    costs.expect("other", 64, 0.0)
    assert costs.predict_s("other", 1, 64) is None, "no figure is no expectation"


def test_fewer_threads_than_were_measured_take_longer_until_they_are_measured_themselves() -> None:
    costs = CostModel()
    costs.learn("m", 1, 64, 0.010, threads=4)
    assert costs.predict_s("m", 1, 64, threads=4) == 0.010
    assert costs.predict_s("m", 1, 64, threads=2) == pytest.approx(0.020)
    assert costs.predict_s("m", 1, 64, threads=8) == 0.010, "more threads are not promised to be faster"
    costs.learn("m", 1, 64, 0.013, threads=2)
    assert costs.predict_s("m", 1, 64, threads=2) == 0.013
    assert costs.predict_s("m", 1, 64, threads=1) == pytest.approx(0.026), "from the nearest"


def test_the_least_time_is_the_shortest_sample_of_the_same_shape() -> None:
    costs = CostModel()
    assert costs.least_s("m", 1, 64) is None
    for sample in (0.03, 0.01, 0.02):
        costs.learn("m", 1, 64, sample)
    assert costs.least_s("m", 1, 64) == 0.01
    assert costs.least_s("m", 8, 8 * 64) is None
