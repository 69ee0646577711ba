"""Extractive answers: windows of a context, the choice of a span, its places in the text, and what is refused."""

import itertools
import math

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edge_agent.base.causes import Cause
from edge_agent.base.context_windows import best_span, token_places, windows_of
from edge_agent.base.errors import BackendError, RequestError
from edge_agent.base.limits import ANSWER_WINDOWS
from edge_agent.bundle import contents
from edge_agent.bundle import probes as golden
from edge_agent.bundle.manifest import TaskDoc
from edge_agent.protocol.worker_messages import TaskFields
from edge_agent.tasks.registry import build

TASK = TaskFields("answers", (), 16, 0.0, None, pairs=True, window_overlap=4, answer_tokens=3, no_answer=True)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS]
    library = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    path = tmp_path_factory.mktemp("answers") / "tokenizer.json"
    library.save(str(path))
    return str(path)


def encoded(path, question, context):
    from tokenizers import Tokenizer

    return Tokenizer.from_file(path).encode(question, context)


def logits(rows, start=None, end=None, sure=8.0):
    """Of a row with so many tokens: `sure` for the start and the end, 0 for all others."""
    found = numpy.zeros((rows, 2), numpy.float32)
    if start is not None:
        found[start, 0] = found[end, 1] = sure
    return found


@given(asked=st.integers(1, 5), length=st.integers(1, 60), tokens=st.integers(12, 24), overlap=st.integers(0, 12))
def test_windows_hold_every_token_in_order_and_share_the_overlap(tokenizer_path, asked, length, tokens, overlap):
    question, context = " ".join("q" * asked), " ".join(itertools.islice(itertools.cycle(LETTERS), length))
    encoding = encoded(tokenizer_path, question, context)
    windows = windows_of(encoding, tokens, overlap, 64)
    room = tokens - asked - 3
    if room < min(8, length):
        assert windows is None
        return
    before, after = encoding.ids[: asked + 2], encoding.ids[-1:]
    shared = min(overlap, room // 2)
    seen = windows[0].places[:shared]
    for window in windows:
        inner = window.ids[window.first : window.first + len(window.places)]
        assert [*before, *inner, *after] == window.ids and len(window.ids) <= tokens
        assert window.places[:shared] == seen[-shared:] if shared else True
        seen += window.places[len(seen[-shared:]) if shared else 0 :]
        assert [context[start:end] for start, end in window.places] == [LETTERS[at - 4] for at in inner]
    assert seen == [(2 * at, 2 * at + 1) for at in range(length)]
    assert all(len(window.ids) == tokens for window in windows[:-1]), "no window is shorter than it may be"


def test_the_answer_has_places_in_the_text_as_it_was_sent(tokenizer_path):
    task = build(TASK, tokenizer_path)
    context = "a b cafe\u0301 👩\u200d👧 d e"
    prepared = task.prepare([("q r", context)], {})
    assert prepared.tokens == [len(prepared.rows[0])]
    places = prepared.windows[0][1][0].places
    first = next(at for at, (start, _) in enumerate(places) if context[start:].startswith("cafe"))
    found = task.answer({"logits": [logits(len(prepared.rows[0]), 4 + first, 4 + first + 2)]}, prepared, {})[0]
    assert found["answer"] == context[found["start"] : found["end"]]
    assert found["answer"].startswith("cafe") and context[found["end"] :].startswith(" d"), "no emoji is cut"
    share = math.exp(8) / (math.exp(8) + len(places))
    assert found["score"] == pytest.approx(share**2, rel=1e-4)
    assert found["windows"] == 1 and found["no_answer_score"] < 1e-4


def test_the_best_window_answers_and_all_must_say_that_there_is_none(tokenizer_path):
    task = build(TASK, tokenizer_path)
    context = " ".join(LETTERS)
    prepared = task.prepare([("q", context), ("q", "x y z")], {})
    assert [len(windows) for _, windows in prepared.windows] == [3, 1] and len(prepared.rows) == 4
    nothing = [logits(len(row), 0, 0) for row in prepared.rows]
    answers = task.answer({"logits": nothing}, prepared, {})
    assert [(one["answer"], one["start"], one["end"]) for one in answers] == [(None, None, None)] * 2
    assert all(one["no_answer_score"] > 0.9 > one["score"] for one in answers)
    last = prepared.windows[0][1][2]
    rows = [*nothing[:2], logits(len(last.ids), last.first + 1, last.first + 2), nothing[3]]
    one, other = task.answer({"logits": rows}, prepared, {})
    place = last.places[1][0]
    assert (one["answer"], one["start"]) == (context[place : place + 3], place) and other["answer"] is None
    assert task.answer({"logits": rows}, prepared, {"threshold": 0.999})[0]["answer"] is None
    always = build(replace(TASK, no_answer=False), tokenizer_path)
    assert all(one["answer"] for one in always.answer({"logits": nothing}, prepared, {})), "trained without such"


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=16, max_size=16))
def test_the_span_is_the_likeliest_of_those_that_are_short_enough(tokenizer_path, given_logits):
    (window,) = windows_of(encoded(tokenizer_path, "q", " ".join(LETTERS[:12])), 16, 4, 8)
    context, most = " ".join(LETTERS[:12]), 3
    allowed = window.positions
    found, none = best_span(context, [(window, [given_logits[at] for at in allowed])], most)
    sums = [sum(math.exp(given_logits[at][column]) for at in allowed) for column in (0, 1)]
    share = lambda first, last: (  # noqa: E731
        math.exp(given_logits[first][0]) / sums[0] * math.exp(given_logits[last][1]) / sums[1]
    )
    tokens = allowed[1:]
    best = max(share(one, other) for one in tokens for other in tokens if one <= other < one + most)
    assert found.score == pytest.approx(best) and none == pytest.approx(share(0, 0))
    first, last = token_places(window, found.start, found.end)
    assert share(first, last) == pytest.approx(best)


def test_gold_places_outside_a_window_are_its_first_token(tokenizer_path):
    one, other, *_ = windows_of(encoded(tokenizer_path, "q", " ".join(LETTERS)), 16, 4, 8)
    assert token_places(one, 0, 3) == (3, 4) and token_places(other, 0, 3) == (0, 0)
    end = one.places[-1][1]
    assert token_places(one, end - 1, end + 2) == (0, 0), "an answer that a window holds in part is not in it"


@pytest.mark.parametrize(
    ("text", "params", "status", "cause"),
    [
        ("q", {}, 422, Cause.TEXT_PAIR),
        (("q", " "), {}, 422, Cause.INVALID),
        (("q", "a"), {"top_k": 2}, 422, Cause.INVALID),
        (("q", "a"), {"threshold": 2}, 422, Cause.INVALID),
        ((" ".join("q" * 6), " ".join(LETTERS)), {}, 422, Cause.INVALID),
        (("q", " ".join("a" * (9 * ANSWER_WINDOWS))), {}, 413, Cause.TOO_LARGE),
    ],
)
def test_what_does_not_fit_is_refused(tokenizer_path, text, params, status, cause):
    with pytest.raises(RequestError) as refused:
        build(TASK, tokenizer_path).prepare([text], params)
    assert (refused.value.status, refused.value.cause) == (status, cause)


def test_a_request_has_as_many_windows_as_it_may_have_texts(tokenizer_path):
    """64 questions of 64 windows each were 4,096 rows for one message, and a worker that was silent for minutes."""
    task = build(TASK, tokenizer_path)
    asked = ("q", " ".join("a" * 36))
    each = len(task.prepare([asked], {}).rows)
    assert each > 3
    fits = ANSWER_WINDOWS // each
    assert len(task.prepare([asked] * fits, {}).rows) == fits * each
    with pytest.raises(RequestError, match=r"take more than 64 windows of 16: .*, or fewer questions") as refused:
        task.prepare([asked] * (fits + 1), {})
    assert refused.value.status == 413


def test_a_context_of_nothing_that_is_seen_has_no_answer(tokenizer_path):
    task = build(replace(TASK, no_answer=False), tokenizer_path)
    prepared = task.prepare([("q", "\u0007")], {})
    found = task.answer({"logits": [logits(len(row)) for row in prepared.rows]}, prepared, {})
    assert found[0]["windows"] == 1


def test_outputs_of_another_model_and_a_model_without_a_tokenizer_are_refused(tokenizer_path):
    task = build(TASK, tokenizer_path)
    prepared = task.prepare([("q", "a")], {})
    for wrong in (None, numpy.zeros((1, 2)), [numpy.zeros((5, 3))]):
        with pytest.raises(BackendError, match="no logits of start and end"):
            task.answer({"logits": wrong}, prepared, {})
    with pytest.raises(BackendError, match="joins a question and its context"):
        build(TASK, None)
    with pytest.raises(BackendError, match="answer_tokens"):
        build(replace(TASK, answer_tokens=0), tokenizer_path)


GOOD = {"pairs": True, "answer_tokens": 30, "window_overlap": 64, "max_tokens": 256}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"pairs": False}, "answers need pairs"),
        ({"answer_tokens": 0}, "answers need answer_tokens"),
        ({"window_overlap": 256}, "window_overlap below max_tokens"),
        ({"threshold": 0.5}, "threshold and out_of_scope"),
        ({"labels": ("a",)}, "labels belong"),
        ({"kind": "slots", "labels": ("a",), "pairs": False}, "belong to answers"),
    ],
)
def test_a_package_with_a_task_that_cannot_be_is_refused(fields, sentence):
    with pytest.raises(Exception, match=sentence):
        contents._check_task(TaskDoc(**{"kind": "answers", **GOOD, **fields}), "model.json")
    contents._check_task(TaskDoc(kind="answers", **GOOD), "model.json")


def test_golden_probes_compare_the_choice_among_tokens():
    def verdict(shared, **fields):
        expected = golden.Expected(
            features=((1.0,),), features_tolerance=0.1, logits=((0.0, 0.0, 3.0, 3.0),), logits_tolerance=9.0,
            classes=2, **fields,
        )  # fmt: skip
        file = golden.ProbeFile(schema=1, texts=(("a", "b"),), expected={"onnx/fp32": expected})
        alone = golden.ProbeOutputs(((1.0,),), expected.logits, golden.ProbeOutputs(((1.0,),), (shared,)))
        assert golden.problem_of(file, False) is None
        return golden.judge(file, "onnx/fp32", alone).code

    # Both logits of the last token are less: its classes are as likely as before, and the token is not.
    assert verdict((0.0, 0.0, 2.0, 2.0)) is None
    assert verdict((0.0, 0.0, 2.0, 2.0), over_tokens=True) == golden.COMPANY
    assert verdict((0.0, 0.0, 3.0, 3.0), over_tokens=True) is None
    bare = golden.Expected(features=((1.0,),), features_tolerance=0.1, over_tokens=True)
    file = golden.ProbeFile(schema=1, texts=("a",), expected={"onnx/fp32": bare})
    assert "says of no classes" in golden.problem_of(file, False)
