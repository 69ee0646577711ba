"""Scores of preferences: shares and margins with intervals, and what a build concludes from them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_forge.evaluate.paired import difference_interval
from edge_forge.evaluate.preferences import compare_preferences, preferred, rewarded
from edge_forge.evaluate.training_outcome import of_preferences

NATS = st.floats(0.0, 1e4)


def test_a_share_and_a_margin_by_hand():
    found = preferred([1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 3.0, 1.0])
    assert found["preferred"] == 0.5, "a tie is no preference"
    assert found["pair_margins"] == [1.0, 2.0, 0.0, -3.0] and found["margin"] == 0.0
    # Student's: t(0.975, 3) = 3.182446, the deviation of the margins is sqrt(14 / 3).
    half = 3.182446305 * math.sqrt(14 / 3) / 2
    assert (found["margin_low"], found["margin_high"]) == (pytest.approx(-half), pytest.approx(half))
    # Wilson's interval of 2 of 4.
    assert (found["preferred_low"], found["preferred_high"]) == (
        pytest.approx(0.150, abs=1e-3),
        pytest.approx(0.850, abs=1e-3),
    )


def test_a_number_format_is_set_beside_f16_pair_by_pair():
    # F16 prefers rightly in the first three pairs, the variant in the first and the last.
    found = compare_preferences([2.0, 1.0, 3.0, -1.0], [2.0, -1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0])
    assert (found.rows, found.loss, found.fall, found.rise) == (4, 0.25, 0.75, 1.0)
    assert (found.loss_low, found.loss_high) == difference_interval(4, 2, 1)
    # Differences 0, 2, 3, -2: deviation sqrt((0.5625 + 1.5625 + 5.0625 + 7.5625) / 3).
    half = 3.182446305 * math.sqrt(14.75 / 3) / 2
    assert (found.fall_low, found.fall_high) == (pytest.approx(0.75 - half), pytest.approx(0.75 + half))
    same = compare_preferences([1.0, -1.0], [1.0, -1.0], [0.0, 0.0])
    assert same.loss == same.fall == 0.0


def test_dpos_accuracy_is_against_the_base():
    found = rewarded([1.0, -5.0, 3.0], [2.0, -6.0, 1.0], 0.1)
    assert found["rewarded"] == pytest.approx(2 / 3) and found["reward_margin"] == pytest.approx(0.2 / 3)


def test_of_one_pair_no_interval_of_the_margin_is_known():
    found = preferred([1.0], [2.0])
    assert found["margin"] == 1.0 and found["margin_low"] is None and found["margin_high"] is None


@given(st.lists(st.tuples(NATS, NATS), min_size=2, max_size=40))
def test_intervals_hold_what_they_are_of_and_exchanged_answers_turn_the_sign(pairs):
    good, bad = zip(*pairs, strict=True)
    one, other = preferred(good, bad), preferred(bad, good)
    assert one["preferred_low"] - 1e-9 <= one["preferred"] <= one["preferred_high"] + 1e-9
    assert one["margin_low"] <= one["margin"] <= one["margin_high"]
    assert one["margin"] == -other["margin"] and one["preferred"] + other["preferred"] <= 1.0


@pytest.mark.parametrize(
    ("rises", "perplexities", "failed", "weak"),
    [
        ([1.0] * 20, (2.0, 3.0), "", ""),
        ([-1.0] * 20, (2.0, 3.0), "in 0.0% of the measured pairs", ""),
        ([1.0, -1.0] * 5, (2.0, 3.0), "", "which may be chance"),
        ([1.0] * 20, (9.0, 3.0), "", "train.chosen_weight"),
        ([1.0] * 20, (math.inf, 3.0), "perplexity of the chosen answers is inf", ""),
    ],
)
def test_a_build_ends_where_training_taught_the_opposite(rises, perplexities, failed, weak):
    scores = {"perplexity": perplexities[0], "preferences": {"margin": 1.0, **rewarded(rises, [0.0] * len(rises), 0.1)}}
    found = of_preferences(scores, {"perplexity": perplexities[1]})
    assert (failed in found.failed) and bool(found.failed) == bool(failed)
    assert (weak in found.weak) and bool(found.weak) == bool(weak)
