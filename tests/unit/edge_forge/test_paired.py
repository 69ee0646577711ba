"""Paired statistics against direct computation: the definition of the interval, whole enumerations, simulated rows."""

import functools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from edge_forge.evaluate import gates
from edge_forge.evaluate.paired import (
    compare_logits,
    compare_losses,
    difference_interval,
    latencies,
    median_interval,
    share_interval,
)

LIMITS = gates.LossLimits(0.5, 0.95, 0.25)
interval = functools.cache(difference_interval)


def score(rows, lost, gained, difference):
    """The score statistic by maximising the likelihood of (lost, gained, rest) under the difference, numerically."""

    def unlikely(share):
        cells = (share + difference, share, 1.0 - 2 * share - difference)
        return -sum(
            count * math.log(max(cell, 1e-300))
            for count, cell in zip((lost, gained, rows - lost - gained), cells, strict=True)
        )

    low, high = max(0.0, -difference), (1.0 - difference) / 2
    share = optimize.minimize_scalar(unlikely, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    return (lost - gained - rows * difference) / math.sqrt(rows * (2 * share + difference - difference**2))


COUNTS = st.integers(5, 400).flatmap(
    lambda rows: st.tuples(st.just(rows), st.integers(0, rows // 2), st.integers(0, rows // 2))
)


@given(COUNTS)
def test_at_its_bounds_the_score_statistic_is_the_normal_quantile(counts):
    for bound, due in zip(interval(*counts), (1.959964, -1.959964), strict=True):
        if abs(bound) < 0.99:
            assert score(*counts, bound) == pytest.approx(due, abs=2e-3)


@given(COUNTS)
def test_the_interval_holds_the_estimate_and_mirrors(counts):
    rows, lost, gained = counts
    found = interval(*counts)
    assert -1.0 <= found.low <= (lost - gained) / rows <= found.high <= 1.0
    assert interval(rows, gained, lost) == pytest.approx((-found.high, -found.low), abs=1e-8)


def test_rows_without_a_difference_do_not_prove_equality():
    low, high = interval(387, 0, 0)
    assert (high, -low) == pytest.approx([1.959964**2 / (387 + 1.959964**2)] * 2, abs=1e-6)
    assert 100 * high == pytest.approx(0.98, abs=0.01)
    assert interval(20, 20, 0).high == 1.0


@pytest.mark.parametrize("rows", [20, 60])
@pytest.mark.parametrize("shares", [(0.005, 0.0), (0.03, 0.03), (0.1, 0.05), (0.3, 0.1), (0.05, 0.2)])
def test_a_sound_variant_is_seldom_left_out_whatever_the_number_of_rows(rows, shares):
    """By all outcomes: an interval that lies beyond the true loss as a whole comes in about 2.5 % of test sets."""
    wrong = 0.0
    for lost in range(rows + 1):
        for gained in range(rows + 1 - lost):
            chance = stats.multinomial.pmf([lost, gained, rows - lost - gained], rows, [*shares, 1 - sum(shares)])
            if chance > 1e-7 and interval(rows, lost, gained).low > shares[0] - shares[1]:
                wrong += chance
    assert wrong <= 0.045


def test_the_share_is_wilson_s():
    assert share_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)  # Newcombe 1998, table I


def verdict(reference, variant, gold):
    paired = compare_logits(reference, variant, gold)
    return gates.accuracy("merged", "int8", paired.as_dict(), LIMITS), paired


def test_two_rows_of_387_are_noise_and_say_so():
    """387 rows whose labels the reference knows; the variant answers three of them otherwise and one of those well."""
    reference = np.tile([2.0, -2.0], (387, 1))
    reference[380:] *= -1  # wrong rows
    variant = reference.copy()
    variant[:3] = [-0.1, 0.1]
    variant[380] = [0.1, -0.1]
    gate, paired = verdict(reference, variant, [0] * 387)
    assert (paired.only_reference, paired.only_variant) == (3, 1)
    assert gate.holds
    assert "loses 0.52 points against FP32 on 387 rows" in gate.sentence
    assert "cannot tell a loss of 0.5 points from none" in gate.sentence


@settings(deadline=None)
@given(st.integers(20, 400), st.integers(0, 2**32 - 1))
def test_a_variant_that_answers_at_random_is_left_out_however_few_the_rows(rows, seed):
    random = np.random.default_rng(seed)
    gold = random.integers(0, 4, rows)
    reference = random.normal(size=(rows, 4)) + 6.0 * np.eye(4)[gold]
    assert not verdict(reference, random.permutation(reference), gold)[0].holds
    quantised = reference + 0.05 * random.normal(size=reference.shape)
    assert verdict(reference, quantised, gold)[0].holds


def test_unlabelled_texts_count_for_agreement_and_error_only():
    labelled = np.array([[1.0, -1.0], [-1.0, 1.0]])
    paired = compare_logits(labelled, labelled, [0, 1], (labelled, -labelled))
    assert (paired.rows, paired.loss, paired.texts, paired.agreement) == (2, 0.0, 4, 0.5)
    assert paired.logit_error == pytest.approx(math.sqrt(2.0))


def test_a_constant_added_to_the_logits_of_a_row_is_no_error():
    logits = np.array([[1.0, -1.0], [0.5, 3.0]])
    shifted = logits + np.array([[5.0], [-7.0]])
    assert compare_logits(logits, shifted, [0, 1]).logit_error == pytest.approx(0.0, abs=1e-12)


def test_the_ratio_of_perplexities_is_that_of_the_means():
    found = compare_losses([10.0, 20.0, 3.0], [11.0, 20.5, 3.3], [10, 20, 4])
    assert found.ratio == pytest.approx(math.exp((34.8 - 33.0) / 34))
    assert found.ratio_low < found.ratio < found.ratio_high
    lengths = compare_losses([10.0, 20.0], [11.0, 22.0], [10, 20])
    assert lengths.ratio_low == pytest.approx(lengths.ratio_high), "every token alike: nothing is left to chance"
    assert compare_losses([10.0], [11.0], [10]).ratio_low == pytest.approx(0.0), "one row tells nothing"


def test_the_interval_of_equal_rows_is_student_s():
    random = np.random.default_rng(3)
    reference, differences = random.normal(50, 5, 20), random.normal(1.0, 2.0, 20)
    found = compare_losses(list(reference), list(reference + differences), [10] * 20)
    due = stats.ttest_1samp(differences / 10, 0.0).confidence_interval(0.95)
    assert (math.log(found.ratio_low), math.log(found.ratio_high)) == pytest.approx(tuple(due))


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_interval_of_a_ratio_covers_it_with_rows_of_unlike_length(seed):
    random, held = np.random.default_rng(seed), 0
    for _ in range(200):
        tokens = random.integers(5, 80, 20)
        reference = 2.0 * tokens + random.normal(0, np.sqrt(tokens))
        variant = reference + 0.05 * tokens + random.normal(0, 0.3 * np.sqrt(tokens))
        found = compare_losses(list(reference), list(variant), list(tokens))
        held += found.ratio_low <= math.exp(0.05) <= found.ratio_high
    assert held >= 172, "95 % of 200, less four standard deviations and a little for the ratio"


@pytest.mark.parametrize("count", [6, 9, 20, 50, 101])
def test_the_interval_of_a_median_holds_its_level(count):
    """By the places of the bounds: it misses when all values beyond one of them lie on one side of the median."""
    low, high = median_interval(list(range(count)))
    assert high == count - 1 - low
    assert stats.binom.cdf(low, count, 0.5) <= 0.025
    assert stats.binom.cdf(low + 1, count, 0.5) > 0.025


def test_few_values_give_their_range():
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    assert median_interval([3.0]) == (3.0, 3.0)


@given(st.lists(st.floats(0.5, 50.0), min_size=1, max_size=60), st.floats(0.1, 10.0))
def test_a_ratio_in_turns_does_not_see_what_slows_a_whole_turn(times, factor):
    found = latencies({"a": times, "b": [factor * one for one in times]})
    assert [found["b"][key] for key in ("ratio", "ratio_low", "ratio_high")] == pytest.approx([factor] * 3)
    assert found["a"]["low_ms"] <= found["a"]["p50_ms"] <= found["a"]["high_ms"]
