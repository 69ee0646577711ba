"""Scores of slots: words with their gold classes, and what logits of words say of spans.

A text is answered rightly where its spans are exactly those of its row: that is what accuracy counts, so figures of a
variant are compared text by text as a classifier's are. F1 counts spans: a span is right with its label and both ends
(as CoNLL 2000 and seqeval count). Spans beyond `max_tokens`, or that end within a word, count as missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_forge.evaluate import classifier_metrics
from edge_forge.evaluate.classifier_metrics import LabelScore, Metrics
from edge_forge.evaluate.paired import PairedScores, difference_interval, logit_error, share_interval
from edge_forge.train.word_rows import Places, WordRows, class_names

OUTSIDE = "(outside)"
_RESAMPLES = 1000
_AT_ONCE = 50
_SEED = 1


def evaluate(logits: NDArray[np.floating], rows: WordRows) -> dict[str, Any]:
    """The keys of `classifier_metrics.Metrics`, and `spans`: F1 of all spans with its 95 % interval.

    `accuracy` is the share of texts whose spans are all right, `macro_f1` the mean F1 of the labels by spans; `mcc`,
    `ece`, `nll` and `confusion` are of words, whose class is their label or outside.
    """
    names, gold = class_names(rows.labels), [place for path in rows.paths for place in path]
    of_words = classifier_metrics.evaluate(logits, gold, names)
    found = rows.found(logits)
    truth, answered = (np.asarray(values) for values in (gold, logits.argmax(axis=1)))
    shown = (OUTSIDE, *rows.labels)
    confusion = classifier_metrics.confusion_matrix((truth + 1) // 2, (answered + 1) // 2, len(shown))
    per_label = tuple(_label_score(number, label, found, rows.gold) for number, label in enumerate(rows.labels))
    seen = [one for one in per_label if one.support or any(one.label == rows.labels[at[0]] for s in found for at in s)]
    metrics = Metrics(
        rows=len(rows.gold),
        accuracy=float(np.mean([one == other for one, other in zip(found, rows.gold, strict=True)])),
        macro_f1=float(np.mean([one.f1 for one in seen])) if seen else 0.0,
        mcc=classifier_metrics.matthews(confusion),
        ece=of_words.ece,
        nll=of_words.nll,
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        labels=shown,
        per_label=per_label,
    )
    return {**metrics.as_dict(), "spans": f1_interval(found, rows.gold)}


def f1_interval(found: Sequence[Places], gold: Sequence[Places]) -> dict[str, float]:
    """F1 of all spans, {f1, low, high, spans}: 95 % by resampling texts (percentiles of 1,000 resamples)."""
    counts = np.asarray([(len(one & other), len(one) + len(other)) for one, other in zip(found, gold, strict=True)])
    drawn = np.random.default_rng(_SEED)
    values: list[float] = []
    for _ in range(0, _RESAMPLES, _AT_ONCE):
        chosen = drawn.integers(len(counts), size=(_AT_ONCE, len(counts)))
        hit, total = counts[chosen].sum(axis=1).T
        values += np.divide(2.0 * hit, total, out=np.ones(len(hit)), where=total > 0).tolist()
    hit, total = counts.sum(axis=0)
    low, high = np.percentile(values, (2.5, 97.5))
    spans = sum(map(len, gold))
    return {"f1": float(2 * hit / total) if total else 1.0, "low": float(low), "high": float(high), "spans": spans}


def compare(
    reference: NDArray[np.floating], variant: NDArray[np.floating], rows: WordRows,
    unlabelled: tuple[NDArray[np.floating], NDArray[np.floating], WordRows] | None = None,
) -> PairedScores:  # fmt: skip
    """`paired.compare_logits` by texts: a text is answered rightly, or alike, where all its spans are."""
    found, other = rows.found(reference), rows.found(variant)
    right, also = ([one == gold for one, gold in zip(each, rows.gold, strict=True)] for each in (found, other))
    lost = sum(one and not another for one, another in zip(right, also, strict=True))
    gained = sum(another and not one for one, another in zip(right, also, strict=True))
    loss, count = difference_interval(len(found), lost, gained), len(found)
    if unlabelled is not None:
        found, other = found + unlabelled[2].found(unlabelled[0]), other + unlabelled[2].found(unlabelled[1])
        reference, variant = np.concatenate([reference, unlabelled[0]]), np.concatenate([variant, unlabelled[1]])
    same = sum(one == another for one, another in zip(found, other, strict=True))
    return PairedScores(
        count, lost, gained, (lost - gained) / count, loss.low, loss.high,
        len(found), same / len(found), share_interval(same, len(found)).high, logit_error(reference, variant),
    )  # fmt: skip


def _label_score(number: int, label: str, found: Sequence[Places], gold: Sequence[Places]) -> LabelScore:
    own, due = ({(at, *span) for at, spans in enumerate(each) for span in spans if span[0] == number}
                for each in (found, gold))  # fmt: skip
    hit = len(own & due)
    return LabelScore(
        label=label,
        precision=hit / len(own) if own else 0.0,
        recall=hit / len(due) if due else 0.0,
        f1=2 * hit / (len(own) + len(due)) if own or due else 0.0,
        support=len(due),
    )
