"""Token classes: spans of a text with labels ("set the [kitchen: room] to [21 degrees: temperature]").

Words and their classes are in `base.words`. A file of its own because a classifier's worker does not load it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from edge_agent.base.causes import Cause
from edge_agent.base.errors import BackendError, RequestError, brief
from edge_agent.base.texts import Text
from edge_agent.base.words import TextWord, classes, decode, log_softmax, spans_of
from edge_agent.protocol.worker_messages import TaskFields
from edge_agent.tasks.api import Prepared, Task, refuse_unknown


class PreparedWords(NamedTuple):
    """A text and its words, kept for the answer."""

    text: str
    words: Sequence[TextWord]


class SlotFilling(Task):
    """Spans with labels, from logits of every token. The score of a span is the mean probability of its words' classes;
    with `threshold` spans below it are left out."""

    def __init__(self, tokenizer: Any, task: TaskFields) -> None:
        super().__init__(tokenizer, False)
        self._labels = task.labels
        if not self._labels:
            raise BackendError("a model of slots needs at least one label", "task")
        if not hasattr(tokenizer, "words"):
            raise BackendError("a model of slots needs a tokenizer that splits words", "task")

    def check(self, params: Mapping[str, Any]) -> None:
        """`threshold` (0 to 1)."""
        refuse_unknown(params, ("threshold",))
        threshold = params.get("threshold", 0.0)
        if not isinstance(threshold, (int, float)) or isinstance(threshold, bool) or not 0 <= threshold <= 1:
            raise RequestError(422, Cause.INVALID, f"threshold is {brief(threshold)}; a number from 0 to 1 is needed")

    def prepare(self, texts: Sequence[Text], params: Mapping[str, Any]) -> Prepared:
        """See `Task.prepare`."""
        prepared = super().prepare(texts, params)
        words = [PreparedWords(text, self._tokenizer.words(text)) for text in texts if isinstance(text, str)]
        return prepared._replace(words=words)

    def answer(self, outputs: Mapping[str, Any], prepared: Prepared, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """See `Task.answer`. Raises BackendError when the model has another number of labels."""
        logits = outputs.get("logits")
        wanted = classes(len(self._labels))
        if logits is None or getattr(logits[0], "ndim", 0) != 2 or logits[0].shape[1] != wanted:
            raise BackendError(f"the model gives no logits of every token for {len(self._labels)} labels", "task")
        threshold = float(params.get("threshold", 0.0))
        return [self._one(place, row, prepared, threshold) for place, row in enumerate(logits)]

    def _one(self, place: int, logits: Any, prepared: Prepared, threshold: float) -> dict[str, Any]:
        text, words = prepared.words[place]
        scores = [log_softmax([float(value) for value in logits[word.token]]) for word in words]
        path = decode(scores)
        spans = []
        for span in spans_of(path):
            inside = range(span.first, span.last + 1)
            score = sum(math.exp(scores[at][path[at]]) for at in inside) / len(inside)
            if score >= threshold:
                start, end = words[span.first].start, words[span.last].end
                spans.append({"label": self._labels[span.label], "start": start, "end": end,
                              "text": text[start:end], "score": score})  # fmt: skip
        return {"spans": spans, "tokens": prepared.tokens[place], "truncated": prepared.truncated[place]}
