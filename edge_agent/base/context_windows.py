"""Windows of a long context, and the answer to a question as a span of it: for extractive question answering, on the
device and in training.

A question and its context are one row (`[CLS] question [SEP] context [SEP]` of a BERT). A context that does not fit is
read in windows: the row with every part of the context in turn, neighbouring parts sharing some tokens (Devlin et al.
2019). A model gives each token of a window two logits, of the answer's start and of its end; the row's first token
stands for "the answer is not in this window". Places count characters (code points) of the context as it was given.

A file of its own because the host trains and measures by the same rules, and other tasks do without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from edge_agent.base.words import is_grapheme_boundary, log_softmax

START, END = 0, 1
"""Columns of a token's logits."""
LOGITS = 2
LEAST_CONTEXT = 8
"""Tokens of the context that a window has at least; a question that leaves less room is refused."""


class ContextWindow(NamedTuple):
    """One row: its token ids, the place of the first token of the context in it, and the characters (start, end) of
    each of these tokens in the context."""

    ids: list[int]
    first: int
    places: list[tuple[int, int]]

    @property
    def positions(self) -> list[int]:
        """The tokens that compete for start and end: the first of the row, which says that neither is here, and those
        of the context."""
        return [0, *range(self.first, self.first + len(self.places))]


class AnswerSpan(NamedTuple):
    """Characters `start` to `end` of the context. `score` is the probability of that start times that of that end,
    among the tokens of its window."""

    start: int
    end: int
    score: float


def windows_of(encoding: Any, max_tokens: int, overlap: int, most: int) -> list[ContextWindow] | None:
    """The rows of a question and its context, each of `max_tokens` at most; None where the question is too long.

    `encoding` is that of the `tokenizers` library for the pair, uncut. Neighbouring windows share `overlap` tokens of
    the context, or half of a window where a long question leaves less room. Of more than `most` windows `most` + 1 are
    given, so that the caller sees it.
    """
    inside = [at for at, number in enumerate(encoding.sequence_ids) if number == 1]
    ids, offsets = encoding.ids, encoding.offsets
    first, stop = (inside[0], inside[-1] + 1) if inside else (len(ids) - 1, len(ids) - 1)
    before, after = ids[:first], ids[stop:]
    room = max_tokens - len(before) - len(after)
    if room < min(LEAST_CONTEXT, len(inside)) or room < 1:
        return None
    step = room - min(overlap, room // 2)
    found: list[ContextWindow] = []
    at = first
    while len(found) <= most:
        end = min(stop, at + room)
        found.append(ContextWindow([*before, *ids[at:end], *after], first, [tuple(one) for one in offsets[at:end]]))
        if end == stop:
            break
        at += step
    return found


def best_span(
    text: str, windows: Iterable[tuple[ContextWindow, Sequence[Sequence[float]]]], most_tokens: int
) -> tuple[AnswerSpan | None, float]:
    """(the likeliest answer, the probability that there is none) in the context `text`.

    Each window comes with the logits [tokens][2] of its `positions`. An answer has `most_tokens` at most. None for an
    answer: the context has no token that stands for anything that is seen. That there is none is as likely as in the
    window that doubts it most.
    """
    best: AnswerSpan | None = None
    none = 1.0
    for window, logits in windows:
        starts, ends = (log_softmax([one[column] for one in logits]) for column in (START, END))
        none = min(none, math.exp(starts[0] + ends[0]))
        found = _likeliest(starts[1:], ends[1:], most_tokens)
        if found is None or (best is not None and math.exp(found[0]) <= best.score):
            continue
        _, first, last = found
        place = _seen(text, window.places[first][0], window.places[last][1])
        if place is not None:
            best = AnswerSpan(*place, math.exp(found[0]))
    return best, none


def answered(span: AnswerSpan | None, none: float, no_answer: bool, threshold: float = 0.0) -> AnswerSpan | None:
    """What is answered: the likeliest span, or None where its score is below `threshold`, or where a model that knows
    questions without an answer (`no_answer`) finds it likelier that there is none."""
    if span is None or span.score < threshold or (no_answer and none > span.score):
        return None
    return span


def _likeliest(
    starts: Sequence[float], ends: Sequence[float], most_tokens: int
) -> tuple[float, int, int] | None:  # fmt: skip
    """(sum of log-probabilities, first token, last one) of the likeliest span; None without tokens."""
    best: tuple[float, int, int] | None = None
    for first, start in enumerate(starts):
        end = max(ends[first : first + most_tokens])
        if best is None or start + end > best[0]:
            best = (start + end, first, ends.index(end, first))
    return best


def _seen(text: str, start: int, end: int) -> tuple[int, int] | None:
    """The place without white space at its ends, and with whole characters as readers see them; None where nothing is
    left. Offsets of some tokenizers count the space before a word."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    if start >= end:
        return None
    while not is_grapheme_boundary(text, start):
        start -= 1
    while not is_grapheme_boundary(text, end):
        end += 1
    return start, end


def token_places(window: ContextWindow, start: int, end: int) -> tuple[int, int]:
    """The places in the row of the first and the last token that hold characters `start` to `end` of the context; both
    0 where the window does not hold all of them."""
    places = window.places
    if not places or start < places[0][0] or end > places[-1][1]:
        return 0, 0
    touching = [at for at, (first, last) in enumerate(places) if first < end and start < last]
    if not touching:
        return 0, 0
    return window.first + touching[0], window.first + touching[-1]
