"""Words of a text with their places, as a tokenizer tells them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.words import TextWord, is_grapheme_boundary, words_of


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
    assert all(is_grapheme_boundary(text, place) for place in ends)
    tokens = [word.token for word in found]
    assert tokens == sorted(set(tokens))
