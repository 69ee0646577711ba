"""Answers below a threshold: scores in scope and out of scope apart, and the threshold that serves best. Pure numpy.

A threshold turns answers of a low probability into the out-of-scope label. A file of its own because only the report
needs it; the device's own rule is `edge_agent.tasks.encoders.Classify`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = (0.0, *(round(0.05 * step, 2) for step in range(4, 20)), 0.97, 0.99)
# A threshold that gains less than this share is not worth a key.
_GAIN = 0.01


def scope_scores(
    logits: NDArray[np.floating], gold: Sequence[str], labels: Sequence[str], out_of_scope: str | None, threshold: float
) -> dict[str, Any]:
    """Scores at one threshold, as fractions (None: there are no such rows).

    `answered`: rows that get another label than the out-of-scope one; `in_scope_answered`: the same of the rows in
    scope; `in_scope_right`: of the rows in scope those that get their own label; `out_of_scope_caught`: of the others
    those that get the out-of-scope label; `wrong_caught` and `right_lost`: of the rows that the best class answers
    wrongly (rightly), those whose answer the threshold replaces.
    """
    scores = np.asarray(logits, dtype=np.float64)
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    confidence = powers.max(axis=1) / powers.sum(axis=1)
    names = np.asarray(labels, dtype=object)
    best, truth = names[scores.argmax(axis=1)], np.asarray(gold, dtype=object)
    outside = truth == out_of_scope
    unsure = confidence < threshold
    out = unsure | (best == out_of_scope)
    right = best == truth
    return {
        "threshold": threshold,
        "answered": _share(~out),
        "in_scope_rows": int((~outside).sum()),
        "in_scope_answered": _share(~out[~outside]),
        "in_scope_right": _share((right & ~out)[~outside]),
        "out_of_scope_rows": int(outside.sum()),
        "out_of_scope_caught": _share(out[outside]),
        "wrong_caught": _share(unsure[~right]),
        "right_lost": _share(unsure[right & ~outside]),
    }


def curve(
    logits: NDArray[np.floating], gold: Sequence[str], labels: Sequence[str], out_of_scope: str | None
) -> list[dict[str, Any]]:
    """`scope_scores` at every one of `THRESHOLDS`."""
    return [scope_scores(logits, gold, labels, out_of_scope, threshold) for threshold in THRESHOLDS]


def proposed(points: Sequence[Mapping[str, Any]]) -> float | None:
    """The threshold of a curve that serves best; None where none gains at least a point over no threshold.

    With rows out of scope it is the one with the highest mean of `in_scope_right` and `out_of_scope_caught`; without
    them the one that catches most wrong answers for the right ones that it loses (Youden's index). Choose it on rows
    that the figures are not given for.
    """
    worth = [_worth(point) for point in points]
    best = int(np.argmax(worth))
    return float(points[best]["threshold"]) if worth[best] >= worth[0] + _GAIN else None


def _worth(point: Mapping[str, Any]) -> float:
    if point["out_of_scope_rows"]:
        return float((point["in_scope_right"] or 0.0) + point["out_of_scope_caught"]) / 2.0
    return float((point["wrong_caught"] or 0.0) - (point["right_lost"] or 0.0))


def _share(held: NDArray[np.bool_]) -> float | None:
    return float(held.mean()) if held.size else None
