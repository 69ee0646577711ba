"""Words of a text with their places, their classes, and the spans that legal classes tell."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.words import (
    TextWord,
    classes,
    decode,
    is_legal,
    log_softmax,
    path_of,
    spans_of,
    whole,
    words_of,
)

PATHS = st.lists(st.integers(0, 6), max_size=12)


@pytest.fixture(scope="module")
def library():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz", *(f"##{one}" for one in "aehrz")]
    made = Tokenizer(models.WordPiece({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


def read(library, text, most=64, prompt=""):
    return [text[word.start : word.end] for word in words_of(text, library.encode(prompt + text), most, len(prompt))]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("heat a room", ["heat", "a", "room"]),
        ("Zu\u0308rich 21 °C", ["Zu\u0308rich", "21", "°C"]),
        ("cafe\u0301 now", ["cafe\u0301", "now"]),
        ("Café, 厨房", ["Café", ",", "厨", "房"]),
        ("👩\u200d👩\u200d👧 in a 🇩🇪🇫🇷 hat", ["👩\u200d👩\u200d👧", "in", "a", "🇩🇪🇫🇷", "hat"]),
        ("👍🏽", ["👍🏽"]),
        ("  a\t b \n", ["a", "b"]),
    ],
)
def test_words_are_those_that_a_reader_sees_at_their_places(library, text, words):
    assert read(library, text) == words


def test_a_word_is_labelled_at_its_first_token_and_a_cut_row_ends_with_a_whole_word(library):
    text = "a hare ran"  # [CLS] a h ##a ##r ##e [UNK] [SEP]
    assert [word.token for word in words_of(text, library.encode(text), 64)] == [1, 2, 6]
    assert read(library, text, most=5) == ["a", "hare"], "its first two tokens are there, its places are the word's"
    assert read(library, text, most=3) == ["a"]
    assert read(library, text, most=2) == []


def test_places_do_not_count_the_prompt(library):
    assert words_of("a b", library.encode("query: a b"), 64, 7)[0] == TextWord(3, 0, 1)


@given(st.text(st.sampled_from("ae\u0301\u200d👩👧🏽🇩🇪 ,.厨\r\n"), max_size=24))
def test_words_lie_in_the_text_do_not_overlap_and_end_between_characters(library, text):
    found = words_of(text, library.encode(text), 64)
    ends = [place for word in found for place in (word.start, word.end)]
    assert ends == sorted(ends) and all(word.start < word.end for word in found)
    assert all(whole(text, place) for place in ends)
    tokens = [word.token for word in found]
    assert tokens == sorted(set(tokens))


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
    assert {at for at in range(len(text) + 1) if not whole(text, at)} == inside


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
