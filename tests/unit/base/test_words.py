"""Places between characters, classes of words, and the spans that legal classes tell: what needs no tokenizer."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.words import (
    TextWord,
    classes,
    decode,
    is_grapheme_boundary,
    is_legal,
    log_softmax,
    path_of,
    spans_of,
)

PATHS = st.lists(st.integers(0, 6), max_size=12)


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("e\u0301x", {1}),
        ("👩\u200d👧", {1, 2}),
        ("👍🏽a", {1}),
        ("🇩🇪🇫🇷", {1, 3}),
        ("❤\ufe0fa", {1}),
        ("\r\na", {1}),
        ("ab", set()),
    ],
)
def test_places_within_a_character_are_known(text, inside):
    assert {at for at in range(len(text) + 1) if not is_grapheme_boundary(text, at)} == inside


def legal(words, width):
    return [path for path in itertools.product(range(width), repeat=words) if is_legal(path)]


@given(st.integers(1, 4), st.integers(1, 2), st.data())
def test_decoding_finds_the_best_of_all_legal_sequences(words, labels, data):
    width = classes(labels)
    row = st.lists(st.floats(-9.0, 0.0), min_size=width, max_size=width)
    scores = data.draw(st.lists(row, min_size=words, max_size=words))

    def total(path):
        return sum(one[at] for one, at in zip(scores, path, strict=True))

    found = decode(scores)
    assert is_legal(found)
    assert total(found) == pytest.approx(max(map(total, legal(words, width))))


def test_a_further_word_is_never_the_first_of_a_span():
    sure = [log_softmax([0.0, 0.0, 9.0])]
    assert decode(sure) != [2] and decode([]) == []
    assert spans_of(decode(sure * 2)) == [(0, 0, 1)], "a likely inside begins a span"


@given(PATHS)
def test_spans_of_legal_classes_give_the_classes_back(path):
    if not is_legal(path):
        return
    words = [TextWord(at + 1, 2 * at, 2 * at + 1) for at in range(len(path))]
    spans = [(one.label, words[one.first].start, words[one.last].end) for one in spans_of(path)]
    assert path_of(words, spans) == path


def test_log_softmax_is_normalised_and_does_not_overflow():
    assert sum(map(math.exp, log_softmax([1000.0, 999.0, -5.0]))) == pytest.approx(1.0)
