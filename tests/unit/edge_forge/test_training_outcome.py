"""Whether a run led anywhere: diverged and collapsed models are told from weak and good ones."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.errors import EdgeError
from edge_forge.evaluate.thresholds import THRESHOLDS, curve, proposed, scope_scores
from edge_forge.evaluate.training_outcome import TrainingOutcome, of_classifier, of_generator, of_threshold
from edge_forge.train.lora import check_learned

LABELS = ("a", "b", "c")


@pytest.mark.parametrize(
    ("confusion", "failed", "weak"),
    [
        ([[20, 0, 0], [0, 20, 0], [0, 0, 20]], "", ""),
        ([[20, 0, 0], [20, 0, 0], [20, 0, 0]], "it answers 'a' to every one of the 60 measured rows", ""),
        ([[0, 0, 1], [0, 0, 1], [0, 0, 1]], "it answers 'c' to every one of the 3", ""),
        ([[10, 80, 10], [5, 0, 0], [5, 0, 0]], "it answers 9.1% of the 110 measured rows rightly; the answer 'a'", ""),
        ([[60, 10, 0], [10, 0, 0], [10, 0, 0]], "", "the answer 'a' to every row would be right for 77.8%"),
        ([[20, 0, 0], [0, 0, 0], [0, 0, 0]], "", ""),
        ([[0, 0, 0], [0, 0, 0], [0, 0, 0]], "", ""),
    ],
)
def test_an_outcome_by_the_answers(confusion, failed, weak):
    found = of_classifier(confusion, LABELS)
    assert failed in found.failed
    assert weak in found.weak
    assert bool(found.failed) == bool(failed)
    assert bool(found.weak) == bool(weak)


def test_answers_of_few_of_many_classes_are_weak():
    labels = [f"l{n}" for n in range(10)]
    confusion = np.zeros((10, 10), int)
    for gold in range(10):
        confusion[gold, gold % 3] = 10
    assert "never answers 7 of the 10 classes, such as 'l3'" in of_classifier(confusion.tolist(), labels).weak


@given(st.integers(2, 6), st.integers(1, 40))
def test_right_answers_are_never_called_failed(classes, rows):
    assert of_classifier((np.eye(classes, dtype=int) * rows).tolist(), list("abcdef")[:classes]) == TrainingOutcome()


@pytest.mark.parametrize(
    ("tuned", "base", "failed", "weak"),
    [
        (3.0, 30.0, False, False), (31.0, 30.0, False, True), (300.0, 30.0, True, False),
        (float("nan"), 30.0, True, False), (float("inf"), None, True, False), (50.0, None, False, False),
    ],
)  # fmt: skip
def test_an_outcome_by_perplexity(tuned, base, failed, weak):
    found = of_generator(tuned, base)
    assert (bool(found.failed), bool(found.weak)) == (failed, weak)


def test_an_adapter_that_learned_nothing_or_is_not_finite_ends_the_run():
    zero, one = torch.zeros(2, 2), torch.ones(2, 2)
    check_learned({"x.A": one, "x.B": one, "head.weight": one})
    with pytest.raises(EdgeError, match=r"what it was before training.*too few steps"):
        check_learned({"x.A": one, "x.B": zero, "head.weight": one})
    check_learned({"head.weight": one}, inserted=False)
    for nothing, inserted in (({"head.weight": zero}, False), ({}, False), ({}, True), ({"head.weight": one}, True)):
        with pytest.raises(EdgeError, match="nothing was learned"):
            check_learned(nothing, inserted)
    with pytest.raises(EdgeError, match=r"diverged: x.B has values that are not finite .lower learning_rate"):
        check_learned({"x.A": one, "x.B": one * float("nan"), "head.weight": one})


# Confidence of two classes by the distance of their logits: 0.1 is 0.52, 4 is 0.98.
SURE, UNSURE = 4.0, 0.1


def test_scores_in_and_out_of_scope_stand_apart():
    logits = np.asarray([[SURE, 0], [0, SURE], [UNSURE, 0], [SURE, 0]])
    plain = scope_scores(logits, ["a", "b", "a", "other"], ["a", "b"], "other", 0.0)
    assert (plain["in_scope_rows"], plain["in_scope_right"]) == (3, 1.0)
    assert (plain["out_of_scope_rows"], plain["out_of_scope_caught"]) == (1, 0.0)
    strict = scope_scores(logits, ["a", "b", "a", "other"], ["a", "b"], "other", 0.9)
    assert (strict["answered"], strict["in_scope_right"], strict["right_lost"]) == (0.75, 2 / 3, 1 / 3)


@pytest.mark.parametrize("outside", ["other", None])
def test_the_proposed_threshold_separates_what_is_sure_from_what_is_not(outside):
    logits = np.asarray([[SURE, 0.0]] * 30 + [[UNSURE, 0.0]] * 10)
    gold = ["a"] * 30 + ["other" if outside else "b"] * 10
    labels = ["a", "b", "other"] if outside else ["a", "b"]
    logits = np.pad(logits, ((0, 0), (0, len(labels) - 2)), constant_values=-9.0)
    points = curve(logits, gold, labels, outside)
    chosen = proposed(points)
    assert 0.5 < chosen < 0.99
    at = points[THRESHOLDS.index(chosen)]
    assert (at["in_scope_right"] if outside else at["wrong_caught"]) == 1.0


def test_no_threshold_is_proposed_where_none_helps():
    logits = np.asarray([[SURE, 0.0]] * 20)
    assert proposed(curve(logits, ["a"] * 20, ["a", "b"], None)) is None


@pytest.mark.parametrize(
    ("threshold", "failed", "weak"),
    [
        (0.0, "", ""),
        (0.5, "", ""),
        (0.9, "", "only 25.0% of the 40 measured rows in scope are answered, the others get 'unsure'"),
        (0.99, "it answers 'unsure' to every one of the 40 measured rows; the validation rows propose", ""),
    ],
)
def test_a_threshold_that_leaves_hardly_an_answer_is_said_with_the_proposed_one(threshold, failed, weak):
    logits = np.asarray([[SURE, 0.0]] * 10 + [[1.0, 0.0]] * 30)
    at = scope_scores(logits, ["a"] * 40, ["a", "b"], "unsure", threshold)
    found = of_threshold(at, "unsure", 0.6)
    assert (bool(found.failed), bool(found.weak)) == (bool(failed), bool(weak))
    assert failed in found.failed
    assert weak in found.weak
    assert not (failed or weak) or "propose task.threshold = 0.6" in found.failed + found.weak
