"""The index is zero for the same shares, grows with the shift, and is not made of too few texts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.bundle.drift_reference import (
    BINS,
    FRAGMENTATION_EDGES,
    UNKNOWN_SHARE,
    fragmentation_histogram,
    histogram,
    reference,
    reference_key,
    to_metrics,
    unknown_share,
)
from edge_agent.core import drift
from edge_agent.core.drift import LEAST_TEXTS, psi

COUNTS = st.lists(st.integers(0, 1000), min_size=BINS, max_size=BINS)


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
    metrics = to_metrics([0.1] * BINS)
    assert reference(metrics) == (0.1,) * BINS
    assert reference({**metrics, "latency": 3.0}) == (0.1,) * BINS
    del metrics[reference_key(3)]
    assert reference(metrics) is None
    assert reference({reference_key(index): 0.0 for index in range(BINS)}) is None


TEXTS = st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 8000)), max_size=60)


@given(TEXTS)
def test_every_text_falls_into_one_bin_by_its_tokens_per_byte(texts: list[tuple[int, int]]) -> None:
    counts = fragmentation_histogram(texts)
    assert sum(counts) == len(texts)
    for size_bytes, tokens in texts:
        (place,) = [index for index, count in enumerate(fragmentation_histogram([(size_bytes, tokens)])) if count]
        lower = FRAGMENTATION_EDGES[place - 1] if place else 0.0
        upper = FRAGMENTATION_EDGES[place] if place < BINS - 1 else float("inf")
        assert lower <= tokens / max(1, size_bytes) < upper


@given(st.integers(1, 400), st.integers(1, 400), st.integers(2, 50))
def test_a_text_said_several_times_falls_apart_no_further(size_bytes: int, tokens: int, times: int) -> None:
    """Length by itself is no drift: the quantity is a ratio."""
    assert fragmentation_histogram([(size_bytes, tokens)]) == fragmentation_histogram(
        [(size_bytes * times, tokens * times)]
    )


def test_both_histograms_travel_side_by_side_in_the_metrics() -> None:
    metrics = {**to_metrics([0.1] * BINS), **to_metrics([0.0] * 9 + [1.0], "fragmentation"), UNKNOWN_SHARE: 0.02}
    assert reference(metrics) == (0.1,) * BINS
    assert reference(metrics, "fragmentation") == (0.0,) * 9 + (1.0,)
    assert unknown_share(metrics) == 0.02
    assert unknown_share({}) is None
    assert unknown_share({UNKNOWN_SHARE: 1.5}) is None


def test_the_share_of_unknown_tokens_needs_as_many_texts_as_the_index() -> None:
    assert drift.unknown_share(3, 60, LEAST_TEXTS - 1) is None
    assert drift.unknown_share(3, 60, LEAST_TEXTS) == 0.05
    assert drift.unknown_share(0, 0, LEAST_TEXTS) == 0.0
