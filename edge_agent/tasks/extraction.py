"""Extractive question answering: the span of a context that answers a question, or that there is none.

Windows, places and the choice of the span are in `base.context_windows`. A file of its own because a classifier's
worker does not load it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edge_agent.base.causes import Cause
from edge_agent.base.context_windows import LEAST_CONTEXT, LOGITS, answered, best_span
from edge_agent.base.errors import BackendError, RequestError, brief
from edge_agent.base.limits import ANSWER_WINDOWS
from edge_agent.base.texts import Text, parts_of
from edge_agent.protocol.worker_messages import TaskFields
from edge_agent.tasks.api import Prepared, Task, refuse_unknown
from edge_agent.tasks.tokens import EncodedText, wording

if TYPE_CHECKING:
    from edge_agent.base.context_windows import ContextWindow


class ExtractAnswers(Task):
    """The likeliest span of a context, from logits [tokens, 2] of each of its windows.

    There is no answer where a model that knows such questions finds that likelier than the best span, and where the
    span's score is below `threshold`.
    """

    def __init__(self, tokenizer: Any, task: TaskFields) -> None:
        super().__init__(tokenizer, True)
        self._task = task
        if not hasattr(tokenizer, "windows"):
            raise BackendError("a model of answers needs a tokenizer that joins a question and its context", "task")
        if not task.answer_tokens:
            raise BackendError("a model of answers needs answer_tokens, the longest answer", "task")

    def check(self, params: Mapping[str, Any]) -> None:
        """`threshold` (0 to 1)."""
        refuse_unknown(params, ("threshold",))
        threshold = params.get("threshold", 0.0)
        if not isinstance(threshold, (int, float)) or isinstance(threshold, bool) or not 0 <= threshold <= 1:
            raise RequestError(422, Cause.INVALID, f"threshold is {brief(threshold)}; a number from 0 to 1 is needed")

    def prepare(self, texts: Sequence[Text], params: Mapping[str, Any]) -> Prepared:
        """See `Task.prepare`. Also raises RequestError 422 for a question that leaves no room for its context, and 413
        for contexts of more than `ANSWER_WINDOWS` windows in all."""
        self.refuse_unfit(texts, params)
        most, rows = self._task.max_tokens, 0
        found: list[tuple[EncodedText, tuple[str, list[ContextWindow]]]] = []
        for text in texts:
            question, context = parts_of(text)
            whole, windows = self._tokenizer.windows(question, context, self._task.window_overlap, ANSWER_WINDOWS)
            if not windows:
                raise RequestError(
                    422, Cause.INVALID,
                    f"the question {brief(question)} leaves no room for {LEAST_CONTEXT} tokens of its context in the "
                    f"{most} that the model reads at once: shorten it",
                )  # fmt: skip
            rows += len(windows)
            if rows > ANSWER_WINDOWS:
                what = "question and context have" if len(texts) == 1 else "the questions and contexts up to this have"
                tokens = whole.tokens + sum(before.tokens for before, _ in found)
                raise RequestError(
                    413, Cause.TOO_LARGE,
                    f"{what} {tokens} tokens, which take more than {ANSWER_WINDOWS} windows "
                    f"of {most}: ask about a part of the context" + (", or fewer questions" if len(texts) > 1 else ""),
                )  # fmt: skip
            found.append((whole, (context, windows)))
        return Prepared(
            [window.ids for _, (_, windows) in found for window in windows],
            [whole.tokens for whole, _ in found],
            [False] * len(found),
            {},
            wording(texts, [whole for whole, _ in found]),
            windows=[windows for _, windows in found],
        )

    def answer(self, outputs: Mapping[str, Any], prepared: Prepared, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """See `Task.answer`. Raises BackendError when the model does not give two logits of every token."""
        logits = outputs.get("logits")
        if logits is None or getattr(logits[0], "ndim", 0) != 2 or logits[0].shape[1] != LOGITS:
            raise BackendError("the model gives no logits of start and end for every token", "task")
        threshold, rows = float(params.get("threshold", 0.0)), iter(logits)
        found = []
        for place, (context, windows) in enumerate(prepared.windows):
            own = [(window, next(rows)[window.positions].tolist()) for window in windows]
            span, none = best_span(context, own, self._task.answer_tokens)
            said = answered(span, none, self._task.no_answer, threshold)
            found.append({
                "answer": None if said is None else context[said.start : said.end],
                "start": None if said is None else said.start,
                "end": None if said is None else said.end,
                "score": 0.0 if span is None else span.score,
                "no_answer_score": none,
                "tokens": prepared.tokens[place],
                "windows": len(windows),
            })  # fmt: skip
        return found
