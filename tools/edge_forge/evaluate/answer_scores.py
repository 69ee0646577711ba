"""Scores of extractive answers: exact match and F1 by the rules of SQuAD's script (Rajpurkar et al. 2016, 2018).

Answers are compared in lower case, without punctuation, articles and further white space; of several gold answers the
best counts. F1 is of the words that both have. Of a question without an answer both are 1 where none is given, else 0.
Accuracy is exact match, so that figures of a variant are compared question by question as a classifier's are.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_forge.data.answer_rows import ANSWER, NO_ANSWER
from edge_forge.evaluate import classifier_metrics
from edge_forge.evaluate.classifier_metrics import ECE_BINS, LabelScore, Metrics
from edge_forge.evaluate.paired import PairedScores, difference_interval, logit_error, share_interval
from edge_forge.train.window_rows import FoundAnswer, WindowRows

_RESAMPLES = 1000
_AT_ONCE = 50
_SEED = 1
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> str:
    """The form in which answers are compared."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(answer: str, gold: Sequence[str]) -> bool:
    """Whether the answer is one of the gold ones; without any, whether it is ''."""
    return any(normalised(answer) == one for one in _due(gold))


def f1_of(answer: str, gold: Sequence[str]) -> float:
    """The best F1 of words with a gold answer."""
    return max(_overlap(normalised(answer).split(), one.split()) for one in _due(gold))


def _due(gold: Sequence[str]) -> list[str]:
    """Gold answers in the form that is compared; those of which nothing is left do not count, as in the script."""
    return [one for one in map(normalised, gold) if one] or [""]


def _overlap(answer: Sequence[str], gold: Sequence[str]) -> float:
    if not answer or not gold:
        return float(answer == gold)
    same = sum((Counter(answer) & Counter(gold)).values())
    return 2 * same / (len(answer) + len(gold))


def evaluate(logits: NDArray[np.floating], rows: WindowRows) -> dict[str, Any]:
    """The keys of `classifier_metrics.Metrics`, `answers`: the script's scores in parts, and `confidence`: shares of
    questions by the score of the best span, for drift.

    `accuracy` is exact match, `macro_f1` F1. `confusion`, `per_label` and `mcc` are of whether there is an answer,
    `ece` of the probability of what was said (the span, or that there is none), `nll` of both ends in each window.
    """
    found = rows.found(logits)
    exact, f1 = _of_each(found, rows)
    truth, said = (np.asarray(values) for values in (
        [0 if gold else 1 for gold in rows.gold], [0 if one.span is not None else 1 for one in found]))  # fmt: skip
    confusion = classifier_metrics.confusion_matrix(truth, said, 2)
    shown = (ANSWER, NO_ANSWER)
    metrics = Metrics(
        rows=len(found),
        accuracy=float(exact.mean()),
        macro_f1=float(f1.mean()),
        mcc=classifier_metrics.matthews(confusion),
        ece=_calibration_error(calibration(found, exact)),
        nll=_loss(logits, rows),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        labels=shown,
        per_label=tuple(_label_score(label, place, confusion) for place, label in enumerate(shown)),
    )
    parts = {
        name: {"rows": int(inside.sum()), "exact": float(exact[inside].mean()), "f1": float(f1[inside].mean())}
        for name, inside in (("answerable", truth == 0), ("unanswerable", truth == 1)) if inside.any()
    }  # fmt: skip
    low, high = _interval(f1)
    answers = {"exact": metrics.accuracy, "f1": metrics.macro_f1, "low": low, "high": high, "questions": len(found),
               "windows": len(rows.ids), "trivial": _trivial(rows), **parts}  # fmt: skip
    counts = np.histogram([one.score for one in found], bins=10, range=(0.0, 1.0))[0]
    return {**metrics.as_dict(), "answers": answers, "confidence": (counts / max(1, len(found))).tolist()}


def right(logits: NDArray[np.floating], rows: WindowRows) -> list[bool]:
    """Whether each question is answered exactly."""
    return [bool(one) for one in _of_each(rows.found(logits), rows)[0]]


def _of_each(found: Sequence[FoundAnswer], rows: WindowRows) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(exact match, F1) of each question, both from 0 to 1."""
    texts = [rows.text(number, one) for number, one in enumerate(found)]
    due = [[one.text for one in gold] for gold in rows.gold]
    pairs = list(zip(texts, due, strict=True))
    return (
        np.asarray([exact_match(*pair) for pair in pairs], dtype=np.float64),
        np.asarray([f1_of(*pair) for pair in pairs], dtype=np.float64),
    )


def _trivial(rows: WindowRows) -> float:
    """F1 of the better of two answers that need no model: none to every question, or the whole context."""
    texts = [[one.text for one in gold] for gold in rows.gold]
    none = np.mean([f1_of("", gold) for gold in texts])
    whole = np.mean([f1_of(context, gold) for context, gold in zip(rows.contexts, texts, strict=True)])
    return float(max(none, whole))


def calibration(found: Sequence[FoundAnswer], exact: NDArray[np.float64]) -> list[list[float]]:
    """Bins [mean probability of what was said, exact match, questions] of equal width."""
    said = np.asarray([one.score if one.span is not None else one.none for one in found])
    place = np.clip(np.ceil(said * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    bins = []
    for number in range(ECE_BINS):
        inside = place == number
        count = int(inside.sum())
        bins.append([float(said[inside].mean()), float(exact[inside].mean()), count] if count else [0.0, 0.0, 0])
    return bins


def bins_of(logits: NDArray[np.floating], rows: WindowRows) -> list[list[float]]:
    """`calibration` by logits."""
    found = rows.found(logits)
    return calibration(found, _of_each(found, rows)[0])


def _calibration_error(bins: Sequence[Sequence[float]]) -> float:
    total = sum(count for _, _, count in bins)
    return float(sum(abs(said - exact) * count for said, exact, count in bins) / max(1, total))


def _loss(logits: NDArray[np.floating], rows: WindowRows) -> float:
    """Mean over the windows of the negative log-probability of start and end, in nats each."""
    losses = []
    targets = (one for each in rows.targets for one in each)
    windows = (one for each in rows.windows for one in each)
    for part, window, (start, end) in zip(rows.by_window(logits), windows, targets, strict=True):
        scores = np.asarray(part, dtype=np.float64)
        scores = scores - scores.max(axis=0)
        scores = scores - np.log(np.exp(scores).sum(axis=0))
        at = [0 if place == 0 else place - window.first + 1 for place in (start, end)]
        losses.append(-(scores[at[0], 0] + scores[at[1], 1]) / 2)
    return float(np.mean(losses))


def _interval(f1: NDArray[np.float64]) -> tuple[float, float]:
    """95 % of the mean, by resampling questions (percentiles of 1,000 resamples)."""
    drawn = np.random.default_rng(_SEED)
    values = np.concatenate([
        f1[drawn.integers(len(f1), size=(_AT_ONCE, len(f1)))].mean(axis=1) for _ in range(0, _RESAMPLES, _AT_ONCE)
    ])  # fmt: skip
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def _label_score(label: str, place: int, confusion: NDArray[np.int64]) -> LabelScore:
    hit, due, said = confusion[place, place], confusion[place].sum(), confusion[:, place].sum()
    return LabelScore(
        label, float(hit / said) if said else 0.0, float(hit / due) if due else 0.0,
        float(2 * hit / (due + said)) if due + said else 0.0, int(due),
    )  # fmt: skip


def compare(
    reference: NDArray[np.floating], variant: NDArray[np.floating], rows: WindowRows,
    unlabelled: tuple[NDArray[np.floating], NDArray[np.floating], WindowRows] | None = None,
) -> PairedScores:  # fmt: skip
    """`paired.compare_logits` by questions: one is answered rightly where exactly, and alike where the places are."""
    found, other = rows.found(reference), rows.found(variant)
    exact, also = (_of_each(each, rows)[0] > 0 for each in (found, other))
    lost, gained = int((exact & ~also).sum()), int((also & ~exact).sum())
    loss, count = difference_interval(len(found), lost, gained), len(found)
    centred = [_centred(reference, rows), _centred(variant, rows)]
    if unlabelled is not None:
        more = unlabelled[2]
        found, other = found + more.found(unlabelled[0]), other + more.found(unlabelled[1])
        centred = [np.concatenate([own, _centred(one, more)])
                   for own, one in zip(centred, unlabelled[:2], strict=True)]  # fmt: skip
    same = sum(one.place == another.place for one, another in zip(found, other, strict=True))
    return PairedScores(
        count, lost, gained, (lost - gained) / count, loss.low, loss.high,
        len(found), same / len(found), share_interval(same, len(found)).high,
        logit_error(centred[0].reshape(1, -1), centred[1].reshape(1, -1)),
    )  # fmt: skip


def _centred(logits: NDArray[np.floating], rows: WindowRows) -> NDArray[np.floating]:
    """Logits less their mean over the tokens of the window: a constant there changes no probability."""
    return np.concatenate([part - part.mean(axis=0, keepdims=True) for part in rows.by_window(logits)])
