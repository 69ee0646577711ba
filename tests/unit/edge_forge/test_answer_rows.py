"""Rows of answers: what does not fit is named by file, paragraph and question; windows, SQuAD's scores, comparison."""

import json

import numpy
import pytest

from edge_agent.base.errors import ConfigError
from edge_forge.data import answer_rows
from edge_forge.data.answer_rows import GoldAnswer, answers_of, question_of
from edge_forge.evaluate.answer_scores import compare, evaluate, exact_match, f1_of
from edge_forge.evaluate.training_outcome import of_answers
from edge_forge.recipe import classifier_recipe
from edge_forge.train.window_rows import WindowForm, WindowRows
from tests.support import tiny_base, tiny_squad

RECIPE = {
    "name": "a", "base": {"name": "t", "source": "./b"}, "task": {"kind": "answers", "max_tokens": 128},
    "data": {"train": "t.json"},
}  # fmt: skip
CONTEXT = "Heat the cafe\u0301 to 80 °C now."


def recipe(**sections):
    return classifier_recipe.parse({**RECIPE, **sections}, "recipe.toml", {})


def load(folder, **data):
    made = recipe(data={"train": "t.json", **data})
    return answer_rows.load(made.data, made.task, folder)


def question(*answers, name="q1", **fields):
    listed = [{"text": text, "answer_start": start} for start, text in answers]
    return {"id": name, "question": "How hot?", "answers": listed, **fields}


def squad(*questions, context=CONTEXT):
    return {"data": [{"title": "Tea", "paragraphs": [{"context": context, "qas": list(questions)}]}]}


def write(folder, document, name="t.json"):
    (folder / name).write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    return folder


GOOD = question((18, "80 °C"))


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (question((17, "80 °C")), "answer 1, '80 °C' at 17, is not what stands there: ' 80 °'"),
        (question((40, "80 °C")), "does not lie within the 28 characters"),
        (question((-1, "80 °C")), "does not lie within"),
        (question((18, "90 °C")), "is not what stands there"),
        (question((9, "cafe")), "cuts through a character at 13"),
        (question((18, " ")), "answer 1 is empty"),
        (question((18.0, "80 °C")), "answer_start must be a whole number"),
        (question((True, "80 °C")), "answer_start must be a whole number"),
        ({"id": "q1", "question": "How?", "answers": ["80"]}, "must have the keys text and answer_start"),
        ({"id": "q1", "question": "How?", "answers": {}}, "'answers' must be a list"),
        ({"id": "q1", "question": 3, "answers": []}, "must be strings"),
        ({"id": "q1", "question": " ", "answers": []}, "the question is empty"),
        (question(), "there is no answer"),
        (question((18, "80 °C"), is_impossible=True), "is_impossible is true, and there are 1 answers"),
        ("How hot?", "must be strings"),
    ],
)
def test_a_question_that_does_not_fit_is_named_by_file_paragraph_and_question(tmp_path, bad, sentence):
    write(tmp_path, squad(dict(GOOD, id="q0"), bad))
    with pytest.raises(ConfigError, match=sentence) as refused:
        load(tmp_path)
    named = "q1" if isinstance(bad, dict) else "2"
    assert refused.value.where == f"{tmp_path / 't.json'}: article 1 (Tea), paragraph 1, question {named}"


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ([], "an object with a list 'data' is needed; it is list"),
        ({"data": [{"paragraphs": {}}]}, "a list 'paragraphs' is needed; it has .paragraphs."),
        ({"data": []}, "the file has no questions"),
        (squad(GOOD, GOOD), "the question's id is that of"),
        (squad(question(is_impossible=True)), "no training question has an answer"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, document, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load(write(tmp_path, document))


def test_what_is_no_json_is_named_by_its_line(tmp_path):
    (tmp_path / "t.json").write_text('{"data":\n [}')
    with pytest.raises(ConfigError, match="it is no JSON") as refused:
        load(tmp_path)
    assert refused.value.where.endswith("t.json:2")


def test_answers_keep_their_places_and_contexts_stay_on_one_side(tmp_path):
    tiny_squad.write(tmp_path, train=20)
    found = load(tmp_path, train="train.json", test="test.json")
    assert found.labels == ("answer", "no answer") and found.statistics["shared"] == {}
    sides = [{question_of(row)[1] for row in rows} for rows in (found.train, found.validation)]
    assert len(sides[0]) + len(sides[1]) == 20 and sides[0].isdisjoint(sides[1])
    for row in found.train:
        for one in answers_of(row):
            assert question_of(row)[1][one.start : one.end] == one.text
    spaced = load(
        write(
            tmp_path,
            {
                "data": [
                    *squad(question((17, " 80 °C ")))["data"],
                    *squad(question((0, "Heat"), name="q2"), context="Heat it")["data"],
                ]
            },
        )
    )
    assert GoldAnswer(18, "80 °C") in [one for row in spaced.train + spaced.validation for one in answers_of(row)]


def test_lines_in_the_form_of_the_hub_are_read(tmp_path):
    rows = [
        {"id": str(at), "question": "How hot?", "context": f"{CONTEXT} {at}",
         "answers": {"text": ["80 °C"][at // 3 :], "answer_start": [18][at // 3 :]}}
        for at in range(4)
    ]  # fmt: skip
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load(tmp_path, train="t.jsonl")
    assert sum(found.statistics["rows"].values()) == 4 and found.statistics["labels"]["answer"]["train"] >= 1
    rows[1]["answers"]["answer_start"] = [17]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match="is not what stands there") as refused:
        load(tmp_path, train="t.jsonl")
    assert refused.value.where == f"{tmp_path / 't.jsonl'}:2, question 1"


def test_a_model_that_was_shown_no_question_without_an_answer_is_warned_of(tmp_path):
    tiny_squad.write(tmp_path, train=10, unanswerable=False)
    (tmp_path / "test.json").write_text(json.dumps(tiny_squad.document("test", 4, 3)))
    found = load(tmp_path, train="train.json", validation="validation.json", test="test.json")
    assert found.labels == ("answer",)
    assert any("the model will always answer" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("answer", "gold", "exact", "f1"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], True, 1.0),
        ("a  tower", ["Eiffel tower", "tower"], True, 1.0),
        ("big red bus", ["red bus stop"], False, 2 / 3),
        ("bus bus", ["bus"], False, 2 / 3),
        ("", [], True, 1.0),
        ("bus", [], False, 0.0),
        ("", ["bus"], False, 0.0),
        ("the", ["bus"], False, 0.0),
        ("an", ["the"], True, 1.0),
        ("22.5", ["225"], True, 1.0),
    ],
)
def test_scores_follow_the_rules_of_the_published_script(answer, gold, exact, f1):
    assert (exact_match(answer, gold), f1_of(answer, gold)) == (exact, pytest.approx(f1))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Two questions of tiny_base's words: the second one's context has three windows and no answer."""
    base = tiny_base.write(tmp_path_factory.mktemp("base"))
    contexts = ["turn the lamp on now please", " ".join(["switch the light off please"] * 5)]
    made = [
        answer_rows.Row(("the lamp", contexts[0]), answer_rows.label_of([GoldAnswer(9, "lamp on")])),
        answer_rows.Row(("the lamp", contexts[1]), answer_rows.label_of([])),
    ]
    return WindowRows.read(base / "tokenizer.json", made, WindowForm(16, 4), 5, True)


def logits_for(rows, *spans, sure=9.0):
    """Logits of all positions: of each window the (start, end) positions that are sure."""
    parts = []
    for windows, span in zip((w for each in rows.windows for w in each), spans, strict=True):
        part = numpy.zeros((1 + len(windows.places), 2), numpy.float32)
        part[span[0], 0] = part[span[1], 1] = sure
        parts.append(part)
    return numpy.concatenate(parts)


def test_windows_have_targets_and_answers_have_scores(rows):
    assert [len(windows) for windows in rows.windows] == [1, 3] and rows.unreachable == []
    (window,) = rows.windows[0]
    assert rows.targets == ([(window.first + 2, window.first + 3)], [(0, 0)] * 3)
    best = logits_for(rows, (3, 4), (0, 0), (0, 0), (0, 0))
    found = evaluate(best, rows)
    assert (found["accuracy"], found["macro_f1"], found["rows"]) == (1.0, 1.0, 2)
    assert found["answers"]["answerable"] == {"rows": 1, "exact": 1.0, "f1": 1.0} == found["answers"]["unanswerable"]
    assert found["confusion"] == ((1, 0), (0, 1)) and found["nll"] < 0.01 and found["ece"] < 0.01
    # One word of two, and an answer where there is none: by windows, only the one that says so.
    wrong = logits_for(rows, (3, 3), (0, 0), (1, 2), (0, 0))
    found = evaluate(wrong, rows)
    assert found["accuracy"] == 0.0 and found["macro_f1"] == pytest.approx(1 / 3)
    assert found["confusion"] == ((1, 0), (1, 0)) and not of_answers(evaluate(best, rows)).failed
    silent = logits_for(rows, (0, 0), (0, 0), (0, 0), (0, 0))
    assert "answers none of the 2" in of_answers(evaluate(silent, rows)).failed


def test_a_variant_is_compared_question_by_question(rows):
    best, wrong = (logits_for(rows, (3, 4), (0, 0), other, (0, 0)) for other in ((0, 0), (1, 2)))
    same = compare(best, best + 5.0, rows)
    assert (same.agreement, same.loss, same.logit_error) == (1.0, 0.0, pytest.approx(0.0, abs=1e-6))
    found = compare(best, wrong, rows, (best, best, rows))
    assert (found.rows, found.only_reference, found.texts, found.agreement) == (2, 1, 4, 0.75)
    assert found.logit_error > 0.1


@pytest.mark.parametrize(
    ("sections", "where"),
    [
        ({"task": {"kind": "answers"}}, "task.max_tokens"),
        ({"task": {"kind": "answers", "max_tokens": 128, "labels": ["a", "b"]}}, "task.labels"),
        ({"task": {"kind": "answers", "max_tokens": 128, "threshold": 0.5, "out_of_scope": "x"}}, "task.out_of_scope"),
        ({"data": {"train": "t.json", "text_pair": "c"}}, "data.text_pair"),
        ({"data": {"train": "t.json", "format": "tsv"}}, "data.format"),
        ({"quantize": {"litert": ["fp32"]}}, "quantize.litert"),
        ({"quantize": {"tensorrt": ["fp16"]}}, "quantize.tensorrt"),
        ({"compress": {"layers": 2}}, "compress.layers"),
        ({"train": {"precision": "int8"}}, "train.precision"),
        ({"train": {"class_weights": "balanced"}}, "train.class_weights"),
        ({"train": {"label_smoothing": 0.1}}, "train.label_smoothing"),
        ({"task": {"kind": "classify", "answer_tokens": 9}}, "task.answer_tokens"),
        ({"task": {"kind": "slots", "window_overlap": 9}, "data": {"train": "t.jsonl"}}, "task.window_overlap"),
        ({"task": {"kind": "classify"}, "data": {"train": "t.json", "format": "squad"}}, "data.format"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_at_its_key(sections, where):
    with pytest.raises(ConfigError) as refused:
        recipe(**sections)
    assert refused.value.where == f"recipe.toml: {where}"
    recipe()
