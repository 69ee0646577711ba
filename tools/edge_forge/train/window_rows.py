"""Questions by windows of their contexts: the rows that training is given, and the answers that logits say.

A file of its own because training, scores and the comparison of variants need the same windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_agent.base.context_windows import (
    LEAST_CONTEXT,
    LOGITS,
    AnswerSpan,
    ContextWindow,
    answered,
    best_span,
    token_places,
    windows_of,
)
from edge_agent.base.errors import ConfigError
from edge_agent.base.limits import ANSWER_WINDOWS
from edge_forge.data.answer_rows import GoldAnswer, answers_of, question_of
from edge_forge.data.classifier_rows import Row
from edge_forge.models import bases

CLASSES = ("start", "end")
"""What the two logits of a token stand for."""


class WindowForm(NamedTuple):
    """How questions and contexts become rows: tokens of a row, tokens that neighbours share, the base's prompt."""

    max_tokens: int
    overlap: int
    prompt: str = ""


class FoundAnswer(NamedTuple):
    """What logits say of one question: the answer (None: there is none), the probability of the best span, and of
    there being none."""

    span: AnswerSpan | None
    score: float
    none: float

    @property
    def place(self) -> tuple[int, int] | None:
        """First character and end; None without an answer."""
        return None if self.span is None else (self.span.start, self.span.end)


def each_question(
    tokenizer: Path, rows: Sequence[Row], form: WindowForm
) -> Iterator[tuple[Row, list[ContextWindow]]]:  # fmt: skip
    """Every row with its windows, as a device reads it. Raises ConfigError that quotes what does not fit a device."""
    library = bases.plain_tokenizer(tokenizer.read_text(encoding="utf-8"))
    for row in rows:
        question, context = question_of(row)
        found = windows_of(
            library.encode(form.prompt + question, context), form.max_tokens, form.overlap, ANSWER_WINDOWS
        )
        if found is None:
            raise ConfigError(
                f"the question {question[:60]!r} leaves no room for {LEAST_CONTEXT} tokens of its context in "
                f"max_tokens = {form.max_tokens}", "data", "shorten it, or raise task.max_tokens",
            )  # fmt: skip
        if len(found) > ANSWER_WINDOWS:
            raise ConfigError(
                f"the context of {question[:60]!r} takes more than {ANSWER_WINDOWS} windows of {form.max_tokens} "
                "tokens", "data", "take parts of it, or raise task.max_tokens",
            )  # fmt: skip
        yield row, found


def targets_of(row: Row, windows: Sequence[ContextWindow]) -> list[tuple[int, int]]:
    """The tokens of start and end in each window: of the first answer that the window holds whole, else 0 and 0."""
    answers = answers_of(row)
    found = []
    for window in windows:
        places = [token_places(window, one.start, one.end) for one in answers]
        found.append(next((place for place in places if place != (0, 0)), (0, 0)))
    return found


@dataclass(frozen=True)
class WindowRows:
    """Questions with the windows of their contexts and their gold answers. `no_answer`: a model may say that there is
    none; `answer_tokens`: the longest answer."""

    contexts: tuple[str, ...]
    windows: tuple[list[ContextWindow], ...]
    gold: tuple[tuple[GoldAnswer, ...], ...]
    targets: tuple[list[tuple[int, int]], ...]
    answer_tokens: int
    no_answer: bool

    @classmethod
    def read(
        cls, tokenizer: Path, rows: Sequence[Row], form: WindowForm, answer_tokens: int, no_answer: bool
    ) -> WindowRows:
        """Raises ConfigError as `each_question`."""
        found = list(each_question(tokenizer, rows, form))
        return cls(
            tuple(question_of(row)[1] for row, _ in found), tuple(windows for _, windows in found),
            tuple(answers_of(row) for row, _ in found), tuple(targets_of(row, windows) for row, windows in found),
            answer_tokens, no_answer,
        )  # fmt: skip

    @property
    def ids(self) -> list[list[int]]:
        """Token ids of every window, question by question."""
        return [window.ids for windows in self.windows for window in windows]

    def of_positions(self, of_tokens: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Logits [tokens that compete in all windows, 2] out of those of all tokens of each window."""
        every = (window for windows in self.windows for window in windows)
        found = [one[window.positions] for one, window in zip(of_tokens, every, strict=True)]
        return np.concatenate(found) if found else np.zeros((0, LOGITS), np.float32)

    def by_window(self, logits: NDArray[np.floating]) -> Iterator[NDArray[np.floating]]:
        """The parts of `of_positions`, window by window."""
        first = 0
        for windows in self.windows:
            for window in windows:
                stop = first + 1 + len(window.places)
                yield logits[first:stop]
                first = stop

    def found(self, logits: NDArray[np.floating]) -> list[FoundAnswer]:
        """What a device answers to each question by these logits (`of_positions`)."""
        parts = self.by_window(logits)
        answers = []
        for context, windows in zip(self.contexts, self.windows, strict=True):
            own = [(window, next(parts).tolist()) for window in windows]
            span, none = best_span(context, own, self.answer_tokens)
            answers.append(FoundAnswer(answered(span, none, self.no_answer), span.score if span else 0.0, none))
        return answers

    def text(self, number: int, found: FoundAnswer) -> str:
        """The answer to a question as text, '' for none."""
        return "" if found.place is None else self.contexts[number][slice(*found.place)]

    @property
    def unreachable(self) -> list[int]:
        """Numbers of the questions that have an answer, and none that a window holds whole within `answer_tokens`."""
        return [
            number
            for number, (answers, targets) in enumerate(zip(self.gold, self.targets, strict=True))
            if answers and not any(end and end - start < self.answer_tokens for start, end in targets)
        ]
