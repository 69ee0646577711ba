"""Rows of slots by words: the classes that training is given, and the spans that logits of words say.

A file of its own because training, scores and the comparison of variants need the same words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_agent.base.words import TextWord, classes, decode, log_softmax, path_of, spans_of, words_of
from edge_forge.data import slot_rows
from edge_forge.data.classifier_rows import Row
from edge_forge.models import bases

Places = frozenset[tuple[int, int, int]]
"""Spans of a text: (number of the label, first character, end)."""


def class_names(labels: Sequence[str]) -> tuple[str, ...]:
    """The classes of a word: 'O', and 'B-' and 'I-' of each label."""
    return ("O", *(f"{mark}-{label}" for label in labels for mark in "BI"))


def labels_of(names: Sequence[str]) -> tuple[str, ...]:
    """The labels of which these are the classes."""
    return tuple(name[2:] for name in names[1::2])


@dataclass(frozen=True)
class WordRows:
    """Rows by words: per text its words, their gold classes, and its gold spans."""

    labels: tuple[str, ...]
    words: tuple[Sequence[TextWord], ...]
    paths: tuple[list[int], ...]
    gold: tuple[Places, ...]

    @classmethod
    def read(cls, tokenizer: Path, rows: Sequence[Row], labels: Sequence[str], bounds: tuple[int, str]) -> WordRows:
        """`bounds`: the most tokens of a text, and the base's prompt."""
        place = {label: number for number, label in enumerate(labels)}
        most, prompt = bounds
        library = bases.plain_tokenizer(tokenizer.read_text(encoding="utf-8"))
        texts = [str(row.text) for row in rows]
        words = [words_of(text, library.encode(prompt + text), most, len(prompt)) for text in texts]
        gold = [frozenset((place[one.label], one.start, one.end) for one in slot_rows.spans_of(row)) for row in rows]
        paths = tuple(
            path_of(one, sorted(spans, key=lambda span: span[1])) for one, spans in zip(words, gold, strict=True)
        )
        return cls(tuple(labels), tuple(words), paths, tuple(gold))

    def of_words(self, of_tokens: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Logits [words of all texts, classes] out of those of tokens."""
        width = classes(len(self.labels))
        found = [one[[word.token for word in words]] for one, words in zip(of_tokens, self.words, strict=True) if words]
        return np.concatenate(found) if found else np.zeros((0, width), np.float32)

    def found(self, logits: NDArray[np.floating]) -> list[Places]:
        """The spans of each text by logits of the words."""
        spans, first = [], 0
        for words in self.words:
            path = decode([log_softmax(row) for row in logits[first : first + len(words)].tolist()])
            first += len(words)
            spans.append(frozenset((one.label, words[one.first].start, words[one.last].end) for one in spans_of(path)))
        return spans

    def right(self, logits: NDArray[np.floating]) -> list[bool]:
        """Whether the spans of each text are exactly those of its row."""
        return [one == other for one, other in zip(self.found(logits), self.gold, strict=True)]

    @property
    def beside_words(self) -> list[tuple[int, int, int, int]]:
        """(text, label, start, end) of gold spans that begin or end within a word, or lie beyond the last one read."""
        return [
            (place, *span)
            for place, (words, spans) in enumerate(zip(self.words, self.gold, strict=True))
            for span in sorted(spans)
            if span[1] not in {word.start for word in words} or span[2] not in {word.end for word in words}
        ]
