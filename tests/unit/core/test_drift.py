"""The index is zero for the same shares, grows with the shift, and is not made of too few texts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.bundle.reference import CONFIDENCE_BINS, histogram, reference, reference_key, to_metrics
from edge_agent.core.drift import LEAST_TEXTS, psi

COUNTS = st.lists(st.integers(0, 1000), min_size=CONFIDENCE_BINS, max_size=CONFIDENCE_BINS)


def test_the_same_shares_do_not_drift() -> None:
    assert psi([0, 0, 0, 0, 0, 0, 10, 20, 30, 40], (0, 0, 0, 0, 0, 0, 0.1, 0.2, 0.3, 0.4)) == pytest.approx(0.0)


def test_a_known_shift() -> None:
    counts, expected = [0] * 8 + [50, 50], (0.0,) * 8 + (0.1, 0.9)
    assert psi(counts, expected) == pytest.approx((0.5 - 0.1) * math.log(5) + (0.5 - 0.9) * math.log(5 / 9))


def test_few_texts_say_nothing() -> None:
    assert psi([0] * 9 + [LEAST_TEXTS - 1], (0.1,) * 10) is None
    assert psi([0] * 9 + [LEAST_TEXTS], (0.1,) * 10) is not None


@given(COUNTS, COUNTS)
def test_it_is_never_negative_and_always_finite(counts: list[int], expected: list[int]) -> None:
    index = psi(counts, [float(one) for one in expected])
    if sum(counts) < LEAST_TEXTS or not sum(expected):
        assert index is None
    else:
        assert index is not None
        assert 0.0 <= index < 100.0


def test_scores_fall_into_ten_bins() -> None:
    assert histogram([0.0, 0.05, 0.1, 0.99, 1.0]) == [2, 1, 0, 0, 0, 0, 0, 0, 0, 2]


def test_a_package_has_all_bins_or_no_reference() -> None:
    metrics = to_metrics([0.1] * CONFIDENCE_BINS)
    assert reference(metrics) == (0.1,) * CONFIDENCE_BINS
    assert reference({**metrics, "latency": 3.0}) == (0.1,) * CONFIDENCE_BINS
    del metrics[reference_key(3)]
    assert reference(metrics) is None
    assert reference({reference_key(index): 0.0 for index in range(CONFIDENCE_BINS)}) is None
