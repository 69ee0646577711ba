"""What a base still knows: the files that ask, the scores beside direct computations, and what the reports say."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.errors import ConfigError
from edge_forge.data import knowledge_files
from edge_forge.data.chat_tokenizer import EncodedRow
from edge_forge.data.generator_rows import TEXT, Turn
from edge_forge.evaluate import forgetting
from edge_forge.models import causal_lm
from edge_forge.plan.cache import canonical
from edge_forge.report import forgetting_report
from edge_forge.report.blocks import page

ROWS = [("a cat", "the cat", 4.5), ("a dog", "a car", 0.5), ('say "no"', "say yes", 2.0)]


@pytest.mark.parametrize("names", [("text_a", "text_b", "score"), ("sentence1", "sentence2", "score")])
@pytest.mark.parametrize("form", ["tsv", "csv", "jsonl"])
def test_columns_are_found_by_name_in_any_order(tmp_path, form, names):
    path = tmp_path / f"alike.{form}"
    one, other, score = names
    if form == "jsonl":
        lines = [json.dumps({"id": 7, score: c, other: b, one: a}) for a, b, c in ROWS]
    else:
        mark = "\t" if form == "tsv" else ","
        rows = [(c, "x", b, a) for a, b, c in ROWS]
        if form == "csv":
            rows = [(c, "x", b, '"' + a.replace('"', '""') + '"') for a, b, c in ROWS]
        lines = [mark.join(map(str, row)) for row in [(score, "genre", other, one), *rows]]
    path.write_text("\n".join(lines) + "\n")
    assert [tuple(row) for row in knowledge_files.alike_pairs(path)] == ROWS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("text_a\ttext_b\tlabel\na\tb\t1\n", "there is no score: it has 'text_a', 'text_b', 'label'"),
        ("text_a\ttext_b\tscore\na\tb\tmuch\n", "alike.tsv:2: the score 'much' is no number"),
        ("text_a\ttext_b\tscore\na\tb\tnan\n", "alike.tsv:2: the score 'nan' is no number"),
        ("text_a\ttext_b\tscore\na\t\t1\n", "alike.tsv:2: text_b is empty"),
        ("text_a\ttext_b\tscore\na\tb\n", "alike.tsv:2: 2 columns, where the header has 3"),
        ("text_a\ttext_b\tscore\ttext_a\na\tb\t1\tc\n", "the header has the column 'text_a' twice"),
        ("text_a\ttext_b\tscore\n", "the file has no rows"),
        ("", "the file has no rows"),
        ("text_a\ttext_b\tscore\n" + "a\tb\t1\n" * 5, "three rows or more, and different scores"),
    ],
)
def test_a_file_that_cannot_ask_is_named_with_its_line(tmp_path, text, said):
    path = tmp_path / "alike.tsv"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        knowledge_files.alike_pairs(path)
    assert said in str(error.value) and str(path) in str(error.value)


@given(rows=st.integers(0, 300), most=st.integers(1, 100))
def test_rows_are_taken_over_the_whole_file(rows, most):
    taken = knowledge_files.spread_over(list(range(rows)), most)
    assert len(taken) == min(rows, most) and taken == sorted(set(taken))
    if rows > most > 1:
        assert max(np.diff(taken)) - min(np.diff(taken)) <= 1 and taken[0] == 0 and taken[-1] >= rows - 2 * rows / most


@given(seed=st.integers(0, 500), count=st.integers(4, 40))
def test_similarity_is_the_correlation_of_ranks(seed, count):
    random = np.random.default_rng(seed)
    one, other = random.normal(size=(2, count, 6))
    scores = random.integers(0, 4, size=count).astype(float)  # with ties
    if len(set(scores)) < 2:
        scores[0] += 1.0
    cosines = [a @ b / math.sqrt(a @ a * (b @ b)) for a, b in zip(one, other, strict=True)]

    # Spearman's by its definition: Pearson's of the mean ranks.
    def ranks(values):
        return np.asarray([(sum(y < x for y in values) + sum(y <= x for y in values) + 1) / 2 for x in values])

    expected = np.corrcoef(ranks(cosines), ranks(scores))[0, 1]
    assert forgetting.similarity(one, other, list(scores)) == pytest.approx(expected, abs=1e-9)


def test_features_that_no_longer_tell_texts_apart_have_no_similarity():
    same = np.ones((5, 4))
    assert forgetting.similarity(same, same, [1.0, 2.0, 3.0, 4.0, 5.0]) == 0.0


def test_a_probe_reads_a_task_off_features_that_hold_it_and_not_off_noise():
    random = np.random.default_rng(3)
    labels = ["on", "off"] * 60
    features = random.normal(size=(120, 8)) + 3.0 * np.asarray([[one == "on"] for one in labels])
    held = forgetting.probe_accuracy((features[:80], labels[:80]), (features[80:], labels[80:]))
    noise = random.normal(size=(120, 8))
    gone = forgetting.probe_accuracy((noise[:80], labels[:80]), (noise[80:], labels[80:]))
    assert held > 0.95 and gone < 0.75


class Bigrams:
    """A causal model whose next token depends on the one before by a fixed table."""

    def __init__(self, table):
        self.table = table

    def __call__(self, input_ids, use_cache):
        return type("Out", (), {"logits": self.table[input_ids]})


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=12), seed=st.integers(0, 50))
def test_losses_of_sentences_are_those_of_each_alone(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    model = Bigrams(torch.randn(11, 11, generator=generator))
    rows = [torch.randint(11, (length,), generator=generator).tolist() for length in lengths]
    log = model.table.log_softmax(dim=-1)
    alone = [-sum(float(log[a, b]) for a, b in pairwise(row)) for row in rows]
    assert causal_lm.sentence_losses(model, rows) == pytest.approx(alone, rel=1e-4, abs=1e-4)


def test_a_model_that_training_broke_has_figures_that_a_record_can_hold():
    """A loss that is no number would end `diagnose` behind the whole training: JSON has no such value."""

    class Words:
        ends = (0,)

        def encode(self, row):
            return EncodedRow((1, 2, 1, 3), (1, 2, 1, 3), 0)

        def ids(self, text, begins=False):
            return tuple(len(word) for word in text.split())

    asked = forgetting.GeneratorQuestions([(Turn(TEXT, "a bb a ccc"),)], [("a bb", "a ccc")], 8)
    found = forgetting.generator_scores(Bigrams(torch.full((5, 5), math.nan)), Words(), asked)
    assert canonical(forgetting.compared({"perplexity": 9.0, "pairs": 1.0}, found))
    assert found["pairs"] == 0.0 and found["perplexity"] > 1e100


def test_what_is_lost_is_the_fall_of_a_share_and_the_rise_of_a_perplexity():
    found = forgetting.compared({"similarity": 0.8, "perplexity": 20.0}, {"similarity": 0.7, "perplexity": 25.0})
    assert found["similarity"]["lost"] == pytest.approx(0.1) and found["perplexity"]["lost"] == pytest.approx(0.25)


def test_the_reports_say_who_forgot_what():
    kept = {
        "lora": {"similarity": {"before": 0.8, "after": 0.79, "lost": 0.01}},
        "full": {"similarity": {"before": 0.8, "after": 0.6, "lost": 0.2}},
    }
    assert forgetting_report.beyond(kept, 0.05) == (
        "full lost 20.0 points of similarity (Spearman); the recipe takes 5"
    )
    assert forgetting_report.beyond(kept, 0.2) == "" == forgetting_report.beyond({"lora": {}}, 0.0)
    assert [row[-1] for row in forgetting_report.table(kept).rows] == ["1.00", "20.00"]
    assert (forgetting_report.worst(kept["full"]), forgetting_report.worst({})) == ("20.00", "–")
    runs = {
        name: {"kept": one, "learned": ["accuracy", 0.9], "repair": [
            {"factor": 1.0, "learned": 0.9, "kept": {"similarity": one["similarity"]["after"]}},
            {"factor": 0.5, "learned": 0.8, "kept": {"similarity": 0.75}},
        ]} for name, one in kept.items()
    }  # fmt: skip
    text = page("t", list(forgetting_report.of_diagnosis(runs)))
    assert text.count("<svg") == 1 and "learned: accuracy" in text
    assert list(forgetting_report.of_diagnosis({"lora": {"kept": {}}})) == []
