"""Pairs of texts: how the tokenizer joins them, and who takes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edge_agent.base.causes import Cause
from edge_agent.base.errors import RequestError
from edge_agent.protocol.worker_messages import TaskFields
from edge_agent.tasks import tokens
from edge_agent.tasks.registry import build

SINGLE = TaskFields("classify", ("no", "yes"), 10, 0.0, None)
PAIRS = replace(SINGLE, pairs=True)
WORDS = st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=9).map(" ".join)


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghij"]
    library = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.add_special_tokens(["[CLS]", "[SEP]"])
    library.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    path = tmp_path_factory.mktemp("pairs") / "tokenizer.json"
    library.save(str(path))
    return str(path)


@given(text=WORDS, pair=WORDS)
def test_a_pair_is_one_row_and_is_cut_as_the_library_cuts_it(tokenizer_path, text, pair):
    from tokenizers import Tokenizer

    library = Tokenizer.from_file(tokenizer_path)
    whole = len(library.encode(text, pair).ids)
    library.enable_truncation(10, strategy="longest_first")
    prepared = build(PAIRS, tokenizer_path).prepare([(text, pair)], {})
    assert prepared.rows == [library.encode(text, pair).ids]
    assert prepared.tokens == [whole] == [len(text.split()) + len(pair.split()) + 3]
    assert prepared.truncated == [whole > 10]
    assert prepared.wording[0] == (len(text) + len(pair), whole - 3, 0)


def test_of_a_pair_that_is_too_long_the_longer_text_gives_way(tokenizer_path):
    task = build(PAIRS, tokenizer_path)
    assert task.prepare([("a b", "c d e f g h i j")], {}).rows == [[2, 4, 5, 3, 6, 7, 8, 9, 10, 3]]
    assert task.prepare([("c d e f g h i j", "a b")], {}).rows == [[2, 6, 7, 8, 9, 10, 3, 4, 5, 3]]


def test_texts_and_pairs_keep_their_order_in_one_call(tokenizer_path):
    rows = [one.ids for one in tokens.open_tokenizer(tokenizer_path, 10).encode(["a", ("b", "c"), "d", ("e", "f")])]
    assert rows == [[2, 4, 3], [2, 5, 3, 6, 3], [2, 7, 3], [2, 8, 3, 9, 3]]


@pytest.mark.parametrize("text", ["a [SEP] b", ("a [SEP] b", "c"), ("c", "a [SEP] b")])
def test_a_text_cannot_write_the_separator(tokenizer_path, text):
    (row,) = build(SINGLE if isinstance(text, str) else PAIRS, tokenizer_path).prepare([text], {}).rows
    assert row.count(3) == (1 if isinstance(text, str) else 2)
    assert row.count(1) >= 1, "the marks and letters of [SEP] are words that this vocabulary does not have"


@pytest.mark.parametrize(
    ("fields", "text", "cause", "says"),
    [
        (PAIRS, "a", Cause.TEXT_PAIR, "it takes pairs: give text_pair beside text"),
        (SINGLE, ("a", "b"), Cause.TEXT_PAIR, "it takes one text: leave text_pair"),
        (PAIRS, ("a", " "), Cause.INVALID, "the text is empty"),
        (PAIRS, ("", "a"), Cause.INVALID, "the text is empty"),
        (replace(SINGLE, kind="embed", labels=()), ("a", "b"), Cause.TEXT_PAIR, "it takes one text"),
    ],
)
def test_a_task_refuses_the_wrong_number_of_texts(tokenizer_path, fields, text, cause, says):
    with pytest.raises(RequestError, match=says) as error:
        build(fields, tokenizer_path).prepare([text], {})
    assert (error.value.status, error.value.cause) == (422, cause)


@pytest.mark.parametrize("fields", [SINGLE, PAIRS])
def test_probes_take_both(tokenizer_path, fields):
    assert build(fields, tokenizer_path).probe(["a", ("b", "c")]).rows == [[2, 4, 3], [2, 5, 3, 6, 3]]


def test_bytes_stand_in_for_a_tokenizer():
    (one,) = tokens.open_tokenizer(None, 8).encode([("ab", "c")])
    assert (one.ids, one.truncated) == ([97, 98, 0, 99], False)
