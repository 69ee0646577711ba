import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import confusion_matrix, f1_score, matthews_corrcoef

from edge_agent.base.errors import ConfigError
from edge_forge.evaluate import classifier_metrics as metrics

LABELS = ("red", "green", "blue")


@st.composite
def predictions(draw):
    rows = draw(st.integers(2, 40))
    logits = draw(arrays(np.float64, (rows, 3), elements=st.floats(-20, 20, width=32)))
    return logits, draw(st.lists(st.integers(0, 2), min_size=rows, max_size=rows))


@given(predictions())
def test_scores_agree_with_scikit_learn(case):
    logits, gold = case
    found = metrics.evaluate(logits, gold, LABELS)
    predicted = logits.argmax(axis=1)
    assert found.accuracy == pytest.approx(np.mean(predicted == gold))
    assert found.macro_f1 == pytest.approx(f1_score(gold, predicted, average="macro", zero_division=0))
    if len({*gold, *predicted}) > 1:
        assert found.mcc == pytest.approx(matthews_corrcoef(gold, predicted), abs=1e-9)
    assert [list(row) for row in found.confusion] == confusion_matrix(gold, predicted, labels=[0, 1, 2]).tolist()


@given(predictions(), st.floats(-1e3, 1e3))
def test_a_constant_added_to_all_logits_changes_nothing(case, offset):
    logits, gold = case
    plain, moved = metrics.evaluate(logits, gold, LABELS), metrics.evaluate(logits + offset, gold, LABELS)
    if np.array_equal((logits + offset).argmax(axis=1), logits.argmax(axis=1)):
        assert moved.nll == pytest.approx(plain.nll, abs=1e-6)


def test_calibration_error_by_hand():
    # Two rows at 0.9 of which one is right, two at 0.6 of which both are: (2 * |0.5 - 0.9| + 2 * |1 - 0.6|) / 4.
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    found = metrics.evaluate(np.log(probabilities), [0, 1, 0, 0], ("a", "b"))
    assert found.ece == pytest.approx(0.4)
    assert found.accuracy == 0.75


def test_the_edge_of_a_bin_belongs_to_the_bin_below():
    gap = metrics.expected_calibration_error(np.array([[0.5, 0.5], [0.4, 0.6]]), np.array([0, 0]), bins=2)
    assert gap == pytest.approx((0.5 + 0.6) / 2)


def test_nll_is_the_mean_negative_log_probability():
    found = metrics.evaluate(np.log([[0.5, 0.5], [0.25, 0.75]]), ["a", "b"], ("a", "b"))
    assert found.nll == pytest.approx((np.log(2) - np.log(0.75)) / 2)


def test_scores_of_a_label_and_its_place_in_the_confusion():
    logits = np.eye(3)[[0, 0, 1, 2]]
    found = metrics.evaluate(logits, ["red", "green", "green", "blue"], LABELS)
    assert found.confusion == ((1, 0, 0), (1, 1, 0), (0, 0, 1))
    red, green, blue = found.per_label
    assert (red.precision, red.recall, red.support) == (0.5, 1.0, 1)
    assert (green.precision, green.recall, green.support) == (1.0, 0.5, 2)
    assert blue.f1 == 1.0


def test_a_label_that_never_occurs_is_left_out_of_macro_f1():
    assert metrics.evaluate(np.eye(3)[[0, 1]], ["red", "green"], LABELS).macro_f1 == 1.0


def test_one_predicted_label_has_no_correlation():
    assert metrics.evaluate(np.eye(2)[[0, 0, 0]], [0, 1, 0], ("a", "b")).mcc == 0.0


@pytest.mark.parametrize(
    ("logits", "gold", "said"),
    [
        (np.zeros((2, 2)), [0, 1], "do not fit"),
        (np.zeros((2, 3)), [0], "do not fit"),
        (np.zeros((0, 3)), [], "no rows"),
        (np.array([[np.nan, 0, 0]]), [0], "not finite"),
        (np.zeros((1, 3)), ["violet"], "unknown label 'violet'"),
        (np.zeros((1, 3)), [3], "unknown label 3"),
    ],
)
def test_bad_input_is_named(logits, gold, said):
    with pytest.raises(ConfigError, match=said):
        metrics.evaluate(logits, gold, LABELS)


def test_confidence_shares_are_the_histogram_of_the_top_probability():
    sure, half = [10.0, -10.0], [0.0, 0.0]
    assert metrics.confidence_shares(np.array([sure, sure, sure, half])) == [0, 0, 0, 0, 0, 0.25, 0, 0, 0, 0.75]


def test_how_a_test_set_falls_apart_is_counted_as_the_device_counts_it():
    texts = [(20, 4, 0), (20, 4, 1), (40, 20, 0), (10, 10, 1)]
    assert metrics.fragmentation_shares(texts) == [0, 0, 0, 0, 0.5, 0, 0, 0, 0.25, 0.25]
    assert metrics.unknown_share(texts) == 2 / 38
    assert metrics.unknown_share([(20, 4, None)]) is None, "a tokenizer without an unknown token"
