"""The matrix of tasks one after another: rows grow, the last one is of each task alone."""

import argparse

import pytest

from edge_agent.base.errors import UsageError
from edge_forge.report import sequence_report
from edge_forge.sequence import sequence

FOUND = {
    "tasks": ["a", "b", "c"],
    "methods": ["lora", "lora", "full"],
    "scores": ["accuracy", "accuracy", "accuracy"],
    "further": {},
    "after": [[0.9], [0.8, 0.95], [0.5, 0.96, 0.7]],
    "apart": [0.9, 0.94, 0.72],
}


def test_the_matrix_has_a_row_after_each_task_and_one_for_each_alone():
    (table,) = sequence_report.tables(FOUND)
    assert table.columns == ("accuracy", "a", "b", "c")
    assert [row[1:] for row in table.rows] == [
        ["0.9000", "", ""], ["0.8000", "0.9500", ""], ["0.5000", "0.9600", "0.7000"], ["0.9000", "0.9400", "0.7200"],
    ]  # fmt: skip


def test_what_is_lost_is_told_beside_what_adapters_apart_keep():
    said = sequence_report.said(FOUND)
    assert "a +40.0, b -1.0" in said and "Most was lost of a" in said and "it has +40.0 points" in said
    kept = {**FOUND, "after": [[0.9], [0.9, 0.95], [0.9, 0.96, 0.7]]}
    assert "forgot nothing" in sequence_report.said(kept)


GENERATORS = {
    "tasks": ["chat", "logs", "likes"],
    "methods": ["lora", "lora", "lora"],
    "scores": ["exact_match", "perplexity", "preferred"],
    "after": [[0.8], [0.5, 2.0], [0.4, 3.0, 0.9]],
    "apart": [0.8, 2.5, 0.85],
    "further": {"perplexity": {"after": [[1.2], [1.5, 2.0], [1.6, 3.0, 4.0]], "apart": [1.2, 2.5, 4.5]}},
}


def test_each_task_of_generators_has_its_own_score_and_all_have_perplexity():
    own, perplexity = sequence_report.tables(GENERATORS)
    assert own.columns == ("score", "chat: exact match", "logs: perplexity", "likes: chosen preferred")
    assert own.rows[2] == ["after likes (lora)", "0.4000", "3.000", "0.9000"]
    assert perplexity.columns == ("perplexity", "chat", "logs", "likes")
    assert perplexity.rows[-1] == ["each apart on the base", "1.200", "2.500", "4.500"]


def test_a_perplexity_is_lost_by_its_rise():
    assert sequence_report.lost(GENERATORS) == pytest.approx({"chat": 0.4, "logs": 0.5})
    said = sequence_report.said(GENERATORS)
    assert "chat +40.0, logs +50.0 % perplexity" in said and "Most was lost of logs" in said
    assert "+20.0 % perplexity beside an adapter of its own" in said, "3.0 after all, 2.5 apart"
    better = {**GENERATORS, "after": [[0.8], [0.8, 3.0], [0.9, 2.0, 0.9]]}
    assert "forgot nothing" in sequence_report.said(better)


def test_a_recipe_that_makes_a_base_of_its_own_is_no_part_of_a_sequence(tmp_path):
    (tmp_path / "recipe.toml").write_text(
        'name = "a"\n[base]\nname = "b"\nsource = "./base"\n[data]\ntrain = "t.tsv"\n[compress]\nlayers = 3\n'
    )
    given = argparse.Namespace(
        recipe=[tmp_path, tmp_path], build=tmp_path / "build", overlay=[], quiet=True, json=False
    )
    with pytest.raises(UsageError, match="a makes a base of its own") as refused:
        sequence(given)
    assert refused.value.remedy == "leave its compression out: --set compress.layers=0"


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ('[base]\nname = "b"\nsource = "./base"\n[data]\ntrain = "t.tsv"\n', "they have no base in common"),
        ('[base]\nname = "b"\nsource = "new:llama"\n[task]\nkind = "generate"\n[data]\ntrain = "t.jsonl"\n'
         '[method]\nname = "full"\n', "it follows on no other task"),
    ],
)  # fmt: skip
def test_what_cannot_follow_on_a_generator_is_refused(tmp_path, other, says):
    held = []
    generator = '[base]\nname = "b"\nsource = "./base"\n[task]\nkind = "generate"\n[data]\ntrain = "t.jsonl"\n'
    for name, text in (("a", generator), ("other", other)):
        held.append(tmp_path / name)
        held[-1].mkdir()
        (held[-1] / "recipe.toml").write_text(f'name = "{name}"\n{text}')
    given = argparse.Namespace(recipe=held, build=tmp_path / "build", overlay=[], quiet=True, json=False)
    with pytest.raises(UsageError, match=says):
        sequence(given)
