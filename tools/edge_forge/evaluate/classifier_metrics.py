"""Scores of a classifier from its logits: pure numpy, no file, no model.

The plan chooses the rows; `evaluate.predict` and `measure_onnx` compute the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.base.errors import ConfigError
from edge_agent.bundle.drift_reference import fragmentation_histogram, histogram

# Guo et al. 2017 use 15 equal-width bins in every table; fewer hides errors, more starves the bins.
ECE_BINS = 15


@dataclass(frozen=True)
class LabelScore:
    """Scores of one label: precision, recall and F1 in 0..1, and how many gold rows carry it."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Metrics:
    """Scores of one set of predictions. All are fractions (0..1), but `mcc` in -1..1 and `nll` in nats."""

    rows: int
    accuracy: float
    macro_f1: float
    mcc: float
    ece: float
    nll: float
    # confusion[i][j]: rows whose gold label is labels[i] and whose predicted label is labels[j].
    confusion: tuple[tuple[int, ...], ...]
    labels: tuple[str, ...]
    per_label: tuple[LabelScore, ...]

    def as_dict(self) -> dict[str, object]:
        """The same as plain JSON values."""
        return asdict(self)


def confidence_shares(logits: NDArray[np.floating]) -> list[float]:
    """Shares of rows by their top probability in ten bins: what a device compares its own answers with (drift)."""
    scores = np.asarray(logits, dtype=np.float64)
    top = np.exp(scores - _log_sum_exp(scores)).max(axis=1)
    counts = histogram([float(value) for value in top])
    return [count / max(1, len(top)) for count in counts]


def fragmentation_shares(texts: Sequence[tuple[int, int, int | None]]) -> list[float]:
    """Shares of texts, each (bytes, tokens, unknown ones), by tokens per byte in ten bins: the same for drift."""
    counts = fragmentation_histogram(text[:2] for text in texts)
    return [count / max(1, len(texts)) for count in counts]


def unknown_share(texts: Sequence[tuple[int, int, int | None]]) -> float | None:
    """Unknown tokens as a share of all tokens of the texts; None where the tokenizer has no unknown token."""
    known = [unknown for _, _, unknown in texts if unknown is not None]
    total = sum(tokens for _, tokens, _ in texts)
    return sum(known) / total if known and total else None


def evaluate(logits: NDArray[np.floating], gold: Sequence[str] | Sequence[int], labels: Sequence[str]) -> Metrics:
    """Score `logits` [rows, labels] against `gold` (label names or indices into `labels`).

    Raises ConfigError when shapes disagree, a gold label is unknown, there are no rows, or a logit is not finite.
    """
    scores = np.asarray(logits, dtype=np.float64)
    truth = _indices(gold, labels)
    if scores.ndim != 2 or scores.shape[1] != len(labels) or scores.shape[0] != len(truth):
        raise ConfigError(
            f"logits of shape {list(scores.shape)} do not fit {len(truth)} rows and {len(labels)} labels",
            "evaluation",
            "score each row against the labels it was trained with",
        )
    if not len(truth):
        raise ConfigError("there are no rows to score", "evaluation", "give the split at least one row")
    if not np.isfinite(scores).all():
        raise ConfigError("some logits are not finite", "evaluation", "lower learning_rate or use precision = 'fp32'")
    log_probabilities = scores - _log_sum_exp(scores)
    predicted = scores.argmax(axis=1)
    confusion = confusion_matrix(truth, predicted, len(labels))
    per_label = _per_label(confusion, labels)
    seen = [
        score for score, row, column in zip(per_label, confusion, confusion.T, strict=True) if row.sum() + column.sum()
    ]
    return Metrics(
        rows=len(truth),
        accuracy=float((predicted == truth).mean()),
        macro_f1=float(np.mean([score.f1 for score in seen])),
        mcc=matthews(confusion),
        ece=expected_calibration_error(np.exp(log_probabilities), truth),
        nll=float(-log_probabilities[np.arange(len(truth)), truth].mean()),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        labels=tuple(labels),
        per_label=per_label,
    )


def confusion_matrix(truth: NDArray[np.intp], predicted: NDArray[np.intp], labels: int) -> NDArray[np.int64]:
    """Counts [labels, labels]: row = gold, column = predicted."""
    flat = np.bincount(truth * labels + predicted, minlength=labels * labels)
    return flat.reshape(labels, labels).astype(np.int64)


def matthews(confusion: NDArray[np.int64]) -> float:
    """Matthews correlation for any number of labels, R_K of Gorodkin 2004 (eq. 8 by counts); 0 where undefined.

    R_K = (c s - sum_k p_k t_k) / sqrt((s^2 - sum p_k^2)(s^2 - sum t_k^2)), with c the rows on the diagonal,
    s all rows, t_k the gold and p_k the predicted rows of label k.
    """
    counts = confusion.astype(np.float64)
    total, correct = counts.sum(), np.trace(counts)
    gold, predicted = counts.sum(axis=1), counts.sum(axis=0)
    spread = (total**2 - (predicted**2).sum()) * (total**2 - (gold**2).sum())
    if spread <= 0:
        return 0.0
    return float((correct * total - (predicted * gold).sum()) / np.sqrt(spread))


def expected_calibration_error(
    probabilities: NDArray[np.float64], truth: NDArray[np.intp], bins: int = ECE_BINS
) -> float:
    """Expected calibration error, Guo et al. 2017 ("On Calibration of Modern Neural Networks", eq. 3), in 0..1.

    ECE = sum_m |B_m|/n * |acc(B_m) - conf(B_m)| over equal-width bins ((m-1)/M, m/M] of the top probability.
    """
    confidence = probabilities.max(axis=1)
    right = (probabilities.argmax(axis=1) == truth).astype(np.float64)
    place = np.clip(np.ceil(confidence * bins).astype(np.intp) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(truth))


def _indices(gold: Sequence[str] | Sequence[int], labels: Sequence[str]) -> NDArray[np.intp]:
    place = {label: index for index, label in enumerate(labels)}
    found: list[int] = []
    values: list[str | int] = list(gold)
    for row, value in enumerate(values):
        index = place.get(value, -1) if isinstance(value, str) else int(value)
        if not 0 <= index < len(labels):
            raise ConfigError(f"row {row} has the unknown label {value!r}", "evaluation", "add it to the task's labels")
        found.append(index)
    return np.asarray(found, dtype=np.intp)


def _log_sum_exp(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    top = scores.max(axis=1, keepdims=True)
    total: NDArray[np.float64] = top + np.log(np.exp(scores - top).sum(axis=1, keepdims=True))
    return total


def _per_label(confusion: NDArray[np.int64], labels: Sequence[str]) -> tuple[LabelScore, ...]:
    scores = []
    for index, label in enumerate(labels):
        hit = float(confusion[index, index])
        support, guessed = int(confusion[index].sum()), int(confusion[:, index].sum())
        scores.append(
            LabelScore(
                label=label,
                precision=hit / guessed if guessed else 0.0,
                recall=hit / support if support else 0.0,
                f1=2 * hit / (support + guessed) if support + guessed else 0.0,
                support=support,
            )
        )
    return tuple(scores)
