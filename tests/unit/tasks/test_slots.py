"""Slots: answers with spans and places, and what is refused."""

import math

import numpy
import pytest

from edge_agent.backends.api import Done, Footprint, Limits, SessionJob
from edge_agent.backends.encoder_session import EncoderGraph, EncoderSession
from edge_agent.base.errors import BackendError, RequestError
from edge_agent.bundle import contents
from edge_agent.bundle import probes as golden
from edge_agent.bundle.manifest import TaskDoc
from edge_agent.protocol.worker_messages import TaskFields
from edge_agent.tasks.registry import build

TASK = TaskFields("slots", ("room", "time"), 8, 0.0, None)


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "heat", "the", "big", "hall", "now"]
    library = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    path = tmp_path_factory.mktemp("slots") / "tokenizer.json"
    library.save(str(path))
    return str(path)


def logits(*path, sure=6.0):
    """Of tokens whose likeliest classes are these."""
    found = numpy.zeros((len(path), 5), numpy.float32)
    found[range(len(path)), path] = sure
    return found


def test_spans_have_their_label_places_text_and_score(tokenizer_path):
    task = build(TASK, tokenizer_path)
    prepared = task.prepare(["heat the big hall now", "heat"], {})
    rows = [logits(0, 0, 0, 1, 2, 3, 0), logits(0, 0, 0)]
    answers = task.answer({"logits": rows}, prepared, {})
    score = math.exp(6) / (math.exp(6) + 4)
    assert answers[0] == {
        "spans": [
            {"label": "room", "start": 9, "end": 17, "text": "big hall", "score": pytest.approx(score)},
            {"label": "time", "start": 18, "end": 21, "text": "now", "score": pytest.approx(score)},
        ],
        "tokens": 7,
        "truncated": False,
    }
    assert answers[1] == {"spans": [], "tokens": 3, "truncated": False}
    assert task.answer({"logits": rows}, prepared, {"threshold": 0.999})[0]["spans"] == []


def test_a_cut_text_says_so_and_its_spans_keep_their_places(tokenizer_path):
    task = build(TASK, tokenizer_path)
    text = "heat the 👩\u200d👧 hall cafe\u0301 hall now now now"
    prepared = task.prepare([text], {})
    assert len(prepared.rows[0]) == 8
    answer = task.answer({"logits": [logits(0, 0, 0, 1, 3, 0, 2, 1)]}, prepared, {})[0]
    assert (answer["truncated"], answer["tokens"]) == (True, 13)
    assert [one["text"] for one in answer["spans"]] == ["👩\u200d👧 hall"], "an emoji of three tokens is one word"
    assert all(text[one["start"] : one["end"]] == one["text"] for one in answer["spans"])


@pytest.mark.parametrize("params", [{"top_k": 2}, {"threshold": 2}, {"threshold": True}])
def test_parameters_that_do_not_fit_are_refused(tokenizer_path, params):
    with pytest.raises(RequestError):
        build(TASK, tokenizer_path).prepare(["heat"], params)


def test_outputs_of_another_model_and_a_model_without_words_are_refused(tokenizer_path):
    task = build(TASK, tokenizer_path)
    prepared = task.prepare(["heat"], {})
    for wrong in (None, numpy.zeros((1, 5)), [numpy.zeros((3, 7))]):
        with pytest.raises(BackendError, match="no logits of every token for 2 labels"):
            task.answer({"logits": wrong}, prepared, {})
    with pytest.raises(BackendError, match="splits words"):
        build(TASK, None)


class _Graph(EncoderGraph):
    """Logits [rows, tokens, 1]: each token's id, and for padding the number of rows."""

    path, base_id, table_rows, adapters = "graph", "", 0, None

    def compute(self, rows, adapters):
        longest = max(map(len, rows))
        made = [[[one] for one in row] + [[len(rows)]] * (longest - len(row)) for row in rows]
        return {"features": numpy.ones((len(rows), 2)), "logits": numpy.asarray(made, float)}

    def use_threads(self, threads):
        return

    def footprint(self):
        return Footprint(0, 0, 0, 0)

    def close(self):
        return


def test_a_row_has_the_logits_of_its_own_tokens_whatever_shares_its_batch():
    session = EncoderSession(_Graph(), 2, 8)
    jobs = {"long": [[1, 2, 3], [4], [5, 6]], "short": [[7]]}
    for name, rows in jobs.items():
        session.submit(SessionJob(name, None, rows, {}))
    done = {}
    while len(done) < 2:
        done |= {event.job_id: event for event in session.step(Limits(2, 1)) if isinstance(event, Done)}
    found = {name: [row.ravel().tolist() for row in one.outputs["logits"]] for name, one in done.items()}
    assert found == jobs


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "labels belong"),
        ({"labels": ("a",), "threshold": 0.5}, "threshold and out_of_scope"),
        ({"labels": tuple(map(str, range(65)))}, "at most 64"),
        ({"labels": ("a",), "pairs": True}, "pairs belong"),
    ],
)
def test_a_package_with_a_task_that_cannot_be_is_refused(fields, sentence):
    with pytest.raises(Exception, match=sentence):
        contents._check_task(TaskDoc(kind="slots", **fields), "model.json")
    contents._check_task(TaskDoc(kind="slots", labels=("a",)), "model.json")


def probes_of(row, alone, shared):
    """A probe file of one text with the logits `row` of its tokens, and what a device gives alone and in company."""
    expected = golden.Expected(
        features=((1.0,),), features_tolerance=0.1, logits=(row,), logits_tolerance=1.0, classes=2
    )
    file = golden.ProbeFile(schema=1, texts=("a",), expected={"onnx/fp32": expected})
    company = golden.ProbeOutputs(((1.0,),), (shared,))
    return file, golden.ProbeOutputs(((1.0,),), (alone,), company)


def test_golden_probes_compare_the_probabilities_of_every_token():
    same = (0.0, 3.0, 3.0, 0.0)
    file, measured = probes_of(same, same, same)
    assert golden.judge(file, "onnx/fp32", measured).code is None and golden.problem_of(file, False) is None
    # 1.5 thousandths of one token's probability, which a softmax over all tokens would halve.
    file, measured = probes_of(same, same, (0.0, 3.0, 3.0, 0.034))
    assert golden.judge(file, "onnx/fp32", measured).code == golden.COMPANY
    file, _ = probes_of((0.0, 3.0, 3.0), same, same)
    assert "not 2 of every token" in golden.problem_of(file, False)
