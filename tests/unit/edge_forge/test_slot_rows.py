"""Rows of slots: spans that do not fit are named by file and line; words, scores and the comparison of variants."""

import json

import numpy
import pytest

from edge_agent.base import limits
from edge_agent.base.errors import ConfigError
from edge_forge.data import slot_rows
from edge_forge.data.classifier_rows import Row
from edge_forge.data.slot_rows import LabelledSpan, label_of
from edge_forge.evaluate.span_scores import compare, evaluate
from edge_forge.recipe import classifier_recipe
from edge_forge.train.word_rows import WordRows, class_names, labels_of
from tests.support import tiny_base

RECIPE = {"name": "s", "base": {"name": "t", "source": "./b"}, "task": {"kind": "slots"}, "data": {"train": "t.jsonl"}}


def recipe(**sections):
    return classifier_recipe.parse({**RECIPE, **sections}, "recipe.toml", {})


def write(folder, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "t.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def row(text, *spans):
    return {"text": text, "spans": [{"start": start, "end": end, "label": label} for start, end, label in spans]}


def load(folder, **data):
    made = recipe(data={"train": "t.jsonl", **data})
    return slot_rows.load(made.data, made.task, folder)


GOOD = row("heat the hall", (9, 13, "room"))


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (row("heat the hall", (9, 9, "room")), "span 1 is empty: it goes from 9 to 9"),
        (row("heat the hall", (9, 14, "room")), "goes from 9 to 14, the text has 13 characters"),
        (row("heat the hall", (-1, 3, "room")), "goes from -1 to 3"),
        (row("heat the hall", (0, 8, "a"), (5, 13, "b")), "'heat the' .0 to 8. and 'the hall' .5 to 13. overlap"),
        (row("cafe\u0301 now", (0, 4, "room")), "cuts through a character at 4"),
        (row("👩\u200d👧 now", (0, 1, "room")), "cuts through a character at 1"),
        (row("heat the hall", (8, 13, "room")), "begins or ends with white space"),
        (row("heat the hall", (9, 13, "  ")), "has no label"),
        (row("heat the hall", (9.0, 13, "room")), "must be whole numbers"),
        (row("heat the hall", (True, 13, "room")), "must be whole numbers"),
        ({"text": "a", "spans": [[0, 1, "x"]]}, "must have the keys start, end and label"),
        ({"text": "a", "spans": [{"start": 0, "end": 1, "label": "x", "score": 1}]}, "and no others"),
        ({"text": "a"}, "the object has no key 'spans'"),
        ({"spans": []}, "the object has no key 'text'"),
        ({"text": "a", "spans": {}}, "'spans' a list"),
        ({"text": " ", "spans": []}, "the text is empty"),
        (row("heat the hall", (9, 13, "Room")), "differ only by case"),
    ],
)
def test_a_row_that_does_not_fit_is_named_by_file_and_line(tmp_path, bad, sentence):
    write(tmp_path, GOOD, bad, row("heat it"))
    with pytest.raises(ConfigError, match=sentence) as refused:
        load(tmp_path)
    assert refused.value.where == f"{tmp_path / 't.jsonl'}:2"


def test_rows_are_split_counted_and_their_labels_sorted(tmp_path):
    texts = [row(f"heat room {at} now", (5, 10 + len(str(at)), "room"), (11 + len(str(at)), 14 + len(str(at)), "at"))
             for at in range(20)]  # fmt: skip
    found = load(write(tmp_path, *texts, row("thank you")))
    assert found.labels == ("at", "room")
    assert (len(found.train), len(found.validation)) == (18, 3)
    assert {one.text for one in found.train}.isdisjoint(one.text for one in found.validation)
    counts = found.statistics["labels"]["room"]
    assert counts["train"] + counts["validation"] == 20
    assert any("no test split" in one for one in found.warnings)
    again = load(write(tmp_path, row("thank you"), *reversed(texts)))
    assert set(again.validation) == set(found.validation), "whatever the order of the rows"


def test_data_without_spans_and_labels_beyond_training_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no training row has a span"):
        load(write(tmp_path, row("a"), row("b")))
    (tmp_path / "v.jsonl").write_text(json.dumps(row("heat x", (5, 6, "time"))) + "\n")
    with pytest.raises(ConfigError, match="'time' is not among those of the training data") as refused:
        load(write(tmp_path, GOOD, row("b")), validation="v.jsonl")
    assert refused.value.where.endswith("v.jsonl:1")


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"task": {"kind": "slots", "threshold": 0.5, "out_of_scope": "x"}}, "task.threshold"),
        ({"data": {"train": "t.jsonl", "text_pair": "b"}}, "data.text_pair"),
        ({"data": {"train": "t.tsv", "format": "tsv"}}, "data.format"),
        ({"quantize": {"litert": ["fp32"]}}, "quantize.litert"),
        ({"quantize": {"tensorrt": ["fp32"]}}, "quantize.tensorrt"),
        ({"train": {"consistency": 0.5}}, "train.consistency"),
        ({"train": {"precision": "int8"}}, "train.precision"),
        ({"compress": {"layers": 2}}, "compress"),
    ],
)
def test_keys_that_slots_do_not_have_are_refused_by_name(sections, key):
    with pytest.raises(ConfigError) as refused:
        recipe(**sections)
    assert refused.value.where == f"recipe.toml: {key}"
    assert recipe().training.slots and not classifier_recipe.parse(
        {**RECIPE, "task": {}}, "recipe.toml", {}
    ).training.slots  # fmt: skip


def test_slots_are_shipped_in_either_form():
    assert not recipe(export={"merged": False}).export.merged
    assert not recipe(export={"banked": False}).export.banked
    with pytest.raises(ConfigError, match="DoRA is shipped merged only"):
        recipe(export={"merged": False}, method={"name": "dora"})
    with pytest.raises(ConfigError, match="the base takes 32 tokens, the task 64"):
        recipe(export={"bank_tokens": 32}, task={"kind": "slots", "max_tokens": 64})


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    base = tiny_base.write(tmp_path_factory.mktemp("base"))
    rows = [
        Row("turn the lamp on", label_of([LabelledSpan(5, 13, "thing"), LabelledSpan(14, 16, "state")])),
        Row("switch off", label_of([LabelledSpan(7, 10, "state")])),
        Row("please", label_of([])),
    ]
    return WordRows.read(base / "tokenizer.json", rows, ("state", "thing"), (20, ""))


def of_classes(*path):
    found = numpy.full((len(path), 5), -4.0, numpy.float32)
    found[range(len(path)), path] = 4.0
    return found


GOLD = (0, 3, 4, 1, 0, 1, 0)


def test_words_have_the_classes_of_their_spans(words):
    assert class_names(words.labels) == ("O", "B-state", "I-state", "B-thing", "I-thing")
    assert labels_of(class_names(words.labels)) == words.labels
    assert [place for path in words.paths for place in path] == list(GOLD)
    assert words.beside_words == []
    assert words.right(of_classes(*GOLD)) == [True, True, True]


def test_scores_count_spans_by_label_and_both_ends(words):
    found = evaluate(of_classes(0, 3, 0, 1, 1, 1, 0), words)
    assert found["accuracy"] == pytest.approx(1 / 3), "the lamp alone, and 'switch' as a state: two texts are wrong"
    by_label = {one["label"]: (one["precision"], one["recall"], one["support"]) for one in found["per_label"]}
    assert by_label == {"state": (pytest.approx(2 / 3), 1.0, 2), "thing": (0.0, 0.0, 1)}
    assert found["spans"]["f1"] == pytest.approx(2 * 2 / (4 + 3))
    assert found["spans"]["low"] <= found["spans"]["f1"] <= found["spans"]["high"]
    assert evaluate(of_classes(*GOLD), words)["spans"]["f1"] == 1.0


def test_variants_are_compared_by_the_spans_of_a_text(words):
    wrong = (0, 3, 4, 1, 0, 0, 0)
    paired = compare(of_classes(*GOLD), of_classes(*wrong), words)
    assert (paired.rows, paired.only_reference, paired.only_variant) == (3, 1, 0)
    assert paired.agreement == pytest.approx(2 / 3)
    assert compare(of_classes(*GOLD), of_classes(*GOLD), words).logit_error == 0.0


def test_spans_that_words_cannot_give_are_known(tmp_path):
    base = tiny_base.write(tmp_path)
    rows = [
        Row("lamp on", label_of([LabelledSpan(1, 4, "thing")])),
        Row("a light on", label_of([LabelledSpan(8, 10, "on")])),
    ]
    found = WordRows.read(base / "tokenizer.json", rows, ("on", "thing"), (3, ""))
    assert found.beside_words == [(0, 1, 1, 4), (1, 0, 8, 10)], "within a word; beyond the tokens that are read"


def test_more_labels_than_a_device_takes_are_said_before_training(tmp_path):
    rows = [row(f"say w{number}", (4, 5 + len(str(number)), f"l{number}")) for number in range(limits.SLOT_LABELS + 1)]
    with pytest.raises(ConfigError, match=r"the spans have 65 different labels; a device takes at most 64"):
        load(write(tmp_path, *rows, *rows))
