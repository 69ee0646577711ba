"""Whether a training run led anywhere, by the answers of what it left. Pure.

A run that diverged still ends with a file, and its model answers one class, or worse than the commonest class would. A
file of its own because it judges a run, not a model: scores are `classifier_metrics`, variants of a graph are `gates`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# Standard errors below the share of the commonest class: by chance alone one run in 700 is so far below.
_FAR = 3.0
# A tuned generator whose perplexity is so many times its base's has unlearned the language.
_PERPLEXITY_RATIO = 2.0
# A threshold that leaves less than this share of the rows in scope an answer takes more than it gives.
_ANSWERED = 0.5


class TrainingOutcome(NamedTuple):
    """`failed`: why the model is not fit to be shipped; `weak`: what its author should know. '' where nothing is."""

    failed: str = ""
    weak: str = ""


def of_classifier(confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> TrainingOutcome:
    """The outcome by a confusion matrix (gold labels down, answers across) over all measured rows."""
    gold = [sum(row) for row in confusion]
    answered = [sum(column) for column in zip(*confusion, strict=True)]
    rows, asked = sum(gold), [place for place, count in enumerate(gold) if count]
    if not rows or len(asked) < 2:
        return TrainingOutcome()
    commonest = max(range(len(gold)), key=gold.__getitem__)
    share, right = gold[commonest] / rows, sum(confusion[place][place] for place in range(len(gold))) / rows
    said = (
        f"it answers {right:.1%} of the {rows} measured rows rightly; the answer {labels[commonest]!r} to every row "
        f"would be right for {share:.1%}"
    )
    if sum(map(bool, answered)) == 1:
        return TrainingOutcome(f"it answers {labels[answered.index(rows)]!r} to every one of the {rows} measured rows")
    if right < share - _FAR * math.sqrt(share * (1.0 - share) / rows):
        return TrainingOutcome(said)
    if right <= share:
        return TrainingOutcome("", said)
    never = [labels[place] for place in asked if not answered[place]]
    if 2 * len(never) > len(asked):
        return TrainingOutcome("", f"it never answers {len(never)} of the {len(asked)} classes, such as {never[0]!r}")
    return TrainingOutcome()


def of_answers(scores: Mapping[str, Any]) -> TrainingOutcome:
    """The outcome of extractive answers, by `answer_scores.evaluate`: whether F1 is above that of saying "no answer" or
    the whole context to every question."""
    found, said = scores["answers"], [sum(column) for column in zip(*scores["confusion"], strict=True)]
    if not said[0] and "answerable" in found:
        return TrainingOutcome(f"it answers none of the {found['questions']} measured questions")
    trivial = (
        f"F1 is {found['f1']:.1%} on {found['questions']} questions; the whole context, or no answer, to every one has "
        f"{found['trivial']:.1%}"
    )
    if found["high"] < found["trivial"]:
        return TrainingOutcome(trivial)
    return TrainingOutcome("", trivial if found["f1"] <= found["trivial"] else "")


def of_threshold(at: Mapping[str, Any], label: str, proposed: float | None) -> TrainingOutcome:
    """The outcome by what a device answers with the recipe's threshold: `at` is `thresholds.scope_scores` at it.

    A model whose best classes are right can still answer `label` to everything, where its confidence stays below the
    threshold. `proposed` is what the validation rows propose (`thresholds.proposed`).
    """
    threshold, rows = at["threshold"], at["in_scope_rows"] + at["out_of_scope_rows"]
    if not threshold or not at["in_scope_rows"] or at["in_scope_answered"] >= _ANSWERED:
        return TrainingOutcome()
    better = (
        f"the validation rows propose task.threshold = {proposed:g}" if proposed and proposed < threshold
        else "no lower threshold serves the validation rows better than none; train longer, or set task.threshold = 0"
    )  # fmt: skip
    if not at["answered"]:
        return TrainingOutcome(
            f"with task.threshold = {threshold:g} it answers {label!r} to every one of the {rows} measured rows; "
            + better
        )
    return TrainingOutcome(
        "",
        f"with task.threshold = {threshold:g} only {at['in_scope_answered']:.1%} of the {at['in_scope_rows']} measured "
        f"rows in scope are answered, the others get {label!r}; {better}",
    )


def of_preferences(tuned: Mapping[str, Any], base: Mapping[str, Any]) -> TrainingOutcome:
    """The outcome of DPO, by the scores of both (`generator_scores.by_torch`).

    A rise of the perplexity of chosen answers is usual: DPO lowers the likelihood of both answers.
    """
    found = tuned["preferences"]
    if not (math.isfinite(tuned["perplexity"]) and math.isfinite(found["margin"])):
        return TrainingOutcome(f"the perplexity of the chosen answers is {tuned['perplexity']}")
    said = f"training raised the chosen answer over the rejected one in {found['rewarded']:.1%} of the measured pairs"
    if found["rewarded_high"] < 0.5:
        return TrainingOutcome(said)
    if found["rewarded_low"] <= 0.5:
        return TrainingOutcome("", f"{said}, which may be chance")
    if tuned["perplexity"] > _PERPLEXITY_RATIO * base["perplexity"]:
        return TrainingOutcome(
            "",
            f"the perplexity of chosen answers rose from {base['perplexity']:.4g} to {tuned['perplexity']:.4g}; "
            "train.chosen_weight = 1.0 or a smaller train.learning_rate keeps them likely",
        )
    return TrainingOutcome()


def of_generator(tuned: float, base: float | None) -> TrainingOutcome:
    """The outcome by the perplexity of the measured answers, tuned and of the base (None: trained from nothing)."""
    if not math.isfinite(tuned):
        return TrainingOutcome(f"the perplexity of the measured answers is {tuned}")
    if base is None or not math.isfinite(base) or tuned < base:
        return TrainingOutcome()
    said = f"the perplexity of the measured answers is {tuned:.4g}, that of the base is {base:.4g}"
    return TrainingOutcome(said) if tuned > _PERPLEXITY_RATIO * base else TrainingOutcome("", said)
