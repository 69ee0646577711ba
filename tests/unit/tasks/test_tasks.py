import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edge_agent.base.causes import Cause
from edge_agent.base.errors import BackendError, RequestError
from edge_agent.protocol.worker_messages import TaskFields
from edge_agent.tasks import tokens
from edge_agent.tasks.api import Prepared
from edge_agent.tasks.encoders import softmax
from edge_agent.tasks.registry import build

LABELS = ("on", "off", "other")
CLASSIFY = TaskFields("classify", LABELS, 8, 0.5, "other")
EMBED = TaskFields("embed", (), 8, 0.0, None)


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    """A word tokenizer with [CLS] and [SEP], whose file asks for another truncation and for padding."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghij"]
    library = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    library.enable_truncation(max_length=3)
    library.enable_padding(length=20)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    library.save(str(path))
    return str(path)


def answer(spec, outputs, params=None, texts=1):
    prepared = Prepared([[1]] * texts, [5] * texts, [False] * texts, {})
    return build(spec, None).answer(outputs, prepared, params or {})


def test_truncation_is_the_specs_and_is_told(tokenizer_path):
    task = build(CLASSIFY, tokenizer_path)
    prepared = task.prepare(["a b", "a b c d e f", "a b c d e f g", "a b c d e f g h i j"], {})
    assert prepared.rows[0] == [2, 4, 5, 3]
    assert [len(row) for row in prepared.rows] == [4, 8, 8, 8]
    assert all(row[0] == 2 and row[-1] == 3 for row in prepared.rows), "special tokens survive the cut"
    assert prepared.tokens == [4, 8, 9, 12]
    assert prepared.truncated == [False, False, True, True]


MERGES = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({**MERGES, "continuing_subword_prefix": "NaN"}, "out of range"),  # a panic of its Rust code
        ({"x" * 100_000: 1}, "did not match any variant"),
        ({"type": "WordLevel", "vocab": {"a": -1}, "unk_token": "a"}, "invalid value"),
    ],
    ids=["a panic", "a long text", "a negative id"],
)
def test_a_file_on_which_the_library_fails_is_refused_in_few_words(tmp_path, model, says):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    with pytest.raises(BackendError, match=f"the tokenizer cannot be read: .*{says}") as caught:
        build(CLASSIFY, str(path))
    assert len(str(caught.value)) < 400


def test_how_texts_fall_apart_is_told_of_the_whole_text_without_special_tokens(tokenizer_path):
    """Also of what is cut: the bound is the model's, the texts are the same."""
    task = build(CLASSIFY, tokenizer_path)
    told = task.prepare(["a b", "a zz b", "zz a b c d e f g zz zz", "é"], {}).wording
    assert told == [(3, 2, 0), (6, 3, 1), (22, 10, 3), (2, 1, 1)]
    assert build(EMBED, None).prepare(["ab"], {}).wording == [(2, 2, None)], "bytes are all known"


def a_library(kind):
    from tokenizers import Tokenizer, models

    bytes_ = {f"<0x{byte:02X}>": byte + 3 for byte in range(256)}
    return Tokenizer(
        {
            "word level": lambda: models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"),
            "wordpiece": lambda: models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]"),
            "bpe": lambda: models.BPE({"a": 0, "b": 1}, []),
            "bpe with unknown": lambda: models.BPE({"a": 0, "<unk>": 1}, [], unk_token="<unk>"),
            "bpe with bytes": lambda: models.BPE(
                {"<unk>": 0, "a": 1, **bytes_}, [], unk_token="<unk>", byte_fallback=True
            ),
            "unigram": lambda: models.Unigram([("<pad>", 0.0), ("<unk>", 0.0), ("a", -1.0)], 1, False),
            "unigram with bytes": lambda: models.Unigram(
                [("<unk>", 0.0), ("a", -1.0), *((name, -9.0) for name in bytes_)], 0, True
            ),
        }[kind]()
    )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("word level", 0), ("wordpiece", 1), ("bpe", None), ("bpe with unknown", 1), ("bpe with bytes", None),
     ("unigram", 1), ("unigram with bytes", None)],
)  # fmt: skip
def test_the_unknown_token_of_every_kind_of_tokenizer(kind, expected):
    library = a_library(kind)
    assert tokens.unknown_id(library) == expected
    assert (expected in library.encode("z").ids) is (expected is not None), "what the library itself does"


def test_tasks_with_different_bounds_share_one_tokenizer(tokenizer_path):
    wide, narrow = (
        build(replace(EMBED, max_tokens=12), tokenizer_path),
        build(replace(EMBED, max_tokens=4), tokenizer_path),
    )
    text = ["a b c d e f g h"]
    for _ in range(2):
        assert [len(wide.prepare(text, {}).rows[0]), len(narrow.prepare(text, {}).rows[0])] == [10, 4]
    assert tokens._opened(tokenizer_path) is tokens._opened(tokenizer_path)


def test_a_tokenizer_file_that_changed_is_read_again(tokenizer_path, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(Path(tokenizer_path).read_bytes())
    first = tokens._opened(str(path))
    path.write_bytes(path.read_bytes() + b"\n")
    assert tokens._opened(str(path)) is not first


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff"])
def test_a_broken_tokenizer_is_refused(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(BackendError, match="the tokenizer cannot be read"):
        build(EMBED, str(path))
    with pytest.raises(BackendError, match="cannot be read"):
        build(EMBED, str(tmp_path / "absent.json"))


@pytest.mark.parametrize(
    ("texts", "reason"),
    [([""], "the text is empty"), (["  \n\t"], "the text is empty"), (["a", " "], "text 2 is empty")],
)
@pytest.mark.parametrize("spec", [CLASSIFY, EMBED])
def test_an_empty_text_is_refused(spec, texts, reason):
    with pytest.raises(RequestError, match=reason) as caught:
        build(spec, None).prepare(texts, {})
    assert (caught.value.status, caught.value.cause) == (422, Cause.INVALID)


@pytest.mark.parametrize(
    ("spec", "params", "reason"),
    [
        (CLASSIFY, {"topk": 1}, "unknown parameter 'topk'; this task takes: top_k, threshold"),
        (CLASSIFY, {"top_k": 0}, "top_k is 0; 1 to 3"),
        (CLASSIFY, {"top_k": 4}, "top_k is 4; 1 to 3"),
        (CLASSIFY, {"top_k": True}, "top_k is True"),
        (CLASSIFY, {"top_k": 1.0}, "top_k is 1.0"),
        (CLASSIFY, {"threshold": -0.1}, "threshold is -0.1"),
        (CLASSIFY, {"threshold": 1.1}, "threshold is 1.1"),
        (CLASSIFY, {"threshold": math.nan}, "threshold is nan"),
        (CLASSIFY, {"threshold": "0.5"}, "threshold is '0.5'"),
        (CLASSIFY, {"threshold": None}, "threshold is None"),
        (EMBED, {"top_k": 1}, "unknown parameter 'top_k'; this task takes: none"),
    ],
)
def test_a_parameter_that_does_not_fit_is_named(spec, params, reason):
    with pytest.raises(RequestError, match=reason) as caught:
        build(spec, None).prepare(["a"], params)
    assert (caught.value.status, caught.value.cause) == (422, Cause.INVALID)


def test_labels_come_by_score_and_extra_logits_are_ignored():
    (found,) = answer(CLASSIFY, {"logits": [[0.0, 2.0, 1.0, -1e9, 50.0]]}, {"top_k": 3})
    assert found["label"] == "off"
    assert [entry["label"] for entry in found["labels"]] == ["off", "other", "on"]
    assert sum(entry["score"] for entry in found["labels"]) == pytest.approx(1.0)
    assert found["score"] == pytest.approx(math.exp(2) / (1 + math.e + math.exp(2)))
    assert (found["tokens"], found["truncated"], found["out_of_scope"]) == (5, False, False)


@pytest.mark.parametrize(
    ("logits", "params", "out"),
    [
        ([5.0, 0.0, 0.0], {}, False),
        ([0.1, 0.0, 0.0], {}, True),
        ([0.1, 0.0, 0.0], {"threshold": 0.0}, False),
        ([5.0, 0.0, 0.0], {"threshold": 1.0}, True),
        ([0.0, 0.0, 9.0], {}, True),
        ([0.0, 0.0, 9.0], {"threshold": 0.0}, True),
    ],
)
def test_out_of_scope_is_a_low_score_or_the_label_for_it(logits, params, out):
    assert answer(CLASSIFY, {"logits": [logits]}, params)[0]["out_of_scope"] is out


def test_below_the_threshold_the_label_is_the_out_of_scope_one_and_the_best_class_stays_in_the_list():
    unsure = replace(CLASSIFY, labels=("on", "off"), threshold=0.0, out_of_scope="unsure")
    (found,) = answer(unsure, {"logits": [[0.1, 0.0]]}, {"threshold": 0.9})
    assert (found["label"], found["out_of_scope"], found["labels"][0]["label"]) == ("unsure", True, "on")
    assert found["score"] == found["labels"][0]["score"] < 0.9
    (sure,) = answer(unsure, {"logits": [[9.0, 0.0]]}, {"threshold": 0.9})
    assert (sure["label"], sure["out_of_scope"]) == ("on", False)
    unnamed = replace(CLASSIFY, threshold=0.0, out_of_scope=None)
    (flagged,) = answer(unnamed, {"logits": [[0.1, 0.0, 0.0]]}, {"threshold": 0.9})
    assert (flagged["label"], flagged["out_of_scope"]) == ("on", True)


def test_one_answer_per_text_in_order():
    found = answer(CLASSIFY, {"logits": [[9, 0, 0], [0, 9, 0], [0, 0, 9]]}, texts=3)
    assert [one["label"] for one in found] == list(LABELS)


@pytest.mark.parametrize("outputs", [{}, {"logits": [[1.0, 2.0]]}])
def test_a_model_without_logits_for_all_labels_is_an_error(outputs):
    with pytest.raises(BackendError, match="no logits for 3 labels"):
        answer(CLASSIFY, outputs)


def test_embeddings_have_length_one():
    found = answer(EMBED, {"features": [[3.0, 4.0], [0.0, 0.0]]}, texts=2)
    assert found[0]["embedding"] == [0.6, 0.8]
    assert found[1]["embedding"] == [0.0, 0.0]
    assert (found[0]["tokens"], found[0]["truncated"]) == (5, False)


@pytest.mark.parametrize(
    ("change", "reason"), [({"kind": "dance"}, "no task 'dance'"), ({"labels": ("one",)}, "at least two labels")]
)
def test_a_spec_that_cannot_be_built_is_refused(change, reason):
    with pytest.raises(BackendError, match=reason):
        build(replace(CLASSIFY, **change), None)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=20))
def test_softmax_is_a_distribution_that_keeps_the_order(logits):
    shares = softmax(logits)
    assert sum(shares) == pytest.approx(1.0)
    assert all(0.0 <= share <= 1.0 for share in shares)
    assert shares[logits.index(max(logits))] == max(shares)


@given(st.text(min_size=1), st.integers(1, 40))
def test_bytes_stand_in_where_there_is_no_tokenizer(text, max_tokens):
    (found,) = tokens.ByteTokenizer(max_tokens).encode([text])
    assert found.ids == list(text.encode())[:max_tokens]
    assert found.truncated == (found.tokens > max_tokens)
