"""Words of a text, their places, and the classes by which spans are told: for slots, on the device and in training.

A word is what the tokenizer's own first step splits off (by white space and punctuation for a BERT); its label is read
at its first token. Places count characters (code points) of the text as it was given. A word never ends inside what a
reader sees as one character: an accent written apart, a skin tone, an emoji joined by U+200D, a flag.

Every word has one of 2 n + 1 classes for n labels: outside, and for each label its first word and the further ones
(BIO, Ramshaw and Marcus 1995). Of all sequences of classes the likeliest legal one is taken: a further word follows a
word of the same label.

A file of its own because the host labels and measures words by the same rules, and other tasks do without it.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

OUTSIDE = 0
"""The class of a word that no span holds."""
_JOINER = "\u200d"
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_TAGS = range(0xE0020, 0xE0080)
_FLAG_LETTERS = range(0x1F1E6, 0x1F200)
# Vowels and final consonants of Hangul syllables that are written apart.
_JAMO = range(0x1160, 0x1200)


class TextWord(NamedTuple):
    """Characters `start` to `end` of a text; `token` is the place of its first token in the row."""

    token: int
    start: int
    end: int


def is_grapheme_boundary(text: str, at: int) -> bool:
    """Whether `at` lies between two characters as readers see them, or at an end of the text (after UAX #29)."""
    if not 0 < at < len(text):
        return True
    before, after = text[at - 1], text[at]
    code = ord(after)
    if after == _JOINER or unicodedata.category(after).startswith("M") or code in _SKIN_TONES or code in _TAGS:
        return False
    if code in _JAMO or (before == "\r" and after == "\n"):
        return False
    if before == _JOINER and at > 1 and unicodedata.category(after) == "So":
        return False
    if code in _FLAG_LETTERS:
        letters = 0
        while letters < at and ord(text[at - 1 - letters]) in _FLAG_LETTERS:
            letters += 1
        return letters % 2 == 0
    return True


def words_of(text: str, encoding: Any, max_tokens: int, skipped: int = 0) -> list[TextWord]:
    """The words of `text` whose first token is among the first `max_tokens` of its row less special ones at its end.

    `encoding` is that of the `tokenizers` library for the whole text, uncut, with `skipped` characters (a prompt)
    before it. Two words that share a character as readers see it are one.
    """
    word_ids, offsets, ends = encoding.word_ids, encoding.offsets, 0
    while ends < len(word_ids) and encoding.special_tokens_mask[-1 - ends]:
        ends += 1
    kept = min(len(word_ids), max_tokens) - ends
    found: list[TextWord] = []
    place = 0
    while place < len(word_ids):
        first, number = place, word_ids[place]
        while place < len(word_ids) and word_ids[place] == number:
            place += 1
        if number is None or first >= kept:
            continue
        start, end = (max(0, at - skipped) for at in (offsets[first][0], offsets[place - 1][1]))
        # The offsets of some tokenizers count the space before a word.
        while start < end and text[start].isspace():
            start += 1
        if start >= end:
            continue
        while not is_grapheme_boundary(text, start):
            start -= 1
        while not is_grapheme_boundary(text, end):
            end += 1
        if found and start < found[-1].end:
            found[-1] = found[-1]._replace(end=max(end, found[-1].end))
        else:
            found.append(TextWord(first, start, end))
    return found


class WordSpan(NamedTuple):
    """Words `first` to `last` (both of them) with label number `label`."""

    label: int
    first: int
    last: int


def classes(labels: int) -> int:
    """The number of a word's classes for so many labels."""
    return 2 * labels + 1


def first_word(label: int) -> int:
    """The class of the first word of a span; that of its further words is the next one."""
    return 2 * label + 1


def decode(scores: Sequence[Sequence[float]]) -> list[int]:
    """The legal classes of words whose sum of `scores` [words][classes] (log-probabilities) is the largest (Viterbi).

    Linear in words and in classes: any class may follow any other, but a further word's only the two of its label.
    """
    if not scores:
        return []
    width = len(scores[0])
    further = range(2, width, 2)
    best = list(scores[0])
    for at in further:
        best[at] = -math.inf
    came: list[list[int]] = []
    for row in scores[1:]:
        top = max(range(width), key=best.__getitem__)
        back = [top] * width
        for at in further:
            back[at] = at if best[at] >= best[at - 1] else at - 1
        came.append(back)
        best = [best[back[at]] + row[at] for at in range(width)]
    path = [max(range(width), key=best.__getitem__)]
    for back in reversed(came):
        path.append(back[path[-1]])
    return path[::-1]


def spans_of(path: Sequence[int]) -> list[WordSpan]:
    """The spans of a legal sequence of classes."""
    starts = [at for at, found in enumerate(path) if found % 2]
    spans = []
    for start in starts:
        stop = start + 1
        while stop < len(path) and path[stop] == path[start] + 1:
            stop += 1
        spans.append(WordSpan((path[start] - 1) // 2, start, stop - 1))
    return spans


def path_of(words: Sequence[TextWord], spans: Sequence[tuple[int, int, int]]) -> list[int]:
    """The classes of words by spans (label number, first character, end) that begin and end with words."""
    path = [OUTSIDE] * len(words)
    for label, start, end in spans:
        inside = [place for place, word in enumerate(words) if start <= word.start < end]
        for place in inside:
            path[place] = first_word(label) + (place != inside[0])
    return path


def is_legal(path: Sequence[int]) -> bool:
    """Whether every further word follows a word of its label."""
    return all(after % 2 or not after or before in (after, after - 1) for before, after in pairwise([OUTSIDE, *path]))


def log_softmax(logits: Sequence[float]) -> list[float]:
    """log(exp(x) / sum(exp(x))), shifted by the maximum so that nothing overflows."""
    highest = max(logits)
    total = highest + math.log(sum(math.exp(value - highest) for value in logits))
    return [value - total for value in logits]
