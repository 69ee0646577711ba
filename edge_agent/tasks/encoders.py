"""Tasks of encoders: classification (labels with scores, top-k, threshold, out-of-scope) and sentence embeddings.

A file of its own because a generator's worker does not load it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edge_agent.base.causes import Cause
from edge_agent.base.errors import BackendError, RequestError, brief
from edge_agent.protocol.worker_messages import TaskFields
from edge_agent.tasks.api import Prepared, Task, refuse_unknown


class Classify(Task):
    """Scores are the softmax of the logits; labels are in logit order.

    Below the threshold `label` is the task's out-of-scope label, where it names one, and `out_of_scope` is true; the
    best class stays first in `labels`, and `score` is its probability.
    """

    def __init__(self, tokenizer: Any, task: TaskFields) -> None:
        super().__init__(tokenizer, task.pairs)
        self._labels = task.labels
        self._threshold = task.threshold
        self._out_of_scope = task.out_of_scope
        if len(self._labels) < 2:
            raise BackendError(f"a classifier needs at least two labels, {len(self._labels)} given", "task")

    def check(self, params: Mapping[str, Any]) -> None:
        """`top_k` (1 to the number of labels) and `threshold` (0 to 1)."""
        refuse_unknown(params, ("top_k", "threshold"))
        top_k, threshold = params.get("top_k", 1), params.get("threshold", 0.0)
        if not isinstance(top_k, int) or isinstance(top_k, bool) or not 1 <= top_k <= len(self._labels):
            raise RequestError(422, Cause.INVALID, f"top_k is {brief(top_k)}; 1 to {len(self._labels)} are possible")
        if not isinstance(threshold, (int, float)) or isinstance(threshold, bool) or not 0 <= threshold <= 1:
            raise RequestError(422, Cause.INVALID, f"threshold is {brief(threshold)}; a number from 0 to 1 is needed")

    def answer(self, outputs: Mapping[str, Any], prepared: Prepared, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """See `Task.answer`. Raises BackendError when the model has another number of labels."""
        logits = outputs.get("logits")
        if logits is None or len(logits[0]) < len(self._labels):
            raise BackendError(f"the model gives no logits for {len(self._labels)} labels", "task")
        top_k = params.get("top_k", 1)
        threshold = float(params.get("threshold", self._threshold))
        return [self._one(place, row, prepared, top_k, threshold) for place, row in enumerate(logits)]

    def _one(
        self, place: int, logits: Sequence[float], prepared: Prepared, top_k: int, threshold: float
    ) -> dict[str, Any]:
        scores = softmax([float(value) for value in logits[: len(self._labels)]])
        ranked = sorted(range(len(scores)), key=lambda index: -scores[index])
        best = ranked[0]
        unsure = scores[best] < threshold
        return {
            "label": self._out_of_scope if unsure and self._out_of_scope is not None else self._labels[best],
            "score": scores[best],
            "labels": [{"label": self._labels[index], "score": scores[index]} for index in ranked[:top_k]],
            "out_of_scope": unsure or self._labels[best] == self._out_of_scope,
            "tokens": prepared.tokens[place],
            "truncated": prepared.truncated[place],
        }


def softmax(logits: Sequence[float]) -> list[float]:
    """exp(x) / sum(exp(x)), shifted by the maximum so that nothing overflows."""
    highest = max(logits)
    powers = [math.exp(value - highest) for value in logits]
    total = sum(powers)
    return [power / total for power in powers]


DECIMALS = 6
"""Six decimals take half of the bytes of a message, and their error is far below that of INT8."""


class Embed(Task):
    """Sentence embeddings: the features scaled to length 1, so that a dot product is the cosine. No parameters."""

    def check(self, params: Mapping[str, Any]) -> None:
        """See `Task.check`."""
        refuse_unknown(params, ())

    def answer(self, outputs: Mapping[str, Any], prepared: Prepared, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """See `Task.answer`."""
        results = []
        for place, row in enumerate(outputs["features"]):
            values = [float(value) for value in row]
            length = math.sqrt(sum(value * value for value in values)) or 1.0
            results.append(
                {
                    "embedding": [round(value / length, DECIMALS) for value in values],
                    "tokens": prepared.tokens[place],
                    "truncated": prepared.truncated[place],
                }
            )
        return results
